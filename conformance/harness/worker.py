"""Worker: runs a subject in a child process with a time limit a case, and survives whatever it does.

A case that kills or hangs the child yields ``Raised`` for that case; the next one gets a fresh
child. Memory is bounded: an answer and what the child prints have limits, the child's own memory has none.

Source: docs/contract.md section 7.
"""

import contextlib
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Self

from conformance.case.case import Case
from conformance.case.toml import case_to_toml
from conformance.harness.child import CHECK, HEAD
from conformance.harness.errors import BadSubject
from conformance.harness.observation import LARGEST, Observation, Raised, decode
from conformance.harness.process import Printed, Process
from conformance.harness.subject import resolved

#: Seconds a case may take once the child is warm; the first case of a child may also import.
CASE_SECONDS = 60.0
START_SECONDS = 120.0


class Worker:
    """A child process serving one subject. Use as a context manager.

    ``imports``: a folder that the child imports from before what the user's PYTHONPATH names. ``show`` gets all that
    the child prints, as it comes; ``printed`` keeps the beginning and the end of what it printed for the last case.
    """

    def __init__(
        self,
        subject: str,
        seconds: float = CASE_SECONDS,
        imports: Path | None = None,
        show: Callable[[bytes], object] | None = None,
    ) -> None:
        self.subject = resolved(subject)
        self.seconds = seconds
        self.imports = imports
        self.printed = Printed(show)
        self._child: Process | None = None
        self._requests = -1
        self._replies = -1
        self._number = 0
        self._talks = True
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
            line = answer.message.strip() or answer.type
            raise BadSubject(line if line.startswith("subject ") else f"subject {self.subject!r}: {line}")

    def run(self, case: Case, prefix: str = "") -> Observation:
        """Return the subject's observation of ``case``; death and hanging are observations too."""
        self.printed.clear()
        if self._child is None:
            self._start()
        self.first = case.stage not in self._asked
        self._asked.add(case.stage)
        limit = self.seconds if self._warm else max(START_SECONDS, self.seconds)
        deadline = time.monotonic() + limit
        try:
            observation = decode(self._ask(f"{prefix}{case_to_toml(case)}".encode(), deadline))
        except TimeoutError:
            self._end()
            why = ", which is what the first case of a process has at least: it loads the subject"
            message = f"no answer within {limit:g} s{why if limit > self.seconds else ''}"
            return Raised("Timeout", message, signal="SIGKILL", trouble=True)
        except (EOFError, BrokenPipeError):
            return self._died()
        except ValueError as error:
            self._end()
            return Raised("BadObservation", str(error), trouble=True)
        self._drain()
        self._warm = True
        return observation

    def close(self) -> None:
        """End the child; it is killed if it does not leave by itself."""
        if self._child is None:
            return
        os.close(self._requests)
        self._requests = -1
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.process.wait(5)
        self._end()

    def _start(self) -> None:
        child_in, self._requests = os.pipe()
        self._replies, child_out = os.pipe()
        root = Path(__file__).parent.parent.parent
        command = [
            sys.executable,
            "-m",
            "conformance.harness.child",
            self.subject,
            *map(str, (child_in, child_out, os.getpid())),
        ]
        path = os.pathsep.join(filter(None, [str(root), str(self.imports or ""), os.environ.get("PYTHONPATH", "")]))
        # A child each core is parallel enough; threads of their own would only get in each other's way. Not buffered:
        # what a process prints before it is killed is seen.
        own = {"PYTHONPATH": path, "PYTHONFAULTHANDLER": "1", "PYTHONUNBUFFERED": "1", "PYTHONUTF8": "1"}
        env = {"OMP_NUM_THREADS": "1", **os.environ, **own}
        self._child = Process(command, env, pass_fds=(child_in, child_out))
        os.close(child_in)
        os.close(child_out)
        self._warm = False
        self._talks = True
        self._asked = set()

    def _ask(self, question: bytes, deadline: float) -> bytearray:
        """Send a question and return the answer to it: one to an earlier question is dropped."""
        self._number += 1
        view = memoryview(HEAD.pack(self._number, len(question)) + question)
        while view:
            self._wait([], [self._requests], deadline)
            view = view[os.write(self._requests, view[: 1 << 16]) :]
        while True:
            number, length = HEAD.unpack(self._read(HEAD.size, deadline))
            if number > self._number or length > LARGEST:
                raise ValueError(f"an answer of {length} bytes to question {number}; at most {LARGEST} bytes")
            answer = self._read(length, deadline)
            if number == self._number:
                return answer

    def _wait(self, reading: list[int], writing: list[int], deadline: float) -> None:
        """Wait until there is something to read or room to write; meanwhile read what the child prints."""
        assert self._child is not None  # noqa: S101 - it has just been talked to
        while (left := deadline - time.monotonic()) > 0:
            log = [self._child.output] if self._talks else []
            readable, writable, _ = select.select([*reading, *log], writing, [], left)
            if self._child.output in readable:
                self._talks = self.printed.read(self._child.output)
            if writable or not {*readable}.isdisjoint(reading):
                return
        raise TimeoutError

    def _read(self, count: int, deadline: float) -> bytearray:
        data = bytearray()
        while len(data) < count:
            self._wait([self._replies], [], deadline)
            chunk = os.read(self._replies, min(count - len(data), 1 << 20))
            if not chunk:
                raise EOFError
            data += chunk
        return data

    def _drain(self) -> None:
        if self._child is not None and self._talks:
            self.printed.drain(self._child.output)

    def _died(self) -> Raised:
        assert self._child is not None  # noqa: S101 - it has just been talked to
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._child.process.wait(10)
        code = self._child.process.returncode
        self._end()
        name = signal.Signals(-code).name if code is not None and code < 0 else ""
        return Raised(
            "Died", f"the subject's process ended with {name or f'exit code {code}'}", signal=name, trouble=True
        )

    def _end(self) -> None:
        """Kill the child with all that it started, and forget it."""
        if self._child is None:
            return
        self._drain()
        self._child.end()
        for descriptor in (self._requests, self._replies):
            if descriptor >= 0:
                os.close(descriptor)
        self._requests = self._replies = -1
        self._child = None
