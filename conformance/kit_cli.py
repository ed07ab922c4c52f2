"""``python -m conformance kit export | play | run`` and ``judge``: cases for runtimes that are elsewhere.

Exit codes: 0 as it should be, 1 a wrong answer or a case that could not be exported, 2 usage or a malformed kit.

Source: docs/kits.md.
"""

from __future__ import annotations

import argparse
import logging
import os
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from conformance import runner
from conformance.case import LEVELS, Case
from conformance.catalogue import load, select
from conformance.kit_format import Kit, check_model, kits, read_kit
from conformance.kit_judge import judge_kit, read_profile
from conformance.observation import EnvironmentProblem
from conformance.verdict import ERROR, FAIL, PASS, Verdict, exit_code, last_line
from conformance.whole_files import DISK, check_writable, new_folder, unwritable
from conformance.worker import CASE_SECONDS

_TAIL = 500


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = argparse.ArgumentParser(prog="python -m conformance", description=__doc__.split("\n", 1)[0])
    commands = top.add_subparsers(dest="command", required=True)
    ways = commands.add_parser("kit").add_subparsers(dest="way", required=True)
    export = ways.add_parser("export", help="write one directory a case")
    export.add_argument("folder", type=Path, help="an empty or new directory")
    _selection(export)
    play = ways.add_parser("play", help="play kits on our Vulkan kernel and the wheel's CPU runtime")
    play.add_argument("folder", type=Path, help="a kit, or a directory of kits")
    play.add_argument("outputs", type=Path, help="where the outputs go: a directory a kit")
    one = ways.add_parser("play-one", help="the same as a runner: {pte} {out}; case.json is beside the model")
    one.add_argument("pte", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("inputs", nargs="*")
    run = ways.add_parser("run", help="export, call a runner for each case, judge")
    run.add_argument("--subject-command", required=True, help="'runner {pte} {out} {inputs}'; no shell is involved")
    run.add_argument("--kits", type=Path, help="kits that were exported before (default: export now)")
    run.add_argument("--case-seconds", type=float, default=CASE_SECONDS, help="time limit of a case")
    run.add_argument("--device-profile", type=Path, help="what the runner's shaders declare: TOML or JSON")
    _selection(run)
    judge = commands.add_parser("judge", help="verdicts on outputs that were made elsewhere")
    judge.add_argument("folder", type=Path, help="a kit, or a directory of kits")
    judge.add_argument("outputs", type=Path, help="the outputs: a directory a kit, named as the kit is")
    judge.add_argument("--device-profile", type=Path, help="what the runner's shaders declare: TOML or JSON")
    return top


def _selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--case", action="append", default=[], help="a RUN case's id; may be given several times")
    command.add_argument("--level", default="gate", help=" | ".join(LEVELS) + " (default: gate)")
    command.add_argument("--lower-with", default="impl", help="impl | executorch: who turns programs into files")


def main(words: Sequence[str]) -> int:
    """Run the command line and return its exit code."""
    try:
        given = parser().parse_args(words)
    except SystemExit as stop:
        return int(stop.code or 0)
    try:
        if given.command == "judge":
            return _judge(given.folder, given.outputs, "outputs", _facts(given.device_profile))
        return {"export": _export, "play": _play, "play-one": _play_one, "run": _run}[given.way](given)
    except (ValueError, EnvironmentProblem) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        where = str(error.filename or getattr(given, "outputs", None) or getattr(given, "folder", "standard output"))
        told = unwritable(where, error) if error.errno in DISK else f"{where}: {error.strerror}"
        print(f"error: {told}", file=sys.stderr)
        return 2


def _cases(given: argparse.Namespace) -> tuple[Case, ...]:
    return select(load(), level=given.level, stages=("RUN",), ids=given.case)


def _export(given: argparse.Namespace) -> int:
    from conformance.build_kit import NotLowered, export, lowering  # noqa: PLC0415 - loads torch

    logging.disable(logging.INFO)  # the wheel's partitioner tells what it takes
    lowering(given.lower_with)
    cases = _cases(given)
    check_writable(given.folder)
    written = 0
    for case in cases:
        try:
            path = export(case, given.folder, given.lower_with, runner.versions())
            print(path, flush=True)
            written += 1
        except NotLowered as error:
            print(error, file=sys.stderr)
    print(f"{written} of {len(cases)} cases written to {given.folder}")
    return 0 if cases and written == len(cases) else 1


def _play(given: argparse.Namespace) -> int:
    from conformance.observe_kit import play  # noqa: PLC0415 - loads torch and executorch

    for folder in kits(given.folder):
        names = play(folder, given.outputs / folder.name)
        print(f"{folder.name}: {', '.join(names)}", flush=True)
    return 0


def _play_one(given: argparse.Namespace) -> int:
    from conformance.observe_kit import play  # noqa: PLC0415 - loads torch and executorch

    play(given.pte.parent, given.out)
    return 0


def _facts(profile: Path | None) -> dict[str, str] | None:
    return None if profile is None else read_profile(profile)


def _judge(folder: Path, outputs: Path, subject: str, facts: Mapping[str, str] | None) -> int:
    if not outputs.is_dir():
        raise ValueError(f"{outputs}: no such directory")
    found = [read_kit(path) for path in kits(folder)]
    return _tell([judge_kit(kit, _answers(kit, outputs, len(found)), subject, facts) for kit in found])


def _answers(kit: Kit, outputs: Path, count: int) -> Path:
    """Where a kit's outputs are: in a directory of its name, or, of a single kit, in ``outputs`` itself."""
    own = outputs / kit.folder.resolve().name
    return outputs if count == 1 and not own.is_dir() else own


def _run(given: argparse.Namespace) -> int:
    words = shlex.split(given.subject_command)
    if not words or "{pte}" not in given.subject_command or "{out}" not in given.subject_command:
        raise ValueError(
            f"--subject-command {given.subject_command!r} needs {{pte}} and {{out}} (and may have {{inputs}})"
        )
    facts = _facts(given.device_profile)
    scratch = new_folder("q4gsw-kits-")
    code = 0
    if given.kits is None:
        given.folder = scratch / "kits"
        code = _export(given)
        if not any(given.folder.iterdir()):
            return 1
    folder = given.kits or given.folder
    verdicts = []
    for path in kits(folder):
        kit = read_kit(path)
        out = scratch / "out" / path.name
        out.mkdir(parents=True)
        started = time.perf_counter()
        trouble = _call(words, kit, out, given.case_seconds)
        seconds = round(time.perf_counter() - started, 4)
        if trouble:
            verdicts.append(Verdict(kit.case, "RUN", "command", *trouble, seconds=seconds))
        else:
            verdicts.append(replace(judge_kit(kit, out, "command", facts), seconds=seconds))
    print(f"outputs: {scratch / 'out'}")
    return max(_tell(verdicts), code)


def _call(words: list[str], kit: Kit, out: Path, seconds: float) -> tuple[str, str, str] | None:
    """Call the runner; what went wrong as outcome, signature and reason, or None."""
    values = {"{pte}": str(check_model(kit).resolve()), "{out}": str(out)}
    inputs = [str((kit.folder / tensor.file).resolve()) for tensor in kit.inputs]
    command: list[str] = []
    for word in words:
        if word == "{inputs}":
            command += inputs
            continue
        for place, value in values.items():
            word = word.replace(place, value)  # noqa: PLW2901 - a word with its places filled in
        command.append(word)
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
        )
    except OSError as error:
        raise ValueError(f"--subject-command: {command[0]} cannot be run: {error.strerror}") from error
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return ERROR, "RUN/raised/Timeout", f"no answer within {seconds:g} s"
    if process.returncode:
        tail = " ".join(said.decode(errors="replace").split())[-_TAIL:]
        code = process.returncode
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        return FAIL, f"RUN/raised/{'Died' if code < 0 else 'Command'}", f"the runner ended with {how}: {tail}"
    return None


def _tell(verdicts: list[Verdict]) -> int:
    for verdict in verdicts:
        why = "" if verdict.outcome == PASS else f"  {verdict.reason}  ({verdict.signature})"
        print(f"{verdict.outcome:5} {verdict.case}{why}")
    print(last_line(verdicts))
    return exit_code(verdicts)
