"""``q4gsw bisect stage | commit | sizes``: from a red case to what broke it.

Exit codes: 0 found, 1 the search ended without an answer, 2 usage.

Source: docs/bisecting.md.
"""

import argparse
from pathlib import Path

from conformance.bisect import commits, from_reports, sizes, stages
from conformance.bisect.commands import at_commit
from conformance.bisect.commits import Culprit
from conformance.bisect.search import Search, Step
from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_toml
from conformance.cli.options import Parser, positive, way
from conformance.harness.subject import check_name
from conformance.results import replay
from conformance.sources.git import commit_of, files, git
from conformance.sources.tree import NEEDED


def add_bisect(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw bisect``."""
    parser.set_defaults(call=_answer)
    parser.add_argument(
        "--from", nargs=2, metavar=("OLD", "NEW"), type=Path, dest="reports", help="what went red, as commands"
    )
    ways = parser.ways(required=False)
    stage = way(ways, "stage", "which hand-over of a case is the first that is wrong", "bisect stage match/control")
    example = "bisect commit match/control --repo executorch --good v1.4.0 --bad v1.5.1"
    commit = way(ways, "commit", "which commit broke a case; or, after --, a command", example)
    commit.set_defaults(after=())
    commit.add_argument("--repo", type=Path, required=True, help="a git repository; it is only read")
    commit.add_argument("--good", required=True, help="a revision where the case passes")
    commit.add_argument("--bad", required=True, help="a revision where it fails")
    commit.add_argument("--find-fix", action="store_true", help="--bad is the older one: find the first good commit")
    commit.add_argument("--first-parent", action="store_true", help="follow merges along their first parent only")
    commit.add_argument("--subject-file", default="", help="FILE.py:Class in the repository, instead of executorch-src")

    size = way(ways, "sizes", "at which size a case turns wrong", "bisect sizes kernel/x --axis embed_dim")
    size.add_argument("--axis", required=True, choices=sizes.AXES)
    size.add_argument("--good", type=int, default=0, help="a size where it passes (default: the smallest legal one)")
    size.add_argument("--bad", type=int, default=0, help="a size where it fails (default: the case's own)")

    for one in (stage, commit, size):
        one.add_argument("case", nargs="?" if one is commit else None, default="", help="a case id, or a replay file")
        one.shared("--case-seconds")
        one.add_argument("--repeat", type=positive, default=1, help="ask so often; all answers must agree")
    for one in (stage, size):
        one.shared("--subject", default="", help="default: a replay file's own, else impl")


def _answer(given: argparse.Namespace) -> int:
    if given.reports:
        return from_reports.show(*given.reports)
    if given.way is None:
        raise ValueError("bisect needs --from OLD NEW, or one of stage, commit, sizes; see q4gsw bisect --help")
    if given.way == "commit":
        return _commit(given, given.after)
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
