"""Put et_vk.embedding_q4gsw in the place of each planned lookup (contract 5.2, 5.3)."""

from collections.abc import Sequence
from functools import partial

import torch
from executorch.exir.dialects._ops import ops as exir_ops
from torch.export import ExportedProgram

from impl.fusion.report import Fusion
from impl.fusion.rules import Plan
from impl.graph.ops import EDGE_Q4GSW
from impl.graph.rewrite import Replacement, Writer
from impl.packer import flat_to_linear_weight, pack_linear_weight


def rewrite(program: ExportedProgram, plans: Sequence[Plan]) -> tuple[ExportedProgram, dict[str, Fusion]]:
    """A program of its own in which the planned lookups are et_vk.embedding_q4gsw, and what was fused by node name.

    Both dialects get the linear-weight layout: it is what a tied ``lm_head`` reads, so that a table is stored once.

    Source: contract 5.2, 5.5.
    """
    writer = Writer(program)
    packed: dict[str, torch.fx.Node] = {}
    scales: dict[str, torch.fx.Node] = {}
    replacements: list[Replacement] = []
    fused: dict[str, Fusion] = {}
    for plan in plans:
        if plan.weight.name not in packed:
            pack = flat_to_linear_weight if plan.is_flat else pack_linear_weight
            packed[plan.weight.name] = writer.constant("q4gsw_weight", pack(plan.weight.data))
        if plan.scales.name not in scales:
            owned = plan.scales.data.detach().clone(memory_format=torch.contiguous_format)
            scales[plan.scales.name] = writer.constant("q4gsw_scales", owned)
        operands = (packed[plan.weight.name], scales[plan.scales.name])
        reads = (*operands, plan.indices)
        replacements.append(Replacement(plan.lookup, reads, partial(_emit, plan=plan, operands=operands)))
        fused[plan.lookup.name] = Fusion(
            node=plan.lookup.name,
            table=plan.weight.name,
            packed=operands[0].name,
            scales=operands[1].name,
            group_size=plan.group_size,
            is_linear_weight=True,
            output_dtype=str(plan.output_dtype).removeprefix("torch."),
            vocab_size=plan.vocab_size,
            embed_dim=plan.embed_dim,
        )
    return writer.finish(replacements, [node for plan in plans for node in plan.support]), fused


def _emit(writer: Writer, plan: Plan, operands: tuple[torch.fx.Node, torch.fx.Node]) -> torch.fx.Node:
    """Write the operator and, where the lookup yields float16, the cast that its float32 result needs."""
    lookup, val = plan.lookup, plan.lookup.meta["val"]
    arguments = (*operands, plan.group_size, plan.indices, True)
    if plan.output_dtype == torch.float32:
        return writer.emit(lookup.name, EDGE_Q4GSW, arguments, {}, lookup, val)
    inner = writer.free_name(f"{lookup.name}_q4gsw")
    wide = writer.emit(inner, EDGE_Q4GSW, arguments, {}, lookup, val.to(torch.float32))
    if all(getattr(verifier(), "use_dim_order", True) for verifier in writer.source.verifiers):
        # Survives Vulkan's passes as a buffer operator and rounds to nearest; aten._to_copy goes through a texture.
        cast = exir_ops.edge.dim_order_ops._to_dim_order_copy.default  # noqa: SLF001 - an operator's public name
        options = {"dtype": plan.output_dtype, "dim_order": list(range(val.ndim))}
    else:
        cast = exir_ops.edge.aten._to_copy.default  # noqa: SLF001 - an operator's public name
        options = {"dtype": plan.output_dtype}
    return writer.emit(lookup.name, cast, (wide,), options, lookup, val)
