"""Proving indexing: which code, which scale and which index does every output element really read?

Every position of the table gets a number, written into the codes four bits a run (scales are 1), into the
scales eleven bits a run (codes are 9, so that q is 1; eleven bits are exact in float16). The outputs spell the
number of the position that each element read. One more run complements the lowest four bits: what reads a
constant, such as a padding row, cannot follow. Which index was read shows by writing the index's own position
into the indices, digit by digit, where row v's scales all hold v.

Source: docs/contract.md sections 1, 2 and 7; docs/proofs.md.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from tqdm import tqdm

from conformance.proofs.target import Array, BeyondLimit, Target

_CODE_BITS, _SCALE_BITS = 4, 11
#: Rows that one index run tells apart: numbers that float16 holds exactly.
_ROWS = 1 << _SCALE_BITS
#: Wrong elements that a certificate names, for each kind of read of a case.
_NAMED = 1


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


def prove(target: Target, shapes: tuple[Shape, ...] = SHAPES) -> dict[str, Any]:
    """Counts, mismatches and cases of the certificate.

    Raises:
        What the target raises, but for BeyondLimit: the contract wants sizes beyond a limit refused by name.
    """
    cases: dict[str, str] = {}
    mismatches: list[str] = []
    elements = beyond = 0
    for shape in tqdm(shapes, unit=" cases", disable=None, desc=target.facts["variant"]):
        try:
            wrong = wrong_reads(target, shape)
        except BeyondLimit as error:
            beyond += 1
            cases[shape.name] = f"refused: {error}"
            continue
        elements += shape.elements
        cases[shape.name] = "refuted" if wrong else "proven"
        mismatches += [f"{shape.name}: {line}" for line in wrong]
    counts = {"cases": len(cases), "elements": elements, "beyond_limits": beyond, "wrong": len(mismatches)}
    return {"counts": counts, "mismatches": mismatches, "cases": cases}


def wrong_reads(target: Target, shape: Shape) -> list[str]:
    """The first element that reads the wrong code, scale or index, each in one line; empty where none does.

    Raises:
        BeyondLimit: the target refuses the sizes.
    """
    indices = place_indices(shape)
    rows = indices.astype(np.int64).reshape(-1)
    columns = np.arange(shape.embed_dim)
    found: list[str] = []
    codes = _codes_read(target, shape, indices, found)
    if codes is not None:
        wanted = rows[:, None] * shape.embed_dim + columns
        found += _compare(shape, codes, wanted, "code", (shape.vocab_size, shape.embed_dim))
    scales = _scales_read(target, shape, indices, found)
    if scales is not None:
        wanted = rows[:, None] * shape.groups + columns // shape.group_size
        found += _compare(shape, scales, wanted, "scale", (shape.vocab_size, shape.groups))
    positions = _indices_read(target, shape, found)
    if positions is not None:
        wanted = np.broadcast_to(np.arange(rows.size)[:, None], positions.shape)
        found += _compare(shape, positions, wanted, "index", shape.indices)
    return found


def place_indices(shape: Shape) -> Array:
    """Indices that name every row once before any twice, the last row first; int64 where the rank is even."""
    order = np.random.Generator(np.random.PCG64(shape.vocab_size)).permutation(shape.vocab_size - 1)
    rows = np.concatenate([[shape.vocab_size - 1], order])
    dtype = np.int32 if len(shape.indices) % 2 else np.int64
    return np.resize(rows, math.prod(shape.indices)).astype(dtype).reshape(shape.indices)


def _codes_read(target: Target, shape: Shape, indices: Array, found: list[str]) -> Array | None:
    """The number of the code that every element read; -1 where the runs contradict each other."""
    size = shape.vocab_size * shape.embed_dim
    number = np.arange(size)
    ones = np.ones((shape.vocab_size, shape.groups), target.facts["scale_dtype"])
    read = np.zeros((math.prod(shape.indices), shape.embed_dim), np.int64)
    lowest = None
    for shift in range(0, max(1, (size - 1).bit_length()), _CODE_BITS):
        nibble = _codes(target, shape, number >> shift & 15, ones, indices, found)
        if nibble is None:
            return None
        lowest = nibble if lowest is None else lowest
        read |= nibble << shift
    complement = _codes(target, shape, 15 - (number & 15), ones, indices, found)
    if complement is None or lowest is None:
        return None
    read[complement != 15 - lowest] = -1
    return read


def _codes(target: Target, shape: Shape, codes: Array, ones: Array, indices: Array, found: list[str]) -> Array | None:
    values = (codes - 8).astype(np.int8).reshape(shape.vocab_size, shape.embed_dim)
    out = _lookup(target, shape, values, ones, indices, found, (-8, 7))
    return None if out is None else out + 8


def _scales_read(target: Target, shape: Shape, indices: Array, found: list[str]) -> Array | None:
    """The number of the scale that every element read; -1 where the runs contradict each other."""
    size = shape.vocab_size * shape.groups
    number = np.arange(size)
    read = np.zeros((math.prod(shape.indices), shape.embed_dim), np.int64)
    for shift in range(0, max(1, (size - 1).bit_length()), _SCALE_BITS):
        part = _scales(target, shape, number >> shift & (_ROWS - 1), indices, found)
        if part is None:
            return None
        read |= part << shift
    complement = _scales(target, shape, _ROWS - 1 - (number & (_ROWS - 1)), indices, found)
    if complement is None:
        return None
    read[complement != _ROWS - 1 - (read & (_ROWS - 1))] = -1
    return read


def _scales(target: Target, shape: Shape, numbers: Array, indices: Array, found: list[str]) -> Array | None:
    ones = np.ones((shape.vocab_size, shape.embed_dim), np.int8)
    scales = numbers.astype(target.facts["scale_dtype"]).reshape(shape.vocab_size, shape.groups)
    return _lookup(target, shape, ones, scales, indices, found, (0, _ROWS - 1))


def _indices_read(target: Target, shape: Shape, found: list[str]) -> Array | None:
    """The position of the index that every element read; None where one row leaves nothing to tell apart."""
    base, count = min(shape.vocab_size, _ROWS), math.prod(shape.indices)
    if base == 1:
        return None
    number = np.arange(count)
    row_numbers = np.repeat(np.arange(shape.vocab_size) % base, shape.groups)
    read, weight = np.zeros((count, shape.embed_dim), np.int64), 1
    while weight < count or weight == 1:
        digits = (number // weight % base).astype(np.int32).reshape(shape.indices)
        part = _scales(target, shape, row_numbers, digits, found)
        if part is None:
            return None
        read += part * weight
        weight *= base
    return read


def _lookup(
    target: Target,
    shape: Shape,
    values: Array,
    scales: Array,
    indices: Array,
    found: list[str],
    span: tuple[int, int],
) -> Array | None:
    """The outputs as integers [indices, D]; None, and a line in ``found``, where they are no integers in ``span``."""
    looked = target.lookup(values, scales, shape.group_size, indices)
    if looked.damage:
        found.append(looked.damage)
        return None
    out = looked.out.astype(np.float64).reshape(-1, shape.embed_dim)
    wrong = ~((out == np.rint(out)) & (out >= span[0]) & (out <= span[1]))
    if wrong.any():
        place = _place(shape, int(np.argmax(wrong)))
        found.append(f"out{place} is {out[wrong][0]!s}, which no position of the table gives")
        return None
    return out.astype(np.int64)


def _compare(shape: Shape, read: Array, wanted: Array, what: str, table: tuple[int, ...]) -> list[str]:
    wrong = read != wanted
    if not wrong.any():
        return []
    size = math.prod(table)
    lines = []
    for at in np.flatnonzero(wrong)[:_NAMED].tolist():
        number, right = int(read.reshape(-1)[at]), int(wanted.reshape(-1)[at])
        where = f"{what} {_at(number, table)}" if 0 <= number < size else f"something that is no {what} of the table"
        count = int(np.count_nonzero(wrong))
        lines.append(
            f"out{_place(shape, at)} reads {where}, not {what} {_at(right, table)} ({count} of {wrong.size} wrong)"
        )
    return lines


def _place(shape: Shape, at: int) -> str:
    return _at(at, (*shape.indices, shape.embed_dim))


def _at(number: int, table: tuple[int, ...]) -> str:
    return str([int(i) for i in np.unravel_index(number, table)]) if table else "[]"
