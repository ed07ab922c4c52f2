"""Route "synthetic": the edge ExportedProgram of a spec, made node by node in milliseconds.

The graph is the one that torch.export and to_edge make of the same spec (tests compare them), except
for names. Shapes and dtypes of the nodes are worked out here, because running fake kernels costs
more than everything else together.

Source: docs/contract.md section 4.
"""

import contextlib
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig
from executorch.exir.dialects._ops import ops
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401 - registers embedding_4bit
from executorch.exir.verification.verifier import EXIREdgeDialectVerifier
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.export.exported_program import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)
from torch.fx.experimental.symbolic_shapes import DimDynamic, ShapeEnv
from torch.utils import _pytree as pytree

from conformance.program.tensors import Array, all_tensors, identifiers, to_torch, torch_dtype, user_inputs
from reference.program.spec import Apply, Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Step, TensorSpec

EDGE = ops.edge
_VERIFIER = EXIREdgeDialectVerifier(edge_compile_config=EdgeCompileConfig(_check_ir_validity=False), class_only=True)
#: Source -> signature kind, name prefix, and the order in which torch.export puts the placeholders.
_CONSTANTS = {
    "parameter": (InputKind.PARAMETER, "p", 0),
    "buffer": (InputKind.BUFFER, "b", 1),
    "mutated": (InputKind.BUFFER, "b", 1),
    "non_persistent": (InputKind.BUFFER, "b", 1),
    "lifted": (InputKind.CONSTANT_TENSOR, "c", 2),
}


@dataclass
class GraphMaker:
    """A graph that is being made, with everything else that its ExportedProgram needs."""

    spec: ProgramSpec
    values: dict[str, Array]
    graph: Any = field(default_factory=torch.fx.Graph)
    shape_env: Any = None
    fake: Any = None
    steps: dict[str, Any] = field(default_factory=dict)
    tensors: dict[str, Any] = field(default_factory=dict)
    computed: dict[str, Any] = field(default_factory=dict)
    input_specs: list[Any] = field(default_factory=list)
    state_dict: dict[str, Any] = field(default_factory=dict)
    constants: dict[str, Any] = field(default_factory=dict)
    first_input: Any = None

    def __post_init__(self) -> None:
        self.names = identifiers(self.spec)
        self.shape_env = ShapeEnv(specialize_zero_one=False, duck_shape=False)
        self.fake = FakeTensorMode(shape_env=self.shape_env)

    # Placeholders.

    def placeholders(self) -> None:
        """Constants that the steps read, in torch.export's order, then the user inputs."""
        operands = ("weight", "scale", "zero_point", "indices", "x", "of", "other", "bias")
        read = {getattr(step, field, "") for step in self.spec.steps for field in operands}
        held = [t for t in all_tensors(self.spec) if t.source in _CONSTANTS]
        held = [t for t in held if t.name in read or t.source == "mutated"]
        for tensor in sorted(held, key=lambda t: _CONSTANTS[t.source][2]):
            self.constant(tensor)
        for tensor in user_inputs(self.spec):
            node = self.placeholder(self.names[tensor.name], self.fake_tensor(tensor))
            self.first_input = self.first_input or node
            self.input_specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument(name=node.name), None))
            self.tensors[tensor.name] = node

    def constant(self, tensor: TensorSpec) -> None:
        """Bring in a constant, stored where torch.export stores its kind."""
        kind, prefix, _ = _CONSTANTS[tensor.source]
        name = self.names[tensor.name]
        data = to_torch(self.values[tensor.name])
        if tensor.source == "parameter":
            data = torch.nn.Parameter(data, requires_grad=False)
        node = self.placeholder(f"{prefix}_{name}", self.fake_tensor(tensor))
        persistent = tensor.source != "non_persistent" if kind == InputKind.BUFFER else None
        self.input_specs.append(InputSpec(kind, TensorArgument(name=node.name), name, persistent))
        kept = tensor.source in {"parameter", "buffer", "mutated"}
        (self.state_dict if kept else self.constants)[name] = data
        self.tensors[tensor.name] = node

    def placeholder(self, name: str, value: Any) -> Any:
        """Append a placeholder with that fake value."""
        node = self.graph.placeholder(name)
        node.meta["val"] = value
        return node

    def fake_tensor(self, tensor: TensorSpec) -> Any:
        """A fake tensor of the tensor's dtype and shape, dynamic dimensions symbolic."""
        if not tensor.dynamic:
            return self.empty(tensor.shape, torch_dtype(tensor.dtype))
        shape = [self.symbol(tensor, d, n) if d in tensor.dynamic else n for d, n in enumerate(tensor.shape)]
        return self.empty(shape, torch_dtype(tensor.dtype))

    def symbol(self, tensor: TensorSpec, dimension: int, size: int) -> Any:
        """A symbolic size. Its example is at least 2, because 0 and 1 are taken for special."""
        source = ConstantSource(f"{self.names[tensor.name]}_{dimension}")
        symbol = self.shape_env.create_symbol(max(size, 3), source, dynamic_dim=DimDynamic.DYNAMIC)
        return self.shape_env.create_symintnode(symbol, hint=max(size, 3), source=source)

    def empty(self, shape: Any, dtype: Any) -> Any:
        """A fake tensor, made directly: ten times faster than torch.empty under the fake mode."""
        return FakeTensor(self.fake, torch.empty(tuple(shape), dtype=dtype, device="meta"), torch.device("cpu"))

    # Operators.

    def call(
        self, target: Any, arguments: tuple[Any, ...], value: tuple[Any, Any], keywords: dict[str, Any] | None = None
    ) -> Any:
        """A node of that operator; ``value`` is the (shape, dtype) that it yields."""
        node = self.graph.call_function(target, arguments, keywords or {})
        node.meta["val"] = self.empty(*value)
        return node

    def like(self, target: Any, source: Any, *rest: Any, **keywords: Any) -> Any:
        """A node of its operand's shape and dtype."""
        value = source.meta["val"]
        return self.call(target, (source, *rest), (value.shape, value.dtype), keywords)

    def clone(self, source: Any) -> Any:
        """What to_edge makes of torch.clone."""
        order = list(range(source.meta["val"].dim()))
        return self.like(EDGE.dim_order_ops._clone_dim_order.default, source, dim_order=order)  # noqa: SLF001 - its name

    def add_zero(self, source: Any) -> Any:
        """What to_edge makes of ``x + 0``."""
        return self.like(EDGE.aten.add.Tensor, source, self.number(0, source))

    def number(self, number: float, source: Any) -> Any:
        """What to_edge makes of a number beside a tensor: a constant, cast to the tensor's dtype."""
        name = f"_lifted_tensor_constant{len(self.state_dict)}"
        while name in self.state_dict:
            name += "_"
        dtype = source.meta["val"].dtype
        held = torch.tensor(number)
        self.state_dict[name] = held
        before = self.first_input or next((n for n in self.graph.nodes if n.op != "placeholder"), None)
        with self.graph.inserting_before(before) if before else contextlib.nullcontext():
            node = self.placeholder(name, self.empty((), held.dtype))
        spec = InputSpec(InputKind.BUFFER, TensorArgument(name=node.name), name, persistent=True)
        self.input_specs.insert(len(self.input_specs) - len(user_inputs(self.spec)), spec)
        if dtype != held.dtype:
            cast = EDGE.dim_order_ops._to_dim_order_copy.default  # noqa: SLF001 - its name
            node = self.call(cast, (node,), ((), dtype), {"dtype": dtype, "dim_order": []})
        return node

    def chain(self, node: Any, chain: tuple[str, ...], step: Step) -> Any:
        """Apply a chain of value-preserving ops, as to_edge writes them."""
        for op in chain:
            value = node.meta["val"]
            if op == "clone":
                node = self.clone(node)
            elif op == "view":
                if any(not isinstance(n, int) for n in value.shape):
                    raise ValueError(f"step {step.name!r}: a view of a dynamic tensor is made on route 'export' only")
                node = self.like(EDGE.aten.view_copy.default, node, list(value.shape))
            elif op == "add_zero":
                node = self.add_zero(node)
            else:
                order = list(reversed(range(value.dim())))
                for _ in range(2):
                    shape = tuple(reversed(node.meta["val"].shape))
                    node = self.call(EDGE.aten.permute_copy.default, (node, order), (shape, value.dtype))
        return node

    def tensor(self, name: str) -> Any:
        """The node of a step or of one of the spec's tensors; a computed one is computed at its first use."""
        if name in self.steps:
            return self.steps[name]
        if self.spec.tensor(name).source != "computed":
            return self.tensors[name]
        if name not in self.computed:
            self.computed[name] = self.add_zero(self.tensors[name])
        return self.computed[name]


@dataclass(frozen=True)
class Synthetic:
    """The program, and the graph's names for the spec's steps and tensors."""

    program: Any
    nodes: dict[str, str]
    placeholders: dict[str, tuple[str, ...]]


def synthetic_program(spec: ProgramSpec, values: dict[str, Array]) -> Synthetic:
    """Make the edge program of ``spec`` with the given tensor values."""
    maker = GraphMaker(spec, values)
    maker.placeholders()
    for step in spec.steps:
        maker.steps[step.name] = _step(maker, step)
    return _finish(maker)


def _step(maker: GraphMaker, step: Step) -> Any:
    if isinstance(step, Dequantize):
        return _dequantize(maker, step)
    if isinstance(step, Lookup):
        return _lookup(maker, step)
    if isinstance(step, PackedLookup):
        return _packed_lookup(maker, step)
    if isinstance(step, Linear):
        return _linear(maker, step)
    if isinstance(step, Apply):
        return _apply(maker, step)
    return maker.clone(maker.tensor(step.of))


def _dequantize(maker: GraphMaker, step: Dequantize) -> Any:
    weight = maker.chain(maker.tensor(step.weight), step.weight_ops, step)
    scale = maker.chain(maker.tensor(step.scale), step.scale_ops, step)
    zero_point = None
    if step.zero_point:
        zero_point = maker.chain(maker.tensor(step.zero_point), step.zero_point_ops, step)
    dtype = torch_dtype(step.output_dtype)
    input_dtype = torch_dtype(step.input_dtype)
    arguments: tuple[Any, ...] = (weight, list(step.block_size), scale, zero_point, input_dtype, step.qmin, step.qmax)
    arguments = arguments if dtype == torch.float32 else (*arguments, dtype)
    return maker.call(EDGE.torchao.dequantize_affine.default, arguments, (weight.meta["val"].shape, dtype))


def _lookup(maker: GraphMaker, step: Lookup) -> Any:
    table = maker.chain(maker.steps[step.table], step.table_ops, step)
    indices = maker.tensor(step.indices)
    if step.max_norm:
        alias = maker.like(EDGE.aten.alias_copy.default, table)
        table = maker.like(EDGE.aten.embedding_renorm.default, alias, indices, step.max_norm, 2.0)
    arguments = [table, indices, step.padding_idx, step.scale_grad_by_freq, step.sparse]
    for default in (False, False, -1):  # torch.export leaves trailing defaults out
        if arguments[-1] == default:
            arguments.pop()
        else:
            break
    value = table.meta["val"]
    shape = (*indices.meta["val"].shape, value.shape[1])
    return maker.call(EDGE.aten.embedding.default, tuple(arguments), (shape, value.dtype))


def _packed_lookup(maker: GraphMaker, step: PackedLookup) -> Any:
    weight = maker.chain(maker.tensor(step.weight), step.weight_ops, step)
    scale = maker.chain(maker.tensor(step.scale), step.scale_ops, step)
    zero_point = maker.tensor(step.zero_point) if step.zero_point else None
    indices = maker.tensor(step.indices)
    dtype = torch_dtype(step.output_dtype)
    arguments = (weight, scale, zero_point, step.qmin, step.qmax, indices)
    shape = (*indices.meta["val"].shape, 2 * weight.meta["val"].shape[1])
    target = EDGE.quantized_decomposed.embedding_4bit.dtype
    return maker.call(target, arguments, (shape, dtype), {"dtype": dtype})


def _linear(maker: GraphMaker, step: Linear | Apply) -> Any:
    x, table = (maker.tensor(n) for n in ((step.x, step.table) if isinstance(step, Linear) else (step.of, step.other)))
    value, (rows, columns) = x.meta["val"], table.meta["val"].shape
    if value.dim() != 2:  # noqa: PLR2004 - a matrix
        raise ValueError(f"step {step.name!r}: a linear of rank {value.dim()} is made on route 'export' only")
    transposed = maker.call(EDGE.aten.permute_copy.default, (table, [1, 0]), ((columns, rows), value.dtype))
    shape = ((value.shape[0], rows), value.dtype)
    if step.bias:
        return maker.call(EDGE.aten.addmm.default, (maker.tensor(step.bias), x, transposed), shape)
    return maker.call(EDGE.aten.mm.default, (x, transposed), shape)


def _apply(maker: GraphMaker, step: Apply) -> Any:
    if step.function == "linear":
        return _linear(maker, step)
    of = maker.tensor(step.of)
    other = maker.tensor(step.other) if step.other else maker.number(step.number, of)
    if step.function != "norm":
        return maker.like(EDGE.aten.mul.Tensor if step.function == "mul" else EDGE.aten.add.Tensor, of, other)
    value, bias = of.meta["val"], maker.tensor(step.bias) if step.bias else None
    norm = maker.like(EDGE.aten.native_layer_norm.default, of, list(other.meta["val"].shape), other, bias, 1e-05)
    moments = maker.empty((*value.shape[:-1], 1), value.dtype)
    norm.meta["val"] = (norm.meta["val"], moments, moments)
    return maker.call(operator.getitem, (norm, 0), (value.shape, value.dtype))


def _finish(maker: GraphMaker) -> Synthetic:
    kinds = {"mutated": OutputKind.BUFFER_MUTATION, "mutated_input": OutputKind.USER_INPUT_MUTATION}
    mutations = [
        (maker.like(EDGE.aten.neg.default, maker.tensors[t.name]), kind, maker.names[t.name])
        for source, kind in kinds.items()
        for t in maker.spec.tensors
        if t.source == source
    ]
    results = [maker.steps[name] for name in maker.spec.outputs()]
    outputs = tuple(node for node, _, _ in mutations) + tuple(results)
    maker.graph.output(outputs).meta["val"] = tuple(n.meta["val"] for n in outputs)
    output_specs = [OutputSpec(kind, TensorArgument(name=node.name), name) for node, kind, name in mutations]
    output_specs += [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(name=node.name), None) for node in results]
    count = len(user_inputs(maker.spec))
    call = ModuleCallSignature(
        inputs=[],
        outputs=[],
        in_spec=pytree.tree_flatten((tuple(range(count)), {}))[1],
        out_spec=pytree.tree_flatten(tuple(range(len(results))))[1],
    )
    program = ExportedProgram(
        root=torch.nn.Module(),
        graph=maker.graph,
        graph_signature=ExportGraphSignature(maker.input_specs, output_specs),
        state_dict=maker.state_dict,
        range_constraints=dict(maker.shape_env.var_to_range),
        module_call_graph=[ModuleCallEntry("", call)],
        constants=maker.constants,
        verifiers=[_VERIFIER],
    )
    placeholders: dict[str, tuple[str, ...]] = {t.name: () for t in all_tensors(maker.spec)}
    placeholders |= {name: (node.name,) for name, node in maker.tensors.items()}
    return Synthetic(program, {name: node.name for name, node in maker.steps.items()}, placeholders)
