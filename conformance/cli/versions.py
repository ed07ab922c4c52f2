"""``q4gsw versions``: a subject beside every release of executorch or torchao, and one matrix.

Exit codes: 0 as expected; 1 a version from the pinned one on has an unexpected outcome, a run broke, or no version
could be judged; 2 usage.

Source: docs/versions.md.
"""

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

from conformance.case.catalogue import load, select
from conformance.cli.options import Parser
from conformance.files import make_folder, new_folder, write_whole
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


def _versions(given: argparse.Namespace) -> int:
    select(load(), level=given.level, stages=given.stages, ids=given.case)
    stages = ",".join(given.stages)
    check_name(given.subject)
    subject = resolved(given.subject)
    if subject.rpartition(":")[0].endswith(".py"):  # the environments' runs start in the suite's folder
        subject = str(Path(subject).resolve())
    pinned = run.versions()[given.package]
    expected = run.expected_of(subject, given.expectations)
    asked = chosen(given.package, given.wheels, versions=given.versions, since=given.since)
    report = _empty(Path(given.report) if given.report else new_folder("q4gsw-versions-")).resolve()
    words = ["--subject", subject, "--level", given.level, "--stages", stages]
    words += [word for case in given.case for word in ("--case", case)]
    hand = list(words)
    words += ["--expectations", str(Path(given.expectations).resolve())] if given.expectations else []
    judged, left_out, broke = _judged(given, asked, words, report)
    gated, good = gate(given.package, pinned, judged, expected)
    nothing = [] if judged else ["nothing was judged: none of these versions can be had"]
    matrix, ends = tables(judged, expected) if judged else [], [*left_out, *gated, *nothing]
    heading = f"### `{given.subject}` beside {given.package}, level {given.level}, stages {stages or 'all'}"
    each = ["```text", *changes(judged, whole=True), *ends, "```", ""]
    write_whole({report / "matrix.md": "\n".join([heading, "", *matrix, "", *each])})
    kinds = ["", "changes between neighbours, whatever was expected", *changes(judged, whole=bool(given.case)), ""]
    hands = by_hand(given.package, judged, hand) if given.case else []
    kinds += [*hands, *([""] if hands else [])]
    where = f"report: {report}: matrix.md, and a report for each version that was judged"
    print("\n".join(["", *matrix, *(kinds if judged[1:] else [""] * bool(judged)), *ends, where]))
    return 0 if judged and good and not broke else 1


def _judged(
    given: argparse.Namespace, asked: Sequence[str], words: Sequence[str], report: Path
) -> tuple[list[Judged], list[str], bool]:
    """Judge version by version, with a line each: what was judged, a line for each that was not, and if a run broke."""
    judged: list[Judged] = []
    left_out: list[str] = []
    broke = False
    for version in asked:
        name = f"{given.package} {version}"
        print(f"{name}: ", end="", flush=True)
        started = time.monotonic()
        try:
            judged.append(judge_version(given.package, version, given.wheels, words, report / name.replace(" ", "-")))
            said = last_line(judged[-1].stream.verdicts)
        except (Unsatisfiable, RunBroke) as error:
            broke |= isinstance(error, RunBroke)
            left_out.append(f"not judged: {name}: {' '.join(str(error).split())}")
            said = "not judged"
        print(f"{said}  ({time.monotonic() - started:.0f} s)", flush=True)
    return judged, left_out, broke


def _empty(folder: Path) -> Path:
    """Return ``folder``, made if need be.

    Raises:
        ValueError: it cannot be made, or something is there already.
    """
    there = next(make_folder(folder).iterdir(), None)
    if there is not None:
        raise ValueError(f"{folder}: {there.name} is there already; give --report an empty directory")
    return folder
