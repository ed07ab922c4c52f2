"""impl.lowering judged by the file it makes: every output's bits, and what the bytes hold.

Files are executed by conformance.pte.run: CPU parts on the wheel's own runtime, delegated
lookups by our kernel, other delegated operators by their eager implementation.
"""

import functools
import warnings
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.backends.vulkan.patterns import fusable_patterns
from torchao.utils import unwrap_tensor_subclass

from conformance.program.tensors import to_torch
from conformance.pte.file import PteFile, read_pte
from conformance.pte.run import run_pte
from impl.graph.ops import EDGE_Q4GSW
from impl.lower import outside
from impl.lower.outside import UNREGISTERED
from impl.lowering import LoweringError, lower_to_vulkan
from impl.matcher import Limits
from impl.packer import pack_linear_weight
from tests.impl.test_matcher_torchao import INDICES, Lookup, Tied, quantize
from tests.support.program_checks import bits, scales

F16, BF16, F32 = torch.float16, torch.bfloat16, torch.float32


@pytest.fixture(autouse=True, scope="module")
def _patterns_are_traced_once() -> Iterator[None]:
    """Upstream traces its graph patterns again for every program, which takes most of a lowering's time."""
    patched = pytest.MonkeyPatch()
    for entry in fusable_patterns.values():
        if entry.get_graphs_fn is not None:
            patched.setattr(entry, "get_graphs_fn", functools.cache(entry.get_graphs_fn))
    yield
    patched.undo()


class Table(torch.nn.Module):
    """A dequantized table from plain buffers, looked up; every argument of the dequantize can be chosen."""

    def __init__(
        self, weight: Any, scale: Any, zero_point: Any = None, *, block: Any = (1, 32), out: Any = F32, **options: Any
    ) -> None:
        super().__init__()
        self.register_buffer("w", weight)
        self.register_buffer("s", scale)
        self.register_buffer("z", zero_point)
        self.block, self.out = list(block), out
        self.qmin, self.qmax = options.get("limits", (-8, 7))

    def table(self) -> torch.Tensor:
        kinds = (self.w.dtype, self.qmin, self.qmax)
        return torch.ops.torchao.dequantize_affine.default(self.w, self.block, self.s, self.z, *kinds, self.out)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.ops.aten.embedding.default(self.table(), indices)


def lower(model: torch.nn.Module, inputs: tuple[Any, ...], **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        dynamic = options.pop("dynamic_shapes", None)
        return lower_to_vulkan(torch.export.export(model.eval(), inputs, dynamic_shapes=dynamic), **options)


def operators(file: PteFile, method: str = "forward") -> tuple[list[str], list[str]]:
    """What runs in Vulkan delegates, and what runs on the CPU, in order of first use."""
    found = file.method(method)
    delegated = [call.name for delegate in found.delegates.values() for call in delegate.graph.chain]
    return delegated, [op.name.partition("::")[2] for op in found.plan.operators]


def check(model: torch.nn.Module, inputs: tuple[Any, ...], **options: Any) -> PteFile:
    """Lower, and compare every output of the file with eager's, bit for bit."""
    file = read_pte(lower(model, inputs, **options).buffer)
    with torch.no_grad():
        wanted = torch.utils._pytree.tree_leaves(model(*inputs))
    got = run_pte(file, inputs).outputs
    assert [bits(to_torch(np.asarray(value))) for value in got] == [bits(value) for value in wanted]
    assert not [name for name in operators(file)[0] if name.startswith(UNREGISTERED)]
    return file


class Many(torch.nn.Module):
    """Several tables of 12 rows in one program."""

    def __init__(self, tables: dict[str, torch.nn.Module]) -> None:
        super().__init__()
        self.tables = torch.nn.ModuleDict(tables)

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return tuple(table(indices) for table in self.tables.values())


def whole(*shape: int, low: int, high: int, dtype: torch.dtype = torch.int8, seed: int = 5) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(low, high + 1, shape, generator=generator).to(dtype)


BYTE = "embedding_byte"
FLOAT = "embedding"
Q = whole(12, 96, low=-8, high=7)
Z = whole(12, 3, low=-8, high=7)
BYTES, BYTE_LIMITS = whole(12, 96, low=-128, high=127), (-128, 127)
BYTE_ZEROS = whole(12, 3, low=-128, high=127)
REFUSED = {
    "two_bits": (BYTE, lambda: Table(whole(12, 96, low=-2, high=1), scales(12, 3), limits=(-2, 1))),
    "three_bits": (BYTE, lambda: Table(whole(12, 96, low=-4, high=3), scales(12, 3), limits=(-4, 3))),
    "eight_bits": (BYTE, lambda: Table(BYTES, scales(12, 3), limits=BYTE_LIMITS)),
    "group_2": (BYTE, lambda: Table(Q, scales(12, 48), block=(1, 2))),
    "group_3": (BYTE, lambda: Table(Q, scales(12, 32), block=(1, 3))),
    "group_1": (FLOAT, lambda: Table(Q, scales(12, 96), block=(1, 1))),
    "width_36": (BYTE, lambda: Table(whole(12, 36, low=-8, high=7), scales(12, 3), block=(1, 12))),
    "asymmetric": (BYTE, lambda: Table(Q, scales(12, 3), Z)),
    "asymmetric_f16": (BYTE, lambda: Table(Q, scales(12, 3, dtype=F16), Z, out=F16)),
    "asymmetric_bf16": (BYTE, lambda: Table(Q, scales(12, 3, dtype=BF16), Z, out=BF16)),
    "asymmetric_half_to_single": (BYTE, lambda: Table(Q, scales(12, 3, dtype=F16), Z)),
    "asymmetric_single_to_half": (BYTE, lambda: Table(Q, scales(12, 3), Z, out=F16)),
    "wide_asymmetric": (BYTE, lambda: Table(BYTES, scales(12, 3), BYTE_ZEROS, limits=BYTE_LIMITS)),
    "wide_asymmetric_single_to_half": (
        FLOAT,
        lambda: Table(BYTES, scales(12, 3), BYTE_ZEROS, limits=BYTE_LIMITS, out=F16),
    ),
    "zero_point_of_int32": (BYTE, lambda: Table(Q, scales(12, 3), Z.to(torch.int32))),
    "fractional_zero_point": (BYTE, lambda: Table(Q, scales(12, 3), Z + 0.3)),
    "fractional_zero_point_f16": (FLOAT, lambda: Table(Q, scales(12, 3, dtype=F16), Z + 0.3, out=F16)),
    "bf16_scales": (BYTE, lambda: Table(Q, scales(12, 3, dtype=BF16), Z)),
    "f64_scales": (BYTE, lambda: Table(Q, scales(12, 3).double())),
    "f64_scales_that_round": (FLOAT, lambda: Table(Q, scales(12, 3).double() / 3)),
    "int16_table": (BYTE, lambda: Table(Q.short(), scales(12, 3))),
    "int16_table_of_large_values": (FLOAT, lambda: Table(Q.short() * 100, scales(12, 3), limits=(-800, 700))),
    "scales_of_several_rows": (BYTE, lambda: Table(Q, scales(4, 3), block=(3, 32))),
    "flat_scales": (BYTE, lambda: Table(Q, scales(36))),
    "nan_and_infinity": (BYTE, lambda: Table(Q, scales(12, 3).index_fill(0, torch.tensor([2]), float("nan")), Z)),
}  # fmt: skip


def test_refused_lookups_run_on_the_cpu_to_the_bit_beside_a_fused_one() -> None:
    """One program with all of them: one lowering."""
    fused = {
        "fused": Table(Q, scales(12, 3)),
        "fused_f16": Table(Q, scales(12, 3, dtype=F16), out=F16),
        "fused_bf16_scales": Table(Q, scales(12, 3, dtype=BF16)),
        "fused_bf16": Table(Q, scales(12, 3, dtype=BF16), out=BF16),
    }
    model = Many({**fused, **{name: make() for name, (_, make) in REFUSED.items()}})
    indices = torch.tensor([[0, 11, 5], [2, 2, 1]])
    file = check(model, (indices,))
    delegated, on_cpu = operators(file)
    assert delegated.count("et_vk.embedding_q4gsw.default") == len(fused)
    (method,) = file.methods
    kernels = [method.plan.operators[call.op_index].name for call in method.instructions() if hasattr(call, "op_index")]
    assert kernels.count("quantized_decomposed::embedding_byte") == sum(how == BYTE for how, _ in REFUSED.values())
    assert "embedding_byte" in on_cpu


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_index_dtypes_and_ranks_of_refused_lookups(dtype: torch.dtype) -> None:
    class Ranks(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Table(Q, scales(12, 3), Z)

        def forward(self, *indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(self.inner(each) for each in indices)

    shapes = ((), (3,), (2, 2), (1, 2, 2), (1, 2, 1, 2), (0,))
    check(Ranks(), tuple(whole(*shape, low=0, high=11, dtype=dtype) for shape in shapes))


def test_refused_flat_tables() -> None:
    class Flat(torch.nn.Module):
        def __init__(self, scale: torch.Tensor, zero_point: torch.Tensor | None, out: torch.dtype) -> None:
            super().__init__()
            self.register_buffer("w", whole(12, 48, low=0, high=255, dtype=torch.uint8))
            self.register_buffer("s", scale)
            self.register_buffer("z", zero_point)
            self.out = out

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            given = (self.w, self.s, self.z, -8, 7, indices)
            return torch.ops.quantized_decomposed.embedding_4bit.dtype(*given, dtype=self.out)

    tables = {
        "group_2": Flat(scales(12, 48), None, F32),
        "one_scale_a_row": Flat(scales(12), Z[:, 0] + 0.25, F32),
        "asymmetric": Flat(scales(12, 3), Z + 0.25, F32),
        "asymmetric_half": Flat(scales(12, 3, dtype=F16), Z.to(F16), F16),
        "bf16": Flat(scales(12, 3, dtype=BF16), Z.to(BF16), BF16),
    }
    file = check(Many(tables), (torch.tensor([4, 11]),))
    assert operators(file) == ([], ["embedding_byte"])


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("unwrap", [False, True])
def test_a_tied_head_shares_the_packed_table(head_first: bool, unwrap: bool) -> None:
    model = quantize(Tied(head_first=head_first))
    model.head.weight = model.emb.weight
    table = model.emb.weight.qdata.detach().clone()
    floats = model.emb.weight.dequantize().detach().contiguous()
    if unwrap:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of torchao's helper
            unwrap_tensor_subclass(model)
    buffer = lower(model, (INDICES, torch.randn(2, 3, 64))).buffer
    delegated, on_cpu = operators(read_pte(buffer))
    assert delegated.count("et_vk.embedding_q4gsw.default") == (1 if head_first else 2)
    assert delegated.count("et_vk.linear_q4gsw.default") == 1
    assert on_cpu == []
    assert buffer.count(pack_linear_weight(table).numpy().tobytes()) == 1
    assert table.numpy().tobytes() not in buffer
    assert floats.numpy().tobytes() not in buffer


class Head(torch.nn.Module):
    """A lookup, and a product with the same table."""

    def __init__(self, inner: Table, *, bias: str = "") -> None:
        super().__init__()
        self.inner, self.bias = inner, bias
        self.register_buffer("constant", torch.ones(inner.w.shape[0], dtype=inner.out))

    def forward(self, indices: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        table = self.inner.table()
        bias = {"": None, "constant": self.constant, "computed": x[0, : self.constant.shape[0]]}[self.bias]
        return torch.ops.aten.embedding.default(table, indices), torch.nn.functional.linear(x, table, bias)


PRODUCTS = {
    "no_zero_point": (Table(Q, scales(12, 3)), "", True),  # upstream's pattern asserts that there is one
    "constant_bias": (Table(Q, scales(12, 3)), "constant", True),
    "computed_bias": (Table(Q, scales(12, 3)), "computed", False),  # upstream's pattern asserts that it is constant
    "asymmetric": (Table(Q, scales(12, 3), Z), "", False),
    "group_2": (Table(Q, scales(12, 48), block=(1, 2)), "", False),
    "eight_bits": (Table(BYTES, scales(12, 3), limits=BYTE_LIMITS), "", False),
    "eleven_rows": (Table(whole(11, 96, low=-8, high=7), scales(11, 3)), "", False),  # upstream's shader: by fours
    "half_scales": (Table(Q, scales(12, 3, dtype=F16)), "", True),  # widened, which is exact
}


def test_which_products_reach_upstreams_4_bit_linear() -> None:
    class Heads(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.heads = torch.nn.ModuleDict({k: Head(table, bias=bias) for k, (table, bias, _) in PRODUCTS.items()})

        def forward(self, indices: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return tuple(out for head in self.heads.values() for out in head(indices, x))

    model, inputs = Heads(), (torch.tensor([1, 10]), torch.randn(3, 96))
    file = read_pte(lower(model, inputs).buffer)
    delegated, on_cpu = operators(file)
    assert delegated.count("et_vk.linear_q4gsw.default") == sum(kept for _, _, kept in PRODUCTS.values())
    assert not [name for name in delegated + on_cpu if "dequantize" in name]
    got = run_pte(file, inputs).outputs
    with torch.no_grad():
        wanted = model(*inputs)
    for place, (name, (_, _, kept)) in enumerate(PRODUCTS.items()):
        assert bits(to_torch(np.asarray(got[2 * place]))) == bits(wanted[2 * place]), name
        if not kept:  # a plain product on the dequantized table, in the order of sums that eager has
            assert bits(to_torch(np.asarray(got[2 * place + 1]))) == bits(wanted[2 * place + 1]), name


def test_other_readers_get_the_table_and_the_lookup_still_fuses() -> None:
    class Reader(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Table(Q, scales(12, 3), torch.zeros(12, 3, dtype=torch.int8))

        def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            table = self.inner.table()
            looked_up = torch.ops.aten.embedding.default(table, indices)
            return looked_up, table, torch.clone(self.inner.w)

    file = check(Reader(), (torch.tensor([3]),))
    assert operators(file)[0].count("et_vk.embedding_q4gsw.default") == 1


def test_a_computed_table_is_looked_up_on_the_cpu() -> None:
    class Computed(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.inner = Table(Q, scales(12, 3), torch.zeros(12, 3, dtype=torch.int8))

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            found: torch.Tensor = torch.ops.aten.embedding.default(-self.inner.table(), indices)
            return found

    check(Computed(), (torch.tensor([3]),))


def test_several_methods_share_the_table_and_are_lowered_alike() -> None:
    model = quantize(Lookup())
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        other = torch.tensor([1, 2, 3, 4])
        methods = {"forward": torch.export.export(model, (INDICES,)), "one": torch.export.export(model, (other,))}
        buffer = lower_to_vulkan(methods, constant_methods={"vocab_size": 40}).buffer
    assert buffer.count(pack_linear_weight(model.emb.weight.qdata).numpy().tobytes()) == 1
    file = read_pte(buffer)
    assert {method.name for method in file.methods} == {"forward", "one", "vocab_size"}
    for name, indices in (("forward", INDICES), ("one", other)):
        assert bits(to_torch(run_pte(file, (indices,), name).outputs[0])) == bits(model(indices).detach())


def test_dynamic_shapes() -> None:
    model = Many({"fused": Table(Q, scales(12, 3)), "refused": Table(Q, scales(12, 3), Z)})
    dynamic = {"indices": {0: torch.export.Dim("n", min=1, max=8)}}
    file = read_pte(lower(model, (torch.tensor([1, 2]),), dynamic_shapes=dynamic).buffer)
    indices = torch.tensor([5, 0, 11, 5, 7])
    for got, wanted in zip(run_pte(file, (indices,)).outputs, model(indices), strict=True):
        assert bits(to_torch(got)) == bits(wanted)


def test_tables_that_only_run_time_knows() -> None:
    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("kept", Q.clone())
            self.register_buffer("s", scales(12, 3))

        def forward(self, weight: torch.Tensor, zero_point: torch.Tensor, indices: torch.Tensor) -> Any:
            options = (torch.int8, -8, 7)
            given = torch.ops.torchao.dequantize_affine.default(weight, [1, 32], self.s, zero_point, *options)
            written = torch.ops.torchao.dequantize_affine.default(self.kept, [1, 32], self.s, None, *options)
            first = torch.ops.aten.embedding.default(given, indices)
            second = torch.ops.aten.embedding.default(written, indices)
            self.kept.copy_(weight)
            return first, second

    inputs = (whole(12, 96, low=-8, high=7, seed=9), Z, torch.tensor([0, 7]))
    model = Given()
    file = read_pte(lower(model, inputs).buffer)
    assert operators(file)[1].count("embedding_byte") == 1
    got = run_pte(file, inputs).outputs
    for value, wanted in zip(got, model(*inputs), strict=False):
        assert bits(to_torch(value)) == bits(wanted)


def test_what_vulkan_does_not_take_goes_to_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        outside,
        "VulkanPartitioner",
        lambda options, **others: VulkanPartitioner(options, operator_blocklist=[EDGE_Q4GSW], **others),
    )
    file = check(quantize(Lookup()), (INDICES,))
    assert operators(file) == ([], ["embedding_byte"])


def test_limits_send_a_table_to_the_cpu() -> None:
    file = check(quantize(Lookup()), (INDICES,), limits=Limits(max_storage_buffer_range=1000))
    assert operators(file) == ([], ["embedding_byte"])


def test_options_reach_the_partitioner_and_force_fp16_is_refused() -> None:
    model = quantize(Lookup())
    file = read_pte(lower(model, (INDICES,), compile_options={"small_texture_limits": True}).buffer)
    (delegate,) = file.methods[0].delegates.values()
    assert "small_texture_limits" in delegate.options
    with pytest.raises(ValueError, match="force_fp16 makes the scales of forward/aten_embedding_default float16"):
        lower(model, (INDICES,), compile_options={"force_fp16": True})


class Branching(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Table(Q, scales(12, 3))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return torch.cond(indices.sum() > 3, self.inner, lambda i: self.inner(i) * 2.0, (indices,))


class Computed(torch.nn.Module):
    def forward(self, weight: torch.Tensor, scale: torch.Tensor, indices: torch.Tensor) -> Any:
        table = torch.ops.torchao.dequantize_affine.default(weight, [1, 32], scale, None, torch.int8, -8, 7)
        return torch.ops.aten.embedding.default(table * 2.0, indices)


class ComputedFlat(torch.nn.Module):
    def forward(self, weight: torch.Tensor, scale: torch.Tensor, indices: torch.Tensor) -> Any:
        given = (weight, scale, None, -8, 7, indices)
        return torch.ops.quantized_decomposed.embedding_4bit.dtype(*given, dtype=F32)


@pytest.mark.parametrize(
    ("model", "inputs", "words"),
    [
        (Branching(), (torch.tensor([1, 2]),), r"forward/submodule_0/aten_embedding_default.*inside a control-flow"),
        (Computed(), (Q, scales(12, 3), torch.tensor([1])), r"aten_mul_tensor.* reads it dequantized"),
        (
            ComputedFlat(),
            (whole(12, 48, low=0, high=255, dtype=torch.uint8), scales(12, 3), torch.tensor([1])),
            r"embedding_4bit.*only int8 tables have a CPU form",
        ),
    ],
)
def test_what_no_runtime_executes_is_named(model: Any, inputs: tuple[Any, ...], words: str) -> None:
    with pytest.raises(LoweringError, match=words) as caught:
        lower(model, inputs)
    assert caught.value.nodes
    assert "\n" not in str(caught.value)


def test_the_callers_program_stays_as_it_was() -> None:
    model = quantize(Tied(head_first=False))
    model.head.weight = model.emb.weight
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        program = torch.export.export(model, (INDICES, torch.randn(2, 3, 64)))
        before = str(program.graph), {k: bits(getattr(t, "qdata", t)) for k, t in program.state_dict.items()}
        lower_to_vulkan(program)
    assert (str(program.graph), {k: bits(getattr(t, "qdata", t)) for k, t in program.state_dict.items()}) == before


def test_wrong_kind_of_argument() -> None:
    with pytest.raises(TypeError, match=r"must be a torch\.export\.ExportedProgram or a mapping"):
        lower_to_vulkan("model.pt2")  # type: ignore[arg-type] # the point of the test
