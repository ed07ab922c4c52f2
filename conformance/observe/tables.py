"""Whole tables: what every lookup could read, row by row, off a rewritten program or a file; and copies in a file.

A lookup shows the rows that were asked for. What it reads is taken here from the constants themselves: of a fused
lookup ``STEP.values`` int8 [V, D] and ``STEP.scales`` [V, D/G], of any other ``STEP.table`` [V, D] as it returns it.

Source: docs/contract.md 5.3, 5.5, 6.1, 6.2, 7.1.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import torch
from executorch.exir.schema import Tensor
from torch.export.graph_signature import InputKind

from conformance.audit.tables import constant_behind, same_bytes, stores
from conformance.harness.errors import CannotRun
from conformance.observe.execute import FUSED, PACKED, fused_arguments
from conformance.program.lookups import op_name
from conformance.program.tensors import Array, to_numpy
from conformance.pte.file import Method, PteFile
from conformance.pte.lookup import LOOKUP, constant_array, lookup_call
from conformance.pte.producer import Producer
from conformance.pte.run import scalar_dtype
from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name, numpy_dtype, to_float
from reference.program.evaluate import packed_lookup, rows_of_values
from reference.program.spec import PackedLookup, ProgramSpec
from reference.program.values import tensor_values
from reference.table.dequantize import dequantize_affine
from reference.table.layouts import pack_flat, pack_linear_weight, unpack_flat, unpack_linear_weight

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_FLOATS = ("float32", "float16", "float64")
_BYTE, _FLAT, _FLOAT = "quantized_decomposed.embedding_byte", "quantized_decomposed.embedding_4bit", "aten.embedding"
_MAX_RANK = 3


def read_by_node(program: Any, lookup: str, node: Any, values: Mapping[str, Any]) -> tuple[dict[str, Array], str]:
    """What a lookup's node of a rewritten program reads, and why the kernel could not serve it ("" where it can)."""
    if op_name(node) == FUSED:
        arguments = fused_arguments(node)
        why = _unservable(program, arguments, values)
        if why:
            return {}, why
        packed, scales = (to_numpy(values[arguments[name].name]) for name in ("weight", "weight_scales"))
        unpack = unpack_linear_weight if arguments["is_linear_weight"] else unpack_flat
        return {f"{lookup}.values": unpack(packed), f"{lookup}.scales": scales}, ""
    operands = [values.get(a.name) if isinstance(a, torch.fx.Node) else a for a in node.args[:3]]
    table: Any
    if op_name(node) == _FLOAT and isinstance(operands[0], torch.Tensor):
        table = to_numpy(operands[0])
    elif op_name(node) == PACKED and all(isinstance(a, torch.Tensor) for a in (*operands[:2], values[node.name])):
        weight, factors = (to_numpy(a) for a in operands[:2])
        zero = None if operands[2] is None else to_numpy(operands[2])
        table = packed_lookup(weight, factors, zero, np.arange(len(weight)), dtype_name(to_numpy(values[node.name])))
    else:
        return {}, ""
    return {f"{lookup}.table": table}, ""


def _unservable(program: Any, arguments: Mapping[str, Any], values: Mapping[str, Any]) -> str:
    """What the kernel takes for granted of a fused lookup's operands (contract 5.3, 7.1), and is not so; or ""."""
    signature = program.graph_signature
    constants = {s.arg.name for s in signature.input_specs if s.kind in _CONSTANTS and s.target is not None}
    written = {s.target for s in signature.output_specs if s.target is not None}
    constants -= {s.arg.name for s in signature.input_specs if s.target in written}
    for name in ("weight", "weight_scales"):
        node = arguments[name]
        if not isinstance(node, torch.fx.Node) or node.name not in constants:
            return f"{name} is {node}, computed or passed at run time; it is prepacked, so it must be a constant"
    weight, scales, indices = (values[arguments[n].name] for n in ("weight", "weight_scales", "indices"))
    group = arguments["group_size"]
    if weight.dtype != torch.uint8 or weight.dim() != 2 or (2 * weight.shape[1]) % 32:  # noqa: PLR2004 - [V, D/2], 32 | D
        return f"weight is {weight.dtype}{list(weight.shape)}, not uint8 [V, D/2] with 32 columns or a multiple"
    embed_dim = 2 * weight.shape[1]
    if not isinstance(group, int) or group < 1 or group % 4 or embed_dim % group:
        return f"group_size is {group} of {embed_dim} columns; one scale is read per 4 columns"
    if scales.dtype not in {torch.float16, torch.float32} or tuple(scales.shape) != (len(weight), embed_dim // group):
        return f"weight_scales is {scales.dtype}{list(scales.shape)}, not float16 or float32 [V, D/G]"
    if indices.dtype not in {torch.int32, torch.int64} or indices.dim() > _MAX_RANK:
        return f"indices are {indices.dtype}{list(indices.shape)}, not int32 or int64 of rank 0 to {_MAX_RANK}"
    return ""


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
        floats = {name: rows_of_values(whole, values[lookup.scale], None, name) for name in _FLOATS[:2]}
    else:
        step = spec.dequantize(lookup.table)
        table = whole = values[step.weight]
        zero = values[step.zero_point] if step.zero_point else None
        plain = step.output_dtype != "bfloat16" and values[step.scale].dtype != BFLOAT16
        floats = {
            name: dequantize_affine(table, step.block_size, values[step.scale], zero, name)
            for name in _FLOATS[:2]
            if plain
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
