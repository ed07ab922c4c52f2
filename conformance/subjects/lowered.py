"""Stages LOWER and RUN for any subject that turns a program of torch.export into a ``.pte``.

Source: docs/contract.md section 6.
"""

import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from conformance.case.case import Case, Program
from conformance.harness.observation import File, Graph, Refused

#: A lowering: a program of torch.export and the Vulkan partitioner's compile options in, the bytes of a ``.pte`` out.
Lower = Callable[[Any, Mapping[str, Any]], bytes]
_FORCE_FP16 = "force_fp16"


def reason(case: Case) -> str | None:
    """Why a case cannot be lowered: only programs of torch.export can."""
    if case.program is not None and case.program.route == "synthetic":
        return "a synthetic program is in the edge dialect already; lowering starts from torch.export"
    return None


def run_lower(program: Program, lower: Lower) -> File | Refused:
    """Build, lower, write the file under its digest, and report what it holds; refusing force_fp16 is an answer.

    Raises:
        Exception: whatever ``lower`` raises.
    """
    from conformance.observe.lowered import observe_file  # noqa: PLC0415 - the same
    from conformance.program.build import build  # noqa: PLC0415 - torch takes seconds to load
    from conformance.pte.file import read_pte  # noqa: PLC0415 - the same

    built = build(program.spec)
    try:
        data = lower(built.exported, {_FORCE_FP16: True} if program.force_fp16 else {})
    except ValueError as error:
        if program.force_fp16 and _FORCE_FP16 in str(error):
            return Refused(_FORCE_FP16, str(error))
        raise
    file = read_pte(data)
    folder = Path(tempfile.gettempdir()) / "q4gsw-lowered"
    folder.mkdir(exist_ok=True)
    path = folder / f"{file.digest[:16]}.pte"
    path.write_bytes(data)
    return File(str(path), file.digest, observe_file(built, file, data))


def run_run(program: Program, lower: Lower) -> Graph:
    """Build, lower, execute the file without a Vulkan runtime, and report what it computes.

    Raises:
        CannotRun: the file asks for something that cannot be executed; names it.
        EnvironmentProblem: no Vulkan device or shader compiler.
        Exception: whatever ``lower`` raises.
    """
    from conformance.observe.lowered import observe_run  # noqa: PLC0415 - the same
    from conformance.program.build import build  # noqa: PLC0415 - torch takes seconds to load
    from conformance.pte.file import read_pte  # noqa: PLC0415 - the same

    built = build(program.spec)
    return observe_run(built, read_pte(lower(built.exported, {})))


def ask(stage: str, program: Program, lower: Lower) -> File | Graph | Refused:
    """Answer a LOWER or a RUN case's question."""
    from conformance.program.speed import operators_listed_once  # noqa: PLC0415 - torch takes seconds to load

    with operators_listed_once():
        return run_lower(program, lower) if stage == "LOWER" else run_run(program, lower)
