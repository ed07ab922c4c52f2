"""Bisection over sizes: where along one axis a case turns from right to wrong.

Sizes move along the axis's legal steps, and everything that the first lookup's table, scales or indices determine
goes along. What lies between the two ends is sampled as well, so that an axis on which right and wrong alternate is
reported as no boundary at all.

Source: docs/bisecting.md; docs/contract.md 5.3 and 7.5.
"""

import math
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.bisect import commands
from conformance.bisect.search import SearchEnded, ask, check_harness
from conformance.case.case import Case, Dispatch, EndToEnd, Program, Table, check
from conformance.case.operands import table_step
from conformance.files import say
from conformance.harness.worker import Worker
from conformance.results.verdict import PASS, Verdict
from reference.program.spec import Apply, Dequantize, Linear, PackedLookup, ProgramSpec, TensorSpec

AXES = ("vocab_size", "embed_dim", "group_size", "indices")
#: Columns an invocation or a word covers (contract 5.3).
_COLUMNS, _SCALE_COLUMNS = 32, 4
_SAMPLES = 4


def size_of(case: Case, axis: str) -> int:
    """Return the case's own size along ``axis``; ValueError where it has no such axis."""
    question = case.question
    if isinstance(question, Program | EndToEnd):
        return program_sizes(question.spec)[axis]
    if isinstance(question, Dispatch) and axis == "indices":
        return math.prod(question.indices_shape)
    if isinstance(question, Dispatch) or (isinstance(question, Table) and axis in {"vocab_size", "embed_dim"}):
        return int(getattr(question, axis))
    raise ValueError(f"case {case.id} has no axis {axis}")


def legal(case: Case, axis: str, high: int) -> list[int]:
    """Return the legal sizes up to ``high`` along ``axis``; the other axes stay as they are."""
    if axis == "embed_dim":
        step = math.lcm(_COLUMNS, 1 if isinstance(case.question, Table) else size_of(case, "group_size"))
        return list(range(step, high + 1, step))
    if axis == "group_size":
        columns = size_of(case, "embed_dim")
        return [s for s in range(_SCALE_COLUMNS, high + 1, _SCALE_COLUMNS) if columns % s == 0]
    return list(range(1, high + 1))


def resized(case: Case, axis: str, size: int) -> Case:
    """Return the case with another size along ``axis``; ValueError where it cannot have it."""
    change: dict[str, Any] = {"indices_shape": (size,)} if axis == "indices" else {axis: size}
    if case.program is not None:
        change = {"spec": _resized(case.program, axis, size)}
    name = f"{case.id}/{axis.replace('_', '-')}-{size}"
    return check(replace(case, id=name, question=replace(case.question, **change)))


def program_sizes(program: ProgramSpec) -> dict[str, int]:
    """Return the first lookup's size along each of ``AXES``; ValueError without a lookup or scales of [V, D/G]."""
    if not program.lookups():
        raise ValueError("the program has no lookup, and so no such axis")
    lookup = program.lookups()[0]
    step = table_step(program, lookup)
    weight, scale = program.tensor(step.weight).shape, program.tensor(step.scale).shape
    if len(weight) != 2 or len(scale) != 2 or not scale[1]:  # noqa: PLR2004 - rows and columns
        raise ValueError(f"scales of shape {list(scale)} have no groups to resize")
    columns = weight[1] * (2 if step is lookup else 1)
    indices = math.prod(program.tensor(lookup.indices).shape)
    return dict(zip(AXES, (weight[0], columns, columns // scale[1], indices), strict=True))


def _resized(program: ProgramSpec, axis: str, size: int) -> ProgramSpec:
    """The program with ``axis`` at ``size``, for every table of the same sizes as the first lookup's."""
    if any(isinstance(step, Apply) or getattr(step, "bias", "") for step in program.steps):
        raise ValueError("something reads the program's rows or indices, or adds a bias; bisect a case without")
    new = program_sizes(program) | {axis: size}
    if axis == "indices":
        name = program.lookups()[0].indices
        return replace(program, tensors=tuple(_shaped(t, (size,)) if t.name == name else t for t in program.tensors))
    rows, columns, group = new["vocab_size"], new["embed_dim"], new["group_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    steps: list[Any] = []
    for step in program.steps:
        if isinstance(step, Dequantize | PackedLookup):
            shapes[step.weight] = (rows, columns if isinstance(step, Dequantize) else columns // 2)
            shapes |= {name: (rows, columns // group) for name in (step.scale, step.zero_point) if name}
        elif isinstance(step, Linear):
            shapes[step.x] = (*program.tensor(step.x).shape[:-1], columns)
        steps.append(replace(step, block_size=(step.block_size[0], group)) if isinstance(step, Dequantize) else step)
    looked_up = {lookup.indices for lookup in program.lookups()}
    tensors = tuple(_shaped(t, shapes.get(t.name, t.shape)) for t in program.tensors)
    tensors = tuple(_within(t, rows) if t.name in looked_up else t for t in tensors)
    tables = tuple(
        replace(t, vocab_size=rows, embed_dim=columns, group_size=t.group_size and group) for t in program.tables
    )
    return replace(program, steps=tuple(steps), tensors=tensors, tables=tables)


def _shaped(tensor: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    if shape != tensor.shape and tensor.values.pattern == "literal":
        raise ValueError(f"tensor {tensor.name} is literal bytes; give a case that draws it, to change its size")
    return replace(tensor, shape=shape)


def _within(tensor: TensorSpec, rows: int) -> TensorSpec:
    """Keep drawn indices inside a smaller table."""
    values = tensor.values
    return replace(tensor, values=replace(values, low=min(values.low, rows - 1), high=min(values.high, rows - 1)))


def boundary(path: list[int], wrong: Callable[[int], bool]) -> tuple[int, int]:
    """Return the two neighbours on ``path`` (good end first) between which right turns to wrong.

    Raises:
        SearchEnded: an end is not what it is said to be, or right and wrong alternate; gives the sizes.
    """
    answers: dict[int, bool] = {}

    def is_wrong(at: int) -> bool:
        if at not in answers:
            answers[at] = wrong(path[at])
        return answers[at]

    low, high = 0, len(path) - 1
    if not is_wrong(high):
        raise SearchEnded(f"{path[-1]} (the bad end) is right; give a size where the case fails: --bad N")
    if is_wrong(low):
        raise SearchEnded(f"{path[0]} (the good end) is wrong; give a size where it passes: --good N")
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if is_wrong(middle) else (middle, high)
    for share in range(1, _SAMPLES):
        is_wrong(low * share // _SAMPLES)
        is_wrong(high + (len(path) - 1 - high) * share // _SAMPLES)
    if any(answer != (at >= high) for at, answer in answers.items()):
        right, bad = (sorted(path[at] for at, answer in answers.items() if answer is one) for one in (False, True))
        raise SearchEnded(f"is not monotone: right at {right}, wrong at {bad}; choose ends closer together")
    return path[low], path[high]


def show(
    case: Case,
    subject: str,
    axis: str,
    ends: tuple[int, int],
    sought: str = "",
    seconds: float = 60.0,
    repeat: int = 1,
) -> int:
    """Print the boundary between right and wrong along ``axis``; an end of 0 is the default one."""
    bad = ends[1] or size_of(case, axis)
    sizes = legal(case, axis, max(ends[0], bad))
    good = ends[0] or (sizes[0] if sizes else 0)
    for name, size in (("--good", good), ("--bad", bad)):
        if size not in sizes:
            near = ", ".join(str(s) for s in sorted(sizes, key=lambda s: abs(s - size))[:3])
            raise ValueError(f"{name} {size} is no legal {axis} of {case.id}; near it are {near}")
    path = [s for s in sizes if min(good, bad) <= s <= max(good, bad)]
    verdicts: dict[int, Verdict] = {}

    def wrong(size: int) -> bool:
        nonlocal sought
        verdict = verdicts[size] = ask(worker, resized(case, axis, size), repeat)
        check_harness(verdict)
        say(f"  {axis} {size}: {verdict.outcome} {verdict.signature}".rstrip())
        if verdict.outcome == PASS:
            return False
        sought = sought or verdict.signature
        if verdict.signature != sought or not sought:
            answer = f"{verdict.outcome} {verdict.signature} {verdict.reason}"
            raise SearchEnded(f"{size}: {answer}; sought is {sought or 'a failure'}: give other ends")
        return True

    with Worker(subject, seconds) as worker:
        try:
            good, bad = boundary(path if good <= bad else path[::-1], wrong)
        except SearchEnded as ended:
            raise SearchEnded(f"{axis} {ended}") from ended
    folder = Path(tempfile.mkdtemp(prefix="q4gsw-sizes-"))
    say(f"first bad: {axis} {bad} ({verdicts[bad].signature}); {good} is right, and there is no legal size between")
    say(f"  what:      {verdicts[bad].reason}")
    for what, size in (("good by hand: ", good), ("bad by hand:  ", bad)):
        say(f"  {what}{commands.replay_of(folder, resized(case, axis, size), verdicts[size])}")
    return 0
