"""Snapshots: everything of a program, or of its caller's module, that a rewriting could touch.

A snapshot is a flat mapping from a readable name to a value that compares by content; what differs
between two of them is named, and nothing is judged here.

Source: docs/contract.md 5.2, 5.6.
"""

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from conformance.program.build import BuiltProgram

Snapshot = Mapping[str, object]


def source_snapshot(built: BuiltProgram) -> Snapshot:
    """The source program with the identity of its tensors, the user inputs and the caller's module."""
    parts = {f"program.{k}": v for k, v in program_snapshot(built.program, identity=True).items()}
    for position, tensor in enumerate(built.inputs):
        parts[f"inputs[{position}]"] = tensor_content(tensor)
    if built.module is not None:
        for name, tensor in module_tensors(built.module):
            parts[f"module.{name}"] = _identified(tensor)
    if built.exported is not None:
        parts |= {f"exported.{k}": v for k, v in program_snapshot(built.exported, identity=True).items()}
    return parts


def program_snapshot(program: Any, *, identity: bool = False) -> Snapshot:
    """A program's graph, signature, constraints and constants.

    ``identity`` adds which objects the tensors are and which metadata the nodes carry: for a program
    that must not be touched at all, as opposed to one that must be equal to another.
    """
    parts: dict[str, object] = {
        "graph": graph_text(program.graph, metadata=identity),
        "signature": repr(program.graph_signature),
        "range_constraints": repr(program.range_constraints),
        "verifiers": tuple(id(v) for v in program.verifiers) if identity else len(program.verifiers),
        "module_call_graph": repr(program.module_call_graph),
    }
    if identity:
        parts["graph_module.meta"] = _metadata(program.graph_module.meta)
        parts["example_inputs"] = _content(program.example_inputs)
    for kind, tensors in (("state_dict", program.state_dict), ("constants", program.constants)):
        for name, tensor in tensors.items():
            if isinstance(tensor, torch.Tensor):
                parts[f"{kind}[{name}]"] = _identified(tensor) if identity else tensor_content(tensor)
            else:
                parts[f"{kind}[{name}]"] = repr(tensor)
    return parts


def differences(before: Snapshot, after: Snapshot) -> tuple[str, ...]:
    """Names that are in one snapshot only, or whose content differs, in order."""
    names = dict.fromkeys([*before, *after])
    missing = object()
    return tuple(n for n in names if before.get(n, missing) != after.get(n, missing))


def graph_text(graph: Any, *, metadata: bool = False) -> str:
    """Every node with its operator, arguments and the type of its value, one a line."""
    lines = []
    for node in graph.nodes:
        line = f"{node.name} = {node.op} {node.target} {node.args!r} {node.kwargs!r} -> {value_text(node)}"
        lines.append(f"{line} {_metadata(node.meta)}" if metadata else line)
    return "\n".join(lines)


def _metadata(meta: Any) -> list[tuple[str, object]]:
    """What a node or a graph module is annotated with: plain values by their text, everything else by identity."""
    plain = (str, int, float, type(None), dict)
    return sorted((str(key), repr(value) if isinstance(value, plain) else id(value)) for key, value in meta.items())


def _content(value: Any) -> object:
    """Nested tuples, lists and dictionaries with their tensors identified."""
    if isinstance(value, torch.Tensor):
        return _identified(value)
    if isinstance(value, tuple | list):
        return (type(value), *map(_content, value))
    return {key: _content(one) for key, one in value.items()} if isinstance(value, dict) else repr(value)


def value_text(node: Any) -> str:
    """Dtype and shape of a node's ``meta["val"]``."""
    return _value_text(node.meta.get("val"))


def _value_text(value: Any) -> str:
    if isinstance(value, torch.Tensor):
        sizes = (str(n) if isinstance(n, int) else getattr(n.node.expr, "name", None) or str(n) for n in value.shape)
        return f"{value.dtype}[{', '.join(sizes)}]"
    if isinstance(value, tuple | list):
        return f"({', '.join(_value_text(v) for v in value)})"
    return repr(value)


def tensor_content(tensor: Any) -> tuple[object, ...]:
    """What a tensor is: class, dtype, shape, strides, whether it takes gradients, and bytes."""
    if is_traceable_wrapper_subclass(tensor):
        names, _ = tensor.__tensor_flatten__()
        return (type(tensor), *((name, tensor_content(getattr(tensor, name))) for name in names))
    plain = tensor.detach()
    data = plain.contiguous().view(-1).view(torch.uint8).numpy().tobytes() if plain.numel() else b""
    return (
        type(tensor),
        tensor.dtype,
        tuple(tensor.shape),
        tensor.stride(),
        tensor.requires_grad,
        data,
    )


def _identified(tensor: Any) -> tuple[object, ...]:
    """A tensor's content, which object it is and where its memory lies."""
    address = 0 if is_traceable_wrapper_subclass(tensor) else tensor.data_ptr()
    return id(tensor), address, *tensor_content(tensor)


def module_tensors(module: Any) -> Iterator[tuple[str, Any]]:
    """Every parameter, buffer (persistent or not) and plain tensor attribute of a module and its children."""
    for prefix, child in module.named_modules(remove_duplicate=False):
        dot = f"{prefix}." if prefix else ""
        held = {**child._parameters, **child._buffers, **vars(child)}  # noqa: SLF001 - state_dict() leaves some out
        for name, value in held.items():
            if isinstance(value, torch.Tensor):
                yield dot + name, value
