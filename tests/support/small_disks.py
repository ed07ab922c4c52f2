"""Disks that are full soon, and directories that nobody may write into, as real ones as the machine allows.

``mounted`` needs leave to mount; ``limited`` works everywhere: the kernel refuses to make any file larger.
"""

import contextlib
import ctypes
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

_PR_CAPBSET_DROP = 24
_CAP_DAC_OVERRIDE = 1


@contextlib.contextmanager
def mounted(folder: Path, kib: int) -> Iterator[None]:
    """A file system of ``kib`` KiB at ``folder``; skips the test where nothing may be mounted."""
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={kib}k", "q4gsw", str(folder)],
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        why = done.stderr.partition("\n")[0]
        pytest.skip(f"no leave to mount here ({why}); the limit on files' sizes stands in")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def limited(folder: Path, kib: int) -> Iterator[None]:
    """No file of this process, nor of those that it starts, grows beyond ``kib`` KiB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    written, sys.dont_write_bytecode = sys.dont_write_bytecode, True  # a .pyc that is cut off would break later runs
    resource.setrlimit(resource.RLIMIT_FSIZE, (kib * 1024, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        sys.dont_write_bytecode = written


DISKS = {"mounted": (mounted, "No space left on device"), "limited": (limited, "File too large")}


def as_anyone() -> None:
    """Let permission bits hold for root as well, from the next program on: for ``preexec_fn``."""
    if os.geteuid() == 0:
        ctypes.CDLL(None).prctl(_PR_CAPBSET_DROP, _CAP_DAC_OVERRIDE, 0, 0, 0)


def read_only(folder: Path) -> Callable[[], None]:
    """Make a directory read-only; what is returned makes a new process respect that.

    Skips the test where a new process may write there all the same.
    """
    folder.mkdir()
    folder.chmod(0o555)
    tried = subprocess.run(
        ["touch", str(folder / "x")],
        preexec_fn=as_anyone,
        capture_output=True,
        check=False,
    )
    if not tried.returncode:
        pytest.skip("root keeps its leave to write anywhere here; a file in the directory's place stands in")
    return as_anyone
