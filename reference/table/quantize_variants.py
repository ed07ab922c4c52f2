"""torchao's other symmetric int4 quantizations: without clipping, and HQQ's scales, bit for bit.

>>> table = np.float32([[-8, 4, 2, 0], [7, -3, 1, 0]])
>>> q, scale, _ = quantize_no_clipping(table, 4)
>>> scale.tolist(), q.tolist()  # max(8/8, 4/7) and max(3/8, 7/7): nothing falls outside [-8, 7]
([[1.0], [1.0]], [[-8, 4, 2, 0], [7, -3, 1, 0]])
>>> q, scale, _ = quantize_hqq(np.float32([[-12, 6, 3, 1]]), 4)
>>> q.tolist(), bool(scale[0, 0] == np.float32(127 / 85))  # 12*8 + 6*4 + 3*2 + 1*1 over 8*8 + 4*4 + 2*2 + 1*1
([[-8, 4, 2, 1]], True)

Source: docs/contract.md section 4; IntxWeightOnlyConfig (mapping_type, intx_choose_qparams_algorithm), torchao 0.18.0.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from reference.arithmetic.bfloat16 import cast_float, dtype_name, to_float
from reference.table.quantize import QMAX, QMIN, SMALLEST_NORMAL

Array = npt.NDArray[Any]

_EPSILON = np.float32(2.0**-23)  # float32's machine epsilon, HQQ's smallest scale
_ROUNDS, _SETTLED = 20, np.float32(1e-5)
#: Beyond this a float32 sum of products with codes could round, and its result would depend on the order.
_EXACT = 2**24


def quantize_no_clipping(weights: Array, group_size: int = 0) -> tuple[Array, Array, Array]:
    """Quantize with the larger of min/-8 and max/7 as scale (SYMMETRIC_NO_CLIPPING_ERR).

    Args and returns as ``reference.table.quantize.quantize_symmetric``.

    Raises:
        ValueError: the group size does not divide the columns.
    """
    name, wide = dtype_name(weights), _groups(weights, group_size)

    def rounded(numbers: Array) -> Array:
        return to_float(cast_float(numbers, name)).astype(np.float32)

    low = rounded(wide.min(axis=2).clip(max=0) / np.float32(QMIN))
    high = rounded(wide.max(axis=2).clip(min=0) / np.float32(QMAX))
    scale = np.maximum(np.where(low > high, low, high), np.float32(SMALLEST_NORMAL[name]))
    codes = np.rint(rounded(wide * rounded(np.float32(1.0) / scale)[:, :, None])).clip(QMIN, QMAX)
    return codes.astype(np.int8).reshape(weights.shape), cast_float(scale, name), np.zeros(scale.shape, np.int8)


def quantize_hqq(weights: Array, group_size: int = 0) -> tuple[Array, Array, Array]:
    """Quantize with scales that alternate between rounding and least squares (HQQ_SCALE_ONLY), in float32.

    Args:
        weights: float32, float16 or BFLOAT16 [V, D] of whole numbers so small that every sum is exact: torch's
            order of summation is its own affair.
        group_size: G, or 0 for one scale a row.

    Returns:
        As ``reference.table.quantize.quantize_symmetric``.

    Raises:
        ValueError: the group size does not divide the columns, or the weights are no such numbers.
    """
    wide = _groups(weights, group_size)
    if (wide != np.rint(wide)).any() or (np.abs(wide).max(initial=0) * -QMIN * wide.shape[2]) >= _EXACT:
        raise ValueError("weights: HQQ is judged on whole numbers whose sums are exact in float32")
    scale = np.maximum(np.abs(wide).max(axis=2) / np.float32(-QMIN), _EPSILON)
    before = scale
    for _ in range(_ROUNDS):
        codes = _codes(wide, scale)
        squares = (codes * codes).sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(squares > 0, (wide * codes).sum(axis=2) / squares, before)
        scale = np.abs(np.maximum(scale, _EPSILON))
        if (np.abs(scale - before) / np.maximum(before, _EPSILON)).max() < _SETTLED:
            break
        before = scale
    codes = _codes(wide, scale).astype(np.int8).reshape(weights.shape)
    return codes, cast_float(scale, dtype_name(weights)), np.zeros(scale.shape, np.int8)


def _codes(wide: Array, scale: Array) -> Array:
    return np.rint(wide / scale[:, :, None]).clip(QMIN, QMAX)


def _groups(weights: Array, group_size: int) -> Array:
    vocab_size, embed_dim = weights.shape
    group = group_size or embed_dim
    if embed_dim % group:
        raise ValueError(f"group_size: {group} does not divide embed_dim {embed_dim}")
    return to_float(weights).astype(np.float32).reshape(vocab_size, embed_dim // group, group)
