"""Fuses dequantize and embedding where the table is symmetric."""

from typing import Any

import torch
from executorch.backends.transforms.utils import create_constant_placeholder
from executorch.backends.vulkan import custom_ops_lib  # noqa: F401 - registers the operator
from executorch.backends.vulkan.patterns.weight_packing_utils import pack_4bit_weight_tensor
from executorch.exir.dialects._ops import ops
from torch.export.graph_signature import InputKind

COLUMNS_PER_SCALE = 4


class FusePatternsPass:
    """A pass of exactly one pattern."""

    def __call__(self, program: Any) -> Any:
        """Rewrite ``program`` in place and return it."""
        for node in list(program.graph.nodes):
            if "aten.embedding" in str(node.target) and "dequantize_affine" in str(getattr(node.args[0], "target", "")):
                fuse(program, node, node.args[0])
        program.graph_module.recompile()
        return program


def fuse(program: Any, lookup: Any, dequantize: Any) -> None:
    """Replace one lookup, or leave it."""
    weight, block_size, scales, zero_point = dequantize.args[:4]
    if block_size[1] % COLUMNS_PER_SCALE or (zero_point is not None and value_of(program, zero_point).any()):
        return
    packed = pack_4bit_weight_tensor(value_of(program, weight))
    graph = program.graph
    first = next(iter(graph.nodes))
    with graph.inserting_before(first):
        table = create_constant_placeholder(
            program, graph, f"{weight.name}_packed", InputKind.CONSTANT_TENSOR, packed.contiguous()
        )
    with graph.inserting_before(lookup):
        arguments = (table, scales, block_size[1], lookup.args[1], True)
        fused = graph.call_function(ops.edge.et_vk.embedding_q4gsw.default, arguments)
    fused.meta["val"] = lookup.meta["val"].to(torch.float32)
    lookup.replace_all_uses_with(fused)
    program.graph_signature.replace_all_uses(lookup.name, fused.name)
    graph.erase_node(lookup)
    if not dequantize.users:
        graph.erase_node(dequantize)


def value_of(program: Any, node: Any) -> Any:
    """Return the real value of a constant's placeholder."""
    target = next(s.target for s in program.graph_signature.input_specs if s.arg.name == node.name)
    return {**program.constants, **program.state_dict}[target]
