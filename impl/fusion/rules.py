"""Decide, before anything is rewritten, which lookups of a program fuse (contract 5.1, 5.3, 5.4).

``decide`` reads the graph, its signature and the real constants, and changes nothing.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch.export import ExportedProgram

from impl.fusion.report import Limits, Refusal, RefusalReason
from impl.graph.constants import Constant, Constants, NotConstant, read_constants
from impl.graph.lookups import Lookup, Table, branches, find_lookups
from impl.graph.ops import op_name
from impl.packer import BLOCK_ROWS, QMAX, QMIN, WORD_COLUMNS, first_out_of_range

#: The kernel reads one scale for four columns and 32 columns an invocation (contract 5.3).
GROUP_STEP, EMBED_STEP = 4, 32
MAX_INDICES_RANK = 3
#: bfloat16 scales are widened, a bfloat16 result is cast.
_FUSED = (torch.float16, torch.bfloat16, torch.float32)
_INDEX_DTYPES = (torch.int32, torch.int64)


@dataclass(frozen=True)
class Plan:
    """A lookup that fuses, with everything the rewrite needs.

    Attributes:
        lookup: the node to replace.
        weight: int8 [V, D], or uint8 [V, D/2] in flat layout when ``is_flat``.
        scales: float16, bfloat16 or float32 [V, D/G], or [V] for one group a row.
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


#: A condition that does not hold, and the words for it.
Violation = tuple[RefusalReason, str]
#: Weight, scales and zero point (None where the table has none), looked through to what they read.
Operands = tuple[Constant | NotConstant, Constant | NotConstant, Constant | NotConstant | None]


def decide(program: ExportedProgram, limits: Limits) -> list[Plan | Refusal]:
    """One Plan or Refusal for every 4-bit lookup of the program, in graph order.

    Source: contract 5.1, 5.3, 5.4.
    """
    judge = TableJudge(read_constants(program), limits)
    decisions: list[Plan | Refusal] = [_decide(judge, lookup) for lookup in find_lookups(program.graph)]
    inside = ((at, lookup) for at, graph in branches(program.graph_module) for lookup in find_lookups(graph))
    for where, lookup in inside:
        name = f"{where}{lookup.node.name}"
        detail = f"{name}: it is inside a control-flow branch, where the table is an input"
        decisions.append(Refusal(name, RefusalReason.WEIGHT_NOT_CONSTANT, detail))
    return decisions


def _decide(judge: "TableJudge", lookup: Lookup) -> Plan | Refusal:
    """The first condition that does not hold, or the plan."""
    node, table = lookup.node, lookup.table
    operands = judge.operands(table)
    weight, scales, zero_point = operands
    violations = itertools.chain(
        judge.violations(table, operands), _lookup_violations(lookup, operands), judge.limit_violations(table, operands)
    )
    for reason, detail in violations:
        return Refusal(node.name, reason, f"{node.name}: {detail}")
    assert isinstance(weight, Constant)  # noqa: S101 - the table's violations end with a reason otherwise
    assert isinstance(scales, Constant)  # noqa: S101 - as above
    vocab_size, embed_dim = _table_shape(weight, table)
    support = [*weight.path, *scales.path, *(zero_point.path if isinstance(zero_point, Constant) else ())]
    return Plan(
        lookup=node,
        weight=weight,
        scales=scales,
        indices=lookup.indices,
        support=(*support, *([table.dequantize] if table.dequantize is not None else [])),
        is_flat=table.is_flat,
        vocab_size=vocab_size,
        embed_dim=embed_dim,
        group_size=embed_dim // _columns(scales),
        output_dtype=output_dtype(table, scales),
    )


class TableJudge:
    """Applies the conditions of contract 5.3, in RefusalReason's order, to one lookup after the other."""

    def __init__(self, constants: Constants, limits: Limits) -> None:
        self._constants = constants
        self._limits = limits
        self._faults: dict[tuple[Callable[[Constant], str], str], str] = {}

    def operands(self, table: Table) -> Operands:
        """What the table's operands read."""
        resolve = self._constants.resolve
        return (
            resolve(table.weight),
            resolve(table.scales),
            None if table.zero_point is None else resolve(table.zero_point),
        )

    def violations(self, table: Table, operands: Operands) -> Iterator[Violation]:
        """Every condition on the table that does not hold, in order; ends early where later ones cannot be judged."""
        weight, scales, zero_point = operands
        if isinstance(weight, NotConstant):
            yield RefusalReason.WEIGHT_NOT_CONSTANT, f"the table is not a constant: {weight.why}"
            return
        yield from self._weight_violations(table, weight)
        if weight.data.ndim != 2:  # noqa: PLR2004 - reported as weight_shape
            return
        yield from _grouping_violations(table, weight, scales)
        if isinstance(scales, NotConstant):
            yield RefusalReason.SCALE_NOT_CONSTANT, f"the scales are not a constant: {scales.why}"
            return
        yield from _scale_violations(table, weight, scales)
        if zero_point is not None:
            yield from self._zero_point_violations(zero_point)
        computed = output_dtype(table, scales)
        if computed not in _FUSED:
            yield RefusalReason.OUTPUT_DTYPE, f"the output is {computed}, it must be float16, bfloat16 or float32"

    def limit_violations(self, table: Table, operands: Operands) -> Iterator[Violation]:
        """The device's limits that the table or its scales exceed."""
        weight, scales, _ = operands
        if isinstance(weight, NotConstant) or isinstance(scales, NotConstant):
            return
        vocab_size, embed_dim = _table_shape(weight, table)
        blocks = -(-vocab_size // BLOCK_ROWS)
        limit = self._limits.max_storage_buffer_range
        sizes = {
            f"the packed table {weight.name!r}": blocks * BLOCK_ROWS * embed_dim // 2,
            f"the scales {scales.name!r}": scales.data.numel() * fused_scales(scales.data.dtype).itemsize,
        }
        for what, size in sizes.items():
            if limit is not None and size > limit:
                yield RefusalReason.TABLE_LIMIT, f"{what}: {size} bytes, above max_storage_buffer_range {limit}"
        limit = self._limits.max_image_dimension_2d
        extents = (embed_dim // WORD_COLUMNS, blocks)
        if limit is not None and max(extents) > limit:
            detail = f"the packed table {weight.name!r} is a {extents[0]} x {extents[1]} texture"
            yield RefusalReason.TABLE_LIMIT, f"{detail}, above max_image_dimension_2d {limit}"

    def _weight_violations(self, table: Table, weight: Constant) -> Iterator[Violation]:
        if weight.written:
            yield RefusalReason.WEIGHT_WRITTEN, f"the program writes to the table {weight.name!r}: {weight.written}"
        dtype = torch.uint8 if table.is_flat else torch.int8
        if weight.data.dtype != dtype or table.input_dtype != dtype:
            note = "" if table.input_dtype in {weight.data.dtype, dtype} else f" (dequantized as {table.input_dtype})"
            detail = f"the table {weight.name!r} is {weight.data.dtype}{note}, it must be {dtype}"
            yield RefusalReason.WEIGHT_DTYPE, detail
            return
        if weight.data.ndim != 2:  # noqa: PLR2004 - a table has rows and columns
            shape = tuple(weight.data.shape)
            yield RefusalReason.WEIGHT_SHAPE, f"the table {weight.name!r} has shape {shape}, it must have 2 axes"
            return
        # Every byte of a flat table is two valid codes.
        if not table.is_flat and (fault := self._once(_value_fault, weight)):
            yield RefusalReason.WEIGHT_VALUES, fault

    def _zero_point_violations(self, zero_point: Constant | NotConstant) -> Iterator[Violation]:
        if isinstance(zero_point, NotConstant):
            detail = f"the zero point is not a constant, so it cannot be proven zero: {zero_point.why}"
            yield RefusalReason.ZERO_POINT_NOT_CONSTANT, detail
            return
        if zero_point.written:
            detail = f"the program writes to the zero point {zero_point.name!r}: {zero_point.written}"
            yield RefusalReason.ZERO_POINT_WRITTEN, detail
        if fault := self._once(_zero_fault, zero_point):
            yield RefusalReason.ZERO_POINT_NONZERO, fault

    def _once(self, check: Callable[[Constant], str], constant: Constant) -> str:
        """What the check says of a constant's values, which any number of lookups may read."""
        key = (check, constant.name)
        if key not in self._faults:
            self._faults[key] = check(constant)
        return self._faults[key]


def _grouping_violations(table: Table, weight: Constant, scales: Constant | NotConstant) -> Iterator[Violation]:
    """Conditions on qmin, qmax, G, D and V."""
    if table.qmin != QMIN or table.qmax != QMAX:
        detail = f"quant_min, quant_max are {table.qmin}, {table.qmax}, they must be {QMIN}, {QMAX}"
        yield RefusalReason.QMIN_QMAX, detail
    vocab_size, embed_dim = _table_shape(weight, table)
    if table.is_flat:
        groups = _columns(scales) if isinstance(scales, Constant) else 0
        if groups and embed_dim % groups:
            detail = f"{groups} scales a row do not divide embed_dim {embed_dim}"
            yield RefusalReason.EMBED_DIM_NOT_DIVISIBLE_BY_GROUP, detail
            return
        group_size = embed_dim // groups if groups else None  # None: reported as scale_shape
    else:
        block = table.block_size
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


def _scale_violations(table: Table, weight: Constant, scales: Constant) -> Iterator[Violation]:
    if scales.written:
        yield RefusalReason.SCALE_WRITTEN, f"the program writes to the scales {scales.name!r}: {scales.written}"
    if scales.data.dtype not in _FUSED:
        detail = f"the scales {scales.name!r} are {scales.data.dtype}, they must be float16, bfloat16 or float32"
        yield RefusalReason.SCALE_DTYPE, detail
    vocab_size, embed_dim = _table_shape(weight, table)
    shape = tuple(scales.data.shape)
    if table.is_flat:
        expected = (vocab_size,) if len(shape) == 1 else (vocab_size, _columns(scales) or 1)
    else:
        expected = (vocab_size, embed_dim // table.block_size[1])
    if shape != expected:
        detail = f"the scales {scales.name!r} have shape {shape}, they must have [V, D/G]"
        yield RefusalReason.SCALE_SHAPE, detail + (f" = {expected}" if not table.is_flat else f" with V = {vocab_size}")


def _columns(scales: Constant) -> int:
    """Scales a row: those of embedding_4bit may be [V], one a row; 0 where they are neither [V] nor [V, D/G]."""
    shape = scales.data.shape
    return {1: 1, 2: shape[-1]}.get(len(shape), 0) if shape else 0


def _lookup_violations(lookup: Lookup, operands: Operands) -> Iterator[Violation]:
    """Conditions on what goes in and out of the lookup itself, and on what feeds it."""
    table, scales = lookup.table, operands[1]
    if isinstance(scales, NotConstant):
        return
    directly = lookup.reads in {table.dequantize, lookup.node}
    computed, declared = output_dtype(table, scales), lookup.node.meta["val"].dtype
    if declared != computed and directly:
        yield RefusalReason.OUTPUT_DTYPE, f"the node declares {declared} but computes {computed}, they must agree"
    indices = lookup.indices.meta["val"]
    if indices.dtype not in _INDEX_DTYPES:
        detail = f"the indices {lookup.indices.name} are {indices.dtype}, they must be torch.int32 or torch.int64"
        yield RefusalReason.INDICES_DTYPE, detail
    if indices.ndim > MAX_INDICES_RANK:
        detail = f"the indices {lookup.indices.name} have rank {indices.ndim}, it must be at most {MAX_INDICES_RANK}"
        yield RefusalReason.INDICES_RANK, detail
    if lookup.renormed:
        detail = "embedding_renorm (max_norm) rescales the table, it must be looked up as it was dequantized"
        yield RefusalReason.MAX_NORM, detail
    if not directly and table.dequantize is not None:
        detail = f"between the lookup and {table.dequantize.name} lies {lookup.reads.name} ({op_name(lookup.reads)})"
        yield RefusalReason.TABLE_OPS, f"{detail}, the lookup must read the dequantize itself"


def _table_shape(weight: Constant, table: Table) -> tuple[int, int]:
    """(V, D)."""
    rows, columns = weight.data.shape
    return rows, columns * 2 if table.is_flat else columns


def fused_scales(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which the operator reads scales of that dtype."""
    return torch.float32 if dtype == torch.bfloat16 else dtype


def output_dtype(table: Table, scales: Constant) -> torch.dtype:
    """What dequantizing the table yields."""
    return scales.data.dtype if table.output_dtype is None else table.output_dtype


def _value_fault(weight: Constant) -> str:
    offender = first_out_of_range(weight.data)
    if offender is None:
        return ""
    row, column, value = offender
    return f"the table {weight.name!r} holds {value} at [{row}, {column}], outside [{QMIN}, {QMAX}]"


def _zero_fault(zero_point: Constant) -> str:
    data = zero_point.data.detach()
    wrong = data != 0
    if not wrong.any():
        return ""
    position = [int(axis) for axis in wrong.nonzero()[0]]
    value = data[tuple(position)].item()
    return f"the zero point {zero_point.name!r} is {value} at {position}, it must be 0 everywhere"
