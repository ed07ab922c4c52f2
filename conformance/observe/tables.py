"""Whole tables in a file: what every lookup of it could read, row by row, and copies.

A lookup shows the rows that were asked for. What it reads is taken here from the constants themselves: of a fused
lookup ``STEP.values`` int8 [V, D] and ``STEP.scales`` [V, D/G], of any other ``STEP.table`` [V, D] as it returns it.

Source: docs/contract.md 5.3, 5.5, 6.1, 6.2, 7.1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from executorch.exir.schema import Tensor

from conformance.audit.tables import constant_behind, same_bytes, stores
from conformance.harness.errors import CannotRun
from conformance.program.tensors import Array
from conformance.pte.file import Method, PteFile
from conformance.pte.lookup import LOOKUP, constant_array, lookup_call
from conformance.pte.producer import Producer
from conformance.pte.run import scalar_dtype
from reference.arithmetic.bfloat16 import BFLOAT16, numpy_dtype, to_float
from reference.program.evaluate import rows_of_values
from reference.program.spec import PackedLookup, ProgramSpec
from reference.program.values import tensor_values
from reference.table.dequantize import dequantize_affine
from reference.table.layouts import pack_flat, pack_linear_weight, unpack_flat, unpack_linear_weight

_FLOATS = ("float32", "float16")
_BYTE, _FLAT, _FLOAT = "quantized_decomposed.embedding_byte", "quantized_decomposed.embedding_4bit", "aten.embedding"


def read_in_file(file: PteFile, method: Method, lookup: str, by: Producer) -> dict[str, Array]:
    """What a lookup of a file reads, where that is constants: of its delegate, or of the CPU's program."""
    if by.place == "vulkan" and by.operator == LOOKUP:
        delegate = method.delegates[by.delegate]
        try:
            call = lookup_call(delegate.graph, list(by.args))
        except CannotRun:
            return {}  # the audit reports it
        weight, scales = (constant_behind(delegate, value) for value in (call.weight, call.scales))
        if weight is None or scales is None or weight.datatype.name != "UINT8":
            return {}
        unpack = unpack_linear_weight if call.linear else unpack_flat
        held = unpack(constant_array(weight, delegate.constants)), constant_array(scales, delegate.constants)
        return dict(zip((f"{lookup}.values", f"{lookup}.scales"), held, strict=True))
    if by.place != "cpu" or not by.args:
        return {}
    weight, scales, zero = (_plan_constant(file, method, value) for value in by.args[:3])
    operator = ".".join(by.operator.split(".")[:2])
    table = None
    if operator == _FLOAT:
        table = weight
    elif operator in {_BYTE, _FLAT} and weight is not None and scales is not None:
        absent = type(method.plan.values[by.args[2]].val).__name__ == "Null"
        if zero is None and not absent:
            return {}
        dtype = str(scalar_dtype(method.plan.values[by.args[-1]].val)).removeprefix("torch.")
        table = rows_of_values(unpack_flat(weight) if operator == _FLAT else weight, scales, zero, dtype)
    return {} if table is None else {f"{lookup}.table": table}


def _plan_constant(file: PteFile, method: Method, value: int) -> Array | None:
    """A tensor of the plan that is a constant of the file; None for any other value."""
    spec = method.plan.values[value].val
    if not isinstance(spec, Tensor) or not spec.data_buffer_idx or spec.allocation_info is not None:
        return None
    dtype = numpy_dtype(str(scalar_dtype(spec)).removeprefix("torch."))
    data = bytes(file.content.program.constant_buffer[spec.data_buffer_idx].storage)
    count = int(np.prod(spec.sizes, dtype=np.int64))
    return np.frombuffer(data, dtype, count).reshape(spec.sizes) if len(data) >= count * dtype.itemsize else None


def copies(spec: ProgramSpec, file: PteFile) -> dict[str, dict[str, int]]:
    """How many constants of the file are a table that a lookup reads, by table and form.

    Forms: "original", "packed linear_weight", "packed flat", "dequantized DTYPE", each also "transposed". A form of one
    repeated byte is counted packed only, since other constants are made of one byte as well; and equal forms once.
    """
    held = [data for data in stores(file).values() if data]
    values = tensor_values(spec)
    counted: dict[str, dict[str, int]] = {}
    for lookup in spec.lookups():
        step = lookup if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table)
        counts, told = counted.setdefault(step.weight, {}), set[bytes]()
        for form, array in _forms(spec, lookup, values):
            data = array.tobytes()
            tells = bool(data) and data not in told and (form.startswith("packed") or len(set(data)) > 1)
            counts[form] = max(counts.get(form, 0), sum(same_bytes(one, data) for one in held) if tells else 0)
            told.add(data)
    return counted


def _forms(spec: ProgramSpec, lookup: Any, values: Mapping[str, Array]) -> Iterator[tuple[str, Array]]:
    if isinstance(lookup, PackedLookup):
        table, whole = values[lookup.weight], unpack_flat(values[lookup.weight])
        floats = {name: rows_of_values(whole, values[lookup.scale], None, name) for name in _FLOATS}
    else:
        step = spec.dequantize(lookup.table)
        table = whole = values[step.weight]
        zero = values[step.zero_point] if step.zero_point else None
        plain = step.output_dtype != "bfloat16" and values[step.scale].dtype != BFLOAT16
        floats = {
            name: dequantize_affine(table, step.block_size, values[step.scale], zero, name) for name in _FLOATS if plain
        }
    yield "original", table
    if _is_4bit(whole):
        yield "packed linear_weight", pack_linear_weight(whole)
        if not isinstance(lookup, PackedLookup):
            yield "packed flat", pack_flat(whole)
    if "float32" in floats:
        floats["float64"] = to_float(floats["float32"]).astype(np.float64)
    for name, array in floats.items():
        yield f"dequantized {name}", array
        if array.ndim == 2:  # noqa: PLR2004 - rows and columns
            yield f"dequantized {name} transposed", array.T
    if table.ndim == 2:  # noqa: PLR2004 - the same
        yield "original transposed", table.T


def _is_4bit(values: Array) -> bool:
    """Whether a table has a packed form: int8 values in [-8, 7], in pairs."""
    low, high = -8, 7
    whole_bytes = values.dtype == np.int8 and values.shape[-1] % 2 == 0
    return bool(whole_bytes and values.size and values.min() >= low and values.max() <= high)
