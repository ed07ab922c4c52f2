"""``q4gsw run | replay | list | devices``: judging an implementation.

Source: docs/reading-a-report.md.
"""

import argparse
import os
from pathlib import Path

from conformance.case.catalogue import by_contract, load, select
from conformance.case.toml import case_to_toml
from conformance.cli.config import config
from conformance.cli.options import Parser, print_json
from conformance.files import kept_folder, say
from conformance.harness.subject import check_name, from_file
from conformance.harness.worker import Worker
from conformance.results import replay
from conformance.results.causes import describe
from conformance.results.verdict import PASS, UNEXPECTED, exit_code, last_line
from conformance.runs.run import run_case


def add_run(parser: Parser) -> None:
    """Add the options of ``q4gsw run``."""
    parser.set_defaults(call=_run, after=())
    parser.shared("--subject", "--level", "--stages", "--case", "--device", "--validate", "--case-seconds", "--report")
    parser.shared("--expectations", "--all", "--repeat", "--shard")
    add = parser.add_argument
    add("--no-expectations", action="store_true", help="known failures fail like any other")
    add(
        "-k", dest="keyword", default="", metavar="EXPRESSION", help="only ids that match, such as 'kernel and not f16'"
    )
    add("--case-list", default="", metavar="FILE", help="like --case: an id or a pattern a line")
    add("--last-failed", default="", metavar="DIR", help="only what was unexpected in the report in DIR")
    add("--seed", type=int, default=0, help="seed of the generated programs")
    add("--examples", default="", metavar="DIR", help="keep generated programs that fail in DIR, and try them first")
    add("--max-failures", type=int, default=0, metavar="N", help="stop after N unexpected verdicts")
    add("--workers", type=int, metavar="N", help="processes that judge; 0: none beside this one (default: by cases)")
    add("--quiet", action="store_true", help="print failures and the last lines only")


def add_replay(parser: Parser) -> None:
    """Add the options of ``q4gsw replay``."""
    parser.set_defaults(call=_replay)
    parser.add_argument("file", type=Path)
    parser.shared("--subject", default="", help="default: the file's own, if built in")
    parser.shared("--device", "--validate", "--case-seconds", "--json", "--repeat")
    parser.add_argument("--show-output", action="store_true", help="show all that the subject prints, as it comes")


def add_list(parser: Parser) -> None:
    """Add the options of ``q4gsw list``."""
    parser.set_defaults(call=_list)
    parser.shared("--level", "--stages", "--case")
    parser.shared("--json")
    parser.add_argument("--toml", action="store_true", help="print the cases whole")
    parser.add_argument("--by-contract", action="store_true", help="sections, the number of their cases, and stages")


def add_devices(parser: Parser) -> None:
    """Add the options of ``q4gsw devices``."""
    parser.set_defaults(call=_devices)
    parser.shared("--json")


def _list(options: argparse.Namespace) -> int:
    cases = select(load(), level=options.level, stages=options.stages, ids=options.case)
    if options.json:
        print_json([{n: getattr(case, n) for n in ("id", "stage", "contract", "level", "detects")} for case in cases])
        return 0
    if options.toml:
        say(*(line for case in cases for line in (f"# {case.id}", *case_to_toml(case).split("\n"))))
        return 0
    if options.by_contract:
        say(*by_contract(cases))
    else:
        width = max((len(c.id) for c in cases), default=0)
        say(*(f"{c.id:{width}}  {c.stage:8} {c.contract:4} {c.level:6} {c.detects}" for c in cases))
    say(f"{len(cases)} cases")
    return 0


def _run(options: argparse.Namespace) -> int:
    from conformance.runs import plugin  # noqa: PLC0415 - loads pytest

    check_name(options.subject)
    _device(options)
    if not options.report and (home := config(Path.cwd()).get("report")):
        options.report = str(kept_folder(Path(home)))
    return plugin.judge(options, options.after)


def _replay(options: argparse.Namespace) -> int:
    recorded = replay.read(options.file)
    subject = from_file(recorded.subject, options.subject, options.file)
    _device(options)
    with Worker(subject, options.case_seconds, show=_show if options.show_output else None) as worker:
        verdict = run_case(worker, recorded.case, None, repeat=options.repeat)
    if options.json:
        print_json(verdict)
        return exit_code([verdict])
    if verdict.outcome in UNEXPECTED:
        say(*describe(verdict, recorded.case.detects).split("\n"))
    else:
        say(f"{verdict.outcome} {recorded.case.id}")
    if recorded.signature:
        same = "the same failure" if verdict.signature == recorded.signature else "another failure than the recorded"
        same = "it is fixed" if verdict.outcome == PASS else same
        say(f"recorded signature: {recorded.signature} ({same})")
    say(last_line([verdict]))
    return exit_code([verdict])


def _show(data: bytes) -> None:
    """Print what a subject printed, without what a terminal would act upon."""
    say(*data.decode(errors="backslashreplace").split("\n"), end="")


def _device(options: argparse.Namespace) -> None:
    """Hand device and validation on to the child, by environment."""
    if options.device:
        from conformance.pte.device import check_device  # noqa: PLC0415 - needs the Vulkan loader

        check_device(options.device)
        os.environ["Q4GSW_DEVICE"] = options.device
    if options.validate:
        os.environ["Q4GSW_VALIDATE"] = "1"


def _devices(options: argparse.Namespace) -> int:
    from conformance.pte.device import device_lines, device_rows  # noqa: PLC0415 - need the Vulkan loader

    if options.json:
        print_json([{"device": name, **row} for name, row in device_rows()])
    else:
        say(*device_lines())
    return 0
