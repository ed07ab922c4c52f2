"""The child process in which a subject runs: cases in, observations out, nothing else.

Started by ``conformance.harness.worker`` as ``python -m conformance.harness.child SUBJECT IN_FD OUT_FD WORKER_PID``.
Frames are a uint64 length and that many bytes: a case as TOML one way, an encoded observation the other. The
subject's own prints go to the stdout and stderr that the worker gave.
"""

import ctypes
import gc
import os
import signal
import struct
import sys
import traceback
from typing import BinaryIO

from conformance.case.toml import case_from_toml
from conformance.harness.observation import EnvironmentProblem, Observation, Raised, Unsupported, Untestable, encode
from conformance.harness.subject import Subject, load

_PR_SET_PDEATHSIG = 1


def answer(subject: Subject, toml: str) -> Observation:
    """Return what ``subject`` makes of one case; whatever it raises becomes ``Raised``."""
    try:
        case = case_from_toml(toml)
        reason = subject.supports(case)
        return Unsupported(reason) if reason is not None else subject.run(case)
    except (EnvironmentProblem, Untestable) as problem:
        return Raised(type(problem).__name__, str(problem))
    except Exception as error:  # noqa: BLE001 - a subject may raise anything, and it costs only its own case
        traceback.print_exc()
        return Raised(type(error).__name__, str(error))


def read_frame(stream: BinaryIO) -> bytes | None:
    """Return the next frame, or None at the end of the stream."""
    head = stream.read(8)
    if len(head) < 8:  # noqa: PLR2004 - a uint64
        return None
    (length,) = struct.unpack("<Q", head)
    return stream.read(length)


def write_frame(stream: BinaryIO, data: bytes) -> None:
    """Write one frame and flush it."""
    stream.write(struct.pack("<Q", len(data)))
    stream.write(data)
    stream.flush()


def _die_with_parent(parent: int) -> None:
    """Ask Linux to kill this process when the worker is killed: a hung subject would outlive it for ever."""
    prctl = getattr(ctypes.CDLL(None), "prctl", None)
    if prctl is not None:
        prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:
        os._exit(1)  # it was killed before it could be asked


def main(arguments: list[str]) -> None:
    """Serve cases until the worker closes its end."""
    name, fd_in, fd_out, parent = arguments[0], *map(int, arguments[1:4])
    _die_with_parent(parent)
    with os.fdopen(fd_in, "rb") as requests, os.fdopen(fd_out, "wb") as replies:
        subject: Subject | None = None
        settled = False
        while (frame := read_frame(requests)) is not None:
            if subject is None:
                try:
                    subject = load(name)
                except Exception as error:  # noqa: BLE001 - a subject file may fail in any way at import
                    traceback.print_exc()
                    message = f"subject {name} cannot be loaded: {error!r}"
                    write_frame(replies, encode(Raised("EnvironmentProblem", message, loading=True)))
                    continue
            reply = answer(subject, frame.decode())
            try:
                data = encode(reply)
            except Exception as error:  # noqa: BLE001 - a subject may return anything
                data = encode(Raised("BadObservation", f"{type(reply).__name__} cannot be encoded: {error!r}"))
            write_frame(replies, data)
            if not settled:
                gc.freeze()  # what was imported stays: walking torch's modules again and again would cost a tenth
                settled = True


if __name__ == "__main__":
    main(sys.argv[1:])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # every reply is flushed; taking torch apart would cost each caller most of a second
