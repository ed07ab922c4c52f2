"""Failures by cause: those of one signature are one block, wherever they are shown.

Source: docs/reading-a-report.md.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TypeVar

from conformance.files import shown
from conformance.results.verdict import UNEXPECTED, Verdict

T = TypeVar("T")
#: Cases that the line of the others names.
_NAMED = 3
#: Lines of what a subject printed that a failure shows, and their width.
_FIRST, _LAST, _WIDTH = 3, 8, 200


def causes(verdicts: Iterable[Verdict]) -> list[list[Verdict]]:
    """Return the unexpected verdicts by signature, the most frequent first; the first of each is its example."""
    return grouped((v for v in verdicts if v.outcome in UNEXPECTED), lambda v: v.signature or (v.outcome, v.defect))


def grouped(items: Iterable[T], key: Callable[[T], object]) -> list[list[T]]:
    """Return ``items`` by ``key``, the most frequent first, else as they come.

    >>> grouped(["a1", "b1", "b2"], lambda text: text[0])
    [['b1', 'b2'], ['a1']]
    """
    groups: dict[object, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return sorted(groups.values(), key=len, reverse=True)


def others(cases: Sequence[str]) -> str:
    """Return the words for the cases of a cause but its example.

    >>> others(["a", "b", "c", "d", "e"])
    '4 more: b, c, d, ... (--all shows each)'
    """
    named = ", ".join([*cases[1 : 1 + _NAMED], *["..."][: len(cases) - 1 - _NAMED]])
    return f"{len(cases) - 1} more: {named} (--all shows each)"


def blocks(verdicts: Iterable[Verdict], detects: Mapping[str, str], *, every: bool = False) -> list[str]:
    """Return a block of text for each cause, or, with ``every``, for each unexpected verdict.

    ``detects``: by case id, the bug that a case is there for.
    """
    texts = []
    for there in causes(verdicts):
        shown = there if every else there[:1]
        texts += [describe(v, detects.get(v.case, "")) for v in shown]
        if len(shown) < len(there):
            texts[-1] += f"\n  others:    {others([v.case for v in there])}"
    return texts


def describe(verdict: Verdict, detects: str = "") -> str:
    """Return a failure as its own bug report."""
    lines = [
        f"{verdict.outcome} {verdict.case}  (stage {verdict.stage}, subject {verdict.subject})",
        f"  what:      {verdict.reason}",
        f"  contract:  docs/contract.md {verdict.contract}" + (f"; {detects}" if detects else ""),
        f"  signature: {verdict.signature or 'none'}",
    ]
    if verdict.defect:
        lines.append(f"  defect:    {verdict.defect}")
    if verdict.stage == "KERNEL" and verdict.facts.get("device"):
        lines.append(f"  device:    {verdict.facts['device']} ({verdict.facts.get('driver', 'driver unknown')})")
    if verdict.facts.get("binding"):
        lines.append(f"  binding:   as {verdict.facts['binding']} of the tree has it")
    lines.append(f"  replay:    {verdict.replay}")
    lines += [f"{'  printed:' if not at else '':13}{line}" for at, line in enumerate(_ends(verdict.printed))]
    return shown(lines)


def _ends(text: str) -> list[str]:
    """The first and the last lines of a text, cut to a width that can be read."""
    lines = [line if len(line) <= _WIDTH else f"{line[:_WIDTH]}..." for line in text.splitlines()]
    left = len(lines) - _FIRST - _LAST
    if left <= 1:
        return lines
    return [*lines[:_FIRST], f"... {left} lines, all of them with q4gsw replay --show-output ...", *lines[-_LAST:]]
