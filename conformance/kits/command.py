"""Calling a runtime that is a command: once a kit, without a shell, with a time limit."""

import shlex
import time
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain
from pathlib import Path

from conformance.harness.command import THEN, call
from conformance.harness.observation import Facts
from conformance.harness.process import Printed
from conformance.judging.judge import verdict_on
from conformance.kits.judge import judge_kit, repeated
from conformance.kits.kit import Array, Kit, read_file, read_tensor
from conformance.results.mismatch import RaisedMismatch
from conformance.results.verdict import ERROR, FAIL, FAILED, Verdict

#: Where the outputs of the last of several times are, which another load made.
AGAIN = "again"


def words_of(command: str) -> list[str]:
    """Return the words of a command such as 'runner {pte} {out} {inputs}'; ValueError where it lacks {pte} or {out}."""
    words = shlex.split(command)
    if not words or "{pte}" not in command or "{out}" not in command:
        raise ValueError(f"--subject-command {command!r} needs {{pte}} and {{out}} (and may have {{inputs}})")
    return words


def run_kit(kit: Kit, words: list[str], out: Path, seconds: float, facts: Facts | None, repeat: int = 1) -> Verdict:
    """Call the command for one kit and judge what it leaves in ``out``, a new directory.

    ``repeat``: how often the kit's calls are made; from 2 on the last time by a start of its own.

    Raises ValueError where the command cannot be run at all, or the kit's model or an input is not the one it was made
    with.
    """
    (out / AGAIN if repeat > 1 else out).mkdir(parents=True)
    for file in (kit.description.model, *(tensor for one in kit.description.calls for tensor in one.inputs)):
        read_file(kit.folder, file)
    started, printed = time.perf_counter(), Printed()
    trouble = call(_filled(words, kit, out, max(1, repeat - 1)), seconds, printed)
    if not trouble and repeat > 1:
        trouble = call(_filled(words, kit, out / AGAIN, 1), seconds, printed)
    if trouble:
        outcome = ERROR if trouble.kind == "Timeout" else FAIL
        verdict = verdict_on(kit.case, "command", outcome, RaisedMismatch(trouble.kind, trouble.reason, trouble.kind))
    else:
        verdict = judge_times(kit, out, "command", facts, repeat)
    taken = round(time.perf_counter() - started, 4)
    return replace(verdict, seconds=taken, printed=printed.text() if verdict.outcome in FAILED else "")


def judge_times(kit: Kit, out: Path, subject: str, facts: Facts | None, repeat: int) -> Verdict:
    """Judge a kit that was played ``repeat`` times: the first time's outputs, and whether the others are the same."""
    verdict = judge_kit(kit, out, subject, facts)
    if repeat == 1 or "/dtype_shape/" in verdict.signature:
        return verdict
    return repeated(kit, verdict, list(_times(kit, out, repeat)))


def _times(kit: Kit, out: Path, repeat: int) -> Iterator[list[Array]]:
    """The outputs of every time: one after the other in ``out``, and of the last time in a directory of its own."""
    outputs = [output for one in kit.description.calls for output in one.outputs]
    for number in range(repeat):
        folder, first = (out, number * len(outputs)) if number < repeat - 1 else (out / AGAIN, 0)
        yield [read_tensor(folder, replace(o, file=f"output_{first + n}.bin")) for n, o in enumerate(outputs)]


def _filled(words: list[str], kit: Kit, out: Path, times: int) -> list[str]:
    """The command's words for one kit, whose calls are made so often."""
    folder = kit.folder.resolve()
    once = kit.description.arguments(f"{folder}/")
    inputs = [*once, *(word for _ in range(times - 1) for word in (THEN, *once))]
    model = str(folder / kit.description.model.file)
    filled = [[word.replace("{pte}", model).replace("{out}", str(out))] for word in words]
    return list(chain.from_iterable(inputs if word == ["{inputs}"] else word for word in filled))
