"""The bound of a layer norm: any order and both formulas are inside, a wrong weight, row or epsilon is not."""

import numpy as np
import pytest

from reference.arithmetic.dot_bound import within_bound
from reference.arithmetic.norm_bound import norm_bound

K = 96


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, order: np.ndarray, *, squares: bool) -> np.ndarray:
    """In x's dtype, each sum in one order, one element after the other."""
    one = x.dtype.type

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.zeros((*values.shape[:-1], 1), x.dtype)
        for k in order:
            total = total + values[..., k : k + 1]
        return total / one(K)

    off = x - mean(x)
    variance = mean(x * x) - mean(x) * mean(x) if squares else mean(off * off)
    return off * (one(1) / np.sqrt(variance + one(1e-5))) * weight + bias


def operands(dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return tuple((draw.standard_normal(shape) + 0.5).astype(dtype) for shape in ((4, K), (K,), (K,)))


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_any_order_is_inside_and_faults_are_not(dtype: str, seed: int, *, squares: bool) -> None:
    x, weight, bias = operands(dtype, seed)
    allowed = norm_bound(x, weight, bias, nearest=True)
    order = np.random.default_rng(seed).permutation(K)
    assert within_bound(norm(x, weight, bias, order, squares=squares), *allowed).all()
    right = norm(x, weight, bias, np.arange(K), squares=False)
    assert not within_bound(right - bias, *allowed).all()
    assert not within_bound(norm(x, np.roll(weight, 1), bias, order, squares=False), *allowed).all()
    assert not within_bound(right[::-1], *allowed).all()
    if dtype == "float32":
        coarse = (right.astype(np.float16)).astype(np.float32)
        assert not within_bound(coarse, *allowed).all()
        assert not within_bound(right * np.float32(1 + 2.0**-12), *allowed).all()
        _, silent = norm_bound(x, weight, bias, nearest=False)
        assert np.allclose(silent, 2 * allowed[1])
