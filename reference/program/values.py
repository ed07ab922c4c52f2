"""Tensor contents from a seed and a named pattern, the same on every machine and numpy version.

Only PCG64's raw bits come from numpy (their stream is guaranteed); everything after that is ours.

>>> values_array(Values("uniform", seed=7, low=-8, high=7), "int8", (2, 4)).tolist()
[[7, 2, 2, 6], [1, 4, 5, -5]]
>>> values_array(Values("ramp", low=-2, high=1), "int8", (6,)).tolist()
[-2, -1, 0, 1, -2, -1]
>>> values_array(Values("literal", data="0000803f000000c0"), "float32", (2,)).tolist()
[1.0, -2.0]
"""

from collections.abc import Callable
from typing import Any

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import BFLOAT16, FLOAT_DTYPES, cast_float, numpy_dtype
from reference.program.apply import apply_exactly
from reference.program.spec import Apply, ProgramSpec, QuantizedTable, Values, table_parts
from reference.table.quantize import quantize_symmetric

#: Bits of the exponent, of the mantissa, and the exponents that "scales" draws from, by dtype. The
#: range keeps most products inside float16, and lets some of them fall among its subnormals.
_FORMATS = {
    "float16": (5, 10, range(-14, 11)),
    "bfloat16": (8, 7, range(-20, 11)),
    "float32": (8, 23, range(-20, 11)),
    "float64": (11, 52, range(-20, 11)),
}


def tensor_values(spec: ProgramSpec) -> dict[str, Array]:
    """Every tensor of a program by name as it is before the program runs, a quantized table's three parts included.

    So is every Apply step on whole numbers: indices that the program computes.

    Raises:
        ValueError: a pattern is unknown or cannot fill the tensor; the message names the tensor.
    """
    tensors: dict[str, Array] = {}
    for tensor in spec.tensors:
        try:
            tensors[tensor.name] = values_array(tensor.values, tensor.dtype, tensor.shape)
        except ValueError as error:
            raise ValueError(f"tensor {tensor.name!r}: {error}") from error
    for table in spec.tables:
        try:
            parts = quantize_symmetric(float_table(table), table.group_size)
        except ValueError as error:
            raise ValueError(f"table {table.name!r}: {error}") from error
        tensors |= {part.name: array for part, array in zip(table_parts(table), parts, strict=True)}
    for step in spec.steps:
        if isinstance(step, Apply) and step.of in tensors and np.issubdtype(tensors[step.of].dtype, np.integer):
            tensors[step.name] = apply_exactly(step, tensors[step.of], tensors.get(step.other))
    return tensors


def float_table(table: QuantizedTable) -> Array:
    """The float table [V, D] of ``table.dtype`` before it is quantized."""
    return values_array(table.values, table.dtype, (table.vocab_size, table.embed_dim))


def values_array(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    """Fill an array of the named dtype with a pattern.

    Raises:
        ValueError: the pattern is unknown (the message lists the known ones) or does not fit dtype or shape.
    """
    if values.pattern not in PATTERNS:
        raise ValueError(f"pattern {values.pattern!r} is not one of {', '.join(sorted(PATTERNS))}")
    return PATTERNS[values.pattern](values, dtype, shape).reshape(shape)


def _raw(values: Values, words: int) -> Array:
    """64 raw random bits a word."""
    return np.asarray(np.random.PCG64(values.seed).random_raw(words), "<u8")


def _words(values: Values, count: int) -> Array:
    """32 random bits for each of ``count`` elements."""
    return _raw(values, -(-count // 2)).view("<u4")[:count]


def _count(shape: tuple[int, ...]) -> int:
    return int(np.prod(shape, dtype=np.int64))


def _integers(numbers: Array, dtype: str) -> Array:
    """Whole numbers as the named dtype; they must fit."""
    if dtype in FLOAT_DTYPES:
        return cast_float(numbers, dtype)
    limits = np.iinfo(dtype)
    if numbers.size and not limits.min <= numbers.min() <= numbers.max() <= limits.max:
        raise ValueError(f"values from {numbers.min()} to {numbers.max()} do not fit {dtype}")
    return numbers.astype(dtype)


def _span(values: Values) -> int:
    span = values.high - values.low + 1
    if not 1 <= span <= 2**32:
        raise ValueError(
            f"pattern {values.pattern!r} needs low <= high < low + 2**32, not {values.low} and {values.high}"
        )
    return span


def _uniform(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    drawn = (_words(values, _count(shape)).astype(np.uint64) * np.uint64(_span(values))) >> np.uint64(32)
    return _integers(drawn.astype(np.int64) + np.int64(values.low), dtype)


def _ramp(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    return _integers(np.arange(_count(shape)) % _span(values) + values.low, dtype)


def _pairs(_values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    """Elements 2k and 2k+1 are the k-th of the 256 pairs of 4-bit values, over and over."""
    numbers = np.arange(_count(shape), dtype=np.int64)
    pair = numbers // 2 % 256
    return _integers(np.where(numbers % 2, pair % 16, pair // 16) - 8, dtype)


def _zeros(_values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    return np.zeros(shape, numpy_dtype(dtype))


def _scalar(number: float, dtype: str) -> Array:
    """One number as the named dtype, [1]; integers must take it exactly."""
    if dtype in FLOAT_DTYPES:
        return cast_float(np.array([number], np.float64), dtype)
    if not float(number).is_integer():
        raise ValueError(f"value {number} is not a whole number, which {dtype} needs")
    return _integers(np.array([int(number)], np.int64), dtype)


def _constant(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    return np.repeat(_scalar(values.value, dtype), _count(shape))


def _one_hot(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    filled = np.repeat(_scalar(values.low, dtype), _count(shape))
    if not 0 <= values.position < filled.size:
        raise ValueError(f"position {values.position} is outside the {filled.size} elements of shape {shape}")
    filled[values.position] = _scalar(values.value, dtype)[0]
    return filled


def _from_bits(bits: Array, dtype: str) -> Array:
    """Reinterpret unsigned integers of the dtype's width."""
    return bits.view(BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype).newbyteorder("<")).astype(numpy_dtype(dtype))


def _float_format(values: Values, dtype: str) -> tuple[int, int, range, np.dtype[Any]]:
    if dtype not in _FORMATS:
        raise ValueError(f"pattern {values.pattern!r} fills {', '.join(_FORMATS)}, not {dtype}")
    exponent_bits, mantissa_bits, exponents = _FORMATS[dtype]
    return exponent_bits, mantissa_bits, exponents, np.dtype(f"<u{(1 + exponent_bits + mantissa_bits) // 8}")


def _scale_bits(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    """Positive normal numbers: neighbours differ in exponent, the mantissas are random."""
    exponent_bits, mantissa_bits, exponents, unsigned = _float_format(values, dtype)
    count = _count(shape)
    drawn = _raw(values, count)
    step, choices = np.arange(count, dtype=np.uint64), np.uint64(len(exponents))
    walk = (step * np.uint64(7) + step // choices + np.uint64(values.seed % 64)) % choices
    exponent = walk + np.uint64(exponents[0] + 2 ** (exponent_bits - 1) - 1)
    return ((exponent << np.uint64(mantissa_bits)) | (drawn >> np.uint64(64 - mantissa_bits))).astype(unsigned)


def _scales(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    return _from_bits(_scale_bits(values, dtype, shape), dtype)


def _signed_scale_bits(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    bits = _scale_bits(values, dtype, shape)
    sign = (_raw(values, _count(shape)) & np.uint64(1)).astype(bits.dtype)
    return np.asarray(bits | sign << bits.dtype.type(8 * bits.dtype.itemsize - 1))


def _signed_scales(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    return _from_bits(_signed_scale_bits(values, dtype, shape), dtype)


def special_bits(dtype: str) -> Array:
    """Bit patterns at the edges of a float format, both signs of each.

    >>> [f"{bits:04x}" for bits in special_bits("float16")[:9]]
    ['7bff', '0001', '7c00', '0000', '7e00', '03ff', '0400', '7c01', '3c00']
    """
    exponent_bits, mantissa_bits, _, unsigned = _float_format(Values("special_scales"), dtype)
    infinity = (2**exponent_bits - 1) << mantissa_bits
    magnitudes = [
        infinity - 1,  # largest finite
        1,  # smallest subnormal
        infinity,
        0,
        infinity | 1 << (mantissa_bits - 1),  # quiet NaN
        (1 << mantissa_bits) - 1,  # largest subnormal
        1 << mantissa_bits,  # smallest normal
        infinity | 1,  # signalling NaN
        (2 ** (exponent_bits - 1) - 1) << mantissa_bits,  # one
        1 << (mantissa_bits - 1),  # a subnormal power of two
    ]
    sign = 1 << (exponent_bits + mantissa_bits)
    return np.array(magnitudes + [sign | bits for bits in magnitudes], unsigned)


def _special_scales(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    """Every other element takes the next special; the seed chooses where they start."""
    bits = _signed_scale_bits(values, dtype, shape)
    specials = special_bits(dtype)
    places = np.arange(values.seed % 2, bits.size, 2)
    bits[places] = specials[(places // 2 + values.seed) % specials.size]
    return _from_bits(bits, dtype)


def _bits(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    width = numpy_dtype(dtype).itemsize
    count = _count(shape)
    return _from_bits(_raw(values, -(-count * width // 8)).view(f"<u{width}")[:count], dtype)


def _powers_of_two(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    drawn = _words(values, _count(shape)).astype(np.int64)
    if dtype in _FORMATS:
        exponents = _FORMATS[dtype][2]
        return cast_float(np.ldexp(1.0, (drawn % len(exponents) + exponents[0]).astype(np.int32)), dtype)
    width = np.iinfo(dtype).bits - (np.iinfo(dtype).min < 0)
    return _integers(np.int64(1) << drawn % width, dtype)


def _weights(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    """The sum of four uniform numbers, centred, times a magnitude that is the row's own."""
    _float_format(values, dtype)
    columns = max(1, shape[-1] if shape else 1)
    words = _raw(values, _count(shape)).view("<u2").reshape(-1, columns, 4)
    bell = np.full(words.shape[:2], -2 * 0xFFFF, np.int32)
    for quarter in range(4):
        bell += words[:, :, quarter]
    row = np.arange(len(bell))
    magnitude = np.ldexp(1.0 + (row * 5 % 32) / 32.0, (-17 - row % 8).astype(np.int32))
    return cast_float(bell * magnitude[:, None], dtype)


def _literal(values: Values, dtype: str, shape: tuple[int, ...]) -> Array:
    width = numpy_dtype(dtype).itemsize
    try:
        data = bytes.fromhex(values.data)
    except ValueError as error:
        raise ValueError(f"literal data is not hex: {error}") from error
    if len(data) != width * _count(shape):
        raise ValueError(f"literal data has {len(data)} bytes; shape {shape} of {dtype} needs {width * _count(shape)}")
    return _from_bits(np.frombuffer(data, f"<u{width}"), dtype)


def _quantized(_values: Values, _dtype: str, _shape: tuple[int, ...]) -> Array:
    raise ValueError("pattern 'quantized' marks a part of a quantized table: take it from tensor_values")


#: Every named pattern: what it fills, and how.
PATTERNS: dict[str, Callable[[Values, str, tuple[int, ...]], Array]] = {
    "uniform": _uniform,  # whole numbers in [low, high]
    "pairs": _pairs,  # every pair of neighbouring 4-bit values, one after the other
    "zeros": _zeros,
    "constant": _constant,  # value everywhere
    "one_hot": _one_hot,  # low everywhere but value at the flat position
    "ramp": _ramp,  # i mod (high - low + 1) + low
    "scales": _scales,  # positive normal floats, neighbours of different exponents
    "signed_scales": _signed_scales,
    "special_scales": _special_scales,  # signed_scales with special_bits at every other place
    "bits": _bits,  # raw random bits of the dtype's width
    "powers_of_two": _powers_of_two,
    "weights": _weights,  # bell-shaped, each row with a magnitude of its own
    "literal": _literal,  # data, as hex
    "quantized": _quantized,
}
