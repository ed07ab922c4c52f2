"""Proving layouts: flat, linear-weight and block are bijections between codes and nibbles, and a packer keeps to them.

By enumeration for small tables: every code's number is written into the codes four bits a run, packed by the
subject, and read back from every nibble. By exact integers for tables beyond 2**31 nibbles: a nibble's place
is a mixed-radix number whose digits are quotients and remainders of row and column.
"""

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING

import numpy as np

from conformance.case.case import Case, Table
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.observation import Arrays, Observation, Raised, Refused, Unsupported
from conformance.proofs.certificate import PROVEN, REFUSED, REFUTED, LayoutClaim
from conformance.proofs.target import Array
from reference.program.spec import Values
from reference.table import layouts
from reference.table.positions import Place, block_bytes, block_place, flat_place, linear_weight_place

if TYPE_CHECKING:
    from conformance.harness.worker import Worker


class NotPacked(Exception):  # noqa: N818 - says what became of a table
    """A subject has no packed bytes for a table of a layout that it supports; the message says why."""


PLACES: dict[str, Callable[[int, int, int], Place]] = {
    "flat": flat_place,
    "linear_weight": linear_weight_place,
    "blocks": block_place,
}
#: V and D of what is enumerated.
SMALL = (*((v, d) for v in (1, 7, 8, 9) for d in (32, 64)), (15, 96), (16, 160), (17, 128), (64, 256), (9, 2048))
#: V and D of what is shown by arithmetic alone: beyond 2**31 nibbles, V about multiples of 8.
LARGE = ((262153, 8192), (65543, 65536))
_PADDING = 8
_BOTH = 2
Packed = Callable[[Array], Array]


def prove(subject: str) -> tuple[LayoutClaim, tuple[str, ...]]:
    """The certificate's claim and mismatches. What a subject raises refutes its case.

    EnvironmentProblem where the machine or the subject's process is in the way.
    """
    cases: dict[str, str] = {}
    mismatches: list[str] = []
    with contextlib.ExitStack() as stack:
        worker = None
        if subject != "reference":
            from conformance.harness.worker import Worker  # noqa: PLC0415 - the reference is judged without TOML

            worker = stack.enter_context(Worker(subject))
        for name, layout, storage, rows, columns in _cases():
            if not storage:
                wrong = by_arithmetic(layout, rows, columns)
            elif isinstance(pack := packer(worker, layout, storage), str):
                cases[name] = f"{REFUSED}{pack}"
                continue
            else:
                try:
                    wrong = enumerate_packed(layout, rows, columns, pack)
                except NotPacked as error:
                    wrong = str(error)
            cases[name] = REFUTED if wrong else PROVEN
            mismatches += [f"{name}: {wrong}"] if wrong else []
    return LayoutClaim(cases), tuple(mismatches)


def _cases() -> Iterator[tuple[str, str, str, int, int]]:
    """Name, layout, storage ("" for one by arithmetic), V and D."""
    for layout in PLACES:
        for storage in ("buffer", "texture2d", "") if layout == "blocks" else ("buffer", ""):
            for rows, columns in SMALL if storage else LARGE:
                yield f"{layout} v{rows}-d{columns} {storage or 'by arithmetic'}", layout, storage, rows, columns


def case_names() -> dict[str, int]:
    """Every case's name, and how many codes it enumerates."""
    return {name: rows * columns if storage else 0 for name, _layout, storage, rows, columns in _cases()}


def packer(worker: "Worker | None", layout: str, storage: str) -> Packed | str:
    """The function from int8 values [V, D] to packed bytes of a subject (None: the reference), or why it has none."""
    if worker is None:
        own: Packed = getattr(layouts, f"pack_{layout}")
        return own

    def ask(values: Array) -> Observation:
        table = Table(values.shape[0], values.shape[1], Values("literal", data=values.tobytes().hex()), layout, storage)
        stage = "PREPACK" if layout == "blocks" else "PACK"
        answer = worker.run(Case("proof/layout", stage, "1", "a code in the wrong nibble", table))
        if isinstance(answer, Raised) and answer.trouble:
            raise EnvironmentProblem(f"subject {worker.subject}: {answer.type}: {answer.message}")
        return answer

    if isinstance(answer := ask(np.zeros((1, 32), np.int8)), Unsupported):
        return answer.reason

    def pack(values: Array) -> Array:
        answer = ask(values)
        if isinstance(answer, Raised):
            raise NotPacked(f"raised {answer.type}: {answer.message}")
        if isinstance(answer, Refused | Unsupported):
            raise NotPacked(f"refused: {answer.reason}")
        if not isinstance(answer, Arrays) or len(answer.arrays) != 1:
            raise NotPacked("the answer is no single array")
        return next(iter(answer.arrays.values()))

    return pack


def enumerate_packed(layout: str, rows: int, columns: int, pack: Packed) -> str:
    """The first nibble that holds the wrong code, in one line; "" where the packing is the layout's bijection.

    NotPacked where there are more or fewer nibbles than the layout has.
    """
    place = PLACES[layout]
    nibbles = _padded_rows(layout, rows) * columns
    at = np.array([_index(place(n, k, columns)) for n in range(rows) for k in range(columns)])
    if len(np.unique(at)) != at.size or at.min() < 0 or at.max() >= nibbles:
        return "the layout's places are not distinct nibbles of the table"

    def packed(codes: Array) -> Array:
        """The nibbles of a packed table, the low one of a byte first."""
        words = pack((codes - 8).astype(np.int8).reshape(rows, columns))
        data = np.ascontiguousarray(words.astype(words.dtype.newbyteorder("<"))).reshape(-1).view(np.uint8)
        if 2 * data.size != nibbles:
            raise NotPacked(f"{2 * data.size} nibbles, not {nibbles}")
        return np.stack([data & 15, data >> 4], axis=1).reshape(-1)

    held = np.zeros(nibbles, np.int64)
    number = np.arange(at.size)
    for shift in range(0, (at.size - 1).bit_length(), 4):
        codes = packed(number >> shift & 15)
        held |= codes.astype(np.int64) << shift
    complement = packed(15 - (number & 15))
    held[complement != 15 - (held & 15)] = -1  # it holds no code of the table
    wrong = np.flatnonzero(held[at] != number)
    if wrong.size:
        n, k = divmod(int(wrong[0]), columns)
        source = int(held[at][wrong[0]])
        code = f"that of row {source // columns} column {source % columns}" if 0 <= source < at.size else "none of them"
        byte, low = place(n, k, columns)
        return f"the nibble of row {n} column {k} (byte {byte}, bit {low}) holds {code} ({wrong.size} are wrong)"
    padding = np.setdiff1d(np.arange(nibbles), at)
    if (complement[padding] != _PADDING).any() or (held[padding] != -1).any():
        return "a row past the table does not hold code 8"
    return ""


def by_arithmetic(layout: str, rows: int, columns: int) -> str:
    """Why the layout's formula is no bijection for such a table, or "": exact integers, nothing allocated.

    A place counts nibbles. Row and column split into digits by division with remainder, which is a bijection.
    Each digit adds its weight times its value (checked for every value), the digits add up (checked at every
    corner and seeded inner points), and each weight is the product of the ranges below it: a mixed-radix
    number, which names every nibble once.
    """
    digits = _digits(layout, rows, columns)
    origin = (0,) * len(digits)
    zero = _nibble(layout, origin, columns)
    weights = []
    for i, span in enumerate(digits):
        steps = [_nibble(layout, (*origin[:i], value, *origin[i + 1 :]), columns) - zero for value in range(span)]
        weight = steps[1] if span > 1 else 0
        if steps != [value * weight for value in range(span)]:
            return f"digit {i} does not add a fixed weight for each step"
        weights.append(weight)
    for point in _points(digits):
        if _nibble(layout, point, columns) != zero + sum(w * v for w, v in zip(weights, point, strict=True)):
            return f"digits {point} do not add up"
    # A negative weight counts its digit from the other end: the flat layout's even column is in the high nibble.
    total = 1
    for weight, span in sorted((abs(w), span) for w, span in zip(weights, digits, strict=True) if span > 1):
        if weight != total:
            return f"weight {weight} is not {total}, the product of the ranges below it"
        total *= span
    lowest = zero + sum(min(0, w) * (span - 1) for w, span in zip(weights, digits, strict=True))
    if (lowest, total) != (0, _padded_rows(layout, rows) * columns):
        return f"nibbles {lowest} to {lowest + total} are not those of the table"
    return ""


def _digits(layout: str, rows: int, columns: int) -> tuple[int, ...]:
    """Ranges of the digits of row and column; of blocks: row // 8, its half, its word, column // 4, its byte."""
    return (-(-rows // 8), 2, 4, columns // 4, 4) if layout == "blocks" else (rows, columns // 2, 2)


def _nibble(layout: str, digits: tuple[int, ...], columns: int) -> int:
    """Where the code of these digits lies."""
    if layout == "blocks":
        block, half, word, four, byte = digits
        return _index(block_place(8 * block + 4 * half + word, 4 * four + byte, columns))
    row, pair, odd = digits
    return _index(PLACES[layout](row, 2 * pair + odd, columns))


def _points(digits: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
    yield from itertools.product(*({0, span - 1} for span in digits))
    random = np.random.Generator(np.random.PCG64(sum(digits)))
    for _ in range(1000):
        yield tuple(int(random.integers(span)) for span in digits)


def _index(place: Place) -> int:
    """Nibbles before a place: the low nibble of a byte comes first."""
    return _BOTH * place[0] + place[1] // 4


def _padded_rows(layout: str, rows: int) -> int:
    return block_bytes(rows, 4) // 2 if layout == "blocks" else rows  # a row of four columns takes two bytes
