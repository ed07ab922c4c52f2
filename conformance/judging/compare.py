"""Comparing arrays by bits and accept sets. Only this module knows how results are compared.

There is no tolerance: an element is right when its bits are in the set that the arithmetic allows
(contract 3), and the first one that is not is reported with its index and both bit patterns.

Source: docs/contract.md section 3; docs/adr/0002.
"""

from dataclasses import replace
from typing import Any

import numpy as np

from conformance.harness.observation import Declared
from conformance.results.mismatch import ArrayMismatch, DtypeShapeMismatch, LayoutMismatch
from conformance.results.picture import draw
from reference.arithmetic.accept import AcceptSet, FloatModes
from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name
from reference.table.layouts import unpack_blocks, unpack_flat, unpack_linear_weight

Array = np.ndarray[Any, Any]


def dtype_shape(name: str, got: Array, dtype: str, shape: tuple[int, ...]) -> DtypeShapeMismatch | None:
    """Return the mismatch of type or shape, if there is one."""
    if dtype_name(got) != dtype:
        return DtypeShapeMismatch(name, f"{dtype}{list(shape)}", f"{dtype_name(got)}{list(got.shape)}", "dtype")
    if got.shape != shape:
        return DtypeShapeMismatch(name, f"{dtype}{list(shape)}", f"{dtype_name(got)}{list(got.shape)}", "shape")
    return None


def same_bits(name: str, got: Array, expected: Array, group_size: int = 0) -> ArrayMismatch | DtypeShapeMismatch | None:
    """Compare bit for bit; NaN matches any NaN (contract 3.5, host). ``group_size`` is for the picture."""
    if wrong := dtype_shape(name, got, dtype_name(expected), expected.shape):
        return replace(wrong, got=f"{wrong.got}, its packed bytes") if _packs(got, expected) else wrong
    bits, right_bits = _bits(got), _bits(expected)
    right = (bits == right_bits) | (_is_nan(got) & _is_nan(expected))
    if right.all():
        return None
    index = _first(~right)
    signed = got.dtype.kind in "fV"
    reason = "sign_of_zero" if signed and _only_zero_signs(bits, right_bits, right) else "values"
    allowed = (_show(expected, index),)
    picture = draw(got, expected, group_size, ~right)
    return ArrayMismatch(name, index, _show(got, index), allowed, int((~right).sum()), right.size, reason, picture)


def accepted(name: str, got: Array, accept: AcceptSet, group_size: int = 0) -> ArrayMismatch | None:
    """Compare with the accept set of every element; ``got`` has the set's dtype and shape."""
    right = accept.contains(got)
    if bool(right.all()):
        return None
    index = _first(~right)
    allowed = tuple(_show(np.array([p], _bits(got).dtype).view(got.dtype), (0,)) for p in accept.allowed(index))
    if accept.any_nan[index]:
        allowed = ("any NaN",)
    picture = draw(got, accept.candidates[0].view(got.dtype), group_size, ~right)
    return ArrayMismatch(name, index, _show(got, index), allowed, int((~right).sum()), right.size, "values", picture)


def same_codes(
    name: str, got: Array, expected: Array, values: Array, layout: str
) -> LayoutMismatch | DtypeShapeMismatch | None:
    """Compare packed tables byte for byte, and recognise what a wrong one did to the codes of ``values``."""
    if wrong := dtype_shape(name, got, dtype_name(expected), expected.shape):
        return wrong
    right = got == expected
    if right.all():
        return None
    index = _first(~right)
    reason, read_from = _recognise(got, expected, values, layout)
    picture = draw(_codes(got, layout), _codes(expected, layout))
    return LayoutMismatch(
        name,
        index,
        _hex(got[index]),
        _hex(expected[index]),
        int((~right).sum()),
        right.size,
        reason,
        read_from,
        picture,
    )


def _codes(packed: Array, layout: str) -> Array:
    """The table that packed bytes or blocks hold, the rows that fill up the last block included."""
    if layout == "blocks":
        return unpack_blocks(packed, 8 * packed.shape[0])
    return (unpack_flat if layout == "flat" else unpack_linear_weight)(packed)


def float_modes(declared: Declared) -> FloatModes:
    """Return the modes of contract 3.4 that are declared."""
    names = {
        "rte": "RoundingModeRTE",
        "rtz": "RoundingModeRTZ",
        "denorm_preserve": "DenormPreserve",
        "denorm_flush": "DenormFlushToZero",
        "signed_zero_inf_nan_preserve": "SignedZeroInfNanPreserve",
    }
    modes = {
        f"{field}{width}": f"{mode} {width}" in (declared.execution_modes or ())
        for field, mode in names.items()
        for width in (16, 32)
    }
    return FloatModes(**modes, precise=bool(declared.precise), image_output16=declared.io_storage == "texture3d")


def _recognise(got: Array, expected: Array, values: Array, layout: str) -> tuple[str, str]:
    """Name the mistake if it is a well-known one; the caller has found that bytes differ."""
    if layout == "blocks":
        rows = values.shape[0]
        try:
            decoded = unpack_blocks(got, rows)
        except ValueError:
            return "codes", ""
        wrong_rows = np.flatnonzero((decoded != values).any(axis=1))
        if not len(wrong_rows):
            return "padding", "only the rows past the table differ"
        row = int(wrong_rows[0])
        sources = np.flatnonzero((values == decoded[row]).all(axis=1))
        return ("row_order", f"row {row} holds row {int(sources[0])}") if len(sources) else ("codes", "")
    swapped = (expected >> 4) | (expected << 4)
    if np.array_equal(got, swapped):
        return "nibble_order", "the two nibbles of each byte are swapped"
    if np.array_equal(got, expected ^ 0x88):
        return "offset", "nibbles hold two's complement values instead of value + 8"
    return "codes", ""


def _packs(got: Array, values: Array) -> bool:
    """Whether these are the packed bytes of a table: what a rewriting left under another reader of it."""
    return (got.dtype, values.dtype, got.ndim) == (np.uint8, np.int8, 2) and any(
        np.array_equal(unpack(got), values) for unpack in (unpack_flat, unpack_linear_weight)
    )


def _bits(array: Array) -> Array:
    flat = np.ascontiguousarray(array)
    if flat.dtype.kind in "fV":
        return flat.view(f"<u{flat.dtype.itemsize}").reshape(array.shape)
    return flat


def _is_nan(array: Array) -> Array:
    if array.dtype.kind == "f":
        return np.isnan(array)
    if array.dtype == BFLOAT16:  # bfloat16: all exponent bits and some mantissa bit
        return (_bits(array) & 0x7FFF) > 0x7F80  # noqa: PLR2004 - bfloat16's infinity
    return np.zeros(array.shape, bool)


def _only_zero_signs(bits: Array, right_bits: Array, right: Array) -> bool:
    """Whether what is wrong of floats, given as bits, are zeros of the other sign."""
    magnitude = np.array(2 ** (8 * bits.dtype.itemsize - 1) - 1, bits.dtype)
    return bool((((bits & magnitude) == 0) & ((right_bits & magnitude) == 0))[~right].all())


def _first(wrong: Array) -> tuple[int, ...]:
    return tuple(int(i) for i in np.unravel_index(int(np.argmax(wrong)), wrong.shape))


def _show(array: Array, index: tuple[int, ...]) -> str:
    """Value and bits of one element."""
    bits = _bits(array)[index]
    if array.dtype.kind == "f":
        return f"{array[index]!s} ({_hex(bits)})"
    if array.dtype == BFLOAT16:
        value = (np.array(bits, np.uint32) << np.uint32(16)).view(np.float32)
        return f"{value!s} ({_hex(bits)})"
    return str(array[index])


def _hex(value: Any) -> str:
    width = 2 * value.dtype.itemsize
    return f"0x{int(value) & (16**width - 1):0{width}x}"
