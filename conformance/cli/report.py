"""``q4gsw report | diff``: reading verdict streams; and the last lines of every run."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load
from conformance.cli.options import Parser
from conformance.results import diff, expectations, report, timing
from conformance.results.expectations import Expectations
from conformance.results.verdict import UNEXPECTED, UNSUPPORTED, Stream, counts, exit_code, last_line, read
from conformance.runs import shards


def add_report(parser: Parser) -> None:
    """Add the options of ``q4gsw report``."""
    parser.set_defaults(call=_report)
    parser.add_argument("file", type=Path, nargs="+", help="verdicts.jsonl, or the directory it is in")
    parser.add_argument("--timing", action="store_true", help="cases a second by stage, and the slowest cases")
    parser.add_argument("--html", action="store_true", help="write summary.md and report.html, of all the streams")
    parser.add_argument("--out", type=Path, help="where to write them (default: the first stream's directory)")


def add_diff(parser: Parser) -> None:
    """Add the options of ``q4gsw diff``."""
    parser.set_defaults(call=_diff)
    parser.add_argument("old", type=Path, help="verdicts.jsonl, or the directory it is in")
    parser.add_argument("new", type=Path, help="the same of the later run")


def stream_of(path: Path) -> Stream:
    """Return the stream in ``path``, a file or the directory it is in.

    Raises:
        ValueError: not a verdict stream.
    """
    return read(path / "verdicts.jsonl" if path.is_dir() else path)


def only_failed(cases: Sequence[Case], path: Path) -> tuple[Case, ...]:
    """Return the cases whose verdict in the report in ``path`` was unexpected.

    Raises:
        ValueError: not a verdict stream, or nothing was unexpected there among ``cases``.
    """
    failed = {v.case for v in stream_of(path).verdicts if v.outcome in UNEXPECTED}
    found = tuple(c for c in cases if c.id in failed)
    if not found:
        raise ValueError(f"{path}: no selected case was unexpected there; leave --last-failed out")
    return found


def finish(folder: Path, expected: Expectations) -> list[str]:
    """Write summary.md and report.html beside the verdicts in ``folder``, and return the run's last lines.

    Raises:
        ValueError: a file cannot be read or written.
    """
    stream = stream_of(folder)
    verdicts = stream.verdicts
    report.write(folder, [stream], load())
    lines = expectations.grouped(verdicts, expected) + shards.summed(verdicts)
    lines += [f"report: {folder}/verdicts.jsonl, summary.md, report.html", report.strict_line(verdicts)]
    if counts(verdicts)[UNSUPPORTED] == len(verdicts):
        lines.append("nothing was judged: every case is unsupported, or none matched")
    return [*lines, last_line(verdicts)]


def _report(given: argparse.Namespace) -> int:
    streams = [stream_of(path) for path in given.file]
    verdicts = [v for stream in streams for v in stream.verdicts]
    for verdict in verdicts:
        if verdict.outcome in UNEXPECTED:
            print(f"{verdict.outcome} {verdict.case}: {verdict.reason}")
    if given.html:
        first = given.file[0] if given.file[0].is_dir() else given.file[0].parent
        paths = report.write(given.out or first, streams, load())
        print("written: " + ", ".join(map(str, paths)))
    if given.timing:
        print("\n".join(timing.lines(verdicts, timing.workers_of(s.header for s in streams))))
    for stream in streams:
        if stream.truncated:
            print(f"truncated: the run did not finish; {len(stream.verdicts)} verdicts were written before it stopped")
    print(last_line(verdicts))
    return 1 if any(s.truncated for s in streams) else exit_code(verdicts)


def _diff(given: argparse.Namespace) -> int:
    old, new = stream_of(given.old), stream_of(given.new)
    for path, stream in ((given.old, old), (given.new, new)):
        if stream.truncated:
            print(f"{path}: truncated, only {len(stream.verdicts)} verdicts are compared")
    found = diff.compare(old, new)
    print("\n".join(diff.lines(found)))
    if new.truncated and not found.failed:
        raise ValueError(
            f"{given.new}: the run did not finish, so nothing is known of what it did not reach; run it again"
        )
    return 1 if found.failed else 0
