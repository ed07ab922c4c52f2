"""Read edge-dialect graph nodes: which operator, which arguments, which identities.

An edge program spells an operator as an EdgeOpOverload around the torch one; everything here
compares the torch operators underneath, so that both spellings read the same.
"""

from typing import Any

import executorch.backends.vulkan.custom_ops_lib
import executorch.exir.passes._quant_patterns_and_replacements  # noqa: F401 - registers embedding_4bit, _byte
import torch
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.dialects.edge._ops import EdgeOpOverload

#: The target of a fused node.
EDGE_Q4GSW = exir_ops.edge.et_vk.embedding_q4gsw.default

EMBEDDING = torch.ops.aten.embedding.default
DEQUANTIZE = exir_ops.edge.torchao.dequantize_affine.default._op  # noqa: SLF001 - the torch op has no other accessor
QUANTIZE = exir_ops.edge.torchao.quantize_affine.default._op  # noqa: SLF001 - as above
CHOOSE_QPARAMS = exir_ops.edge.torchao.choose_qparams_affine.default._op  # noqa: SLF001 - as above
QUANTIZERS = (DEQUANTIZE, QUANTIZE)
EMBEDDING_4BIT = (
    torch.ops.quantized_decomposed.embedding_4bit.dtype,
    torch.ops.quantized_decomposed.embedding_4bit.default,
)
RENORM = (torch.ops.aten.embedding_renorm.default, torch.ops.aten.embedding_renorm_.default)

VIEWS = (torch.ops.aten.view_copy.default, torch.ops.aten.view.default)
#: Copies that keep shape, dtype and every value; with the shape and dtype they came with they are identities.
_IDENTITIES = frozenset(
    {
        torch.ops.aten.clone.default,
        torch.ops.aten.alias.default,
        torch.ops.aten.alias_copy.default,
        torch.ops.aten.detach.default,
        torch.ops.aten.detach_copy.default,
        torch.ops.aten.lift_fresh_copy.default,
        torch.ops.aten.view.default,
        torch.ops.aten.view_copy.default,
        torch.ops.aten._unsafe_view.default,  # noqa: SLF001 - an operator's public name, underscore included
        torch.ops.aten.reshape.default,
        torch.ops.aten.expand.default,
        torch.ops.aten.expand_copy.default,
        torch.ops.aten._to_copy.default,  # noqa: SLF001 - an operator's public name, underscore included
        exir_ops.edge.dim_order_ops._to_dim_order_copy.default._op,  # noqa: SLF001 - as above
        exir_ops.edge.dim_order_ops._clone_dim_order.default._op,  # noqa: SLF001 - as above
    }
)


def torch_op(node: torch.fx.Node) -> Any:
    """The torch operator that a node calls, or None when it calls none."""
    if node.op != "call_function":
        return None
    target = node.target
    return target._op if isinstance(target, EdgeOpOverload) else target  # noqa: SLF001 - no other accessor


def op_name(node: torch.fx.Node) -> str:
    """How to name a node's operator to a reader: "aten.clone.default", "input", "get_attr"."""
    return str(torch_op(node)) if node.op == "call_function" else node.op


def source_line(node: torch.fx.Node) -> str:
    """Where in the user's own code the node comes from, as "; in FILE, line N, in NAME: SOURCE", or ""."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    files = ((at, line.strip()) for at, line in enumerate(lines) if line.strip().startswith("File"))
    own = [at for at, file in files if "site-packages" not in file and not file.startswith('File "<')]  # or generated
    return f"; in {' '.join(line.strip() for line in lines[own[-1] : own[-1] + 2])}" if own else ""


def arguments(node: torch.fx.Node) -> dict[str, Any]:
    """A call's arguments by the names of its schema; those left out have their defaults."""
    bound: dict[str, Any] = {}
    for position, argument in enumerate(torch_op(node)._schema.arguments):  # noqa: SLF001 - torch's own way to it
        if position < len(node.args):
            bound[argument.name] = node.args[position]
        else:
            bound[argument.name] = node.kwargs.get(argument.name, argument.default_value)
    return bound


def is_identity(node: torch.fx.Node) -> bool:
    """Whether the node yields its first operand's values in the same shape and dtype (contract 5.3)."""
    if torch_op(node) not in _IDENTITIES or not node.args or not isinstance(node.args[0], torch.fx.Node):
        return False
    before, after = node.args[0].meta.get("val"), node.meta.get("val")
    return (
        isinstance(before, torch.Tensor)
        and isinstance(after, torch.Tensor)
        and before.dtype == after.dtype
        and all(type(size) is int for size in (*before.shape, *after.shape))
        and tuple(before.shape) == tuple(after.shape)
    )


def identity_path(node: torch.fx.Node) -> list[torch.fx.Node]:
    """The node, and what it reads through identities, down to the first node that is none."""
    path = [node]
    while is_identity(path[-1]):
        path.append(path[-1].args[0])
    return path


class TableSources:
    """For each lookup's table operand: the dequantize behind it, followed through first operands.

    Remembers what it has walked, so that any number of lookups costs one walk of the graph.
    """

    def __init__(self) -> None:
        self._known: dict[torch.fx.Node, tuple[torch.fx.Node | None, bool]] = {}

    def behind(self, node: torch.fx.Node) -> tuple[torch.fx.Node | None, bool]:
        """(the dequantize or None, whether an embedding_renorm lies on the way)."""
        path = []
        while node not in self._known:
            operation = torch_op(node)
            if operation == DEQUANTIZE:
                self._known[node] = (node, False)
            elif operation is None or not node.all_input_nodes:
                self._known[node] = (None, False)
            else:
                path.append(node)
                node = node.all_input_nodes[0]
        for passed in reversed(path):
            dequantize, renormed = self._known[node]
            self._known[passed] = (dequantize, renormed or torch_op(passed) in RENORM)
            node = passed
        return self._known[node]
