"""The commands that show a search's answer by hand: each runs as it is printed, from any directory.

Source: docs/bisecting.md.
"""

import shlex
import sys
from pathlib import Path

from conformance.bisect.search import Search
from conformance.case.case import Case
from conformance.results import replay
from conformance.results.verdict import Verdict
from conformance.runs.run import versions

_ROOT = Path(__file__).parent.parent.parent


def replay_of(folder: Path, case: Case, verdict: Verdict) -> str:
    """Return the command that asks the case again, from a replay file that is written into ``folder``."""
    path = replay.write(folder, case, verdict, versions())
    return f"python -m conformance replay {shlex.quote(str(path))} --subject {shlex.quote(verdict.subject)}"


def at_commit(search: Search, commit: str, case: str) -> str:
    """Return the command that asks ``commit`` as a step of the search does; ``case`` is an id or a replay file.

    It exits with 0 where the commit is good. What needs the commit's files extracts them into a new directory.
    """
    run = f"run --case {shlex.quote(case)} --no-expectations"
    if case.endswith(".toml"):
        run = f"replay {shlex.quote(str(Path(case).resolve()))}"
    if search.kind == "executorch-src":
        subject = shlex.quote(f"executorch-src:{search.repo}@{commit}")
        return f"python -m conformance {run} --subject {subject}"
    extract = f'DIR=$(mktemp -d) && git -C {shlex.quote(search.repo)} archive {commit} | tar -x -C "$DIR"'
    if search.kind == "command":
        return f'{extract} && (cd "$DIR" && {shlex.join(search.what)})'
    subject = f'"$DIR"/{shlex.quote(search.what[0])} --case-seconds {search.seconds:g}'
    python = f'PYTHONPATH="$DIR${{PYTHONPATH:+:$PYTHONPATH}}" {shlex.quote(sys.executable)}'
    return f"{extract} && (cd {shlex.quote(str(_ROOT))} && {python} -m conformance {run} --subject {subject})"
