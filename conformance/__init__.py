"""A conformance suite for ExecuTorch's 4-bit embedding on Vulkan: all the names that a subject is written with.

A subject is an implementation under test: a class with ``supports(case)`` and ``run(case)``, described by ``Subject``.

    from conformance import Arrays, table_values

    class Mine:
        def supports(self, case):
            return None if case.stage == "PACK" and case.question.layout == "flat" else "packs flat tables only"

        def run(self, case):
            return Arrays({"packed": my_packer(table_values(case.question))})

``build``, ``observe_export`` and ``observe_match`` load torch when they are first used; nothing else here does.
"""

import importlib
import sys
from typing import TYPE_CHECKING, Any

try:
    from conformance.case.case import Case, Dispatch, EndToEnd, Program, Quantization, Table
    from conformance.case.operands import Operands, operands, table_values
    from conformance.harness.errors import EnvironmentProblem, FeatureMissing
    from conformance.harness.observation import (
        Arrays,
        Decision,
        Facts,
        File,
        Graph,
        Observation,
        Refused,
        Unsupported,
    )
    from conformance.harness.subject import Subject
    from conformance.subjects.stages import LoweringRefused, observe_lowering
except ImportError as error:
    if sys.argv[:1] != ["-m"]:
        raise
    what = f"{sys.executable} is not this project's Python ({error})"  # of python -m conformance
    print(f"error: {what}: `. .nox/shared/bin/activate` has the right one; ./dev conformance makes it", file=sys.stderr)  # noqa: T201
    sys.exit(2)

if TYPE_CHECKING:
    from conformance.observe.export import observe_export
    from conformance.observe.match import observe_match
    from conformance.program.build import BuiltProgram, build

__all__ = [
    "Arrays",
    "BuiltProgram",
    "Case",
    "Decision",
    "Dispatch",
    "EndToEnd",
    "EnvironmentProblem",
    "Facts",
    "FeatureMissing",
    "File",
    "Graph",
    "LoweringRefused",
    "Observation",
    "Operands",
    "Program",
    "Quantization",
    "Refused",
    "Subject",
    "Table",
    "Unsupported",
    "build",
    "observe_export",
    "observe_lowering",
    "observe_match",
    "operands",
    "table_values",
]
_WITH_TORCH = {
    "BuiltProgram": "conformance.program.build",
    "build": "conformance.program.build",
    "observe_export": "conformance.observe.export",
    "observe_match": "conformance.observe.match",
}


def __getattr__(name: str) -> Any:
    if name not in _WITH_TORCH:
        raise AttributeError(f"module 'conformance' has no attribute {name!r}")
    return getattr(importlib.import_module(_WITH_TORCH[name]), name)
