"""fuse_q4_embeddings: rewrite a program's 4-bit embedding lookups to et_vk.embedding_q4gsw.

    manager = to_edge(torch.export.export(model, inputs))
    program, report = fuse_q4_embeddings(manager.exported_program())

Three steps that never mix: decide (``impl.fusion.rules``), rewrite (``impl.fusion.rewrite``), report
(``impl.fusion.report``).

Source: docs/contract.md section 5.
"""

from collections.abc import Collection

from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram

from impl.fusion.report import Fusion, FusionReport, Limits, Refusal, RefusalReason
from impl.fusion.rewrite import rewrite
from impl.fusion.rules import Plan, decide

__all__ = ["Fusion", "FusionReport", "Limits", "Refusal", "RefusalReason", "fuse_q4_embeddings"]

EDGE = "EDGE"


def fuse_q4_embeddings(
    program: ExportedProgram, *, limits: Limits | None = None
) -> tuple[ExportedProgram, FusionReport]:
    """Fuse every 4-bit group-wise symmetric lookup that contract 5.3 lets fuse, and say what became of each.

    Looks at ``torchao.dequantize_affine`` followed by ``aten.embedding``, and at
    ``quantized_decomposed.embedding_4bit``. A lookup into a plain float table is none of its business
    and is neither fused nor refused. Lookups inside control-flow branches are refused, and the branches copied.

    Args:
        program: an edge-dialect program (``to_edge(...).exported_program()``). It is not changed: not
            its graph, its signature, its state dict, nor any tensor.
        limits: refuse tables beyond these limits of a device (contract 5.4); None checks none.

    Returns:
        The fused program, which shares the source's remaining constant tensors, and the report with
        every lookup in it. Running the result again changes nothing.

    Raises:
        TypeError: ``program`` is not an ExportedProgram.
        ValueError: it is not in the edge dialect, or its own verifier rejects it; the message says
            what to do. No valid program raises.

    Source: contract 5.
    """
    return fuse_all_but(program, limits or Limits(), ())


def fuse_all_but(
    program: ExportedProgram, limits: Limits, left_alone: Collection[str]
) -> tuple[ExportedProgram, FusionReport]:
    """``fuse_q4_embeddings``, except for the named lookups, which stay as they are and out of the report."""
    _check(program)
    decisions = decide(program, limits)
    plans = [d for d in decisions if isinstance(d, Plan) and d.lookup.name not in left_alone]
    refused = [decision for decision in decisions if isinstance(decision, Refusal)]
    fused_program, fused = rewrite(program, plans)
    return fused_program, FusionReport(tuple(fused.values()), tuple(refused))


def _check(program: ExportedProgram) -> None:
    """Reject what is not a valid program in the edge dialect."""
    if not isinstance(program, ExportedProgram):
        hint = "; pass its exported_program()" if hasattr(program, "exported_program") else ""
        raise TypeError(f"program is a {type(program).__name__}, it must be a torch.export.ExportedProgram{hint}")
    if program.dialect != EDGE:
        raise ValueError(
            f"program is in the {program.dialect} dialect, the matcher works on {EDGE}: "
            "call executorch.exir.to_edge(program) first and pass its exported_program()"
        )
    try:
        program.validate()
    except (SpecViolationError, RuntimeError, AssertionError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(f"program is not valid for its own verifier, nothing was rewritten: {reason}") from error
