"""Picture: which elements of an array are wrong and how, small enough for a verdict line.

Rows x columns of the array (leading dimensions flattened) are reduced to at most 64 x 64 cells; a cell
is wrong where any of its elements is, and shows the most frequent way. The ways are told apart by exact
comparisons, never by nearness:

>>> import numpy as np
>>> right = np.float32([[1, 2, 3, 4], [5, 6, 7, 8], [0, 9, 2, 7]])
>>> draw(right[:, [1, 0, 3, 2]], right).cells  # every column holds its neighbour's value: a nibble swap
'12n'
>>> draw(right[[0, 0, 2]], right).cells  # the middle row holds another row
'4.4r4.'
>>> draw(right * np.float32([[1], [1], [3]]), right, group=4).cells  # one group: same order, other magnitudes
'9.3s'
>>> draw(np.nextafter(right, np.float32(9)), right).sizes  # every element but 9.0 is off in its last bit
{'1 ulp': 11}

Source: docs/reading-a-report.md, "The picture".
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from reference.arithmetic.bfloat16 import to_float
from reference.arithmetic.rounding import ulps_apart

Array = np.ndarray[Any, Any]

#: Most cells of a side.
SIDE = 64
#: The ways of being wrong, by letter; "." is right. Later ones win where a cell holds as many of each.
KINDS = {
    "x": "wrong in no recognised way",
    "s": "in the order of the right values, with another magnitude: another group's scale",
    "r": "the row holds another row's values",
    "n": "holds the value of the other column of its pair: nibbles swapped",
    "p": "holds the byte with its nibbles swapped: the table is packed in the other order",
}
#: Sizes of errors are told apart below this power of two.
_LARGE = 16
_LETTERS = "." + "".join(KINDS)
_RUN = re.compile(rf"(\d*)([{re.escape(_LETTERS)}])")
#: Larger arrays are drawn by the plain map of wrong elements: recognising would take too long.
_RECOGNISABLE = 1 << 20


@dataclass(frozen=True)
class Picture:
    """``rows`` x ``columns`` elements shown as ``height`` x ``width`` cells.

    ``cells`` is run-length coded in row-major order: an optional count, then "." or a key of KINDS.
    ``group`` is the number of columns that share a scale, 0 where that is not known.
    ``sizes`` is how many elements are wrong by how much: ulp for numbers, steps for codes.
    """

    rows: int
    columns: int
    height: int
    width: int
    group: int
    cells: str
    sizes: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        """A verdict may come from anywhere."""
        sizes = (self.rows, self.columns, self.height, self.width, self.group)
        if min(sizes) < 0 or max(self.height, self.width) > SIDE:
            raise ValueError(f"picture: sizes {sizes}")
        if len(self.sizes) > _LARGE + 2 or any(count < 0 for count in self.sizes.values()):
            raise ValueError(f"picture: {len(self.sizes)} sizes of errors, or one with a negative count")
        decode(self.cells, self.height * self.width)


def draw(got: Array, right: Array, group: int = 0, wrong: Array | None = None) -> Picture:
    """Return the picture of ``got`` beside what is ``right``, arrays of one shape and dtype.

    ``wrong``: bool of that shape, where the comparison found them wrong (by default: where bits differ).
    """
    columns = got.shape[-1] if got.ndim else 1
    rows = got.size // columns if columns else 0
    mine, theirs = (np.ascontiguousarray(a).reshape(rows, columns) for a in (got, right))
    differs = _differs(mine, theirs) if wrong is None else wrong.reshape(mine.shape)
    kinds = differs.astype(np.int8)
    if 0 < mine.size <= _RECOGNISABLE and mine.dtype.kind in "iuf":
        _recognise(kinds, mine, theirs, group)
    height, width = min(SIDE, mine.shape[0]), min(SIDE, columns)
    cells = _reduced(kinds, height, width) if mine.size else np.zeros((0, 0), np.int8)
    sizes = _sizes(mine[differs], theirs[differs])
    return Picture(mine.shape[0], columns, height, width, group, _encode(cells.reshape(-1)), sizes)


def decode(cells: str, count: int) -> str:
    """Return ``count`` letters from their run-length code.

    Raises:
        ValueError: another letter is there, or another number of them.
    """
    letters: list[str] = []
    at = total = 0
    while at < len(cells):
        run = _RUN.match(cells, at)
        if run is None:
            raise ValueError(f"picture: unexpected {cells[at]!r} at position {at}")
        length = int(run[1] or 1) if len(run[1]) < 6 else count + 1  # noqa: PLR2004 - more digits are too many cells
        total += length
        if total > count:
            break
        letters.append(run[2] * length)
        at = run.end()
    if total != count:
        raise ValueError(f"picture: {total} cells, expected {count}")
    return "".join(letters)


def _differs(mine: Array, theirs: Array) -> Array:
    if mine.dtype.kind in "fV":
        unsigned = f"<u{mine.dtype.itemsize}"
        return np.asarray(mine.view(unsigned) != theirs.view(unsigned)).reshape(mine.shape)
    return np.asarray(mine != theirs)


def _sizes(got: Array, right: Array) -> dict[str, int]:
    """How many elements are wrong by how much, in powers of two; equal numbers of other bits are 0."""
    labels: dict[str, int] = {}
    unit = "ulp" if got.dtype.kind in "fV" else "steps"
    if unit == "ulp":
        finite = np.isfinite(to_float(got)) & np.isfinite(to_float(right))
        if not finite.all():
            labels["not finite"] = int((~finite).sum())
        off = ulps_apart(got[finite], right[finite])
    else:
        off = np.abs(got.astype(np.int64) - right.astype(np.int64))
    power = np.minimum(np.frexp(off.astype(np.float64))[1], _LARGE)  # 0 for 0, 1 for 1, 2 for 2 and 3, ...
    for p, count in enumerate(np.bincount(power, minlength=1)):
        low, high = 1 << p >> 1, (1 << p) - 1
        name = f"{low:,}" if low == high else f"{low:,} to {high:,}" if p < _LARGE else f"{low:,} or more"
        if count:
            labels[f"{name} {unit if name != '1' else unit.removesuffix('s')}"] = int(count)
    return labels


def _recognise(kinds: Array, got: Array, right: Array, group: int) -> None:
    """Refine 1 ("x") to the way that an element is wrong, in place."""
    wrong = kinds != 0
    columns = got.shape[1]
    if got.dtype == np.uint8:
        kinds[wrong & (got == (right << 4 | right >> 4))] = _LETTERS.index("p")
    if columns % 2 == 0:
        swapped = ~_differs(got, right.reshape(-1, columns // 2, 2)[:, :, ::-1].reshape(right.shape))
        pairs = (swapped | ~wrong).reshape(-1, columns // 2, 2).all(axis=2).repeat(2, axis=1)
        kinds[wrong & swapped & pairs] = _LETTERS.index("n")
    rows = {right[i].tobytes() for i in range(len(right))}
    for i in np.flatnonzero(wrong.any(axis=1)):
        if got[i].tobytes() in rows:
            kinds[i][wrong[i]] = _LETTERS.index("r")
    width = group if 2 < group < columns or group == columns else 0  # noqa: PLR2004 - two values have always some order
    if not width or columns % width:
        return
    for i, start in zip(*np.nonzero(wrong.reshape(len(got), -1, width).any(axis=2)), strict=True):
        place = np.s_[i, start * width : (start + 1) * width]
        if (kinds[place] <= 1).all() and _same_order(got[place], right[place]):
            kinds[place][wrong[place]] = _LETTERS.index("s")


def _same_order(got: Array, right: Array) -> bool:
    """Whether equal right values have equal results, larger ones larger (or all of them smaller) ones, and zeros zeros.

    Zeros tell another scale from another offset, which keeps the order as well.
    """
    if ((got == 0) != (right == 0)).any():
        return False
    if not (np.isfinite(got).all() and np.isfinite(right).all()) or len(np.unique(right)) < 3:  # noqa: PLR2004 - see above
        return False
    _, mine = np.unique(got, return_inverse=True)
    _, theirs = np.unique(right, return_inverse=True)
    return bool((mine == theirs).all() or (mine == theirs.max() - theirs).all())


def _reduced(kinds: Array, height: int, width: int) -> Array:
    """The most frequent way of being wrong in each cell."""
    rows = np.arange(kinds.shape[0]) * height // kinds.shape[0]
    columns = np.arange(kinds.shape[1]) * width // kinds.shape[1]
    cell = rows[:, None] * width + columns[None, :]
    count = np.stack([np.bincount(cell[kinds == k], minlength=height * width) for k in range(1, len(_LETTERS))])
    last = len(count) - 1 - count[::-1].argmax(axis=0)
    return np.where(count.any(axis=0), last + 1, 0).astype(np.int8)


def _encode(cells: Array) -> str:
    if not len(cells):
        return ""
    starts = np.concatenate([[0], np.flatnonzero(np.diff(cells)) + 1])
    lengths = np.diff(np.concatenate([starts, [len(cells)]]))
    runs = zip(lengths.tolist(), cells[starts].tolist(), strict=True)
    return "".join(f"{n if n > 1 else ''}{_LETTERS[kind]}" for n, kind in runs)
