"""Worker: runs a subject in a child process with a time limit a case, and survives whatever it does.

A case that kills or hangs the child yields ``Raised`` for that case; the next one gets a fresh
child. Memory is bounded by the child's address space only where the caller sets a limit.

Source: docs/contract.md section 7.
"""

import contextlib
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import IO, Self

from conformance.case.case import Case
from conformance.case.toml import case_to_toml
from conformance.harness.child import CHECK
from conformance.harness.errors import BadSubject
from conformance.harness.observation import Observation, Raised, decode
from conformance.harness.subject import resolved

#: Seconds a case may take once the child is warm; the first case of a child may also import.
CASE_SECONDS = 60.0
START_SECONDS = 120.0
_TAIL = 2000


class Worker:
    """A child process serving one subject. Use as a context manager.

    ``imports``: a folder that the child imports from before what the user's PYTHONPATH names.
    """

    def __init__(self, subject: str, seconds: float = CASE_SECONDS, imports: Path | None = None) -> None:
        self.subject = resolved(subject)
        self.seconds = seconds
        self.imports = imports
        self._child: subprocess.Popen[bytes] | None = None
        self._requests = -1
        self._replies = -1
        self._log: IO[bytes] | None = None
        self._warm = False
        self._asked: set[str] = set()
        #: Whether the last case was its child's first of that stage: the one that imports what the stage needs.
        self.first = False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def check(self, case: Case) -> None:
        """Load the subject and let it say whether it supports ``case``.

        Raises:
            BadSubject: it cannot be loaded, or what it says is neither a bool nor a reason.
        """
        answer = self.run(case, CHECK)
        if isinstance(answer, Raised) and (answer.loading or answer.type in {"Died", "Timeout"}):
            self.close()
            line = answer.message.strip().rpartition("\n")[2]
            raise BadSubject(line if line.startswith("subject ") else f"subject {self.subject!r}: {line}")

    def run(self, case: Case, prefix: str = "") -> Observation:
        """Return the subject's observation of ``case``; death and hanging are observations too."""
        if self._child is None:
            self._start()
        self.first = case.stage not in self._asked
        self._asked.add(case.stage)
        limit = self.seconds if self._warm else max(START_SECONDS, self.seconds)
        deadline = time.monotonic() + limit
        try:
            payload = f"{prefix}{case_to_toml(case)}".encode()
            self._write(struct.pack("<Q", len(payload)) + payload, deadline)
            (length,) = struct.unpack("<Q", self._read(8, deadline))
            observation = decode(self._read(length, deadline))
        except TimeoutError:
            tail = self._kill()
            return Raised("Timeout", f"{tail}\nno answer within {limit:g} s", signal="SIGKILL", trouble=True)
        except (EOFError, BrokenPipeError):
            return self._died()
        except ValueError as error:
            self._kill()
            return Raised("BadObservation", str(error), trouble=True)
        self._warm = True
        return observation

    def close(self) -> None:
        """End the child; it is killed if it does not leave by itself."""
        if self._child is None:
            return
        os.close(self._requests)
        os.close(self._replies)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(5)
        self._kill(closed=True)

    def _start(self) -> None:
        child_in, self._requests = os.pipe()
        self._replies, child_out = os.pipe()
        self._log = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the child
        root = Path(__file__).parent.parent.parent
        command = [
            sys.executable,
            "-m",
            "conformance.harness.child",
            self.subject,
            *map(str, (child_in, child_out, os.getpid())),
        ]
        path = os.pathsep.join(filter(None, [str(root), str(self.imports or ""), os.environ.get("PYTHONPATH", "")]))
        self._child = subprocess.Popen(
            command,
            pass_fds=(child_in, child_out),
            stdin=subprocess.DEVNULL,
            stdout=self._log,
            stderr=self._log,
            # A child each core is parallel enough; threads of their own would only get in each other's way.
            env={"OMP_NUM_THREADS": "1", **os.environ, "PYTHONPATH": path, "PYTHONFAULTHANDLER": "1"},
            start_new_session=True,  # so that a hung child's own children die with it
        )
        os.close(child_in)
        os.close(child_out)
        self._warm = False
        self._asked = set()

    def _write(self, data: bytes, deadline: float) -> None:
        view = memoryview(data)
        while view:
            _, ready, _ = select.select([], [self._requests], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            view = view[os.write(self._requests, view[: 1 << 16]) :]

    def _read(self, count: int, deadline: float) -> bytes:
        chunks: list[bytes] = []
        while count:
            ready, _, _ = select.select([self._replies], [], [], max(0.0, deadline - time.monotonic()))
            if not ready:
                raise TimeoutError
            chunk = os.read(self._replies, min(count, 1 << 20))
            if not chunk:
                raise EOFError
            chunks.append(chunk)
            count -= len(chunk)
        return b"".join(chunks)

    def _died(self) -> Raised:
        assert self._child is not None  # noqa: S101 - it has just been talked to
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.wait(10)
        code = self._child.returncode
        tail = self._kill()
        name = signal.Signals(-code).name if code is not None and code < 0 else ""
        message = f"{tail}\nthe subject's process ended with {name or f'exit code {code}'}"
        return Raised("Died", message, signal=name, trouble=True)

    def _kill(self, *, closed: bool = False) -> str:
        """Kill the child's whole session, forget it, and return the tail of what it printed."""
        if self._child is None or self._log is None:
            return ""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._child.pid, signal.SIGKILL)
        self._child.wait()
        if not closed:
            os.close(self._requests)
            os.close(self._replies)
        size = self._log.seek(0, os.SEEK_END)
        self._log.seek(max(0, size - _TAIL))
        tail = self._log.read().decode(errors="replace").strip()
        self._log.close()
        self._child = self._log = None
        return tail
