"""Searching the graph space: seeded shards of programs, the first failure shrunk to a minimal case.

A shard is a number: which programs it holds depends on the seed and the shard alone, so any number of
workers draws the same ones.

Source: docs/contract.md section 5.
"""

import contextlib
import hashlib
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path

from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import seed as seeded

from conformance.case.case import Case, Program
from conformance.case.toml import case_to_toml, spec_to_toml
from conformance.generate.programs import programs
from conformance.generate.shrink import shrink
from reference.program.spec import ProgramSpec

#: Programs of one shard.
SHARD = 250


@dataclass(frozen=True)
class Found:
    """A failure: the smallest program that shows it, its signature, and how many programs were examined."""

    case: Case
    signature: str
    examined: int


#: How many programs to try while shrinking a failure that costs a child process (5 s) or a time limit each.
_TRIES = {"Died": 20, "Timeout": 3, "EnvironmentProblem": 0, "Untestable": 0}


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
    seed: int,
    shard: int,
    count: int = SHARD,
    ignore: Collection[str] = (),
    journal: Path | None = None,
) -> Found | None:
    """Examine the programs of a shard until one fails; shrink it.

    Args:
        check: runs a case and returns the signature of its failure, or "".
        seed: the run's seed.
        shard: which part of the run.
        count: how many programs.
        ignore: signatures that are known and do not count.
        journal: a file that holds the case being examined, so that a crash names its culprit.

    Returns:
        The failure with the smallest program that has the same signature, or None. A different failure
        met while shrinking is a different failure and does not count.
    """
    first: list[tuple[ProgramSpec, str]] = []
    examined = 0

    def signature(spec: ProgramSpec) -> str:
        nonlocal examined
        case = generated_case(spec)
        if journal is not None:
            journal.write_text(case_to_toml(case), encoding="utf-8")
        examined += 1
        return check(case)

    @seeded(seed * 1_000_003 + shard)
    @settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=(Phase.generate,),  # ours to shrink: a byte less would be quite another program
        suppress_health_check=list(HealthCheck),
        report_multiple_bugs=False,
    )
    @given(programs())
    def examine(spec: ProgramSpec) -> None:
        if first:
            raise _Failed  # Hypothesis runs a failing example once more
        found = signature(spec)
        if found and found not in ignore:
            first.append((spec, found))
            raise _Failed

    with contextlib.suppress(_Failed):
        examine()
    if not first:
        return None
    spec, wanted = first[0]
    tries = _TRIES.get(wanted.rpartition("/")[2], 1000)
    smallest = shrink(spec, lambda candidate: signature(candidate) == wanted, tries)
    return Found(generated_case(smallest), wanted, examined)
