"""Bisection over sizes: where along one axis a case turns from right to wrong.

Sizes move along the axis's legal steps. What lies between the two ends is sampled as well, so that an axis on
which right and wrong alternate is said to be no boundary at all.

Source: docs/bisecting.md; docs/contract.md 5.3 and 7.5.
"""

import math
import shlex
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.bisect import resize
from conformance.bisect.ask import ask, check_harness
from conformance.bisect.commits import SearchEnded
from conformance.case.case import Case, Dispatch, Table, check
from conformance.harness.worker import Worker
from conformance.results import replay
from conformance.results.verdict import PASS, Verdict
from conformance.runs import run

AXES = ("vocab_size", "embed_dim", "group_size", "indices")
#: Columns an invocation or a word covers (contract 5.3).
_COLUMNS, _SCALE_COLUMNS = 32, 4
_SAMPLES = 4


def size_of(case: Case, axis: str) -> int:
    """Return the case's own size along ``axis``.

    Raises:
        ValueError: the case has no such axis.
    """
    if case.program is not None:
        return resize.sizes(case.program)[axis]
    question = case.question
    if isinstance(question, Dispatch):
        return math.prod(question.indices_shape) if axis == "indices" else int(getattr(question, axis))
    if isinstance(question, Table) and axis in {"vocab_size", "embed_dim"}:
        return int(getattr(question, axis))
    raise ValueError(f"case {case.id} has no axis {axis}")


def legal(case: Case, axis: str, low: int, high: int) -> list[int]:
    """Return the legal sizes from ``low`` to ``high`` along ``axis``; what is beside them stays as it is."""
    steps = range(max(low, 1), high + 1)
    if axis == "embed_dim":
        group = 1 if isinstance(case.question, Table) else size_of(case, "group_size")
        step = math.lcm(_COLUMNS, group)
        return [s for s in steps if s % step == 0]
    if axis == "group_size":
        columns = size_of(case, "embed_dim")
        return [s for s in steps if s % _SCALE_COLUMNS == 0 and columns % s == 0]
    return list(steps)


def resized(case: Case, axis: str, size: int) -> Case:
    """Return the case with another size along ``axis``.

    Raises:
        ValueError: the case cannot have it; says why.
    """
    name = f"{case.id}/{axis.replace('_', '-')}-{size}"
    change: dict[str, Any] = {"indices_shape": (size,)} if axis == "indices" else {axis: size}
    if case.program is not None:
        change = {"spec": resize.resized(case.program, axis, size)}
    return check(replace(case, id=name, question=replace(case.question, **change)))


def show(
    case: Case,
    subject: str,
    axis: str,
    ends: tuple[int, int],
    sought: str = "",
    seconds: float = 60.0,
    repeat: int = 1,
) -> int:
    """Print the boundary between right and wrong along ``axis``.

    Raises:
        SearchEnded: an end is not what it is said to be, right and wrong alternate, or a verdict is not unanimous.
        ValueError: the case has no such axis, or an end is no legal size.
    """
    bad = ends[1] or size_of(case, axis)
    everything = legal(case, axis, 1, max(ends[0], bad))
    good = ends[0] or (everything[0] if everything else 0)
    for name, size in (("--good", good), ("--bad", bad)):
        if size not in everything:
            near = ", ".join(str(s) for s in sorted(everything, key=lambda s: abs(s - size))[:3])
            raise ValueError(f"{name} {size} is no legal {axis} of {case.id}; near it are {near}")
    path = [s for s in everything if min(good, bad) <= s <= max(good, bad)]
    if good > bad:
        path.reverse()
    with Worker(subject, seconds) as worker:
        search = _Search(worker, case, axis, sought, repeat)
        last_good, first_bad = search.boundary(path)
    _tell(search, last_good, first_bad)
    return 0


class _Search:
    """Verdicts by size, each asked once."""

    def __init__(self, worker: Worker, case: Case, axis: str, sought: str, repeat: int) -> None:
        self.worker, self.case, self.axis, self.sought, self.repeat = worker, case, axis, sought, repeat
        self.verdicts: dict[int, Verdict] = {}

    def wrong(self, size: int) -> bool:
        """Whether the case fails at ``size`` as sought."""
        if size not in self.verdicts:
            one = resized(self.case, self.axis, size)
            verdict = ask(self.worker, one, self.repeat)
            check_harness(verdict)
            self.verdicts[size] = verdict
            print(f"  {self.axis} {size}: {verdict.outcome} {verdict.signature}".rstrip(), flush=True)
        verdict = self.verdicts[size]
        if verdict.outcome == PASS:
            return False
        self.sought = self.sought or verdict.signature
        if verdict.signature != self.sought or not self.sought:
            raise SearchEnded(
                f"{self.axis} {size}: {verdict.outcome} {verdict.signature} {verdict.reason}; sought is "
                f"{self.sought or 'a failure'}: give other ends"
            )
        return True

    def boundary(self, path: list[int]) -> tuple[int, int]:
        """The two neighbours on ``path`` (good end first) between which right turns to wrong."""
        if not self.wrong(path[-1]):
            raise SearchEnded(
                f"{self.axis} {path[-1]} (the bad end) is right; give a size where the case fails: --bad N"
            )
        if self.wrong(path[0]):
            raise SearchEnded(f"{self.axis} {path[0]} (the good end) is wrong; give a size where it passes: --good N")
        low, high = 0, len(path) - 1
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if self.wrong(path[middle]) else (middle, high)
        for share in range(1, _SAMPLES):
            self.wrong(path[low * share // _SAMPLES])
            self.wrong(path[high + (len(path) - 1 - high) * share // _SAMPLES])
        found = {path.index(s): self.wrong(s) for s in list(self.verdicts)}
        turned = [i for i, is_wrong in found.items() if is_wrong != (i >= high)]
        if turned:
            right = sorted(path[i] for i, is_wrong in found.items() if not is_wrong)
            wrong = sorted(path[i] for i, is_wrong in found.items() if is_wrong)
            raise SearchEnded(
                f"{self.axis} is not monotone: right at {right}, wrong at {wrong}; choose ends closer together"
            )
        return path[low], path[high]


def _tell(search: _Search, good: int, bad: int) -> None:
    folder = Path(tempfile.mkdtemp(prefix="q4gsw-shape-"))
    commands = {}
    for size in (good, bad):
        one = resized(search.case, search.axis, size)
        path = replay.write(folder, one, search.verdicts[size], run.versions())
        commands[size] = f"python -m conformance replay {path} --subject {shlex.quote(search.worker.subject)}"
    verdict = search.verdicts[bad]
    print(f"first bad: {search.axis} {bad} ({verdict.signature}); {good} is right, and there is no legal size between")
    print(f"  what:      {verdict.reason}")
    print(f"  good by hand: {commands[good]}")
    print(f"  bad by hand:  {commands[bad]}")
