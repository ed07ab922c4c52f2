"""``python -m conformance bisect stage | commit | shape``: from a red case to what broke it.

Exit codes: 0 found, 1 the search ended without an answer, 2 usage.

Source: docs/bisecting.md.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.bisect import commits, from_reports, sizes, stages
from conformance.bisect.commands import at_commit
from conformance.bisect.commits import Culprit
from conformance.bisect.search import Search, SearchEnded, Step
from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_toml
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.subject import check_name
from conformance.harness.worker import CASE_SECONDS
from conformance.results import replay
from conformance.sources.git import commit_of, files, git
from conformance.sources.tree import NEEDED

_SUBJECT = "impl | executorch | executorch-src:PATH[@REV] | path.py:Class (default: a replay file's own, else impl)"


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m conformance bisect", description=__doc__.split("\n", 1)[0])
    top.add_argument(
        "--from",
        nargs=2,
        metavar=("OLD", "NEW"),
        type=Path,
        dest="reports",
        help="two reports: what went red, as commands",
    )
    ways = top.add_subparsers(dest="way")

    stage = ways.add_parser("stage", help="which hand-over of one case is the first that is wrong")
    stage.add_argument("case", help="a case id, or a replay file")
    stage.add_argument("--subject", default="", help=_SUBJECT)

    commit = ways.add_parser("commit", help="which commit of a repository broke a case, or with --find-fix mended it")
    commit.add_argument("case", nargs="?", default="", help="a case id, or a replay file; none with a command after --")
    commit.add_argument("--repo", type=Path, required=True, help="a git repository; it is only read")
    commit.add_argument("--good", required=True, help="a revision where the case passes")
    commit.add_argument("--bad", required=True, help="a revision where it fails")
    commit.add_argument("--find-fix", action="store_true", help="--bad is the older one: find the first good commit")
    commit.add_argument("--first-parent", action="store_true", help="follow merges along their first parent only")
    commit.add_argument("--subject-file", default="", help="FILE.py:Class in the repository, instead of executorch-src")

    shape = ways.add_parser("shape", help="at which size a case turns from right to wrong")
    shape.add_argument("case", help="a case id, or a replay file")
    shape.add_argument("--axis", required=True, choices=sizes.AXES)
    shape.add_argument("--good", type=int, default=0, help="a size where it passes (default: the smallest legal one)")
    shape.add_argument("--bad", type=int, default=0, help="a size where it fails (default: the case's own)")
    shape.add_argument("--subject", default="", help=_SUBJECT)

    for way in (stage, commit, shape):
        way.add_argument("--repeat", type=int, default=1, help="ask everything so often; all answers must agree")
        way.add_argument("--case-seconds", type=float, default=CASE_SECONDS, help="time limit of a case")
    return top


def main(words: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    given_words, command = list(words), []
    if "--" in given_words:
        at = given_words.index("--")
        given_words, command = given_words[:at], given_words[at + 1 :]
    try:
        given = parser().parse_args(given_words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if given.reports:
            return from_reports.show(*given.reports)
        if given.way is None:
            parser().print_help()
            return 2
        return _answer(given, tuple(command))
    except SearchEnded as ended:
        print(f"no answer: {ended}", file=sys.stderr)
        return 1
    except (ValueError, EnvironmentProblem) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _answer(given: argparse.Namespace, command: tuple[str, ...]) -> int:
    if given.repeat < 1:
        raise ValueError(f"--repeat {given.repeat}: at least 1")
    if given.way == "commit":
        return _commit(given, command)
    case, recorded, own = _case(given.case)
    subject = given.subject or own or "impl"
    try:
        check_name(subject)
    except ValueError as error:
        hint = "" if given.subject else f" (recorded in {given.case}; give --subject)"
        raise ValueError(f"{error}{hint}") from error
    if given.way == "stage":
        return stages.show(case, subject, given.case_seconds, recorded, given.repeat)
    ends = (given.good, given.bad)
    return sizes.show(case, subject, given.axis, ends, recorded, given.case_seconds, given.repeat)


def _case(name: str) -> tuple[Case, str, str]:
    """The case of an id or a replay file; the signature and the subject that the file recorded ("" for an id)."""
    if name.endswith(".toml"):
        recorded = replay.read(Path(name))
        return recorded.case, recorded.signature, recorded.subject
    return select(load(), ids=[name])[0], "", ""


def _commit(given: argparse.Namespace, command: tuple[str, ...]) -> int:
    if bool(given.case) == bool(command):
        raise ValueError("bisect commit needs a case (id or replay file), or a command after --, and not both")
    repo = given.repo.expanduser().resolve()
    good, bad = commit_of(repo, given.good), commit_of(repo, given.bad)
    old, new = (bad, good) if given.find_fix else (good, bad)
    names = ("--bad", "--good") if given.find_fix else ("--good", "--bad")
    kind = "command" if command else "file" if given.subject_file else "executorch-src"
    what = command or ((given.subject_file,) if given.subject_file else ())
    if kind == "executorch-src" and NEEDED not in {**files(repo, old), **files(repo, new)}:
        raise ValueError(
            f"{repo}: neither end has {NEEDED}: no ExecuTorch repository; give --subject-file, or a command after --"
        )
    if kind == "file":
        path, colon, name = given.subject_file.rpartition(":")
        if not colon or not name.isidentifier() or path not in {**files(repo, old), **files(repo, new)}:
            raise ValueError(
                f"--subject-file {given.subject_file}: neither end has it; give FILE.py:Class of the repository"
            )
    case, signature, _ = _case(given.case) if given.case else (None, "", "")
    search = Search(
        str(repo),
        case_to_toml(case) if case else "",
        kind,
        old,
        new,
        what,
        given.find_fix,
        given.first_parent,
        given.repeat,
        given.case_seconds,
        signature,
    )
    commits.check_range(repo, old, new, names=names)
    _mind_the_checkout(repo)
    found = commits.find(search)
    _tell(search, found, given.case)
    return 0 if found.commit and not found.candidates else 1


def _mind_the_checkout(repo: Path) -> None:
    try:
        changed = git(repo, "status", "--porcelain", "--untracked-files=no")
    except ValueError:
        return  # a bare repository has no files to be changed
    if changed.strip():
        print(f"  note: {repo} has uncommitted changes; they are part of no step (commit them to have them judged)")


def _tell(search: Search, found: Culprit, case: str) -> None:
    what = "first good" if search.find_fix else "first bad"

    def name(commit: str) -> str:
        return git(search.clone, "log", "-1", "--format=%H %cs %s", commit).decode(errors="replace").strip()

    print(f"log: {search.folder}/steps.jsonl")
    if found.candidates:
        print(f"{what}: one of {len(found.candidates)} commits; those between them cannot be tested")
        for commit in found.candidates:
            print(f"  {name(commit)}")
        return
    print(f"{what}: {name(found.commit)}")
    for parent in found.parents:
        print(f"  before: {_evidence(parent)}")
    if found.step:
        print(f"  after:  {_evidence(found.step)}")
    for parent in found.parents[:1]:
        print(f"  {'bad' if search.find_fix else 'good'} by hand:  {at_commit(search, parent.commit, case)}")
    print(f"  {'good' if search.find_fix else 'bad'} by hand: {at_commit(search, found.commit, case)}")


def _evidence(step: Step) -> str:
    return " ".join(f"{step.commit[:10]} {step.outcome} {step.signature} {step.reason}".split())
