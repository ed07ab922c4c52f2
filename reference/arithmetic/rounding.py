"""Rounding a float to a narrower format in every direction, with integers only.

>>> third = np.float32([1 / 3])
>>> down, up, nearest = narrow(third, FLOAT16)  # 1/3 is 0.333251953125 or 0.33349609375 in float16
>>> f"{down[0]:04X} {up[0]:04X} {nearest[0]:04X}"
'3555 3556 3555'
>>> [f"{bits[0]:04X}" for bits in narrow(np.float32([-65520.0]), FLOAT16)]  # half way past the largest finite
['FBFF', 'FC00', 'FC00']

Source: docs/contract.md section 3 (IEEE 754 binary formats).
"""

from dataclasses import dataclass
from typing import Any

import numpy as np

from reference import Array


@dataclass(frozen=True)
class Format:
    """An IEEE 754 binary format; bit patterns are held in unsigned integers of its width."""

    name: str
    exponent_bits: int
    mantissa_bits: int

    @property
    def width(self) -> int:
        """Bits in all: 16, 32 or 64."""
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def unsigned(self) -> np.dtype[Any]:
        """The unsigned integer type of the same width."""
        return np.dtype(f"u{self.width // 8}")

    @property
    def sign(self) -> int:
        """The sign bit, which is also minus zero."""
        return 1 << (self.width - 1)

    @property
    def infinity(self) -> int:
        """Plus infinity."""
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def quiet_nan(self) -> int:
        """The quiet NaN that stands for all of them."""
        return self.infinity | 1 << (self.mantissa_bits - 1)

    @property
    def smallest_normal(self) -> int:
        """Below it, zero apart, are the subnormals."""
        return 1 << self.mantissa_bits


FLOAT16 = Format("float16", 5, 10)
FLOAT32 = Format("float32", 8, 23)
FLOAT64 = Format("float64", 11, 52)
FORMATS = {form.name: form for form in (FLOAT16, FLOAT32, FLOAT64)}


def bits_of(array: Array) -> Array:
    """The bit patterns of a float array; unsigned integers pass through.

    >>> hex(bits_of(np.float16([1.0]))[0])
    '0x3c00'
    """
    return array if array.dtype.kind == "u" else array.view(f"u{array.dtype.itemsize}")


def magnitude(bits: Array, form: Format) -> Array:
    """Bit patterns without their sign; as integers they order like the absolute values."""
    return np.asarray(bits & bits.dtype.type(form.sign - 1))


def is_subnormal(bits: Array, form: Format) -> Array:
    """Where a bit pattern is subnormal: neither zero nor normal.

    >>> is_subnormal(np.uint16([0x0000, 0x8001, 0x03FF, 0x0400]), FLOAT16).tolist()
    [False, True, True, False]
    """
    one = bits.dtype.type(1)
    return np.asarray(magnitude(bits, form) - one < form.smallest_normal - 1)  # zero wraps round to the largest


def is_zero(bits: Array, form: Format) -> Array:
    """Where a bit pattern is a zero of either sign."""
    return np.asarray(magnitude(bits, form) == 0)


def is_nan(bits: Array, form: Format) -> Array:
    """Where a bit pattern is any NaN."""
    return np.asarray(magnitude(bits, form) > form.infinity)


def narrow(values: Array, target: Format) -> tuple[Array, Array, Array]:
    """Round float32 or float64 to a narrower format.

    Returns:
        Bit patterns toward zero, away from zero and to nearest even. All three are equal where the value is
        representable (zeros and infinities included). Past the largest finite number they are that number, infinity,
        and whichever IEEE 754 rounds to. A NaN becomes the quiet NaN.
    """
    source = FORMATS[values.dtype.name]
    bits = bits_of(values)
    kind = bits.dtype.type
    size = magnitude(bits, source)
    dropped = source.mantissa_bits - target.mantissa_bits  # low mantissa bits that a normal result loses
    rebias = (1 << (source.exponent_bits - 1)) - (1 << (target.exponent_bits - 1))
    exponent = size >> kind(source.mantissa_bits)
    normal = exponent > kind(rebias)
    # A subnormal result is the significand shifted down by as much as the exponent is short. Past the last bit and
    # the half, every shift leaves zero.
    short = np.minimum(kind(rebias + 1) - np.minimum(exponent, kind(rebias + 1)), kind(target.mantissa_bits + 2))
    significand = (size & kind(source.smallest_normal - 1)) | kind(source.smallest_normal)
    base = np.where(normal, size - kind(rebias << source.mantissa_bits), significand)
    base[size == 0] = 0
    shift = kind(dropped) + short
    down = base >> shift
    inexact = (down << shift) != base
    half = kind(1) << (shift - kind(1))
    nearest = (base + (half - kind(1)) + (down & kind(1))) >> shift
    finite = size < kind(source.infinity)
    down = np.minimum(down, kind(target.infinity) - finite.astype(kind))
    inexact |= finite & (base >> shift != down)
    up = down + inexact.astype(kind)
    nearest = np.minimum(nearest, kind(target.infinity))
    sign = (bits >> kind(source.width - target.width)) & kind(target.sign)
    lost = size > kind(source.infinity)
    results = []
    for result in (down, up, nearest):
        result |= sign  # noqa: PLW2901 - in place
        result[lost] = target.quiet_nan
        results.append(result.astype(target.unsigned))
    return results[0], results[1], results[2]


def ulps_apart(one: Array, other: Array) -> Array:
    """Return, as uint64, how many steps from float to next float lie between two arrays of one dtype.

    >>> ulps_apart(np.float32([1, -0.0, 0, np.inf]), np.float32([1, 0, -1e-45, 3.4028235e38]))
    array([0, 0, 1, 1], dtype=uint64)

    ``one`` and ``other``: float16, float32, float64, or bfloat16 as ``reference.arithmetic.bfloat16`` has it. NaN lies
    past infinity.
    """
    places = []
    for floats in (one, other):
        bits = np.ascontiguousarray(floats).view(f"<i{floats.dtype.itemsize}").reshape(floats.shape).astype(np.int64)
        magnitude = (1 << (8 * floats.dtype.itemsize - 1)) - 1
        places.append(np.where(bits < 0, -(bits & magnitude), bits))
    high, low = np.maximum(*places), np.minimum(*places)
    return np.asarray(high.astype(np.uint64) - low.astype(np.uint64))  # modulo 2^64, so right across zero too
