"""The child process in which a subject runs: cases in, observations out, nothing else.

Started by ``conformance.harness.worker`` as ``python -m conformance.harness.child SUBJECT IN_FD OUT_FD WORKER_PID``.
Frames are a question's number and a length, uint64 both, and that many bytes: a case as TOML one way (after ``CHECK``:
is it supported?), an encoded observation the other. The subject's own prints go to the pipe that the worker gave.
"""

import contextlib
import ctypes
import gc
import os
import signal
import struct
import sys
import tempfile
import traceback
from types import FrameType
from typing import BinaryIO

from conformance.case.toml import case_from_toml
from conformance.files import DISK, MACHINE, unwritable
from conformance.harness.errors import BadSubject, EnvironmentProblem, FeatureMissing, Untestable, one_line
from conformance.harness.noise import keep_out
from conformance.harness.observation import Observation, Raised, Unsupported, encode
from conformance.harness.subject import Subject, load, unsupported

#: What a frame begins with that asks only whether the case is supported.
CHECK = "# supports?\n"
#: Head of a frame: number and length.
HEAD = struct.Struct("<QQ")
_MOST_MESSAGE = 4000
_PR_SET_PDEATHSIG = 1
_SUITE = frozenset({"__main__", "conformance", "reference"})
#: Packages in which nothing is the implementation under test, though it may raise there.
_BENEATH = frozenset({"torch", "functorch", "torchgen", "numpy", "sympy", "mpmath"})


def answer(subject: Subject, toml: str) -> Observation:
    """Return what ``subject`` makes of one case; whatever it raises becomes ``Raised``."""
    try:
        case = case_from_toml(toml)
        reason = unsupported(subject, case)
        return Unsupported(reason or "") if reason is not None or toml.startswith(CHECK) else subject.run(case)
    except BadSubject as error:
        return Raised("BadSubject", said(error), trouble=True, loading=True)
    except FeatureMissing as missing:
        return Unsupported(said(missing), of_device=True)
    except (EnvironmentProblem, Untestable) as problem:
        return Raised(type(problem).__name__, said(problem), trouble=True)
    except Exception as error:  # noqa: BLE001 - a subject may raise anything, and it costs only its own case
        traceback.print_exc()
        if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in MACHINE):
            return Raised("EnvironmentProblem", _trouble(error), trouble=True)
        return Raised(clean(type(error).__name__), said(error), clean(raised_at(error)))


def _trouble(error: BaseException) -> str:
    """What a machine lacks, and what to do about it."""
    if isinstance(error, OSError) and error.errno in DISK:
        return clean(str(unwritable(error.filename or f"something, perhaps in {tempfile.gettempdir()},", error)))
    return f"{said(error) or 'out of memory'}; give the machine more of it, or raise its limits (ulimit -a)"


def said(error: BaseException) -> str:
    """Return an exception's message, which may be anything, as text that can be sent."""
    try:
        return clean(str(error))[:_MOST_MESSAGE]
    except Exception as other:  # noqa: BLE001 - a subject's exception may have any __str__
        return f"its message cannot be read: {type(other).__name__}"


def clean(text: str) -> str:
    """Return ``text`` without halves of characters, which no encoding has."""
    return text.encode(errors="backslashreplace").decode()


def raised_at(error: BaseException) -> str:
    """Return module.function of the innermost frame of the implementation under test, "" where there is none.

    Where only torch and what is beneath it raised, it is the function of theirs that the suite called. The suite's own
    exceptions are about a file or a device, and name no place.
    """
    if type(error).__module__.partition(".")[0] in _SUITE:
        return ""
    chain = [error]
    while (cause := chain[-1].__cause__) is not None and cause not in chain:
        chain.append(cause)
    stacks = [[frame for frame, _ in traceback.walk_tb(link.__traceback__)] for link in reversed(chain)]
    for stack in stacks:
        for frame in reversed(stack):
            if _root(frame) not in _SUITE | _BENEATH | sys.stdlib_module_names:
                return _place(frame)
    return next((_place(f) for f in stacks[-1] if _root(f) not in _SUITE | sys.stdlib_module_names), "")


def _root(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "__main__")).partition(".")[0]


def _place(frame: FrameType) -> str:
    return f"{frame.f_globals['__name__']}.{frame.f_code.co_qualname.replace('<locals>.', '')}"


def read_frame(stream: BinaryIO) -> tuple[int, bytes] | None:
    """Return the next frame's number and bytes, or None at the end of the stream."""
    head = stream.read(HEAD.size)
    if len(head) < HEAD.size:
        return None
    number, length = HEAD.unpack(head)
    return number, stream.read(length)


def write_frame(stream: BinaryIO, number: int, data: bytes) -> None:
    """Write one frame and flush it."""
    stream.write(HEAD.pack(number, len(data)))
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
    keep_out()
    own = os.getpid()
    with os.fdopen(fd_in, "rb") as requests, os.fdopen(fd_out, "wb") as replies:
        subject: Subject | None = None
        settled = False
        while (frame := read_frame(requests)) is not None:
            number, question = frame
            try:
                subject = load(name) if subject is None else subject
                reply = answer(subject, question.decode())
            except Exception as error:  # noqa: BLE001 - a subject file may fail in any way at import
                traceback.print_exc()
                message = said(error) if isinstance(error, BadSubject) else f"subject {name!r}: {one_line(error)}"
                reply = Raised("EnvironmentProblem", clean(message), trouble=True, loading=True)
            if os.getpid() != own:
                os._exit(0)  # a copy that the subject made of this process; the question is this one's no more
            try:
                data = encode(reply)
            except Exception as error:  # noqa: BLE001 - a subject may return anything
                message = f"{type(reply).__name__} cannot be encoded: {said(error)}"
                data = encode(Raised("BadObservation", clean(message), trouble=True))
            _flush()
            write_frame(replies, number, data)
            if not settled:
                gc.freeze()  # what was imported stays: walking torch's modules again and again would cost a tenth
                settled = True


def _flush() -> None:
    """What was printed for a case is in the pipe before its answer is, C's prints too."""
    with contextlib.suppress(Exception):  # the subject may have closed or replaced them
        sys.stdout.flush()
        sys.stderr.flush()
    ctypes.CDLL(None).fflush(None)


if __name__ == "__main__":
    main(sys.argv[1:])
    _flush()
    os._exit(0)  # every reply is flushed; taking torch apart would cost each caller most of a second
