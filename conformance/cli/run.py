"""``q4gsw run | replay | list | devices``: judging an implementation.

Source: docs/reading-a-report.md.
"""

import argparse
import os
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import by_contract, load, select
from conformance.case.toml import case_to_toml
from conformance.cli import report as cli_report
from conformance.cli.options import Parser
from conformance.files import new_folder
from conformance.harness.subject import check_name
from conformance.harness.worker import Worker
from conformance.results import replay
from conformance.results.verdict import UNEXPECTED, UNSUPPORTED, XFAIL, Verdict, Writer, exit_code, last_line
from conformance.runs import run as runner


def add_run(parser: Parser) -> None:
    """Add the options of ``q4gsw run``."""
    parser.set_defaults(call=_run)
    parser.shared("--subject", "--level", "--stages", "--case", "--device", "--validate", "--case-seconds", "--report")
    parser.shared("--expectations")
    parser.add_argument("--no-expectations", action="store_true", help="known failures fail like any other")
    parser.add_argument("--last-failed", default="", metavar="DIR", help="only what was unexpected in DIR's report")
    parser.add_argument("--max-failures", type=int, default=0, metavar="N", help="stop after N unexpected verdicts")
    parser.add_argument("--quiet", action="store_true", help="print failures and the last lines only")


def add_replay(parser: Parser) -> None:
    """Add the options of ``q4gsw replay``."""
    parser.set_defaults(call=_replay)
    parser.add_argument("file", type=Path)
    parser.shared("--subject", default="", help="another subject than the file's own")
    parser.shared("--device", "--validate", "--case-seconds")


def add_list(parser: Parser) -> None:
    """Add the options of ``q4gsw list``."""
    parser.set_defaults(call=_list)
    parser.shared("--level", "--stages", "--case")
    parser.add_argument("--toml", action="store_true", help="print the cases whole")
    parser.add_argument("--by-contract", action="store_true", help="sections, the number of their cases, and stages")


def add_devices(parser: Parser) -> None:
    """Add the options of ``q4gsw devices``."""
    parser.set_defaults(call=_devices)


def _selected(given: argparse.Namespace) -> tuple[Case, ...]:
    return select(load(), level=given.level, stages=given.stages, ids=given.case)


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
    selection = (*given.stages, *given.case, given.last_failed)
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
