"""Put et_vk.embedding_q4gsw in the place of each planned lookup (contract 5.2, 5.3)."""

from collections.abc import Sequence

import torch
from executorch.exir.dialects._ops import ops as exir_ops
from torch.export import ExportedProgram

from impl.fusion.report import Fusion
from impl.fusion.rules import Plan, fused_scales
from impl.graph.ops import EDGE_Q4GSW
from impl.graph.rewrite import Editor
from impl.packer import flat_to_linear_weight, pack_linear_weight


def rewrite(program: ExportedProgram, plans: Sequence[Plan]) -> tuple[ExportedProgram, dict[str, Fusion]]:
    """A program of its own in which the planned lookups are et_vk.embedding_q4gsw, and what was fused by node name.

    Both dialects get the linear-weight layout: it is what a tied ``lm_head`` reads, so that a table is stored once.

    Source: contract 5.2, 5.5.
    """
    editor = Editor(program)
    packed: dict[str, torch.fx.Node] = {}
    scales: dict[str, torch.fx.Node] = {}
    fused: dict[str, Fusion] = {}
    for plan in plans:
        if plan.weight.name not in packed:
            pack = flat_to_linear_weight if plan.is_flat else pack_linear_weight
            packed[plan.weight.name] = editor.constant("q4gsw_weight", pack(plan.weight.data))
        if plan.scales.name not in scales:
            data = plan.scales.data.detach()
            data = data.unsqueeze(1) if data.ndim == 1 else data  # one a row
            owned = data.to(fused_scales(data.dtype), copy=True, memory_format=torch.contiguous_format)
            scales[plan.scales.name] = editor.constant("q4gsw_scales", owned)
        operands = (packed[plan.weight.name], scales[plan.scales.name])
        _fuse(editor, plan, operands)
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
    return editor.finish(node for plan in plans for node in plan.support), fused


def _fuse(editor: Editor, plan: Plan, operands: tuple[torch.fx.Node, torch.fx.Node]) -> None:
    """Put in the operator and, where the lookup yields a half, the cast that its float32 result needs."""
    lookup, val = plan.lookup, plan.lookup.meta["val"]
    arguments = (*operands, plan.group_size, plan.indices, True)
    node = editor.insert(lookup, f"{lookup.name}_q4gsw", EDGE_Q4GSW, arguments, val.to(torch.float32))
    if plan.output_dtype != torch.float32:
        options = {"dtype": plan.output_dtype}
        if all(getattr(verifier(), "use_dim_order", True) for verifier in editor.source.verifiers):
            # Survives Vulkan's passes as a buffer operator and rounds to nearest; aten._to_copy goes through a texture.
            cast = exir_ops.edge.dim_order_ops._to_dim_order_copy.default  # noqa: SLF001 - an operator's public name
            options["dim_order"] = list(range(val.ndim))
        else:
            cast = exir_ops.edge.aten._to_copy.default  # noqa: SLF001 - an operator's public name
        node = editor.insert(lookup, lookup.name, cast, (node,), val, kwargs=options)
    editor.replace(lookup, node)
