"""The commands that show a search's answer by hand: each runs as it is printed, from any directory.

Source: docs/bisecting.md.
"""

import shlex
from pathlib import Path

from conformance.bisect.search import Search
from conformance.case.case import Case
from conformance.files import q4gsw
from conformance.results import replay
from conformance.results.verdict import Verdict
from conformance.runs.run import versions


def replay_of(folder: Path, case: Case, verdict: Verdict) -> str:
    """Return the command that asks the case again, from a replay file that is written into ``folder``."""
    path = replay.write(folder, case, verdict, versions())
    return q4gsw("replay", path, "--subject", verdict.subject)


def at_commit(search: Search, commit: str, case: str) -> str:
    """Return the command that asks ``commit`` as a step of the search does; ``case`` is an id or a replay file.

    It exits with 0 where the commit is good. What needs the commit's files extracts them into a new directory.
    """
    words = ("replay", Path(case)) if case.endswith(".toml") else ("run", "--case", case, "--no-expectations")
    if search.kind == "executorch-src":
        return q4gsw(*words, "--subject", f"executorch-src:{search.repo}@{commit}")
    extract = f'DIR=$(mktemp -d) && git -C {shlex.quote(search.repo)} archive {commit} | tar -x -C "$DIR"'
    if search.kind == "command":
        return f'{extract} && (cd "$DIR" && {shlex.join(search.what)})'
    subject = f'"$DIR"/{shlex.quote(search.what[0])} --case-seconds {search.seconds:g}'
    path = 'PYTHONPATH="$DIR${PYTHONPATH:+:$PYTHONPATH}"'
    return f"{extract} && {path} {q4gsw(*words)} --subject {subject}"
