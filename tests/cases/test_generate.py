"""The space of generated programs: what it draws, that both routes agree on it, and that impl passes on it."""

import dataclasses
from typing import Any

import pytest
from hypothesis import given, settings

from conformance.case.case import Case, check
from conformance.case.toml import case_from_toml, case_to_toml
from conformance.generate.programs import programs
from conformance.generate.search import generated_case
from conformance.judging.judge import judge
from conformance.observe.execute import run_program
from conformance.observe.match import outputs_by_step
from conformance.program.build import build
from conformance.subjects import impl
from reference.program.fusibility import REASONS, violations
from reference.program.spec import ProgramSpec, validate
from tests.meta.space_axes import AXES, Histogram, histogram
from tests.support.generated import drawn

SPECS = drawn(2000)


def signature(case: Case, fuse: Any = None) -> str:
    return judge(case, impl.run_match(case.program, fuse), "test").signature


def test_every_axis_value_is_drawn_often_enough() -> None:
    counts = histogram(SPECS)
    assert counts.missing(0.008) == ()  # 1 % of a large draw; 2,000 programs scatter around it
    seen, there_are = counts.pairs_seen()
    assert seen > 0.9 * there_are
    assert len(list(counts.lines())) == len(AXES) + 1


def test_the_histogram_can_fail() -> None:
    counts = histogram(SPECS[:200])
    poorer = Histogram(
        counts.programs, {k: v for k, v in counts.values.items() if k != ("max_norm", "yes")}, counts.pairs
    )
    assert ("max_norm", "yes") in poorer.missing(0.008)
    odd = SPECS[0]
    widened = tuple(dataclasses.replace(t, dtype="int16") if t.name.startswith("i") else t for t in odd.tensors)
    with pytest.raises(ValueError, match="axis indices_dtype has no value 'int16'"):
        histogram([dataclasses.replace(odd, tensors=widened)])


def test_between_30_and_70_percent_are_fusible_and_none_is_rejected() -> None:
    lookups = [bool(reasons) for spec in SPECS for reasons in violations(spec).values()]
    assert 0.3 < 1 - sum(lookups) / len(lookups) < 0.7
    whole = [any(not reasons for reasons in violations(spec).values()) for spec in SPECS]
    assert 0.3 < sum(whole) / len(whole) < 0.7
    for spec in SPECS:
        validate(spec)
        check(generated_case(spec))
    assert len(set(SPECS)) == len(SPECS)


def test_every_reason_that_a_program_can_have_is_drawn() -> None:
    reasons = set().union(*(r for spec in SPECS for r in violations(spec).values()))
    # torch has no embedding with other index dtypes or a table of other ranks, eager dequantizing wants blocks that
    # tile the row, and the limits are the caller's, not the program's.
    assert set(REASONS) - reasons == {
        "embed_dim_not_divisible_by_group",
        "indices_dtype",
        "output_dtype",
        "table_limit",
        "weight_shape",
    }


def test_a_case_replays_from_its_own_file() -> None:
    assert any("value=-0.0" in repr(spec) for spec in SPECS[:200])
    for spec in SPECS[:200]:
        case = generated_case(spec)
        assert repr(case_from_toml(case_to_toml(case))) == repr(case)  # -0.0 == 0.0, and is another value
        assert case.id == generated_case(spec).id


@settings(max_examples=60, database=None, deadline=None)
@given(programs())
def test_the_optimized_implementation_holds_the_contract(spec: ProgramSpec) -> None:
    case = generated_case(spec)
    verdict = judge(case, impl.run_match(case.program), "impl")
    assert verdict.outcome == "PASS", verdict.reason


@pytest.mark.parametrize("number", range(4))
def test_a_program_means_the_same_by_either_route(number: int) -> None:
    """A faithful subset: the same spec through torch.export (and torchao where it has a table)."""
    spec = next(
        s for s in SPECS[number * 50 :] if bool(s.tables) == (number % 2 == 0) and all(t.vocab_size for t in s.tables)
    )
    other = dataclasses.replace(spec, route="torchao" if spec.tables else "export")
    results = []
    for route in (spec, other):
        built = build(route)
        outputs, failed = outputs_by_step(built, built.program, run_program(built.program, built.inputs))
        assert not failed
        observed = impl.run_match(route)
        results.append(
            ({k: v.tobytes() for k, v in outputs.items()}, [(d.fused, d.reason) for d in observed.decisions])
        )
    assert results[0] == results[1]
