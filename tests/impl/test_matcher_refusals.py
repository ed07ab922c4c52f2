"""One condition of contract 5.3 broken at a time, in both dialects: the reason, and words a stranger can act on."""

import re
from typing import Any

import pytest
import torch

from impl.matcher import Limits, RefusalReason
from tests.support.edge_drafts import CLONE, EDGE, EMBEDDING, Draft
from tests.support.program_checks import fuse, packed, same_bits, scales, split, values

INDICES = torch.tensor([[0, 3], [8, 1]])


def make(dialect: str, **change: Any) -> Any:
    """A lookup that fuses unless ``change`` replaces one of its parts; V = 9, D = 64, G = 32.

    ``weight``, ``scale``, ``zero_point``, ``indices``: (tensor, source); ``*_op``: a function of the draft and
    the node; ``written``: which of them the program writes to.
    """
    draft = Draft()
    weight = values(9, 64) if dialect == "split" else values(9, 32).view(torch.uint8)
    parts = {
        "weight": (weight, "parameter"),
        "scale": (scales(9, 2), "parameter"),
        "zero_point": (None, "parameter"),
        "indices": (INDICES, "input"),
    }
    nodes = {}
    for name, unbroken in parts.items():
        tensor, source = change.pop(name, unbroken)
        nodes[name] = None if tensor is None else draft.tensor(name, tensor, source)
    written = change.pop("written", None)
    for name in parts:
        if f"{name}_op" in change:
            nodes[name] = change.pop(f"{name}_op")(draft, nodes[name])
    build = split if dialect == "split" else packed
    valid = change.pop("valid", True)
    lookup = build(draft, nodes["weight"], nodes["scale"], nodes["indices"], zero_point=nodes["zero_point"], **change)
    if written:
        draft.writes_back(draft.call(CLONE, nodes[written]), f"module.{written}")
    return draft.program(lookup, valid=valid)


def zeros_like_scale(dialect: str) -> torch.Tensor:
    """embedding_4bit wants its zero points in the scales' dtype."""
    return torch.zeros(9, 2, dtype=torch.int8 if dialect == "split" else torch.float32)


def one_nonzero(dialect: str) -> torch.Tensor:
    zero_point = zeros_like_scale(dialect)
    zero_point[8, 1] = 1
    return zero_point


def add_zero(draft: Draft, node: torch.fx.Node) -> torch.fx.Node:
    return draft.call(EDGE.aten.add.Tensor, node, node)


BOTH: list[tuple[str, str, dict[str, Any]]] = [
    ("weight_not_constant", "weight is an input of the program", {"weight": ("same", "input")}),
    ("weight_not_constant", "is computed by the program", {"weight_op": add_zero}),
    ("weight_written", "is written back to it", {"weight": ("same", "buffer"), "written": "weight"}),
    ("qmin_qmax", "are 0, 15, they must be -8, 7", {"qmin": 0, "qmax": 15}),
    ("qmin_qmax", "are -7, 7, they must be -8, 7", {"qmin": -7}),
    ("scale_not_constant", "scale is an input", {"scale": (scales(9, 2), "input")}),
    ("scale_not_constant", "computed by the program", {"scale_op": add_zero}),
    ("scale_written", "writes to the scales", {"scale": (scales(9, 2), "buffer"), "written": "scale"}),
    ("zero_point_not_constant", "zero_point is an input", {"zero_point": (zeros_like_scale, "input")}),
    ("zero_point_not_constant", "computed", {"zero_point": (zeros_like_scale, "buffer"), "zero_point_op": add_zero}),
    ("zero_point_written", "writes to", {"zero_point": (zeros_like_scale, "buffer"), "written": "zero_point"}),
    ("zero_point_nonzero", r"is 1(\.0)? at \[8, 1\]", {"zero_point": (one_nonzero, "parameter")}),
    (
        "indices_rank",
        "rank 4, it must be at most 3",
        {"indices": (torch.zeros(1, 1, 1, 1, dtype=torch.int64), "input")},
    ),
]
SIXTEEN_BITS = {"weight": (values(9, 64).short(), "parameter"), "input_dtype": torch.int16}
ONE_EIGHT = values(9, 64).index_fill(0, torch.tensor([4]), 8)
SPLIT: list[tuple[str, str, dict[str, Any]]] = [
    ("weight_dtype", "is torch.int16, it must be torch.int8", SIXTEEN_BITS),
    ("weight_values", r"holds 8 at \[4, 0\]", {"weight": (ONE_EIGHT, "parameter")}),
    ("block_size", r"is \[3, 32\]", {"block": [3, 32], "scale": (scales(3, 2), "parameter")}),
    ("group_size_not_multiple_of_4", "2 is not a multiple", {"block": [1, 2], "scale": (scales(9, 32), "parameter")}),
    ("embed_dim_not_multiple_of_32", "embed_dim 48", {"weight": (values(9, 48), "parameter"), "block": [1, 24]}),
    ("embed_dim_not_multiple_of_32", "embed_dim 16", {"weight": (values(9, 16), "parameter"), "block": [1, 8]}),
    ("scale_shape", r"shape \(2, 9\), .* = \(9, 2\)", {"scale": (scales(2, 9), "parameter")}),
    ("scale_shape", r"shape \(18,\)", {"scale": (scales(18), "parameter")}),
    ("scale_dtype", "torch.float64", {"scale": (scales(9, 2).double(), "parameter")}),
]
NARROW = torch.zeros(9, 24, dtype=torch.uint8)
PACKED: list[tuple[str, str, dict[str, Any]]] = [
    ("weight_dtype", "is torch.int8, it must be torch.uint8", {"weight": (values(9, 32), "parameter"), "valid": False}),
    ("embed_dim_not_multiple_of_32", "embed_dim 48", {"weight": (NARROW, "parameter")}),
    ("group_size_not_multiple_of_4", "group_size 2", {"scale": (scales(9, 32), "parameter")}),
    ("embed_dim_not_divisible_by_group", "3 scales a row", {"scale": (scales(9, 3), "parameter"), "valid": False}),
    ("scale_shape", r"shape \(9, 1, 1\), .* V = 9", {"scale": (scales(9, 1, 1), "parameter"), "valid": False}),
    ("scale_dtype", "torch.float64", {"scale": (scales(9, 2).double(), "parameter"), "valid": False}),
    ("output_dtype", "torch.float64", {"dtype": torch.float64, "valid": False}),
]
CASES = [("split", *case) for case in BOTH + SPLIT] + [("packed", *case) for case in BOTH + PACKED]


@pytest.mark.parametrize(("dialect", "reason", "words", "change"), CASES)
def test_one_broken_condition(dialect: str, reason: str, words: str, change: dict[str, Any]) -> None:
    change = dict(change)
    for name, given in change.items():
        if isinstance(given, tuple) and isinstance(given[0], str):
            own = values(9, 64) if dialect == "split" else values(9, 32).view(torch.uint8)
            change[name] = (own, given[1])
        elif isinstance(given, tuple) and callable(given[0]):
            change[name] = (given[0](dialect), given[1])
    program = make(dialect, **change)
    fused, report = fuse(program)
    assert report.fused == ()
    (refusal,) = report.refused
    assert refusal.reason == RefusalReason(reason)
    assert refusal.reason == reason  # a plain string, as reports and JSON have it
    assert refusal.detail.startswith(f"{refusal.node}: ")
    assert re.search(words, refusal.detail)
    assert str(fused.graph) == str(program.graph)


@pytest.mark.parametrize("dialect", ["split", "packed"])
def test_the_unbroken_lookup_fuses(dialect: str) -> None:
    program = make(dialect)
    fused, report = fuse(program)
    assert report.refused == ()
    assert (report.fused[0].group_size, report.fused[0].vocab_size, report.fused[0].embed_dim) == (32, 9, 64)
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_every_index_rank_and_dtype(rank: int, dtype: torch.dtype) -> None:
    indices = torch.tensor([5, 0], dtype=dtype)[: 2 if rank else 1].reshape(
        (1,) * max(0, rank - 1) + ((2,) if rank else ())
    )
    program = make("split", indices=(indices, "input"))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    same_bits(program, fused, indices)


def test_empty_table_and_empty_indices() -> None:
    program = make("split", weight=(values(0, 64), "parameter"), scale=(scales(0, 2), "parameter"))
    assert fuse(program)[1].refused[0].reason == RefusalReason.EMPTY_TABLE
    program = make("split", indices=(torch.zeros(0, 2, dtype=torch.int64), "input"))
    fused, report = fuse(program)
    assert len(report.fused) == 1
    same_bits(program, fused, torch.zeros(0, 2, dtype=torch.int64))


def test_group_that_does_not_divide_and_other_block_sizes() -> None:
    """Eager refuses these, a graph can hold them: nothing is computed to find out."""
    for block, reason in (([1, 48], "embed_dim_not_divisible_by_group"), ([1, 0], "block_size"), ([32], "block_size")):
        program = make("split", valid=False)
        (dequantize,) = (n for n in program.graph.nodes if "dequantize" in n.name)
        dequantize.update_arg(1, block)
        assert fuse(program)[1].refused[0].reason == RefusalReason(reason)


def test_what_the_constants_hold_counts_not_what_the_graph_says_of_them() -> None:
    program = make("split", valid=False)
    program.state_dict["module.weight"] = torch.nn.Parameter(values(9, 64).reshape(9, 8, 8), requires_grad=False)
    (refusal,) = fuse(program)[1].refused
    assert refusal.reason == RefusalReason.WEIGHT_SHAPE
    assert "(9, 8, 8), it must have 2 axes" in refusal.detail


@pytest.mark.parametrize("op", ["clone", "mul", "view"])
def test_anything_between_dequantize_and_lookup(op: str) -> None:
    draft = Draft()
    weight, scale = draft.tensor("w", values(9, 64), "parameter"), draft.tensor("s", scales(9, 2), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    inner = split(draft, weight, scale, indices)
    dequantize = inner.args[0]
    between = {
        "clone": lambda: draft.call(CLONE, dequantize),
        "mul": lambda: draft.call(EDGE.aten.mul.Tensor, dequantize, dequantize),
        "view": lambda: draft.call(EDGE.aten.view_copy.default, dequantize, [9, 64]),
    }[op]()
    outer = draft.call(EMBEDDING, between, indices)
    program = draft.program(inner, outer)
    fused, report = fuse(program)
    assert [f.node for f in report.fused] == [inner.name]
    (refusal,) = report.refused
    assert (refusal.node, refusal.reason) == (outer.name, RefusalReason.TABLE_OPS)
    assert between.name in refusal.detail
    same_bits(program, fused, INDICES)


def test_max_norm() -> None:
    draft = Draft()
    weight, scale = draft.tensor("w", values(9, 64), "parameter"), draft.tensor("s", scales(9, 2), "parameter")
    indices = draft.tensor("i", INDICES, "input")
    dequantize = split(draft, weight, scale, indices).args[0]
    renormed = draft.call(EDGE.aten.embedding_renorm.default, dequantize, indices, 1.0, 2.0)
    program = draft.program(draft.call(EMBEDDING, renormed, indices), valid=False)
    fused, report = fuse(program)
    assert [r.reason for r in report.refused] == [RefusalReason.MAX_NORM]
    same_bits(program, fused, INDICES)


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        # 9 rows are two blocks of 8, 32 bytes a row; the scales take 9 * 2 * 4 bytes.
        (Limits(max_storage_buffer_range=511), "'module.weight': 512 bytes, above max_storage_buffer_range 511"),
        (Limits(max_image_dimension_2d=15), "is a 16 x 2 texture, above max_image_dimension_2d 15"),
    ],
)
def test_limits_of_a_device(limits: Limits, words: str) -> None:
    program = make("split")
    (refusal,) = fuse(program, limits=limits)[1].refused
    assert refusal.reason == RefusalReason.TABLE_LIMIT
    assert words in refusal.detail


def test_scales_have_the_same_limit() -> None:
    program = make("split", block=[1, 4], scale=(scales(9, 16), "parameter"))
    limits = Limits(max_storage_buffer_range=575, max_image_dimension_2d=16)  # 9 * 16 * 4 = 576, more than the table
    (refusal,) = fuse(program, limits=limits)[1].refused
    assert "the scales 'module.scale': 576 bytes" in refusal.detail
    assert len(fuse(program, limits=Limits(max_storage_buffer_range=576, max_image_dimension_2d=16))[1].fused) == 1
