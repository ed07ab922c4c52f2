"""From two reports to the commands that explain them: each case that went red, with what the headers recorded.

Source: docs/bisecting.md.
"""

from pathlib import Path
from typing import Any

from packaging.version import Version

from conformance.files import q4gsw, say
from conformance.results.causes import causes, others
from conformance.results.verdict import UNEXPECTED, read
from conformance.sources.releases import PACKAGES

_ROOT = Path(__file__).parents[2]


def show(old: Path, new: Path, *, every: bool = False) -> int:
    """Print the commands for each cause (``every``: case) red in ``new`` and not in ``old``; 0 where there is one."""
    before, after = (read(path) for path in (old, new))
    passed = {v.case for v in before.verdicts if v.outcome not in UNEXPECTED}
    red = [v for v in after.verdicts if v.outcome in UNEXPECTED and v.case in passed]
    for there in causes(red):
        for verdict in there if every else there[:1]:
            say(f"# {verdict.case}: {verdict.signature}")
            say(*_commands(verdict.case, before.header, after.header))
        if not every and len(there) > 1:
            say(f"# {others([v.case for v in there])}")
    say(f"cases that went red: {len(red)}")
    return 0 if red else 1


def _commands(case: str, old: Any, new: Any) -> list[str]:
    """A command for each thing that differs between two headers: trees, versions, the suite; else one over stages."""
    subject = _subject(new)
    commands = [*_trees(case, old, new), *_subject_files(case, old, new), *_versions(case, old, new, subject)]
    if _both_known(old.get("revision"), new.get("revision")):
        run = "python", "-m", "conformance", "run", "--case", case, "--subject", subject  # of the commit's own files
        commands.append(_commit("", _ROOT, old["revision"], new["revision"], "--", *run))
    return commands or [q4gsw("bisect", "stage", case, "--subject", subject)]


def _commit(case: str, repo: str | Path, good: str, bad: str, *more: str) -> str:
    return q4gsw("bisect", "commit", *filter(None, [case]), "--repo", repo, "--good", good, "--bad", bad, *more)


def _trees(case: str, old: Any, new: Any) -> list[str]:
    """For subject executorch-src: the trees' own repository."""
    (good_repo, _, good), (bad_repo, _, bad) = (str(h.get("subject", "")).rpartition("@") for h in (old, new))
    kind, _, repo = good_repo.partition(":")
    same = kind == "executorch-src" and good_repo == bad_repo
    return [_commit(case, repo, good, bad)] if same and good != bad else []


def _subject_files(case: str, old: Any, new: Any) -> list[str]:
    """For a subject file: its repository, which need not be where it was when the reports were written."""
    good, bad, file = old.get("subject_revision"), new.get("subject_revision"), new.get("subject_file")
    if not _both_known(good, bad) or file != old.get("subject_file") or bad == new.get("revision"):
        return []  # in the suite's own repository it has the suite's revision, which comes below
    repo = str(new.get("subject_repository", ""))
    note = [] if Path(repo).is_dir() else [f"# {repo} is not on this machine: give your clone as --repo"]
    return [*note, _commit(case, repo, good, bad, "--subject-file", file)]


def _versions(case: str, old: Any, new: Any, subject: str) -> list[str]:
    """For each package whose release differs: the case with every release from the older one on."""
    commands = []
    for package in PACKAGES:
        good, bad = (dict(header.get("versions", {})).get(package) for header in (old, new))
        if _both_known(good, bad):
            which = "--package", package, "--since", min(str(good), str(bad), key=Version)
            commands.append(q4gsw("versions", "--case", case, *which, "--subject", subject))
    return commands


def _both_known(good: object, bad: object) -> bool:
    return good != bad and {None, "unknown", "not installed"}.isdisjoint({good, bad})


def _subject(header: Any) -> str:
    """The subject, a file in full: the commands run elsewhere than the report's run did."""
    repo, file = (header.get(f"subject_{name}", "unknown") for name in ("repository", "file"))
    return str(header.get("subject", "")) if "unknown" in {repo, file} else f"{repo}/{file}"
