"""Running the suite in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from conformance.case.catalogue import load, select

ROOT = Path(__file__).parents[2]
SUBJECTS = Path(__file__).parents[1] / "fakes/dying.py"
_RUN = ("env", "--default-signal=INT", sys.executable, "-m", "conformance", "run")
PACKED = {c.id for c in select(load(), level="gate", stages=["PACK"])}
#: Ways to run the suite: in the process itself, and in xdist's workers.
WAYS = {"alone": ("--workers", "0"), "workers": ("--workers", "2")}


def start(
    way: str,
    subject: str,
    report: Path,
    *more: str,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.Popen[str]:
    """Start a run over stage PACK, unless ``more`` says otherwise, in a session of its own.

    ``before`` is called in the new process before it becomes Python.
    """
    name = subject if subject == "impl" else f"{SUBJECTS}:{subject}"
    stages = () if "--stages" in more else ("--stages", "PACK")
    workers = () if "--workers" in more else WAYS[way]
    outer = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    own = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # a .pyc that a limit cuts off would break later runs
    }
    return subprocess.Popen(
        [*_RUN, "--subject", name, "--report", str(report), *workers, *stages, *more],
        cwd=ROOT,
        env={**outer, **own, **(env or {})},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        preexec_fn=before,  # noqa: PLW1509 - there is one thread here, and what it does is one system call
    )


def ended(process: subprocess.Popen[str]) -> subprocess.CompletedProcess[str]:
    """Wait for a run, and end it if it takes minutes."""
    with process:
        try:
            out, err = process.communicate(timeout=120)
        finally:
            process.kill()
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def run(
    way: str,
    subject: str,
    report: Path,
    *more: str,
    env: Mapping[str, str] | None = None,
    before: Callable[[], None] | None = None,
) -> subprocess.CompletedProcess[str]:
    """``start`` and ``ended``."""
    return ended(start(way, subject, report, *more, env=env, before=before))
