"""Read a refused table's operands for the CPU: their real values, or what its kernel needs to know of them.

Source: docs/contract.md section 4, 6.2.
"""

from typing import Any

import torch

from impl.fusion.rules import Operands
from impl.graph.constants import Constant
from impl.graph.lookups import Table
from impl.graph.ops import DEQUANTIZE
from impl.lower.carry import PlainTable


def all_constant(operands: Operands) -> bool:
    """Whether every operand that the table has is a constant that the program does not write to."""
    given = [operand for operand in operands if operand is not None]
    return all(isinstance(operand, Constant) and not operand.written for operand in given)


def plain_table(table: Table, operands: Operands) -> PlainTable | None:
    """The table's real values in one scale a row and group, or None where they are not all constant.

    Source: contract 4.
    """
    weight, scales, zero_point = (
        operand.data.detach() if isinstance(operand, Constant) else None for operand in operands
    )
    if not all_constant(operands) or weight is None or scales is None:
        return None
    return (_plain_flat if table.is_flat else _plain_blocks)(weight, scales, zero_point, table)


def _plain_flat(
    weight: torch.Tensor, scales: torch.Tensor, zero_point: torch.Tensor | None, table: Table
) -> PlainTable | None:
    """A flat table's values; its own arithmetic is the CPU kernel's (contract 4)."""
    if weight.dtype != torch.uint8 or weight.ndim != 2 or scales.ndim not in {1, 2}:  # noqa: PLR2004 - [V, D/2]
        return None
    unpacked = torch.stack([weight >> 4, weight & 15], dim=-1).reshape(weight.shape[0], -1).to(torch.int8) - 8
    output = table.output_dtype or scales.dtype
    rows = (
        scales.reshape(weight.shape[0], -1),
        None if zero_point is None else zero_point.reshape(weight.shape[0], -1),
    )

    def dequantize(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        group = q.shape[1] // s.shape[1]
        value = q.to(torch.float32)
        if z is not None:
            value = value - z.to(torch.float32).repeat_interleave(group, 1)
        return (value * s.to(torch.float32).repeat_interleave(group, 1)).to(output)

    return PlainTable(unpacked, *rows, dequantize, output)


def _plain_blocks(
    weight: torch.Tensor, scales: torch.Tensor, zero_point: torch.Tensor | None, table: Table
) -> PlainTable | None:
    """A dequantize_affine's values, one scale a row and group: scales that rows share are repeated."""
    block = table.block_size
    if weight.ndim != 2 or not all(type(size) is int and size > 0 for size in block):  # noqa: PLR2004 - [V, D]
        return None  # a lookup reads rows of a matrix: this one is not valid
    rows, group = block
    shape = (weight.shape[0] // rows, weight.shape[1] // group)

    def spread(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.reshape(shape).repeat_interleave(rows, 0)

    operation, output = DEQUANTIZE, table.output_dtype or torch.float32

    def dequantize(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        given: tuple[Any, ...] = (q, [1, group], s, z, table.input_dtype, table.qmin, table.qmax, output)
        result: torch.Tensor = operation(*given)
        return result

    return PlainTable(weight, spread(scales), None if zero_point is None else spread(zero_point), dequantize, output)


def dequantized(table: Table, operands: Operands) -> torch.Tensor:
    """What the dequantize itself computes of its constants."""
    weight, scales, zero_point = (
        operand.data.detach() if isinstance(operand, Constant) else None for operand in operands
    )
    given = (weight, table.block_size, scales, zero_point, table.input_dtype, table.qmin, table.qmax)
    values: torch.Tensor = DEQUANTIZE(*given, table.output_dtype)
    return values


def runtime_fault(table: Table) -> str:
    """Why embedding_byte does not take operands that only run time knows, or ""."""
    if table.is_flat:
        return "only int8 tables can be carried without their values"
    weight, scales = table.weight.meta["val"], table.scales.meta["val"]
    if weight.ndim != 2 or weight.dtype not in {torch.int8, torch.uint8}:  # noqa: PLR2004 - [V, D]
        return f"embedding_byte takes int8 or uint8 [V, D], not {weight.dtype} of shape {tuple(weight.shape)}"
    block = table.block_size
    if len(block) != 2 or block[0] != 1 or block[1] < 2:  # noqa: PLR2004 - [1, G], and no groups of one
        return f"embedding_byte has one scale a row and group of at least 2 columns, block_size is {block}"
    if tuple(scales.shape) != (weight.shape[0], weight.shape[1] // block[1]):
        return f"its scales have shape {tuple(scales.shape)}, not [V, D/G]"
    if scales.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
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
