"""Proving indexing: which code, which scale and which index does every output element really read?

Every position of the table gets a number, written into the codes four bits a run (scales are 1), into the
scales eleven bits a run (codes are 9, so that q is 1; eleven bits are exact in float16). The outputs spell the
number of the position that each element read. One more run complements the lowest four bits: what reads a
constant, such as a padding row, cannot follow. Which index was read shows by writing the index's own position
into the indices, digit by digit, where row v's scales all hold v.
"""

import math
import re
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from tqdm import tqdm

from conformance.proofs.certificate import PROVEN, REFUSED, REFUTED, IndexingClaim
from conformance.proofs.target import Array, ExceedsLimit, Target, TargetFacts

_CODE_BITS, _SCALE_BITS = 4, 11
#: Rows that one index run tells apart: numbers that float16 holds exactly.
_ROWS = 1 << _SCALE_BITS


@dataclass(frozen=True)
class Shape:
    """Sizes of one case: V, D, G and the indices' shape."""

    vocab_size: int
    embed_dim: int
    group_size: int
    indices: tuple[int, ...]

    @property
    def name(self) -> str:
        """Such as v9-d64-g32-i2x3; "i" alone is rank 0."""
        return f"v{self.vocab_size}-d{self.embed_dim}-g{self.group_size}-i{'x'.join(map(str, self.indices))}"

    @property
    def groups(self) -> int:
        """Groups of a row."""
        return self.embed_dim // self.group_size

    @property
    def elements(self) -> int:
        """Output elements."""
        return math.prod(self.indices) * self.embed_dim


SHAPES = (
    Shape(1, 32, 4, ()),
    Shape(1, 32, 32, (3,)),
    Shape(7, 32, 8, (5,)),
    Shape(8, 64, 4, (2, 3)),
    Shape(9, 64, 32, (2, 2, 3)),
    Shape(15, 96, 12, (7,)),
    Shape(16, 96, 24, (1, 4, 5)),
    Shape(17, 128, 64, ()),
    Shape(23, 160, 20, (3, 9)),
    Shape(24, 256, 16, (24,)),
    Shape(25, 224, 28, (5, 1, 2)),
    Shape(33, 512, 128, (2, 3, 5)),
    Shape(64, 1024, 32, (9,)),
    Shape(65, 2048, 4, (5, 3)),
    Shape(40, 4096, 256, (2, 1, 3)),
    Shape(17, 8192, 32, (6,)),
    Shape(9, 8192, 8192, (2, 2)),
    # Beyond one texture: more output rows than a 3D image is high, more columns than any image is wide,
    # and more rows than a 2D image holds blocks.
    Shape(100, 32, 8, (16400,)),
    Shape(9, 131104, 32, (2,)),
    Shape(262152, 32, 32, (3, 7)),
)


def prove(target: Target, shapes: tuple[Shape, ...] = SHAPES) -> tuple[IndexingClaim, tuple[str, ...]]:
    """The certificate's claim and mismatches. Sizes beyond a limit of the device must be refused by its name."""
    cases: dict[str, str] = {}
    mismatches: list[str] = []
    for shape in tqdm(shapes, unit=" cases", disable=None, desc=target.facts.variant):
        try:
            wrong = wrong_reads(target, shape)
        except ExceedsLimit as error:
            cases[shape.name] = f"{REFUSED}{error}"
            continue
        cases[shape.name] = REFUTED if wrong else PROVEN
        mismatches += [f"{shape.name}: {line}" for line in wrong]
    return IndexingClaim(cases), tuple(mismatches)


#: How a kernel refuses what an image does not hold; and the least that Vulkan lets such a limit be.
_BEYOND = re.compile(rf"{REFUSED}.*beyond (\w+) = (\d+) of (.+?)(?: in [xyz])?; use a buffer variant")
_LEAST = {"maxImageDimension2D": 4096, "maxImageDimension3D": 256}


def undue_refusal(shape: Shape, facts: TargetFacts, outcome: str) -> str:
    """Why a shape may not be refused so, "" where it may: its sizes exceed the limit of the device that is named."""
    found = _BEYOND.fullmatch(outcome)
    if found is None or found[1] not in _LEAST:
        return "it names no limit of a device that images have"
    limit, most = found[1], int(found[2])
    if found[3] != facts.device:
        return f"it names a limit of {found[3]!r}, not of the certificate's device"
    texels = shape.embed_dim // 4
    if limit == "maxImageDimension2D":
        texels = max(texels, -(-shape.vocab_size // 8))
    kind = limit[-2:].lower()
    needed = texels if f"texture{kind}" in facts.variant else 0
    if most < _LEAST[limit] or needed <= most:
        return f"{needed} texels are not beyond {limit} = {most}, and Vulkan lets that be no less than {_LEAST[limit]}"
    return ""


def case_names() -> dict[str, int]:
    """Every case's name, and how many output elements it has."""
    return {shape.name: shape.elements for shape in SHAPES}


class _Garbled(Exception):  # noqa: N818 - what the outputs are
    """Outputs that spell no position, or that were damaged; one line."""


def wrong_reads(target: Target, shape: Shape) -> list[str]:
    """The first element that reads the wrong code, scale or index, each in one line; empty where none does."""
    indices = place_indices(shape)
    rows = indices.astype(np.int64).reshape(-1)[:, None]
    columns, groups = np.arange(shape.embed_dim), np.arange(shape.embed_dim) // shape.group_size
    own = np.repeat(np.arange(rows.size)[:, None], columns.size, axis=1)
    reads = (
        ("code", _codes_read, rows * shape.embed_dim + columns, (shape.vocab_size, shape.embed_dim)),
        ("scale", _scales_read, rows * shape.groups + groups, (shape.vocab_size, shape.groups)),
        ("index", _indices_read, own, shape.indices),
    )
    lines: list[str] = []
    for what, read, right, table in reads:
        try:
            lines += _compare(shape, read(target, shape, indices), right, what, table)
        except _Garbled as error:
            lines.append(str(error))
    return lines


def place_indices(shape: Shape) -> Array:
    """Indices that name every row once before any twice, the last row first; int64 where the rank is even."""
    order = np.random.Generator(np.random.PCG64(shape.vocab_size)).permutation(shape.vocab_size - 1)
    rows = np.concatenate([[shape.vocab_size - 1], order])
    dtype = np.int32 if len(shape.indices) % 2 else np.int64
    return np.resize(rows, math.prod(shape.indices)).astype(dtype).reshape(shape.indices)


def _codes_read(target: Target, shape: Shape, indices: Array) -> Array:
    """The number of the code that every element read."""
    ones = np.ones((shape.vocab_size, shape.groups), target.numerics.scale_dtype)

    def run(codes: Array) -> Array:
        values = (codes - 8).astype(np.int8).reshape(shape.vocab_size, shape.embed_dim)
        return _lookup(target, shape, values, ones, indices, (-8, 7)) + 8

    return _spelled(np.arange(shape.vocab_size * shape.embed_dim), _CODE_BITS, run)


def _scales_read(target: Target, shape: Shape, indices: Array) -> Array:
    """The number of the scale that every element read."""
    number = np.arange(shape.vocab_size * shape.groups)
    return _spelled(number, _SCALE_BITS, lambda part: _scales(target, shape, part, indices))


def _spelled(number: Array, bits: int, run: Callable[[Array], Array]) -> Array:
    """What ``run`` reads of every position's number, ``bits`` at a time; -1 where the complement contradicts it."""
    mask = (1 << bits) - 1
    read = run(number & mask)
    for shift in range(bits, (number.size - 1).bit_length(), bits):
        read |= run(number >> shift & mask) << shift
    read[run(mask - (number & mask)) != mask - (read & mask)] = -1
    return read


def _scales(target: Target, shape: Shape, numbers: Array, indices: Array) -> Array:
    ones = np.ones((shape.vocab_size, shape.embed_dim), np.int8)
    scales = numbers.astype(target.numerics.scale_dtype).reshape(shape.vocab_size, shape.groups)
    return _lookup(target, shape, ones, scales, indices, (0, _ROWS - 1))


def _indices_read(target: Target, shape: Shape, indices: Array) -> Array:
    """The position of the index that every element read; where one row leaves nothing to tell apart, its own."""
    base, number = min(shape.vocab_size, _ROWS), np.arange(indices.size)
    if base == 1:
        return np.repeat(number[:, None], shape.embed_dim, axis=1)
    row_numbers = np.repeat(np.arange(shape.vocab_size) % base, shape.groups)
    read, weight = np.zeros((number.size, shape.embed_dim), np.int64), 1
    while weight < number.size or weight == 1:
        digits = (number // weight % base).astype(np.int32).reshape(shape.indices)
        read += _scales(target, shape, row_numbers, digits) * weight
        weight *= base
    return read


def _lookup(target: Target, shape: Shape, values: Array, scales: Array, indices: Array, span: tuple[int, int]) -> Array:
    """The outputs as integers [indices, D] in ``span``; raises _Garbled where they are not."""
    result = target.lookup(values, scales, shape.group_size, indices)
    if result.damage:
        raise _Garbled(result.damage)
    out = result.out.astype(np.float64).reshape(-1, shape.embed_dim)
    wrong = ~((out == np.rint(out)) & (out >= span[0]) & (out <= span[1]))
    if wrong.any():
        place = _at(int(np.argmax(wrong)), (*shape.indices, shape.embed_dim))
        raise _Garbled(f"out{place} is {out[wrong][0]!s}, which no position of the table gives")
    return out.astype(np.int64)


def _compare(shape: Shape, read: Array, right: Array, what: str, table: tuple[int, ...]) -> list[str]:
    """The first element that read another place than ``right``, in one line."""
    wrong = read != right
    if not wrong.any():
        return []
    at, count = int(np.argmax(wrong)), int(np.count_nonzero(wrong))
    number = int(read.reshape(-1)[at])
    known = 0 <= number < math.prod(table)
    where = f"{what} {_at(number, table)}" if known else f"something that is no {what} of the table"
    element, place = _at(at, (*shape.indices, shape.embed_dim)), _at(int(right.reshape(-1)[at]), table)
    return [f"out{element} reads {where}, not {what} {place} ({count} of {wrong.size} wrong)"]


def _at(number: int, table: tuple[int, ...]) -> str:
    return str([int(i) for i in np.unravel_index(number, table)]) if table else "[]"
