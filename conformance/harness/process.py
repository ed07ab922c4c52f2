"""Processes that the suite starts: what they print, in bounds, and their end together with whatever they started."""

import contextlib
import os
import secrets
import select
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

#: The variable of its environment by which a process, and what it starts, is found.
MARK = "Q4GSW_PROCESS"
#: Bytes that are kept of what a process prints: the first and the last ones.
FIRST, LAST = 4096, 12288
_CHUNK = 1 << 16
_PATIENCE_S, _POLL_S = 2.0, 0.02


class Printed:
    """What a process prints, read off a pipe as it comes: its first and its last bytes; all of it goes to ``show``."""

    def __init__(self, show: Callable[[bytes], object] | None = None) -> None:
        self._show = show
        self.clear()

    def clear(self) -> None:
        """Forget what was printed."""
        self._first, self._last, self._size = bytearray(), bytearray(), 0

    def read(self, pipe: int) -> bool:
        """Take what is in ``pipe``, waiting for it; False at its end."""
        data = os.read(pipe, _CHUNK)
        if self._show:
            self._show(data)
        self._size += len(data)
        room = FIRST - len(self._first)
        self._first += data[:room]
        self._last += data[room:]
        del self._last[:-LAST]
        return bool(data)

    def drain(self, pipe: int) -> None:
        """Take what is in ``pipe`` already, though not for ever where a thread goes on printing."""
        for _ in range(64):
            if not select.select([pipe], [], [], 0)[0] or not self.read(pipe):
                return

    def text(self) -> str:
        """The text, with a line that says how many bytes are left out."""
        left = self._size - len(self._first) - len(self._last)
        between = f"\n... {left} bytes ...\n".encode() if left else b""
        return (self._first + between + self._last).decode(errors="backslashreplace").strip()


class Process:
    """A process in a session of its own, whose output is a pipe ``output``; ``end`` leaves nothing of it behind."""

    def __init__(
        self, command: Sequence[str], env: Mapping[str, str] = os.environ, pass_fds: Sequence[int] = ()
    ) -> None:
        """Start it; OSError where that cannot be done."""
        self._mark = f"{os.getpid()}-{secrets.token_hex(8)}"
        self.output, writing = os.pipe()
        try:
            self.process = subprocess.Popen(
                command,
                env={**env, MARK: self._mark},
                stdin=subprocess.DEVNULL,
                stdout=writing,
                stderr=writing,
                start_new_session=True,
                pass_fds=pass_fds,
            )
        except BaseException:
            os.close(self.output)
            raise
        finally:
            os.close(writing)

    def wait(self, seconds: float, printed: Printed) -> int | None:
        """Return its exit code, or None where it has not ended in time; whoever holds its output may live on."""
        until, talks = time.monotonic() + seconds, [self.output]
        while self.process.poll() is None:
            if time.monotonic() > until:
                return None
            if select.select(talks, [], [], _POLL_S)[0] and not printed.read(self.output):
                talks = []
        printed.drain(self.output)
        return self.process.returncode

    def end(self) -> None:
        """Kill it, with everything that it has started, in sessions of their own too."""
        if self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
        until = time.monotonic() + _PATIENCE_S
        while (left := _marked(self._mark)) and time.monotonic() < until:
            for number in left:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(number, signal.SIGKILL)
            time.sleep(0.01)
        os.close(self.output)


def _marked(mark: str) -> list[int]:
    """The processes that have ``mark`` in their environment; none where the system does not tell (no /proc)."""
    wanted, found = f"{MARK}={mark}".encode(), []
    for path in Path("/proc").glob("[0-9]*/environ"):
        with contextlib.suppress(OSError):  # it has just ended, or is another user's
            if wanted in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found
