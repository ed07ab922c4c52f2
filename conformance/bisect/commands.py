"""The commands that show a search's answer by hand: each runs as it is printed, from any directory.

Source: docs/bisecting.md.
"""

import shlex
import sys
from pathlib import Path

from conformance.bisect.search import Search

_ROOT = Path(__file__).parent.parent.parent


def at_commit(search: Search, commit: str, case: str) -> str:
    """Return the command that asks ``commit`` as a step of the search does; ``case`` is an id or a replay file.

    It exits with 0 where the commit is good. What needs the commit's files extracts them into a new directory.
    """
    asked = f"run --case {shlex.quote(case)} --no-expectations"
    if case.endswith(".toml"):
        asked = f"replay {shlex.quote(str(Path(case).resolve()))}"
    if search.kind == "executorch-src":
        subject = shlex.quote(f"executorch-src:{search.repo}@{commit}")
        return f"python -m conformance {asked} --subject {subject}"
    extract = f'DIR=$(mktemp -d) && git -C {shlex.quote(search.repo)} archive {commit} | tar -x -C "$DIR"'
    if search.kind == "command":
        return f'{extract} && (cd "$DIR" && {shlex.join(search.what)})'
    subject = f'"$DIR"/{shlex.quote(search.what[0])} --case-seconds {search.seconds:g}'
    path = 'PYTHONPATH="$DIR${PYTHONPATH:+:$PYTHONPATH}"'
    return f"{extract} && (cd {_quoted(_ROOT)} && {path} {_python()} -m conformance {asked} --subject {subject})"


def in_version(environment: Path, file: Path, seconds: float) -> str:
    """Return the command that replays ``file`` in an environment with another version; it exits with 0 where good."""
    python = _quoted(environment / "bin" / "python")
    return f"(cd {_quoted(_ROOT)} && {python} -m conformance replay {_quoted(file)} --case-seconds {seconds:g})"


def _quoted(path: Path) -> str:
    return shlex.quote(str(path))


def _python() -> str:
    return shlex.quote(sys.executable)
