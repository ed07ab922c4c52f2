"""``q4gsw bisect stage | commit | sizes``: from a red case to what broke it."""

import argparse
from pathlib import Path

from conformance.bisect import commits, from_reports, sizes, stages
from conformance.bisect.commands import at_commit
from conformance.bisect.commits import Culprit
from conformance.bisect.search import Search, Step
from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.case.toml import case_to_toml
from conformance.cli.options import Parser, busy, positive
from conformance.files import say
from conformance.harness.subject import from_file
from conformance.results import replay
from conformance.sources.git import commit_of, files, git
from conformance.sources.tree import NEEDED


def add_bisect(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw bisect``."""
    parser.set_defaults(call=_from)
    what = "what went red between two reports, as commands"
    parser.add_argument("--from", nargs=2, metavar=("OLD", "NEW"), type=Path, dest="reports", help=what)
    parser.shared("--all")
    what = "which hand-over of a case is the first that is wrong"
    stage = parser.way("stage", what, "bisect stage match/torchao/control", _stage)
    what, example = "which commit broke a case; or, after --, a command", "bisect commit match/torchao/control"
    commit = parser.way("commit", what, f"{example} --repo executorch --good v1.4.0 --bad v1.5.1", _commit)
    commit.set_defaults(after=())
    commit.add_argument("--repo", type=Path, required=True, help="a git repository; it is only read")
    commit.add_argument("--good", required=True, help="a revision where the case passes")
    commit.add_argument("--bad", required=True, help="a revision where it fails")
    commit.add_argument("--find-fix", action="store_true", help="--bad is the older one: find the first good commit")
    commit.add_argument("--first-parent", action="store_true", help="follow merges along their first parent only")
    commit.add_argument("--subject-file", default="", help="FILE.py:Class in the repository, instead of executorch-src")
    size = parser.way("sizes", "at which size a case turns wrong", "bisect sizes run/control --axis embed_dim", _sizes)
    size.add_argument("--axis", required=True, choices=sizes.AXES)
    size.add_argument("--good", type=int, default=0, help="a size where it passes (default: the smallest legal one)")
    size.add_argument("--bad", type=int, default=0, help="a size where it fails (default: the case's own)")
    for one in (stage, commit, size):
        one.add_argument("case", nargs="?" if one is commit else None, default="", help="a case id, or a replay file")
        one.shared("--case-seconds")
        one.add_argument("--repeat", type=positive, default=1, help="ask so often; all answers must agree")
    for one in (stage, size):
        one.shared("--subject", default="", help="default: a replay file's own, if built in, else impl")
    if parser.ways:
        parser.ways.required = False


def _from(options: argparse.Namespace) -> int:
    if not options.reports:
        raise ValueError("bisect needs --from OLD NEW, or one of stage, commit, sizes; see q4gsw bisect --help")
    return from_reports.show(*options.reports, every=options.all)


def _stage(options: argparse.Namespace) -> int:
    case, signature, subject = _asked(options)
    with busy("asking each stage"):
        return stages.show(case, subject, options.case_seconds, signature, options.repeat)


def _sizes(options: argparse.Namespace) -> int:
    (case, signature, subject), ends = _asked(options), (options.good, options.bad)
    with busy("asking sizes"):
        return sizes.show(case, subject, options.axis, ends, signature, options.case_seconds, options.repeat)


def _asked(options: argparse.Namespace) -> tuple[Case, str, str]:
    """The case, the signature that is sought ("": any), and the subject."""
    case, signature, own = _case(options.case)
    return case, signature, from_file(own or "impl", options.subject, Path(options.case))


def _case(name: str) -> tuple[Case, str, str]:
    """The case of an id or a replay file; the signature and the subject that the file recorded ("" for an id)."""
    if name.endswith(".toml"):
        recorded = replay.read(Path(name))
        return recorded.case, recorded.signature, recorded.subject
    return select(load(), ids=[name])[0], "", ""


def _commit(options: argparse.Namespace) -> int:
    command, file = tuple(options.after), options.subject_file
    if bool(options.case) == bool(command):
        raise ValueError("bisect commit needs a case (id or replay file), or a command after --, and not both")
    repo = options.repo.expanduser().resolve()
    good, bad = commit_of(repo, options.good), commit_of(repo, options.bad)
    old, new = (bad, good) if options.find_fix else (good, bad)
    names = ("--bad", "--good") if options.find_fix else ("--good", "--bad")
    kind = "command" if command else "file" if file else "executorch-src"
    path, colon, name = file.rpartition(":") if file else (NEEDED, ":", "name")
    if not command and not (colon and name.isidentifier() and path in {**files(repo, old), **files(repo, new)}):
        if file:
            raise ValueError(f"--subject-file {file}: neither end has it; give FILE.py:Class of the repository")
        needed = f"{repo}: neither end has {NEEDED}: no ExecuTorch repository"
        raise ValueError(f"{needed}; give --subject-file, or a command after --")
    case, signature, _ = _case(options.case) if options.case else (None, "", "")
    search = Search(
        repo=str(repo),
        case=case_to_toml(case) if case else "",
        kind=kind,
        old=old,
        new=new,
        what=command or tuple(filter(None, [file])),
        find_fix=options.find_fix,
        first_parent=options.first_parent,
        repeat=options.repeat,
        seconds=options.case_seconds,
        signature=signature,
    )
    commits.check_range(repo, old, new, names=names)
    _note_changes(repo)
    with busy("judging commits"):
        culprit = commits.find(search)
    _print(search, culprit, options.case)
    return 0 if culprit.commit and not culprit.candidates else 1


def _note_changes(repo: Path) -> None:
    try:
        changed = git(repo, "status", "--porcelain", "--untracked-files=no")
    except ValueError:
        return  # a bare repository has no files to be changed
    if changed.strip():
        say(f"  note: {repo} has uncommitted changes; they are part of no step (commit them to have them judged)")


def _print(search: Search, culprit: Culprit, case: str) -> None:
    before, after = ("bad", "good") if search.find_fix else ("good", "bad")

    def name(commit: str) -> str:
        return git(search.clone, "log", "-1", "--format=%H %cs %s", commit).decode(errors="replace").strip()

    say(f"log: {search.folder}/steps.jsonl")
    if culprit.candidates:
        say(f"first {after}: one of {len(culprit.candidates)} commits; those between them cannot be tested")
        say(*(f"  {name(commit)}" for commit in culprit.candidates))
        return
    say(f"first {after}: {name(culprit.commit)}")
    for parent in culprit.parents:
        say(f"  before: {_evidence(parent)}")
    if culprit.step:
        say(f"  after:  {_evidence(culprit.step)}")
    for parent in culprit.parents[:1]:
        say(f"  {before} by hand:  {at_commit(search, parent.commit, case)}")
    say(f"  {after} by hand: {at_commit(search, culprit.commit, case)}")


def _evidence(step: Step) -> str:
    return " ".join(f"{step.commit[:10]} {step.outcome} {step.signature} {step.reason}".split())
