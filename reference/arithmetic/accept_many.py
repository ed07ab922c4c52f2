"""Judging whole domains as a kernel writes them: a row of 16 results (codes 0 to 15) for each scale.

Three steps, each exact. Where the first and the last of a run of finite scales of one sign give the same
results, so does every scale between them, because rounding is monotone. Elsewhere a multiplication gives
what a host computes. What is neither that nor a zero that flushing allows is put to its accept sets.

>>> from reference.arithmetic.accept import HOST
>>> scales = np.float32([0.5, 0.1])
>>> got = host_rows(scales, "float32")
>>> got[1, 15] ^= 1  # 7 * 0.1, one unit in the last place off
>>> tally = judge_rows(scales, "float32", HOST, got)
>>> tally.pairs, tally.refused, tally.not_strict, [f"{r.scale_bits:08X} {r.code} {r.got:08X}" for r in tally.first]
(32, 1, 1, ['3DCCCCCD 15 3F333332'])

Source: docs/contract.md section 3.
"""

import functools
from dataclasses import dataclass

import numpy as np

from reference import Array
from reference.arithmetic.accept import CODES, HOST, FloatModes, accept_products
from reference.arithmetic.rounding import FLOAT32, FORMATS, Format, bits_of, is_nan, is_subnormal, is_zero

BLOCK = 1 << 13  # scales at a time: their results and the temporaries stay in a core's cache
FIRST = 8  # refused pairs that a tally names
_SIGN16 = np.uint16(0x8000)


@dataclass(frozen=True)
class Refused:
    """One result outside its accept set: the scale's bit pattern, the code, and the bits that came out."""

    scale_bits: int
    code: int
    got: int


@dataclass(frozen=True)
class Tally:
    """What a judgement counts.

    ``refused``: results outside their accept set; ``first`` names the first of them, in the order of scales.
    ``not_strict``: results that a host would not compute. ``unconstrained``: those that contract 3.5 leaves open.
    ``total``: the results' 64-bit words added up modulo 2**64, by which a later run can be compared.
    """

    pairs: int = 0
    refused: int = 0
    not_strict: int = 0
    unconstrained: int = 0
    total: int = 0
    first: tuple[Refused, ...] = ()

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.pairs + other.pairs,
            self.refused + other.refused,
            self.not_strict + other.not_strict,
            self.unconstrained + other.unconstrained,
            (self.total + other.total) % (1 << 64),
            (*self.first, *other.first)[:FIRST],
        )


def judge_rows(scales: Array, output_dtype: str, modes: FloatModes, got: Array, *, block: int = BLOCK) -> Tally:
    """Judge the results of every code (value code - 8) times each scale.

    Args:
        scales: float16 or float32 [n], any bit patterns.
        output_dtype: "float32" or "float16".
        modes: what the subject keeps to.
        got: bit patterns, uint32 or uint16 [n, 16], C-contiguous.
        block: scales at a time. Many threads want larger blocks: they take turns at Python's lock between calls.

    Raises:
        ValueError: ``got`` has another shape or type.
    """
    unsigned = np.dtype(np.uint16 if output_dtype == "float16" else np.uint32)
    if got.shape != (scales.size, CODES.size) or got.dtype != unsigned or not got.flags.c_contiguous:
        raise ValueError(f"got: {got.dtype} {got.shape} is not contiguous {unsigned} {(scales.size, CODES.size)}")
    words = got.reshape(-1).view(np.uint64)
    tally = Tally(total=int(np.add.reduce(words, dtype=np.uint64)))
    if not (modes.rtz16 or modes.rtz32) and _one_row(scales, output_dtype, words, block):
        return tally + Tally(pairs=got.size)
    for start in range(0, scales.size, block):
        part = slice(start, start + block)
        tally += _judge_block(scales[part], output_dtype, modes, got[part])
    return tally


def host_rows(scales: Array, output_dtype: str) -> Array:
    """What a host computes: bit patterns [n, 16]; a NaN stands for any.

    >>> [f"{bits:04X}" for bits in host_rows(np.float32([1 / 3]), "float16")[0]][9:12]
    ['3555', '3955', '3C00']
    """
    if output_dtype == "float16" and not _all_normal(scales):
        with np.errstate(over="ignore", invalid="ignore"):
            positive = _nearest_float16(np.arange(9, dtype=np.float32)[:, None] * scales.astype(np.float32))
        columns = np.concatenate([positive[:0:-1] ^ _SIGN16, positive[:8]])  # -8 to -1 mirror 8 to 1
        return np.ascontiguousarray(columns.T)
    rows = np.empty((scales.size, CODES.size), np.float32)
    np.copyto(rows, scales.astype(np.float32)[:, None])  # np.repeat would hold Python's lock
    with np.errstate(over="ignore", invalid="ignore"):
        np.multiply(rows.reshape(-1), _factors(scales.size), out=rows.reshape(-1))
    return rows.view(np.uint32) if output_dtype == "float32" else rows.astype(np.float16).view(np.uint16)


@functools.lru_cache(maxsize=4)
def _factors(count: int) -> Array:
    """The 16 values, ``count`` times over: a multiplication of two flat arrays is the quickest."""
    return np.tile(CODES.astype(np.float32), count)


def _all_normal(scales: Array) -> bool:
    """Whether every product but the zeros is a normal float16, where numpy's own cast is quick (and nearest even)."""
    size = np.abs(scales)
    return bool(scales.size and size.min() >= 2.0**-14 and size.max() < 65504 / 8)


def _nearest_float16(values: Array) -> Array:
    """float32 to float16 bits, nearest even; numpy's cast is as fast for normal results only."""
    bits = values.view(np.uint32)
    size = bits & np.uint32(0x7FFFFFFF)
    tie_to_even = np.uint32(0x0FFF) + ((size >> np.uint32(13)) & np.uint32(1))
    normal = np.minimum(((size + tie_to_even) >> np.uint32(13)) - np.uint32(112 << 10), np.uint32(0x7C00))
    # One half has its unit in the last place at 2**-24, the smallest float16: adding it rounds there.
    subnormal = (np.abs(values) + np.float32(0.5)).view(np.uint32) - np.float32(0.5).view(np.uint32)
    result = np.where(size < np.uint32(0x38800000), subnormal, normal)
    result[size > np.uint32(0x7F800000)] = 0x7E00
    return np.asarray(result | ((bits >> np.uint32(16)) & np.uint32(0x8000)), np.uint16)


def _one_row(scales: Array, output_dtype: str, words: Array, block: int) -> bool:
    """Whether monotony alone shows that every scale has the same 16 results, and these are what was got."""
    if not scales.size or not np.isfinite(scales).all():
        return False
    bits = bits_of(scales)
    if (bits[0] ^ bits[-1]) & FORMATS[scales.dtype.name].sign or not (bits[1:] > bits[:-1]).all():
        return False
    ends = host_rows(scales[[0, -1]], output_dtype)
    row = ends[0].view(np.uint64)
    if not np.array_equal(ends[0], ends[1]):
        return False
    rows = words.reshape(-1, row.size)
    return all(bool((rows[start : start + block] == row).all()) for start in range(0, len(rows), block))


def _judge_block(scales: Array, output_dtype: str, modes: FloatModes, got: Array) -> Tally:
    expected, form = host_rows(scales, output_dtype), FORMATS[output_dtype]
    unconstrained = _unconstrained(scales, output_dtype, modes)
    suspects = np.ones(got.shape, bool)
    if not (modes.rtz16 or modes.rtz32):  # else what a host computes may be outside the set
        if np.array_equal(expected.view(np.uint64), got.view(np.uint64)):
            return Tally(pairs=got.size, unconstrained=unconstrained)
        strict = (expected == got) | (is_nan(expected, form) & is_nan(got, form))
        if (strict | _flushed(scales, expected, modes, got, form)).all():
            return Tally(got.size, 0, got.size - int(np.count_nonzero(strict)), unconstrained)
        suspects = ~strict
    rows, codes = np.nonzero(suspects)
    operands, bits = (CODES[codes], scales[rows]), got[rows, codes]
    refused = np.flatnonzero(~accept_products(*operands, output_dtype, modes).contains(bits))
    not_strict = np.count_nonzero(~accept_products(*operands, output_dtype, HOST).contains(bits))
    patterns = bits_of(scales)[rows]
    first = tuple(Refused(int(patterns[at]), int(codes[at]), int(bits[at])) for at in refused[:FIRST])
    return Tally(got.size, refused.size, int(not_strict), unconstrained, 0, first)


def _flushed(scales: Array, expected: Array, modes: FloatModes, got: Array, form: Format) -> Array:
    """Where a zero came out and contract 3.4 lets it: the scale is subnormal, or the float32 product is."""
    own = FORMATS[scales.dtype.name]
    allowed = np.zeros(got.shape, bool)
    if not modes.preserves_denormals(own):
        allowed |= is_subnormal(bits_of(scales), own)[:, None]
    if form is FLOAT32 and not modes.preserves_denormals(FLOAT32):
        allowed |= is_subnormal(expected, form)
    return np.asarray(allowed & is_zero(got, form))


def _unconstrained(scales: Array, output_dtype: str, modes: FloatModes) -> int:
    """How many of the results contract 3.5 leaves open."""
    forms = {FORMATS[scales.dtype.name], FLOAT32, FORMATS[output_dtype]}
    if all(modes.preserves_specials(form) for form in forms):
        return 0
    return CODES.size * int(np.count_nonzero(~np.isfinite(scales)))
