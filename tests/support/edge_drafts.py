"""Write edge-dialect programs node by node, for tests that need a graph which export would not make.

Knows nothing of ProgramSpec: the matcher is judged here on graphs that no spec describes.
"""

from typing import Any

import executorch.backends.vulkan.custom_ops_lib
import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401 - registers embedding_4bit
import torch
from executorch.exir import EdgeCompileConfig
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.verification.verifier import EXIREdgeDialectVerifier
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.exported_program import ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ConstantArgument,
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.utils import _pytree as pytree

EDGE = exir_ops.edge
DEQUANTIZE = EDGE.torchao.dequantize_affine.default
EMBEDDING = EDGE.aten.embedding.default
EMBEDDING_4BIT = EDGE.quantized_decomposed.embedding_4bit.dtype
CLONE = EDGE.dim_order_ops._clone_dim_order.default
Q4GSW = EDGE.et_vk.embedding_q4gsw.default
KINDS = {
    "parameter": (InputKind.PARAMETER, None),
    "buffer": (InputKind.BUFFER, True),
    "non_persistent": (InputKind.BUFFER, False),
    "lifted": (InputKind.CONSTANT_TENSOR, None),
    "input": (InputKind.USER_INPUT, None),
}


class Draft:
    """A program under construction: ``tensor`` for each placeholder, ``call`` for each node, then ``program``."""

    def __init__(self) -> None:
        self.graph = torch.fx.Graph()
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.inputs: list[InputSpec] = []
        self.state: dict[str, Any] = {}
        self.constants: dict[str, Any] = {}
        self.examples: list[Any] = []
        self.writes: list[tuple[torch.fx.Node, str]] = []

    def tensor(self, name: str, data: torch.Tensor, source: str = "buffer", target: str = "") -> torch.fx.Node:
        node = self.graph.placeholder(name)
        node.name = name
        node.meta["val"] = self.mode.from_tensor(data.detach())
        kind, persistent = KINDS[source]
        target = target or f"module.{name}"
        if source == "input":
            self.inputs.append(InputSpec(kind, TensorArgument(name), None))
            self.examples.append(data)
            return node
        self.inputs.append(InputSpec(kind, TensorArgument(name), target, persistent))
        if source == "parameter":
            data = torch.nn.Parameter(data, requires_grad=False)
        (self.state if source in {"parameter", "buffer"} else self.constants)[target] = data
        return node

    def number(self, name: str, value: int) -> None:
        """An input that is no tensor."""
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        self.inputs.append(InputSpec(InputKind.USER_INPUT, ConstantArgument(name, value), None))
        self.examples.append(value)

    def call(self, target: Any, *args: Any, **kwargs: Any) -> torch.fx.Node:
        node = self.graph.call_function(target, args, kwargs)
        fake_args, fake_kwargs = torch.fx.map_arg((args, kwargs), lambda n: n.meta["val"])
        with self.mode:
            node.meta["val"] = getattr(target, "_op", target)(*fake_args, **fake_kwargs)
        return node

    def writes_back(self, value: torch.fx.Node, target: str) -> None:
        self.writes.append((value, target))

    def program(self, *outputs: torch.fx.Node, valid: bool = True) -> ExportedProgram:
        """The program; ``valid`` turns the edge verifier's own checks on."""
        self.graph.output((*[value for value, _ in self.writes], *outputs))
        specs = [OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(v.name), t) for v, t in self.writes]
        specs += [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(v.name), None) for v in outputs]
        config = EdgeCompileConfig(_check_ir_validity=valid)
        module_call_graph = call_graph(len(self.examples), len(outputs))
        return ExportedProgram(
            root=torch.nn.Module(),
            graph=self.graph,
            graph_signature=ExportGraphSignature(self.inputs, specs),
            state_dict=self.state,
            range_constraints={},
            module_call_graph=module_call_graph,
            example_inputs=(tuple(self.examples), {}),
            constants=self.constants,
            verifiers=[EXIREdgeDialectVerifier(edge_compile_config=config, class_only=True)],
        )


def call_graph(inputs: int, outputs: int) -> list[Any]:
    """The entry that ``ExportedProgram.module()`` needs: how to flatten inputs and unflatten outputs."""
    in_spec = pytree.tree_flatten((tuple(range(inputs)), {}))[1]
    out_spec = pytree.tree_flatten(tuple(range(outputs)))[1]
    return [ModuleCallEntry("", ModuleCallSignature([], [], in_spec, out_spec))]
