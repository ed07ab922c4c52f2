"""The bound that judges a dot product: the only interval that is wider than single roundings.

>>> x, weights = np.float32([[1.0, 2.0]]), np.array([[0.5, 0.25]])
>>> exact, bound = dot_bound(x, weights, nearest=True)
>>> float(exact[0, 0]), float(bound[0, 0]) > 3 * 2**-24
(1.0, True)

Source: docs/contract.md section 3.6.
"""

import math

import numpy as np

from reference import Array


def dot_bound(x: Array, weights: Array, *, nearest: bool, bias: Array | None = None) -> tuple[Array, Array]:
    """The exact value of ``x @ weights.T + bias`` and how far a float32 computation of it may be off.

    Args:
        x: float32 [..., K].
        weights: float64 [N, K], the exact products q * scale.
        nearest: whether nearest even is declared for 32 bit.
        bias: None, or float32 [N].

    Returns:
        Two float64 [..., N]: the sums, correctly rounded from exact products, and the bounds
        ``gamma_{K+1} * sum |x||w|`` (K+2, and ``|bias|`` in the sum, with a bias), rounded up so far that the
        oracle's own roundings are inside.

    Raises:
        ValueError: x is not float32, weights are not float64, the K differ, or an operand is not finite.
    """
    terms = weights.shape[-1]
    if x.dtype != np.float32 or weights.dtype != np.float64 or x.shape[-1] != terms:
        raise ValueError(
            f"x {x.dtype} {x.shape} and weights {weights.dtype} {weights.shape} are not [..., K] and [N, K]"
        )
    if not (np.isfinite(x).all() and np.isfinite(weights).all()):
        raise ValueError("x, weights: the bound holds for finite operands only")
    offsets = np.zeros(len(weights)) if bias is None else bias.astype(np.float64)
    gamma = _gamma(terms + (1 if bias is None else 2), 2.0**-24 if nearest else 2.0**-23)
    rows = x.reshape(-1, terms).astype(np.float64)
    sums = np.empty((len(rows), len(weights)))
    bounds = np.empty_like(sums)
    for i, row in enumerate(rows):
        products = row * weights  # exact: 24 + 28 bits
        for n, offset in enumerate(offsets.tolist()):
            sums[i, n] = math.fsum([*products[n].tolist(), offset])
            size = math.fsum([*np.abs(products[n]).tolist(), abs(offset)])
            bounds[i, n] = gamma * size + 2.0**-52 * size
    shape = (*x.shape[:-1], len(weights))
    return sums.reshape(shape), np.nextafter(bounds, np.inf).reshape(shape)


def within_bound(got: Array, exact: Array, bound: Array) -> Array:
    """Where float32 results lie inside the bound; bool of their shape. NaN and infinity never do.

    >>> within_bound(np.float32([1.0, np.nan]), np.array([1.0, 1.0]), np.array([0.0, 1.0])).tolist()
    [True, False]
    """
    with np.errstate(invalid="ignore"):
        return np.asarray(np.abs(got.astype(np.float64) - exact) <= bound)


def _gamma(terms: int, unit: float) -> float:
    """``n*u / (1 - n*u)``, the textbook's gamma_n, rounded up."""
    return math.nextafter(terms * unit / (1 - terms * unit), math.inf)
