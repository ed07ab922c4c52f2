"""Whatever is killed, in whatever order and with however many workers: one verdict a case, and always the same one."""

import os
import re
import shlex
import signal
import time
import xml.etree.ElementTree as ET
from argparse import Namespace
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from conformance.cli.main import main
from conformance.files import append_line
from conformance.results import replay
from conformance.results.expectations import NONE
from conformance.results.verdict import ERROR, FAIL, PASS, UNEXPECTED, Verdict, Writer, last_line, read
from conformance.runs.plugin import Controller, error_verdict
from conformance.runs.report import Report
from conformance.runs.shards import Shard
from tests.fakes.dying import AT
from tests.support.suite_runs import PACKED, WAYS, ended, run, start

FILES = {"verdicts.jsonl", "junit.xml", "summary.md", "report.html"}


def judged_once(report: Path, last: str) -> dict[str, Verdict]:
    """The verdicts of a run that came to its end: one for each case of stage PACK, and all counts alike."""
    stream = read(report / "verdicts.jsonl")
    assert not stream.truncated
    assert Counter(v.case for v in stream.verdicts) == Counter(PACKED)
    assert last == last_line(stream.verdicts)
    assert {p.name for p in report.iterdir()} >= FILES
    suites = ET.parse(report / "junit.xml").getroot()  # noqa: S314 - made just now
    assert suites[0].attrib["tests"] == str(len(PACKED))
    unexpected = sum(v.outcome in UNEXPECTED for v in stream.verdicts)
    assert sum(int(suites[0].attrib[name]) for name in ("failures", "errors")) == unexpected
    return {v.case: v for v in stream.verdicts}


def test_a_killed_worker_costs_the_case_that_it_was_at(tmp_path: Path) -> None:
    done = run("workers", "KillsItsWorker", tmp_path / "r")
    assert done.returncode == 1
    verdicts = judged_once(tmp_path / "r", done.stdout.splitlines()[-1])
    assert {v.case for v in verdicts.values() if v.outcome != PASS} == {AT}
    bad = verdicts[AT]
    assert (bad.outcome, bad.signature) == (ERROR, "PACK/raised/WorkerDied")
    assert re.search(r"its test process, gw\d, died", bad.reason)
    assert f"ERROR {AT}" in done.stdout
    assert replay.read(Path(shlex.split(bad.replay)[2])).case.id == AT


def test_a_worker_killed_after_its_last_verdict_costs_nothing(tmp_path: Path) -> None:
    done = run("workers", "KillsItsWorkerAfterwards", tmp_path / "r", "--workers", "1")
    assert "node down: Not properly terminated" in done.stdout
    verdicts = judged_once(tmp_path / "r", done.stdout.splitlines()[-1])
    assert {v.outcome for v in verdicts.values()} == {PASS}
    assert done.returncode == 0


def test_cases_that_no_process_is_left_for_are_errors(tmp_path: Path) -> None:
    done = run("workers", "KillsItsWorker", tmp_path / "r", "--workers", "1", "--", "--max-worker-restart", "0")
    assert done.returncode == 1
    stream = read(tmp_path / "r" / "verdicts.jsonl")
    found = Counter((v.outcome, v.signature) for v in stream.verdicts)
    assert sum(found.values()) == len({v.case for v in stream.verdicts}) == len(PACKED)
    assert found[ERROR, "PACK/raised/WorkerDied"] == 1
    left = found[ERROR, "PACK/raised/NotRun"]
    assert left > 0
    assert found[PASS, ""] == len(PACKED) - 1 - left
    assert f"{left} cases were not judged: too many test processes died" in done.stdout
    assert done.stdout.splitlines()[-1] == last_line(stream.verdicts)


@pytest.mark.parametrize("way", ["workers", "alone"])
def test_a_killed_run_keeps_its_verdicts_and_leaves_no_process(
    way: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    mark, stream = tmp_path / "hangs", tmp_path / "r" / "verdicts.jsonl"
    with start(way, "Hangs", tmp_path / "r", env={"MARK": str(mark)}) as process:
        try:
            until(mark.exists)
            until(lambda: stream.read_bytes().count(b"\n") > 5)
            assert running(f"MARK={mark}")
        finally:
            process.kill()
    until(lambda: not running(f"MARK={mark}"), 20)
    before = read(stream)
    assert before.truncated
    assert len(before.verdicts) >= 5
    assert {v.outcome for v in before.verdicts} == {PASS}
    assert main(["report", str(tmp_path / "r"), "--html"]) == 1
    said = capsys.readouterr().out
    assert f"truncated: the run did not finish; {len(before.verdicts)} verdicts were written" in said
    assert "run did not finish" in (tmp_path / "r" / "report.html").read_text()


def until(holds: Callable[[], bool], seconds: float = 60) -> None:
    """Wait until ``holds()`` is true."""
    ends = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < ends, "waited in vain"
        time.sleep(0.05)


def running(mark: str) -> list[str]:
    """Processes that have ``mark``, as NAME=VALUE, in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
        except OSError:  # it has just ended, or is another user's
            continue
    return found


def test_a_harness_that_raises_costs_its_own_case(tmp_path: Path) -> None:
    (tmp_path / "broken_harness.py").write_text(
        "from conformance.runs import run\n"
        "judge = run.judge\n"
        "def raises(case, *rest):\n"
        f"    assert case.id != '{AT}', 'planted'\n"
        "    return judge(case, *rest)\n"
        "run.judge = raises\n"
    )
    env = {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), str(tmp_path)])}
    done = run("alone", "Good", tmp_path / "r", "--", "-p", "broken_harness", env=env)
    assert done.returncode == 1
    bad = judged_once(tmp_path / "r", done.stdout.splitlines()[-1])[AT]
    assert (bad.outcome, bad.signature) == (ERROR, "PACK/raised/Harness")
    assert "the harness raised AssertionError: planted" in bad.reason


def test_a_worker_that_dies_after_the_verdict_costs_nothing(tmp_path: Path) -> None:
    """It may be killed while it ends the test of a case whose verdict has come."""
    shard, node = Shard(0, 3, 50), "test_generated.py::test_generated[gen/seed-0/shard-3/50-programs]"
    report = Report(str(tmp_path / "r"), {}, NONE)
    controller = Controller(Namespace(subject="s", max_failures=0), report, [shard])
    controller.pytest_xdist_node_collection_finished([node])

    def crash() -> pytest.TestReport:
        dead = pytest.TestReport(node, (node, None, node), {}, "failed", "crashed", "???")  # type: ignore[arg-type]
        vars(dead)["node"] = SimpleNamespace(gateway=SimpleNamespace(id="gw0"))
        controller.pytest_handlecrashitem(node, dead)
        controller.pytest_runtest_logreport(dead)
        return dead

    assert crash().failed
    assert crash().passed
    (verdict,) = report.verdicts
    assert (verdict.case, verdict.outcome, verdict.contract) == (shard.id, ERROR, "5.3")
    assert verdict.signature == "MATCH/raised/WorkerDied"
    assert "journal/shard-3.toml" in verdict.reason, "the program that it was at"
    assert verdict.replay == f"q4gsw replay {tmp_path}/r/journal/shard-3.toml"


def test_a_run_that_is_cut_off_tells_what_it_wrote(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ctrl-C comes between a verdict's line and what the run notes of it."""
    shard, node = Shard(0, 3, 50), "test_generated.py::test_generated[gen/seed-0/shard-3/50-programs]"
    report = Report(str(tmp_path / "r"), {}, NONE)
    controller = Controller(Namespace(subject="s", max_failures=0, all=False), report, [shard])
    controller.pytest_xdist_node_collection_finished([node])
    with pytest.raises(KeyboardInterrupt) as pressed:
        raise KeyboardInterrupt
    controller.pytest_keyboard_interrupt(pressed)
    Writer(tmp_path / "other.jsonl", {}).add(error_verdict(shard, "s", "Harness", "planted"))
    *_, line = (tmp_path / "other.jsonl").read_text().splitlines()
    append_line(tmp_path / "r" / "verdicts.jsonl", line)
    with pytest.raises(KeyboardInterrupt):
        controller.end(pytest.ExitCode.INTERRUPTED)
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == last_line(read(tmp_path / "r").verdicts)
    assert any(line.startswith("interrupted: 0 cases were not run") for line in lines)


def told(report: Path) -> dict[str, tuple[object, ...]]:
    """What a run says of each case; neither time nor the report's place is part of it."""
    stream = read(report / "verdicts.jsonl")
    assert not stream.truncated
    found = {v.case: (v.outcome, v.signature, v.digest, v.strict, v.reason) for v in stream.verdicts}
    assert len(found) == len(stream.verdicts)
    return found


def ordered(report: Path, subject: str, order: str, *more: str) -> dict[str, tuple[object, ...]]:
    run("alone", subject, report, *more, "--", "-p", "tests.support.reordered", env={"ORDER": order})
    return told(report)


def test_neither_workers_nor_order_change_a_verdict(tmp_path: Path) -> None:
    stages = ("--stages", "PACK,KERNEL,MATCH")
    alone = ordered(tmp_path / "0", "Oracle", "as it is", "--workers", "0", *stages)
    shards = [found for case, found in alone.items() if case.startswith("gen/")]
    assert FAIL in {found[0] for found in shards}
    assert {found[3] for found in alone.values()} == {None, True, False}
    assert len(alone) > 40
    for workers, order in (("1", "reversed"), ("2", "17"), ("3", "as it is")):
        assert ordered(tmp_path / workers, "Oracle", order, "--workers", workers, *stages) == alone


def test_a_subject_that_remembers_is_seen_in_the_comparison(tmp_path: Path) -> None:
    forward = ordered(tmp_path / "0", "Counts", "as it is", "--workers", "0")
    other = ordered(tmp_path / "2", "Counts", "reversed", "--workers", "2")
    assert set(other) == set(forward)
    differ = [{i for i, (a, b) in enumerate(zip(forward[c], other[c], strict=True)) if a != b} for c in forward]
    assert {2} in differ, "no case that differs by its digest alone"
    assert any({0, 1} <= d for d in differ)


def test_the_player_s_own_verdicts_do_not_depend_on_workers(tmp_path: Path) -> None:
    found = []
    for workers, order in (("0", "as it is"), ("2", "5")):
        report = tmp_path / workers
        found.append(ordered(report, "impl", order, "--workers", workers))
    assert found[0] == found[1]
    assert {v[0] for v in found[0].values()} == {PASS}
    assert all(v[2] for v in found[0].values())


def test_max_failures_and_last_failed_with_workers(tmp_path: Path) -> None:
    stopped = run("workers", "Wrong", tmp_path / "two", "--max-failures", "2")
    assert stopped.returncode == 1
    stream = read(tmp_path / "two" / "verdicts.jsonl")
    assert not stream.truncated
    bad = {v.case for v in stream.verdicts if v.outcome == FAIL}
    assert 2 <= len(bad) <= 5  # each worker ends what it holds: two cases, the second failure among them
    left = len(PACKED) - len(stream.verdicts)
    assert left > len(PACKED) // 2
    *_, told_so, _, last = stopped.stdout.splitlines()
    assert told_so == f"stopped after {len(bad)} failures; {left} cases were not run"
    assert last == last_line(stream.verdicts)

    again = run("workers", "Good", tmp_path / "again", "--last-failed", str(tmp_path / "two"))
    assert again.returncode == 0
    assert {v.case for v in read(tmp_path / "again" / "verdicts.jsonl").verdicts} == bad
    assert again.stdout.splitlines()[-1].startswith(f"tests:{len(bad)} passed:{len(bad)} ")


def test_a_death_counts_as_a_failure(tmp_path: Path) -> None:
    done = run("workers", "KillsItsWorker", tmp_path / "r", "--workers", "1", "--max-failures", "1")
    assert done.returncode == 1
    stream = read(tmp_path / "r" / "verdicts.jsonl")
    assert not stream.truncated
    assert stream.verdicts[-1].signature == "PACK/raised/WorkerDied"
    assert f"stopped after 1 failures; {len(PACKED) - len(stream.verdicts)} cases were not run" in done.stdout


@pytest.mark.parametrize("way", WAYS)
def test_ctrl_c_ends_a_run_with_one_line(way: str, tmp_path: Path) -> None:
    mark = tmp_path / "hangs"
    process = start(way, "Hangs", tmp_path / "r", env={"MARK": str(mark)})
    until(mark.exists)
    process.send_signal(signal.SIGINT)
    done = ended(process)
    assert done.returncode == 130
    assert done.stderr.startswith("error: interrupted; a report that was being written")
    assert done.stderr.count("\n") == 1
    stream = read(tmp_path / "r" / "verdicts.jsonl")
    assert stream.truncated
    assert re.search(r"interrupted: \d+ cases were not run, and the report says that it is truncated", done.stdout)
    assert done.stdout.splitlines()[-1] == last_line(stream.verdicts)


def test_what_python_says_while_it_cleans_up_is_no_verdict(tmp_path: Path) -> None:
    """An interrupted run leaves pipes of its workers behind; pytest makes exit code 1 of such a warning."""
    done = run("alone", "impl", tmp_path / "r", "--case", "pack/flat/v1", "--", "-p", "tests.fakes.leaking")
    assert done.returncode == 0, done.stderr
