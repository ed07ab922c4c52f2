"""Why a case's inputs could not show a bug.

A lookup of all-zero values passes whatever the shader does; one whose groups share a scale cannot show
the wrong group. A case is telling when what it looks up tells nibbles, columns, groups and rows apart.

Source: docs/contract.md section 1; CONTRIBUTING.md, "Add a case".
"""

from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, Quantization, Table
from conformance.case.model import Model
from conformance.case.operands import operands, table_values
from reference.arithmetic.bfloat16 import to_float
from reference.program.spec import Dequantize, Lookup, PackedLookup, ProgramSpec
from reference.program.values import tensor_values, values_array
from reference.table.layouts import unpack_flat
from reference.table.quantize import quantize_symmetric

Array = np.ndarray[Any, Any]
#: Rows that a block of the block layout holds in one half of its bytes (contract 1).
_HALF_BLOCK = 4


def cannot_show_a_bug(case: Case) -> str | None:
    """Return why the inputs of ``case`` could not show a bug, or None where they could.

    Raises:
        ValueError: the case's patterns cannot fill its tensors.
    """
    question = case.question
    if isinstance(question, Table):
        return _table(table_values(question), blocks=question.layout == "blocks")
    if isinstance(question, Quantization):
        return _quantized(question)
    if isinstance(question, Model):
        return None if sum(question.calls) > 1 else "one row is looked up"
    if not isinstance(question, Dispatch):
        return _program(question.spec)
    read = operands(question)
    inside = (read.indices >= 0) & (read.indices < read.values.shape[0])
    if read.indices.size and not inside.any():
        return "every index is outside the table"
    return _lookup(read.values, read.scales, read.indices[inside] if inside.size else read.indices)


def _table(values: Array, *, blocks: bool = False) -> str | None:
    """Why packing ``values`` [V, D] could not show a bug."""
    if (values == values.flat[0]).all():
        return "every value is the same"
    if values.shape[1] % 2 == 0 and (values[:, ::2] == values[:, 1::2]).all():
        return "both nibbles of every byte are equal"
    if values.shape[1] > 2 and (values[:, :2] == values[:, 2:4]).all() and _periodic(values):
        return "every byte of a row is the same"
    if len(values) > 1 and (values == values[0]).all():
        return "every row is the same"
    if blocks and len(values) > _HALF_BLOCK and (values[:-_HALF_BLOCK] == values[_HALF_BLOCK:]).all():
        return "both halves of every block are the same"
    return None


def _periodic(values: Array) -> bool:
    return bool((values[:, :-2] == values[:, 2:]).all())


def _lookup(values: Array, scales: Array, indices: Array) -> str | None:
    """Why looking ``indices`` up in a table [V, D] with scales [V, D/G] could not show a bug."""
    if not indices.size:
        return "no index is looked up"
    rows = np.unique(indices)
    if len(values) > 1 and (rows == 0).all():
        return "only row 0 is looked up"
    if indices.size > 1 and len(values) > 1 and len(rows) == 1:
        return "every index is the same"
    seen, used = values[rows], to_float(scales)[rows]
    if why := _table(seen):
        return why
    with np.errstate(invalid="ignore"):
        if not (used != 0).any():
            return "every scale is zero"
    if used.shape[1] > 1 and _same(used[:, :1], used):
        return "the groups of each row share one scale"
    if len(values) > 1 and _same(scales[:1], scales):
        return "the rows share their scales"
    return None


def _same(one: Array, all_: Array) -> bool:
    return bool(((one == all_) | (np.isnan(to_float(one)) & np.isnan(to_float(all_)))).all())


def _program(spec: ProgramSpec) -> str | None:
    contents = tensor_values(spec)
    for lookup in spec.lookups():
        why = _step(spec, lookup, contents)
        if why:
            return f"lookup {lookup.name}: {why}"
    return None


def _step(spec: ProgramSpec, lookup: Lookup | PackedLookup, contents: dict[str, Array]) -> str | None:
    source: Dequantize | PackedLookup
    if isinstance(lookup, PackedLookup):
        source, values = lookup, unpack_flat(contents[lookup.weight])
    else:
        source = spec.dequantize(lookup.table)
        values = to_float(contents[source.weight])
    if values.ndim != 2:
        return None  # what has no rows and columns is refused for that
    scales, indices = contents[source.scale], contents[lookup.indices]
    if scales.ndim != 2 or len(scales) != len(values):
        scales = np.arange(2 * len(values), dtype=np.float32).reshape(-1, 2)  # another shape: refused for that
    return _lookup(values, scales, indices)


def _quantized(question: Quantization) -> str | None:
    """Why quantizing a float table could not show a bug."""
    weights = values_array(question.values, question.dtype, (question.vocab_size, question.embed_dim))
    values, scales, _ = quantize_symmetric(weights, question.group_size)
    return _lookup(values, scales, np.arange(len(values)))
