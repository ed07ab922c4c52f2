"""torchao's symmetric weight-only int4 arithmetic, bit for bit.

>>> qdata, scale, zero_point = quantize_symmetric(np.float32([[-7.5, 3.0, 0.5, 0.0], [0, 0, 0, 0]]), 2)
>>> qdata.tolist()  # the scale is max|w| / 7.5; 0.5 is 7.5 steps of 1/15: ties go to even, then clip at 7
[[-8, 3, 7, 0], [0, 0, 0, 0]]
>>> float(scale[0, 0]), float(scale[1, 0]) == 2**-126  # a group of zeros gets the smallest normal number
(1.0, True)

Source: docs/contract.md section 4; IntxWeightOnlyConfig(torch.int4, PerGroup(G) | PerAxis(0)) in torchao 0.18.0.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from reference.arithmetic.bfloat16 import cast_float, dtype_name, to_float

Array = npt.NDArray[Any]

QMIN, QMAX = -8, 7
SMALLEST_NORMAL = {"float16": 2.0**-14, "bfloat16": 2.0**-126, "float32": 2.0**-126}


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
    name = dtype_name(weights)
    if name not in SMALLEST_NORMAL or weights.ndim != 2:  # noqa: PLR2004 - rank 2
        raise ValueError(f"weights: {name} {weights.shape} is not float32, float16 or bfloat16 [V, D]")
    vocab_size, embed_dim = weights.shape
    group = group_size or embed_dim
    if group < 2 or embed_dim % group:  # noqa: PLR2004 - 1 is what torchao cannot do
        raise ValueError(f"group_size: {group} is 1 or does not divide embed_dim {embed_dim}")
    table = to_float(weights).reshape(vocab_size, embed_dim // group, group)
    if not np.isfinite(table).all():
        raise ValueError("weights: infinity and NaN have no quantized value")

    def rounded(numbers: Array) -> Array:
        """Round a float32 result to the table's dtype, and widen it again for the next step."""
        return to_float(cast_float(numbers, name)).astype(np.float32)

    wide = table.astype(np.float32)
    largest = np.abs(wide).max(axis=2, initial=0.0)
    scale = np.maximum(rounded(largest / np.float32((QMAX - QMIN) / 2)), np.float32(SMALLEST_NORMAL[name]))
    steps = rounded(wide * rounded(np.float32(1.0) / scale)[:, :, None])
    qdata = np.clip(np.rint(steps), QMIN, QMAX).astype(np.int8)
    return qdata.reshape(vocab_size, embed_dim), cast_float(scale, name), np.zeros(scale.shape, np.int8)
