"""Subject "executorch-runtime", on a miniature runner of ours: it hands out answers and runs nothing.

With ``Q4GSW_RUNTIME`` (a shared library or a runner) a real runtime is asked every program of the catalogue, and the
execution without a runtime has to agree with it.
"""

import os
import shlex
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.case.case import Case, Dispatch, Program
from conformance.case.catalogue import load as catalogue
from conformance.case.operands import operands
from conformance.case.single_table import SingleTable, single_table
from conformance.cli import main
from conformance.harness import command
from conformance.harness.errors import BadSubject, RuntimeFailed
from conformance.harness.observation import Arrays, Unsupported
from conformance.harness.subject import load, resolved
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.pte.delegate import run_delegate
from conformance.pte.file import read_pte
from conformance.pte.runtime import Library, Runner
from conformance.results import replay
from conformance.results.verdict import FAIL, PASS, Verdict
from conformance.runs.run import expected_of, timed
from conformance.sources.runtime import runtime_source
from conformance.subjects.executorch_runtime import TEXTURE_LIMIT, lookup_file
from conformance.subjects.stages import unlowerable
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table.layouts import pack_flat

RUNNER = Path(__file__).parents[1] / "fakes" / "runner.py"
REAL = os.environ.get("Q4GSW_RUNTIME", "")


def runner(answers: Path, mode: str = "") -> str:
    answers.mkdir(exist_ok=True)
    (answers / "mode").write_text(mode)
    return shlex.join([sys.executable, str(RUNNER), str(answers)])


def kernel(**fields: object) -> Case:
    return Case("test/kernel", "KERNEL", "7", "a test", Dispatch(**fields))


def rows(question: Dispatch) -> np.ndarray:
    own = operands(question)
    return embedding_q4gsw(pack_flat(own.values), own.scales, own.group_size, own.indices, output_dtype="float32")


def ask(subject: str, case: Case) -> str:
    asked = load(f"executorch-runtime:{subject}")
    assert asked.supports(case) is None
    verdict = judge(case, asked.run(case), "test")
    return verdict.signature or verdict.outcome


@pytest.mark.parametrize("layout", ["flat", "block"])
def test_a_kernel_case_is_a_file_of_one_operator(tmp_path: Path, layout: str) -> None:
    storage = {"flat": "buffer", "block": "texture2d"}[layout]
    case = kernel(weight_layout=layout, weight_storage=storage, io_storage="texture3d", indices_dtype="int64")
    words = runner(tmp_path / "answers")
    right = rows(case.question)
    np.save(tmp_path / "answers" / "0.npy", right)
    assert ask(words, case) == PASS
    right[1, 3] *= 2
    np.save(tmp_path / "answers" / "0.npy", right)
    assert ask(words, case).startswith("KERNEL/array/")
    np.save(tmp_path / "answers" / "0.npy", right[:, :32])
    assert ask(words, case) == "KERNEL/dtype_shape/shape"


@pytest.mark.parametrize("fields", [{}, {"weight_layout": "flat", "scale_dtype": "float16", "indices_shape": (2, 3)}])
def test_the_file_of_one_operator_computes_the_lookup(fields: dict[str, object]) -> None:
    """On our own kernel, from the file's bytes alone."""
    question = kernel(**fields).question
    file = read_pte(lookup_file(question))
    import torch

    indices = torch.from_numpy(operands(question).indices)
    (out,), ((_, facts),) = run_delegate(file.method("forward").delegates[0], [indices])
    assert np.array_equal(out.numpy(), rows(question))
    assert facts.io_storage == question.io_storage


def test_what_a_runtime_does_not_choose_is_unsupported(tmp_path: Path) -> None:
    subject = load(f"executorch-runtime:{runner(tmp_path / 'answers')}")
    assert "one shader a variant" in str(subject.supports(kernel(float_modes="none")))
    large = {"vocab_size": 8 * TEXTURE_LIMIT + 1, "embed_dim": 32}
    assert "prepacks 16 rows into a texture2d" in str(subject.supports(kernel(weight_storage="buffer")))
    assert subject.supports(kernel(weight_storage="buffer", **large)) is None
    assert "into a buffer" in str(subject.supports(kernel(weight_storage="texture2d", **large)))
    assert "no stage MATCH" in str(subject.supports(replace(program_case(), stage="MATCH")))


def program_case(**fields: object) -> Case:
    return Case("test/run", "RUN", "5.7", "a test", Program(single_table(SingleTable(**fields))))


@pytest.mark.parametrize(
    ("mode", "message"),
    [
        ("exit", "the runner ended with exit code 1: no such operator"),
        ("abort", "the runner ended with signal SIGABRT"),
        ("untold", "output_0.bin: FileNotFoundError"),
        ("mistold", "output_0.bin: ValueError: 'float32' is not DTYPE:SIZES"),
    ],
)
def test_a_runner_that_misbehaves_fails_in_one_line(tmp_path: Path, mode: str, message: str) -> None:
    words = shlex.split(runner(tmp_path / "answers", mode))
    with pytest.raises(RuntimeFailed, match=message) as raised:
        Runner(words).run(b"model", [[np.zeros(3, np.int64)]])
    assert "\n" not in str(raised.value)


def test_several_calls_of_several_sizes_are_one_start_of_the_runner(tmp_path: Path) -> None:
    calls = [np.arange(4), np.arange(6).reshape(2, 3), np.array(5)]
    answers = Runner(shlex.split(runner(tmp_path / "answers"))).run(b"model", [[call] for call in calls])
    for (answer,), call in zip(answers, calls, strict=True):
        assert answer.dtype == np.int64
        assert np.array_equal(answer, call + 1)


def test_a_runner_has_a_time_limit_and_leaves_nothing_running() -> None:
    assert command.call(["sh", "-c", "setsid sleep 30 & exit 0"], 20) is None
    trouble = command.call(["sh", "-c", "sleep 30"], 0.2)
    assert trouble is not None
    assert trouble.kind == "Timeout"


def test_what_is_no_runtime_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    nothing = tmp_path / "nothing.so"
    for given in ("executorch-runtime", f"executorch-runtime:{nothing}", "executorch-runtime:no-such-runner --x"):
        assert main.main(["run", "--subject", given, "--case", "run/control"]) == 2
        assert capsys.readouterr().err.count("\n") == 1
    nothing.write_bytes(b"not a library")
    with pytest.raises(BadSubject, match="cannot be loaded") as raised:
        Library(nothing)
    assert "\n" not in str(raised.value)


def test_a_recorded_runtime_means_the_same_from_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "runner").write_text("#!/bin/sh\n")
    (tmp_path / "runner").chmod(0o755)
    monkeypatch.chdir(tmp_path)
    assert resolved("executorch-runtime:./runner --flag@executorch") == (
        f"executorch-runtime:{tmp_path}/runner --flag@executorch"
    )
    assert runtime_source("./runner").lowering == "impl"


def test_bisection_asks_a_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One that is right about up to 12 indices."""
    case, answers = kernel(weight_layout="flat", indices_shape=(40,)), tmp_path / "answers"
    subject = f"executorch-runtime:{runner(answers)}"
    own = operands(case.question)
    every = np.arange(len(own.values))
    np.save(
        answers / "rows.npy",
        embedding_q4gsw(pack_flat(own.values), own.scales, own.group_size, every, output_dtype="float32"),
    )
    (answers / "most").write_text("13")
    file = str(replay.write(tmp_path, case, Verdict(case.id, "KERNEL", subject, FAIL, "KERNEL/array/values"), {}))
    assert main.main(["bisect", "sizes", file, "--axis", "indices", "--subject", subject]) == 0
    assert "first bad: indices 13 (KERNEL/array/values); 12 is right" in capsys.readouterr().out


def test_answers_that_differ_are_a_failure_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A seeded flaky subject: right, but for one answer in its process, or for all of its next process."""
    monkeypatch.setenv("FLAKY", str(tmp_path / "flaky"))
    flaky = f"{Path(__file__).parents[1] / 'fakes' / 'flaky.py'}:"
    case = kernel(weight_layout="flat", indices_shape=(4,))
    for name, repeat, signature in (
        ("Steady", 5, ""),
        ("InProcess", 1, ""),
        ("InProcess", 3, ""),
        ("InProcess", 4, "KERNEL/nondeterministic/in_process"),
        ("AcrossLoads", 2, "KERNEL/nondeterministic/across_loads"),
    ):
        with Worker(flaky + name, 60) as worker:
            verdict = timed(worker, case, repeat)
        assert verdict.signature == signature, verdict.reason
    assert "out[2, 40] is 0x" in verdict.reason
    assert "1 of 256 elements differ" in verdict.reason
    assert "tiles (row, columns / 32) [2, 1]" in verdict.reason


def programs() -> list[Case]:
    """Every program that can be lowered, as a RUN case."""
    lowered = [c for c in catalogue() if c.stage in {"RUN", "LOWER"} and not unlowerable(c)]
    return [replace(c, stage="RUN") for c in lowered if isinstance(c.question, Program) and not c.question.force_fp16]


@pytest.mark.skipif(not REAL, reason="Q4GSW_RUNTIME names no real runtime")
@pytest.mark.parametrize("lowering", ["impl", "executorch"])
def test_the_execution_without_a_runtime_agrees_with_the_runtime(lowering: str) -> None:
    """A program that one of them answers rightly and the other does not is a fault of the execution without one.

    Where the runtime is known to be wrong there is nothing to agree with.
    """
    known, differ = expected_of("executorch-runtime:"), []
    with Worker(f"executorch-runtime:{REAL}@{lowering}", 120) as real, Worker(lowering, 120) as stand_in:
        for case in [one for one in programs() if one.id not in known.by_case]:
            verdicts = [judge(case, worker.run(case), "test") for worker in (real, stand_in)]
            if (verdicts[0].outcome == PASS) != (verdicts[1].outcome == PASS):
                differ.append(f"{case.id}: {' | '.join(v.signature or v.outcome for v in verdicts)}")
    assert not differ, "\n".join(differ)


@pytest.mark.skipif(not REAL, reason="Q4GSW_RUNTIME names no real runtime")
def test_a_real_runtime_answers_every_variant_that_it_chooses() -> None:
    answered = 0
    with Worker(f"executorch-runtime:{REAL}", 120) as worker:
        for case in [c for c in catalogue() if c.id.startswith("kernel/matrix/")]:
            observation = worker.run(case)
            answered += isinstance(observation, Arrays)
            assert isinstance(observation, Arrays | Unsupported), case.id
    assert answered
