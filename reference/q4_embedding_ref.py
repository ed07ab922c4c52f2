"""The whole operator: et_vk.embedding_q4gsw on the host, bit for bit.

>>> weight = np.array([[0x0F, 0x87], [0x99, 0x99]], np.uint8)  # rows [-8, 7, 0, -1] and [1, 1, 1, 1]
>>> scales = np.array([[0.5, 2.0], [0.25, 3.0]], np.float32)  # two groups of two columns
>>> embedding_q4gsw(weight, scales, 2, np.array([1, 0])).tolist()
[[0.25, 0.25, 3.0, 3.0], [-4.0, 3.5, 0.0, -2.0]]

Source: docs/contract.md sections 2 and 3.
"""

import numpy as np

from reference import Array
from reference.table.layouts import unpack_flat, unpack_linear_weight

OUTPUT_DTYPES = ("float32", "float16")


def embedding_q4gsw(
    weight: Array,
    weight_scales: Array,
    group_size: int,
    indices: Array,
    is_linear_weight: bool = False,
    output_dtype: str = "float32",
) -> Array:
    """Look up and dequantize rows: ``out[*i, d] = q[indices[*i], d] * weight_scales[indices[*i], d // G]``.

    Args:
        weight: uint8 [V, D/2], flat, or linear-weight where ``is_linear_weight``.
        weight_scales: float16 or float32 [V, D/G].
        group_size: G, columns that share a scale.
        indices: int32 or int64 of any shape, each in [0, V).
        is_linear_weight: which nibble of a byte comes first.
        output_dtype: "float32", or "float16": rounded to float32 first, then to float16 (contract 3.3).

    Returns:
        ``indices.shape + [D]`` of ``output_dtype``, every rounding to nearest even.

    Raises:
        IndexError: an index is outside [0, V).
        ValueError: another argument is not as above.
    """
    if output_dtype not in OUTPUT_DTYPES:
        raise ValueError(f"output_dtype: {output_dtype!r} is not one of {', '.join(OUTPUT_DTYPES)}")
    products = embedding_products(weight, weight_scales, group_size, indices, is_linear_weight)
    with np.errstate(over="ignore"):  # past the largest finite number the result is infinity
        return products.astype(np.float32).astype(output_dtype, copy=False)


def embedding_products(
    weight: Array, weight_scales: Array, group_size: int, indices: Array, is_linear_weight: bool = False
) -> Array:
    """The exact real products, float64 ``indices.shape + [D]``; arguments and errors as embedding_q4gsw."""
    values, scales = embedding_operands(weight, weight_scales, group_size, indices, is_linear_weight)
    with np.errstate(invalid="ignore"):  # infinity times zero is NaN
        return values.astype(np.float64) * scales.astype(np.float64)


def embedding_operands(
    weight: Array, weight_scales: Array, group_size: int, indices: Array, is_linear_weight: bool = False
) -> tuple[Array, Array]:
    """What each output element multiplies: values int8 and scales, both ``indices.shape + [D]``.

    Arguments and errors as embedding_q4gsw. These are what ``accept.accept_products`` takes.
    """
    _check_table(weight, weight_scales, group_size)
    check_indices(indices, weight.shape[0])
    rows = weight[indices.reshape(-1)]
    values = unpack_linear_weight(rows) if is_linear_weight else unpack_flat(rows)
    scales = np.repeat(weight_scales[indices.reshape(-1)], group_size, axis=1)
    shape = (*indices.shape, 2 * weight.shape[1])
    return values.reshape(shape), scales.reshape(shape)


def check_indices(indices: Array, vocab_size: int) -> None:
    """Check that indices are int32 or int64 and inside [0, V).

    >>> check_indices(np.array([0, 9]), 9)
    Traceback (most recent call last):
    IndexError: indices: 9 at (1,) is outside [0, 9)

    Raises:
        ValueError: another dtype.
        IndexError: names the first bad index, its position and the bound.
    """
    if indices.dtype not in (np.int32, np.int64):
        raise ValueError(f"indices: dtype {indices.dtype} is not int32 or int64")
    wrong = (indices < 0) | (indices >= vocab_size)
    if wrong.any():
        position = tuple(int(i) for i in np.argwhere(wrong)[0])
        raise IndexError(f"indices: {int(indices[position])} at {position} is outside [0, {vocab_size})")


def _check_table(weight: Array, weight_scales: Array, group_size: int) -> None:
    if weight.dtype != np.uint8 or weight.ndim != 2:  # noqa: PLR2004 - rank 2
        raise ValueError(f"weight: {weight.dtype} {weight.shape} is not uint8 [V, D/2]")
    vocab_size, embed_dim = weight.shape[0], 2 * weight.shape[1]
    if group_size < 1 or embed_dim % group_size:
        raise ValueError(f"group_size: {group_size} does not divide embed_dim {embed_dim}")
    if weight_scales.dtype not in (np.float16, np.float32):
        raise ValueError(f"weight_scales: dtype {weight_scales.dtype} is not float16 or float32")
    expected = (vocab_size, embed_dim // group_size)
    if weight_scales.shape != expected:
        raise ValueError(f"weight_scales: shape {weight_scales.shape} is not {expected}")
