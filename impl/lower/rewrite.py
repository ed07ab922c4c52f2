"""Carry out a lowering plan: write the fused program anew in a form that every runtime of the wheel has kernels for.

Source: docs/contract.md 6.1, 6.2.
"""

from functools import partial

import torch
from executorch.exir.dialects._ops import ops as exir_ops
from torch.export import ExportedProgram

from impl.graph.ops import arguments
from impl.graph.rewrite import Replacement, Writer
from impl.lower.types import CarriedLookup, FoldedTable, KeptProduct, LoweringPlan, RuntimeLookup

EDGE_DEQUANTIZE = exir_ops.edge.torchao.dequantize_affine.default
EDGE_BYTE = exir_ops.edge.quantized_decomposed.embedding_byte.dtype
EDGE_EMBEDDING = exir_ops.edge.aten.embedding.default
_CAST = exir_ops.edge.dim_order_ops._to_dim_order_copy.default  # noqa: SLF001 - an operator's public name
_CLONE = exir_ops.edge.dim_order_ops._clone_dim_order.default  # noqa: SLF001 - an operator's public name


def rewrite_for_runtimes(program: ExportedProgram, plan: LoweringPlan) -> tuple[ExportedProgram, dict[str, str]]:
    """The program with every planned change, and the kept products: name of their dequantize -> name of the product."""
    writer = Writer(program)
    replacements = [
        *(_lookup(writer, lookup) for lookup in plan.lookups),
        *(_folded(writer, folded) for folded in plan.folded),
    ]
    products: dict[str, str] = {}
    by_node: dict[torch.fx.Node, KeptProduct] = {product.node: product for product in plan.products}
    for product in by_node.values():
        name = writer.free_name(f"{product.node.name}_table")
        products[name] = product.node.name
        replacements.append(_product(writer, product, name))
    written = writer.finish(replacements, plan.support)
    initialised = {placeholder.name for placeholder in plan.initialised}
    for node in written.graph.nodes:
        if node.op == "placeholder" and node.name in initialised:
            node.meta["et_init_buffer"] = True  # how ExecuTorch is told to store what a mutable buffer starts with
    return written, products


def _lookup(writer: Writer, lookup: CarriedLookup | RuntimeLookup) -> Replacement:
    if isinstance(lookup, RuntimeLookup):
        operands = (lookup.weight, lookup.scales, lookup.zero_point)
    elif lookup.form is not None:
        operands = (
            writer.constant("byte_weight", _owned(lookup.form.weight)),
            writer.constant("byte_scales", _owned(lookup.form.scales)),
            None if lookup.form.zero_point is None else writer.constant("byte_zeros", _owned(lookup.form.zero_point)),
        )
    else:
        assert lookup.values is not None  # noqa: S101 - a plan holds one or the other
        table = writer.constant("dequantized", _owned(lookup.values))
        build = partial(_emit_plain, lookup=lookup, table=table)
        return Replacement(lookup.node, (table, lookup.indices), build)
    reads = (*(operand for operand in operands if operand is not None), lookup.indices)
    return Replacement(lookup.node, reads, partial(_emit_byte, lookup=lookup, operands=operands))


def _emit_plain(writer: Writer, lookup: CarriedLookup, table: torch.fx.Node) -> torch.fx.Node:
    node = lookup.node
    return writer.emit(node.name, EDGE_EMBEDDING, (table, lookup.indices), {}, node, node.meta["val"])


def _emit_byte(
    writer: Writer,
    lookup: CarriedLookup | RuntimeLookup,
    operands: tuple[torch.fx.Node, torch.fx.Node, torch.fx.Node | None],
) -> torch.fx.Node:
    """embedding_byte, with the casts that its kernel needs: int64 indices, zero points in the output's dtype."""
    node, (weight, scales, zero_point), indices = lookup.node, operands, lookup.indices
    if indices.meta["val"].dtype != torch.int64:
        indices = _emit_cast(writer, indices, torch.int64, f"{node.name}_indices", node)
    if isinstance(lookup, RuntimeLookup) and lookup.widen and zero_point is not None:
        zero_point = _emit_cast(writer, zero_point, lookup.output_dtype, f"{node.name}_zeros", node)
    limits = torch.iinfo(weight.meta["val"].dtype)
    given = (weight, scales, zero_point, limits.min, limits.max, indices)
    val = node.meta["val"]
    return writer.emit(node.name, EDGE_BYTE, given, {"dtype": val.dtype}, node, val)


def _emit_cast(
    writer: Writer, value: torch.fx.Node, dtype: torch.dtype, name: str, like: torch.fx.Node
) -> torch.fx.Node:
    val = value.meta["val"].to(dtype)
    options = {"dtype": dtype, "dim_order": list(range(val.ndim))}
    return writer.emit(writer.free_name(name), _CAST, (value,), options, like, val)


def _folded(writer: Writer, folded: FoldedTable) -> Replacement:
    """Readers get the constant itself; an output of the program needs a node of the dequantize's name."""
    node = folded.dequantize
    table = writer.constant("dequantized", _owned(folded.values))
    is_output = any(user.op == "output" for user in node.users)

    def build(writer: Writer) -> torch.fx.Node:
        if not is_output:
            return table
        order = {"dim_order": list(range(node.meta["val"].ndim))}
        return writer.emit(node.name, _CLONE, (table,), order, node, node.meta["val"])

    return Replacement(node, (table,), build)


def _product(writer: Writer, product: KeptProduct, name: str) -> Replacement:
    """Give the product a dequantize of its own, on parameters of its own.

    Upstream's pattern replaces the parameters' data by packed and transposed forms: a second product, or
    any other reader of the same ones, would get those. The serializer stores equal bytes once.
    """
    zeros = None if product.zero_point is None else product.zero_point.data
    if zeros is None:  # upstream's pattern asserts that there is one, and then does not read it
        zeros = torch.zeros(product.scales.data.shape, dtype=torch.int8)
    operands = (
        writer.parameter(f"{name}_weight", product.weight.data.detach()),
        writer.parameter(f"{name}_scales", product.scales.data.detach()),
        writer.constant("zero_point", _owned(zeros)),
    )
    old_weight = product.turn or product.dequantize
    others = tuple(node for node in product.node.all_input_nodes if node is not old_weight)

    def build(writer: Writer) -> torch.fx.Node:
        given = arguments(product.dequantize)
        keep = (given["input_dtype"], given["quant_min"], given["quant_max"])
        call = (operands[0], given["block_size"], operands[1], operands[2], *keep, *_output_dtype(given))
        val = product.dequantize.meta["val"]
        weight = writer.emit(name, EDGE_DEQUANTIZE, call, {}, product.dequantize, val)
        if product.turn is not None:
            turn = product.turn
            turned = writer.free_name(f"{name}_turned")
            weight = writer.emit(turned, turn.target, (weight, *turn.args[1:]), turn.kwargs, turn, turn.meta["val"])
        node = product.node
        args = tuple(weight if argument is old_weight else argument for argument in node.args)
        return writer.emit(node.name, node.target, args, node.kwargs, node, node.meta["val"])

    return Replacement(product.node, (*operands, *others), build)


def _output_dtype(given: dict[str, object]) -> tuple[torch.dtype, ...]:
    """The argument as the graph spelled it: left out where it is float32, the default."""
    dtype = given["output_dtype"]
    return (dtype,) if isinstance(dtype, torch.dtype) and dtype != torch.float32 else ()


def _owned(data: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and with a storage of exactly its own bytes (the serializer writes the storage)."""
    plain = data.detach()
    if plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.numel() * plain.element_size():
        return plain
    return plain.clone(memory_format=torch.contiguous_format)
