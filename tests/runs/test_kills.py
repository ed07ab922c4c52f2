"""kill -9 at drawn moments: whatever dies, and whenever, nothing but the case in hand is lost.

Moments are drawn by progress (after how many verdicts, and some milliseconds), so that a slow machine draws no others.
``Q4GSW_KILLS=100`` draws more of them.
"""

import contextlib
import os
import random
import signal
import subprocess
import time
from collections import Counter
from pathlib import Path

import pytest

from conformance.results.verdict import ERROR, PASS, Verdict, read
from tests.runs.test_robustness import judged_once, running, until
from tests.support.suite_runs import PACKED, ended, start

KILLS = int(os.environ.get("Q4GSW_KILLS", "6"))
#: What is killed, by a word of its command line: a test process is xdist's, the child is the subject's.
VICTIMS = {"controller": "", "worker": "exec(eval(sys.stdin.readline()))", "child": "conformance.harness.child"}


def process_of(victim: str, controller: subprocess.Popen[str], mark: str, drawn: random.Random) -> int | None:
    """One process of a run, if it has such a one now."""
    if victim == "controller":
        return controller.pid
    found = []
    for pid in running(mark):
        with contextlib.suppress(OSError):
            if VICTIMS[victim].encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(int(pid))
    return drawn.choice(sorted(found)) if found else None


def kill(victim: str, controller: subprocess.Popen[str], stream: Path, mark: str, drawn: random.Random) -> bool:
    """Kill one at a drawn moment; False where the run was over by then."""
    after, moment = drawn.randrange(len(PACKED)), drawn.uniform(0, 0.05)
    while controller.poll() is None:
        if after == 0 or (stream.is_file() and stream.read_bytes().count(b"\n") > after):
            time.sleep(moment)
            if (pid := process_of(victim, controller, mark, drawn)) is not None:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    return True
        time.sleep(0.005)
    return False


@pytest.mark.parametrize("number", range(KILLS))
def test_whatever_is_killed_whenever(number: int, tmp_path: Path) -> None:
    drawn, victim = random.Random(number), list(VICTIMS)[number % len(VICTIMS)]  # noqa: S311 - moments
    mark, stream = f"MARK={tmp_path}", tmp_path / "r" / "verdicts.jsonl"
    process = start("workers", "Good", tmp_path / "r", env={"MARK": str(tmp_path)})
    killed = kill(victim, process, stream, mark, drawn)
    done = ended(process)
    until(lambda: not running(mark), 20)
    if victim == "controller" and killed:
        lost_nothing_else(list(read(stream).verdicts) if stream.is_file() else [], done.returncode)
        return
    wrong = [v for v in judged_once(tmp_path / "r", done.stdout.splitlines()[-1]).values() if v.outcome != PASS]
    assert len(wrong) <= 1, wrong
    assert all((v.outcome, v.signature.rpartition("/")[2]) in {(ERROR, "Died"), (ERROR, "WorkerDied")} for v in wrong)
    assert done.returncode == bool(wrong)


def lost_nothing_else(verdicts: list[Verdict], code: int) -> None:
    """What a killed run had judged is in its stream, each case once."""
    assert code == -signal.SIGKILL
    assert {v.outcome for v in verdicts} <= {PASS}
    assert all(count == 1 for count in Counter(v.case for v in verdicts).values())
