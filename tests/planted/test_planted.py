"""Every seeded fault is caught by the unmodified catalogue, at its own stage and nowhere else.

The implementation without a fault passes the same cases (the conformance session shows it), so a
catch here is the fault's.
"""

from dataclasses import replace
from typing import Any

import pytest

from conformance.case.case import STAGES, Case
from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_toml
from conformance.harness.child import answer
from conformance.judging.judge import judge
from conformance.results.verdict import ERROR, FAIL, PASS, Verdict
from tests.cases.test_catalogue import musts
from tests.planted.sections import ALL, BY_SECTION
from tests.planted.subjects import MatchBug, Planted, Silent

CASES = select(load(), level="gate")
DEEP = [case for case in load() if case.level == "deep"]


def judged(bug: type[Planted], case: Case) -> Verdict:
    """Ask as a child process would, without the process: loading torch for each bug would cost minutes."""
    return judge(case, answer(bug(), case_to_toml(case)), bug.__name__)


@pytest.mark.parametrize("bug", ALL, ids=lambda b: b.__name__)
def test_is_caught_at_its_stage(bug: type[Planted]) -> None:
    """The first case that fails must fail for the bug's reason; what it does to later ones is the same bug.

    It is caught at level gate, or by the case of level deep that it names whole.
    """
    asked = [c for c in CASES if c.stage == bug.stage] + [c for c in DEEP if c.id == bug.near]
    for case in sorted(asked, key=lambda c: not bug.near or bug.near not in c.id):
        verdict = judged(bug, case)
        assert verdict.outcome in {PASS, FAIL}, verdict.reason
        if verdict.outcome == FAIL:
            assert verdict.signature.startswith(bug.signatures), (case.id, verdict.reason)
            return
    pytest.fail("not caught")


def test_a_kernel_of_which_nothing_is_said_is_not_judged() -> None:
    """The widest set would take almost anything: it is an ERROR of whoever answers, in every case."""
    for case in [c for c in CASES if c.stage == "KERNEL"][:3]:
        verdict = judged(Silent, case)
        assert (verdict.outcome, verdict.signature) == (ERROR, "KERNEL/raised/BadObservation")


class OwnWords(MatchBug):
    """Refuses rightly, in words of its own: nothing of the contract asks for ours."""

    signatures = ()

    def fuse(self, program: Any) -> tuple[Any, Any]:
        from impl.matcher import fuse_q4_embeddings

        fused, report = fuse_q4_embeddings(program)
        words = tuple(replace(r, reason="cannot be expressed by the operator") for r in report.refused)
        return fused, replace(report, refused=words)


def test_reasons_in_an_implementation_s_own_words_are_right() -> None:
    case = next(c for c in CASES if c.id == "match/zero-point/ones")
    assert judged(OwnWords, case).outcome == PASS


@pytest.mark.parametrize("stage", ["PACK", "PREPACK", "MATCH", "KERNEL"])
def test_other_stages_do_not_see_it(stage: str) -> None:
    """One bug of each stage leaves every other stage's smoke cases alone: a bug is named at its own stage."""
    bug = next(b for b in ALL if b.stage == stage)
    for case in select(CASES, level="smoke"):
        if case.stage in {"PACK", "PREPACK", "MATCH", "KERNEL"} - {stage} and case.program is None:
            verdict = judged(bug, case)
            assert verdict.outcome == PASS, (case.id, verdict.reason)


def test_there_are_at_least_twelve_in_python_and_glsl() -> None:
    assert len(ALL) >= 12
    assert {b.stage for b in ALL} == set(STAGES)


def test_every_section_with_a_must_has_its_own() -> None:
    assert set(BY_SECTION) == set(musts())
    assert len(set(BY_SECTION.values())) == len(BY_SECTION)
