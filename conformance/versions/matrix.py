"""What several versions' verdicts on the same cases say side by side, and which of it is news.

A version is a column. Rows are outcomes, contract sections, and what fails: by defect where the failure is one that
is known of the pinned version, else by signature.

Source: docs/versions.md.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from conformance.results import diff
from conformance.results.expectations import Expectations
from conformance.results.verdict import (
    ERROR,
    FAIL,
    PASS,
    UNEXPECTED,
    UNSUPPORTED,
    XFAIL,
    XPASS,
    Outcome,
    Stream,
    Verdict,
    counts,
)

_FAILED = (FAIL, ERROR, XFAIL)
_PASSED = (PASS, XPASS)


@dataclass(frozen=True)
class Judged:
    """A version and the verdicts on it."""

    version: str
    stream: Stream


def news(verdicts: Iterable[Verdict], pinned: Expectations) -> list[Verdict]:
    """Return what is unexpected, and no failure that ``pinned`` knows: of a newer version, what it broke."""
    known = {case: signature for case, (_, signature) in pinned.by_case.items()}
    return [v for v in verdicts if v.outcome in UNEXPECTED and (v.outcome == XPASS or known.get(v.case) != v.signature)]


def tables(judged: Sequence[Judged], pinned: Expectations) -> list[str]:
    """Return the matrix as Markdown: outcomes, contract sections, failures; ``pinned`` names the known ones."""
    versions = [j.version for j in judged]
    by_outcome = [counts(j.stream.verdicts) for j in judged]
    lines = _table("outcome", versions, [[o, *(str(c[o]) for c in by_outcome)] for o in Outcome])
    by_section = [_sections(j.stream.verdicts) for j in judged]
    sections = sorted(
        {s for by_version in by_section for s in by_version}, key=lambda s: [int(n) for n in s.split(".")]
    )
    rows = [
        [s, *("/".join(map(str, by_version[s])) if s in by_version else "-" for by_version in by_section)]
        for s in sections
    ]
    lines += ["", *_table("contract section: passed/failed/unsupported", versions, rows)]
    by_failure = [Counter(_failure(v, pinned) for v in j.stream.verdicts if v.outcome in _FAILED) for j in judged]
    defects = {known.defect for known, _ in pinned.by_case.values()}
    total = sum(by_failure, Counter[str]())
    failures = sorted(total, key=lambda name: (name not in defects, -total[name], name))
    rows = [[name, *(str(failed[name]) for failed in by_failure)] for name in failures]
    return [*lines, "", *_table("failing cases by known defect, else by signature", versions, rows)] if rows else lines


def changes(judged: Sequence[Judged], *, whole: bool) -> list[str]:
    """Return what changed between neighbours, whatever was expected: kinds of change, or with ``whole`` each case."""
    lines = []
    for old, new in itertools.pairwise(judged):
        difference = diff.compare(as_judged(old.stream), as_judged(new.stream))
        *each, total = diff.lines(difference)
        lines.append(f"{old.version} -> {new.version}: {total}")
        if whole:
            lines += [f"  {line}" for line in each]
            continue
        kinds: dict[str, list[str]] = {}
        for then, now in (*difference.new_failures, *difference.fixed, *difference.other):
            kinds.setdefault(f"{diff.named(then)} -> {diff.named(now)}", []).append(now.case)
        for kind, cases in sorted(kinds.items(), key=lambda item: -len(item[1])):
            lines.append(f"  {len(cases):4} {kind}: {cases[0]}{', ...' if cases[1:] else ''}")
    return lines


def as_judged(stream: Stream) -> Stream:
    """Return the stream as if nothing had been expected: expectations that hold for one version are no change."""
    before = {XFAIL: FAIL, XPASS: PASS}
    verdicts = tuple(replace(v, outcome=before.get(v.outcome, v.outcome)) for v in stream.verdicts)
    return replace(stream, verdicts=verdicts)


def _sections(verdicts: Iterable[Verdict]) -> dict[str, list[int]]:
    sections: dict[str, list[int]] = {}
    for verdict in verdicts:
        place = next(i for i, outcomes in enumerate((_PASSED, _FAILED, (UNSUPPORTED,))) if verdict.outcome in outcomes)
        sections.setdefault(verdict.contract, [0, 0, 0])[place] += 1
    return sections


def _failure(verdict: Verdict, pinned: Expectations) -> str:
    if verdict.outcome == XFAIL:
        return verdict.defect
    known, signature = pinned.by_case.get(verdict.case, (None, ""))
    return known.defect if known and signature == verdict.signature else verdict.signature or verdict.outcome


def _table(corner: str, versions: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    cells = [[" ".join(c.replace("|", "/").split()) for c in row] for row in ((corner, *versions), *rows)]
    wide = [max(len(row[i]) for row in cells) for i in range(len(cells[0]))]
    lines = [
        f"| {row[0]:{wide[0]}} " + "".join(f"| {c:>{w}} " for c, w in zip(row[1:], wide[1:], strict=True)) + "|"
        for row in cells
    ]
    rule = f"| {'-' * wide[0]} " + "".join(f"| {'-' * (w - 1)}: " for w in wide[1:]) + "|"
    return [lines[0], rule, *lines[1:]]
