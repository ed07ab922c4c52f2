"""Apply a lowering plan: edit a copy of the fused program into a form that every runtime of the wheel has kernels for.

Source: docs/contract.md 6.1, 6.2.
"""

import operator
from typing import Any

import torch
from executorch.exir.dialects._ops import ops as exir_ops
from torch.export import ExportedProgram
from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

from impl.graph.constants import Constant, read_constants
from impl.graph.ops import EDGE_Q4GSW, VIEWS, arguments, torch_op
from impl.graph.rewrite import Editor
from impl.lower.plan import CpuLookup, FoldedTable, KeptProduct, LoweringPlan, RuntimeLookup

EDGE_DEQUANTIZE = exir_ops.edge.torchao.dequantize_affine.default
EDGE_BYTE = exir_ops.edge.quantized_decomposed.embedding_byte.dtype
EDGE_EMBEDDING = exir_ops.edge.aten.embedding.default
_CAST = exir_ops.edge.dim_order_ops._to_dim_order_copy.default  # noqa: SLF001 - an operator's public name
_VIEW = exir_ops.edge.aten.view_copy.default
_CLONE = exir_ops.edge.dim_order_ops._clone_dim_order.default  # noqa: SLF001 - an operator's public name


#: What models make of a norm's weight.
_FOLDED = frozenset(
    {
        torch.ops.aten.add.Tensor,
        torch.ops.aten.sub.Tensor,
        torch.ops.aten.mul.Tensor,
        torch.ops.aten._to_copy.default,  # noqa: SLF001 - an operator's public name
        torch.ops.dim_order_ops._to_dim_order_copy.default,  # noqa: SLF001 - the same
    }
)


def rewrite_for_runtimes(program: ExportedProgram, plan: LoweringPlan) -> tuple[ExportedProgram, dict[str, str]]:
    """The program with every planned change, and the kept products: name of their dequantize -> name of the product."""
    editor = Editor(program)
    for lookup in plan.lookups:
        _lookup(editor, lookup)
    for folded in plan.folded:
        _fold(editor, folded)
    by_node = {product.node: product for product in plan.products}
    products = {_product(editor, product): product.node.name for product in by_node.values()}
    for node in program.graph.nodes:
        if node.target == EDGE_Q4GSW:
            _flatten(editor, node)
    rewritten = editor.finish([*plan.support, *_fold_constants(editor, program)])
    for spec in rewritten.graph_signature.input_specs:
        if spec.kind == InputKind.CONSTANT_TENSOR:  # of which upstream loses the copy that a second delegate reads
            spec.kind, spec.persistent = InputKind.BUFFER, False
    _return_copies(rewritten)
    initialised = {placeholder.name for placeholder in plan.initialised} | _first_values(rewritten)
    for node in rewritten.graph.nodes:
        if node.op == "placeholder" and node.name in initialised:
            node.meta["et_init_buffer"] = True  # how ExecuTorch is told to store what a mutable buffer starts with
    return rewritten, products


def _fold_constants(editor: Editor, program: ExportedProgram) -> list[torch.fx.Node]:
    """Compute what is computed of constants alone, such as Gemma's weight + 1: the runtime's norms take constants only.

    Returns the nodes that nothing may read any more.
    """
    constants = read_constants(program)
    known: dict[torch.fx.Node, torch.Tensor] = {}
    folded: dict[torch.fx.Node, torch.Tensor] = {}
    behind: list[torch.fx.Node] = []
    for node in program.graph.nodes:
        if torch_op(node) not in _FOLDED or node.meta["val"].ndim > 1:  # a table would be in the file twice
            continue
        for operand in node.all_input_nodes:
            constant = constants.resolve(operand)
            if isinstance(constant, Constant) and not constant.written:
                known[operand] = constant.data.detach()
                behind += constant.path
        if all(operand in known for operand in node.all_input_nodes):
            args, options = torch.fx.map_arg((node.args, node.kwargs), known.get)
            known[node] = folded[node] = node.target(*args, **options)
            behind.append(node)
    for node, value in folded.items():
        if any(user not in folded for user in node.users) and all(user.op != "output" for user in node.users):
            editor.replace(node, editor.constant("computed", _owned(value)))
    return behind


def _first_values(program: ExportedProgram) -> set[str]:
    """Placeholders of buffers that the program writes and that do not start as zeros, as a runtime's memory does."""
    signature = program.graph_signature
    written = set(signature.buffers_to_mutate.values())
    return {
        name
        for name, target in signature.inputs_to_buffers.items()
        if target in written and bool((program.state_dict.get(target, program.constants.get(target)) != 0).any())
    }


def _return_copies(program: ExportedProgram) -> None:
    """Return copies of constants: one that a delegate owns cannot be an output of the program as well."""
    output = program.graph.output_node()
    constants = read_constants(program)
    returned = list(output.args[0])
    for position, (node, spec) in enumerate(zip(returned, program.graph_signature.output_specs, strict=True)):
        if (
            spec.kind == OutputKind.USER_OUTPUT
            and isinstance(constants.resolve(node), Constant)
            and node.op == "placeholder"
        ):
            with program.graph.inserting_before(output):
                order = list(range(node.meta["val"].ndim))
                returned[position] = copied = program.graph.call_function(_CLONE, (node,), {"dim_order": order})
            copied.meta["val"] = node.meta["val"]
            spec.arg = TensorArgument(copied.name)
    output.args = (tuple(returned), *output.args[1:])
    program.graph_module.recompile()


def _lookup(editor: Editor, lookup: CpuLookup | RuntimeLookup) -> None:
    """A plain embedding, or embedding_byte with the casts that its kernel needs: int64 indices, fitting zero points."""
    node, indices = lookup.node, lookup.indices
    name, val = f"{node.name}_cpu", node.meta["val"]
    if isinstance(lookup, CpuLookup) and lookup.values is not None:
        table = editor.constant("dequantized", _owned(lookup.values))
        editor.replace(node, editor.insert(node, name, EDGE_EMBEDDING, (table, indices), val))
        return
    if isinstance(lookup, RuntimeLookup):
        weight, scales, zero_point = lookup.weight, lookup.scales, lookup.zero_point
        if lookup.widen and zero_point is not None:
            zero_point = _cast(editor, zero_point, lookup.output_dtype, f"{node.name}_zeros", node)
    else:
        assert lookup.form is not None  # noqa: S101 - a plan holds a form or values
        weight = editor.constant("byte_weight", _owned(lookup.form.weight))
        scales = editor.constant("byte_scales", _owned(lookup.form.scales))
        zeros = lookup.form.zero_point
        zero_point = None if zeros is None else editor.constant("byte_zeros", _owned(zeros))
    if indices.meta["val"].dtype != torch.int64:
        indices = _cast(editor, indices, torch.int64, f"{node.name}_indices", node)
    limits = torch.iinfo(weight.meta["val"].dtype)
    operands = (weight, scales, zero_point, limits.min, limits.max, indices)
    editor.replace(node, editor.insert(node, name, EDGE_BYTE, operands, val, kwargs={"dtype": val.dtype}))


def _cast(editor: Editor, value: torch.fx.Node, dtype: torch.dtype, name: str, before: torch.fx.Node) -> torch.fx.Node:
    val = value.meta["val"].to(dtype)
    options = {"dtype": dtype, "dim_order": list(range(val.ndim))}
    return editor.insert(before, name, _CAST, (value,), val, kwargs=options)


def _fold(editor: Editor, folded: FoldedTable) -> None:
    """Readers get the constant itself; an output of the program needs a node of the dequantize's name."""
    node, new = folded.dequantize, editor.constant("dequantized", _owned(folded.values))
    if any(user.op == "output" for user in node.users):
        order = {"dim_order": list(range(node.meta["val"].ndim))}
        new = editor.insert(node, node.name, _CLONE, (new,), node.meta["val"], kwargs=order)
    editor.replace(node, new)


def _product(editor: Editor, product: KeptProduct) -> str:
    """Give the product a dequantize of its own, on parameters of its own; returns the dequantize's name.

    Upstream's pattern replaces the parameters' data by packed and transposed forms: a second product, or
    any other reader of the same ones, would get those. The serializer stores equal bytes once.
    """
    node, source, turn = product.node, product.dequantize, product.turn
    name = editor.free_name(f"{node.name}_table")
    zeros = None if product.zero_point is None else product.zero_point.data
    if zeros is None:  # upstream's pattern asserts that there is one, and then does not read it
        zeros = torch.zeros(product.scales.data.shape, dtype=torch.int8)
    weight = editor.parameter(f"{name}_weight", product.weight.data.detach())
    scales = editor.parameter(f"{name}_scales", product.scales.data.detach())
    zero_point = editor.parameter(f"{name}_zero_point", zeros.detach())
    old = arguments(source)
    call = (weight, old["block_size"], scales, zero_point, old["input_dtype"], old["quant_min"], old["quant_max"])
    table = editor.insert(node, name, EDGE_DEQUANTIZE, call, source.meta["val"].float(), like=source)
    if turn is not None:
        call = (table, *turn.args[1:])
        val = turn.meta["val"].float()
        table = editor.insert(node, f"{name}_turned", turn.target, call, val, kwargs=turn.kwargs, like=turn)
    args = tuple(table if argument is (turn or source) else argument for argument in node.args)
    position = 1 if torch_op(node) == torch.ops.aten.addmm.default else 0
    rows = args[position]
    if product.activation:
        args = (*args[:position], _quantized_rows(editor, product, name), *args[position + 1 :])
    elif rows.meta["val"].dtype != torch.float32:
        args = _in_float32(editor, node, args, name)
    elif (
        torch_op(rows) in VIEWS
    ):  # upstream's pattern looks through one view, and the runtime misreads what is behind it
        again = editor.insert(node, f"{name}_rows", rows.target, (rows, rows.args[1]), rows.meta["val"])
        args = (*args[:position], again, *args[position + 1 :])
    val = node.meta["val"]
    new = editor.insert(node, f"{node.name}_product", node.target, args, val.float(), kwargs=node.kwargs)
    if product.activation:  # or upstream's pattern swallows the view that follows, and with it the shape
        order = {"dim_order": list(range(val.ndim))}
        new = editor.insert(node, f"{node.name}_result", _CLONE, (new,), val, kwargs=order)
    elif val.dtype != torch.float32:
        new = _cast(editor, new, val.dtype, f"{node.name}_result", node)
    editor.replace(node, new)
    return name


def _in_float32(editor: Editor, node: torch.fx.Node, args: tuple[Any, ...], name: str) -> tuple[Any, ...]:
    """A product's operands with half rows cast and a half bias, which is a constant, widened."""
    constants = read_constants(editor.source)
    wide: list[Any] = []
    for number, operand in enumerate(args):
        constant = constants.resolve(operand) if isinstance(operand, torch.fx.Node) else None
        if not isinstance(operand, torch.fx.Node) or operand.meta["val"].dtype == torch.float32:
            wide.append(operand)
        elif isinstance(constant, Constant):
            wide.append(editor.constant("bias", _owned(constant.data.detach().to(torch.float32))))
        else:
            wide.append(_cast(editor, operand, torch.float32, f"{name}_operand_{number}", node))
    return tuple(wide)


def _quantized_rows(editor: Editor, product: KeptProduct, name: str) -> torch.fx.Node:
    """The product's input, quantized and dequantized as [M, K]: the runtime chooses scales of matrices only."""
    node = product.node
    dequantize, quantize = product.activation
    choose = arguments(quantize)["scale"].args[0]
    x = choose.args[0]
    columns = x.meta["val"].shape[-1]
    flat = editor.insert(node, f"{name}_rows", _VIEW, (x, [-1, columns]), x.meta["val"].reshape(-1, columns))
    block = [1, columns]
    chosen = tuple(value.reshape(-1) for value in choose.meta["val"])
    call = (flat, choose.args[1], block, *choose.args[3:])
    parameters = editor.insert(node, f"{name}_chosen", choose.target, call, chosen, kwargs=choose.kwargs, like=choose)
    scale, zero = (
        editor.insert(node, f"{name}_{what}", operator.getitem, (parameters, number), chosen[number], like=choose)
        for number, what in enumerate(("scale", "zero"))
    )
    for step in (quantize, dequantize):
        val = step.meta["val"].reshape(-1, columns)
        call = (flat, block, scale, zero, *step.args[4:])
        flat = editor.insert(node, f"{name}_{step.name}", step.target, call, val, kwargs=step.kwargs, like=step)
    return flat


def _flatten(editor: Editor, node: torch.fx.Node) -> None:
    """Look up along one axis and view the rows back: with a batch above 1 the runtime misreads indices in a texture."""
    indices, val = arguments(node)["indices"], node.meta["val"]
    if all(type(size) is int and size == 1 for size in val.shape[:-2]):
        return
    flat_val = indices.meta["val"].reshape(-1)
    flat = editor.insert(node, f"{node.name}_indices", _VIEW, (indices, [-1]), flat_val)
    args = tuple(flat if argument is indices else argument for argument in node.args)
    rows = editor.insert(node, f"{node.name}_rows", node.target, args, val.reshape(-1, val.shape[-1]))
    sizes = [
        size
        if type(size) is int
        else editor.insert(node, f"{node.name}_size", torch.ops.aten.sym_size.int, (indices, axis), size)
        for axis, size in enumerate(val.shape)
    ]
    editor.replace(node, editor.insert(node, f"{node.name}_view", _VIEW, (rows, sizes), val))


def _owned(data: torch.Tensor) -> torch.Tensor:
    """The tensor, contiguous and with a storage of exactly its own bytes (the serializer writes the storage)."""
    plain = data.detach()
    if plain.is_contiguous() and plain.untyped_storage().nbytes() == plain.numel() * plain.element_size():
        return plain
    return plain.clone(memory_format=torch.contiguous_format)
