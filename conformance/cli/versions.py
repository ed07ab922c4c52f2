"""``q4gsw versions``: a subject with every release of executorch or torchao, and one matrix.

Exit code 1: a version from the pinned one on has an unexpected outcome, a run broke, or no version could be judged.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from conformance.case.catalogue import load, select
from conformance.cli.options import Parser
from conformance.files import cache_directory, kept_folder, make_folder, say, write_whole
from conformance.harness.subject import check_name, resolved
from conformance.results.verdict import last_line
from conformance.runs import run
from conformance.sources.releases import PACKAGES, Unsatisfiable
from conformance.versions.judge import RunBroke, by_hand, chosen, gate, judge_version
from conformance.versions.matrix import Judged, changes, tables


def add_versions(parser: Parser) -> None:
    """Add the options of ``q4gsw versions``."""
    parser.set_defaults(call=_versions)
    parser.add_argument("--package", default="executorch", choices=PACKAGES, help="whose versions")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--versions", default="", metavar="A,B", help="these versions (default: all there are)")
    which.add_argument("--since", default="", metavar="A", help="this version and those after it")
    parser.add_argument("--wheels", type=Path, metavar="DIR", help="a directory of wheels, to work offline")
    parser.shared("--subject", default="executorch")
    parser.shared("--level", "--stages", "--case", "--expectations", "--report")


def _versions(options: argparse.Namespace) -> int:
    select(load(), level=options.level, stages=options.stages, ids=options.case)
    check_name(options.subject)
    subject, stages = resolved(options.subject), ",".join(options.stages)
    pinned, expected = run.versions()[options.package], run.expected_of(subject, options.expectations)
    versions = chosen(options.package, options.wheels, versions=options.versions, since=options.since)
    report = (
        make_folder(Path(options.report)).resolve()
        if options.report
        else kept_folder(cache_directory() / "version-reports")
    )
    if older := next(report.iterdir(), None):
        raise ValueError(f"{report}: {older.name} is there already; give --report an empty directory")
    words = ["--subject", subject, "--level", options.level, "--stages", stages, "-k", "not generated"]
    words += [word for case in options.case for word in ("--case", case)]
    known = ["--expectations", str(Path(options.expectations).resolve())] if options.expectations else []
    judged, left_out, broke = _judged(options, versions, [*words, *known], report)
    gated, good = gate(options.package, pinned, judged, expected)
    nothing = [] if judged else ["nothing was judged: none of these versions can be had"]
    matrix, ends = tables(judged, expected) if judged else [], [*left_out, *gated, *nothing]
    heading = f"### `{options.subject}` beside {options.package}, level {options.level}, stages {stages or 'all'}"
    each = ["```text", *changes(judged, whole=True), *ends, "```", ""]
    write_whole({report / "matrix.md": "\n".join([heading, "", *matrix, "", *each])})
    kinds = ["", "changes between neighbours, whatever was expected", *changes(judged, whole=bool(options.case)), ""]
    hands = by_hand(options.package, judged, words) if options.case else []
    kinds += [*hands, *([""] if hands else [])]
    where = f"report: {report}: matrix.md, and a report for each version that was judged"
    say("", *matrix, *(kinds if judged[1:] else [""] * bool(judged)), *ends, where)
    return 0 if judged and good and not broke else 1


def _judged(
    options: argparse.Namespace, versions: Sequence[str], words: Sequence[str], report: Path
) -> tuple[list[Judged], list[str], bool]:
    """Judge version by version, with a line each: what was judged, a line for each that was not, and if a run broke."""
    judged: list[Judged] = []
    left_out: list[str] = []
    broke = False
    began = time.monotonic()
    for number, version in enumerate(versions):
        name = f"{options.package} {version}"
        say(f"{number + 1} of {len(versions)}, {name}: ", end="")
        started = time.monotonic()
        try:
            folder = report / name.replace(" ", "-")
            judged.append(judge_version(options.package, version, options.wheels, words, folder))
            line = last_line(judged[-1].stream.verdicts)
        except (Unsatisfiable, RunBroke) as error:
            broke |= isinstance(error, RunBroke)
            left_out.append(f"not judged: {name}: {' '.join(str(error).split())}")
            line = "not judged"
        now, to_come = time.monotonic(), len(versions) - number - 1
        left = f", about {(now - began) / (number + 1) * to_come:.0f} s left" if to_come else ""
        say(f"{line}  ({now - started:.0f} s{left})")
    return judged, left_out, broke
