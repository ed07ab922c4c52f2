"""Reading a git repository without touching it: revisions, trees and files, through the git command.

No work tree, index or branch is ever written; every function takes any git directory or checkout.

Source: docs/bisecting.md.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What git says must not depend on the user's language or on where the suite itself is checked out.
_DROPPED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")


class GitProblem(ValueError):  # noqa: N818 - it is the caller's revision or repository that is at fault
    """git refused; one line: what, where, how to fix."""


def environment() -> dict[str, str]:
    """Return the environment for a git process: the caller's, without what would point it elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in _DROPPED} | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


def git(repo: Path, *words: str, stdin: bytes = b"") -> bytes:
    """Return what ``git WORDS`` prints in ``repo``.

    Raises:
        GitProblem: git is not installed, or fails; carries its last line.
    """
    try:
        done = subprocess.run(
            ["git", "-c", "core.warnAmbiguousRefs=false", "-C", str(repo), *words],
            input=stdin,
            capture_output=True,
            check=False,
            env=environment(),
        )
    except OSError as error:
        raise GitProblem(f"git cannot be run ({error.strerror}); install git") from error
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        raise GitProblem(f"{repo}: git {words[0]}: {said[-1]}")
    return done.stdout


def is_repository(path: Path) -> bool:
    """Return whether ``path`` is a git directory or the inside of a checkout."""
    try:
        git(path, "rev-parse", "--git-dir")
    except GitProblem:
        return False
    return True


def commit_of(repo: Path, revision: str) -> str:
    """Return the full name of the commit that ``revision`` means.

    Raises:
        GitProblem: no repository there, or no such commit in it; says how to get one.
    """
    if not repo.is_dir():
        raise GitProblem(f"{repo}: no such directory; give a git repository")
    if not is_repository(repo):
        raise GitProblem(f"{repo}: not a git repository; give a clone, or its .git directory")
    try:
        said = git(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitProblem as error:
        hint = "git fetch --unshallow, or name another" if is_shallow(repo) else "git fetch --tags, or name another"
        raise GitProblem(f"{repo}: no commit {revision!r} there; {hint}") from error
    return said.decode().strip()


def is_shallow(repo: Path) -> bool:
    """Return whether the history is cut off."""
    return git(repo, "rev-parse", "--is-shallow-repository").strip() == b"true"


def files(repo: Path, commit: str) -> dict[str, str]:
    """Return the blob of every regular file of a commit, by path."""
    found = {}
    for entry in git(repo, "ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        if entry:
            head, _, path = entry.partition(b"\t")
            mode, kind, blob = head.decode().split()
            if kind == "blob" and mode.startswith("100"):
                found[path.decode(errors="surrogateescape")] = blob
    return found


def read_blobs(repo: Path, blobs: Iterable[str]) -> Iterator[bytes]:
    """Yield the contents of ``blobs``, in order, from one git process.

    Raises:
        GitProblem: a blob is missing (a partial clone); names it.
    """
    wanted = list(blobs)
    data = git(repo, "cat-file", "--batch", stdin="".join(f"{blob}\n" for blob in wanted).encode())
    at = 0
    for blob in wanted:
        end = data.index(b"\n", at)
        words = data[at:end].split()
        if len(words) != 3:  # noqa: PLR2004 - name, type, size
            raise GitProblem(f"{repo}: object {blob} is missing; the clone is partial: git fetch --refetch")
        size = int(words[2])
        yield data[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
