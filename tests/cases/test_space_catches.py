"""Each condition of 5.3, removed from matcher or predicate, is caught by the graph space and by the catalogue."""

from typing import Any

import pytest

from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_toml
from conformance.generate.search import generated_case
from conformance.harness.child import answer
from conformance.judging import judge as judging
from conformance.subjects import impl
from reference.program.fusibility import REASONS, violations
from reference.program.spec import ProgramSpec
from tests.cases.test_generate import SPECS
from tests.planted.subjects import MissingCheck
from tests.reference.test_fusibility_by_hand import LIMITS, ROWS, one

#: Conditions that no program of the space can break, and why; the hundred programs decided by hand break them.
NOT_IN_THE_SPACE = {
    "embed_dim_not_divisible_by_group": "eager dequantizing wants blocks that tile the row, so no such program runs",
    "indices_dtype": "torch has no embedding with other index types",
    "weight_shape": "an embedding's table has two axes, and so has what is dequantized for it",
    "output_dtype": "torchao dequantizes to the three types that fuse, and to no other",
    "table_limit": "a limit is the caller's, not the program's",
}
#: Where a block spans rows, no scales that eager accepts are [V, D/G] either: these two only break together.
TOGETHER = {"block_size": {"block_size", "scale_shape"}}
#: What a matcher without the condition does where it does not fuse unduly: without a constant, or with values that
#: are no codes, it has nothing to pack and falls over; a renorm that it does not know is another op on the table.
SHOWS = {
    "weight_not_constant": "MATCH/raised/",
    "scale_not_constant": "MATCH/raised/",
    "weight_dtype": "MATCH/raised/",
    "weight_values": "MATCH/raised/",
    "max_norm": "MATCH/decision/wrong_reason",
}
#: So many of the drawn programs at most are looked at for a removed condition.
BOUND = 2000
CATALOGUE = [c for c in select(load(), level="gate") if c.stage == "MATCH"]
_VIOLATIONS = [(spec, violations(spec)) for spec in SPECS[:BOUND]]


def broken_by(reason: str) -> list[ProgramSpec]:
    """The drawn programs with a lookup that breaks this condition and no other (but what it always comes with).

    Removing a condition changes nothing for programs that hold it, so only these need to run.
    """
    reasons = frozenset(TOGETHER.get(reason, {reason}))
    return [spec for spec, broken in _VIOLATIONS if reasons in broken.values()]


def signatures(reason: str, subject: Any) -> list[str]:
    """What the first eight of those programs show of a subject."""
    cases = [generated_case(spec) for spec in broken_by(reason)[:8]]
    return [judging.judge(c, answer(subject, case_to_toml(c)), "test").signature for c in cases]


@pytest.mark.parametrize("reason", [r for r in REASONS if r not in NOT_IN_THE_SPACE])
def test_removed_from_the_matcher(reason: str) -> None:
    class Removed(MissingCheck):
        reasons = tuple(TOGETHER.get(reason, {reason}))

    shown = signatures(reason, Removed())
    expected = SHOWS.get(reason, f"MATCH/decision/undue_fusion:{reason}")
    assert any(s.startswith(expected) for s in shown), shown


@pytest.mark.parametrize("reason", [r for r in REASONS if r not in NOT_IN_THE_SPACE])
def test_removed_from_the_matcher_a_case_of_the_catalogue_shows_it(reason: str) -> None:
    class Removed(MissingCheck):
        reasons = tuple(TOGETHER.get(reason, {reason}))

    reasons = frozenset(TOGETHER.get(reason, {reason}))
    broken = [c for c in CATALOGUE if c.program is not None and reasons in violations(c.program).values()]
    broken.sort(key=lambda c: c.program is not None and c.program.route != "synthetic")  # the quick ones first
    expected = SHOWS.get(reason, f"MATCH/decision/undue_fusion:{reason}")
    shown = (judging.judge(c, answer(Removed(), case_to_toml(c)), "test").signature for c in broken[:5])
    assert any(s.startswith(expected) for s in shown), [c.id for c in broken]


@pytest.mark.parametrize("reason", [r for r in REASONS if r not in NOT_IN_THE_SPACE])
def test_removed_from_the_predicate(reason: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def without(spec: ProgramSpec) -> dict[str, frozenset[str]]:
        return {lookup: reasons - TOGETHER.get(reason, {reason}) for lookup, reasons in violations(spec).items()}

    monkeypatch.setattr(judging, "violations", without)
    shown = signatures(reason, impl.SubjectUnderTest())
    assert f"MATCH/decision/missed_fusion:{reason}" in shown, shown


def test_with_every_condition_in_place_the_same_programs_pass() -> None:
    for reason in REASONS:
        assert not any(signatures(reason, impl.SubjectUnderTest())), reason


def test_what_the_space_cannot_break_is_decided_by_hand() -> None:
    decided = [reasons for _, _, spec, _ in ROWS for reasons in violations(spec).values()]
    decided += [reasons for _, limits, _ in LIMITS for reasons in violations(one(16, 64, 32), limits).values()]
    assert set(NOT_IN_THE_SPACE) <= set().union(*decided)
    assert not any(broken_by(reason) for reason in NOT_IN_THE_SPACE)
