"""Subject "impl": the project's own matcher, packer and Vulkan kernel. It gets no favours.

Each stage is a function that takes the piece under judgement as an argument, so that a planted bug
replaces that one piece and nothing else.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from conformance.case.case import Case, Dispatch, EndToEnd, Quantization, Table
from conformance.case.operands import table_values
from conformance.harness.observation import Arrays, Graph, Observation, Refused
from conformance.subjects import lowered
from conformance.subjects.impl_types import Fuse, Pack, telling
from conformance.subjects.quantize import run_export, run_quantize
from reference.program.spec import ProgramSpec


class SubjectUnderTest:
    """The player, stage by stage."""

    def supports(self, case: Case) -> str | None:
        """Return why the case cannot be asked of the player, or None."""
        if case.stage in {"LOWER", "RUN"}:
            return lowered.reason(case)
        return None

    def run(self, case: Case) -> Observation:
        """Do what the case asks."""
        question = case.question
        if isinstance(question, Quantization):
            return run_quantize(question)
        if isinstance(question, Table):
            return run_pack(question)
        if isinstance(question, Dispatch | EndToEnd):
            return run_kernel(question)
        if case.stage == "EXPORT":
            return run_export(question.spec)
        return run_match(question.spec) if case.stage == "MATCH" else lowered.ask(case.stage, question, lower)


def lower(program: Any, options: Mapping[str, Any]) -> bytes:
    """Lower a program of torch.export by impl.lowering."""
    from conformance.subjects.executorch import remember_pattern_graphs  # noqa: PLC0415 - only here
    from impl.lowering import lower_to_vulkan  # noqa: PLC0415 - torch and executorch take seconds to load

    remember_pattern_graphs()
    return bytes(lower_to_vulkan(program, compile_options=options).buffer)


def run_match(spec: ProgramSpec, fuse: Fuse | None = None) -> Graph:
    """Build the program, fuse it with ``fuse`` (impl.matcher's by default) and observe."""
    from conformance.observe.match import observe_match  # noqa: PLC0415 - the same
    from conformance.program.build import build  # noqa: PLC0415 - torch takes seconds to load
    from impl.matcher import fuse_q4_embeddings  # noqa: PLC0415 - the same

    return observe_match(build(spec), telling(fuse or fuse_q4_embeddings))


def run_pack(table: Table, pack: Pack | None = None, prepare: Pack | None = None) -> Arrays:
    """Pack the table into the layout it asks for.

    ``pack`` replaces impl.packer's function for that layout; ``prepare`` the packing of values to the
    linear-weight bytes that "blocks" starts from.
    """
    from impl import packer  # noqa: PLC0415 - torch takes seconds to load

    values = table_values(table)
    if table.storage != "buffer":
        from conformance.subjects import impl_kernel  # noqa: PLC0415 - Vulkan only where it is asked for

        return impl_kernel.run_prepack_on_device(table, (prepare or packer.pack_linear_weight)(values))
    if table.layout == "blocks":
        return Arrays({"blocks": (pack or packer.pack_blocks)((prepare or packer.pack_linear_weight)(values))})
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
    """Dispatch the question on a Vulkan device; ``conformance.subjects.impl_kernel.run_kernel`` says how."""
    from conformance.subjects import impl_kernel  # noqa: PLC0415 - Vulkan only where it is asked for

    return impl_kernel.run_kernel(question, shader_source=shader_source, fuse=fuse, pack=pack, blocks=blocks)


def check_device(wanted: str) -> None:
    """Check that a Vulkan device of that index or name is there.

    Raises:
        ValueError: it is not; names the devices there are.
        EnvironmentProblem: no Vulkan loader or driver; names the package to install.
    """
    from conformance.subjects import impl_kernel  # noqa: PLC0415 - Vulkan only where it is asked for

    impl_kernel.check_device(wanted)


def device_lines() -> list[str]:
    """One line for each Vulkan device.

    Raises:
        EnvironmentProblem: no Vulkan loader, driver or device; names the package to install.
    """
    from conformance.subjects import impl_kernel  # noqa: PLC0415 - Vulkan only where it is asked for

    return impl_kernel.device_lines()
