"""The graph space: what it draws, that both routes agree on it, and that bugs in it are found and shrunk."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings

from conformance.case.case import Case, check
from conformance.case.toml import case_from_toml, case_to_toml
from conformance.generate import programs as generate
from conformance.generate.programs import program, program_of, programs
from conformance.generate.search import Found, generated_case, search
from conformance.generate.shrink import shrink
from conformance.judging.judge import judge
from conformance.observe.execute import run_program
from conformance.observe.match import outputs_by_step
from conformance.program.build import build
from conformance.subjects import executorch, impl
from impl.matcher import FusionReport, fuse_q4_embeddings
from reference.program.fusibility import REASONS, violations
from reference.program.spec import Lookup, ProgramSpec, Values, validate
from reference.program.values import values_array
from tests.meta.space_axes import AXES, Histogram, axis_values, histogram


def drawn(count: int, seed: int = 0) -> list[ProgramSpec]:
    """Programs of evenly drawn choices, the same every time."""
    choices = values_array(Values("bits", seed), "uint8", (count, generate.CHOICES))
    return [program_of(row.tobytes()) for row in choices]


SPECS = drawn(2000)


def signature(case: Case, fuse: Any = None) -> str:
    return judge(case, impl.run_match(case.program, fuse), "test").signature


def test_every_axis_value_is_drawn_often_enough() -> None:
    found = histogram(SPECS)
    assert found.missing(0.008) == ()  # 1 % of a large draw; 2,000 programs scatter around it
    seen, there_are = found.pairs_seen()
    assert seen > 0.9 * there_are
    assert len(list(found.lines())) == len(AXES) + 1


def test_the_histogram_can_fail() -> None:
    found = histogram(SPECS[:200])
    poorer = Histogram(found.programs, {k: v for k, v in found.values.items() if k != ("max_norm", "yes")}, found.pairs)
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
        "table_limit",
        "weight_shape",
    }


def test_programs_do_not_run_out_of_choices() -> None:
    longest = 0
    for spec_number in range(200):
        used = 0
        row = values_array(Values("bits", spec_number), "uint8", (4 * generate.CHOICES,)).tolist()

        def pick(options: Any, row: list[int] = row) -> Any:
            nonlocal used
            used += 1
            return options[row[used - 1] * len(options) >> 8]

        program(pick)
        longest = max(longest, used)
    assert longest < generate.CHOICES


def test_the_simplest_program_is_one_lookup_that_fuses() -> None:
    spec = program_of(b"")
    assert violations(spec) == {"lookup0": frozenset()}
    assert len(spec.steps) == 2


def test_a_case_replays_from_its_own_file() -> None:
    assert any("value=-0.0" in repr(spec) for spec in SPECS[:200])
    for spec in SPECS[:200]:
        case = generated_case(spec)
        assert repr(case_from_toml(case_to_toml(case))) == repr(case)  # -0.0 == 0.0, and is another value
        assert case.id == generated_case(spec).id


def test_shards_draw_the_same_programs_again() -> None:
    def ids(shard: int) -> list[str]:
        seen: list[str] = []

        def note(case: Case) -> str:
            seen.append(case.id)
            return ""

        assert search(note, seed=3, shard=shard, count=20) is None
        return seen

    assert ids(0) == ids(0)
    assert set(ids(0)) & set(ids(1)) <= {generated_case(program_of(b"")).id}


@settings(max_examples=60, database=None, deadline=None)
@given(programs())
def test_the_player_holds_the_contract(spec: ProgramSpec) -> None:
    case = generated_case(spec)
    found = judge(case, impl.run_match(case.program), "impl")
    assert found.outcome == "PASS", found.reason


@pytest.mark.parametrize("number", range(4))
def test_a_program_means_the_same_by_either_route(number: int) -> None:
    """A faithful subset: the same spec through torch.export (and torchao where it has a table)."""
    spec = next(
        s for s in SPECS[number * 50 :] if bool(s.tables) == (number % 2 == 0) and all(t.vocab_size for t in s.tables)
    )
    other = dataclasses.replace(spec, route="torchao" if spec.tables else "export")
    found = []
    for route in (spec, other):
        built = build(route)
        outputs, failed = outputs_by_step(built, built.program, run_program(built.program, built.inputs))
        assert not failed
        observed = impl.run_match(route)
        found.append(({k: v.tobytes() for k, v in outputs.items()}, [(d.fused, d.reason) for d in observed.decisions]))
    assert found[0] == found[1]


def blind_to_zero_points(source: Any) -> Any:
    """A matcher that takes every zero point that the program holds for zero."""
    edited = executorch.shallow_copy(source)
    for held in (edited.state_dict, edited.constants):
        for name, tensor in held.items():
            if name.startswith("z"):
                zeros = torch.zeros_like(tensor)
                parameter = isinstance(tensor, torch.nn.Parameter)
                held[name] = torch.nn.Parameter(zeros, requires_grad=False) if parameter else zeros
    return fuse_q4_embeddings(edited)


def test_a_planted_bug_is_found_and_shrunk(tmp_path: Path) -> None:
    journal = tmp_path / "now.toml"
    other_readers = {"MATCH/array/values", "MATCH/array/sign_of_zero"}  # the plant edits what they read, too

    def bug(case: Case) -> str:
        return signature(case, blind_to_zero_points)

    shards = (search(bug, seed=1, shard=shard, count=60, ignore=other_readers, journal=journal) for shard in range(8))
    found = next(f for f in shards if f)
    assert isinstance(found, Found)
    assert found.signature == "MATCH/decision/undue_fusion:zero_point_nonzero"
    assert found.case.program is not None
    assert len(found.case.program.lookups()) == 1
    assert len(found.case.program.steps) == 2
    assert case_from_toml(journal.read_text()).id.startswith("gen/")
    assert signature(found.case, blind_to_zero_points) == found.signature
    assert signature(found.case) == ""


def test_known_signatures_do_not_count() -> None:
    everything = "MATCH/decision/missed_fusion:no_reason"
    assert search(lambda _: everything, seed=1, shard=0, count=5, ignore={everything}) is None
    found = search(lambda c: signature(c, lambda p: (p, FusionReport())), seed=1, shard=0, count=20)
    assert found is not None
    assert found.signature == everything
    assert axis_values(found.case.program) >= {("lookups", "1"), ("fusible", "all")}  # type: ignore[arg-type]


def test_shrinking_drops_everything_that_does_not_matter() -> None:
    spec = next(s for s in SPECS if len(s.steps) > 6 and any(x.max_norm for x in s.steps if isinstance(x, Lookup)))

    def has_max_norm(candidate: ProgramSpec) -> bool:
        return any(x.max_norm for x in candidate.steps if isinstance(x, Lookup))

    small = shrink(spec, has_max_norm)
    assert [type(s).__name__ for s in small.steps] == ["Dequantize", "Lookup"]
    assert len(small.tensors) <= 3
    assert {t.values for t in small.tensors} <= {Values("zeros")}
    assert shrink(spec, has_max_norm, limit=0) == spec
