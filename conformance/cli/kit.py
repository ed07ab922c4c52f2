"""``q4gsw kit export | play | run | judge``: cases for runtimes that are elsewhere.

Exit codes: 0 as it should be, 1 a wrong answer or a case that could not be exported (of `kit run`: an ERROR in its
report), 2 usage or a malformed kit.

Source: docs/kits.md.
"""

import argparse
import logging
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.cli import report
from conformance.cli.options import Parser, way
from conformance.files import Unwritable, check_writable, new_folder, q4gsw
from conformance.harness.observation import Facts
from conformance.kits.command import run_kit, words_of
from conformance.kits.judge import judge_kit, read_profile
from conformance.kits.kit import Kit, kits, read_kit
from conformance.results.verdict import ERROR, PASS, Verdict, Writer, exit_code
from conformance.runs import run as runner


def add_kit(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw kit``."""
    ways = parser.ways()
    export = way(ways, "export", "write cases as kits, a directory each", "kit export kits --level smoke")
    export.set_defaults(call=_export)
    export.add_argument("folder", type=Path, help="an empty or new directory")
    play = way(ways, "play", "run kits on our Vulkan kernel and the wheel's CPU runtime", "kit play kits outputs")
    play.set_defaults(call=_play)
    example = "kit run --subject-command 'q4gsw kit play-one {pte} {out}'"
    one = way(ways, "play-one", "the same for one kit, as a runner is called", example)
    one.set_defaults(call=_play_one)
    one.add_argument("pte", type=Path, help="the model; case.json is in its directory")
    one.add_argument("out", type=Path)
    one.add_argument("inputs", nargs="*")
    run = way(ways, "run", "export, call a runner for each case, judge", example)
    run.set_defaults(call=_run)
    run.add_argument("--subject-command", required=True, help="'runner {pte} {out} {inputs}'; no shell is involved")
    run.add_argument("--kits", type=Path, help="kits that were exported before (default: export now)")
    run.shared("--case-seconds")
    judge = way(ways, "judge", "judge outputs of kits that ran elsewhere", "kit judge kits outputs")
    judge.set_defaults(call=_judge)
    for reading in (play, judge):
        reading.add_argument("folder", type=Path, help="a kit, or a directory of kits")
        reading.add_argument("outputs", type=Path, help="the outputs: a directory a kit, named as the kit is")
    for judging in (run, judge):
        judging.add_argument("--device-profile", type=Path, help="what the runner's shaders declare: TOML or JSON")
        judging.shared("--report", "--expectations")
        judging.add_argument("--subject-name", default="", metavar="NAME", help="what the report calls the runner")
    for exporting in (export, run):
        exporting.shared("--case", "--level")
        exporting.add_argument("--lower-with", default="impl", help="impl | executorch: who turns programs into files")


def _cases(given: argparse.Namespace) -> tuple[Case, ...]:
    return select(load(), level=given.level, stages=("RUN",), ids=given.case)


def _export(given: argparse.Namespace) -> int:
    cases = _cases(given)
    return 0 if cases and not _write_kits(given, cases) else 1


def _write_kits(given: argparse.Namespace, cases: Sequence[Case]) -> list[tuple[Case, str, str]]:
    """Export every case into ``given.folder``; those that could not be, each with its error's name and line.

    Raises:
        ValueError: no case can be exported as things are: no such lowering, a kit that is there, a full disk.
    """
    from conformance.kits.export import NotLowered, export, folder_of, lowering  # noqa: PLC0415 - loads torch

    logging.disable(logging.INFO)  # the wheel's partitioner tells what it takes
    lowering(given.lower_with)
    check_writable(given.folder)
    for case in cases:
        folder_of(case, given.folder)
    left: list[tuple[Case, str, str]] = []
    for case in cases:
        try:
            path = export(case, given.folder, given.lower_with, runner.versions())
            print(path, flush=True)
        except Unwritable:
            raise
        except (NotLowered, ValueError) as error:
            line = str(error).partition("\n")[0]
            left.append((case, type(error).__name__, line))
            print(f"{case.id}: {line}", file=sys.stderr)
    print(f"{len(cases) - len(left)} of {len(cases)} cases written to {given.folder}")
    return left


def _play(given: argparse.Namespace) -> int:
    from conformance.kits.play import play  # noqa: PLC0415 - loads torch and executorch

    for folder in kits(given.folder):
        names = play(folder, given.outputs / folder.name)
        print(f"{folder.name}: {', '.join(names)}", flush=True)
    return 0


def _play_one(given: argparse.Namespace) -> int:
    from conformance.kits.play import play  # noqa: PLC0415 - loads torch and executorch

    play(given.pte.parent, given.out)
    return 0


def _facts(profile: Path | None) -> Facts | None:
    return None if profile is None else read_profile(profile)


def _judge(given: argparse.Namespace) -> int:
    folder, outputs, facts = given.folder, given.outputs, _facts(given.device_profile)
    if not outputs.is_dir():
        raise ValueError(f"{outputs}: no such directory")
    found = [read_kit(path) for path in kits(folder)]
    telling = _Telling(given, "outputs")
    for kit in found:
        answers = _answers(kit, outputs, len(found))
        verdict = judge_kit(kit, answers, "outputs", facts)
        telling.add(replace(verdict, replay=_command(["kit", "judge", kit.folder, answers], given)))
    return telling.finish()


def _answers(kit: Kit, outputs: Path, count: int) -> Path:
    """Where a kit's outputs are: in a directory of its name, or, of a single kit, in ``outputs`` itself."""
    own = outputs / kit.folder.resolve().name
    return outputs if count == 1 and not own.is_dir() else own


def _run(given: argparse.Namespace) -> int:
    words = words_of(given.subject_command)
    facts = _facts(given.device_profile)
    cases = () if given.kits else _cases(given)
    telling = _Telling(given, "command")
    scratch = new_folder("q4gsw-kits-")
    again = ["kit", "run", "--subject-command", given.subject_command]
    if given.kits:
        found = kits(given.kits)
    else:
        given.folder = scratch / "kits"
        left = _write_kits(given, cases)
        for case, kind, line in left:
            which = ["--case", case.id, "--lower-with", given.lower_with]
            verdict = Verdict(
                case.id, "RUN", "command", ERROR, f"RUN/raised/{kind}", f"not exported: {line}", source=case.contract
            )
            telling.add(replace(verdict, replay=_command([*again, *which], given)))
        found = kits(given.folder) if len(left) < len(cases) else ()
    for path in found:
        verdict = run_kit(read_kit(path), words, scratch / "out" / path.name, given.case_seconds, facts)
        telling.add(replace(verdict, replay=_command([*again, "--kits", path], given)))
    print(f"outputs: {scratch / 'out'}")
    return telling.finish()


def _command(words: list[str | Path], given: argparse.Namespace) -> str:
    profile = ["--device-profile", given.device_profile] if given.device_profile else []
    return q4gsw(*words, *profile)


class _Telling:
    """Verdicts as they come: printed, beside what is expected, and written to the report."""

    def __init__(self, given: argparse.Namespace, subject: str) -> None:
        name = given.subject_name or subject
        self.subject = name
        self.expected = runner.expected_of(name, given.expectations)
        self.folder = Path(given.report) if given.report else new_folder("q4gsw-report-")
        given_cases = tuple(getattr(given, "case", ()))
        self.writer = Writer(
            self.folder / "verdicts.jsonl", runner.header(name, "", getattr(given, "level", "kits"), given_cases)
        )
        self.verdicts: list[Verdict] = []

    def add(self, given: Verdict) -> None:
        verdict = self.expected.apply(replace(given, subject=self.subject))
        self.writer.add(verdict)
        self.verdicts.append(verdict)
        why = "" if verdict.outcome == PASS else f"  {verdict.reason}  ({verdict.signature})"
        print(f"{verdict.outcome:5} {verdict.case}{why}", flush=True)

    def finish(self) -> int:
        self.writer.close()
        print("\n".join(report.finish(self.folder, self.expected)))
        return exit_code(self.verdicts)
