"""Whole tables of a rewritten program: what every lookup of it could read, row by row (as ``tables`` does for a file).

Knows no file: a source tree under judgement need not have the serialization.

Source: docs/contract.md 5.3, 7.1.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch.export.graph_signature import InputKind

from conformance.observe.execute import FUSED, PACKED, fused_arguments
from conformance.program.lookups import op_name
from conformance.program.tensors import Array, to_numpy
from reference.arithmetic.bfloat16 import dtype_name
from reference.program.evaluate import packed_lookup
from reference.table.layouts import unpack_flat, unpack_linear_weight

_CONSTANTS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_FLOAT = "aten.embedding"
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
