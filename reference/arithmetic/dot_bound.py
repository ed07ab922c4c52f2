"""The bound that judges a dot product: the only interval that is wider than single roundings.

>>> x, weights = np.float32([[1.0, 2.0]]), np.array([[0.5, 0.25]])
>>> exact, bound = dot_bound(x, weights, nearest=True)
>>> float(exact[0, 0]), float(bound[0, 0]) > 3 * 2**-24
(1.0, True)

Source: docs/contract.md section 3.6.
"""

import math
from collections.abc import Callable

import numpy as np

from reference import Array

#: By dtype: the unit roundoff of nearest even, the smallest subnormal number and the smallest normal one.
_FORMATS = {"float32": (2.0**-24, 2.0**-149, 2.0**-126), "float16": (2.0**-11, 2.0**-24, 2.0**-14)}
#: Weights' rows whose terms are added up at a time.
_BLOCK = 4096


@np.errstate(invalid="ignore", over="ignore")  # signalling NaNs are widened, too
def dot_bound(
    x: Array,
    weights: Array,
    *,
    nearest: bool,
    preserve: bool = True,
    bias: Array | None = None,
    roundings: int = 1,
) -> tuple[Array, Array]:
    """The exact value of ``x @ weights.T + bias`` and how far a computation of it in x's dtype may be off.

    Every order of K products and K-1 additions, each rounded once by a factor 1 + d with |d| <= u, on weights that
    took ``roundings`` themselves, yields ``sum x_k w_k (1 + t_k)`` with |t_k| <= gamma_n, n = K + roundings (one more
    with a bias): Higham, Accuracy and Stability of Numerical Algorithms, section 3.1. A product or a weight that
    is subnormal is off by less than the spacing eta there instead, or is lost; an addition is exact there.

    Args:
        x: float32 or float16 [..., K], the dtype that everything is rounded to.
        weights: float64 [N, K], the exact weights with a relative error of at most 2**-52 each.
        nearest: whether nearest even is declared for x's width; either neighbour is allowed otherwise: u doubles.
        preserve: whether subnormals are; otherwise eta is the smallest normal number.
        bias: None, or of x's dtype [N].
        roundings: that a weight takes before it is multiplied.

    Returns:
        Two float64 [..., N]: the sums, correctly rounded from the products, and the bounds
        ``gamma_n * sum |x||w| + 2 * eta * (K + sum |x|)`` (``|bias|`` in the first sum, with a bias), rounded up so far
        that the oracle's own roundings are inside. Infinite where n*u >= 1. NaN both where an operand of the row
        is not finite: nothing is promised there.

    Raises:
        ValueError: x is of another dtype, weights are not float64, or the K differ.
    """
    terms = weights.shape[-1]
    if x.dtype.name not in _FORMATS or weights.dtype != np.float64 or x.shape[-1] != terms:
        raise ValueError(
            f"x {x.dtype} {x.shape} and weights {weights.dtype} {weights.shape} are not [..., K] and [N, K]"
        )
    offsets = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    unit, subnormal, normal = _FORMATS[x.dtype.name]
    eta = 2 * (subnormal if preserve else normal)
    gamma = _gamma(terms + roundings + (bias is not None), unit if nearest else 2 * unit)
    rows = x.reshape(-1, terms).astype(np.float64)
    sums = np.full((len(rows), len(weights)), np.nan)
    bounds = np.full_like(sums, np.nan)
    for i, row in enumerate(rows):
        products = row * weights  # each off by at most 2**-53 of itself, besides the weight's own 2**-52
        tiny = eta * (terms + math.fsum(np.abs(row).tolist()))
        for n, offset in enumerate(offsets.tolist()):
            if not (np.isfinite(row).all() and math.isfinite(2 * np.abs(products[n]).sum()) and math.isfinite(offset)):
                continue
            sums[i, n] = math.fsum([*products[n].tolist(), offset])
            size = math.fsum([*np.abs(products[n]).tolist(), abs(offset)])
            bounds[i, n] = gamma * size + 2.0**-50 * size + tiny if size else tiny
    shape = (*x.shape[:-1], len(weights))
    return sums.reshape(shape), np.nextafter(bounds, np.inf).reshape(shape)


@np.errstate(invalid="ignore", over="ignore")
def overflow_reach(x: Array, weights: Array, bias: Array | None = None, roundings: int = 1) -> tuple[Array, ...]:
    """How far up, and how far down, a partial sum of ``x @ weights.T + bias`` may go before it is rounded.

    Args:
        x: as of ``dot_bound``, and so the others.
        weights: [N, K].
        bias: None or [N].
        roundings: that a weight takes.

    Returns:
        Two float64 [..., N], the sums of the positive terms and of the negative ones without their sign, infinite where
        a weight may overflow x's dtype before it is multiplied; and where that is by zero, bool [..., N].

    >>> up, down, lost = overflow_reach(np.float32([[1, 0]]), np.array([[2.0, 1e39], [-1e39, 1.0]]))
    >>> up.tolist(), down.tolist(), lost.tolist()
    ([[2.0, 0.0]], [[0.0, inf]], [[True, False]])
    """
    unit = _FORMATS[x.dtype.name][0]
    rows = x.reshape(-1, x.shape[-1]).astype(np.float64)
    offsets = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    up, down = (np.empty((len(rows), len(weights))) for _ in range(2))
    lost = np.zeros(up.shape, np.bool_)
    for start in range(0, len(weights), _BLOCK):
        block = slice(start, start + _BLOCK)
        wide = np.abs(weights[block]) * (1 + 2 * unit * (roundings - 1)) > float(np.finfo(x.dtype).max)
        factors = np.where(wide, np.copysign(np.inf, weights[block]), weights[block])
        for i, row in enumerate(rows):
            terms = row * factors
            up[i, block] = np.fmax(terms, 0).sum(-1) + np.maximum(offsets[block], 0)
            down[i, block] = np.fmax(-terms, 0).sum(-1) + np.maximum(-offsets[block], 0)
            lost[i, block] = np.isnan(terms).any(-1)
    shape = (*x.shape[:-1], len(weights))
    return up.reshape(shape), down.reshape(shape), lost.reshape(shape)


@np.errstate(invalid="ignore", over="ignore")
def within_bound(got: Array, exact: Array, bound: Array, reach: Callable[[], tuple[Array, ...]] | None = None) -> Array:
    """Where results lie inside the bound; bool of their shape.

    An infinity does where a finite sum so near may overflow ``got``'s dtype, or by ``reach()`` (``overflow_reach``) a
    partial sum may; NaN where partial sums may both ways. Everything does where nothing is promised.

    >>> got, exact = np.float32([1.0, np.nan, 7.0]), np.array([1.0, 1.0, np.nan])
    >>> within_bound(got, exact, np.array([0.0, 1.0, np.nan])).tolist()
    [True, False, True]
    """
    most = float(np.finfo(got.dtype).max)
    right = np.abs(got.astype(np.float64) - exact) <= bound
    right |= np.isinf(got) & (np.abs(exact) + bound > most) & ((got > 0) == (exact > 0))
    if reach is not None and not np.isfinite(got).all():
        up, down, lost = reach()
        share = bound / np.maximum(up + down, np.finfo(np.float64).tiny)  # gamma, of all terms
        above, below = up * (1 + share) > most, down * (1 + share) > most
        right |= (np.isposinf(got) & above) | (np.isneginf(got) & below) | (np.isnan(got) & (lost | above & below))
    return np.asarray(right | np.isnan(exact) | np.isinf(bound))


def _gamma(terms: int, unit: float) -> float:
    """``n*u / (1 - n*u)``, the textbook's gamma_n, rounded up; infinite where it says nothing."""
    return math.nextafter(terms * unit / (1 - terms * unit), math.inf) if terms * unit < 1 else math.inf
