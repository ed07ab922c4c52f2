"""Decide, before anything is rewritten, which lookups of a program fuse (contract 5.1, 5.3, 5.4).

``decide`` reads the graph, its signature and the real constants, and changes nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from impl.graph_constants import Constant, Constants, NotConstant, read_constants
from impl.graph_ops import EMBEDDING, EMBEDDING_4BIT, TableSources, arguments, op_name, torch_op
from impl.matcher_report import Limits, Refusal, RefusalReason
from impl.packer import BLOCK_ROWS, QMAX, QMIN, WORD_COLUMNS, first_out_of_range

if TYPE_CHECKING:
    from collections.abc import Iterator

    from torch.export import ExportedProgram

#: The kernel reads one scale for four columns and 32 columns an invocation (contract 5.3).
GROUP_STEP, EMBED_STEP = 4, 32
MAX_INDICES_RANK = 3
_HALF_OR_SINGLE = (torch.float16, torch.float32)
_INDEX_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Plan:
    """A lookup that fuses, with everything the rewrite needs.

    Attributes:
        lookup: the node to replace.
        weight: int8 [V, D], or uint8 [V, D/2] in flat layout when ``is_flat``.
        scales: float16 or float32 [V, D/G].
        indices: the node that yields the indices.
        support: the nodes that only matter to lookups like this one; unused ones go away.
    """

    lookup: torch.fx.Node
    weight: Constant
    scales: Constant
    indices: torch.fx.Node
    support: tuple[torch.fx.Node, ...]
    is_flat: bool
    vocab_size: int
    embed_dim: int
    group_size: int
    output_dtype: torch.dtype


class _Found(NamedTuple):
    """A lookup's operands in one shape for both dialects."""

    node: torch.fx.Node
    weight: Any
    scales: Any
    zero_point: Any
    qmin: Any
    qmax: Any
    indices: Any
    is_flat: bool
    dequantize: torch.fx.Node | None  # None: the node dequantizes by itself
    block_size: Any
    input_dtype: Any
    output_dtype: Any  # None: the scales' dtype
    renormed: bool


_Violation = tuple[RefusalReason, str]


def decide(program: ExportedProgram, limits: Limits) -> list[Plan | Refusal]:
    """One Plan or Refusal for every 4-bit lookup of the program, in graph order.

    Source: contract 5.1, 5.3, 5.4.
    """
    judge = _Judge(read_constants(program), limits)
    sources = TableSources()
    decisions: list[Plan | Refusal] = []
    for node in program.graph.nodes:
        found = _lookup(node, sources)
        if found is not None:
            decisions.append(judge.judge(found))
    decisions.extend(_in_branches(program.graph_module))
    return decisions


def _lookup(node: torch.fx.Node, sources: TableSources) -> _Found | None:
    """The node's operands if it is a 4-bit lookup of either dialect, else None."""
    operation = torch_op(node)
    if operation in EMBEDDING_4BIT:
        given = arguments(node)
        return _Found(
            node=node,
            weight=given["weight"],
            scales=given["weight_scales"],
            zero_point=given["weight_zero_points"],
            qmin=given["weight_quant_min"],
            qmax=given["weight_quant_max"],
            indices=given["indices"],
            is_flat=True,
            dequantize=None,
            block_size=None,
            input_dtype=torch.uint8,
            output_dtype=given.get("dtype"),
            renormed=False,
        )
    if operation != EMBEDDING:
        return None
    lookup = arguments(node)
    if not isinstance(lookup["weight"], torch.fx.Node):
        return None
    dequantize, renormed = sources.behind(lookup["weight"])
    if dequantize is None:
        return None
    given = arguments(dequantize)
    # The schema spells the default as the integer that stands for float32.
    output_dtype = given["output_dtype"] if isinstance(given["output_dtype"], torch.dtype) else torch.float32
    return _Found(
        node=node,
        weight=given["input"],
        scales=given["scale"],
        zero_point=given["zero_point"],
        qmin=given["quant_min"],
        qmax=given["quant_max"],
        indices=lookup["indices"],
        is_flat=False,
        dequantize=dequantize,
        block_size=given["block_size"],
        input_dtype=given["input_dtype"],
        output_dtype=output_dtype,
        renormed=renormed,
    )


class _Judge:
    """Applies the conditions of contract 5.3, in RefusalReason's order, to one lookup after the other."""

    def __init__(self, constants: Constants, limits: Limits) -> None:
        self._constants = constants
        self._limits = limits
        self._values: dict[str, str] = {}  # what is wrong with a table's values, by its constant's name
        self._zeros: dict[str, str] = {}  # the same for zero points

    def judge(self, found: _Found) -> Plan | Refusal:
        weight = self._constants.resolve(found.weight)
        scales = self._constants.resolve(found.scales)
        zero_point = None if found.zero_point is None else self._constants.resolve(found.zero_point)
        for reason, detail in self._violations(found, weight, scales, zero_point):
            return Refusal(found.node.name, reason, f"{found.node.name}: {detail}")
        assert isinstance(weight, Constant)  # noqa: S101 - _violations ends with a reason otherwise
        assert isinstance(scales, Constant)  # noqa: S101 - as above
        vocab_size, embed_dim = _table_shape(weight, found)
        support = [*weight.path, *scales.path, *(zero_point.path if isinstance(zero_point, Constant) else ())]
        return Plan(
            lookup=found.node,
            weight=weight,
            scales=scales,
            indices=found.indices,
            support=(*support, *([found.dequantize] if found.dequantize is not None else [])),
            is_flat=found.is_flat,
            vocab_size=vocab_size,
            embed_dim=embed_dim,
            group_size=_group_size(found, embed_dim, scales),
            output_dtype=_output_dtype(found, scales),
        )

    def _violations(
        self, found: _Found, weight: Constant | NotConstant, scales: Constant | NotConstant, zero_point: Any
    ) -> Iterator[_Violation]:
        """Every condition that does not hold, in order; ends early where later ones cannot be judged."""
        if isinstance(weight, NotConstant):
            yield RefusalReason.WEIGHT_NOT_CONSTANT, f"the table is not a constant: {weight.why}"
            return
        yield from self._weight_violations(found, weight)
        if weight.data.ndim != 2:  # noqa: PLR2004 - reported as weight_shape
            return
        yield from _grouping_violations(found, weight, scales)
        if isinstance(scales, NotConstant):
            yield RefusalReason.SCALE_NOT_CONSTANT, f"the scales are not a constant: {scales.why}"
            return
        yield from _scale_violations(found, weight, scales)
        if zero_point is not None:
            yield from self._zero_point_violations(zero_point)
        yield from _lookup_violations(found, scales)
        yield from self._limit_violations(found, weight, scales)

    def _weight_violations(self, found: _Found, weight: Constant) -> Iterator[_Violation]:
        if weight.written:
            yield RefusalReason.WEIGHT_WRITTEN, f"the program writes to the table {weight.name!r}: {weight.written}"
        wanted = torch.uint8 if found.is_flat else torch.int8
        if weight.data.dtype != wanted or found.input_dtype != wanted:
            told = "" if found.input_dtype in {weight.data.dtype, wanted} else f" (dequantized as {found.input_dtype})"
            detail = f"the table {weight.name!r} is {weight.data.dtype}{told}, it must be {wanted}"
            yield RefusalReason.WEIGHT_DTYPE, detail
            return
        if weight.data.ndim != 2:  # noqa: PLR2004 - a table has rows and columns
            shape = tuple(weight.data.shape)
            yield RefusalReason.WEIGHT_SHAPE, f"the table {weight.name!r} has shape {shape}, it must have 2 axes"
            return
        if not found.is_flat:  # every byte of a flat table is two valid codes
            if weight.name not in self._values:
                self._values[weight.name] = _value_fault(weight)
            if self._values[weight.name]:
                yield RefusalReason.WEIGHT_VALUES, self._values[weight.name]

    def _zero_point_violations(self, zero_point: Constant | NotConstant) -> Iterator[_Violation]:
        if isinstance(zero_point, NotConstant):
            detail = f"the zero point is not a constant, so it cannot be proven zero: {zero_point.why}"
            yield RefusalReason.ZERO_POINT_NOT_CONSTANT, detail
            return
        if zero_point.written:
            detail = f"the program writes to the zero point {zero_point.name!r}: {zero_point.written}"
            yield RefusalReason.ZERO_POINT_WRITTEN, detail
        if zero_point.name not in self._zeros:
            self._zeros[zero_point.name] = _zero_fault(zero_point)
        if self._zeros[zero_point.name]:
            yield RefusalReason.ZERO_POINT_NONZERO, self._zeros[zero_point.name]

    def _limit_violations(self, found: _Found, weight: Constant, scales: Constant) -> Iterator[_Violation]:
        vocab_size, embed_dim = _table_shape(weight, found)
        blocks = -(-vocab_size // BLOCK_ROWS)
        limit = self._limits.max_storage_buffer_range
        sizes = {
            f"the packed table {weight.name!r}": blocks * BLOCK_ROWS * embed_dim // 2,
            f"the scales {scales.name!r}": scales.data.numel() * scales.data.element_size(),
        }
        for what, size in sizes.items():
            if limit is not None and size > limit:
                detail = f"{what} takes {size} bytes, above max_storage_buffer_range {limit}"
                yield RefusalReason.TABLE_LIMIT, detail
        limit = self._limits.max_image_dimension_2d
        extents = (embed_dim // WORD_COLUMNS, blocks)
        if limit is not None and max(extents) > limit:
            detail = f"the packed table {weight.name!r} is a {extents[0]} x {extents[1]} texture"
            yield RefusalReason.TABLE_LIMIT, f"{detail}, above max_image_dimension_2d {limit}"


def _grouping_violations(found: _Found, weight: Constant, scales: Constant | NotConstant) -> Iterator[_Violation]:
    """Conditions on qmin, qmax, G, D and V."""
    if found.qmin != QMIN or found.qmax != QMAX:
        detail = f"quant_min, quant_max are {found.qmin}, {found.qmax}, they must be {QMIN}, {QMAX}"
        yield RefusalReason.QMIN_QMAX, detail
    vocab_size, embed_dim = _table_shape(weight, found)
    if found.is_flat:
        groups = scales.data.shape[-1] if isinstance(scales, Constant) and scales.data.ndim == 2 else 0  # noqa: PLR2004 - [V, D/G]
        if groups and embed_dim % groups:
            detail = f"{groups} scales a row do not divide embed_dim {embed_dim}"
            yield RefusalReason.EMBED_DIM_NOT_DIVISIBLE_BY_GROUP, detail
            return
        group_size = embed_dim // groups if groups else None  # None: told as scale_shape
    else:
        block = found.block_size
        valid = isinstance(block, (list, tuple)) and all(type(size) is int for size in block)
        if not valid or len(block) != 2 or block[0] != 1 or block[1] < 1:  # noqa: PLR2004 - [1, G]
            yield RefusalReason.BLOCK_SIZE, f"block_size is {block}, it must be [1, G] with G at least 1"
            return
        group_size = block[1]
        if embed_dim % group_size:
            detail = f"group_size {group_size} does not divide embed_dim {embed_dim}"
            yield RefusalReason.EMBED_DIM_NOT_DIVISIBLE_BY_GROUP, detail
    if group_size is not None and group_size % GROUP_STEP:
        detail = f"group_size {group_size} is not a multiple of {GROUP_STEP}"
        yield RefusalReason.GROUP_SIZE_NOT_MULTIPLE_OF_4, detail
    if embed_dim < EMBED_STEP or embed_dim % EMBED_STEP:
        detail = f"embed_dim {embed_dim} is not a multiple of {EMBED_STEP} of at least {EMBED_STEP}"
        yield RefusalReason.EMBED_DIM_NOT_MULTIPLE_OF_32, detail
    if vocab_size < 1:
        yield RefusalReason.EMPTY_TABLE, f"the table {weight.name!r} has no rows, it must have at least 1"


def _scale_violations(found: _Found, weight: Constant, scales: Constant) -> Iterator[_Violation]:
    if scales.written:
        yield RefusalReason.SCALE_WRITTEN, f"the program writes to the scales {scales.name!r}: {scales.written}"
    if scales.data.dtype not in _HALF_OR_SINGLE:
        detail = f"the scales {scales.name!r} are {scales.data.dtype}, they must be torch.float16 or torch.float32"
        yield RefusalReason.SCALE_DTYPE, detail
    vocab_size, embed_dim = _table_shape(weight, found)
    shape = tuple(scales.data.shape)
    if found.is_flat:
        wanted = (vocab_size, shape[-1] if shape and shape[-1] else 1)
    else:
        wanted = (vocab_size, embed_dim // found.block_size[1])
    if shape != wanted:
        detail = f"the scales {scales.name!r} have shape {shape}, they must have [V, D/G]"
        yield RefusalReason.SCALE_SHAPE, detail + (f" = {wanted}" if not found.is_flat else f" with V = {vocab_size}")


def _lookup_violations(found: _Found, scales: Constant) -> Iterator[_Violation]:
    """Conditions on what goes in and out of the lookup itself, and on what feeds it."""
    computed, declared = _output_dtype(found, scales), found.node.meta["val"].dtype
    if computed not in _HALF_OR_SINGLE:
        yield RefusalReason.OUTPUT_DTYPE, f"the output is {computed}, it must be torch.float16 or torch.float32"
    if declared != computed and not found.renormed and _feeds_directly(found):
        yield RefusalReason.OUTPUT_DTYPE, f"the node declares {declared} but computes {computed}, they must agree"
    indices = found.indices.meta["val"]
    if indices.dtype not in _INDEX_DTYPES:
        detail = f"the indices {found.indices.name} are {indices.dtype}, they must be torch.int32 or torch.int64"
        yield RefusalReason.INDICES_DTYPE, detail
    if indices.ndim > MAX_INDICES_RANK:
        detail = f"the indices {found.indices.name} have rank {indices.ndim}, it must be at most {MAX_INDICES_RANK}"
        yield RefusalReason.INDICES_RANK, detail
    if found.renormed:
        detail = "embedding_renorm (max_norm) rescales the table, it must be looked up as it was dequantized"
        yield RefusalReason.MAX_NORM, detail
    if not _feeds_directly(found) and found.dequantize is not None:
        between = arguments(found.node)["weight"]
        detail = f"between the lookup and {found.dequantize.name} lies {between.name} ({op_name(between)})"
        yield RefusalReason.TABLE_OPS, f"{detail}, the lookup must read the dequantize itself"


def _feeds_directly(found: _Found) -> bool:
    return found.dequantize is None or arguments(found.node)["weight"] is found.dequantize


def _table_shape(weight: Constant, found: _Found) -> tuple[int, int]:
    """(V, D)."""
    rows, columns = weight.data.shape
    return rows, columns * 2 if found.is_flat else columns


def _group_size(found: _Found, embed_dim: int, scales: Constant) -> int:
    return embed_dim // scales.data.shape[1] if found.is_flat else int(found.block_size[1])


def _output_dtype(found: _Found, scales: Constant) -> torch.dtype:
    return scales.data.dtype if found.output_dtype is None else found.output_dtype


def _value_fault(weight: Constant) -> str:
    found = first_out_of_range(weight.data)
    if found is None:
        return ""
    row, column, value = found
    return f"the table {weight.name!r} holds {value} at [{row}, {column}], outside [{QMIN}, {QMAX}]"


def _zero_fault(zero_point: Constant) -> str:
    data = zero_point.data.detach()
    wrong = data != 0
    if not wrong.any():
        return ""
    position = [int(axis) for axis in wrong.nonzero()[0]]
    value = data[tuple(position)].item()
    return f"the zero point {zero_point.name!r} is {value} at {position}, it must be 0 everywhere"


def _in_branches(module: torch.nn.Module, where: str = "") -> Iterator[Refusal]:
    """Lookups inside control-flow branches: their operands are the branch's inputs, never constants."""
    sources = TableSources()
    for name, branch in module.named_children():
        if not isinstance(branch, torch.fx.GraphModule):
            continue
        for node in branch.graph.nodes:
            if torch_op(node) in EMBEDDING_4BIT or (
                torch_op(node) == EMBEDDING and sources.behind(node.all_input_nodes[0])[0] is not None
            ):
                detail = f"{where}{name}/{node.name}: it is inside a control-flow branch, where the table is an input"
                yield Refusal(f"{where}{name}/{node.name}", RefusalReason.WEIGHT_NOT_CONSTANT, detail)
        yield from _in_branches(branch, f"{where}{name}/")
