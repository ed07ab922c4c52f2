"""torchao's symmetric int4 quantizations, bit for bit: weight-only's own, without clipping, and HQQ's scales.

>>> qdata, scale, zero_point = quantize_symmetric(np.float32([[-7.5, 3.0, 0.5, 0.0], [0, 0, 0, 0]]), 2)
>>> qdata.tolist()  # the scale is max|w| / 7.5; 0.5 is 7.5 steps of 1/15: ties go to even, then clip at 7
[[-8, 3, 7, 0], [0, 0, 0, 0]]
>>> float(scale[0, 0]), float(scale[1, 0]) == 2**-126  # a group of zeros gets the smallest normal number
(1.0, True)
>>> q, scale, _ = quantize_no_clipping(np.float32([[-8, 4, 2, 0], [7, -3, 1, 0]]), 4)
>>> scale.tolist(), q.tolist()  # max(8/8, 4/7) and max(3/8, 7/7): nothing falls outside [-8, 7]
([[1.0], [1.0]], [[-8, 4, 2, 0], [7, -3, 1, 0]])
>>> q, scale, _ = quantize_hqq(np.float32([[-12, 6, 3, 1]]), 4)
>>> q.tolist(), bool(scale[0, 0] == np.float32(127 / 85))  # 12*8 + 6*4 + 3*2 + 1*1 over 8*8 + 4*4 + 2*2 + 1*1
([[-8, 4, 2, 1]], True)

Source: docs/contract.md section 4; IntxWeightOnlyConfig(torch.int4, PerGroup(G) | PerAxis(0)) of torchao 0.18.0 with
its mapping_type and intx_choose_qparams_algorithm.
"""

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import cast_float, dtype_name, to_float

QMIN, QMAX = -8, 7
SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}
_EPSILON = np.float32(2.0**-23)  # float32's machine epsilon, HQQ's smallest scale
_ROUNDS, _SETTLED = 20, np.float32(1e-5)
#: Beyond this a float32 sum of products with codes could round, and its result would depend on the order.
_EXACT = 2**24


def quantize_symmetric(weights: Array, group_size: int = 0) -> tuple[Array, Array, Array]:
    """Quantize a float table; every step rounds to the table's own dtype, as eager torch does.

    Args:
        weights: float32, float16 or BFLOAT16 [V, D], finite. (torchao needs V >= 1; this does not.)
        group_size: G, or 0 for one scale a row (PerAxis(0)).

    Returns:
        qdata int8 [V, D] in [-8, 7]; scale [V, D/G] in the table's dtype; zero_point int8 [V, D/G], all zero.

    Raises:
        ValueError: names the argument: not a finite float table of rank 2, a group size that does not divide D or is 1
            (torchao reduces over nothing there, that is, over the whole table).
    """
    wide = _groups(weights, group_size)
    if wide.shape[2] == 1:
        raise ValueError("group_size: 1 is what torchao cannot do")
    largest = np.abs(wide).max(axis=2, initial=0.0)
    return _quantized(weights, wide, _rounded(largest / np.float32((QMAX - QMIN) / 2), weights))


def quantize_no_clipping(weights: Array, group_size: int = 0) -> tuple[Array, Array, Array]:
    """Quantize with the larger of min/-8 and max/7 as scale (SYMMETRIC_NO_CLIPPING_ERR).

    Arguments, results and errors as ``quantize_symmetric``, but for groups of 1.
    """
    wide = _groups(weights, group_size)
    low = _rounded(wide.min(axis=2).clip(max=0) / np.float32(QMIN), weights)
    high = _rounded(wide.max(axis=2).clip(min=0) / np.float32(QMAX), weights)
    return _quantized(weights, wide, np.where(low > high, low, high))


def quantize_hqq(weights: Array, group_size: int = 0) -> tuple[Array, Array, Array]:
    """Quantize with scales that alternate between rounding and least squares (HQQ_SCALE_ONLY), in float32.

    Args:
        weights: float32, float16 or BFLOAT16 [V, D] of whole numbers so small that every sum is exact: torch's
            order of summation is its own affair.
        group_size: G, or 0 for one scale a row.

    Returns:
        As ``quantize_symmetric``.

    Raises:
        ValueError: the group size does not divide the columns, or the weights are no such numbers.
    """
    wide = _groups(weights, group_size)
    if (wide != np.rint(wide)).any() or (np.abs(wide).max(initial=0) * -QMIN * wide.shape[2]) >= _EXACT:
        raise ValueError("weights: HQQ is judged on whole numbers whose sums are exact in float32")
    scale = np.maximum(np.abs(wide).max(axis=2) / np.float32(-QMIN), _EPSILON)
    before = scale
    for _ in range(_ROUNDS):
        codes = np.rint(wide / scale[:, :, None]).clip(QMIN, QMAX)
        squares = (codes * codes).sum(axis=2)
        with np.errstate(divide="ignore", invalid="ignore"):
            scale = np.where(squares > 0, (wide * codes).sum(axis=2) / squares, before)
        scale = np.abs(np.maximum(scale, _EPSILON))
        if (np.abs(scale - before) / np.maximum(before, _EPSILON)).max() < _SETTLED:
            break
        before = scale
    return _results(weights, wide / scale[:, :, None], scale)


def _groups(weights: Array, group_size: int) -> Array:
    """The table as float32 [V, D/G, G]."""
    name = dtype_name(weights)
    if name not in SMALLEST_NORMAL or weights.ndim != 2:  # noqa: PLR2004 - rank 2
        raise ValueError(f"weights: {name} {weights.shape} is not float32, float16 or bfloat16 [V, D]")
    vocab_size, embed_dim = weights.shape
    group = group_size or embed_dim
    if group < 1 or embed_dim % group:
        raise ValueError(f"group_size: {group} does not divide embed_dim {embed_dim}")
    wide = to_float(weights).astype(np.float32).reshape(vocab_size, embed_dim // group, group)
    if not np.isfinite(wide).all():
        raise ValueError("weights: infinity and NaN have no quantized value")
    return wide


def _rounded(numbers: Array, weights: Array) -> Array:
    """A float32 result rounded to the table's dtype, and widened again for the next step."""
    return to_float(cast_float(numbers, dtype_name(weights))).astype(np.float32)


def _quantized(weights: Array, wide: Array, scale: Array) -> tuple[Array, Array, Array]:
    """Quantize by the reciprocals of scales that are no subnormals."""
    scale = np.maximum(scale, np.float32(SMALLEST_NORMAL[dtype_name(weights)]))
    return _results(weights, _rounded(wide * _rounded(np.float32(1.0) / scale, weights)[:, :, None], weights), scale)


def _results(weights: Array, steps: Array, scale: Array) -> tuple[Array, Array, Array]:
    codes = np.rint(steps).clip(QMIN, QMAX).astype(np.int8).reshape(weights.shape)
    return codes, cast_float(scale, dtype_name(weights)), np.zeros(scale.shape, np.int8)
