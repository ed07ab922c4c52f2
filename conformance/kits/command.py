"""Calling a runtime that is a command: once a kit, without a shell, with a time limit."""

import os
import shlex
import signal
import subprocess
import time
from dataclasses import replace
from itertools import chain
from pathlib import Path

from conformance.harness.observation import Facts
from conformance.kits.judge import judge_kit
from conformance.kits.kit import Kit, read_file
from conformance.results.verdict import ERROR, FAIL, Outcome, Verdict

_TAIL = 500


def words_of(command: str) -> list[str]:
    """Return the words of a command such as 'runner {pte} {out} {inputs}'; ValueError where it lacks {pte} or {out}."""
    words = shlex.split(command)
    if not words or "{pte}" not in command or "{out}" not in command:
        raise ValueError(f"--subject-command {command!r} needs {{pte}} and {{out}} (and may have {{inputs}})")
    return words


def run_kit(kit: Kit, words: list[str], out: Path, seconds: float, facts: Facts | None) -> Verdict:
    """Call the command for one kit and judge what it leaves in ``out``, a new directory.

    Raises ValueError where the command cannot be run at all, or the kit's model is not the one it was made with.
    """
    out.mkdir(parents=True)
    read_file(kit.folder, kit.description.model)
    started = time.perf_counter()
    trouble = _call(_filled(words, kit, out), seconds)
    taken = round(time.perf_counter() - started, 4)
    if trouble:
        return Verdict(kit.case.id, "RUN", "command", *trouble, seconds=taken, contract=kit.case.contract)
    return replace(judge_kit(kit, out, "command", facts), seconds=taken)


def _filled(words: list[str], kit: Kit, out: Path) -> list[str]:
    """The command's words for one kit."""
    folder = kit.folder.resolve()
    inputs = [str(folder / tensor.file) for tensor in kit.description.inputs]
    model = str(folder / kit.description.model.file)
    filled = [[word.replace("{pte}", model).replace("{out}", str(out))] for word in words]
    return list(chain.from_iterable(inputs if word == ["{inputs}"] else word for word in filled))


def _call(command: list[str], seconds: float) -> tuple[Outcome, str, str] | None:
    """Call the runner; what went wrong as outcome, signature and reason, or None."""
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise ValueError(f"--subject-command: {command[0]} cannot be run: {error.strerror}") from error
    try:
        printed, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ERROR, "RUN/raised/Timeout", f"no answer within {seconds:g} s"
    if process.returncode:
        tail = " ".join(printed.decode(errors="replace").split())[-_TAIL:]
        code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return FAIL, f"RUN/raised/{'Died' if code < 0 else 'Command'}", f"the runner ended with {how}: {tail}"
    return None
