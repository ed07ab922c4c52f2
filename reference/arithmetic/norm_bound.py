"""The bound that judges a layer norm in a delegate: any order of its sums, any formula of the mean of squares.

>>> exact, bound = norm_bound(np.float32([[1.0, 3.0]]), np.float32([1, 2]), np.float32([0, 1]), nearest=True)
>>> exact.round(4).tolist(), bool((bound < 1e-5).all())
([[-1.0, 3.0]], True)

Source: docs/contract.md section 5.7.
"""

import numpy as np

from reference import Array

_UNITS = {"float32": 2.0**-24, "float16": 2.0**-11}
#: Added to the variance: torch's default.
EPSILON = 1e-5
#: Units that one over a square root may be off: Vulkan's precision of inversesqrt, and of sqrt and a division.
_ROOT = 8


@np.errstate(invalid="ignore", over="ignore")  # signalling NaNs are widened, too
def norm_bound(x: Array, weight: Array, bias: Array, *, nearest: bool) -> tuple[Array, Array]:
    """The exact layer norm of every row, and how far a computation of it in x's dtype may be off.

    With u the unit roundoff, K columns, m the mean and s^2 the variance plus epsilon, to first order and then doubled:
    a mean is off by (K + 1) u mean|x|; so is what it is taken from, and by u |x - m| more. The variance is off by
    2 mean|x - m| times that, and by (K + 3) u of itself; or, where it is computed as the mean of squares less the
    square of the mean, by (2 K + 4) u mean(x^2). One over the root is off by half of the variance's relative error and
    by 8 u. Three more roundings give the result.

    Args:
        x: float32 or float16 [..., K].
        weight: of x's dtype [K].
        bias: of x's dtype [K].
        nearest: whether nearest even is declared for x's width; u doubles otherwise.

    Returns:
        Two float64 [..., K]: the norm, and its bound; not a number in rows that are not finite, infinite where
        something may overflow, or the variance may be off by half of itself.
    """
    unit = _UNITS[x.dtype.name] * (1 if nearest else 2)
    columns = x.shape[-1]
    wide, by = x.astype(np.float64), weight.astype(np.float64)
    mean = wide.mean(-1, keepdims=True)
    off = wide - mean
    variance = (off**2).mean(-1, keepdims=True)
    root = 1 / np.sqrt(variance + EPSILON)
    mean_off = (columns + 1) * unit * np.abs(wide).mean(-1, keepdims=True)
    centred = 2 * mean_off * np.abs(off).mean(-1, keepdims=True) + (columns + 3) * unit * variance
    squares = (2 * columns + 4) * unit * (wide**2).mean(-1, keepdims=True)
    relative = np.maximum(centred, squares) / (variance + EPSILON) / 2 + _ROOT * unit
    scaled = np.abs(by) * root * (mean_off + unit * np.abs(off) + relative * np.abs(off))
    exact = off * root * by + bias
    bound = 2 * (scaled + 3 * unit * (np.abs(off * root * by) + np.abs(bias.astype(np.float64))))
    most = float(np.finfo(x.dtype).max)
    lost = (wide**2).sum(-1, keepdims=True) * (1 + 2 * columns * unit) > most
    lost |= np.maximum(centred, squares) > (variance + EPSILON) / 2
    return exact, np.where(lost | (2 * np.abs(off * root * by) > most), np.inf, bound)
