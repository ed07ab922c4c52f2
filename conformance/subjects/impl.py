"""Subject "impl": the project's own matcher, packer, lowering and Vulkan kernel. It gets no favours.

Each stage is a function that takes the piece under test as an argument, so that a seeded fault replaces that one
piece and nothing else.

Source: docs/contract.md sections 3.4 and 7.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from conformance.case import case as cases
from conformance.case.case import Case, Dispatch, EndToEnd, Table
from conformance.case.operands import operands, table_values
from conformance.harness.errors import EnvironmentProblem, FeatureMissing
from conformance.harness.observation import Arrays, Facts, Graph, Observation, Refused
from conformance.pte.device import open_device
from conformance.pte.spirv import is_precise
from conformance.subjects.stages import (
    Array,
    FusedTable,
    LoweringRefused,
    answer,
    fused_table,
    observe_rewriting,
    unlowerable,
)
from impl import packer
from impl.errors import DeviceLacksFeature, DeviceLimitExceeded, ShaderToolMissing
from impl.kernel import KernelResult, Variant, embedding_shader, run_embedding, run_prepack
from reference.program.spec import ProgramSpec

#: impl.matcher.fuse_q4_embeddings, or something in its place: program -> (program, FusionReport).
Fuse = Callable[[Any], tuple[Any, Any]]
#: Values or bytes to packed bytes or blocks.
Pack = Callable[[Array], Array]
_STORAGES: dict[str, Literal["buffer", "texture2d"]] = {"device_buffer": "buffer", "texture2d": "texture2d"}


class SubjectUnderTest:
    """The project's own implementation, stage by stage."""

    def supports(self, case: Case) -> str | None:
        """Return why the case does not apply, or None."""
        return unlowerable(case) if case.stage in {"LOWER", "RUN"} else None

    def run(self, case: Case) -> Observation:
        """Answer the case."""
        return answer(case, run_match, run_pack, run_kernel, lower)


def lower(program: Any, options: Mapping[str, Any]) -> bytes:
    """Lower a program of torch.export by impl.lowering."""
    from conformance.subjects.executorch import remember_pattern_graphs  # noqa: PLC0415 - executorch loads slowly
    from impl.lowering import ForceFloat16Error, LoweringError, lower_to_vulkan  # noqa: PLC0415 - the same

    remember_pattern_graphs()
    try:
        return bytes(lower_to_vulkan(program, compile_options=options).buffer)
    except ForceFloat16Error as error:
        raise LoweringRefused("force_fp16", str(error)) from error
    except LoweringError as error:
        raise LoweringRefused("not_carried", str(error)) from error


def rewriting(fuse: Fuse | None = None) -> Callable[[Any], tuple[Any, dict[str, tuple[bool, str, str]]]]:
    """Turn a fusion (impl.matcher's by default) and its report into what the observer takes."""
    from impl.matcher import fuse_q4_embeddings  # noqa: PLC0415 - executorch loads slowly

    def rewrite(program: Any) -> tuple[Any, dict[str, tuple[bool, str, str]]]:
        fused_program, report = (fuse or fuse_q4_embeddings)(program)
        answers = {refusal.node: (False, str(refusal.reason), refusal.detail) for refusal in report.refused}
        return fused_program, answers | {fusion.node: (True, "", "") for fusion in report.fused}

    return rewrite


def run_match(spec: ProgramSpec, fuse: Fuse | None = None) -> Graph:
    """Build the program, fuse it with ``fuse`` (impl.matcher's by default) and observe."""
    return observe_rewriting(spec, rewriting(fuse))


def run_pack(table: Table, pack: Pack | None = None, prepare: Pack | None = None) -> Arrays:
    """Pack the table into its layout: on the host, or into the device's storage by the prepack shader.

    ``pack`` replaces impl.packer's function for that layout; ``prepare`` the packing of values to the
    linear-weight bytes that "blocks" starts from.
    """
    values, prepare = table_values(table), prepare or packer.pack_linear_weight
    if table.storage != "buffer":
        try:
            result = run_prepack(open_device(), prepare(values), _STORAGES[table.storage])
        except ShaderToolMissing as error:
            raise EnvironmentProblem(str(error)) from error
        return Arrays({"blocks": result.out}, Facts(**_written(result)))
    if table.layout == "blocks":
        return Arrays({"blocks": (pack or packer.pack_blocks)(prepare(values))})
    own = {"flat": packer.pack_flat, "linear_weight": packer.pack_linear_weight}[table.layout]
    return Arrays({"packed": (pack or own)(values)})


def run_kernel(
    question: Dispatch | EndToEnd,
    *,
    shader_source: Path | None = None,
    fuse: Fuse | None = None,
    pack: Pack | None = None,
    blocks: Pack | None = None,
) -> Arrays | Refused:
    """Dispatch the question on a Vulkan device and report the output with what guards it.

    A question with a program goes end to end: build, fuse, take packed table and scales out of the fused
    graph, then blocks, then the device. Any piece can be replaced: the shader, the fusion, the packing of
    values (questions without a program) and of blocks.

    Raises:
        EnvironmentProblem: no Vulkan driver, device, feature or shader compiler; names what to install or choose.
        Exception: whatever the implementation raises.
    """
    pack = pack or packer.pack_linear_weight
    table = drawn(question, pack) if isinstance(question, Dispatch) else fused_table(question, rewriting(fuse))
    if isinstance(table, Refused):
        return table
    flat = question.weight_layout == "flat"
    # Swapping the nibbles turns either byte layout into the other.
    weight = table.packed if flat != table.linear_weight else packer.flat_to_linear_weight(table.packed)
    try:
        device, variant = open_device(), variant_of(question)
        shader = embedding_shader(device.info, variant, shader_source)
        result = run_embedding(
            device,
            variant,
            weight if flat else (blocks or packer.pack_blocks)(weight),
            table.scales,
            table.group_size,
            table.indices,
            vocab_size=table.scales.shape[0],
            allow_out_of_range=True,
            shader=shader,
        )
    except ShaderToolMissing as error:
        raise EnvironmentProblem(str(error)) from error
    except DeviceLacksFeature as error:
        raise FeatureMissing(str(error)) from error
    except DeviceLimitExceeded as error:
        return Refused("device_limit", str(error), error.limit)
    return Arrays({"out": result.out}, facts_of(table, result, question, precise=is_precise(shader.spirv)))


def variant_of(question: cases.Variant) -> Variant:
    """The kernel's variant that a question names."""
    fields = ("output_dtype", "scale_dtype", "weight_layout", "weight_storage", "io_storage", "float_modes")
    return Variant(**{name: getattr(question, name) for name in fields})


def drawn(question: Dispatch, pack: Pack) -> FusedTable:
    """The question's own arrays, its values packed to linear-weight bytes with ``pack``."""
    own = operands(question)
    return FusedTable(pack(own.values), True, own.scales, own.group_size, own.indices, Facts())  # noqa: FBT003 - its layout


def facts_of(table: FusedTable, result: KernelResult, variant: cases.Variant, *, precise: bool) -> Facts:
    """What the judge needs of a dispatch: declared modes, fences, and on what it ran."""
    return replace(
        table.facts,
        execution_modes=tuple(result.float_modes),
        precise=precise,
        io_storage=variant.io_storage,
        spirv_sha256=result.spirv_sha256,
        **_written(result),
    )


def _written(result: KernelResult) -> dict[str, Any]:
    """What the fences and the poison around and in the output show, and where it ran."""
    return {name: getattr(result, name) for name in ("device", "driver", "damage", "unwritten", "unstable")}
