"""Shards of generated programs in the suite: what a failure, a death, a known failure and a killed run leave behind."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from conformance.case.case import Case
from conformance.harness.observation import Observation, Raised, Unsupported
from conformance.results import replay
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, XFAIL
from conformance.runs.shards import LOWERED, PROGRAMS, SHARDS, Shard, run_shard, shards, summed
from conformance.subjects import impl
from reference.program.spec import PackedLookup

SHARD = Shard(0, 0, 12)


class Fake:
    """In a worker's place: no child process, which would take seconds to import torch."""

    subject = "impl"
    first = False  # no child that imports
    printed = SimpleNamespace(text=lambda: "")  # nor one that prints

    def __init__(self, answer: Callable[[Case], Observation]) -> None:
        self.run = answer


def ran(answer: Callable[[Case], Observation], report: Path, known: tuple[str, ...] = ()) -> tuple[Case | None, Any]:
    return run_shard(Fake(answer), SHARD, report, lambda _, signature: signature in known)  # type: ignore[arg-type]  # a fake worker


def has_packed(case: Case) -> bool:
    assert case.program is not None
    return any(isinstance(step, PackedLookup) for step in case.program.steps)


def bad(kind: str) -> Callable[[Case], Observation]:
    return lambda case: (
        Raised(kind, "a miniature's mistake", trouble=kind == "Died")
        if has_packed(case)
        else impl.run_match(case.program)
    )


def test_the_optimized_implementation_passes_and_leaves_no_journal(tmp_path: Path) -> None:
    case, verdict = ran(lambda case: impl.run_match(case.program), tmp_path)
    assert case is None
    assert verdict.outcome == PASS
    assert verdict.facts["programs"] == 12
    assert not list((tmp_path / "journal").iterdir())
    assert verdict.digest == ran(lambda case: impl.run_match(case.program), tmp_path)[1].digest
    assert summed([verdict]) == ["generated programs: 12; seed 0; 1 shards, each counted as one test"]


@pytest.mark.parametrize(("kind", "outcome"), [("KeyError", FAIL), ("Died", ERROR)])
def test_a_failure_is_shrunk_to_a_replay_file(tmp_path: Path, kind: str, outcome: str) -> None:
    case, verdict = ran(bad(kind), tmp_path)
    assert case is not None
    assert (verdict.outcome, verdict.signature) == (outcome, f"MATCH/raised/{kind}")
    assert verdict.case == "gen/seed-0/shard-0/12-programs"
    assert case.id in verdict.reason
    (file,) = (tmp_path / "replay").iterdir()
    assert str(file) in verdict.replay
    assert replay.read(file).case == case
    assert case.program is not None
    assert len(case.program.steps) == 1 or kind == "Died"  # a death costs a process: few tries


def test_known_failures_are_counted_and_do_not_end_the_shard(tmp_path: Path) -> None:
    case, verdict = ran(bad("KeyError"), tmp_path, ("MATCH/raised/KeyError",))
    assert case is None
    assert verdict.outcome == XFAIL
    excused = verdict.facts["known_failures"]
    assert excused > 0
    assert verdict.facts["programs"] == 12 + excused  # another one is drawn for each
    assert verdict.facts["excused"] == {"MATCH/raised/KeyError": excused}
    assert "known failures" in summed([verdict])[0]


def test_a_subject_without_the_stage_is_unsupported(tmp_path: Path) -> None:
    case, verdict = ran(lambda case: Unsupported("no matcher here"), tmp_path)
    assert case is None
    assert (verdict.outcome, verdict.reason) == (UNSUPPORTED, "no matcher here")


def test_a_killed_run_leaves_its_culprit(tmp_path: Path) -> None:
    def killed(case: Case) -> Observation:
        if has_packed(case):
            raise KeyboardInterrupt
        return impl.run_match(case.program)

    with pytest.raises(KeyboardInterrupt):
        ran(killed, tmp_path)
    (file,) = (tmp_path / "journal").iterdir()
    assert has_packed(replay.read(file).case)


def test_a_failure_that_does_not_show_again_says_so(tmp_path: Path) -> None:
    calls: list[str] = []

    def once(case: Case) -> Observation:
        calls.append(case.id)
        return Raised("KeyError", "once") if len(calls) == 1 else impl.run_match(case.program)

    _, verdict = ran(once, tmp_path)
    assert verdict.outcome == ERROR
    assert "failed once with MATCH/raised/KeyError and then with nothing" in verdict.reason


def test_levels_and_stages() -> None:
    assert shards("smoke", (), 0) == ()
    assert shards("gate", ("PACK",), 0) == ()
    lowered = shards("deep", ("RUN",), 5)
    assert (len(lowered), sum(s.programs for s in lowered)) == (10, LOWERED["deep"])
    assert all(Shard.named(s.id) == s for s in (*lowered, *shards("deep", (), 5)))
    for level in ("gate", "deep"):
        drawn = shards(level, ("MATCH",), 5)
        assert len(drawn) == SHARDS
        assert sum(s.programs for s in drawn) == PROGRAMS[level]
    assert (PROGRAMS["gate"], PROGRAMS["deep"]) == (500, 20_000)
