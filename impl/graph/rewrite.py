"""Edit a copy of a program, without touching the program it comes from.

The copy's graph is its own; every node keeps its name and a replacement takes the name of what it replaces,
so the signature and the call graph, which refer to nodes by name, stay right by themselves. Constant tensors
are shared with the source, which is safe because a constant that a program writes to is never replaced;
everything that can change is the copy's own.

Source: docs/contract.md 5.2.
"""

import copy
import dataclasses
import hashlib
import operator
from collections.abc import Iterable, Mapping
from types import MappingProxyType
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec, TensorArgument

_HASH_DIGITS = 16


class Editor:
    """A copy of a program while it is edited: constants, insertions and replacements, then ``finish``.

    Every node that a method takes is one of the source or one that the editor returned.
    """

    def __init__(self, program: ExportedProgram) -> None:
        self.source = program
        self._graph = torch.fx.Graph()
        self._nodes: dict[str, torch.fx.Node] = {}  # what stands for a node of that name
        for node in program.graph.nodes:
            self._nodes[node.name] = copied = self._graph.node_copy(node, self._at)
            copied.name = node.name  # fx renames what Python has a built-in for
        self._replaced: set[torch.fx.Node] = set()
        self._front = next(iter(self._graph.nodes))  # new placeholders stand before all others
        self._new_specs: list[InputSpec] = []
        self._shared: dict[str, torch.fx.Node] = {}
        self._state, self._constants = dict(program.state_dict), dict(program.constants)
        values = (node.meta.get("val") for node in program.graph.nodes)
        self._mode = next((val.fake_mode for val in values if isinstance(val, FakeTensor)), None) or FakeTensorMode()

    def free_name(self, name: str) -> str:
        """A name like ``name`` that no node, parameter, buffer or constant has."""
        free, number = name, 0
        while free in self._nodes or free in self._state or free in self._constants:
            number += 1
            free = f"{name}_{number}"
        return free

    def constant(self, prefix: str, data: torch.Tensor) -> torch.fx.Node:
        """The placeholder of a constant; equal constants are one, also with one that the source has already.

        Its name is ``prefix`` and a hash of the content. ``data`` must be contiguous and own its whole
        storage: the serializer writes the storage, not the view.
        """
        name = f"{prefix}_{_content_hash(data)}"
        if name not in self._shared:
            if self._source_has(name, data):
                self._shared[name] = self._nodes[name]
            else:
                free = self.free_name(name)
                self._constants[free] = data
                self._shared[name] = self._placeholder(free, InputKind.CONSTANT_TENSOR, data)
        return self._shared[name]

    def parameter(self, name: str, data: torch.Tensor) -> torch.fx.Node:
        """A new parameter, named like ``name``; never shared, so that a pass may replace its data."""
        name = self.free_name(name)
        self._state[name] = torch.nn.Parameter(data, requires_grad=False)
        return self._placeholder(name, InputKind.PARAMETER, data)

    def insert(
        self,
        before: torch.fx.Node,
        name: str,
        target: Any,
        args: tuple[Any, ...],
        val: Any,
        *,
        kwargs: Mapping[str, Any] = MappingProxyType({}),
        like: torch.fx.Node | None = None,
    ) -> torch.fx.Node:
        """Insert a call before a node, named like ``name``, with the metadata of ``like`` (default: ``before``)."""
        with self._graph.inserting_before(self._at(before)):
            node = self._graph.call_function(target, *torch.fx.map_arg((args, dict(kwargs)), self._at))
        node.meta = {key: value for key, value in (like or before).meta.items() if key != "tensor_meta"}
        node.meta["val"] = val
        return self._register(node, self.free_name(name))

    def replace(self, node: torch.fx.Node, new: torch.fx.Node) -> None:
        """Let every reader of the source's ``node`` read ``new``, which takes its name unless it is a placeholder."""
        old = self._at(node)
        old.replace_all_uses_with(new)
        self._graph.erase_node(old)
        self._replaced.add(node)
        self._nodes[node.name] = new
        if new.op != "placeholder":
            del self._nodes[new.name]
            new.name = node.name

    def finish(self, support: Iterable[torch.fx.Node]) -> ExportedProgram:
        """The edited program, verified; nodes of ``support`` that nothing reads any more are left out."""
        exported = {
            argument.name
            for entry in self.source.module_call_graph
            if entry.signature is not None
            for argument in (*entry.signature.inputs, *entry.signature.outputs)
        }
        optional = set(support) - self._replaced
        for node in reversed(self.source.graph.nodes):
            if node in optional and node.name not in exported and not self._at(node).users:
                self._graph.erase_node(self._nodes.pop(node.name))
        program = ExportedProgram(
            root=_own_modules(self.source.graph_module),
            graph=self._graph,
            graph_signature=self._signature(),
            state_dict=self._state,
            range_constraints=dict(self.source.range_constraints),
            module_call_graph=copy.deepcopy(self.source.module_call_graph),
            example_inputs=self.source.example_inputs,
            constants=self._constants,
            verifiers=self.source.verifiers,
        )
        program.graph_module.meta.update(self.source.graph_module.meta)
        return program

    def _at(self, node: torch.fx.Node) -> torch.fx.Node:
        return self._nodes[node.name]

    def _source_has(self, name: str, data: torch.Tensor) -> bool:
        """Whether the source's placeholder of that name brings in a constant with the same content."""
        for spec in self.source.graph_signature.input_specs:
            if spec.kind == InputKind.CONSTANT_TENSOR and spec.arg.name == name:
                existing = self.source.constants.get(spec.target)
                return type(existing) is torch.Tensor and existing.dtype == data.dtype and torch.equal(existing, data)
        return False

    def _register(self, node: torch.fx.Node, name: str) -> torch.fx.Node:
        node.name = name
        self._nodes[name] = node
        return node

    def _placeholder(self, name: str, kind: InputKind, data: torch.Tensor) -> torch.fx.Node:
        with self._graph.inserting_before(self._front):
            node = self._graph.placeholder(name)
        node.meta["val"] = self._mode.from_tensor(data, static_shapes=True)
        self._new_specs.append(InputSpec(kind, TensorArgument(name), name))
        return self._register(node, name)

    def _signature(self) -> ExportGraphSignature:
        """Specs of the copy's own; what only placeholders that are left out bring in leaves the dictionaries."""
        source = self.source.graph_signature
        specs = [spec for spec in source.input_specs if spec.arg.name in self._nodes]
        for target in {spec.target for spec in source.input_specs} - {spec.target for spec in specs}:
            self._state.pop(target, None)
            self._constants.pop(target, None)
        return ExportGraphSignature([*self._new_specs, *map(_own, specs)], [_own(spec) for spec in source.output_specs])


def _own(spec: Any) -> Any:
    """A spec that can be edited without the source noticing."""
    return dataclasses.replace(spec, arg=copy.copy(spec.arg))


def _own_modules(module: torch.fx.GraphModule) -> dict[str, Any]:
    """What a graph's get_attr nodes refer to; control-flow branches are copied, since passes edit them."""
    modules: dict[str, Any] = {}
    for target in dict.fromkeys(node.target for node in module.graph.find_nodes(op="get_attr")):
        value = operator.attrgetter(target)(module)
        if isinstance(value, torch.fx.GraphModule):
            branch = torch.fx.GraphModule(_own_modules(value), copy.deepcopy(value.graph))
            branch.meta.update(value.meta)
            value = branch
        modules[target] = value
    return modules


def _content_hash(data: torch.Tensor) -> str:
    """Hex digits that stand for a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:_HASH_DIGITS]
