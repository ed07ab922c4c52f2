"""Route "synthetic": the edge ExportedProgram of a spec, made node by node in milliseconds.

The graph is the one that torch.export and to_edge make of the same spec (tests compare them), except
for names. Shapes and dtypes of the nodes are worked out here, because running fake kernels costs
more than everything else together.

Source: docs/contract.md section 4.
"""

from dataclasses import dataclass
from typing import Any

import torch
from executorch.exir import EdgeCompileConfig
from executorch.exir.passes import _quant_patterns_and_replacements  # noqa: F401 - registers embedding_4bit
from executorch.exir.verification.verifier import EXIREdgeDialectVerifier
from torch.export.exported_program import ExportedProgram, ModuleCallEntry, ModuleCallSignature
from torch.export.graph_signature import ExportGraphSignature, OutputKind, OutputSpec, TensorArgument
from torch.utils import _pytree as pytree

from conformance.program.synthetic_graph import EDGE, GraphMaker
from conformance.program.tensors import Array, all_tensors, torch_dtype, user_inputs
from reference.program.spec import Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Step

_VERIFIER = EXIREdgeDialectVerifier(edge_compile_config=EdgeCompileConfig(_check_ir_validity=False), class_only=True)


@dataclass(frozen=True)
class Synthetic:
    """The program, and the graph's names for the spec's steps and tensors."""

    program: Any
    nodes: dict[str, str]
    placeholders: dict[str, tuple[str, ...]]


def synthetic_program(spec: ProgramSpec, values: dict[str, Array]) -> Synthetic:
    """Make the edge program of ``spec`` with the given tensor values.

    Raises:
        ValueError: the spec has a form that is made through export only; names the step.
    """
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
    return maker.clone(maker.steps[step.of] if step.of in maker.steps else maker.tensor(step.of))


def _dequantize(maker: GraphMaker, step: Dequantize) -> Any:
    weight = maker.chain(maker.tensor(step.weight), step.weight_ops, step)
    scale = maker.chain(maker.tensor(step.scale), step.scale_ops, step)
    zero_point = None
    if step.zero_point:
        zero_point = maker.chain(maker.tensor(step.zero_point), step.zero_point_ops, step)
    dtype = torch_dtype(step.output_dtype)
    given = torch_dtype(step.input_dtype)
    arguments: tuple[Any, ...] = (weight, list(step.block_size), scale, zero_point, given, step.qmin, step.qmax)
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


def _linear(maker: GraphMaker, step: Linear) -> Any:
    x, table = maker.tensor(step.x), maker.steps[step.table]
    value, (rows, columns) = x.meta["val"], table.meta["val"].shape
    if value.dim() != 2:  # noqa: PLR2004 - a matrix
        raise ValueError(f"step {step.name!r}: a linear of rank {value.dim()} is made on route 'export' only")
    transposed = maker.call(EDGE.aten.permute_copy.default, (table, [1, 0]), ((columns, rows), value.dtype))
    return maker.call(EDGE.aten.mm.default, (x, transposed), ((value.shape[0], rows), value.dtype))


def _finish(maker: GraphMaker) -> Synthetic:
    written = [t for t in maker.spec.tensors if t.source == "mutated"]
    mutations = [(maker.like(EDGE.aten.neg.default, maker.tensors[t.name]), maker.names[t.name]) for t in written]
    results = [maker.steps[name] for name in maker.spec.outputs()]
    outputs = tuple(node for node, _ in mutations) + tuple(results)
    maker.graph.output(outputs).meta["val"] = tuple(n.meta["val"] for n in outputs)
    output_specs = [
        OutputSpec(OutputKind.BUFFER_MUTATION, TensorArgument(name=node.name), name) for node, name in mutations
    ]
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
