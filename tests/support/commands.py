"""The command ``q4gsw`` as a shell sees it, whether or not this environment has the project installed."""

import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]


def with_q4gsw(folder: Path) -> Mapping[str, str]:
    """Put a ``q4gsw`` of this checkout into ``folder``/bin; return the environment that has it on its PATH."""
    script = folder / "bin" / "q4gsw"
    script.parent.mkdir(exist_ok=True)
    path = f'PYTHONPATH={shlex.quote(str(ROOT))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    script.write_text(f'#!/bin/sh\n{path} exec {shlex.quote(sys.executable)} -m conformance "$@"\n')
    script.chmod(0o755)
    return {**os.environ, "PATH": f"{script.parent}{os.pathsep}{os.environ['PATH']}"}


def interrupted(words: list[str], when: Callable[[], bool]) -> tuple[int, str]:
    """Start ``q4gsw`` with ``words``, send SIGINT once ``when`` holds; return the exit code and standard error.

    A shell that starts the tests in the background has them ignore SIGINT: the command does not.
    """
    command = ["env", "--default-signal=INT", sys.executable, "-m", "conformance", *words]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        try:
            until = time.monotonic() + 120
            while not when() and time.monotonic() < until:
                time.sleep(0.05)
            process.send_signal(signal.SIGINT)
            _, error = process.communicate(timeout=60)
        finally:
            process.kill()
    return process.returncode, error.decode()
