"""What a KERNEL, PACK or PREPACK case is about, as arrays: drawn alike by the subject's adapter and the judge.

Source: docs/contract.md sections 1 and 7.
"""

import dataclasses
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, Table
from reference.program.spec import Dequantize, PackedLookup, ProgramSpec, Values
from reference.program.values import tensor_values, values_array
from reference.table.layouts import unpack_flat

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Operands:
    """``values`` int8 [V, D], ``scales`` float16|float32 [V, D/G], ``indices`` int32|int64, ``group_size`` G."""

    values: Array
    scales: Array
    indices: Array
    group_size: int


def table_values(table: Table) -> Array:
    """Return the int8 [vocab_size, embed_dim] values of a PACK or PREPACK case."""
    return values_array(table.values, "int8", (table.vocab_size, table.embed_dim))


def operands(case: Case) -> Operands:
    """Return what a KERNEL case looks up: its own arrays, or those of its program's first lookup.

    Raises:
        ValueError: the case has neither a dispatch nor a program with a lookup.
    """
    if case.program is not None:
        return _from_program(case.program)
    if case.dispatch is None:
        raise ValueError(f"case {case.id} has no dispatch")
    d = case.dispatch
    return Operands(
        values_array(d.values, "int8", (d.vocab_size, d.embed_dim)),
        values_array(d.scales, d.scale_dtype, (d.vocab_size, d.embed_dim // d.group_size)),
        values_array(_index_values(d), d.indices_dtype, d.indices_shape),
        d.group_size,
    )


def _index_values(d: Dispatch) -> Values:
    """Indices cover [0, V) unless the case gives bounds of its own."""
    if d.index_values.pattern in {"uniform", "ramp"} and d.index_values.low == d.index_values.high == 0:
        return dataclasses.replace(d.index_values, high=max(d.vocab_size - 1, 0))
    return d.index_values


def _from_program(spec: ProgramSpec) -> Operands:
    if not spec.lookups():
        raise ValueError("the program has no lookup to dispatch")
    tensors = tensor_values(spec)
    lookup = spec.lookups()[0]
    if isinstance(lookup, PackedLookup):
        scales = tensors[lookup.scale]
        values = unpack_flat(tensors[lookup.weight])
        return Operands(values, scales, tensors[lookup.indices], values.shape[1] // scales.shape[1])
    step: Dequantize = spec.dequantize(lookup.table)
    return Operands(tensors[step.weight], tensors[step.scale], tensors[lookup.indices], step.block_size[1])
