"""The bounds of dot products and of norms: any order of float32 additions is inside, a wrong weight is not."""

from fractions import Fraction
from functools import partial

import numpy as np
import pytest

from reference.arithmetic.bfloat16 import cast_float
from reference.arithmetic.dot_bound import dot_bound, overflow_reach, within_bound
from reference.arithmetic.norm_bound import norm_bound
from reference.program.spec import Values
from reference.program.values import values_array
from reference.table.dequantize import dequantize_affine, exact_weights

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
            assert gamma * size <= got <= gamma * size + 2.0**-49 * size
    exact, bound = dot_bound(x, weights, nearest=True, bias=np.float32([-1, 0.5]))
    gamma = 4 * 2.0**-24 / (1 - 4 * 2.0**-24)
    assert exact.tolist() == [[-35.0, -4.5]]
    for got, size in zip(bound[0].tolist(), (77.0, 5.5), strict=True):
        assert gamma * size <= got <= gamma * size + 2.0**-49 * size


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
    exact, bound = dot_bound(x, np.array([[np.inf, 1, 1, 1], [1, 1, 1, 1]]), nearest=True)
    assert np.isnan(exact).tolist() == [[True, False]]
    assert within_bound(np.float32([[7, 7]]), exact, bound).tolist() == [[True, False]]
    with pytest.raises(ValueError, match=r"x float32 \(1, 4\) and weights float32"):
        dot_bound(x, weights.astype(np.float32), nearest=True)
    with pytest.raises(ValueError, match="x float64"):
        dot_bound(x.astype(np.float64), weights, nearest=True)
    with pytest.raises(ValueError, match=r"weights float64 \(2, 3\)"):
        dot_bound(x, weights[:, :3], nearest=True)


#: Zero points whose difference from a value is exact, and ones whose is not.
ZERO_POINTS = {"int8": np.int8([[3], [-8]]), "float32": np.float32([[0.1], [1e-9]]), "none": None}


@pytest.mark.parametrize("zeros", ZERO_POINTS)
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_exact_weights_and_sums_are_those_of_fractions(dtype: str, zeros: str) -> None:
    """Against a computation that shares nothing: rational numbers all the way, rounded where the contract says."""
    zero_point = ZERO_POINTS[zeros]
    values = values_array(Values("uniform", 3, -8, 7), "int8", (2, 32))
    scales = values_array(Values("scales", 5), dtype, (2, 1))
    x = cast_float(values_array(Values("weights", 9), "float32", (3, 32)), dtype)
    weights, roundings = exact_weights(values, (1, 32), scales, zero_point, dtype)
    right = [[Fraction(0)] * 2 for _ in range(3)]
    for n in range(2):
        zero = Fraction(0) if zero_point is None else Fraction(float(cast_float(zero_point[n], dtype)[0]))
        for k in range(32):
            exact = (Fraction(int(values[n, k])) - zero) * Fraction(float(scales[n, 0]))
            assert abs(Fraction(float(weights[n, k])) - exact) <= abs(exact) * Fraction(1, 2**52)
            for i in range(3):
                right[i][n] += Fraction(float(x[i, k])) * exact
    sums, bound = dot_bound(x, weights, nearest=True, roundings=roundings)
    assert roundings == (2 if zeros == "float32" else 1)
    host = x.astype(np.float32) @ dequantize_affine(values, (1, 32), scales, zero_point, dtype).astype(np.float32).T
    one_by_one = np.zeros((3, 2), dtype)
    for k in range(32):  # every operation in the dtype itself: the worst that the bound is for
        one_by_one += x[:, k, None] * dequantize_affine(values, (1, 32), scales, zero_point, dtype)[None, :, k]
    for i, n in np.ndindex(3, 2):
        assert abs(Fraction(float(sums[i, n])) - right[i][n]) <= Fraction(float(bound[i, n])) * Fraction(1, 2**10)
    assert within_bound(host.astype(dtype), sums, bound).all()
    assert within_bound(one_by_one, sums, bound).all()
    if zeros == "int8":
        forgotten = x.astype(np.float32) @ dequantize_affine(values, (1, 32), scales, None, "float32").T
        assert not within_bound(forgotten.astype(dtype), sums, bound).any()


def test_an_overflow_is_right_only_where_the_sum_may_overflow() -> None:
    x, weights = np.float16([[100, 100]]), np.array([[400.0, 400.0], [3.0, 3.0]])
    exact, bound = dot_bound(x, weights, nearest=True)
    assert within_bound(np.float16([[np.inf, np.inf]]), exact, bound).tolist() == [[True, False]]
    assert not within_bound(np.float16([[-np.inf, 600]]), exact, bound)[0, 0]


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_partial_sums_that_overflow_are_right_on_their_side_only(dtype: str) -> None:
    """Weights: terms that cancel; one side only; one that overflows; a small one; a sum that just fits."""
    most = float(np.finfo(dtype).max)
    x = np.array([[1, 1, 0]], dtype)
    weights = np.array(
        [[0.75, -0.75, 0.75], [0.75, 0.75, 0], [0, 0, 2], [-1e-3, 1e-3, 1], [0.5, -0.6, 0.9]]
    ) * np.array([[most], [most], [most], [1], [most]])
    exact, bound = dot_bound(x, weights, nearest=True)
    reach = partial(overflow_reach, x, weights)
    allowed = {
        value: within_bound(np.full((1, 5), value, dtype), exact, bound, reach)[0].tolist()
        for value in (np.inf, -np.inf, np.nan)
    }
    assert allowed[np.inf] == [False, True, False, False, False]
    assert allowed[-np.inf] == [False, False, False, False, False]
    assert allowed[np.nan] == [False, False, True, False, False]
    twice = np.concatenate([weights, weights], axis=1)
    both = partial(overflow_reach, np.concatenate([x, x], axis=1), twice)
    exact, bound = dot_bound(np.concatenate([x, x], axis=1), twice, nearest=True)
    with np.errstate(over="ignore", invalid="ignore"):
        terms = x * weights.astype(dtype)
        total = (2 * terms).sum(-1, dtype=dtype)[None]  # each term and its twin first
    assert np.isnan(total[0, [0, 2]]).all()
    assert total[0, [1, 4]].tolist() == [np.inf, -np.inf]
    assert within_bound(total, exact, bound, both).all()
    assert not within_bound(total, exact, bound).all(), "without it a right sum is refused"
    assert not within_bound(np.full((1, 5), most / 2, dtype), exact, bound, both).any(), "finite: as ever"


def test_many_small_terms_do_not_help_the_other_side_to_overflow() -> None:
    x, weights = np.float16([[100, *1024 * [-63.9]]]), np.ones((1, 1025))
    exact, bound = dot_bound(x, weights, nearest=True)
    reach = partial(overflow_reach, x, weights)
    for value, right in ((np.inf, False), (np.nan, False), (-np.inf, True)):
        assert bool(within_bound(np.float16([[value]]), exact, bound, reach)[0, 0]) is right


def test_terms_too_large_for_float64_are_not_promised() -> None:
    exact, _ = dot_bound(np.ones((1, 32), np.float32), np.full((1, 32), 1.7e308), nearest=True)
    assert np.isnan(exact).all()


def test_signalling_nans_raise_no_warning() -> None:
    """Widening one is an invalid operation, and a warning is an error here, as in a run of the suite."""
    signalling = np.array([[0x7F800001]], np.uint32).view(np.float32)
    weights, _ = exact_weights(np.int8([[1, 2]]), (1, 2), signalling, None, "float32")
    assert np.isnan(weights).all()
    x = np.repeat(signalling, 2, axis=1)
    exact, bound = dot_bound(x, np.ones((1, 2)), nearest=True)
    assert within_bound(x[:, :1], exact, bound, partial(overflow_reach, x, np.ones((1, 2)))).all()
    assert np.isnan(norm_bound(x, x[0], x[0], nearest=True)[0]).all()


def test_a_bound_that_says_nothing_lets_everything_pass() -> None:
    exact, bound = dot_bound(np.ones((1, 2048), np.float16), np.ones((1, 2048)), nearest=True)
    assert within_bound(np.float16([[-1]]), exact, bound).all()


COLUMNS = 96


def norm(x: np.ndarray, weight: np.ndarray, bias: np.ndarray, order: np.ndarray, *, squares: bool) -> np.ndarray:
    """In x's dtype, each sum in one order, one element after the other."""
    one = x.dtype.type

    def mean(values: np.ndarray) -> np.ndarray:
        total = np.zeros((*values.shape[:-1], 1), x.dtype)
        for k in order:
            total = total + values[..., k : k + 1]
        return total / one(COLUMNS)

    off = x - mean(x)
    variance = mean(x * x) - mean(x) * mean(x) if squares else mean(off * off)
    return off * (one(1) / np.sqrt(variance + one(1e-5))) * weight + bias


def norm_operands(dtype: str, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    draw = np.random.default_rng(seed)
    return tuple((draw.standard_normal(shape) + 0.5).astype(dtype) for shape in ((4, COLUMNS), (COLUMNS,), (COLUMNS,)))


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_a_norm_is_not_promised_where_its_squares_may_overflow(dtype: str) -> None:
    x, weight, bias = norm_operands(dtype, 3)
    large = np.sqrt(np.finfo(dtype).max / COLUMNS).astype(dtype)
    x[1:] *= large
    exact, bound = norm_bound(x, weight, bias, nearest=True)
    with np.errstate(over="ignore", invalid="ignore"):
        got = norm(x, weight, bias, np.arange(COLUMNS), squares=True)
    assert (got[1:] == bias).all(), "one over an infinity is zero"
    assert within_bound(got, exact, bound).all()
    assert not within_bound(np.full_like(got, np.nan), exact, bound)[0].any(), "the small row is"


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("squares", [False, True])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_norms_in_any_order_are_inside_and_faults_are_not(dtype: str, seed: int, *, squares: bool) -> None:
    x, weight, bias = norm_operands(dtype, seed)
    allowed = norm_bound(x, weight, bias, nearest=True)
    order = np.random.default_rng(seed).permutation(COLUMNS)
    assert within_bound(norm(x, weight, bias, order, squares=squares), *allowed).all()
    right = norm(x, weight, bias, np.arange(COLUMNS), squares=False)
    assert not within_bound(right - bias, *allowed).all()
    assert not within_bound(norm(x, np.roll(weight, 1), bias, order, squares=False), *allowed).all()
    assert not within_bound(right[::-1], *allowed).all()
    if dtype == "float32":
        coarse = (right.astype(np.float16)).astype(np.float32)
        assert not within_bound(coarse, *allowed).all()
        assert not within_bound(right * np.float32(1 + 2.0**-12), *allowed).all()
        _, silent = norm_bound(x, weight, bias, nearest=False)
        assert np.allclose(silent, 2 * allowed[1])
