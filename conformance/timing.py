"""Where the time of a run went: by stage, and the slowest cases.

Source: docs/reading-a-report.md, "Time".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from conformance.case import STAGES
from conformance.verdict import UNSUPPORTED, Verdict


@dataclass(frozen=True)
class StageTime:
    """``seconds``: in the subject's process and on the way to it, over all workers; ``first``: the slowest case's."""

    stage: str
    cases: int
    seconds: float
    first: float

    @property
    def rate(self) -> float:
        """Cases a second of one worker, the slowest one, which imports, left out; 0 where there is only that one."""
        return (self.cases - 1) / warm if (warm := self.seconds - self.first) > 0 else 0.0


def by_stage(verdicts: Sequence[Verdict]) -> tuple[StageTime, ...]:
    """Return the time of each stage that was asked, in hand-over order; what is unsupported is left out."""
    found = []
    for stage in STAGES:
        there = [v.seconds for v in verdicts if v.stage == stage and v.outcome != UNSUPPORTED]
        if there:
            found.append(StageTime(stage, len(there), sum(there), max(there)))
    return tuple(found)


def lines(verdicts: Sequence[Verdict], slowest: int = 10) -> list[str]:
    """Return the table that ``report --timing`` prints."""
    table = ["stage      cases   seconds   slowest   cases/s a worker, without the slowest"]
    table += [f"{t.stage:9} {t.cases:6} {t.seconds:9.2f} {t.first:9.2f} {t.rate:9.1f}" for t in by_stage(verdicts)]
    table.append("slowest cases:")
    slow = sorted(verdicts, key=lambda v: -v.seconds)[:slowest]
    return table + [f"  {v.seconds:8.3f} s  {v.case}" for v in slow]
