"""Searching the space: the same programs everywhere, counted exactly; a fault is shown on the smallest program."""

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import settings
from hypothesis.database import DirectoryBasedExampleDatabase
from hypothesis.internal.conjecture import providers

from conformance.case.case import Case
from conformance.generate.search import MOST_DRAWN, search
from conformance.runs.shards import SHARDS
from conformance.subjects import executorch
from impl.matcher import FusionReport, fuse_q4_embeddings
from reference.program.fusibility import violations
from reference.program.spec import Lookup, PackedLookup, ProgramSpec, Read
from tests.cases.test_generate import signature
from tests.support.generated import ids

SEEDS = ("a", "b", "c")


@dataclass(frozen=True)
class Seen:
    """A lookup: the name of its table, the table's [rows, columns], its group size and its zero point's name."""

    table: str
    rows: int
    columns: int
    group: int
    zero_point: str


def lookups(spec: ProgramSpec) -> Iterator[Seen]:
    for step in spec.lookups():
        if isinstance(step, PackedLookup):
            rows, half = spec.tensor(step.weight).shape
            scale = spec.tensor(step.scale).shape
            yield Seen(step.name, rows, 2 * half, 2 * half // scale[1] if len(scale) > 1 else 0, step.zero_point)
        else:
            source = spec.dequantize(step.table)
            rows, columns = spec.tensor(source.weight).shape
            yield Seen(step.table, rows, columns, source.block_size[1], source.zero_point)


def has_nonzero(spec: ProgramSpec, zero_point: str) -> bool:
    return bool(zero_point) and spec.tensor(zero_point).values.value != 0


def fails_where(condition: Callable[[ProgramSpec], bool]) -> Callable[[Case], str]:
    """A subject's seeded fault: it fails on the programs that meet the condition."""

    def fault(case: Case) -> str:
        assert case.program is not None
        return "MATCH/seeded" if condition(case.program) else ""

    return fault


def smallest(condition: Callable[[ProgramSpec], bool], seed: str) -> ProgramSpec:
    case = search(fails_where(condition), seed=seed, count=3000)
    assert case is not None
    assert case.program is not None
    return case.program


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("rows", [2, 5, 17])
def test_a_fault_that_needs_rows(seed: str, rows: int) -> None:
    spec = smallest(lambda spec: any(seen.rows >= rows for seen in lookups(spec)), seed)
    assert [(seen.rows, seen.columns) for seen in lookups(spec)] == [(rows, 32)]
    assert len(spec.steps) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_that_needs_two_groups_of_32(seed: str) -> None:
    spec = smallest(lambda spec: any(seen.group == 32 and seen.columns > 32 for seen in lookups(spec)), seed)
    assert [(seen.rows, seen.columns, seen.group) for seen in lookups(spec)] == [(1, 64, 32)]
    assert len(spec.steps) == 2


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_that_needs_two_lookups_of_one_table(seed: str) -> None:
    def shares(spec: ProgramSpec) -> bool:
        tables = [seen.table for seen in lookups(spec)]
        return len(set(tables)) < len(tables)

    spec = smallest(shares, seed)
    assert [(seen.rows, seen.columns) for seen in lookups(spec)] == [(1, 32), (1, 32)]
    assert len(spec.steps) == 3
    assert {spec.tensor(step.indices).shape for step in spec.lookups()} == {(1,)}


@pytest.mark.parametrize("seed", SEEDS)
def test_a_fault_that_needs_a_nonzero_zero_point(seed: str) -> None:
    spec = smallest(lambda spec: any(has_nonzero(spec, seen.zero_point) for seen in lookups(spec)), seed)
    assert [(seen.rows, seen.columns, seen.group) for seen in lookups(spec)] == [(1, 32, 32)]
    (zero_point,) = (tensor for tensor in spec.tensors if tensor.name.startswith("z"))
    assert (zero_point.shape, zero_point.values.value) == ((1, 1), 1.0)
    assert len(spec.steps) == 1 + isinstance(spec.steps[-1], Lookup)
    assert {tensor.values.pattern for tensor in spec.tensors if tensor.name.startswith("s")} == {"zeros"}


def test_a_fault_that_needs_a_read_of_indices() -> None:
    spec = smallest(lambda spec: any(isinstance(s, Read) and s.of.startswith("i") for s in spec.steps), "a")
    assert [type(step).__name__ for step in spec.steps] == ["Dequantize", "Lookup", "Read"]
    assert [(seen.rows, seen.columns) for seen in lookups(spec)] == [(1, 32)]


def test_the_simplest_program_is_one_lookup_that_fuses() -> None:
    spec = smallest(lambda _: True, "any")
    assert violations(spec) == {"lookup0": frozenset()}
    assert [(seen.rows, seen.columns, seen.group) for seen in lookups(spec)] == [(1, 32, 32)]
    assert len(spec.steps) == 2


def test_a_different_failure_met_while_shrinking_does_not_count() -> None:
    def check(case: Case) -> str:
        assert case.program is not None
        rows = max(seen.rows for seen in lookups(case.program))
        return "MATCH/large" if rows >= 9 else "MATCH/small" if rows >= 2 else ""

    case = search(check, seed="a", count=300, excused=lambda _, signature: signature == "MATCH/small")
    assert case is not None
    assert check(case) == "MATCH/large"
    assert max(seen.rows for seen in lookups(case.program)) == 9  # type: ignore[arg-type]  # a generated case has one


def test_shrinking_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("conformance.generate.search.SHRINK_SECONDS", -1.0)
    judged: list[str] = []
    fault = fails_where(lambda spec: any(seen.rows >= 5 for seen in lookups(spec)))

    def noted(case: Case) -> str:
        judged.append(fault(case))
        return judged[-1]

    case = search(noted, seed="d", count=300)
    assert case is not None
    assert judged.count("MATCH/seeded") == 1  # the first that failed, and nothing smaller was tried
    assert fault(case) == "MATCH/seeded"


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


def test_a_seeded_fault_of_a_matcher_is_found_and_shrunk() -> None:
    other_readers = {"MATCH/array/values", "MATCH/array/sign_of_zero"}  # the fault edits what they read, too
    case = search(
        partial(signature, fuse=blind_to_zero_points), seed="1", count=480, excused=lambda _, s: s in other_readers
    )
    assert case is not None
    assert signature(case, blind_to_zero_points) == "MATCH/decision/undue_fusion:zero_point_nonzero"
    assert signature(case) == ""
    assert case.program is not None
    assert [(seen.rows, seen.columns) for seen in lookups(case.program)] == [(1, 32)]


def test_excused_programs_do_not_end_the_search_and_others_are_drawn_for_them() -> None:
    judged: list[str] = []

    def known(case: Case) -> str:
        judged.append(case.id)
        return "MATCH/known" if int(case.id[-1], 16) % 2 else ""

    assert search(known, seed="1", count=25, excused=lambda _, signature: signature == "MATCH/known") is None
    assert len(set(judged)) == len(judged) > 25
    assert sum(not int(name[-1], 16) % 2 for name in judged) == 25
    judged.clear()
    assert search(lambda case: judged.append(case.id) or "S", seed="1", count=5, excused=lambda *_: True) is None
    assert len(judged) == 5 * MOST_DRAWN
    missing = partial(signature, fuse=lambda program: (program, FusionReport()))
    case = search(missing, seed="1", count=20)
    assert case is not None
    assert signature(case, lambda program: (program, FusionReport())).startswith("MATCH/decision/missed_fusion")
    assert [(seen.rows, seen.columns) for seen in lookups(case.program)] == [(1, 32)]  # type: ignore[arg-type]


def test_an_exception_of_the_harness_ends_the_search() -> None:
    def broken(case: Case) -> str:
        assert not any(seen.rows >= 9 for seen in lookups(case.program))  # type: ignore[arg-type]
        return ""

    with pytest.raises(AssertionError):
        search(broken, seed="1", count=100)


def test_programs_are_the_same_for_any_number_of_workers() -> None:
    expected = [ids(shard) for shard in range(SHARDS)]
    context = multiprocessing.get_context("spawn")  # workers that have loaded little else
    for workers in (1, 2, 5):
        with ProcessPoolExecutor(workers, context) as pool:
            assert list(pool.map(ids, range(SHARDS))) == expected
    assert len({case for shard in expected for case in shard}) == SHARDS * 11 + 1  # each begins with the simplest
    assert ids(0, seed=4)[1:] != expected[0][1:]


def test_programs_do_not_depend_on_loaded_modules_or_hypothesis_profile(monkeypatch: pytest.MonkeyPatch) -> None:
    """Hypothesis itself would draw constants of the modules that a process has loaded."""
    expected = ids(0)
    asked: list[bool] = []
    constants = providers._get_local_constants
    monkeypatch.setattr(providers, "_get_local_constants", lambda: asked.append(True) or constants())
    profile = settings.get_current_profile_name()
    settings.load_profile("ci")
    try:
        assert ids(0) == expected
    finally:
        settings.load_profile(profile)
    assert not asked


def test_the_example_database_is_read_on_request_only(tmp_path: Path) -> None:
    def run(examples: DirectoryBasedExampleDatabase | None) -> list[str]:
        judged: list[str] = []
        fault = fails_where(lambda spec: any(seen.rows >= 20 for seen in lookups(spec)))

        def noted(case: Case) -> str:
            judged.append(fault(case))
            return judged[-1]

        assert search(noted, seed="a", count=300, examples=examples) is not None
        return judged

    database = DirectoryBasedExampleDatabase(tmp_path)
    first = run(database)
    assert any(tmp_path.iterdir())
    assert first[0] == ""
    assert run(database)[0] == "MATCH/seeded"
    assert run(None) == first
