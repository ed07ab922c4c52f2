"""Fake subjects that answer what is no answer: once, at the case ``AT``; every other case they get right."""

import errno
import os
import signal
import struct
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from conformance import Arrays, Case, Observation
from conformance.harness import child
from conformance.harness.observation import Raised, Unsupported, encode
from tests.fakes.misbehaving import Good

AT = "pack/flat/v1"


class Lies(Good):
    """Says or does ``answer`` once."""

    def answer(self) -> Observation | None:
        raise NotImplementedError

    def run(self, case: Case) -> Observation:
        own = self.answer() if case.id == AT else None
        return super().run(case) if own is None else own


class SupportsFive(Good):
    def supports(self, case: Case) -> str | None:
        return 5 if case.id == AT else super().supports(case)  # type: ignore[return-value]


class UnsupportedWithoutReason(Lies):
    def answer(self) -> Observation:
        return Unsupported(None)  # type: ignore[arg-type]


class NumbersForFacts(Lies):
    def answer(self) -> Observation:
        return Arrays({"packed": np.zeros((1, 2), np.uint8)}, {"device": 5})  # type: ignore[arg-type]


class RaisedNumbers(Lies):
    def answer(self) -> Observation:
        return Raised(5, 6)  # type: ignore[arg-type]


class HalfACharacter(Lies):
    def answer(self) -> Observation:
        raise ValueError("\ud800\x1b[2J\nsecond line")


class HalfACharacterReturned(Lies):
    def answer(self) -> Observation:
        return Raised("ValueError", "\ud800")


class OutsideItsArray(Lies):
    """The first element that was not written is none of the array: an oracle raises."""

    def answer(self) -> Observation:
        return Arrays({"packed": np.zeros((1, 16), np.uint8)}, {"unwritten": 10**30})  # type: ignore[arg-type]


class RaisesWithoutMessage(Lies):
    def answer(self) -> Observation:
        class Silent(Exception):  # noqa: N818
            def __str__(self) -> str:
                raise KeyError

        raise Silent


class Huge(Lies):
    """A frame that says it is a terabyte, and sends it."""

    def answer(self) -> Observation:
        out = int(sys.argv[3])
        number = struct.pack("<Q", 2)
        os.write(out, number + struct.pack("<Q", 1 << 40))
        for _ in range(4000):
            os.write(out, bytes(1 << 20))
        raise AssertionError


class AnswersTwice(Lies):
    """An answer to this question of its own, before the one that is returned."""

    def answer(self) -> None:
        wrong = encode(Raised("ValueError", "an answer to the question before"))
        for number in (0, 1):
            with os.fdopen(os.dup(int(sys.argv[3])), "wb") as replies:
                child.write_frame(replies, number, wrong)


class Forks(Lies):
    """A copy of the process returns from ``run`` as well, later."""

    def answer(self) -> None:
        if not os.fork():
            time.sleep(0.2)


class LeavesAGrandchild(Lies):
    """It has a session of its own and the output's pipe; its number is where MARK says."""

    def answer(self) -> None:
        started = subprocess.Popen(["sleep", "600"], start_new_session=True)
        Path(os.environ["MARK"]).write_text(str(started.pid))


class Floods(Lies):
    """Prints 64 MB, then raises."""

    def answer(self) -> Observation:
        print("the first line")
        for _ in range(1 << 6):
            os.write(1, b"x" * (1 << 20))
        raise KeyError("flooded")


class FullDisk(Lies):
    def answer(self) -> Observation:
        raise OSError(errno.ENOSPC, "No space left on device", "/somewhere/full")


class OutOfMemory(Lies):
    def answer(self) -> Observation:
        bytearray(1 << 60)
        raise AssertionError


class NotFound(Lies):
    """Its own mistake."""

    def answer(self) -> Observation:
        Path("/nowhere").read_text()
        raise AssertionError


class Stops(Lies):
    """As by SIGSTOP from somebody else."""

    def answer(self) -> None:
        os.kill(os.getpid(), signal.SIGSTOP)
