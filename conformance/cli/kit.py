"""``q4gsw kit export | play | run | judge``: cases for runtimes that are elsewhere.

Exit code 1: a wrong answer, or a case that could not be exported (of `kit run`: an ERROR in its report).
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.cli.options import Parser
from conformance.files import Unwritable, check_writable, new_folder, q4gsw
from conformance.harness import limited
from conformance.harness.observation import Facts
from conformance.kits.command import run_kit, words_of
from conformance.kits.judge import judge_kit, read_profile
from conformance.kits.kit import kits, read_kit
from conformance.results.verdict import ERROR, PASS, Verdict, exit_code
from conformance.runs import run
from conformance.runs.report import Report


def add_kit(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw kit``."""
    export = parser.way("export", "write cases as kits, a directory each", "kit export kits --level smoke", _export)
    export.add_argument("folder", type=Path, help="an empty or new directory")
    what = "run kits on our Vulkan kernel and the wheel's CPU runtime"
    play = parser.way("play", what, "kit play kits outputs", _play)
    what, example = "the same for one kit, as a runner is called", "kit play-one kits/run__control/model.pte out"
    one = parser.way("play-one", what, example, _play_one)
    one.add_argument("pte", type=Path, help="the model; case.json is in its directory")
    one.add_argument("out", type=Path)
    one.add_argument("inputs", nargs="*")
    example = "kit run --subject-command 'q4gsw kit play-one {pte} {out}'"
    call = parser.way("run", "export, call a runner for each case, judge", example, _run)
    call.add_argument("--subject-command", required=True, help="'runner {pte} {out} {inputs}'; no shell is involved")
    call.add_argument("--kits", type=Path, help="kits that were exported before (default: export now)")
    call.shared("--case-seconds")
    judge = parser.way("judge", "judge outputs of kits that ran elsewhere", "kit judge kits outputs", _judge)
    for reading in (play, judge):
        reading.add_argument("folder", type=Path, help="a kit, or a directory of kits")
        reading.add_argument("outputs", type=Path, help="the outputs: a directory a kit, named as the kit is")
    for judging in (call, judge):
        judging.add_argument("--device-profile", type=Path, help="what the runner's shaders declare: TOML or JSON")
        judging.shared("--report", "--expectations")
        judging.add_argument("--subject-name", default="", metavar="NAME", help="what the report calls the runner")
    for exporting in (export, call):
        exporting.shared("--case", "--level")
        exporting.add_argument("--lower-with", default="impl", help="impl | executorch: who turns programs into files")


def _export(options: argparse.Namespace) -> int:
    cases = select(load(), level=options.level, stages=("RUN",), ids=options.case)
    left = _write_kits(options, cases, options.folder)
    return 0 if cases and not left else 1


def _write_kits(options: argparse.Namespace, cases: Sequence[Case], folder: Path) -> list[tuple[Case, str, str]]:
    """Export every case into ``folder``; return those that cannot be, each with its error's name and line."""
    from conformance.kits.export import NotLowered, export, folder_of, lowering  # noqa: PLC0415 - loads torch

    logging.disable(logging.INFO)  # the wheel's partitioner tells what it takes
    lowering(options.lower_with)
    check_writable(folder)
    for case in cases:
        folder_of(case, folder)
    left: list[tuple[Case, str, str]] = []
    for case in cases:
        try:
            print(export(case, folder, options.lower_with, run.versions()), flush=True)
        except Unwritable:
            raise
        except (NotLowered, ValueError) as error:
            left.append((case, type(error).__name__, str(error).partition("\n")[0]))
            print(f"{case.id}: {left[-1][2]}", file=sys.stderr)
    print(f"{len(cases) - len(left)} of {len(cases)} cases written to {folder}")
    return left


def _play(options: argparse.Namespace) -> int:
    for folder in kits(options.folder):
        print(f"{folder.name}: {_play_kit(folder, options.outputs / folder.name)}", flush=True)
    return 0


def _play_one(options: argparse.Namespace) -> int:
    _play_kit(options.pte.parent, options.out)
    return 0


def _play_kit(folder: Path, outputs: Path) -> str:
    return limited.run("conformance.kits.play:play", folder / "case.json", str(outputs))


def _judge(options: argparse.Namespace) -> int:
    outputs, facts = options.outputs, _facts(options)
    if not outputs.is_dir():
        raise ValueError(f"{outputs}: no such directory")
    read = [read_kit(path) for path in kits(options.folder)]
    verdicts = _Verdicts(options, "outputs")
    for kit in read:
        answers = outputs / kit.folder.resolve().name
        if len(read) == 1 and not answers.is_dir():
            answers = outputs
        verdicts.add(judge_kit(kit, answers, "outputs", facts), "kit", "judge", kit.folder, answers, *_profile(options))
    return verdicts.finish()


def _run(options: argparse.Namespace) -> int:
    words, facts = words_of(options.subject_command), _facts(options)
    cases = () if options.kits else select(load(), level=options.level, stages=("RUN",), ids=options.case)
    verdicts = _Verdicts(options, "command")
    scratch = new_folder("q4gsw-kits-")
    again = "kit", "run", "--subject-command", options.subject_command, *_profile(options)
    left = [] if options.kits else _write_kits(options, cases, scratch / "kits")
    for case, kind, line in left:
        reason = f"not exported: {line}"
        verdict = Verdict(case.id, "RUN", "", ERROR, f"RUN/raised/{kind}", reason, contract=case.contract)
        verdicts.add(verdict, *again, "--case", case.id, "--lower-with", options.lower_with)
    for path in kits(options.kits or scratch / "kits") if options.kits or len(left) < len(cases) else ():
        verdict = run_kit(read_kit(path), words, scratch / "out" / path.name, options.case_seconds, facts)
        verdicts.add(verdict, *again, "--kits", path)
    print(f"outputs: {scratch / 'out'}")
    return verdicts.finish()


def _facts(options: argparse.Namespace) -> Facts | None:
    return read_profile(options.device_profile) if options.device_profile else None


def _profile(options: argparse.Namespace) -> tuple[str | Path, ...]:
    return ("--device-profile", options.device_profile) if options.device_profile else ()


class _Verdicts:
    """Verdicts as they come: printed, next to what is expected, and written to the report."""

    def __init__(self, options: argparse.Namespace, subject: str) -> None:
        self.subject = options.subject_name or subject
        header = run.header(self.subject, "", getattr(options, "level", "kits"), getattr(options, "case", ()))
        self.report = Report(options.report, header, run.expected_of(self.subject, options.expectations))

    def add(self, verdict: Verdict, *words: str | Path) -> None:
        """Take a verdict, which ``q4gsw WORDS`` makes again."""
        verdict = self.report.expected.apply(replace(verdict, subject=self.subject, replay=q4gsw(*words)))
        self.report.add(verdict)
        why = "" if verdict.outcome == PASS else f"  {verdict.reason}  ({verdict.signature})"
        print(f"{verdict.outcome:5} {verdict.case}{why}", flush=True)

    def finish(self) -> int:
        print("\n".join(self.report.finish()))
        return exit_code(self.report.verdicts)
