"""A runner that is a command: called without a shell, with a time limit; and how tensors are told to it.

``RUNNER MODEL OUT INPUT...``: an input is ``FILE:DTYPE:SIZES``, such as ``input_0.bin:int64:2x3``, raw little-endian
elements; the word ``then`` stands between the inputs of one call and of the next. The runner writes, for every output
of every call, counted through, ``OUT/output_N.bin`` and beside it ``output_N.txt`` with ``DTYPE:SIZES``.

Source: docs/runtime.md, "A runner".
"""

import re
import signal
from collections.abc import Sequence
from dataclasses import dataclass

from conformance.harness.process import Printed, Process

#: Between the inputs of two calls.
THEN = "then"
_TOLD = re.compile(r"([a-z]+[0-9]*):((?:[0-9]{1,18}(?:x[0-9]{1,18}){0,7})?)\s*")
_TAIL = 500


@dataclass(frozen=True)
class Trouble:
    """A call without an answer. ``kind``: "Timeout", "Died" (a signal) or "Command" (an exit code)."""

    kind: str
    reason: str


def told(dtype: str, shape: Sequence[int]) -> str:
    """Return how a tensor is told to a runner.

    >>> told("int64", (2, 3)), told("float32", ())
    ('int64:2x3', 'float32:')
    """
    return f"{dtype}:{'x'.join(map(str, shape))}"


def read_told(text: str) -> tuple[str, tuple[int, ...]]:
    """Return dtype and shape of a tensor as ``told`` writes it; ValueError where it is none.

    >>> read_told("float16:4x32")
    ('float16', (4, 32))
    """
    found = _TOLD.fullmatch(text)
    if not found:
        raise ValueError(f"{text[:80]!r} is not DTYPE:SIZES, such as int64:2x3")
    return found[1], tuple(int(size) for size in found[2].split("x") if size)


def call(words: Sequence[str], seconds: float, printed: Printed | None = None) -> Trouble | None:
    """Call a command to its end, at most ``seconds``; return what went wrong, or None. Nothing it started is left.

    Raises:
        ValueError: it cannot be started at all.
    """
    printed = printed or Printed()
    try:
        runner = Process(words)
    except OSError as error:
        raise ValueError(f"{words[0]} cannot be run: {error.strerror}") from error
    try:
        code = runner.wait(seconds, printed)
    finally:
        runner.end()
    if code is None:
        return Trouble("Timeout", f"no answer within {seconds:g} s")
    if not code:
        return None
    tail = " ".join(printed.text().split())[-_TAIL:]
    how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return Trouble("Died" if code < 0 else "Command", f"the runner ended with {how}: {tail}")
