"""``python -m conformance``: list, run, replay, devices; the other commands have modules of their own.

Exit codes of ``run`` and ``replay``: 0 as expected, 1 unexpected (FAIL, ERROR, XPASS), 2 usage.
"""

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from conformance.case.case import LEVELS, STAGES, Case
from conformance.case.catalogue import by_contract, load, select
from conformance.case.toml import case_to_toml
from conformance.cli import models
from conformance.cli import report as cli_report
from conformance.cli import versions as cli_versions
from conformance.files import DISK, new_folder, unwritable
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.subject import check_name
from conformance.harness.worker import CASE_SECONDS, Worker
from conformance.results import replay
from conformance.results.verdict import UNEXPECTED, UNSUPPORTED, XFAIL, Verdict, Writer, exit_code, last_line
from conformance.runs import run as runner

#: What a shell says of a command that Ctrl-C ended.
INTERRUPTED = 130


class UsageError(ValueError):
    """Something the user gave is wrong; one line, exit code 2."""


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]  # raises instead of exiting
        raise UsageError(message)


def parser() -> argparse.ArgumentParser:
    """Return the command line's parser."""
    top = _Parser(prog="python -m conformance", description=__doc__.split("\n", 1)[0] if __doc__ else "")
    commands = top.add_subparsers(dest="command", required=True, parser_class=_Parser)

    listing = commands.add_parser("list", help="the cases: id, stage, contract section, what bug each would show")
    _selection(listing)
    listing.add_argument("--toml", action="store_true", help="print the resolved cases whole")
    listing.add_argument(
        "--by-contract", action="store_true", help="sections with the number of their cases and stages"
    )

    run = commands.add_parser("run", help="run cases in this process, one after the other")
    _selection(run)
    _subject(run, "impl")
    run.add_argument("--report", default="", help="directory for verdicts.jsonl and replay files (default: a new one)")
    run.add_argument("--quiet", action="store_true", help="print failures and the last lines only")
    run.add_argument("--max-failures", type=int, default=0, metavar="N", help="stop after N unexpected verdicts")
    run.add_argument("--last-failed", default="", metavar="DIR", help="only what was unexpected in the report in DIR")
    run.add_argument("--expectations", default="", metavar="FILE", help="known failures, instead of the subject's own")
    run.add_argument("--no-expectations", action="store_true", help="known failures fail like any other")

    again = commands.add_parser("replay", help="run the one case of a replay file")
    again.add_argument("file", type=Path)
    _subject(again, "")

    commands.add_parser("devices", help="Vulkan devices, what each can do and which variants it runs")

    cli_report.add_commands(commands)
    models.add_commands(commands)
    cli_versions.add_commands(commands)
    commands.add_parser("kit", add_help=False, help="cases as files for other runtimes: kit export | play | run")
    commands.add_parser("judge", add_help=False, help="verdicts on the outputs of kits that were played elsewhere")
    commands.add_parser("bisect", add_help=False, help="what broke a red case: bisect stage | commit | shape")
    commands.add_parser("prove", add_help=False, help="prove the numbers and the addressing; prove --check FILE")
    return top


def _selection(command: argparse.ArgumentParser) -> None:
    command.add_argument("--level", default="gate", help=" | ".join(LEVELS) + " (default: gate)")
    command.add_argument("--stages", default="", help="comma-separated, of " + ", ".join(STAGES))
    command.add_argument("--case", action="append", default=[], help="a case id; may be given several times")


def _subject(command: argparse.ArgumentParser, default: str) -> None:
    command.add_argument("--subject", default=default, help="impl | executorch | path.py:Class")
    command.add_argument("--device", default="", help="Vulkan device by name or index")
    command.add_argument(
        "--validate", action="store_true", help="with Vulkan's validation layer; any message fails the case"
    )
    command.add_argument("--case-seconds", type=float, default=CASE_SECONDS, help="time limit of a case")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    try:
        return _command(words)
    except KeyboardInterrupt:
        print("error: interrupted; a report that was being written holds what was judged until then", file=sys.stderr)
        return INTERRUPTED


def _command(words: list[str]) -> int:
    if words[:1] == ["prove"]:
        from conformance.cli import prove  # noqa: PLC0415 - it has a command line of its own

        return prove.main(words[1:])
    if words[:1] == ["bisect"]:
        from conformance.cli import bisect  # noqa: PLC0415 - the same

        return bisect.main(words[1:])
    if words[:1] in (["kit"], ["judge"]):
        from conformance.cli import kit  # noqa: PLC0415 - the same

        return kit.main(words)
    try:
        given = parser().parse_args(words)
        own = {"list": _list, "run": _run, "replay": _replay, "devices": _devices}
        commands = {**own, **cli_report.COMMANDS, **models.COMMANDS, **cli_versions.COMMANDS}
        code = commands[given.command](given)
        sys.stdout.flush()
    except (ValueError, EnvironmentProblem) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # the reader of a pipe has enough
        return 0
    except OSError as error:
        if error.errno not in DISK:
            raise
        print(f"error: {unwritable(error.filename or 'standard output', error)}", file=sys.stderr)
        if not error.filename:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or what is left fails once more at exit
        return 2
    else:
        return code


def _selected(given: argparse.Namespace) -> tuple[Case, ...]:
    stages = tuple(s.strip() for s in given.stages.split(",") if s.strip())
    return select(load(), level=given.level, stages=stages, ids=given.case)


def _list(given: argparse.Namespace) -> int:
    cases = _selected(given)
    if given.toml:
        print("\n".join(f"# {case.id}\n{case_to_toml(case)}" for case in cases))
        return 0
    if given.by_contract:
        print("\n".join(by_contract(cases)))
    else:
        width = max((len(c.id) for c in cases), default=0)
        for case in cases:
            print(f"{case.id:{width}}  {case.stage:8} {case.contract:4} {case.level:6} {case.detects}")
    print(f"{len(cases)} cases")
    return 0


def _run(given: argparse.Namespace) -> int:
    check_name(given.subject)
    cases = _selected(given)
    if given.last_failed:
        cases = cli_report.only_failed(cases, Path(given.last_failed))
    expected = runner.expected_of(given.subject, given.expectations, off=given.no_expectations)
    _device(given)
    report = Path(given.report or new_folder("q4gsw-report-"))
    selection = (given.stages, *given.case, given.last_failed)
    writer = Writer(report / "verdicts.jsonl", runner.header(given.subject, given.device, given.level, selection))
    verdicts: list[Verdict] = []
    versions = runner.versions()
    with Worker(given.subject, given.case_seconds) as worker:
        for case in cases:
            verdict = runner.run_case(worker, case, report, versions, expected)
            writer.add(verdict)
            verdicts.append(verdict)
            if verdict.outcome in UNEXPECTED:
                print(runner.describe(case, verdict), flush=True)
            elif not given.quiet:
                why = {UNSUPPORTED: f"  ({verdict.reason})", XFAIL: f"  ({verdict.defect})"}.get(verdict.outcome, "")
                print(f"{verdict.outcome:11} {case.id}{why}", flush=True)
            if given.max_failures and sum(v.outcome in UNEXPECTED for v in verdicts) >= given.max_failures:
                print(f"stopped after {given.max_failures} failures; {len(cases) - len(verdicts)} cases were not run")
                break
    writer.close()
    print("\n".join(cli_report.finish(report, expected)))
    return exit_code(verdicts)


def _replay(given: argparse.Namespace) -> int:
    recorded = replay.read(given.file)
    subject = given.subject or recorded.subject
    check_name(subject)
    _device(given)
    with Worker(subject, given.case_seconds) as worker:
        verdict = runner.run_case(worker, recorded.case, None, runner.versions())
    if verdict.outcome in UNEXPECTED:
        print(runner.describe(recorded.case, verdict))
    else:
        print(f"{verdict.outcome} {recorded.case.id}")
    if recorded.signature:
        same = "the same failure" if verdict.signature == recorded.signature else "not the recorded failure"
        print(f"recorded signature: {recorded.signature} ({same})")
    print(last_line([verdict]))
    return exit_code([verdict])


def _device(given: argparse.Namespace) -> None:
    """Hand device and validation on to the child, by environment."""
    if given.device:
        from conformance.pte.device import check_device  # noqa: PLC0415 - needs the Vulkan loader

        check_device(given.device)
        os.environ["Q4GSW_DEVICE"] = given.device
    if given.validate:
        os.environ["Q4GSW_VALIDATE"] = "1"


def _devices(_given: argparse.Namespace) -> int:
    from conformance.pte.device import device_lines  # noqa: PLC0415 - needs the Vulkan loader; other commands do not

    print("\n".join(device_lines()))
    return 0
