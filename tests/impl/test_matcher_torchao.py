"""The matcher on real models: nn.Embedding, torchao's quantize_, torch.export, to_edge; then bit-exact execution."""

import copy
import warnings
from typing import Any

import pytest
import torch
from executorch.exir import to_edge
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.utils import unwrap_tensor_subclass

from impl.matcher import RefusalReason
from tests.support.edge_drafts import DEQUANTIZE, EMBEDDING, Q4GSW
from tests.support.program_checks import bits, count, fuse, same_bits

INDICES = torch.tensor([[5, 0, 39], [1, 1, 7]])


class Lookup(torch.nn.Module):
    def __init__(self, dtype: torch.dtype = torch.float32, dim: int = 64, **options: Any) -> None:
        super().__init__()
        torch.manual_seed(3)
        self.emb = torch.nn.Embedding(40, dim, dtype=dtype, **options)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.emb(indices)


class Tied(torch.nn.Module):
    """An embedding and an lm_head over one weight, in either order, with a plain layer between them."""

    def __init__(self, *, head_first: bool) -> None:
        super().__init__()
        torch.manual_seed(4)
        self.head_first = head_first
        self.emb = torch.nn.Embedding(40, 64)
        self.head = torch.nn.Linear(64, 40, bias=False)

    def forward(self, indices: torch.Tensor, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        if self.head_first:
            scored = self.head(x)
            return scored, self.emb(indices)
        hidden = self.emb(indices)
        return hidden, self.head(hidden * 2.0 + x), self.emb(indices.flip(0))


def quantize(model: torch.nn.Module, granularity: Any = None, dtype: torch.dtype = torch.int4) -> torch.nn.Module:
    config = IntxWeightOnlyConfig(weight_dtype=dtype, granularity=granularity or PerGroup(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao's notes about its own versions
        quantize_(model, config, lambda module, _: isinstance(module, torch.nn.Embedding))
    return model.eval()


def edge(model: torch.nn.Module, inputs: tuple[Any, ...] = (INDICES,), **options: Any) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        return to_edge(torch.export.export(model, inputs, **options)).exported_program()


@pytest.mark.parametrize("granularity", [PerGroup(32), PerGroup(4), PerGroup(64), PerAxis(0)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_torchao_embeddings_fuse_to_the_bit(granularity: Any, dtype: torch.dtype) -> None:
    model = quantize(Lookup(dtype), granularity)
    program = edge(model)
    held = {name: (id(t), bits(getattr(t, "qdata", t))) for name, t in model.state_dict(keep_vars=True).items()}
    fused, report = fuse(program)
    same_bits(program, fused, INDICES)
    assert bits(fused.module()(INDICES)) == bits(model(INDICES))
    assert {n: (id(t), bits(getattr(t, "qdata", t))) for n, t in model.state_dict(keep_vars=True).items()} == held
    (fusion,) = report.fused
    assert fusion.group_size == (granularity.group_size if isinstance(granularity, PerGroup) else 64)
    assert fusion.output_dtype == str(dtype).removeprefix("torch.")
    assert (count(fused, Q4GSW), count(fused, DEQUANTIZE), count(fused, EMBEDDING)) == (1, 0, 0)
    assert dict(fused.state_dict) == {}
    assert sum(t.untyped_storage().nbytes() for t in fused.constants.values()) == sum(
        t.numel() * t.element_size() for t in fused.constants.values()
    )


@pytest.mark.parametrize(
    ("model", "reason"),
    [
        (quantize(Lookup(), dtype=torch.int2), RefusalReason.QMIN_QMAX),
        (quantize(Lookup(), dtype=torch.int8), RefusalReason.WEIGHT_VALUES),
        (quantize(Lookup(), PerGroup(2)), RefusalReason.GROUP_SIZE_NOT_MULTIPLE_OF_4),
        (quantize(Lookup(dim=48), PerGroup(16)), RefusalReason.EMBED_DIM_NOT_MULTIPLE_OF_32),
    ],
    ids=lambda value: str(value) if isinstance(value, str) else "",
)
def test_torchao_embeddings_that_are_refused(model: Any, reason: RefusalReason) -> None:
    program = edge(model)
    fused, report = fuse(program)
    assert [r.reason for r in report.refused] == [reason]
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize("options", [{"padding_idx": 0}, {"sparse": True}, {"scale_grad_by_freq": True}])
def test_training_options_do_not_matter(options: dict[str, Any]) -> None:
    program = edge(quantize(Lookup(**options)))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize("strict", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_dynamic_shapes_survive(strict: bool, dtype: torch.dtype) -> None:
    dynamic = {"indices": {0: torch.export.Dim.DYNAMIC, 1: torch.export.Dim.DYNAMIC}}
    program = edge(quantize(Lookup(dtype)), dynamic_shapes=dynamic, strict=strict)
    fused, report = fuse(program)
    assert len(report.fused) == 1
    (output,) = fused.graph.output_node().args[0]
    assert [type(size).__name__ for size in output.meta["val"].shape] == ["SymInt", "SymInt", "int"]
    assert dict(fused.range_constraints) == dict(program.range_constraints)
    for shape in ((2, 3), (5, 1), (0, 4)):
        same_bits(program, fused, torch.zeros(shape, dtype=torch.int64) + 7)


@pytest.mark.parametrize("head_first", [False, True])
@pytest.mark.parametrize("unwrap", [False, True])
def test_tied_head_in_both_orders(head_first: bool, unwrap: bool) -> None:
    model = quantize(Tied(head_first=head_first))
    model.head.weight = model.emb.weight
    if unwrap:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation notes of torchao's helper
            unwrap_tensor_subclass(model)
    inputs = (INDICES, torch.randn(2, 3, 64))
    program = edge(model, inputs)
    fused, report = fuse(program)
    assert len(report.fused) == (1 if head_first else 2)
    assert report.refused == ()
    assert len({f.packed for f in report.fused}) == 1
    assert count(fused, DEQUANTIZE) == 1, "the head's own dequantize stays"
    same_bits(program, fused, *inputs)


def test_equal_tables_of_two_modules_are_stored_once() -> None:
    class Two(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = quantize(Lookup()), quantize(Lookup())
            self.plain = torch.nn.Embedding(9, 8)

        def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, ...]:
            return self.one(indices.flip(0)), self.two(indices), self.plain(indices % 9), self.one(indices)

    program = edge(Two())
    fused, report = fuse(program)
    assert len(report.fused) == 3
    assert len({f.packed for f in report.fused}) == 1, "both tables hold the same quantized values"
    same_bits(program, fused, INDICES)


def test_fusing_a_deep_copy_gives_the_same_program() -> None:
    program = edge(quantize(Lookup()))
    one, other = fuse(program)[0], fuse(copy.deepcopy(program))[0]
    assert str(one.graph) == str(other.graph)
    assert {k: bits(v) for k, v in one.constants.items()} == {k: bits(v) for k, v in other.constants.items()}
