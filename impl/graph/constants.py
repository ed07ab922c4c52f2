"""A program's constants: which node reads which one, its real values, and who writes to it.

Source: docs/contract.md 5.1 (decide from the real constants) and 5.3 (what counts as one).
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, InputSpec, OutputKind

from impl.graph.ops import identity_path, op_name, torch_op

_CONSTANT_KINDS = (InputKind.PARAMETER, InputKind.BUFFER, InputKind.CONSTANT_TENSOR)
_WRITES = (OutputKind.BUFFER_MUTATION, OutputKind.PARAMETER_MUTATION)


@dataclass(frozen=True)
class Constant:
    """A constant as one operand reads it.

    Attributes:
        name: its key in the state dict or the constants.
        data: its real values (never copied here).
        placeholder: the node that brings it into the graph.
        path: the nodes from the operand down to the placeholder, identities included.
        written: what writes to it, or "" when nothing does.
    """

    name: str
    data: torch.Tensor
    placeholder: torch.fx.Node
    path: tuple[torch.fx.Node, ...]
    written: str


@dataclass(frozen=True)
class NotConstant:
    """Why an operand is not a constant: a clause for a sentence."""

    why: str


@dataclass
class Constants:
    """Resolves operands of one program; build it with ``read_constants``."""

    specs: dict[str, InputSpec]
    tensors: dict[str, Any]
    written_names: dict[str, str]
    written_storage: dict[int, str]

    def resolve(self, operand: Any) -> Constant | NotConstant:
        """Follow an operand through identities to the constant it reads."""
        if not isinstance(operand, torch.fx.Node):
            return NotConstant(f"{operand!r} is not a tensor of the program")
        path = identity_path(operand)
        base = path[-1]
        spec = self.specs.get(base.name) if base.op == "placeholder" else None
        if spec is None:
            return NotConstant(f"{base.name} ({op_name(base)}) is computed by the program or unknown to its signature")
        if spec.kind not in _CONSTANT_KINDS:
            return NotConstant(f"{base.name} is an input of the program ({spec.kind.name})")
        data: Any = self.tensors.get(spec.target)
        why = _unreadable(data)
        if why:
            return NotConstant(f"{base.name} (constant {spec.target!r}) {why}")
        written = self.written_names.get(spec.target) or self.written_storage.get(_storage(data), "")
        return Constant(spec.target, data, base, tuple(path), written)


def read_constants(program: ExportedProgram) -> Constants:
    """Collect what a program holds constant and what it writes to. Costs one walk of the graph."""
    tensors = {**program.constants, **program.state_dict}
    names: dict[str, str] = {}
    for spec in program.graph_signature.output_specs:
        if spec.kind in _WRITES and spec.target is not None:
            names[spec.target] = f"output {spec.arg.name} is written back to it ({spec.kind.name})"
    specs = {spec.arg.name: spec for spec in program.graph_signature.input_specs if hasattr(spec.arg, "name")}
    for node, by in _written_in_graph(program.graph).items():
        if node.op == "placeholder" and node.name in specs and specs[node.name].target is not None:
            names.setdefault(specs[node.name].target, by)
    storage: dict[int, str] = {}
    for name, by in names.items():
        data: Any = tensors.get(name)
        if not _unreadable(data) and (address := _storage(data)):
            storage[address] = f"{by}, through {name!r}, which shares its memory"
    return Constants(specs, tensors, names, storage)


def _storage(data: torch.Tensor) -> int:
    """The address of a tensor's memory, or 0 when it has none."""
    storage = data.untyped_storage()
    return storage.data_ptr() if storage.nbytes() else 0


def _unreadable(data: Any) -> str:
    """Why the values of a constant cannot be read here, or ""."""
    if not isinstance(data, torch.Tensor):
        return "is not in the program's state dict or constants"
    if type(data) not in {torch.Tensor, torch.nn.Parameter}:
        return f"holds a {type(data).__name__}, whose values cannot be read"
    if data.layout != torch.strided or data.device.type != "cpu" or data.is_quantized:
        return f"has layout {data.layout} on device {data.device}, values are read from plain CPU tensors only"
    return ""


def _written_in_graph(graph: torch.fx.Graph) -> dict[torch.fx.Node, str]:
    """Every node that an operator of the graph itself writes to, and what it may be a view of."""
    written: dict[torch.fx.Node, str] = {}
    for node in graph.nodes:
        operation = torch_op(node)
        schema = getattr(operation, "_schema", None)
        if schema is None or not schema.is_mutable:
            continue
        for position, argument in enumerate(schema.arguments):
            if argument.alias_info is None or not argument.alias_info.is_write:
                continue
            value = node.args[position] if position < len(node.args) else node.kwargs.get(argument.name)
            while isinstance(value, torch.fx.Node) and value not in written:
                written[value] = f"node {node.name} ({op_name(node)}) writes to it"
                value = value.all_input_nodes[0] if value.all_input_nodes else None
    return written
