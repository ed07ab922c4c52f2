"""The dot product's bound: any order of float32 additions is inside, a wrong weight is not."""

import numpy as np
import pytest

from reference.arithmetic.dot_bound import dot_bound, within_bound
from reference.program.spec import Values
from reference.program.values import values_array

TERMS, ROWS = 96, 8


def operands(seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return x, float32 [2, 3, K], and values, int8 [N, K]."""
    x = values_array(Values("weights", seed), "float32", (2, 3, TERMS))
    return x, values_array(Values("uniform", seed, -8, 7), "int8", (ROWS, TERMS))


def test_exact_sums_of_whole_numbers_and_the_bound_by_hand() -> None:
    x, weights = np.float32([[3, -5]]), np.array([[7.0, 11.0], [0.0, 1.0]])
    for nearest, unit in ((True, 2.0**-24), (False, 2.0**-23)):
        exact, bound = dot_bound(x, weights, nearest=nearest)
        assert exact.tolist() == [[-34.0, -5.0]]
        gamma = 3 * unit / (1 - 3 * unit)
        for got, size in zip(bound[0].tolist(), (76.0, 5.0), strict=True):
            assert gamma * size <= got <= gamma * size + 2.0**-51 * size
    exact, bound = dot_bound(x, weights, nearest=True, bias=np.float32([-1, 0.5]))
    gamma = 4 * 2.0**-24 / (1 - 4 * 2.0**-24)
    assert exact.tolist() == [[-35.0, -4.5]]
    for got, size in zip(bound[0].tolist(), (77.0, 5.5), strict=True):
        assert gamma * size <= got <= gamma * size + 2.0**-51 * size


@pytest.mark.parametrize("seed", range(5))
def test_float32_in_any_order_is_inside_and_a_wrong_weight_is_not(seed: int) -> None:
    x, values = operands(seed)
    scale = np.float32(0.1)
    weights = values.astype(np.float64) * float(scale)
    exact, bound = dot_bound(x, weights, nearest=True)
    assert exact.shape == bound.shape == (2, 3, ROWS)
    products = x[:, :, None, :] * (values.astype(np.float32) * scale)
    orders = [np.arange(TERMS), np.arange(TERMS)[::-1], np.argsort(values[0])]
    for order in orders:
        total = np.zeros(exact.shape, np.float32)
        for k in order:
            total = total + products[..., k]
        assert within_bound(total, exact, bound).all()
    wrong = weights.copy()
    wrong[3, 5] += float(scale)  # one code off by one
    off, _ = dot_bound(x, wrong, nearest=True)
    inside = within_bound(off.astype(np.float32), exact, bound)
    assert not inside[..., 3].any()
    assert inside[..., 4].all()


def test_specials_and_errors() -> None:
    x, weights = np.ones((1, 4), np.float32), np.ones((2, 4))
    exact, bound = dot_bound(x, weights, nearest=True)
    assert not within_bound(np.float32([[np.nan, np.inf]]), exact, bound).any()
    with pytest.raises(ValueError, match="finite operands only"):
        dot_bound(x * np.float32(np.inf), weights, nearest=True)
    with pytest.raises(ValueError, match=r"x float32 \(1, 4\) and weights float32"):
        dot_bound(x, weights.astype(np.float32), nearest=True)
    with pytest.raises(ValueError, match="x float64"):
        dot_bound(x.astype(np.float64), weights, nearest=True)
    with pytest.raises(ValueError, match=r"weights float64 \(2, 3\)"):
        dot_bound(x, weights[:, :3], nearest=True)
