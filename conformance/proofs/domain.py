"""Which scale bit patterns an arithmetic proof covers, in which order.

"all" is every pattern of the dtype, START:STOP (hexadecimal or decimal patterns) a part of them, and
"boundary" what is left to do where another variant has been proven completely: every exponent and sign
with the mantissas at which rounding can change, and seeded runs of consecutive patterns.

>>> parse("all", "float16").size
65536
>>> parse("0x3C00:0x3C04", "float16").scales(1, 3).tolist()  # 1.0 is 0x3C00
[1.0009765625, 1.001953125]
"""

import functools
import itertools
from dataclasses import dataclass
from typing import Any

import numpy as np

from conformance.proofs.target import Array

#: Seeded runs of the boundary domain: how many, and how many consecutive patterns each.
RUNS, RUN_LENGTH = 64, 4096
#: A certificate sums its results up over pieces of this many scales or more, in at most 256 pieces.
_SEGMENT, _SEGMENTS = 1 << 16, 256
_HALF_STORED = 10  # mantissa bits of float16


@dataclass(frozen=True)
class Domain:
    """Bit patterns of ``dtype`` in ascending order: [start, stop), or of "boundary" those of ``boundary_bits``."""

    name: str
    dtype: str
    start: int = 0
    stop: int = 0

    @property
    def size(self) -> int:
        """How many scales."""
        return len(boundary_bits(self.dtype)) if self.name == "boundary" else self.stop - self.start

    @property
    def pairs(self) -> int:
        """How many pairs of scale and code."""
        return 16 * self.size

    @property
    def segment(self) -> int:
        """Scales of one piece of the certificate: a power of two, whatever the chunks are."""
        return max(_SEGMENT, 1 << (-(-self.size // _SEGMENTS) - 1).bit_length())

    @property
    def segments(self) -> int:
        """How many pieces there are."""
        return -(-self.size // self.segment)

    def scales(self, first: int, last: int) -> Array:
        """The scales at positions [first, last) of the domain."""
        unsigned: Any = np.uint16 if self.dtype == "float16" else np.uint32
        if self.name == "boundary":
            bits: Array = boundary_bits(self.dtype)[first:last].astype(unsigned)
        else:
            bits = np.arange(last - first, dtype=unsigned) + unsigned(self.start + first)
        return bits.view(self.dtype)


def parse(text: str, dtype: str) -> Domain:
    """The domain that ``--domain`` or ``--range`` names."""
    end = 1 << (16 if dtype == "float16" else 32)
    if text == "all":
        return Domain("all", dtype, 0, end)
    if text == "boundary":
        return Domain("boundary", dtype)
    start, colon, stop = text.partition(":")
    try:
        ends = int(start, 0), int(stop, 0)
    except ValueError:
        ends = (0, 0)
    if not colon or not 0 <= ends[0] < ends[1] <= end:
        raise ValueError(
            f"domain {text!r} is not all, boundary or START:STOP with 0 <= START < STOP <= {end:#x} "
            f"(bit patterns of {dtype})"
        )
    return Domain(f"{ends[0]:#x}:{ends[1]:#x}", dtype, *ends)


@functools.cache
def boundary_bits(dtype: str) -> Array:
    """Sorted bit patterns: all exponents and signs with the boundary mantissas, and the seeded runs."""
    width, stored = (16, 10) if dtype == "float16" else (32, 23)
    mantissas = np.array(boundary_mantissas(stored), np.int64)
    tops = np.arange(1 << (width - stored), dtype=np.int64) << stored  # every sign and exponent
    starts = np.random.Generator(np.random.PCG64(0)).bit_generator.random_raw(RUNS) % ((1 << width) - RUN_LENGTH)
    runs = starts.astype(np.int64)[:, None] + np.arange(RUN_LENGTH)
    return np.unique(np.concatenate([(tops[:, None] | mantissas).reshape(-1), runs.reshape(-1)]))


def boundary_mantissas(stored: int) -> list[int]:
    """Mantissas about which a product with -8..7 changes its binade, ends in a tie, or is next to one.

    >>> len(boundary_mantissas(23)), boundary_mantissas(10)[:5]
    (416, [0, 1, 2, 3, 4])
    """
    end = 1 << stored
    centres = {0, end - 1} | {1 << k for k in range(stored)} | {end - (1 << k) for k in range(stored)}
    for q in (3, 5, 6, 7):  # where q * 1.m reaches a power of two
        centres |= {end * power // q - end for power in range(q, 2 * q + 1) if power & (power - 1) == 0}
    for q, doubling in itertools.product((1, 3, 5, 7), range(3)) if stored > _HALF_STORED else ():
        unit = 1 << (stored - _HALF_STORED - 1 + doubling)  # half a unit of the float16 that q * 1.m rounds to
        lowest, highest = q * end // unit | 1, 2 * q * end // unit - 1
        centres |= {unit * odd // q - end for odd in (lowest, lowest + 2, (lowest + highest) // 2 | 1, highest)}
    near = {centre + off for centre in centres for off in (-2, -1, 0, 1, 2)}
    return sorted(m for m in near if 0 <= m < end)
