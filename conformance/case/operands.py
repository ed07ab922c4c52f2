"""What a KERNEL, PACK or PREPACK case is about, as arrays: drawn alike by the subject's adapter and the judge.

Source: docs/contract.md sections 1 and 7.
"""

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.case.case import Dispatch, EndToEnd, Table
from reference.arithmetic.bfloat16 import BFLOAT16, from_bfloat16
from reference.program.spec import Dequantize, Lookup, PackedLookup, ProgramSpec, Values
from reference.program.values import tensor_values, values_array
from reference.table.layouts import unpack_flat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class TableOperands:
    """A quantized table: ``values`` int8 [V, D], ``scales`` float [V, D/G], ``group_size`` G."""

    values: Array
    scales: Array
    group_size: int

    def scales_by_column(self) -> Array:
        """Return the scales repeated to [V, D]."""
        return np.repeat(self.scales, self.values.shape[1] // self.scales.shape[1], axis=1)


@dataclass(frozen=True)
class Operands(TableOperands):
    """What a lookup reads: a table, and ``indices`` int32|int64 of any shape."""

    indices: Array


def table_values(table: Table) -> Array:
    """Return the int8 [vocab_size, embed_dim] values of a PACK or PREPACK case."""
    return values_array(table.values, "int8", (table.vocab_size, table.embed_dim))


def operands(question: Dispatch | EndToEnd) -> Operands:
    """Return what a KERNEL case looks up: its own arrays, or those of its program's first lookup.

    Raises:
        ValueError: the program has no lookup.
    """
    if isinstance(question, EndToEnd):
        if not question.spec.lookups():
            raise ValueError("the program has no lookup to dispatch")
        return lookup_operands(question.spec, question.spec.lookups()[0], tensor_values(question.spec))
    d = question
    return Operands(
        values_array(d.values, "int8", (d.vocab_size, d.embed_dim)),
        values_array(d.scales, d.scale_dtype, (d.vocab_size, d.embed_dim // d.group_size)),
        d.group_size,
        values_array(_index_values(d), d.indices_dtype, d.indices_shape),
    )


def lookup_operands(spec: ProgramSpec, lookup: Lookup | PackedLookup, tensors: Mapping[str, Array]) -> Operands:
    """Return the operands of one lookup; ``tensors`` are the spec's values (``reference.program.values``)."""
    table = table_operands(table_step(spec, lookup), tensors)
    return Operands(table.values, table.scales, table.group_size, tensors[lookup.indices])


def table_step(spec: ProgramSpec, lookup: Lookup | PackedLookup) -> Dequantize | PackedLookup:
    """Return the step that names the lookup's table: its weight, its scales and what it dequantizes to."""
    return lookup if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table)


def table_operands(step: Dequantize | PackedLookup, tensors: Mapping[str, Array]) -> TableOperands:
    """Return the table that a dequantize step or a packed lookup reads."""
    if isinstance(step, Dequantize):
        return TableOperands(tensors[step.weight], _wide(tensors[step.scale]), step.block_size[1])
    values = unpack_flat(tensors[step.weight])
    scales = _wide(tensors[step.scale]).reshape(len(values), -1)  # [V]: one group a row
    return TableOperands(values, scales, values.shape[1] // scales.shape[1])


def _wide(scales: Array) -> Array:
    """Scales as the operator reads them: bfloat16 ones widened to float32."""
    return from_bfloat16(scales) if scales.dtype == BFLOAT16 else scales


def _index_values(d: Dispatch) -> Values:
    """Indices cover [0, V) unless the case gives bounds of its own."""
    if d.index_values.pattern in {"uniform", "ramp"} and d.index_values.low == d.index_values.high == 0:
        return dataclasses.replace(d.index_values, high=max(d.vocab_size - 1, 0))
    return d.index_values
