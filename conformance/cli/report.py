"""``q4gsw report | diff``: reading verdict streams."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load
from conformance.case.model import Model
from conformance.cli.options import Parser, print_json
from conformance.files import say, write_whole
from conformance.proofs import certificate
from conformance.proofs.certificate import ArithmeticClaim, Certificate
from conformance.results import diff, exchange, implementations, merge, report, timing
from conformance.results.causes import blocks, causes
from conformance.results.verdict import Stream, counts, exit_code, in_order, last_line, read


def add_report(parser: Parser) -> None:
    """Add the options of ``q4gsw report``."""
    parser.set_defaults(call=_report)
    parser.add_argument("file", type=Path, nargs="+", help="verdicts.jsonl, or the directory it is in")
    parser.shared("--all", "--json")
    parser.add_argument("--timing", action="store_true", help="cases a second by stage, and the slowest cases")
    parser.add_argument("--merge", type=Path, metavar="DIR", help="make one report, in DIR, of those of all shards")
    parser.add_argument("--html", action="store_true", help="write summary.md, report.html and junit.xml")
    parser.add_argument("--implementations", type=Path, metavar="FILE", help="write a table of the streams' subjects")
    parser.add_argument("--sarif", type=Path, metavar="FILE", help="write SARIF 2.1.0, for code scanning")
    parser.add_argument("--annotations", action="store_true", help="print annotations for a pull request on GitHub")
    parser.add_argument("--models", action="store_true", help="print a table of the models among the cases, by subject")
    parser.add_argument("--out", type=Path, help="where to write them (default: the first stream's directory)")


def add_diff(parser: Parser) -> None:
    """Add the options of ``q4gsw diff``."""
    parser.set_defaults(call=_diff)
    parser.add_argument("old", type=Path, help="verdicts.jsonl, or the directory it is in")
    parser.add_argument("new", type=Path, help="the same of the later run")
    parser.shared("--all", "--json")


def _report(options: argparse.Namespace) -> int:
    cases = load()
    streams = _streams(options, cases)
    verdicts = in_order((v for s in streams for v in s.verdicts), (case.id for case in cases))
    cut = [len(stream.verdicts) for stream in streams if stream.truncated]
    if options.json:
        by_cause = [{"example": there[0], "cases": [v.case for v in there]} for there in causes(verdicts)]
        print_json({"counts": counts(verdicts), "truncated": bool(cut), "causes": by_cause})
        return 1 if cut else exit_code(verdicts)
    for block in blocks(verdicts, {case.id: case.detects for case in cases}, every=options.all):
        say(*block.split("\n"))
    if options.html:
        first = options.file[0] if options.file[0].is_dir() else options.file[0].parent
        paths = report.write(options.out or first, streams, cases)
        say("written: " + ", ".join(map(str, paths)))
    if options.implementations:
        folders = [path if path.is_dir() else path.parent for path in options.file]
        found = [[certificate.read(p) for p in sorted(folder.glob("certificates/*.json"))] for folder in folders]
        text = implementations.page(list(zip(streams, (_proofs(proofs) for proofs in found), strict=True)))
        write_whole({options.implementations: text})
        say(f"written: {options.implementations}")
    if options.sarif:
        write_whole({options.sarif: exchange.sarif(streams)})
    if options.annotations:
        say(*exchange.annotations(streams))
    if options.models:
        say(*implementations.models(streams, [c.id for c in cases if isinstance(c.question, Model)]).split("\n"))
    if options.timing:
        say(*timing.lines(verdicts, timing.workers_of(s.header for s in streams)))
    truncated = (f"truncated: the run did not finish; {n} verdicts were written before it stopped" for n in cut)
    say(*truncated, last_line(verdicts))
    return 1 if cut else exit_code(verdicts)


def _streams(options: argparse.Namespace, cases: Sequence[Case]) -> list[Stream]:
    """What was named; with ``--merge`` the one that is made of it, as if that was named."""
    if options.merge:
        merge.write(options.merge, [(path, read(path)) for path in options.file], cases)
        options.file = [options.merge]
    return [read(path) for path in options.file]


def _proofs(certificates: list[Certificate]) -> list[str]:
    """A line for what each certificate says."""
    return [
        f"{proof.target.variant}, {proof.claim.domain}: {proof.result}"
        + (f", {proof.claim.refused} products wrong, first {proof.mismatches[0]}" if proof.mismatches else "")
        + (f"; {proof.claim.not_strict} not strict" if proof.claim.not_strict else "")
        for proof in certificates
        if isinstance(proof.claim, ArithmeticClaim)
    ]


def _diff(options: argparse.Namespace) -> int:
    old, new = read(options.old), read(options.new)
    found = diff.compare(old, new)
    if new.truncated and not found.failed:
        raise ValueError(
            f"{options.new}: the run did not finish, so nothing is known of what it did not reach; run it again"
        )
    for path, stream in ((options.old, old), (options.new, new)):
        if stream.truncated and not options.json:
            say(f"{path}: truncated, only {len(stream.verdicts)} verdicts are compared")
    if options.json:
        print_json(found)
    else:
        say(*diff.lines(found, every=options.all))
    return 1 if found.failed else 0
