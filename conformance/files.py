"""Files that are written whole or not at all, the one line that says why one cannot be, and command lines.

Source: docs/reading-a-report.md, "When it cannot be written".
"""

import contextlib
import errno
import fcntl
import os
import re
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TextIO

#: Bytes of a text that is read whole.
_MOST_TEXT = 64 << 20
#: The names of directories of ``kept_folder``.
_KEPT = re.compile(r"\d{8}-\d{6}-\w{8}$")
_OTHER = "write to another directory"
_ADVICE = {
    errno.ENOSPC: f"free some space there, or {_OTHER}",
    errno.EDQUOT: f"free some of the quota there, or {_OTHER}",
    errno.EFBIG: f"raise the limit on a file's size (ulimit -f), or {_OTHER}",
    errno.EEXIST: "it is a file; name a directory",
    errno.ENOTDIR: "a part of that path is a file; name a directory",
}
#: Codes of a terminal's colours: red for what is wrong, green for what is right, yellow for what is neither.
_COLOURS = {"FAIL": 31, "ERROR": 31, "error": 31, "PASS": 32, "XPASS": 33, "XFAIL": 33}
_OUTCOME = re.compile(rf"^({'|'.join(_COLOURS)})\b", re.MULTILINE)
#: What a disk, and nothing that a program did wrong, answers a write with.
DISK = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EIO})
#: The same of a machine: its disks, its memory, its limits.
MACHINE = DISK | {errno.ENOMEM, errno.EMFILE, errno.ENFILE, errno.EAGAIN}


class Unwritable(ValueError):  # noqa: N818 - says what the path is
    """A file or directory that cannot be written; one line: what, why and what to do."""


def unwritable(path: Path | str, error: OSError) -> Unwritable:
    """Return the error that says that ``path`` cannot be written.

    >>> str(unwritable("r/summary.md", OSError(28, "No space left on device")))
    'r/summary.md: cannot be written (No space left on device); free some space there, or write to another directory'
    """
    return Unwritable(f"{path}: cannot be written ({error.strerror}); {_ADVICE.get(error.errno or 0, _OTHER)}")


def read_text(path: Path, most: int = _MOST_TEXT) -> str:
    """Return the text of a file that may come from anyone: a regular one, of at most ``most`` bytes.

    Raises:
        ValueError: it is something else, or no UTF-8; says what.
        OSError: it cannot be read.
    """
    about = path.stat()
    if not stat.S_ISREG(about.st_mode) or about.st_size > most:
        raise ValueError(f"no regular file of at most {most} bytes")
    return path.read_text(encoding="utf-8")


def printable(text: str) -> str:
    r"""Return ``text`` in one line, with an escape for what a terminal would act upon.

    >>> print(printable(chr(27) + "[2J" + chr(10)))
    \x1b[2J\n
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def shown(lines: Iterable[str]) -> str:
    """Return lines as one text, each ``printable``: whatever a name holds, it makes no second line."""
    return "\n".join(map(printable, lines))


def say(*lines: str, end: str = "\n", file: TextIO | None = None) -> None:
    """Print lines, each ``printable``, above a bar of tqdm; the one way in which a command speaks.

    On a terminal, unless NO_COLOR is set, an outcome at the beginning of a line has a colour.
    """
    text, out, bars = shown(lines), file or sys.stdout, sys.modules.get("tqdm")
    if out.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb":
        text = _OUTCOME.sub(lambda word: f"\x1b[{_COLOURS[word[0]]}m{word[0]}\x1b[0m", text)
    with bars.tqdm.external_write_mode(out) if bars else contextlib.nullcontext():
        print(text, end=end, file=out, flush=True)


def make_folder(path: Path) -> Path:
    """Make a directory, with its parents, unless it is there; return it.

    Raises:
        Unwritable: it cannot be made, or a file is there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable(path, error) from error
    return path


def check_writable(path: Path) -> Path:
    """Make a directory unless it is there, try to write into it, and return it: before work whose result goes there.

    Raises:
        Unwritable: no.
    """
    try:
        with tempfile.TemporaryFile(dir=make_folder(path)):
            return path
    except OSError as error:
        raise unwritable(path, error) from error


def new_folder(prefix: str) -> Path:
    """Make a new directory for what a run leaves behind and return it.

    Raises:
        Unwritable: the directory for temporary files is full or cannot be written.
    """
    try:
        return Path(tempfile.mkdtemp(prefix=prefix))
    except OSError as error:
        raise unwritable(error.filename or "the directory for temporary files", error) from error


def cache_directory() -> Path:
    """Return where reports and copies of trees are kept: $Q4GSW_CACHE, else the user's cache directory."""
    if chosen := os.environ.get("Q4GSW_CACHE"):
        return Path(chosen).expanduser().resolve()
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "q4gsw-conformance"
    except RuntimeError as error:
        raise Unwritable("this user has no home directory: set Q4GSW_CACHE to a directory") from error


def kept_folder(home: Path, most: int = 20) -> Path:
    """Make a new directory for a run's report in ``home``; ``latest`` there leads to it, and the oldest such ones go.

    Those of other processes that still run stay: each holds a lock on its newest.

    Raises:
        Unwritable: the disk is full, or the directory cannot be written.
    """
    make_folder(home)
    try:
        folder = Path(tempfile.mkdtemp(prefix=time.strftime("%Y%m%d-%H%M%S-"), dir=home))
        link = home / f".latest.{os.getpid()}"
        link.symlink_to(folder.name)
        link.replace(home / "latest")
    except OSError as error:
        raise unwritable(error.filename or home, error) from error
    _held.close()
    with contextlib.suppress(OSError):  # a file system without locks
        _held.enter_context(_locked(folder, fcntl.LOCK_SH))
    others = sorted(path for path in home.iterdir() if _KEPT.match(path.name) and path != folder)
    for old in others[: max(0, len(others) + 1 - most)]:
        with contextlib.suppress(OSError), _locked(old, fcntl.LOCK_EX):
            shutil.rmtree(old, ignore_errors=True)
    return folder


#: The lock on the newest directory of this process; it ends with the process.
_held = contextlib.ExitStack()


@contextlib.contextmanager
def _locked(folder: Path, how: int) -> Iterator[None]:
    """Hold a lock on a directory; BlockingIOError where another process has one."""
    opened = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(opened, how | fcntl.LOCK_NB)
        yield
    finally:
        os.close(opened)


def write_whole(texts: Mapping[Path, str | bytes]) -> None:
    """Put texts or bytes into files: all of them, or none where one does not fit; what was there stays until then.

    Raises:
        Unwritable: names the first file that cannot be written.
    """
    partial = {path: path.with_name(f".{path.name}.{os.getpid()}") for path in texts}
    path = Path()
    try:
        for path, text in texts.items():
            partial[path].write_bytes(text.encode() if isinstance(text, str) else text)
            if path.is_dir():  # the one thing that a whole file cannot take the place of
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        for path, beside in partial.items():
            beside.replace(path)
    except OSError as error:
        for beside in partial.values():
            with contextlib.suppress(OSError):
                beside.unlink()
        raise unwritable(path, error) from error


def append_line(path: Path, line: str, *, sync: bool = False) -> None:
    """Append a line to a file: the whole line, or nothing of it; with ``sync`` it is on the disk on return.

    Raises:
        Unwritable: it does not fit; the file ends where it ended before.
    """
    left = memoryview(f"{line}\n".encode())
    try:
        with path.open("ab", buffering=0) as file:
            end = file.tell()
            try:
                while left:
                    left = left[file.write(left) :]
                if sync:
                    os.fsync(file.fileno())
            except OSError:
                file.truncate(end)
                raise
    except OSError as error:
        raise unwritable(path, error) from error


def q4gsw(*words: str | Path) -> str:
    """Return the command line ``q4gsw WORDS``, quoted for a shell; a path is absolute, so that it runs from anywhere.

    >>> q4gsw("replay", Path("/tmp/a report/x.toml"))
    "q4gsw replay '/tmp/a report/x.toml'"
    """
    return shlex.join(["q4gsw", *(str(word.resolve()) if isinstance(word, Path) else word for word in words)])
