"""torchao.dequantize_affine's arithmetic, bit for bit, for any block size and dtype.

>>> values = np.array([[-8, 7, 0, -1]], np.int8)
>>> dequantize_affine(values, (1, 2), np.array([[0.5, 2.0]], np.float32), None, "float32").tolist()
[[-4.0, 3.5, 0.0, -2.0]]

Source: docs/contract.md section 4: ``(q - zp).to(output_dtype) * scale``, promoted, then cast.
"""

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import FLOAT_DTYPES, cast_float, dtype_name, to_float


def dequantize_affine(
    values: Array, block_size: tuple[int, ...], scales: Array, zero_point: Array | None, output_dtype: str
) -> Array:
    """Dequantize block by block in the order in which eager torchao rounds.

    The value and the zero point are each converted to ``output_dtype`` and subtracted there; the product is rounded in
    the type that it promotes to with the scale; the result is converted to ``output_dtype``.

    Args:
        values: integers of any dtype, [V, D] or any shape.
        block_size: as many numbers as ``values`` has dimensions; (1, G) for groups.
        scales: any dtype and shape with one element a block.
        zero_point: None, or any dtype and shape with one element a block.
        output_dtype: "float32", "float16" or "bfloat16".

    Returns:
        ``values.shape`` of ``output_dtype`` (BFLOAT16 for "bfloat16").

    Raises:
        ValueError: names the argument whose shape does not fit the blocks, or an unknown output dtype.
    """
    if output_dtype not in {"float32", "float16", "bfloat16"}:
        raise ValueError(f"output_dtype: {output_dtype!r} is not float32, float16 or bfloat16")
    split, one_per_block = _blocks(values.shape, block_size)
    shifted = cast_float(values.reshape(split), output_dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        if zero_point is not None:
            zero = cast_float(_one_a_block("zero_point", zero_point, one_per_block), output_dtype)
            shifted = cast_float(to_float(shifted) - to_float(zero), output_dtype)
        scale = _one_a_block("scales", scales, one_per_block)
        promoted = _promote(output_dtype, dtype_name(scale))
        product = cast_float(_multiply(cast_float(shifted, promoted), _factor(scale, promoted)), promoted)
    return cast_float(product, output_dtype).reshape(values.shape)


@np.errstate(over="ignore", invalid="ignore")  # signalling NaNs are widened, too
def exact_weights(
    values: Array, block_size: tuple[int, ...], scales: Array, zero_point: Array | None, output_dtype: str
) -> tuple[Array, int]:
    """The real numbers that dequantizing stands for, ``(q - zp) * scale``, and how many roundings make them.

    The value and the zero point are those of ``output_dtype``, as for ``dequantize_affine``, whose arguments and errors
    these are. float64 rounds the difference and the product once each, by at most 2**-53 of themselves.

    >>> values, scales, zeros = np.array([[-8, 7]], np.int8), np.array([[0.5]], np.float32), np.array([[3]], np.int8)
    >>> exact_weights(values, (1, 2), scales, zeros, "float32")
    (array([[-5.5,  2. ]]), 1)

    Returns:
        float64 of ``values.shape``; 1, or 2 where some difference is no number of ``output_dtype``.
    """
    split, one_per_block = _blocks(values.shape, block_size)
    shifted, roundings = to_float(cast_float(values.reshape(split), output_dtype)).astype(np.float64), 1
    scale = to_float(_one_a_block("scales", scales, one_per_block)).astype(np.float64)
    if zero_point is not None:
        zero = to_float(cast_float(_one_a_block("zero_point", zero_point, one_per_block), output_dtype))
        shifted = shifted - zero.astype(np.float64)
        rounded = to_float(cast_float(shifted, output_dtype)).astype(np.float64)
        roundings += not np.array_equal(rounded, shifted, equal_nan=True)
    return (shifted * scale).reshape(values.shape), roundings


def _factor(scale: Array, promoted: str) -> Array:
    """The scale as torch multiplies by it: a single one keeps its float32 value where the tensor has 16 bits."""
    return scale.astype(np.float32) if scale.size == 1 and scale.dtype.kind in "iu" else cast_float(scale, promoted)


def _multiply(left: Array, right: Array) -> Array:
    """The product before its one rounding to the promoted type: in float32, or wider."""
    wide = np.float64 if np.float64 in (left.dtype, right.dtype) else np.float32
    return np.asarray(to_float(left).astype(wide) * to_float(right).astype(wide))


def _promote(output_dtype: str, scale_dtype: str) -> str:
    """The type that torch gives ``output_dtype`` tensor times ``scale_dtype`` tensor, neither of them a scalar."""
    if scale_dtype not in FLOAT_DTYPES or scale_dtype == output_dtype:
        return output_dtype
    return "float64" if scale_dtype == "float64" else "float32"


def _blocks(shape: tuple[int, ...], block_size: tuple[int, ...]) -> tuple[list[int], list[int]]:
    """The shape with every blocked dimension split in two, and the same with the block's part 1."""
    if len(block_size) != len(shape):
        raise ValueError(f"block_size: {block_size} does not have the {len(shape)} dimensions of values")
    split: list[int] = []
    one_per_block: list[int] = []
    for size, block in zip(shape, block_size, strict=True):
        if block not in (1, size) and block > 1:
            if size % block:
                raise ValueError(f"block_size: {block} does not divide the dimension of size {size}")
            split += [size // block, block]
            one_per_block += [size // block, 1]
        else:  # one element a block, or the whole dimension (torchao takes 0 for that as well)
            split.append(size)
            one_per_block.append(size if block == 1 else 1)
    return split, one_per_block


def _one_a_block(name: str, array: Array, one_per_block: list[int]) -> Array:
    expected = int(np.prod(one_per_block))
    if array.size != expected:
        raise ValueError(
            f"{name}: {array.size} elements in shape {array.shape} are not one for each of {expected} blocks"
        )
    return array.reshape(one_per_block)
