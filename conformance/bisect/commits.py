"""Bisection over commits: the real ``git bisect run``, in a repository of our own that borrows the user's objects.

Nothing is ever written to the user's repository, not even a reference. A search that was interrupted continues when
it is started again with the same words: commits that were judged are not judged twice.

Source: docs/bisecting.md.
"""

import contextlib
import fcntl
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.bisect.search import BAD, GOOD, Search, SearchEnded, Step
from conformance.bisect.step import judge_commit, python_path
from conformance.files import say
from conformance.sources.git import GitProblem, command, environment, git, is_shallow, text

_ROOT = Path(__file__).parent.parent.parent
_FIRST = re.compile(r"# first '?newer'? commit: \[([0-9a-f]+)\]")
_POSSIBLE = re.compile(r"# possible first '?newer'? commit: \[([0-9a-f]+)\]")
_STEP = re.compile(r"  [0-9a-f]{10}  ")
_LEFT = re.compile(r"roughly (\d+) step")
_KEPT = 20
#: PYTHONPATH is the subject's or the command's, at a step as at an end: the suite is found without it.
_STEP_PROGRAM = """import sys
sys.path.insert(0, sys.argv[1])
from conformance.bisect.step import main
sys.exit(main(sys.argv[2:]))"""


class WrongEnd(SearchEnded):
    """The good end is not good, or the bad one does not fail as sought."""


@dataclass(frozen=True)
class Culprit:
    """The answer: one commit and its judged parents, or with skips between the candidates there are."""

    commit: str
    step: Step | None
    parents: tuple[Step, ...]
    candidates: tuple[str, ...] = ()


def check_range(repo: Path, old: str, new: str, *, names: tuple[str, str]) -> None:
    """Raise SearchEnded, with what to give instead, unless commit ``old`` is an ancestor of ``new``."""
    if old == new:
        raise SearchEnded(f"{names[0]} and {names[1]} are the same commit {old[:10]}; give two")
    if is_shallow(repo):
        raise SearchEnded(f"{repo}: the clone is shallow, its history is cut off; git fetch --unshallow first")
    try:
        base = text(repo, "merge-base", old, new).split()[0]
    except GitProblem as error:
        raise SearchEnded(f"{old[:10]} and {new[:10]} are unrelated: they have no common ancestor") from error
    ends = f"{names[0]} {old[:10]} is {{}} {names[1]} {new[:10]}; {{}}"
    if base == new:
        raise SearchEnded(ends.format("newer than", "swap them (to find a fix: --find-fix)"))
    if base != old:
        raise SearchEnded(ends.format("no ancestor of", f"they part at {base[:10]}: try that"))


def find(search: Search) -> Culprit:
    """Check both ends, print the signature sought, and return the first commit that has the newer end's state.

    Raises:
        SearchEnded: another process has the same search, an end is not what it is said to be, the harness is broken,
            or a verdict is not unanimous.
    """
    with _locked(search.folder):
        _prepare(search)
        try:
            search = _checked_ends(search)
            say(f"  sought: {search.signature}")
            search.save()
            culprit = _search(search)
        except WrongEnd:
            shutil.rmtree(search.memo, ignore_errors=True)
            raise
        shutil.rmtree(search.memo, ignore_errors=True)
        return culprit


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchEnded("the same search runs already in another process; wait for it") from error
        yield


def _prepare(search: Search) -> None:
    """Make the private repository, and clear away what a killed search left, but for its verdicts."""
    shutil.rmtree(search.clone, ignore_errors=True)
    for left in (*search.folder.glob("work-*"), search.stopped, search.folder / "steps.jsonl"):
        shutil.rmtree(left) if left.is_dir() else left.unlink(missing_ok=True)
    git(search.folder, "init", "--quiet", "--bare", str(search.clone))
    borrowed = Path(search.repo, text(Path(search.repo), "rev-parse", "--git-path", "objects")).resolve()
    (search.clone / "objects/info/alternates").write_text(f"{borrowed}\n", encoding="utf-8")
    git(search.clone, "update-ref", "--no-deref", "HEAD", search.new)
    others = sorted((p for p in search.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for old in others[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)
    if kept := len(list(search.memo.glob("*.json"))):
        say(f"  continuing: {kept} verdicts of the interrupted search are in {search.memo}; remove it to judge again")


def _checked_ends(search: Search) -> Search:
    """Judge both ends; returns the search with the signature sought."""
    good, bad = (search.new, search.old) if search.find_fix else (search.old, search.new)
    step = judge_commit(search, bad)
    say(f"  {step.line()}  (the bad end)")
    answer = f"{step.outcome} {step.signature} {step.reason}".rstrip()
    if step.state == GOOD:
        raise WrongEnd(f"bad {bad[:10]} is good: the case passes there; give a revision where it fails")
    if step.state != BAD:
        sought = f"; sought is {search.signature} (recorded in the replay file)" if search.signature else ""
        raise WrongEnd(f"bad {bad[:10]} does not fail as sought: {answer}{sought}")
    search = replace(search, signature=step.signature)
    step = judge_commit(search, good)
    say(f"  {step.line()}  (the good end)")
    answer = f"{step.outcome} {step.signature} {step.reason}".rstrip()
    if step.state != GOOD:
        raise WrongEnd(f"good {good[:10]} is not good: {answer}; give a revision where the case passes")
    return search


def _search(search: Search) -> Culprit:
    """Find the first commit that has the newer end's state, and verify it on every parent."""
    new = search.new
    newer, older = (GOOD, BAD) if search.find_fix else (BAD, GOOD)
    while True:
        commit, candidates = _git_bisect(search, new)
        if candidates:
            return Culprit("", None, (), candidates)
        step = judge_commit(search, commit)
        names = text(search.clone, "rev-list", "--parents", "-n1", commit).split()[1:]
        parents = tuple(judge_commit(search, name) for name in (names[:1] if search.first_parent else names))
        # git trusts that what is not below the old end is old: a parent that is not restarts the search below it.
        wrong = next((p for p in parents if p.state == newer and p.commit != new), None)
        if wrong is None:
            untested = tuple(p.commit for p in parents if p.state != older)
            return Culprit(commit, step, parents, (commit, *untested) if untested else ())
        say(f"  parent {wrong.commit[:10]} is {wrong.state} too; searching below it")
        new = wrong.commit


def _git_bisect(search: Search, new: str) -> tuple[str, tuple[str, ...]]:
    """One run of git bisect: the first commit of the newer state, or the candidates between skips."""
    with contextlib.suppress(GitProblem):
        git(search.clone, "bisect", "reset")
    flags = ["--no-checkout", *(["--first-parent"] if search.first_parent else [])]
    terms = ["--term-old=older", "--term-new=newer"]
    base = text(search.clone, "merge-base", search.old, new).split()[0]
    last = text(search.clone, "bisect", "start", *flags, *terms, new, base)
    say(*last.splitlines())
    log = text(search.clone, "bisect", "log")
    if not _FIRST.search(log):
        last = _run(search)
        log = text(search.clone, "bisect", "log")
    if first := _FIRST.findall(log):
        return first[-1], ()
    if possible := tuple(dict.fromkeys(_POSSIBLE.findall(log))):
        return "", possible
    raise SearchEnded(f"git bisect ended without an answer: {last}; its log is {search.clone}/BISECT_LOG")


def _run(search: Search) -> str:
    """Run ``git bisect run``, print each step and how much is left, and return the last line that git printed."""
    words = ("bisect", "run", sys.executable, "-c", _STEP_PROGRAM, str(_ROOT), str(search.folder))
    started, done, last = time.monotonic(), 0, ""
    with subprocess.Popen(
        command(search.clone, *words),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment() | {"PYTHONPATH": python_path(search.kind)},
    ) as process:
        for line in process.stdout or ():
            last = line.strip() or last
            if _STEP.match(line) or "Traceback" in line:
                done += 1
                say(line.rstrip())
            elif left := _LEFT.search(line):
                seconds = (int(left[1]) + 1) * (time.monotonic() - started) / max(done, 1)
                say(f"  steps to go: about {int(left[1]) + 1}, {seconds:.0f} s")
    if search.stopped.is_file():
        raise SearchEnded(search.stopped.read_text(encoding="utf-8"))
    return last
