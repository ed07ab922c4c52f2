"""From two reports to bisect commands: each case that went red, with the revisions that the headers recorded.

Source: docs/bisecting.md.
"""

import shlex
from pathlib import Path
from typing import Any

from conformance.results.verdict import UNEXPECTED, Stream, read
from conformance.sources.releases import PACKAGES

_BISECT = "python -m conformance bisect"


def show(old: Path, new: Path) -> int:
    """Print the commands for each case that is red in ``new`` and was not in ``old``; 0 where there is one.

    Raises:
        ValueError: a file is no verdict stream; names it and the line.
    """
    before, after = (_stream(path) for path in (old, new))
    passed = {v.case for v in before.verdicts if v.outcome not in UNEXPECTED}
    red = [v for v in after.verdicts if v.outcome in UNEXPECTED and v.case in passed]
    for verdict in red:
        print(f"# {verdict.case}: {verdict.signature}")
        print("\n".join(_commands(verdict.case, before.header, after.header)))
    print(f"{len(red)} cases went red")
    return 0 if red else 1


def _commands(case: str, old: Any, new: Any) -> list[str]:
    """A command for each thing that differs between two headers: trees, versions, the suite; else one over stages."""
    subject = shlex.quote(_subject(new))
    found = [*_trees(case, old, new), *_subject_files(case, old, new), *_versions(case, old, new, subject)]
    if _both_known(old.get("revision"), new.get("revision")):
        run = f"python -m conformance run --case {case} --subject {subject}"
        found.append(f"{_BISECT} commit --repo . --good {old['revision']} --bad {new['revision']} -- {run}")
    return found or [f"{_BISECT} stage {case} --subject {subject}"]


def _trees(case: str, old: Any, new: Any) -> list[str]:
    """For subject executorch-src: the trees' own repository."""
    (kind, repo, good), (other, same, bad) = (_tree(str(header.get("subject", ""))) for header in (old, new))
    if kind == other == "executorch-src" and repo == same and good != bad and good and bad:
        return [f"{_BISECT} commit {case} --repo {shlex.quote(repo)} --good {good} --bad {bad}"]
    return []


def _subject_files(case: str, old: Any, new: Any) -> list[str]:
    """For a subject file: its repository, which need not be where it was when the reports were written."""
    good, bad, file = old.get("subject_revision"), new.get("subject_revision"), new.get("subject_file")
    if not _both_known(good, bad) or file != old.get("subject_file") or bad == new.get("revision"):
        return []  # in the suite's own repository it has the suite's revision, which comes below
    repo = str(new["subject_repository"])
    note = [] if Path(repo).is_dir() else [f"# {repo} is not on this machine: give your clone as --repo"]
    ends = f"--good {good} --bad {bad}"
    return [*note, f"{_BISECT} commit {case} --repo {shlex.quote(repo)} {ends} --subject-file {shlex.quote(file)}"]


def _versions(case: str, old: Any, new: Any, subject: str) -> list[str]:
    """For each package whose releases can be searched: the one of each report."""
    found = []
    for package in PACKAGES:
        good, bad = (dict(header.get("versions", {})).get(package) for header in (old, new))
        if _both_known(good, bad):
            ends = f"--package {package} --good {good} --bad {bad}"
            found.append(f"{_BISECT} version {case} {ends} --subject {subject}")
    return found


def _both_known(good: object, bad: object) -> bool:
    return good != bad and {None, "unknown", "not installed"}.isdisjoint({good, bad})


def _subject(header: Any) -> str:
    """The subject, a file in full: the commands run elsewhere than the report's run did."""
    repo = header.get("subject_repository", "unknown")
    return str(header.get("subject", "")) if repo == "unknown" else f"{repo}/{header['subject_file']}"


def _tree(subject: str) -> tuple[str, str, str]:
    name, _, what = subject.partition(":")
    path, _, revision = what.rpartition("@")
    return name, path, revision


def _stream(path: Path) -> Stream:
    return read(path / "verdicts.jsonl" if path.is_dir() else path)
