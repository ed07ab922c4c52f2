"""What Vulkan's partitioner takes although the runtime cannot do it right: these nodes stay outside every delegate.

Measured on ExecuTorch's Vulkan runtime at cff6f4dd32 (1.5.1's schema), see docs/lowering.md.

Source: docs/contract.md 6.2.
"""

import collections
from collections.abc import Collection, Iterator
from typing import Any

import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir.backend.partitioner import Partitioner, PartitionResult
from torch.export import ExportedProgram

from impl.graph.constants import Constant, Constants, read_constants
from impl.graph.ops import EMBEDDING, arguments, is_identity, torch_op

#: What marks a node: the partitioner skips nodes of modules with this type name, and nothing else reads it.
_MARK = "impl.lower.outside"
#: What marks the nodes of a delegate.
_TAG = "delegation_tag"
#: Above this many rows the partitioner chooses a texture layout that the runtime's aten.embedding misreads.
MAX_EMBEDDING_ROWS = 16384
#: The partitioner takes them, the runtime registers none of them.
_NOT_IN_VULKAN = frozenset({torch.ops.aten.logical_not.default, torch.ops.aten.t_copy.default})
_GELU = torch.ops.aten.gelu.default
_SPLIT = torch.ops.aten.split_with_sizes_copy.default
#: Matrix products by the name of their weight: where it is no constant, the runtime's linear aborts at load.
_WEIGHTS = {
    torch.ops.aten.linear.default: "weight",
    torch.ops.aten.mm.default: "mat2",
    torch.ops.aten.addmm.default: "mat2",
}
#: What Vulkan's passes take out of a delegate where it changes no dtype.
_COPIES = frozenset(
    {
        torch.ops.aten.clone.default,
        torch.ops.aten.alias_copy.default,
        torch.ops.dim_order_ops._clone_dim_order.default,  # noqa: SLF001 - an operator's public name
        torch.ops.dim_order_ops._to_dim_order_copy.default,  # noqa: SLF001 - the same
    }
)
#: Norms and their operands that the runtime takes as constants only.
_NORMS = {
    torch.ops.aten.native_layer_norm.default: ("weight", "bias"),
    torch.ops.aten.native_group_norm.default: ("weight", "bias"),
}
#: What no runtime of the wheel registers, whatever the partitioner makes of it.
UNREGISTERED = ("torchao.dequantize_affine", "torchao.quantize_affine", "quantized_decomposed.embedding_4bit")


class VulkanWithout(Partitioner):  # type: ignore[misc] # executorch has no types
    """Upstream's partitioner without the nodes that ``keep_outside`` has marked, and without state inside delegates.

    A buffer that the program writes would be the delegate's own; the file is then broken. Here it is an input.
    """

    def __init__(self, compile_options: dict[str, Any]) -> None:
        self._inner = VulkanPartitioner(compile_options, nn_module_blocklist=[_MARK])
        self.delegation_spec = self._inner.delegation_spec

    def partition(self, exported_program: ExportedProgram) -> PartitionResult:
        """Upstream's partition, with no tag on buffers that the program writes."""
        result = self._inner.partition(exported_program)
        written = set(exported_program.graph_signature.buffers_to_mutate.values())
        buffers = exported_program.graph_signature.inputs_to_buffers
        for node in exported_program.graph.find_nodes(op="placeholder"):
            if buffers.get(node.name) in written:
                node.meta.pop(_TAG, None)
        _release_copies(exported_program)
        return result


def keep_outside(program: ExportedProgram, products: Collection[str], fallbacks: Collection[str]) -> dict[str, str]:
    """Mark the nodes of an edge program that have to stay outside, in place; returns node name -> why.

    Args:
        program: one that nobody else holds.
        products: dequantize nodes whose readers upstream's patterns make a 4-bit linear; these stay.
        fallbacks: refused lookups in their CPU forms.
    """
    why = dict(_outside(program, products)) | dict.fromkeys(fallbacks, "a refused lookup runs on the CPU")
    for node in program.graph.nodes:
        if node.name in why:
            node.meta["nn_module_stack"] = {**node.meta.get("nn_module_stack", {}), _MARK: ("", _MARK)}
    return why


def _release_copies(program: ExportedProgram) -> None:
    """Take copies of what a delegate gives as well out of it: Vulkan's passes drop them and their outputs."""
    leaving = collections.defaultdict[tuple[str, torch.fx.Node], list[torch.fx.Node]](list)
    for node in program.graph.nodes:
        tag = node.meta.get(_TAG)
        if tag and any(user.meta.get(_TAG) != tag for user in node.users):
            leaving[tag, _copies(node)[-1]].append(node)
    for (tag, _), nodes in leaving.items():
        for copy in (copy for node in nodes if len(nodes) > 1 for copy in _copies(node)[:-1]):
            if all(user.meta.get(_TAG) != tag for user in copy.users):
                copy.meta.pop(_TAG, None)


def _copies(node: torch.fx.Node) -> list[torch.fx.Node]:
    """A node, and what it copies, down to what is no copy."""
    path = [node]
    while torch_op(path[-1]) in _COPIES and path[-1].args[0].meta["val"].dtype == path[-1].meta["val"].dtype:
        path.append(path[-1].args[0])
    return path


def _outside(program: ExportedProgram, products: Collection[str]) -> Iterator[tuple[str, str]]:
    constants = read_constants(program)
    for node in program.graph.nodes:
        operation = torch_op(node)
        if why := _operator_fault(node, constants):
            yield node.name, why
            if operation in _NORMS:
                yield from ((part.name, "it is a part of a norm outside") for part in node.users)
        elif operation == _SPLIT and any(type(size) is not int for size in node.args[0].meta["val"].shape):
            yield node.name, "the runtime gives the parts of a split their largest sizes, whatever the caller chooses"
            yield from ((part.name, "it is a part of a split outside") for part in node.users)
        elif operation in _WEIGHTS:
            weight = arguments(node)[_WEIGHTS[operation]]
            turned = torch_op(weight) == torch.ops.aten.permute_copy.default
            if (turned or operation == torch.ops.aten.linear.default) and not _known(weight, constants, products):
                yield node.name, "its weight is computed, and the runtime's linear takes constants only"
                if turned:
                    yield weight.name, "it is read as the weight of a product outside"
        elif is_identity(node) and isinstance(constants.resolve(node), Constant):
            yield node.name, "a delegate's output that is a constant is never written"


def _operator_fault(node: torch.fx.Node, constants: Constants) -> str:
    operation = torch_op(node)
    if operation in _NOT_IN_VULKAN:
        return f"the Vulkan runtime registers no {operation}"
    if operation == _GELU and arguments(node)["approximate"] != "tanh":
        return "the runtime's gelu is the tanh approximation, whatever the program asks for"
    return _embedding_fault(node, constants) if operation == EMBEDDING else _norm_fault(node, constants)


def _norm_fault(node: torch.fx.Node, constants: Constants) -> str:
    operation = torch_op(node)
    operands = [arguments(node)[name] for name in _NORMS.get(operation, ())]
    if not all(operand is None or _constant(operand, constants) for operand in operands):
        return "its weight or bias is computed, and the runtime's norms take constants only"
    if operation == torch.ops.aten.mul.Tensor and any(
        n.meta["val"].ndim == 1 and not _constant(n, constants) and isinstance(constants.resolve(n), Constant)
        for n in node.all_input_nodes
    ):
        return "a norm's weight, perhaps, that the program writes, and the runtime takes constants only"
    return ""


def _embedding_fault(node: torch.fx.Node, constants: Constants) -> str:
    weight = arguments(node)["weight"]
    if not _constant(weight, constants):
        return "its table is computed, and the runtime's aten.embedding takes constants only"
    if weight.meta["val"].shape[0] > MAX_EMBEDDING_ROWS:
        return f"the runtime misreads tables of more than {MAX_EMBEDDING_ROWS} rows"
    return ""


def _known(weight: torch.fx.Node, constants: Constants, products: Collection[str]) -> bool:
    """Whether a weight is a constant, possibly turned, or the table of a product that upstream's patterns have."""
    if torch_op(weight) == torch.ops.aten.permute_copy.default:
        weight = weight.args[0]
    return weight.name in products or _constant(weight, constants)


def _constant(node: torch.fx.Node, constants: Constants) -> bool:
    """Whether a delegate has it as a constant: a buffer that the program writes to is an input of it."""
    found = constants.resolve(node)
    return isinstance(found, Constant) and not found.written
