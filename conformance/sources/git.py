"""Reading a git repository without touching it: revisions, trees and files, through the git command.

No work tree, index or branch is ever written; every function takes any git directory or checkout.

Source: docs/bisecting.md.
"""

import os
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

#: What git prints must not depend on the user's language or on where the suite itself is checked out.
_DROPPED = ("GIT_DIR", "GIT_WORK_TREE", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY")


class GitProblem(ValueError):  # noqa: N818 - it is the caller's revision or repository that is at fault
    """git refused; one line: what, where, how to fix."""


def environment() -> dict[str, str]:
    """Return the environment for a git process: the caller's, without what would point it elsewhere."""
    return {k: v for k, v in os.environ.items() if k not in _DROPPED} | {"LC_ALL": "C", "GIT_TERMINAL_PROMPT": "0"}


def command(repo: Path, *words: str) -> list[str]:
    """Return the command line of ``git WORDS`` in ``repo``."""
    return ["git", "-c", "core.warnAmbiguousRefs=false", "-C", str(repo), *words]


def git(repo: Path, *words: str, stdin: bytes = b"", index: Path | None = None) -> bytes:
    """Return what ``git WORDS`` prints in ``repo``; ``index`` is a file to use as git's index.

    Raises:
        GitProblem: git is not installed, or fails; carries its last line.
    """
    own = {"GIT_INDEX_FILE": str(index)} if index else {}
    try:
        done = subprocess.run(
            command(repo, *words), input=stdin, capture_output=True, check=False, env=environment() | own
        )
    except OSError as error:
        raise GitProblem(f"git cannot be run ({error.strerror}); install git") from error
    if done.returncode:
        errors = done.stderr.decode(errors="replace").strip().splitlines() or [f"exit code {done.returncode}"]
        verb = next((word for word in words if word[0] != "-"), "")
        raise GitProblem(f"{repo}: git {verb}: {errors[-1]}")
    return done.stdout


def text(repo: Path, *words: str) -> str:
    """Return what ``git WORDS`` prints in ``repo``, as text without the space around it."""
    return git(repo, *words).decode(errors="replace").strip()


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
        return text(repo, "rev-parse", "--verify", "--quiet", "--end-of-options", f"{revision}^{{commit}}")
    except GitProblem as error:
        hint = "git fetch --unshallow, or name another" if is_shallow(repo) else "git fetch --tags, or name another"
        raise GitProblem(f"{repo}: no commit {revision!r} there; {hint}") from error


def is_shallow(repo: Path) -> bool:
    """Return whether the history is cut off."""
    return text(repo, "rev-parse", "--is-shallow-repository") == "true"


def files(repo: Path, commit: str) -> dict[str, str]:
    """Return the blob of every regular file of a commit, by path."""
    blobs = {}
    for entry in git(repo, "ls-tree", "-r", "-z", "--full-tree", commit).split(b"\0"):
        if entry:
            head, _, path = entry.partition(b"\t")
            mode, kind, blob = head.decode().split()
            if kind == "blob" and mode.startswith("100"):
                blobs[path.decode(errors="surrogateescape")] = blob
    return blobs


def read_blobs(repo: Path, blobs: Iterable[str]) -> Iterator[bytes]:
    """Yield the contents of ``blobs``, in order, from one git process.

    Raises:
        GitProblem: a blob is missing (a partial clone); names it.
    """
    names = list(blobs)
    data = git(repo, "cat-file", "--batch", stdin="".join(f"{blob}\n" for blob in names).encode())
    at = 0
    for blob in names:
        end = data.index(b"\n", at)
        words = data[at:end].split()
        if len(words) != 3:  # noqa: PLR2004 - name, type, size
            raise GitProblem(f"{repo}: object {blob} is missing; the clone is partial: git fetch --refetch")
        size = int(words[2])
        yield data[end + 1 : end + 1 + size]
        at = end + 1 + size + 1
