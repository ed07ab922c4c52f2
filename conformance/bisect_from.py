"""From two reports to bisect commands: each case that went red, with the revisions that the headers recorded.

Source: docs/bisecting.md.
"""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from conformance.verdict import UNEXPECTED, Stream, read


def show(old: Path, new: Path) -> int:
    """Print a command for each case that is red in ``new`` and was not in ``old``; 0 where there is one.

    Raises:
        ValueError: a file is no verdict stream; names it and the line.
    """
    before, after = (_stream(path) for path in (old, new))
    passed = {v.case for v in before.verdicts if v.outcome not in UNEXPECTED}
    red = [v for v in after.verdicts if v.outcome in UNEXPECTED and v.case in passed]
    for verdict in red:
        print(f"# {verdict.case}: {verdict.signature}")
        print(_command(verdict.case, before.header, after.header))
    print(f"{len(red)} cases went red")
    return 0 if red else 1


def _command(case: str, old: Any, new: Any) -> str:
    """The command that finds what differs between two headers: trees, versions, or the suite's own revisions."""
    (kind, repo, good), (other, same, bad) = (_tree(str(header.get("subject", ""))) for header in (old, new))
    if kind == other == "executorch-src" and repo == same and good and bad:
        return f"python -m conformance bisect commit {case} --repo {shlex.quote(repo)} --good {good} --bad {bad}"
    if old.get("revision") != new.get("revision") and {"unknown"}.isdisjoint(
        {old.get("revision"), new.get("revision")}
    ):
        run = f"python -m conformance run --case {case} --subject {shlex.quote(str(new.get('subject')))}"
        return f"python -m conformance bisect commit --repo . --good {old['revision']} --bad {new['revision']} -- {run}"
    return f"python -m conformance bisect stage {case} --subject {shlex.quote(str(new.get('subject')))}"


def _tree(subject: str) -> tuple[str, str, str]:
    name, _, what = subject.partition(":")
    path, _, revision = what.rpartition("@")
    return name, path, revision


def _stream(path: Path) -> Stream:
    return read(path / "verdicts.jsonl" if path.is_dir() else path)
