"""The oracle's oracle: what bits a product may have, by exact fractions and step-by-step simulation.

Written from the contract's sections 2 and 3 alone, without numpy and without floats. It is slow
(some microseconds a step) and plain on purpose: it judges the fast oracle, so it shares nothing with it.

A number is a bit pattern. Every step of the computation maps one pattern to the *set* of patterns
that the step may yield, and a product's allowed set is what the chain of steps can reach:

    load (never changes anything)
    -> float16 scales: conversion to float32
    -> multiplication by q (the conversion of q to float is exact), rounded to float32
    -> float16 output: conversion to float16, or a store into a 16-bit float image that converts
    and, where the product is not ``precise`` and the output is float16: one rounding from the exact
    product to float16 instead of the last two.

Readings chosen where the contract's text leaves more than one:

- 3.2 says "both neighbours unless RoundingModeRTE", 3.4 "without a rounding mode ... either
  neighbour", 3.3 "each by the subject's rounding". With RoundingModeRTZ declared 3.4 and 3.3 decide:
  the neighbour nearer to zero only.
- A width's rounding mode governs the operations whose *result* has that width (SPIR-V's text), so the
  conversion to float16 rounds by the 16-bit mode and the product by the 32-bit one.
- A conversion has an operand of one width and a result of the other. Operand and result are each judged by
  their own width's declarations: for flushing (3.4) and for the signs of zeros (3.5, which has no widths).
- NaN and infinity are promised where *every* width in the chain declares SignedZeroInfNanPreserve.
- "A subnormal result" is judged after rounding: what rounds up to the smallest normal number is none.
- A flushed subnormal may be a zero of *either* sign (3.4), also where 3.5 keeps the signs of zeros:
  3.5 is about a zero that was there, 3.4 about one that was made.
- DenormFlushToZero forbids nothing: 3.4 names DenormPreserve alone and says "may", and the correctly
  rounded product (3.2) and the strict set stay allowed whatever is declared.
- 3.5's "NaN/infinity elements" are those whose exact product is no real number, so whose *scale* is a
  NaN or an infinity. A finite product past the largest finite number follows 3.3 whatever is declared.
- 3.3's "past the largest finite float16" is IEEE's: nearest even turns to infinity from the midpoint
  between 65504 and 65536 on. The same rule serves float32. "Either neighbour" there is both of them.
- An infinity is exact: no rounding mode turns it into the largest finite number.
- A store into a 16-bit float image (3.4) is either neighbour whatever is declared and never flushes, being
  a store; what it makes of zeros, NaN and infinity is promised where the 16-bit width preserves them.
"""

import functools
from dataclasses import dataclass
from fractions import Fraction

#: What the SPIR-V entry point declares, and two facts about how the shader computes and stores (contract 3.3, 3.4), by
#: name: rte, rtz, denorm_preserve, denorm_flush and signed_zero_inf_nan_preserve, each ending in 16 or 32; precise;
#: image_output16.
Modes = frozenset[str]


@dataclass(frozen=True, eq=False)  # two formats exist; comparing them by identity keeps the caches below fast
class Format:
    """An IEEE binary format: ``stored`` bits of fraction, and the weight of the last subnormal bit."""

    width: int
    stored: int
    last: int

    @property
    def sign(self) -> int:
        """The sign bit, alone; also the pattern of -0."""
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        """The pattern of +infinity. Patterns below it are the non-negative finite numbers in order."""
        return self.sign - (1 << self.stored)

    @property
    def nan(self) -> int:
        """The quiet NaN that stands for every NaN here."""
        return self.infinity | 1 << (self.stored - 1)


FLOAT16 = Format(16, 10, -24)
FLOAT32 = Format(32, 23, -149)
FORMATS = {"float16": FLOAT16, "float32": FLOAT32}


@dataclass(frozen=True)
class Number:
    """A decoded pattern. ``magnitude`` is None for infinity and NaN; zeros have a sign too."""

    negative: bool
    magnitude: Fraction | None
    nan: bool = False


@dataclass(frozen=True)
class Allowed:
    """The results that the contract allows: these patterns, any NaN at all, or (unconstrained) any pattern at all."""

    patterns: frozenset[int] = frozenset()
    any_nan: bool = False
    unconstrained: bool = False


@functools.lru_cache(maxsize=1 << 17)
def decode(bits: int, fmt: Format) -> Number:
    """The number that a pattern means.

    >>> decode(0xC000, FLOAT16), decode(0x8000, FLOAT16)  # -2 and -0
    (Number(negative=True, magnitude=Fraction(2, 1), nan=False), Number(negative=True, magnitude=Fraction(0, 1), nan=False))
    >>> decode(0x0001, FLOAT16).magnitude == Fraction(1, 2**24), decode(0x00000001, FLOAT32).magnitude == Fraction(1, 2**149)
    (True, True)
    >>> decode(0xFC00, FLOAT16), decode(0x7E00, FLOAT16).nan  # -infinity, a NaN
    (Number(negative=True, magnitude=None, nan=False), True)
    """  # noqa: E501 - a doctest's literal output cannot be wrapped
    if not 0 <= bits < 1 << fmt.width:
        raise ValueError(f"{bits:#x} is not a pattern of {fmt.width} bits")
    negative, rest = bool(bits & fmt.sign), bits & ~fmt.sign
    if rest >= fmt.infinity:
        return Number(negative, None, rest > fmt.infinity)
    exponent, fraction = rest >> fmt.stored, rest & (1 << fmt.stored) - 1
    if exponent == 0:
        return Number(negative, fraction * power_of_two(fmt.last))
    return Number(negative, (fraction + (1 << fmt.stored)) * power_of_two(fmt.last + exponent - 1))


@functools.cache
def power_of_two(exponent: int) -> Fraction:
    """2 ** exponent, exactly: an integer or one over an integer."""
    return Fraction(1 << exponent) if exponent >= 0 else Fraction(1, 1 << -exponent)


def round_exact(magnitude: Fraction, fmt: Format, rounding: str) -> frozenset[int]:
    """Patterns (sign bit clear) that a real number >= 0 may round to: "nearest", "zero" or "either".

    >>> sorted(hex(p) for p in round_exact(Fraction(1) + Fraction(1, 3000), FLOAT16, "either"))
    ['0x3c00', '0x3c01']
    >>> [{hex(p) for p in round_exact(Fraction(65519), FLOAT16, r)} for r in ("nearest", "zero")]  # below the midpoint
    [{'0x7bff'}, {'0x7bff'}]
    >>> [{hex(p) for p in round_exact(Fraction(65520), FLOAT16, r)} for r in ("nearest", "zero")]  # the midpoint
    [{'0x7c00'}, {'0x7bff'}]
    """
    below = _truncate(magnitude, fmt)
    above, low = below + 1, _value(below, fmt)
    if rounding == "zero" or low == magnitude:
        return frozenset({below})
    if rounding == "either":
        return frozenset({below, above})
    twice, ends = 2 * magnitude, low + _value(above, fmt)
    if twice == ends:
        return frozenset({below if below % 2 == 0 else above})
    return frozenset({below if twice < ends else above})


def _truncate(magnitude: Fraction, fmt: Format) -> int:
    """The pattern of the largest finite number that is not above ``magnitude``."""
    unit = power_of_two(fmt.last)
    units = magnitude.numerator * unit.denominator // (magnitude.denominator * unit.numerator)
    # Up to stored+1 bits the pattern *is* the count of units; each further bit is one binade more.
    binade = max(0, units.bit_length() - (fmt.stored + 1))
    return min((binade << fmt.stored) + (units >> binade), fmt.infinity - 1)


@functools.lru_cache(maxsize=1 << 17)
def _value(pattern: int, fmt: Format) -> Fraction:
    """A non-negative pattern's value; infinity stands where the next finite number would."""
    if pattern == fmt.infinity:
        return _value(pattern - 1, fmt) + _value(pattern - 1, fmt) - _value(pattern - 2, fmt)
    number = decode(pattern, fmt)
    assert number.magnitude is not None  # noqa: S101 - rounding only ever meets finite patterns and infinity
    return number.magnitude


@dataclass(frozen=True, eq=False)  # made by ``width_of`` alone, once for each combination
class Width:
    """One width's declarations: rounding "nearest", "zero" or "either"; subnormals and zeros' signs kept."""

    fmt: Format
    rounding: str
    keeps_subnormals: bool
    keeps_signs: bool


@functools.cache
def width_of(fmt: Format, modes: Modes) -> Width:
    """What the modes declare for a width."""
    rte, rtz, preserve, flush, signs = (
        f"{mode}{fmt.width}" in modes
        for mode in ("rte", "rtz", "denorm_preserve", "denorm_flush", "signed_zero_inf_nan_preserve")
    )
    if (rte and rtz) or (preserve and flush):
        raise ValueError(f"the modes declared for {fmt.width} bit exclude each other")
    return Width(fmt, "nearest" if rte else "zero" if rtz else "either", preserve, signs)


@functools.lru_cache(maxsize=1 << 18)
def loosened(bits: int, width: Width, *, flush: bool = True) -> frozenset[int]:
    """What an operand or a result may be taken for: itself, or a zero of either sign (3.4, 3.5).

    ``flush`` says whether this is arithmetic or conversion, which may flush; a store may not.

    >>> undeclared = width_of(FLOAT16, frozenset())
    >>> [sorted(hex(p) for p in loosened(bits, undeclared)) for bits in (0x8001, 0x0000, 0x0400)]  # -2**-24, +0, 2**-14
    [['0x0', '0x8000', '0x8001'], ['0x0', '0x8000'], ['0x400']]
    >>> sorted(hex(p) for p in loosened(0x8001, undeclared, flush=False))
    ['0x8001']
    """
    magnitude = bits & ~width.fmt.sign
    if magnitude == 0:
        loose = not width.keeps_signs
    else:
        loose = flush and magnitude < 1 << width.fmt.stored and not width.keeps_subnormals
    return frozenset({bits, 0, width.fmt.sign}) if loose else frozenset({bits})


def rounded_product(bits: int, q: int, source: Format, target: Format, rounding: str) -> frozenset[int]:
    """Where the exact product of a ``source`` pattern with an integer may go in ``target``.

    The sign is the product's, also of a zero, and the float of q = 0 is +0. NaN stays NaN, infinity stays
    infinity whatever the rounding, and infinity times 0 is NaN (3.5). A conversion is the product with 1.

    >>> [{hex(p) for p in rounded_product(0xFC00, q, FLOAT16, FLOAT16, "zero")} for q in (-2, 0)]  # -infinity
    [{'0x7c00'}, {'0x7e00'}]
    """
    number = decode(bits, source)
    if number.nan or (number.magnitude is None and q == 0):
        return frozenset({target.nan})
    sign = target.sign if number.negative != (q < 0) else 0
    if number.magnitude is None:
        return frozenset({sign | target.infinity})
    return frozenset(sign | p for p in _rounded_magnitude(bits & ~source.sign, abs(q), source, target, rounding))


@functools.lru_cache(maxsize=1 << 18)
def _rounded_magnitude(bits: int, q: int, source: Format, target: Format, rounding: str) -> frozenset[int]:
    """Both without their signs."""
    return round_exact(_value(bits, source) * q, target, rounding)


def operate(
    bits: int, q: int, source: Width, target: Width, rounding: str = "", *, flush: bool = True
) -> frozenset[int]:
    """One operation: operand loosened, exact product with q (1 for a conversion) rounded, results loosened.

    ``rounding`` replaces what the target's width declares; ``flush`` is off where a store makes the result.

    >>> plain = width_of(FLOAT32, frozenset({"rte32", "denorm_preserve32"}))
    >>> [hex(p) for p in operate(0x3F800001, 3, plain, plain)]  # 3 * (1 + 2**-23) is a tie: the even neighbour
    ['0x40400002']
    """
    rounded = {
        p
        for operand in loosened(bits, source)
        for p in rounded_product(operand, q, source.fmt, target.fmt, rounding or target.rounding)
    }
    return frozenset().union(*(loosened(p, target, flush=flush) for p in rounded))


@functools.lru_cache(maxsize=1 << 18)
def convert(bits: int, source: Width, target: Width) -> frozenset[int]:
    """A conversion in the shader."""
    return operate(bits, 1, source, target)


@functools.lru_cache(maxsize=1 << 18)
def store_image16(bits: int, source: Width, target: Width) -> frozenset[int]:
    """A float32 stored into a 16-bit float image: either neighbour, never flushed."""
    rounded = rounded_product(bits, 1, source.fmt, target.fmt, "either")
    return frozenset().union(*(loosened(p, target, flush=False) for p in rounded))


def allowed_bits(q: int, scale_bits: int, scale_dtype: str, output_dtype: str, modes: Modes) -> Allowed:
    """Every pattern of ``output_dtype`` that ``q`` times the scale may come out as (contract 3).

    Args:
        q: the value, in [-8, 7].
        scale_bits: the scale's pattern.
        scale_dtype: "float16" or "float32".
        output_dtype: "float16" or "float32".
        modes: what the shader declares; a host declares rte, denorm_preserve and signed_zero_inf_nan_preserve.

    Raises:
        ValueError: q or the pattern out of range, or modes that exclude each other.

    >>> nothing = frozenset()
    >>> show = lambda a: (sorted(hex(p) for p in a.patterns), a.any_nan, a.unconstrained)
    >>> show(allowed_bits(-3, 0x3C00, "float16", "float16", nothing))  # -3 * 1.0: exact, one value
    (['0xc200'], False, False)
    >>> show(allowed_bits(3, 0x3F800001, "float32", "float32", nothing))  # inexact: both neighbours
    (['0x40400001', '0x40400002'], False, False)
    >>> show(allowed_bits(5, 0x7F800000, "float32", "float32", nothing))  # infinity, nothing promised
    ([], False, True)
    """
    if not -8 <= q <= 7:  # noqa: PLR2004 - the two ends of q4 (contract 1)
        raise ValueError(f"q {q} is outside [-8, 7]")
    source, out = FORMATS[scale_dtype], FORMATS[output_dtype]
    wide, narrow = width_of(FLOAT32, modes), width_of(FLOAT16, modes)
    scale = decode(scale_bits, source)
    sixteen = source is FLOAT16 or out is FLOAT16
    if scale.magnitude is None and not (wide.keeps_signs and (narrow.keeps_signs or not sixteen)):
        return Allowed(unconstrained=True)
    loaded = frozenset({scale_bits}) if source is FLOAT32 else convert(scale_bits, narrow, wide)
    results = {p for s in loaded for p in operate(s, q, wide, wide)}
    if out is FLOAT16:
        image = "image_output16" in modes
        last = store_image16 if image else convert
        results = {p for product in results for p in last(product, wide, narrow)}
        if "precise" not in modes:
            rounding = "either" if image else ""
            results |= {p for s in loaded for p in operate(s, q, wide, narrow, rounding, flush=not image)}
    return Allowed(frozenset(results - {out.nan}), out.nan in results)
