"""What models hold, lowered: each program was wrong, or no file at all, on ExecuTorch's Vulkan runtime."""

import copy
import warnings
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkDataType, VkTensor
from executorch.exir import to_edge
from torch import nn
from torch.nn import functional
from torchao.quantization import (
    Int8DynamicActivationIntxWeightConfig,
    IntxWeightOnlyConfig,
    MappingType,
    quantize_,
)
from torchao.quantization.granularity import PerAxis, PerGroup

from conformance.harness.errors import DeviceWouldFail
from conformance.pte import delegate as delegates
from conformance.pte.calls import by_schema
from conformance.pte.file import PteFile, read_pte
from conformance.pte.run import run_pte
from impl.lowering import LoweringError, lower_to_vulkan, lower_with_report
from tests.impl.test_lowering import check, lower, operators

IDS = torch.arange(6)
BATCH = torch.tensor([[1, 2, 3], [4, 5, 6]])
LOOKUP, LINEAR = "et_vk.embedding_q4gsw.default", "et_vk.linear_q4gsw.default"
INT4 = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))


def int4(model: nn.Module, *kinds: type) -> nn.Module:
    """The model with int4 weights in its embeddings, and in modules of the given kinds."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao about its own versions
        quantize_(model.eval(), INT4, lambda module, _name: isinstance(module, (nn.Embedding, *kinds)))
    return model


def delegated_shapes(file: PteFile, operator: str, argument: int) -> list[list[int]]:
    """The shape of one tensor argument at every call of an operator inside delegates."""
    calls = ((d, c) for d in file.methods[0].delegates.values() for c in d.graph.chain if c.name == operator)
    return [list(delegate.graph.values[call.args[argument]].value.dims) for delegate, call in calls]


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(32, 64)
        self.q, self.k, self.v = (nn.Linear(64, 64, bias=False) for _ in range(3))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.embed(indices)
        return functional.scaled_dot_product_attention(self.q(x), self.k(x), self.v(x), is_causal=True)


def test_causal_attention_on_int4_linears() -> None:
    """Its linears shared one zero point, which the partitioner copied; its logical_not is in no Vulkan runtime."""
    torch.manual_seed(0)
    model = int4(Attention(), nn.Linear)
    file = read_pte(lower(model, (BATCH,)).buffer)
    delegated, cpu = operators(file)
    assert (delegated.count(LOOKUP), delegated.count(LINEAR)) == (1, 3)
    assert "aten.logical_not.default" not in delegated
    assert "logical_not" in cpu
    (got,) = run_pte(file, (BATCH,)).outputs
    torch.testing.assert_close(torch.from_numpy(got), model(BATCH), atol=1e-6, rtol=1e-5)
    assert {len(shape) for shape in delegated_shapes(file, LINEAR, 0)} == {2}


class Lookup(nn.Module):
    def __init__(self, rows: int = 8) -> None:
        super().__init__()
        self.embed = nn.Embedding(rows, 32)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.embed(indices)


@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_batch_of_indices_is_flattened_inside_the_delegate(dtype: torch.dtype, *, dynamic: bool) -> None:
    sizes = {0: torch.export.Dim("batch", min=2, max=8), 1: torch.export.Dim("length", min=2, max=9)}
    file = check(int4(Lookup().to(dtype)), (BATCH,), dynamic_shapes=(sizes,) if dynamic else None)
    (shape,) = delegated_shapes(file, LOOKUP, 3)
    assert len(shape) == 1
    assert len(file.methods[0].delegates) == 1
    assert not operators(file)[1]


def test_indices_without_a_batch_stay_as_they_are() -> None:
    file = check(int4(Lookup()), (BATCH[:1],))
    assert delegated_shapes(file, LOOKUP, 3) == [[1, 3]]


class Copies(nn.Module):
    """Returns copies of constants, reads one inside the delegate too."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 32), nn.Linear(32, 4)
        self.register_buffer("b", torch.arange(4.0))

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        copied = self.b.clone()
        return self.embed(indices), copied, self.b.view(4), copied + self.b


def test_a_constant_is_no_output_of_a_delegate() -> None:
    file = check(int4(Copies()), (IDS,))
    for delegate in file.methods[0].delegates.values():
        for value in delegate.graph.output_ids:
            assert any(call.args[-1] == value for call in delegate.graph.chain if call.name != "et_vk.prepack.default")


class Convolution(nn.Module):
    """Keeps the last four rows from call to call."""

    def __init__(self, first: float = 0.0) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.register_buffer("k", torch.full((4, 32), first))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        rows = torch.cat([self.k, self.embed(indices)])[-4:]
        self.k.copy_(rows)
        return rows * 2


def test_state_stays_outside_the_delegate() -> None:
    file = read_pte(lower(int4(Convolution()), (IDS,)).buffer)
    delegated, cpu = operators(file)
    assert LOOKUP in delegated
    assert cpu == ["copy_"]
    (delegate,) = file.methods[0].delegates.values()
    assert [4, 32] in [list(delegate.graph.values[value].value.dims) for value in delegate.graph.input_ids]


class NormsOfState(nn.Module):
    """Norms whose weight the program writes: the runtime's take constants only, also the one that a pattern makes."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.register_buffer("w", torch.linspace(0.5, 1.5, 32))

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
        x = self.embed(indices)
        rms = x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + 1e-5) * self.w
        norms = functional.layer_norm(x, (32,), self.w, self.w), functional.group_norm(x, 4, *(2 * (self.w,)))
        self.w.add_(1)
        return rms, *norms


def test_norms_whose_weight_is_written_stay_outside() -> None:
    model = int4(NormsOfState())
    right = copy.deepcopy(model)(IDS)
    delegated, _ = operators(file := read_pte(lower(model, (IDS,)).buffer))
    assert delegated.count(LOOKUP) == 1
    assert not any("norm" in name for name in delegated)
    for got, expected in zip(run_pte(file, (IDS,)).outputs, right, strict=True):
        assert torch.allclose(torch.as_tensor(got), expected, atol=1e-5)


class Weighted(nn.Module):
    """Keeps rows that were multiplied with a parameter, which asks for a gradient; its linear reads a view."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.f = nn.Embedding(8, 32), nn.Linear(32, 32)
        self.w = nn.Parameter(torch.rand(32))
        self.register_buffer("k", torch.zeros(2, 32))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        rows = self.f((self.embed(indices) * self.w).view(-1, 32))
        self.k.copy_(self.w + rows[-2:])
        return rows


def test_parameters_that_train_and_views_of_any_size() -> None:
    """The first raised out of to_executorch, the second left a symbolic size in the graph."""
    sizes = {0: torch.export.Dim("batch", min=2, max=8), 1: torch.export.Dim("length", min=2, max=9)}
    delegated, _ = operators(read_pte(lower(int4(Weighted(), nn.Linear), (BATCH,), dynamic_shapes=(sizes,)).buffer))
    assert (delegated.count(LOOKUP), delegated.count(LINEAR)) == (1, 1)


class Products(nn.Module):
    """A product with a computed weight, and a lookup into a computed table."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.f = nn.Embedding(8, 32), nn.Linear(32, 32)

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        x = self.embed(indices)
        return x @ self.f(x).T, functional.embedding(indices, self.f.weight * 2)


def test_computed_weights_and_tables_stay_outside() -> None:
    model = int4(Products())
    file = read_pte(lower(model, (IDS,)).buffer)
    delegated, cpu = operators(file)
    assert delegated.count("aten.linear.default") == 1
    assert "aten.embedding.default" not in delegated
    assert {"mm", "embedding"} <= set(cpu)
    for got, wanted in zip(run_pte(file, (IDS,)).outputs, model(IDS), strict=True):
        torch.testing.assert_close(torch.from_numpy(got), wanted)


@pytest.mark.parametrize(("rows", "place"), [(16384, 0), (16385, 1)])
def test_a_plain_table_of_more_rows_than_the_runtime_reads_stays_outside(rows: int, place: int) -> None:
    program = torch.export.export(Lookup(rows).eval(), (torch.tensor([0, rows - 1]),))
    found = operators(read_pte(lower_to_vulkan(program).buffer))
    assert any("embedding" in name for name in found[place])
    assert not any("embedding" in name for name in found[1 - place])


def test_a_refused_table_without_a_byte_form_runs_on_the_cpu() -> None:
    class Fractional(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("w", torch.randint(0, 16, (12, 64), dtype=torch.int8))
            self.register_buffer("s", torch.rand(12, 2).half())
            self.register_buffer("z", (torch.rand(12, 2) * 8).half())

        def forward(self, indices: torch.Tensor) -> Any:
            table = torch.ops.torchao.dequantize_affine.default
            kinds = (torch.int8, 0, 15, torch.float16)
            return functional.embedding(indices, table(self.w, [1, 32], self.s, self.z, *kinds))

    assert operators(check(Fractional(), (IDS,))) == ([], ["embedding"])


class Net(nn.Module):
    def __init__(self, rows: int) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(8, 32), nn.Linear(32, rows, bias=False)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.out(self.embed(indices))


def of_8_bit_inputs(rows: int = 8, **options: Any) -> nn.Module:
    """An int4 embedding and a linear whose inputs are quantized as it runs."""
    torch.manual_seed(1)
    model = int4(Net(rows))
    options = {"weight_dtype": torch.int4, "weight_granularity": PerGroup(32), **options}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao about its own versions
        config = Int8DynamicActivationIntxWeightConfig(**options)
        quantize_(model, config, lambda module, _name: isinstance(module, nn.Linear))
    return model


@pytest.mark.parametrize("dynamic", [False, True])
def test_8_bit_inputs_and_a_batch_are_quantized_as_matrices(*, dynamic: bool) -> None:
    """The runtime chooses scales of matrices only, and upstream's pattern swallows the view behind the linear."""
    sizes = {0: torch.export.Dim("batch", min=2, max=8), 1: torch.export.Dim("length", min=2, max=9)}
    file = check(of_8_bit_inputs(), (BATCH,), dynamic_shapes=({**sizes},) if dynamic else None)
    assert [len(shape) for shape in delegated_shapes(file, "torchao.choose_qparams_affine.default", 0)] == [2]
    assert "et_vk.linear_dq8ca_q4gsw.default" in operators(file)[0]


def test_bfloat16_scales_keep_the_quantized_input() -> None:
    file = check(of_8_bit_inputs(weight_scale_dtype=torch.bfloat16), (IDS,))
    assert "et_vk.linear_dq8ca_q4gsw.default" in operators(file)[0]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"weight_mapping_type": MappingType.ASYMMETRIC}, "zero point"),
        ({"weight_granularity": PerGroup(2)}, "group_size 2 is not a multiple of 4"),
        ({"weight_dtype": torch.int8, "weight_granularity": PerAxis(0)}, r"outside \[-8, 7\]|quant_max"),
        ({"rows": 6}, "has 6 rows"),
    ],
)
def test_8_bit_inputs_of_other_weights_are_refused_by_name(options: dict[str, Any], words: str) -> None:
    """Upstream drops the quantization of the input, or the weight's zero points, and says nothing."""
    with pytest.raises(LoweringError, match=f"forward/aten_(mm|linear)_default.*({words}).*weight-only int4.* in File"):
        lower(of_8_bit_inputs(**options), (IDS,))


class Square(nn.Module):
    """A square dequantized table, looked up and multiplied as it lies."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randint(-8, 8, (64, 64), dtype=torch.int8))
        self.register_buffer("s", torch.rand(64, 2))

    def forward(self, indices: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        table = torch.ops.torchao.dequantize_affine.default(self.w, [1, 32], self.s, None, torch.int8, -8, 7)
        return functional.embedding(indices, table), x @ table


def test_a_product_with_the_table_as_it_lies_is_not_the_turned_one() -> None:
    check(Square(), (IDS, torch.randn(3, 64)))


def test_decoding_in_two_calls_is_one_call_on_everything() -> None:
    model = int4(Convolution())
    file = read_pte(lower(model, (IDS[:3],)).buffer)
    first = run_pte(file, (IDS[:3],))
    second = run_pte(file, (IDS[3:],), state=first.state)
    (whole,) = run_pte(lower(model, (IDS,)).buffer, (IDS,)).outputs
    assert (second.outputs[0] == whole).all()
    assert not (run_pte(file, (IDS[3:],)).outputs[0] == whole).all()


def test_state_starts_as_the_program_starts_it() -> None:
    file = read_pte(lower(int4(Convolution(0.5)), (IDS[:1],)).buffer)
    (got,) = run_pte(file, (IDS[:1],)).outputs
    assert (got[:3] == 1.0).all()


class Returned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)
        self.register_buffer("b", torch.ones(32))

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.embed(indices) + self.b, self.b


def test_a_buffer_that_a_delegate_reads_can_be_returned() -> None:
    check(int4(Returned()), (IDS,))


def test_what_is_returned_with_its_copies_is_computed_once() -> None:
    """Vulkan's passes drop copies inside a delegate: it had fewer outputs than it was handed."""

    class Copies(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 32)

        def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            rows = self.embed(indices)
            return rows, rows.clone(), rows.clone().clone() * 2, indices.clone(), indices.clone(), (indices + 1).clone()

    assert operators(check(int4(Copies()), (IDS,)))[0].count(LOOKUP) == 1


def test_a_branch_is_followed() -> None:
    class Branch(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(8, 32)

        def forward(self, indices: torch.Tensor) -> torch.Tensor:
            x = self.embed(indices)
            return torch.cond(indices.sum() > 5, lambda x: x * 2.0, lambda x: x - 1.0, (x,))

    model = int4(Branch())
    file = check(model, (IDS,))
    (other,) = run_pte(file, (IDS * 0,)).outputs
    assert (torch.from_numpy(other) == model(IDS * 0)).all()


def test_a_weight_that_grows_is_said() -> None:
    """An int8 linear becomes float32 in the file, four times as large."""
    model = int4(nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 8, bias=False)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao about its own versions
        config = IntxWeightOnlyConfig(weight_dtype=torch.int8, granularity=PerAxis(0))
        quantize_(model, config, lambda module, _name: isinstance(module, nn.Linear))
        report = lower_with_report(torch.export.export(model, (IDS,))).reports["forward"]
    (said,) = report.folded.values()
    assert "(8, 32) becomes float32, 288 bytes quantized, 1024 in the file" in said
    assert "aten_mm_default" in said or "aten_linear_default" in said


def test_what_upstream_raises_names_the_node(monkeypatch: pytest.MonkeyPatch) -> None:
    """torch.fx says at which node a pass was."""

    def raises(_manager: object, _config: object) -> None:
        raise RuntimeError(
            "sizes differ\n\nWhile executing %aten_mul_tensor : [num_users=1] = ...\nOriginal traceback: None"
        )

    monkeypatch.setattr("executorch.exir.EdgeProgramManager.to_executorch", raises)
    with pytest.raises(LoweringError, match=r"to_executorch/aten_mul_tensor: RuntimeError out of .*: sizes differ$"):
        lower(int4(Lookup()), (IDS,))


class PlusOne(nn.Module):
    """Gemma's norm: what it multiplies with is computed, of a constant alone."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.w = nn.Embedding(8, 32), nn.Parameter(torch.rand(32), requires_grad=False)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        x = self.embed(indices)
        return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * (1.0 + self.w)


def test_what_is_computed_of_constants_alone_is_one() -> None:
    """The runtime's norms take constant weights only: the stock lowering's file does not load."""
    model = int4(PlusOne())
    check(model, (IDS,))
    stock = to_edge(torch.export.export(model, (IDS,))).to_backend(VulkanPartitioner()).to_executorch()
    with pytest.raises(DeviceWouldFail, match=r"et_vk.rms_norm.default: its weight is computed"):
        run_pte(bytes(stock.buffer), (IDS,))


class Halves(nn.Module):
    """What rotary positions do to a row."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(8, 32)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        low, high = self.embed(indices).chunk(2, dim=-1)
        return torch.cat([-high, low], dim=-1)


def test_a_split_of_any_size_stays_outside() -> None:
    """The runtime does not resize its parts: the rows come out in other places than they belong."""
    model, sizes = int4(Halves()), ({0: torch.export.Dim("rows", min=2, max=9)},)
    file = check(model, (IDS,), dynamic_shapes=sizes)
    assert "aten.split_with_sizes_copy.default" not in operators(file)[0]
    assert "aten.split_with_sizes_copy.default" in operators(check(model, (IDS,)))[0]


def test_a_split_that_keeps_its_largest_sizes_is_no_right_answer() -> None:
    """What the stock lowering leaves in a delegate, called with fewer rows."""
    tensor = VkTensor(VkDataType.FLOAT32, [9, 16], -1, -1)
    graph = SimpleNamespace(values=[SimpleNamespace(value=tensor)])
    holder, name, kept = SimpleNamespace(graph=graph, name="delegate"), "aten.split_with_sizes_copy.default", {}
    delegates._store(holder, name, 0, torch.zeros(9, 16), kept)
    assert kept[0].shape == (9, 16)
    with pytest.raises(DeviceWouldFail, match=r"keeps its largest sizes \[9, 16\]: \[6, 16\]"):
        delegates._store(holder, name, 0, torch.zeros(6, 16), {})


def test_an_integer_that_the_serializer_keeps_as_a_float_is_one() -> None:
    """A delegate has one value for 3 and 3.0, whichever came first; the runtime reads it as what it needs."""
    graph: Any = SimpleNamespace(values=[SimpleNamespace(value=VkTensor(VkDataType.FLOAT32, [9, 16], -1, -1))])
    positional, _ = by_schema(graph, torch.ops.aten.slice_copy.Tensor, ["x", 3.0, None, 8.0, 1], 0)
    assert [*map(repr, positional)] == ["'x'", "3", "None", "8", "1"]
    positional, _ = by_schema(graph, torch.ops.aten.pow.Tensor_Scalar, ["x", 3.0], 0)
    assert repr(positional[1]) == "3.0"


def test_gelu_by_the_error_function_stays_outside() -> None:
    """The runtime knows the tanh approximation only, and the stock file computes that."""
    model = int4(nn.Sequential(nn.Embedding(8, 32), nn.GELU()))
    program = torch.export.export(model, (IDS,))
    delegated, cpu = operators(read_pte(lower_to_vulkan(program).buffer))
    assert ("aten.gelu.default" in delegated, "gelu" in cpu) == (False, True)
    stock = to_edge(program).to_backend(VulkanPartitioner()).to_executorch()
    (got,) = run_pte(read_pte(bytes(stock.buffer)), (IDS,)).outputs
    assert 1e-5 < (torch.from_numpy(got) - model(IDS)).abs().max() < 1e-3


@pytest.mark.parametrize("bias", [False, True])
def test_halves_are_multiplied_in_float32(*, bias: bool) -> None:
    """Upstream's 4-bit linear declares float32, whatever it is given: in float16 its file reads one as the other."""
    model = int4(nn.Sequential(nn.Embedding(8, 32), nn.Linear(32, 8, bias=bias)).half(), nn.Linear)
    file = read_pte(lower(model, (IDS,)).buffer)
    assert operators(file)[0].count(LINEAR) == 1
    (got,) = run_pte(file, (IDS,)).outputs
    assert got.dtype == np.float16
    torch.testing.assert_close(torch.from_numpy(got), model(IDS), atol=2e-3, rtol=2e-3)
