"""Write a program anew with some nodes replaced, without touching the program it comes from.

The new graph is written from front to back: first the new constants, then the source's nodes one by
one, with something else in the place of each replaced node. Every node of the source keeps its name
and a replacement takes the name of what it replaces, so the signature and the call graph, which
refer to nodes by name, stay right by themselves. Constant tensors are shared with the source, which
is safe because a constant that a program writes to is never replaced; everything that can change is
the result's own.

Source: docs/contract.md 5.2.
"""

import copy
import dataclasses
import hashlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from executorch.backends.transforms.utils import create_constant_placeholder
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import ExportGraphSignature, InputKind, InputSpec

_HASH_DIGITS = 16


@dataclass(frozen=True)
class Replacement:
    """What stands in a node's place.

    Attributes:
        node: the source's node.
        reads: the source's nodes (as ``Writer.constant`` may also return) that the replacement reads.
        build: writes the replacement with ``Writer.emit`` and returns the node that has ``node.name``.
    """

    node: torch.fx.Node
    reads: tuple[torch.fx.Node, ...]
    build: Callable[["Writer"], torch.fx.Node]


class Writer:
    """The new program while it is being written: ``constant`` as often as needed, then ``finish``."""

    def __init__(self, program: ExportedProgram) -> None:
        """Start with a graph that holds nothing yet."""
        self.source = program
        self.graph = torch.fx.Graph()
        # The helper that creates constants edits a program's signature and dictionaries in place:
        # give it a shallow copy that owns those three.
        self._draft = copy.copy(program)
        self._draft._graph_signature = _own_signature(program.graph_signature)  # noqa: SLF001 - it has no setter
        self._draft._state_dict = dict(program.state_dict)  # noqa: SLF001 - it has no setter
        self._draft._constants = dict(program.constants)  # noqa: SLF001 - it has no setter
        self._taken = {node.name for node in program.graph.nodes} | {*program.state_dict, *program.constants}
        self._created: dict[str, torch.fx.Node] = {}
        self._written: dict[torch.fx.Node, torch.fx.Node] = {}
        # The helper reads the fake mode off the graph's first node.
        self._seed = self.graph.placeholder(self.free_name("seed"))
        self._seed.meta["val"] = _some_fake(program.graph)

    def free_name(self, wanted: str) -> str:
        """A name like ``wanted`` that no node, parameter, buffer or constant has."""
        name, number = wanted, 0
        while name in self._taken:
            number += 1
            name = f"{wanted}_{number}"
        self._taken.add(name)
        return name

    def constant(self, prefix: str, data: torch.Tensor) -> torch.fx.Node:
        """The placeholder of a constant: one of the new graph or, when it is there already, of the source.

        Its name is ``prefix`` and a hash of the content, so equal constants are one. ``data`` must be
        contiguous and own its whole storage: the serializer writes the storage, not the view.
        """
        name = f"{prefix}_{_content_hash(data)}"
        if name not in self._created:
            self._created[name] = self._same_in_source(name, data) or self._create(name, data)
        return self._created[name]

    def parameter(self, name: str, data: torch.Tensor) -> torch.fx.Node:
        """A new parameter of the new graph, named like ``name``; never shared, so that a pass may replace its data."""
        with self.graph.inserting_before(self._seed):
            return create_constant_placeholder(self._draft, self.graph, self.free_name(name), InputKind.PARAMETER, data)

    def emit(
        self, name: str, target: Any, args: tuple[Any, ...], kwargs: dict[str, Any], like: torch.fx.Node, val: Any
    ) -> torch.fx.Node:
        """Append a call in the place of the source's node ``like``; its operands are given as the source's nodes."""
        node = self.graph.create_node(
            "call_function", target, torch.fx.map_arg(args, self._at), torch.fx.map_arg(kwargs, self._at), name
        )
        node.name = name
        node.meta = {key: value for key, value in like.meta.items() if key != "tensor_meta"}
        node.meta["val"] = val
        return node

    def finish(self, replacements: Sequence[Replacement], support: Iterable[torch.fx.Node]) -> ExportedProgram:
        """Write every node and give the program out.

        Args:
            replacements: what stands in which node's place.
            support: nodes of the source that are left out when nothing reads them any more.

        Returns:
            A verified program.

        Raises:
            torch._export.verifier.SpecViolationError: the source's verifier rejects the result.
        """
        self.graph.erase_node(self._seed)
        replaced = {replacement.node: replacement for replacement in replacements}
        unused = _unused(self.source, replaced, set(support))
        for node in self.source.graph.nodes:
            if node in unused:
                continue
            if node in replaced:
                self._written[node] = replaced[node].build(self)
            else:
                self._written[node] = self.graph.node_copy(node, self._at)
                self._written[node].name = node.name  # fx renames what Python has a built-in for
        self._forget(unused)
        modules = _own_modules(self.source.graph_module)
        program = ExportedProgram(
            root={node.target: modules[node.target] for node in self.graph.nodes if node.op == "get_attr"},
            graph=self.graph,
            graph_signature=self._draft.graph_signature,
            state_dict=self._draft.state_dict,
            range_constraints=dict(self.source.range_constraints),
            module_call_graph=_own_call_graph(self.source.module_call_graph),
            example_inputs=self.source.example_inputs,
            constants=self._draft.constants,
            verifiers=self.source.verifiers,
        )
        program.graph_module.meta.update(self.source.graph_module.meta)
        return program

    def _at(self, node: torch.fx.Node) -> torch.fx.Node:
        """The new graph's node for the source's (a new constant is its own)."""
        return self._written.get(node, node)

    def _create(self, name: str, data: torch.Tensor) -> torch.fx.Node:
        with self.graph.inserting_before(self._seed):
            kind = InputKind.CONSTANT_TENSOR
            return create_constant_placeholder(self._draft, self.graph, self.free_name(name), kind, data)

    def _same_in_source(self, name: str, data: torch.Tensor) -> torch.fx.Node | None:
        """The source's placeholder of that name if it brings in a constant with the same content."""
        for spec in self.source.graph_signature.input_specs:
            if spec.kind == InputKind.CONSTANT_TENSOR and getattr(spec.arg, "name", None) == name:
                found = self.source.constants.get(spec.target)
                if type(found) is torch.Tensor and found.dtype == data.dtype and torch.equal(found, data):
                    return next(node for node in self.source.graph.nodes if node.name == name)
        return None

    def _forget(self, unused: set[torch.fx.Node]) -> None:
        """Take left-out placeholders off the signature, and what they alone brought in off the dictionaries."""
        names = {node.name for node in unused if node.op == "placeholder"}
        specs = self._draft.graph_signature.input_specs
        kept = [spec for spec in specs if getattr(spec.arg, "name", None) not in names]
        still_named = {spec.target for spec in kept}
        for spec in specs:
            if spec.target is not None and spec.target not in still_named:
                self._draft.state_dict.pop(spec.target, None)
                self._draft.constants.pop(spec.target, None)
        self._draft._graph_signature = ExportGraphSignature(kept, self._draft.graph_signature.output_specs)  # noqa: SLF001 - it has no setter


def _unused(
    program: ExportedProgram, replaced: dict[torch.fx.Node, Replacement], support: set[torch.fx.Node]
) -> set[torch.fx.Node]:
    """The supporting nodes that nothing reads once the replacements stand."""
    exported_names = {
        argument.name
        for entry in program.module_call_graph
        if entry.signature is not None
        for argument in (*entry.signature.inputs, *entry.signature.outputs)
    }
    read = {node for replacement in replaced.values() for node in replacement.reads}
    unused: set[torch.fx.Node] = set()
    for node in reversed(program.graph.nodes):
        can_go = node in support and node not in read and node not in replaced and node.name not in exported_names
        if can_go and all(user in replaced or user in unused for user in node.users):
            unused.add(node)
    return unused


def _own_signature(signature: ExportGraphSignature) -> ExportGraphSignature:
    """A signature whose lists and specs can be edited without the source noticing."""
    return ExportGraphSignature(
        [InputSpec(spec.kind, copy.copy(spec.arg), spec.target, spec.persistent) for spec in signature.input_specs],
        [type(spec)(spec.kind, copy.copy(spec.arg), spec.target) for spec in signature.output_specs],
    )


def _own_call_graph(entries: Sequence[Any]) -> list[Any]:
    """A call graph whose arguments can be renamed without the source noticing."""
    return [
        dataclasses.replace(
            entry,
            signature=entry.signature
            and dataclasses.replace(
                entry.signature,
                inputs=[copy.copy(argument) for argument in entry.signature.inputs],
                outputs=[copy.copy(argument) for argument in entry.signature.outputs],
            ),
        )
        for entry in entries
    ]


def _own_modules(module: torch.nn.Module) -> dict[str, Any]:
    """What a graph's get_attr nodes refer to; control-flow branches are copied, since passes edit them."""
    found: dict[str, Any] = {}
    for node in module.graph.nodes:
        if node.op != "get_attr" or node.target in found:
            continue
        value: Any = module
        for part in node.target.split("."):
            value = getattr(value, part)
        if isinstance(value, torch.fx.GraphModule):
            branch = torch.fx.GraphModule(_own_modules(value), copy.deepcopy(value.graph))
            branch.meta.update(value.meta)
            value = branch
        found[node.target] = value
    return found


def _content_hash(data: torch.Tensor) -> str:
    """Hex digits that stand for a tensor's dtype, shape and bytes."""
    digest = hashlib.sha256(f"{data.dtype} {tuple(data.shape)}".encode())
    if data.numel():
        digest.update(data.detach().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()[:_HASH_DIGITS]


def _some_fake(graph: torch.fx.Graph) -> torch.Tensor:
    """A tensor of the graph's fake mode."""
    for node in graph.nodes:
        if isinstance(node.meta.get("val"), FakeTensor):
            return node.meta["val"]
    return FakeTensorMode().from_tensor(torch.empty(0))
