"""The report of an audit of a ``.pte``, as plain data and as text.

Source: docs/contract.md section 6.
"""

import dataclasses
import json
from collections.abc import Sequence
from dataclasses import dataclass

from conformance.files import printable, shown
from conformance.harness.observation import Problem

SEVERITIES = ("fails", "wrong", "waste")


@dataclass(frozen=True)
class Part:
    """A delegate, or a method's CPU part: its operators with how often each occurs, and the bytes it refers to."""

    method: str
    name: str
    operators: dict[str, int]
    constant_bytes: int


@dataclass(frozen=True)
class TableRow:
    """A quantized table: layout, size, how often the file holds it, and who reads it.

    ``stored`` counts copies of these bytes; ``bytes`` is the table's, ``scale_bytes`` its scales'.
    """

    table: str
    layout: str
    rows: int
    columns: int
    group_size: int
    scale_dtype: str
    bytes: int
    scale_bytes: int
    stored: int
    readers: tuple[str, ...]

    @property
    def per_element(self) -> float:
        """Bytes an element, scales included."""
        return (self.bytes + self.scale_bytes) / max(1, self.rows * self.columns)


@dataclass(frozen=True)
class Audit:
    """Everything the audit of one file says."""

    size: int
    digest: str
    operators_version: str
    operators_revision: str
    parts: tuple[Part, ...]
    tables: tuple[TableRow, ...]
    problems: tuple[Problem, ...]
    notes: tuple[str, ...] = ()

    def fails(self) -> bool:
        """Whether something would fail or be wrong on a device."""
        return any(p.severity in {"fails", "wrong"} for p in self.problems)


def to_json(audit: Audit) -> str:
    """The audit as JSON."""
    return json.dumps(dataclasses.asdict(audit), indent=2)


def render(audit: Audit, name: str) -> str:
    """The audit for a person: parts, tables, problems, and a last line with the verdict."""
    lines = [f"{name}: {_bytes(audit.size)}, SHA-256 {audit.digest[:16]}"]
    lines.append("")
    lines += grid(
        ("method", "part", "constants", "operators"),
        [
            (p.method, p.name, _bytes(p.constant_bytes), ", ".join(f"{o} x{n}" for o, n in p.operators.items()))
            for p in audit.parts
        ],
    )
    lines.append("")
    if audit.tables:
        lines += grid(
            ("table", "layout", "V x D", "G", "scales", "bytes", "+ scales", "B/element", "stored", "read by"),
            [
                (
                    t.table,
                    t.layout,
                    f"{t.rows} x {t.columns}",
                    str(t.group_size),
                    t.scale_dtype,
                    _bytes(t.bytes),
                    _bytes(t.scale_bytes),
                    f"{t.per_element:.4f}",
                    "once" if t.stored == 1 else f"{t.stored} times",
                    ", ".join(t.readers),
                )
                for t in audit.tables
            ],
        )
    else:
        lines.append("no quantized table")
    lines.append("")
    for problem in audit.problems:
        lines.append(f"{problem.severity.upper():5} {problem.where}: {problem.detail} [{problem.kind}]")
        if problem.fix:
            lines.append(f"      fix: {problem.fix}")
    lines += [f"note  {note}" for note in audit.notes]
    lines.append(
        f"Vulkan operators as of executorch {audit.operators_version} ({audit.operators_revision[:10]}); "
        f"{_count(audit.problems)}"
    )
    return shown(lines)


def grid(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Left-aligned columns under a head line."""
    table = [tuple(map(printable, row)) for row in (head, *rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    return ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in table]


def counted(number: int, what: str) -> str:
    """A number of things, in English.

    >>> counted(1, "table"), counted(2, "table")
    ('1 table', '2 tables')
    """
    return f"{number} {what}{'' if number == 1 else 's'}"


def _bytes(count: int) -> str:
    if count < 10_000:  # noqa: PLR2004 - below that the number itself reads best
        return f"{count} B"
    return f"{count / 1e6:.2f} MB"


def _count(problems: Sequence[Problem]) -> str:
    if not problems:
        return "clean"
    found = {s: sum(p.severity == s for p in problems) for s in SEVERITIES}
    words = {"fails": "failure", "wrong": "wrong result", "waste": "waste"}
    return ", ".join(counted(n, words[s]) for s, n in found.items() if n)
