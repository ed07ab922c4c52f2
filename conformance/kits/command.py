"""Calling a runtime that is a command: once a kit, without a shell, with a time limit."""

import shlex
import signal
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

from conformance.harness.observation import Facts
from conformance.harness.process import Printed, Process
from conformance.kits.judge import judge_kit
from conformance.kits.kit import Kit, read_file
from conformance.results.verdict import ERROR, FAIL, FAILED, Outcome, Verdict

_TAIL = 500


def words_of(command: str) -> list[str]:
    """Return the words of a command such as 'runner {pte} {out} {inputs}'; ValueError where it lacks {pte} or {out}."""
    words = shlex.split(command)
    if not words or "{pte}" not in command or "{out}" not in command:
        raise ValueError(f"--subject-command {command!r} needs {{pte}} and {{out}} (and may have {{inputs}})")
    return words


def run_kit(kit: Kit, words: list[str], out: Path, seconds: float, facts: Facts | None) -> Verdict:
    """Call the command for one kit and judge what it leaves in ``out``, a new directory.

    Raises ValueError where the command cannot be run at all, or the kit's model or an input is not the one it was made
    with.
    """
    out.mkdir(parents=True)
    for file in (kit.description.model, *kit.description.inputs):
        read_file(kit.folder, file)
    started, printed = time.perf_counter(), Printed()
    trouble = _call(_filled(words, kit, out), seconds, printed)
    taken = round(time.perf_counter() - started, 4)
    if trouble:
        verdict = Verdict(kit.case.id, "RUN", "command", *trouble, contract=kit.case.contract)
    else:
        verdict = judge_kit(kit, out, "command", facts)
    return replace(verdict, seconds=taken, printed=printed.text() if verdict.outcome in FAILED else "")


def _filled(words: list[str], kit: Kit, out: Path) -> list[str]:
    """The command's words for one kit."""
    folder = kit.folder.resolve()
    inputs = [str(folder / tensor.file) for tensor in kit.description.inputs]
    model = str(folder / kit.description.model.file)
    filled = [[word.replace("{pte}", model).replace("{out}", str(out))] for word in words]
    return list(chain.from_iterable(inputs if word == ["{inputs}"] else word for word in filled))


def _call(command: list[str], seconds: float, printed: Printed) -> tuple[Outcome, str, str] | None:
    """Call the runner; what went wrong as outcome, signature and reason, or None. Nothing that it started is left."""
    try:
        runner = Process(command)
    except OSError as error:
        raise ValueError(f"--subject-command: {command[0]} cannot be run: {error.strerror}") from error
    try:
        code = runner.wait(seconds, printed)
    finally:
        runner.end()
    if code is None:
        return ERROR, "RUN/raised/Timeout", f"no answer within {seconds:g} s"
    if code:
        tail = " ".join(printed.text().split())[-_TAIL:]
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return FAIL, f"RUN/raised/{'Died' if code < 0 else 'Command'}", f"the runner ended with {how}: {tail}"
    return None
