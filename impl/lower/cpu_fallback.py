"""The form in which a refused table runs on the CPU: embedding_byte's operands, proven exact on the real values.

The CPU kernel of ``quantized_decomposed.embedding_byte.dtype`` computes, for int8 or uint8 weights and
one scale a group, ``out = (float(q) - float(zero_point)) * float(scale)`` rounded to the output dtype;
its zero points must have the dtype of both scales and output. Three spellings of a table are tried, and
one is taken only if that formula gives, bit for bit, what the table's own dequantize gives.

Source: docs/contract.md 6.2, section 4.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple, Self

import torch

from impl.fusion.rules import Operands
from impl.graph.constants import Constant
from impl.graph.lookups import Table
from impl.graph.ops import DEQUANTIZE

#: Elements that are compared at a time.
CHUNK_ELEMENTS = 1 << 20
_PARAMETERS = (torch.float32, torch.float16, torch.bfloat16)


class TableTensors(NamedTuple):
    """Weight [V, D] of an integer dtype, scales [V, D/G], zero points [V, D/G] of any dtype or None."""

    weight: torch.Tensor
    scales: torch.Tensor
    zero_point: torch.Tensor | None

    def rows(self, rows: slice) -> Self:
        """The same of some rows."""
        return self._replace(
            weight=self.weight[rows],
            scales=self.scales[rows],
            zero_point=None if self.zero_point is None else self.zero_point[rows],
        )


@dataclass(frozen=True)
class PlainTable:
    """A table whose operands are all constant; ``dequantize`` computes the values of some rows as the program does."""

    tensors: TableTensors
    dequantize: Callable[[TableTensors], torch.Tensor]
    output_dtype: torch.dtype


def all_constant(operands: Operands) -> bool:
    """Whether every operand that the table has is a constant that the program does not write to."""
    return all(isinstance(o, Constant) and not o.written for o in operands if o is not None)


def plain_table(table: Table, operands: Operands) -> PlainTable | None:
    """The table's real values in one scale a row and group, or None where they are not all constant (contract 4)."""
    weight, scales, zero_point = _data(operands)
    if not all_constant(operands) or weight is None or scales is None or weight.ndim != 2:  # noqa: PLR2004 - a matrix
        return None
    rows = weight.shape[0]
    if table.is_flat:
        if weight.dtype != torch.uint8 or scales.ndim not in {1, 2}:
            return None
        weight = torch.stack([weight >> 4, weight & 15], dim=-1).reshape(rows, -1).to(torch.int8) - 8
        output = table.output_dtype or scales.dtype
        zeros = None if zero_point is None else zero_point.reshape(rows, -1)
        flat = TableTensors(weight, scales.reshape(rows, -1), zeros)
        return PlainTable(flat, lambda tensors: _kernel_values(tensors, output), output)
    if not all(type(size) is int and size > 0 for size in table.block_size):
        return None
    block_rows, group = table.block_size
    shape = (rows // block_rows, weight.shape[1] // group)

    def spread(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.reshape(shape).repeat_interleave(block_rows, 0)

    output = table.output_dtype or torch.float32

    def dequantize(tensors: TableTensors) -> torch.Tensor:
        return _dequantize(table, tensors.weight, [1, group], tensors.scales, tensors.zero_point, output)

    tensors = TableTensors(weight, spread(scales), None if zero_point is None else spread(zero_point))
    return PlainTable(tensors, dequantize, output)


def dequantized(table: Table, operands: Operands) -> torch.Tensor:
    """What the dequantize itself computes of its constants."""
    weight, scales, zero_point = _data(operands)
    return _dequantize(table, weight, table.block_size, scales, zero_point, table.output_dtype)


def _data(operands: Operands) -> tuple[torch.Tensor | None, torch.Tensor | None, torch.Tensor | None]:
    weight, scales, zero_point = (o.data.detach() if isinstance(o, Constant) else None for o in operands)
    return weight, scales, zero_point


def _dequantize(
    table: Table, weight: object, block_size: object, scales: object, zero: object, dtype: object
) -> torch.Tensor:
    operator: Callable[..., torch.Tensor] = DEQUANTIZE
    return operator(weight, block_size, scales, zero, table.input_dtype, table.qmin, table.qmax, dtype)


def byte_form(table: PlainTable) -> TableTensors | None:
    """The first spelling for embedding_byte, int8 or uint8 weights and zero points like the scales, that is exact."""
    groups = table.tensors.scales.shape[1]
    if groups == 0 or table.tensors.weight.shape[1] // groups < 2:  # noqa: PLR2004 - upstream's operator rejects groups of one
        return None
    return next((form for form in _spellings(table) if _exact(table, form)), None)


def float_table(table: PlainTable) -> torch.Tensor:
    """The dequantized table [V, D], computed as the program computes it."""
    out = torch.empty(table.tensors.weight.shape, dtype=table.output_dtype)
    for rows in _row_chunks(out):
        out[rows] = table.dequantize(table.tensors.rows(rows))
    return out


def _spellings(table: PlainTable) -> Iterator[TableTensors]:
    weight, scales, zero_point = table.tensors
    if table.output_dtype == torch.float32 or scales.dtype not in _PARAMETERS:
        # Python's form of the operator multiplies in the scales' dtype: with wide scales it agrees with the kernel.
        scales = scales.to(torch.float32)
    as_bytes = _as_bytes(weight)
    if zero_point is None or not bool((zero_point != 0).any()):
        if as_bytes is not None:
            yield TableTensors(as_bytes, scales, None)
        return
    folded = _folded(weight, zero_point)
    if folded is not None:
        yield TableTensors(folded, scales, None)
    if as_bytes is not None:
        yield TableTensors(as_bytes, scales.to(table.output_dtype), zero_point.to(table.output_dtype))


def _as_bytes(weight: torch.Tensor) -> torch.Tensor | None:
    """The same values as int8 or uint8, or None where they do not fit."""
    if weight.dtype in {torch.int8, torch.uint8}:
        return weight
    if weight.numel() == 0:
        return weight.to(torch.int8)
    low, high = (int(bound) for bound in torch.aminmax(weight))
    for dtype in (torch.int8, torch.uint8):
        if low >= torch.iinfo(dtype).min and high <= torch.iinfo(dtype).max:
            return weight.to(dtype)
    return None


def _folded(weight: torch.Tensor, zero_point: torch.Tensor) -> torch.Tensor | None:
    """Subtract the zero points: int8 or uint8, where the zero points are whole numbers and the difference fits."""
    wide = zero_point.to(torch.float64)
    if not bool(torch.isfinite(wide).all()):
        return None
    whole = zero_point.to(torch.int64)
    if not torch.equal(whole.to(torch.float64), wide):
        return None
    group = weight.shape[1] // whole.shape[1]
    out = torch.empty(weight.shape, dtype=torch.int16)
    for rows in _row_chunks(weight):
        difference = weight[rows].to(torch.int64) - whole[rows].repeat_interleave(group, 1)
        if difference.numel() and int(difference.abs().max()) > torch.iinfo(torch.uint8).max:
            return None
        out[rows] = difference.to(torch.int16)
    return _as_bytes(out)


def _exact(table: PlainTable, form: TableTensors) -> bool:
    """Whether the kernel's formula gives the table's own values, bit for bit (any NaN for a NaN)."""
    return all(
        torch.equal(
            _bits(table.dequantize(table.tensors.rows(rows))),
            _bits(_kernel_values(form.rows(rows), table.output_dtype)),
        )
        for rows in _row_chunks(form.weight)
    )


def _kernel_values(tensors: TableTensors, output_dtype: torch.dtype) -> torch.Tensor:
    """What the CPU kernel computes; also the arithmetic of a flat table (contract 4)."""
    group = tensors.weight.shape[1] // tensors.scales.shape[1]
    value = tensors.weight.to(torch.float32)
    if tensors.zero_point is not None:
        value = value - tensors.zero_point.to(torch.float32).repeat_interleave(group, 1)
    return (value * tensors.scales.to(torch.float32).repeat_interleave(group, 1)).to(output_dtype)


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The values' bits, every NaN alike."""
    alike = torch.where(values.isnan(), torch.nan, values).to(values.dtype).contiguous()
    return alike.view(torch.int16 if values.element_size() == 2 else torch.int32)  # noqa: PLR2004 - bytes of a half


def _row_chunks(table: torch.Tensor) -> Iterator[slice]:
    rows, columns = table.shape
    step = max(1, CHUNK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)


def runtime_fault(table: Table) -> str:
    """Why embedding_byte does not take operands that only run time knows, or ""."""
    if table.is_flat:
        return "only int8 tables have a CPU form without their values"
    weight, scales = table.weight.meta["val"], table.scales.meta["val"]
    if weight.ndim != 2 or weight.dtype not in {torch.int8, torch.uint8}:  # noqa: PLR2004 - [V, D]
        return f"embedding_byte takes int8 or uint8 [V, D], not {weight.dtype} of shape {tuple(weight.shape)}"
    block = table.block_size
    if len(block) != 2 or block[0] != 1 or block[1] < 2:  # noqa: PLR2004 - [1, G], and no groups of one
        return f"embedding_byte has one scale a row and group of at least 2 columns, block_size is {block}"
    if tuple(scales.shape) != (weight.shape[0], weight.shape[1] // block[1]):
        return f"its scales have shape {tuple(scales.shape)}, not [V, D/G]"
    if scales.dtype not in _PARAMETERS:
        return f"embedding_byte takes no scales of {scales.dtype}"
    if table.zero_point is None:
        return ""
    zero_point = table.zero_point.meta["val"]
    if scales.dtype != table.output_dtype:
        return f"its zero point needs scales of the output's {table.output_dtype}, they are {scales.dtype}"
    if tuple(zero_point.shape) != tuple(scales.shape):
        return f"its zero point has shape {tuple(zero_point.shape)}, its scales {tuple(scales.shape)}"
    exact = {torch.int8, torch.uint8} | ({torch.float32} if table.output_dtype == torch.float32 else set())
    return "" if zero_point.dtype in exact else f"a zero point of {zero_point.dtype} may round"
