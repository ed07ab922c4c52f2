"""bfloat16 without a numpy type: arrays of BFLOAT16, a structured dtype of one uint16 field.

Such an array keeps its shape under indexing, reshaping and saving like any other ndarray, and it
cannot be mistaken for integers. ``array["bits"]`` are the bit patterns. Rounding to bfloat16 is
nearest even from float32, as torch does on the host.

Source: docs/contract.md section 4 (bfloat16 scales and outputs).
"""

from typing import Any

import numpy as np

from reference import Array

BFLOAT16 = np.dtype([("bits", "<u2")])
FLOAT_DTYPES = ("float16", "bfloat16", "float32", "float64")


def numpy_dtype(name: str) -> np.dtype[Any]:
    """The numpy type that holds a tensor of the named dtype; BFLOAT16 for "bfloat16".

    >>> numpy_dtype("float16").itemsize, numpy_dtype("bfloat16").itemsize
    (2, 2)
    """
    return BFLOAT16 if name == "bfloat16" else np.dtype(name)


def dtype_name(array: Array) -> str:
    """The tensor dtype's name of an array: the inverse of numpy_dtype.

    >>> dtype_name(to_bfloat16(np.float32([1.0])))
    'bfloat16'
    """
    return "bfloat16" if array.dtype == BFLOAT16 else array.dtype.name


def to_bfloat16(values: Array) -> Array:
    """Round float32 [...] to BFLOAT16 [...]: nearest even, overflow to infinity, any NaN to 0x7FC0.

    >>> [f"{b:04X}" for b in to_bfloat16(np.float32([1.0, -2.5, 1.00390625, 3.4e38]))["bits"]]
    ['3F80', 'C020', '3F80', '7F80']
    """
    source = np.ascontiguousarray(values, dtype=np.float32)
    bits = source.view(np.uint32)
    half_to_even = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))
    rounded = ((bits + half_to_even) >> np.uint32(16)).astype(np.uint16)
    rounded[np.isnan(source)] = 0x7FC0
    return rounded.reshape(np.shape(values)).view(BFLOAT16)


def from_bfloat16(array: Array) -> Array:
    """Widen BFLOAT16 [...] to float32 [...], exactly.

    >>> from_bfloat16(np.array([0x3F80, 0xC020], "<u2").view(BFLOAT16)).tolist()
    [1.0, -2.5]
    """
    return (array["bits"].astype(np.uint32) << np.uint32(16)).view(np.float32)


def to_float(array: Array) -> Array:
    """A float array that numpy can compute with: BFLOAT16 widened to float32, others as they are."""
    return from_bfloat16(array) if array.dtype == BFLOAT16 else array


def cast_float(values: Array, name: str) -> Array:
    """Convert numbers [...] to the named float dtype as torch's ``.to`` does on the host.

    float16 and bfloat16 are reached through float32, so a float64 or a wide integer rounds twice.

    >>> wide = np.float64([1 + 2**-11 + 2**-40])  # above a float16 tie, but float32 rounds onto it
    >>> float(cast_float(wide, "float16")[0]), float(wide.astype(np.float16)[0])
    (1.0, 1.0009765625)
    """
    with np.errstate(over="ignore", invalid="ignore"):
        numbers = to_float(values)
        if name == "bfloat16":
            return to_bfloat16(numbers.astype(np.float32))
        if name == "float16":
            return numbers.astype(np.float32).astype(np.float16)
        return numbers.astype(np.dtype(name))
