"""Running the suite both ways in a process of its own, and reading what it left."""

import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from pathlib import Path

from conformance.case.catalogue import load, select

ROOT = Path(__file__).parents[2]
SUBJECTS = Path(__file__).parents[1] / "fakes/dying.py"
PACKED = {c.id for c in select(load(), level="gate", stages=["PACK"])}
#: Only the plugins that the suite needs: others in the environment would cost each process a second.
_PYTEST = ("pytest", "conformance/suite", "-q", "-p", "xdist", "-p", "no:cacheprovider")
#: Ways to run the suite: under pytest in one process, with xdist's workers, and without pytest.
WAYS = {"pytest": _PYTEST, "xdist": (*_PYTEST, "-n", "2"), "run": ("conformance", "run", "--quiet")}


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
    own = {
        "PYTHONPATH": str(ROOT),
        "PYTHONDONTWRITEBYTECODE": "1",  # a .pyc that a limit cuts off would break later runs
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
    }
    return subprocess.Popen(
        [sys.executable, "-m", *WAYS[way], "--subject", name, "--report", str(report), *stages, *more],
        cwd=ROOT,
        env={**os.environ, **own, **(env or {})},
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
