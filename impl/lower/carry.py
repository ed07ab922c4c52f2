"""The form in which a refused table runs on the CPU: embedding_byte's operands, proven exact on the real values.

The CPU kernel of ``quantized_decomposed.embedding_byte.dtype`` computes, for int8 or uint8 weights and
one scale a group, ``out = (float(q) - float(zero_point)) * float(scale)`` rounded to the output dtype;
its zero points must have the dtype of both scales and output. Three spellings of a table are tried, and
one is taken only if that formula gives, bit for bit, what the table's own dequantize gives.

Source: docs/contract.md 6.2, section 4.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch

#: Elements that are compared at a time.
CHUNK_ELEMENTS = 1 << 20
_PARAMETERS = (torch.float32, torch.float16, torch.bfloat16)


class ByteForm(NamedTuple):
    """Operands of embedding_byte: int8 or uint8 [V, D], scales [V, D/G], zero points like the scales or None."""

    weight: torch.Tensor
    scales: torch.Tensor
    zero_point: torch.Tensor | None


@dataclass(frozen=True)
class PlainTable:
    """A table whose operands are all at hand.

    Attributes:
        weight: any integer dtype, [V, D].
        scales: [V, D/G].
        zero_point: [V, D/G] of any dtype, or None.
        dequantize: (weight, scales, zero_point) of some rows -> their values, as the program computes them.
        output_dtype: of the values.
    """

    weight: torch.Tensor
    scales: torch.Tensor
    zero_point: torch.Tensor | None
    dequantize: Callable[[torch.Tensor, torch.Tensor, torch.Tensor | None], torch.Tensor]
    output_dtype: torch.dtype


def byte_form(table: PlainTable) -> ByteForm | None:
    """The first spelling that is exact, or None.

    Source: contract 6.2.
    """
    groups = table.scales.shape[1]
    if groups == 0 or table.weight.shape[1] // groups < 2:  # noqa: PLR2004 - upstream's operator rejects groups of one
        return None
    return next((form for form in _spellings(table) if _exact(table, form)), None)


def float_table(table: PlainTable) -> torch.Tensor:
    """The dequantized table [V, D], computed as the program computes it."""
    out = torch.empty(table.weight.shape, dtype=table.output_dtype)
    for rows in _row_chunks(table.weight):
        out[rows] = table.dequantize(*_rows_of(table.weight, table.scales, table.zero_point, rows))
    return out


def _spellings(table: PlainTable) -> Iterator[ByteForm]:
    scales = table.scales
    if table.output_dtype == torch.float32 or scales.dtype not in _PARAMETERS:
        # Python's form of the operator multiplies in the scales' dtype: with wide scales it agrees with the kernel.
        scales = scales.to(torch.float32)
    as_bytes = _as_bytes(table.weight)
    if table.zero_point is None or not bool((table.zero_point != 0).any()):
        if as_bytes is not None:
            yield ByteForm(as_bytes, scales, None)
        return
    folded = _folded(table)
    if folded is not None:
        yield ByteForm(folded, scales, None)
    if as_bytes is not None:
        yield ByteForm(as_bytes, scales.to(table.output_dtype), table.zero_point.to(table.output_dtype))


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


def _folded(table: PlainTable) -> torch.Tensor | None:
    """Subtract the zero points: int8 or uint8, where the zero points are whole numbers and the difference fits."""
    zero_point = table.zero_point
    if zero_point is None or not bool(torch.isfinite(zero_point.to(torch.float64)).all()):
        return None
    whole = zero_point.to(torch.int64)
    if not torch.equal(whole.to(torch.float64), zero_point.to(torch.float64)):
        return None
    group = table.weight.shape[1] // whole.shape[1]
    out = torch.empty(table.weight.shape, dtype=torch.int16)
    for rows in _row_chunks(table.weight):
        difference = table.weight[rows].to(torch.int64) - whole[rows].repeat_interleave(group, 1)
        if difference.numel() and int(difference.abs().max()) > torch.iinfo(torch.uint8).max:
            return None
        out[rows] = difference.to(torch.int16)
    return _as_bytes(out)


def _exact(table: PlainTable, form: ByteForm) -> bool:
    """Whether the kernel's formula gives the table's own values, bit for bit (any NaN for a NaN)."""
    group = table.weight.shape[1] // table.scales.shape[1]
    for rows in _row_chunks(table.weight):
        wanted = table.dequantize(*_rows_of(table.weight, table.scales, table.zero_point, rows))
        weight, scales, zero_point = _rows_of(form.weight, form.scales, form.zero_point, rows)
        value = weight.to(torch.float32)
        if zero_point is not None:
            value = value - zero_point.to(torch.float32).repeat_interleave(group, 1)
        got = (value * scales.to(torch.float32).repeat_interleave(group, 1)).to(table.output_dtype)
        if not torch.equal(_bits(wanted), _bits(got)):
            return False
    return True


def _bits(values: torch.Tensor) -> torch.Tensor:
    """The values' bits, every NaN alike."""
    alike = torch.where(values.isnan(), torch.nan, values).to(values.dtype).contiguous()
    return alike.view(torch.int16 if values.element_size() == 2 else torch.int32)  # noqa: PLR2004 - bytes of a half


def _rows_of(
    weight: torch.Tensor, scales: torch.Tensor, zero_point: torch.Tensor | None, rows: slice
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    return weight[rows], scales[rows], None if zero_point is None else zero_point[rows]


def _row_chunks(weight: torch.Tensor) -> Iterator[slice]:
    rows, columns = weight.shape
    step = max(1, CHUNK_ELEMENTS // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, start + step)
