"""Where the time of a run went: by stage, and the slowest cases.

Source: docs/reading-a-report.md, "Time".
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from conformance.case.case import STAGES
from conformance.results.verdict import UNSUPPORTED, Verdict

#: Facts of a verdict: how long building its program took, and its child's first case of the stage.
BUILDING, FIRST = "build_seconds", "first_seconds"
_MOST = 1e12
_NONE = "not measured"


@dataclass(frozen=True)
class StageTime:
    """What a stage cost from asking to verdict, over all workers.

    ``cases``: with each generated program counted, not its shard. ``first``: seconds of each child's first case of the
    stage, which imports what the stage needs; ``children``: how many of those there are. ``building``: seconds in which
    the other cases' programs were built and exported, which is the suite's work and torch's; at EXPORT it is what is
    judged, and counts as the subject's.
    """

    stage: str
    cases: int
    seconds: float
    first: float
    building: float
    children: int

    @property
    def rate(self) -> float:
        """Cases a second of one worker, building and each child's first left out; 0 where there are no others."""
        warm = self.seconds - self.first - (0.0 if self.stage == "EXPORT" else self.building)
        return (self.cases - self.children) / warm if warm > 0 and self.cases > self.children else 0.0

    @property
    def all_in(self) -> float:
        """Cases a second of one worker with everything counted."""
        return self.cases / self.seconds if self.seconds > 0 else 0.0


def by_stage(verdicts: Sequence[Verdict]) -> tuple[StageTime, ...]:
    """Return the time of each stage that was asked, in hand-over order; what is unsupported is left out."""
    times = []
    for stage in STAGES:
        there = [v for v in verdicts if v.stage == stage and v.outcome != UNSUPPORTED]
        if there:
            first = [_number(v, FIRST) for v in there if FIRST in v.facts]
            cases = sum(int(_number(v, "programs")) if "programs" in v.facts else 1 for v in there)
            later = (v for v in there if FIRST not in v.facts or "programs" in v.facts)
            building = sum(_number(v, BUILDING) for v in later if BUILDING in v.facts)
            times.append(StageTime(stage, cases, sum(v.seconds for v in there), sum(first), building, len(first)))
    return tuple(times)


def workers_of(headers: Iterable[Mapping[str, object]]) -> int:
    """Return how many workers the runs of these headers had at the most, as far as they say."""
    counts = [header.get("workers") for header in headers]
    return max([n for n in counts if isinstance(n, int) and 0 < n < _MOST], default=1)


def rows(verdicts: Sequence[Verdict], workers: int = 1) -> list[list[str]]:
    """Return a row for each stage: name, cases, seconds of all, of first and of building; rates of all ``workers``."""
    times = by_stage(verdicts)
    seconds = ([f"{s:.2f}" if s else _NONE for s in (t.seconds, t.first, t.building)] for t in times)
    rates = ([f"{r * workers:.1f}" if r else _NONE for r in (t.rate, t.all_in)] for t in times)
    return [[t.stage, str(t.cases), *s, *r] for t, s, r in zip(times, seconds, rates, strict=True)]


def lines(verdicts: Sequence[Verdict], workers: int = 1, slowest: int = 10) -> list[str]:
    """Return the table that ``report --timing`` prints; rates are those of all ``workers`` side by side."""
    table = [f"stage      cases      seconds    importing     building      cases/s       all in   ({workers} workers)"]
    table += [
        "".join((f"{stage:9}{count:>7}", *(f"{cell:>13}" for cell in cells)))
        for stage, count, *cells in rows(verdicts, workers)
    ]
    table.append("slowest cases:")
    slow = sorted((v for v in verdicts if v.seconds), key=lambda v: -v.seconds)[:slowest]
    return table + ([f"  {v.seconds:8.3f} s  {v.case}" for v in slow] or [f"  {_NONE}"])


def _number(verdict: Verdict, name: str) -> float:
    """A fact that is a number; 0 where it is not: a stream may come from anywhere."""
    try:
        number = float(verdict.facts[name])
    except (TypeError, ValueError):
        return 0.0
    return number if 0 <= number < _MOST else 0.0
