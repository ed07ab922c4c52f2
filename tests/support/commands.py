"""The command ``q4gsw`` as a shell sees it, whether or not this environment has the project installed."""

import os
import shlex
import sys
from collections.abc import Mapping
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
