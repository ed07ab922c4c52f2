"""A subject that raises, aborts, segfaults, exits or hangs costs its own case and no other."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.case.catalogue import load, select
from conformance.harness.observation import Arrays, Graph, Observation, Raised, decode, encode
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED
from reference.arithmetic.bfloat16 import BFLOAT16

MINIATURES = Path(__file__).parents[1] / "fakes/misbehaving.py"
ONE_ROW, MANY_ROWS = "pack/flat/v1", "pack/flat/v7"


def outcomes(miniature: str, *ids: str, seconds: float = 20.0) -> list[tuple[str, str]]:
    """Outcome and signature of each case, in order, from one worker."""
    cases = {c.id: c for c in load()}
    found = []
    with Worker(f"{MINIATURES}:{miniature}", seconds) as worker:
        for name in ids:
            verdict = judge(cases[name], worker.run(cases[name]), miniature)
            found.append((verdict.outcome, verdict.signature))
    return found


def test_a_good_subject_passes() -> None:
    assert outcomes("Good", ONE_ROW, MANY_ROWS) == [(PASS, ""), (PASS, "")]


@pytest.mark.parametrize(
    ("miniature", "outcome", "signature"),
    [
        ("Raises", FAIL, "PACK/raised/KeyError@subject_misbehaving.Raises.bad"),
        ("LacksDriver", ERROR, "PACK/raised/EnvironmentProblem"),
        ("Aborts", ERROR, "PACK/raised/Died"),
        ("Segfaults", ERROR, "PACK/raised/Died"),
        ("Exits", ERROR, "PACK/raised/Died"),
        ("Prints", FAIL, "PACK/dtype_shape/shape"),
        ("ReturnsNonsense", ERROR, "PACK/raised/BadObservation"),
        ("ReturnsObjects", ERROR, "PACK/raised/BadObservation"),
    ],
)
def test_misbehaviour_costs_its_own_case(miniature: str, outcome: str, signature: str) -> None:
    assert outcomes(miniature, MANY_ROWS, ONE_ROW, MANY_ROWS) == [(PASS, ""), (outcome, signature), (PASS, "")]


def test_a_hang_ends_at_the_time_limit() -> None:
    assert outcomes("Hangs", MANY_ROWS, ONE_ROW, MANY_ROWS, seconds=1.0) == [
        (PASS, ""),
        (ERROR, "PACK/raised/Timeout"),
        (PASS, ""),
    ]


def test_a_death_names_its_signal_and_shows_what_was_printed() -> None:
    case = next(c for c in load() if c.id == ONE_ROW)
    with Worker(f"{MINIATURES}:Segfaults") as worker:
        observation = worker.run(case)
    assert isinstance(observation, Raised)
    assert observation.signal == "SIGSEGV"
    assert "Segmentation fault" in worker.printed.text()


def test_unsupported_carries_its_reason() -> None:
    case = next(c for c in load() if c.id == ONE_ROW)
    with Worker(f"{MINIATURES}:SupportsNothing") as worker:
        verdict = judge(case, worker.run(case), "x")
    assert (verdict.outcome, verdict.reason) == (UNSUPPORTED, "a miniature that can do nothing")


def test_a_subject_that_cannot_be_imported_is_an_error_of_the_environment(tmp_path: Path) -> None:
    broken = tmp_path / "broken.py"
    broken.write_text("import nothing_of_that_name\n")
    case = select(load(), ids=[ONE_ROW])[0]
    with Worker(f"{broken}:Subject") as worker:
        verdict = judge(case, worker.run(case), "broken")
    assert verdict.outcome == ERROR
    assert "nothing_of_that_name" in verdict.reason


def test_observations_survive_their_encoding() -> None:
    half = np.array([1.5, np.nan], np.float16)
    brain = np.array([1, 2], np.uint16).view(BFLOAT16)
    graph = Graph(
        (), {"a": half, "empty": np.zeros((0, 4), np.int8)}, {"b": brain, "scalar": np.float32(3)[()] * np.ones(())}
    )
    again = decode(encode(graph))
    assert isinstance(again, Graph)
    for mine, theirs in ((graph.outputs, again.outputs), (graph.source_outputs, again.source_outputs)):
        assert {k: (v.dtype, v.shape, v.tobytes()) for k, v in mine.items()} == {
            k: (v.dtype, v.shape, v.tobytes()) for k, v in theirs.items()
        }


@pytest.mark.parametrize("cut", [0, 4, 8, 20, -1])
def test_truncated_observations_are_refused(cut: int) -> None:
    observation: Observation = Arrays({"a": np.arange(4)})
    with pytest.raises(ValueError):
        decode(encode(observation)[:cut])


def test_a_child_whose_worker_is_gone_before_it_started_leaves() -> None:
    """It asks to be killed with its worker; where that comes too late it would serve nobody for ever."""
    command = [sys.executable, "-m", "conformance.harness.child", "impl", "0", "1", "1"]  # this test is not process 1
    done = subprocess.run(command, cwd=Path(__file__).parents[2], stdin=subprocess.DEVNULL, timeout=60, check=False)
    assert done.returncode == 1
