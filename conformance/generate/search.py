"""Searching the space of programs: judged until one fails, and that one shrunk to the smallest.

Hypothesis draws and shrinks. Which programs a search judges depends on its seed alone.
"""

import hashlib
import math
import time
from collections.abc import Callable, Collection
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


def generated_case(spec: ProgramSpec) -> Case:
    """The MATCH case ``gen/<hash>`` of a generated program; equal programs have equal ids."""
    digest = hashlib.sha256(spec_to_toml(spec).encode()).hexdigest()[:12]
    detects = "a fusion that is undue, missed or wrong, or a program that was touched (generated)"
    return Case(f"gen/{digest}", "MATCH", "5.3", detects, Program(spec), "deep")


def search(
    check: Callable[[Case], str],
    *,
    seed: str,
    count: int,
    known: Collection[str] = (),
    examples: ExampleDatabase | None = None,
) -> Case | None:
    """Judge ``count`` different programs unless one fails; shrink that one for ``SHRINK_SECONDS`` at most.

    ``check`` runs a case and returns the signature of its failure, or ""; those that are ``known`` do not count. With
    ``examples`` Hypothesis keeps the programs that fail, and tries them first.

    Returns:
        The smallest program with the signature of the first failing one (another that is met while shrinking is another
        failure), or None.
    """
    signatures: dict[str, str] = {}  # each program is judged once, however often Hypothesis tries it
    smallest: Case | None = None
    deadline = math.inf

    @settings(
        max_examples=2 * count + 10,  # more than are needed: what is drawn twice is judged once
        database=examples,
        phases=(Phase.reuse, Phase.generate, Phase.shrink),
        deadline=None,
        derandomize=False,  # Hypothesis's profile for CI is otherwise
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
        backend="even-choices",
    )
    @seeded(seed)  # below the settings: it would drop their database
    @given(programs())
    def examine(spec: ProgramSpec) -> None:
        nonlocal smallest, deadline
        case = generated_case(spec)
        if case.id not in signatures:
            if smallest is None and len(signatures) == count:
                raise SkipTest("enough programs")  # which ends the run
            if time.monotonic() > deadline:
                return
            signatures[case.id] = check(case)
        signature = signatures[case.id]
        if smallest is None and signature and signature not in known:
            smallest, deadline = case, time.monotonic() + SHRINK_SECONDS
        if smallest is not None and signature == signatures[smallest.id]:
            smallest = case
            raise _Failed

    with suppress(_Failed, SkipTest):
        examine()
    return smallest
