"""Searching the space of programs: judged until one fails, and that one shrunk to the smallest.

Hypothesis draws and shrinks. Which programs a search judges depends on its seed alone.
"""

import hashlib
import math
import time
from collections.abc import Callable
from contextlib import suppress
from unittest import SkipTest

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded
from hypothesis.database import ExampleDatabase
from hypothesis.internal.conjecture.providers import AVAILABLE_PROVIDERS, HypothesisProvider

from conformance.case.case import Case, Program
from conformance.case.toml import spec_to_toml
from conformance.generate.programs import programs
from reference.program.spec import ProgramSpec

#: Seconds for shrinking a failure: some thousand programs, or a few that cost a process or a time limit each.
SHRINK_SECONDS = 60.0
#: Programs drawn for one that is not excused, at most.
MOST_DRAWN = 8


class EvenChoices(HypothesisProvider):
    """Draws each option of a choice as often as the others, from the seed alone.

    Hypothesis's own provider prefers the constants in whatever modules the process has loaded, and repeats parts of a
    program in the next ones: a fifth of them would be duplicates.
    """

    def draw_integer(self, min_value: int | None = None, max_value: int | None = None, **_: object) -> int:
        """Draw from a range that is bounded on both sides."""
        assert self._random is not None and min_value is not None and max_value is not None  # noqa: S101, PT018
        return self._random.randint(min_value, max_value)


AVAILABLE_PROVIDERS["even-choices"] = EvenChoices


class _Failed(Exception):  # noqa: N818 - never leaves this module
    """What tells Hypothesis that an example fails."""


#: What a generated program is asked at each stage: the contract's section, and what it detects.
_ASKED = {
    "MATCH": ("5.3", "a fusion that is undue, missed or wrong, or a program that was touched (generated)"),
    "LOWER": ("6.1", "a lookup in the wrong place, a table there twice, a delegate that cannot run (generated)"),
    "RUN": ("5.7", "a file that computes something else than its program (generated)"),
}


def generated_case(spec: ProgramSpec, stage: str = "MATCH") -> Case:
    """The case ``gen/<hash>`` of a generated program at a stage; equal programs have equal ids."""
    digest = hashlib.sha256(spec_to_toml(spec).encode()).hexdigest()[:12]
    return Case(f"gen/{digest}", stage, *_ASKED[stage], Program(spec), "deep")


def search(
    check: Callable[[Case], str],
    *,
    seed: str,
    count: int,
    excused: Callable[[Case, str], bool] = lambda _case, _signature: False,
    examples: ExampleDatabase | None = None,
    stage: str = "MATCH",
) -> Case | None:
    """Judge ``count`` different programs unless one fails; shrink that one for ``SHRINK_SECONDS`` at most.

    ``check`` runs a case and returns the signature of its failure, or "". One that is ``excused`` is no failure, and
    does not count: another program is drawn, up to MOST_DRAWN times ``count``. With ``examples`` Hypothesis keeps the
    programs that fail, and tries them first. At another ``stage`` than MATCH, programs are drawn that can be lowered.

    Returns:
        The smallest program with the signature of the first failing one (another that is met while shrinking is another
        failure), or None.
    """
    signatures: dict[str, str] = {}  # each program is judged once, however often Hypothesis tries it
    pardoned: set[str] = set()
    smallest: Case | None = None
    deadline = math.inf

    @settings(
        max_examples=2 * MOST_DRAWN * count + 10,  # more than are needed: what is drawn twice is judged once
        database=examples,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
        deadline=None,
        derandomize=False,  # Hypothesis's profile for CI is otherwise
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        backend="even-choices",
    )
    @seeded(seed)  # below the settings: it would drop their database
    @given(programs(lowered=stage != "MATCH"))
    def examine(spec: ProgramSpec) -> None:
        nonlocal smallest, deadline
        case = generated_case(spec, stage)
        if case.id not in signatures:
            judged = len(signatures)
            if smallest is None and (judged - len(pardoned) == count or judged == MOST_DRAWN * count):
                raise SkipTest("enough programs")  # which ends the run
            if time.monotonic() > deadline:
                return
            signatures[case.id] = check(case)
            if signatures[case.id] and excused(case, signatures[case.id]):
                pardoned.add(case.id)
        signature = signatures[case.id]
        if smallest is None and signature and case.id not in pardoned:
            smallest, deadline = case, time.monotonic() + SHRINK_SECONDS
        if smallest is not None and signature == signatures[smallest.id]:
            smallest = case
            raise _Failed

    with suppress(_Failed, SkipTest):
        examine()
    return smallest
