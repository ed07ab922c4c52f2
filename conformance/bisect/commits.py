"""Bisection over commits: the real ``git bisect run``, in a repository of our own that borrows the user's objects.

Nothing is ever written to the user's repository, not even a reference. A search that was interrupted is started
again with the same words: commits that were judged are not judged twice.

Source: docs/bisecting.md.
"""

import contextlib
import fcntl
import json
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.bisect.search import BAD, GOOD, STOP, Search, Step
from conformance.bisect.step import ask, python_path
from conformance.sources.git import GitProblem, environment, git, is_shallow

_ROOT = Path(__file__).parent.parent.parent
_FIRST = re.compile(r"# first '?newer'? commit: \[([0-9a-f]+)\]")
_POSSIBLE = re.compile(r"# possible first '?newer'? commit: \[([0-9a-f]+)\]")
_STEP = re.compile(r"  [0-9a-f]{10}  ")
_KEPT = 20
#: PYTHONPATH is the subject's or the command's, at a step as at an end: the suite is found without it.
_STEP_PROGRAM = """import sys
sys.path.insert(0, sys.argv[1])
from conformance.bisect.step import main
sys.exit(main(sys.argv[2:]))"""


class SearchEnded(ValueError):  # noqa: N818 - it is the end of a search, with its reason
    """The search cannot go on; one line: what, where, what to do."""


@dataclass(frozen=True)
class Found:
    """The answer: one commit and its judged parents, or with skips between the candidates there are."""

    commit: str
    step: Step | None
    parents: tuple[Step, ...]
    candidates: tuple[str, ...] = ()


def check_range(repo: Path, old: str, new: str, *, names: tuple[str, str]) -> None:
    """Check that ``old`` is an ancestor of ``new`` (both full commit names).

    Raises:
        SearchEnded: it is not; says what to give instead.
    """
    if old == new:
        raise SearchEnded(f"{names[0]} and {names[1]} are the same commit {old[:10]}; give two")
    if is_shallow(repo):
        raise SearchEnded(f"{repo}: the clone is shallow, its history is cut off; git fetch --unshallow first")
    try:
        base = git(repo, "merge-base", old, new).decode().split()[0]
    except GitProblem as error:
        raise SearchEnded(f"{old[:10]} and {new[:10]} are unrelated: they have no common ancestor") from error
    if base == new:
        raise SearchEnded(
            f"{names[0]} {old[:10]} is newer than {names[1]} {new[:10]}; swap them (to find a fix: --find-fix)"
        )
    if base != old:
        raise SearchEnded(
            f"{names[0]} {old[:10]} is no ancestor of {names[1]} {new[:10]}; they part at {base[:10]}: try that"
        )


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the search's folder.

    Raises:
        SearchEnded: another process is at the same search.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("w") as stream:
        try:
            fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise SearchEnded("this very search is running already in another process; wait for it") from error
        yield


def prepare(search: Search) -> None:
    """Make the private repository anew, and clear away what a killed search left."""
    clone = search.folder / "clone.git"
    shutil.rmtree(clone, ignore_errors=True)
    for left in (*search.folder.glob("work-*"), search.folder / "last.json", search.folder / "steps.jsonl"):
        shutil.rmtree(left, ignore_errors=True) if left.is_dir() else left.unlink(missing_ok=True)
    git(search.folder, "init", "--quiet", "--bare", str(clone))
    objects = git(Path(search.repo), "rev-parse", "--git-path", "objects").decode().strip()
    borrowed = (Path(search.repo) / objects).resolve()
    (clone / "objects/info/alternates").write_text(f"{borrowed}\n", encoding="utf-8")
    git(clone, "update-ref", "--no-deref", "HEAD", search.new)
    others = sorted((p for p in search.folder.parent.iterdir() if p.is_dir()), key=lambda p: p.stat().st_mtime)
    for old in others[:-_KEPT]:
        shutil.rmtree(old, ignore_errors=True)


def ends(search: Search) -> tuple[Search, Step, Step]:
    """Ask both ends; returns the search with the signature sought, the step of the good end and of the bad one.

    Raises:
        SearchEnded: the good end is not good, the bad one not bad, or one of them cannot be tested.
    """
    good, bad = (search.new, search.old) if search.find_fix else (search.old, search.new)
    first = ask(search, bad)
    print(f"  {first.line()}  (the bad end)", flush=True)
    if first.state == GOOD:
        raise SearchEnded(f"bad {bad[:10]} is good: the case passes there; give a revision where it fails")
    if first.state != BAD:
        hint = " (recorded in the replay file)" if search.signature else ""
        wanted = f"; sought is {search.signature}{hint}" if search.signature else ""
        raise SearchEnded(
            f"bad {bad[:10]} does not fail as sought: {first.outcome} {first.signature} {first.reason}{wanted}"
        )
    search = replace(search, signature=first.signature)
    second = ask(search, good)
    print(f"  {second.line()}  (the good end)", flush=True)
    if second.state != GOOD:
        raise SearchEnded(
            f"good {good[:10]} is not good: {second.outcome} {second.signature} {second.reason}".rstrip()
            + "; give a revision where the case passes"
        )
    return search, second, first


def bisect(search: Search) -> Found:
    """Find the first commit that has the newer end's state, and verify it on every parent.

    Raises:
        SearchEnded: the harness is broken, a verdict is not unanimous, or git refuses.
    """
    search.save()
    new = search.new
    newer, older = (GOOD, BAD) if search.find_fix else (BAD, GOOD)
    while True:
        commit, candidates = _git_bisect(search, new)
        if candidates:
            return Found("", None, (), candidates)
        step = ask(search, commit)
        names = git(search.clone, "rev-list", "--parents", "-n1", commit).decode().split()[1:]
        parents = tuple(ask(search, name) for name in (names[:1] if search.first_parent else names))
        # git trusts that what is not below the old end is old: a parent that is not restarts the search below it.
        wrong = next((p for p in parents if p.state == newer and p.commit != new), None)
        if wrong is None:
            unsaid = tuple(p.commit for p in parents if p.state != older)
            return Found(commit, step, parents, (commit, *unsaid) if unsaid else ())
        print(f"  parent {wrong.commit[:10]} is {wrong.state} too; searching below it", flush=True)
        new = wrong.commit


def _git_bisect(search: Search, new: str) -> tuple[str, tuple[str, ...]]:
    """One run of git bisect: the first commit of the newer state, or the candidates between skips."""
    with contextlib.suppress(GitProblem):
        git(search.clone, "bisect", "reset")
    flags = ["--no-checkout", *(["--first-parent"] if search.first_parent else [])]
    terms = ["--term-old=older", "--term-new=newer"]
    base = git(search.clone, "merge-base", search.old, new).decode().split()[0]
    print(git(search.clone, "bisect", "start", *flags, *terms, new, base).decode().strip(), flush=True)
    log = git(search.clone, "bisect", "log").decode()
    if not _FIRST.search(log):
        _run(search)
        log = git(search.clone, "bisect", "log").decode()
    if first := _FIRST.findall(log):
        return first[-1], ()
    if possible := tuple(dict.fromkeys(_POSSIBLE.findall(log))):
        return "", possible
    raise SearchEnded(f"git bisect ended without an answer; its log is {search.clone}/BISECT_LOG")


def _run(search: Search) -> None:
    """Run ``git bisect run`` and say how much is left.

    Raises:
        SearchEnded: a step asked for the end.
    """
    command = [sys.executable, "-c", _STEP_PROGRAM, str(_ROOT), str(search.folder)]
    started, done = time.monotonic(), 0
    with subprocess.Popen(
        ["git", "-c", "core.warnAmbiguousRefs=false", "-C", str(search.clone), "bisect", "run", *command],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment() | {"PYTHONPATH": python_path(search.kind)},
    ) as process:
        assert process.stdout is not None  # noqa: S101 - asked for above
        said = ""
        for line in process.stdout:
            said = line.strip() or said
            if _STEP.match(line):
                done += 1
                print(line.rstrip(), flush=True)
            elif left := re.search(r"roughly (\d+) step", line):
                seconds = (int(left[1]) + 1) * (time.monotonic() - started) / max(done, 1)
                print(f"  about {int(left[1]) + 1} more steps, {seconds:.0f} s", flush=True)
            elif "Traceback" in line:
                print(line.rstrip(), flush=True)
    last = search.folder / "last.json"
    if process.returncode and last.is_file() and f'"state": "{STOP}"' in (text := last.read_text(encoding="utf-8")):
        stopped = Step(**json.loads(text))
        raise SearchEnded(f"stopped at {stopped.commit[:10]}: {stopped.outcome} {stopped.signature} {stopped.reason}")
    log = git(search.clone, "bisect", "log").decode()
    if process.returncode and not _FIRST.search(log) and not _POSSIBLE.search(log):
        raise SearchEnded(f"git bisect run failed: {said}")
