"""``q4gsw kit export | play | run | judge``: cases for runtimes that are elsewhere.

Exit code 1: a wrong answer, or a case that could not be exported (of `kit run`: an ERROR in its report).
"""

import argparse
import shutil
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.cli.options import Parser, busy, print_json
from conformance.files import Unwritable, check_writable, new_folder, q4gsw, say
from conformance.harness import limited
from conformance.harness.errors import BadFile, EnvironmentProblem
from conformance.harness.observation import Facts
from conformance.judging.judge import verdict_on
from conformance.kits.command import judge_times, run_kit, words_of
from conformance.kits.judge import judge_kit, read_profile
from conformance.kits.kit import STAGES_OF_KITS, TROUBLE, Kit, kits, read_file, read_kit
from conformance.results.mismatch import RaisedMismatch
from conformance.results.verdict import ERROR, FAIL, PASS, Verdict, exit_code
from conformance.runs import run
from conformance.runs.report import Report
from conformance.sources.runtime import runtime_source


def add_kit(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw kit``."""
    what, example = "write cases, or a program of yours, as kits, a directory each", "kit export kits --level smoke"
    export = parser.way("export", what, example, _export)
    export.add_argument("words", type=Path, nargs="+", metavar="[MODEL.pt2] FOLDER", help="an empty or new directory")
    export.add_argument("--inputs", type=Path, metavar="FILE", help="of MODEL.pt2: an .npz archive, in order")
    what = "run kits on our Vulkan kernel and the wheel's CPU runtime, and judge them"
    play = parser.way("play", what, "kit play kits outputs", _play)
    what, example = "the same for one file, as a runner is called", "kit play-one model.pte out input_0.bin:int64:2x3"
    one = parser.way("play-one", what, example, _play_one)
    one.add_argument("pte", type=Path)
    one.add_argument("out", type=Path)
    one.add_argument("inputs", nargs="*", metavar="FILE:DTYPE:SIZES", help="the word 'then' begins the next call")
    for playing in (play, one):
        playing.add_argument("--runtime", default="", metavar="PATH", help="a real runtime: docs/runtime.md")
    example = "kit run --subject-command 'q4gsw kit play-one {pte} {out}'"
    call = parser.way("run", "export, call a runner for each case, judge", example, _run)
    call.add_argument("--subject-command", required=True, help="'runner {pte} {out} {inputs}'; no shell is involved")
    call.add_argument("--kits", type=Path, help="kits that were exported before (default: export now)")
    call.shared("--case-seconds")
    judge = parser.way("judge", "judge outputs of kits that ran elsewhere", "kit judge kits outputs", _judge)
    for reading in (play, judge):
        reading.add_argument("folder", type=Path, help="a kit, or a directory of kits")
        reading.add_argument("outputs", type=Path, help="the outputs: a directory a kit, named as the kit is")
        reading.shared("--json")
    for judging in (play, call, judge):
        judging.add_argument("--device-profile", type=Path, help="what the runner's shaders declare: TOML or JSON")
        judging.shared("--report", "--expectations")
        judging.add_argument("--subject-name", default="", metavar="NAME", help="what the report calls the runner")
    for repeating in (play, call):
        repeating.shared("--repeat")
    for exporting in (export, call):
        exporting.shared("--case", "--level", "--stages")
        exporting.add_argument("--lower-with", default="impl", help="impl | executorch: who turns programs into files")


def _export(options: argparse.Namespace) -> int:
    *model, folder = options.words
    if len(model) > 1 or bool(model) != bool(options.inputs):
        raise ValueError("kit export takes FOLDER, or MODEL.pt2 FOLDER --inputs FILE; see q4gsw kit export --help")
    if folder.is_dir() and any(folder.iterdir()):
        raise ValueError(f"{folder}: is not empty; export into an empty or new directory")
    if model:
        return _export_program(options, model[0], folder)
    cases = _asked(options)
    left = _write_kits(options, cases, folder)
    return 0 if cases and not left else 1


def _asked(options: argparse.Namespace) -> tuple[Case, ...]:
    """The cases that are asked for; without --case those that can be kits."""
    from conformance.kits.export import not_a_kit  # noqa: PLC0415 - loads torch

    stages = options.stages or STAGES_OF_KITS
    chosen = select(load(), level=options.level, stages=stages, ids=options.case)
    return tuple(case for case in chosen if options.case or not not_a_kit(case))


def _export_program(options: argparse.Namespace, model: Path, folder: Path) -> int:
    from conformance.kits.export import NotLowered, export_program, lowering  # noqa: PLC0415 - loads torch

    lowering(options.lower_with)
    try:
        say(str(export_program(model, options.inputs, check_writable(folder), options.lower_with, run.versions())))
    except NotLowered as error:
        say(f"{model}: {error}", file=sys.stderr)
        return 1
    return 0


def _write_kits(options: argparse.Namespace, cases: Sequence[Case], folder: Path) -> list[tuple[Case, str, str]]:
    """Export every case into ``folder``; return those that cannot be, each with its error's name and line."""
    from conformance.kits.export import NotLowered, export, folder_of, lowering  # noqa: PLC0415 - loads torch

    lowering(options.lower_with)
    check_writable(folder)
    for case in cases:
        folder_of(case, folder)
    left: list[tuple[Case, str, str]] = []
    with busy("lowering", len(cases), "kits") as bar:
        for case in cases:
            try:
                say(str(export(case, folder, options.lower_with, run.versions())))
            except Unwritable:
                raise
            except (NotLowered, ValueError) as error:
                left.append((case, type(error).__name__, str(error).partition("\n")[0]))
                say(f"{case.id}: {left[-1][2]}", file=sys.stderr)
            bar.update()
    say(f"{len(cases) - len(left)} of {len(cases)} cases written to {folder}")
    return left


def _play(options: argparse.Namespace) -> int:
    facts, verdicts = _facts(options), _Verdicts(options, "player")
    asked = [read_kit(path) for path in kits(options.folder)]
    runtime = str(runtime_source(options.runtime)) if options.runtime else ""
    again = (*_profile(options), *(("--runtime", runtime) if runtime else ()), "--repeat", str(options.repeat))
    for kit in asked:
        read_file(kit.folder, kit.description.model)
        shutil.rmtree(_outputs(options, kit), ignore_errors=True)  # no answer of an earlier time may be judged
    while asked:
        first, *others = (kit.folder / "case.json" for kit in asked)
        words = str(check_writable(options.outputs)), runtime, str(options.repeat), *map(str, others)
        died = ""
        try:
            limited.run("conformance.kits.play:play", first, *words, seconds=limited.SECONDS * len(asked))
        except BadFile as error:
            died = str(error)
        played = [kit for kit in asked if _outputs(options, kit).is_dir()]
        if not played:  # the player itself does not start
            raise ValueError(died)
        for kit in played:
            out = _outputs(options, kit)
            trouble = out / TROUBLE
            ended = died if kit is played[-1] and not any(out.iterdir()) else ""
            why = trouble.read_text(encoding="utf-8") if trouble.is_file() else ended
            name = "Died" if ended else why.partition(":")[0]
            outcome = ERROR if name == EnvironmentProblem.__name__ else FAIL
            verdict = verdict_on(kit.case, "", outcome, RaisedMismatch(name, why, name)) if why else None
            verdict = verdict or judge_times(kit, out, "player", facts, options.repeat)
            verdicts.add(verdict, "kit", "play", kit.folder, options.outputs, *again)
        asked = asked[len(played) :]
    return verdicts.finish()


def _outputs(options: argparse.Namespace, kit: Kit) -> Path:
    folder: Path = options.outputs / kit.folder.resolve().name
    return folder


def _play_one(options: argparse.Namespace) -> int:
    words = str(options.out), options.runtime, *options.inputs
    limited.run("conformance.kits.play:play_one", options.pte, *words)
    return 0


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
    cases = () if options.kits else _asked(options)
    verdicts = _Verdicts(options, "command")
    scratch = new_folder("q4gsw-kits-")
    again = "kit", "run", "--subject-command", options.subject_command, *_profile(options)
    left = [] if options.kits else _write_kits(options, cases, scratch / "kits")
    for case, kind, line in left:
        reason = f"not exported: {line}"
        signature = f"{case.stage}/raised/{kind}"
        verdict = Verdict(case.id, case.stage, "", ERROR, signature, reason, contract=case.contract)
        verdicts.add(verdict, *again, "--case", case.id, "--lower-with", options.lower_with)
    folders = kits(options.kits or scratch / "kits") if options.kits or len(left) < len(cases) else ()
    with busy("running", len(folders), "kits") as bar:
        for path in folders:
            out = scratch / "out" / path.name
            verdict = run_kit(read_kit(path), words, out, options.case_seconds, facts, options.repeat)
            verdicts.add(verdict, *again, "--kits", path)
            bar.update()
    say(f"outputs: {scratch / 'out'}")
    return verdicts.finish()


def _facts(options: argparse.Namespace) -> Facts | None:
    return read_profile(options.device_profile) if options.device_profile else None


def _profile(options: argparse.Namespace) -> tuple[str | Path, ...]:
    return ("--device-profile", options.device_profile) if options.device_profile else ()


class _Verdicts:
    """Verdicts as they come: printed, next to what is expected, and written to the report."""

    def __init__(self, options: argparse.Namespace, subject: str) -> None:
        self.subject, self.json = options.subject_name or subject, getattr(options, "json", False)
        header = run.header(self.subject, "", getattr(options, "level", "kits"), getattr(options, "case", ()))
        self.report = Report(options.report, header, run.expected_of(self.subject, options.expectations))

    def add(self, verdict: Verdict, *words: str | Path) -> None:
        """Take a verdict, which ``q4gsw WORDS`` makes again."""
        verdict = self.report.expected.apply(replace(verdict, subject=self.subject, replay=q4gsw(*words)))
        self.report.add(verdict)
        why = "" if verdict.outcome == PASS else f"  {verdict.reason}  ({verdict.signature})"
        if not self.json:
            say(f"{verdict.outcome:5} {verdict.case}{why}")

    def finish(self) -> int:
        last = self.report.finish()
        print_json(self.report.verdicts) if self.json else say(*last)
        return exit_code(self.report.verdicts)
