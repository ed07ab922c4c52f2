"""Accept sets against a slow formulation over Python sets, and against numpy's and torch's own casts."""

import dataclasses
import itertools

import numpy as np
import pytest
import torch

from reference.arithmetic.accept import CODES, HOST, NOTHING_DECLARED, FloatModes, accept_products
from reference.arithmetic.rounding import FLOAT16, FLOAT32, FLOAT64, bits_of, narrow
from reference.program.spec import Values
from reference.program.values import special_bits, values_array

EVERY_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
OUTPUTS = ("float32", "float16")
TYPES = {"float16": np.float16, "float32": np.float32}


def float32_scales(seed: int, count: int = 4000) -> np.ndarray:
    """Random bit patterns, every special, and scales whose products lie at or beside float16's values and ties."""
    rng = values_array(Values("bits", seed), "float32", (count,))
    specials = special_bits("float32").view(np.float32)
    steps = values_array(Values("bits", seed + 1), "uint16", (count,)).view(np.float16).astype(np.float64)
    with np.errstate(all="ignore"):
        ties = (steps * (1 + 2.0**-11)).astype(np.float32)
        near = np.concatenate([ties, steps.astype(np.float32)])
        divided = (near[:, None] / np.float32([1, 3, 5, 7])).ravel()
    bits = divided.view(np.uint32)
    beside = np.concatenate([bits - np.uint32(1), bits, bits + np.uint32(1)]).view(np.float32)
    return np.concatenate([rng, specials, beside[:: max(1, beside.size // (4 * count))]])


@pytest.mark.parametrize("target", [FLOAT16, FLOAT32])
@pytest.mark.parametrize("source", ["float32", "float64"])
def test_narrow_brackets_and_agrees_with_numpy(target: object, source: str) -> None:
    if source == target.name:
        return
    numbers = np.concatenate([values_array(Values("bits", 1), source, (50000,)), special_bits(source).view(source)])
    with np.errstate(all="ignore"):
        near = float32_scales(2)
        products = near.astype(source) * np.dtype(source).type(7)
        numbers = np.concatenate([numbers, products, EVERY_FLOAT16.astype(source)])
        down, up, nearest = narrow(numbers, target)
        expected = numbers.astype(target.name)
        nan, wide = np.isnan(numbers), numbers.astype(np.float64)
        below, above = (bits.view(target.name).astype(np.float64) for bits in (down, up))
    np.testing.assert_array_equal(nearest[~nan], bits_of(expected)[~nan])
    for bits in (down, up, nearest):
        assert (bits[nan] == target.quiet_nan).all()
        np.testing.assert_array_equal(np.signbit(bits.view(target.name))[~nan], np.signbit(numbers)[~nan])
    size = np.abs(wide[~nan])
    assert (np.abs(below[~nan]) <= size).all()
    assert (np.abs(above[~nan]) >= size).all()
    apart = (up - down)[~nan]
    np.testing.assert_array_equal(apart, np.where(np.abs(below[~nan]) == size, 0, 1))


def test_formats_are_ieee() -> None:
    for form in (FLOAT16, FLOAT32, FLOAT64):
        limits = np.finfo(form.name)
        patterns = np.array([form.infinity, form.infinity - 1, form.smallest_normal], form.unsigned)
        assert patterns.view(form.name).tolist() == [np.inf, float(limits.max), float(limits.smallest_normal)]
        assert np.isnan(np.array([form.quiet_nan], form.unsigned).view(form.name)).all()


@pytest.mark.parametrize("output_dtype", OUTPUTS)
def test_host_set_is_torchs_result_for_every_float16_scale(output_dtype: str) -> None:
    accept = accept_products(CODES[:, None], EVERY_FLOAT16[None, :], output_dtype, HOST)
    assert accept.candidates.shape == (1, 16, 65536)
    assert not accept.unconstrained.any()
    product = torch.from_numpy(CODES)[:, None].float() * torch.from_numpy(EVERY_FLOAT16).float()
    got = product.to(getattr(torch, output_dtype)).numpy()
    assert accept.contains(got).all()
    np.testing.assert_array_equal(accept.any_nan, np.isnan(got))
    np.testing.assert_array_equal(accept.candidates[0][~accept.any_nan], bits_of(got)[~accept.any_nan])
    assert not accept.contains(bits_of(got) ^ bits_of(got).dtype.type(1))[~accept.any_nan].any()
    assert accept.contains(np.full_like(got, np.nan))[accept.any_nan].all()


@pytest.mark.parametrize("output_dtype", OUTPUTS)
def test_host_set_is_torchs_result_for_float32_scales(output_dtype: str) -> None:
    scales = float32_scales(3)
    accept = accept_products(CODES[:, None], scales[None, :], output_dtype, HOST)
    with np.errstate(invalid="ignore"):
        product = torch.from_numpy(CODES)[:, None].float() * torch.from_numpy(scales)
    assert accept.contains(product.to(getattr(torch, output_dtype)).numpy()).all()
    assert len(accept.candidates) == 1


# --- the slow formulation: sets of numpy scalars, stepped through one arithmetic operation at a time ---


def roundings(exact: float, kind: type, rule: str) -> set:
    with np.errstate(all="ignore"):
        nearest = kind(exact)
        if float(nearest) == exact or np.isnan(exact):
            return {nearest}
        other = np.nextafter(nearest, kind(-np.inf if float(nearest) > exact else np.inf))
    toward_zero = min(nearest, other, key=abs)
    return {"nearest": {nearest}, "zero": {toward_zero}, "either": {nearest, other}}[rule]


def loosen(numbers: set, modes: FloatModes, kind: type, *, flush: bool = True) -> set:
    """What an operand or a result of this width may read as; what a store makes is not flushed."""
    width = 8 * np.dtype(kind).itemsize
    loose = set(numbers)
    for number in numbers:
        subnormal = number != 0 and abs(number) < np.finfo(kind).smallest_normal
        lost_sign = number == 0 and not getattr(modes, f"signed_zero_inf_nan_preserve{width}")
        if (flush and subnormal and not getattr(modes, f"denorm_preserve{width}")) or lost_sign:
            loose |= {Bits(kind(0.0)), Bits(kind(-0.0))}
    return loose


class Bits:
    """A numpy scalar that is equal only to the same bit pattern, so that a set keeps both zeros."""

    def __init__(self, number: np.floating) -> None:
        self.number = number

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Bits) and self.pattern() == other.pattern()

    def __hash__(self) -> int:
        return hash(self.pattern())

    def pattern(self) -> int:
        if np.isnan(self.number):
            return -1
        return int(bits_of(np.array([self.number]))[0])


def step(
    numbers: set[Bits], compute: object, kind_in: type, kind: type, rule: str, modes: FloatModes, *, flush: bool = True
) -> set[Bits]:
    """One operation: operands loosened, the exact result rounded, the results loosened."""

    def loosened(given: set[Bits], of: type, *, flush: bool = True) -> set[Bits]:
        return set().union(*(given, *({*map(as_bits, loosen({b.number}, modes, of, flush=flush))} for b in given)))

    results: set[Bits] = set()
    for operand in loosened(numbers, kind_in):
        with np.errstate(invalid="ignore"):
            exact = compute(np.float64(operand.number))
        results |= {Bits(copysign(r, exact)) for r in roundings(float(exact), kind, rule)}
    return loosened(results, kind, flush=flush)


def as_bits(number: object) -> Bits:
    return number if isinstance(number, Bits) else Bits(number)


def copysign(number: np.floating, exact: float) -> np.floating:
    """Give a rounded result the sign of the exact one: stepping to a neighbour may reach a zero of the other."""
    return number if np.isnan(number) else np.copysign(number, type(number)(np.copysign(1.0, exact)))


def slow_set(value: int, scale: np.floating, output_dtype: str, modes: FloatModes) -> set[int] | None:
    """Allowed bit patterns, -1 for any NaN; None where nothing is promised."""
    kind, single = type(scale), np.float32
    used = {8 * np.dtype(t).itemsize for t in (kind, single, TYPES[output_dtype])}
    if not np.isfinite(scale) and not all(getattr(modes, f"signed_zero_inf_nan_preserve{w}") for w in used):
        return None

    def rule(width: int) -> str:
        if getattr(modes, f"rte{width}"):
            return "nearest"
        return "zero" if getattr(modes, f"rtz{width}") else "either"

    operand = {Bits(scale)}
    if kind is np.float16:
        operand = step(operand, lambda s: s, kind, single, rule(32), modes)
    product = step(operand, lambda s: s * value, single, single, rule(32), modes)
    if output_dtype == "float16":
        last = "either" if modes.image_output16 else rule(16)
        flush = not modes.image_output16
        narrowed = step(product, lambda p: p, single, np.float16, last, modes, flush=flush)
        if not modes.precise:
            narrowed |= step({Bits(scale)}, lambda s: s * value, kind, np.float16, last, modes, flush=flush)
        product = narrowed
    return {bits.pattern() for bits in product}


def some_modes() -> list[FloatModes]:
    names = [field.name for field in dataclasses.fields(FloatModes)]
    drawn = values_array(Values("uniform", 7, 0, 1), "int8", (60, len(names))).astype(bool)
    chosen = [HOST, NOTHING_DECLARED, dataclasses.replace(HOST, precise=False)]
    chosen += [dataclasses.replace(base, image_output16=True) for base in (HOST, NOTHING_DECLARED)]
    chosen += [dataclasses.replace(HOST, **{f"denorm_preserve{w}": False}) for w in (16, 32)]
    chosen += [dataclasses.replace(HOST, **{f"signed_zero_inf_nan_preserve{w}": False}) for w in (16, 32)]
    chosen += [dataclasses.replace(HOST, **{f"rte{w}": False, f"rtz{w}": z}) for w in (16, 32) for z in (False, True)]
    for row in drawn.tolist():
        flags = dict(zip(names, row, strict=True))
        for width in (16, 32):
            flags[f"rtz{width}"] &= not flags[f"rte{width}"]
            flags[f"denorm_flush{width}"] &= not flags[f"denorm_preserve{width}"]
        chosen.append(FloatModes(**flags))
    return chosen


@pytest.mark.parametrize(("scale_dtype", "output_dtype"), list(itertools.product(TYPES, OUTPUTS)))
def test_every_set_is_the_slow_formulations(scale_dtype: str, output_dtype: str) -> None:
    random = values_array(Values("bits", 11), "float16", (4000,)) if scale_dtype == "float16" else float32_scales(11)
    scales = np.concatenate([special_bits(scale_dtype).view(scale_dtype), random[:: random.size // 60]])
    values = values_array(Values("uniform", 12, -8, 7), "int8", scales.shape)
    values[: special_bits(scale_dtype).size : 3] = 0
    for modes in some_modes():
        accept = accept_products(values, scales, output_dtype, modes)
        nothing_like_it = accept.contains(np.full(scales.shape, 12.34375, output_dtype))
        np.testing.assert_array_equal(nothing_like_it, accept.unconstrained)
        for i, (value, scale) in enumerate(zip(values.tolist(), scales, strict=True)):
            expected = slow_set(value, scale, output_dtype, modes)
            where = f"{value} * {scale!r} to {output_dtype}, {modes}"
            assert bool(accept.unconstrained[i]) == (expected is None), where
            if expected is None:
                continue
            got = {-1} if accept.any_nan[i] else set(accept.allowed(i))
            assert got == expected, where


# --- the contract's sentences, as literal bits ---


def allowed(value: int, scale: int, scale_dtype: str, output_dtype: str, modes: FloatModes) -> list[str]:
    scales = np.array([scale], f"u{np.dtype(scale_dtype).itemsize}").view(scale_dtype)
    accept = accept_products(np.int8([value]), scales, output_dtype, modes)
    if accept.unconstrained[0]:
        return ["unconstrained"]
    return ["NaN"] if accept.any_nan[0] else [f"{bits:X}" for bits in accept.allowed(0)]


RTZ16 = dataclasses.replace(HOST, rte16=False, rtz16=True)
FLUSH = dataclasses.replace(HOST, denorm_preserve16=False, denorm_preserve32=False)
UNSIGNED = dataclasses.replace(HOST, signed_zero_inf_nan_preserve16=False, signed_zero_inf_nan_preserve32=False)


@pytest.mark.parametrize(
    ("value", "scale", "scale_dtype", "output_dtype", "modes", "expected"),
    [
        # 3.1: 7 * the smallest float16, 2**-24, is exact; only flushing the scale adds zeros
        (7, 0x0001, "float16", "float32", HOST, ["34E00000"]),
        (7, 0x0001, "float16", "float32", FLUSH, ["0", "34E00000", "80000000"]),
        (7, 0x0400, "float16", "float32", FLUSH, ["39E00000"]),
        # 3.2: 7 * 0.1f lies between two float32
        (7, 0x3DCCCCCD, "float32", "float32", HOST, ["3F333333"]),
        (7, 0x3DCCCCCD, "float32", "float32", NOTHING_DECLARED, ["3F333333", "3F333334"]),
        # 3.3: just above a float16 tie; float32 rounds it onto the tie, which goes to even; once: up
        (3, 0x3E800AAB, "float32", "float16", HOST, ["3A00"]),
        (3, 0x3E800AAB, "float32", "float16", dataclasses.replace(HOST, precise=False), ["3A00", "3A01"]),
        (3, 0x3E800AAB, "float32", "float16", RTZ16, ["3A00"]),
        # 3.3: past the largest finite float16 (2 * 32768 = 65536)
        (2, 0x7800, "float16", "float16", HOST, ["7C00"]),
        (2, 0x7800, "float16", "float16", RTZ16, ["7BFF"]),
        (-2, 0x7800, "float16", "float16", NOTHING_DECLARED, ["FBFF", "FC00"]),
        # 65519 rounds to the largest finite number, 65520 to infinity
        (1, 0x477FEF00, "float32", "float16", HOST, ["7BFF"]),
        (1, 0x477FF000, "float32", "float16", HOST, ["7C00"]),
        (1, 0x477FF000, "float32", "float16", RTZ16, ["7BFF"]),
        # past the largest finite float32
        (2, 0x7F7FFFFF, "float32", "float32", HOST, ["7F800000"]),
        (2, 0x7F7FFFFF, "float32", "float32", NOTHING_DECLARED, ["7F7FFFFF", "7F800000"]),
        # 3.4: subnormal operand whose product is normal; subnormal float16 result of normal operands
        (7, 0x007FFFFF, "float32", "float32", FLUSH, ["0", "1DFFFFE", "80000000"]),
        (1, 0x33800000, "float32", "float16", HOST, ["1"]),
        (1, 0x33800000, "float32", "float16", FLUSH, ["0", "1", "8000"]),
        # 3.4: an image store may go either way although nearest even is declared
        (1, 0x3F800100, "float32", "float16", HOST, ["3C00"]),
        (1, 0x3F800100, "float32", "float16", dataclasses.replace(HOST, image_output16=True), ["3C00", "3C01"]),
        # 3.4: and it never flushes, being a store (2**-24 is the smallest float16)
        (1, 0x33800000, "float32", "float16", dataclasses.replace(FLUSH, image_output16=True), ["1"]),
        (-1, 0x33800000, "float32", "float16", FloatModes(image_output16=True), ["8001"]),
        # 3.5
        (0, 0xFC00, "float16", "float32", HOST, ["NaN"]),
        (-8, 0x7E00, "float16", "float16", HOST, ["NaN"]),
        (-8, 0x7C00, "float16", "float16", HOST, ["FC00"]),
        (-8, 0x7C00, "float16", "float16", UNSIGNED, ["unconstrained"]),
        (-1, 0x0000, "float16", "float32", HOST, ["80000000"]),
        (0, 0xBC00, "float16", "float32", HOST, ["80000000"]),
        (0, 0xBC00, "float16", "float32", UNSIGNED, ["0", "80000000"]),
    ],
)
def test_the_contracts_words(
    value: int, scale: int, scale_dtype: str, output_dtype: str, modes: FloatModes, expected: list[str]
) -> None:
    assert allowed(value, scale, scale_dtype, output_dtype, modes) == expected


def test_blocks_agree_with_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    scales = np.concatenate([np.ones(1000, np.float32), float32_scales(5, 200)])
    values = values_array(Values("uniform", 1, -8, 7), "int8", scales.shape)
    whole = accept_products(values, scales, "float16", NOTHING_DECLARED)
    monkeypatch.setattr("reference.arithmetic.accept.BLOCK", 7)
    parts = accept_products(values, scales, "float16", NOTHING_DECLARED)
    for i in range(scales.size):
        assert parts.allowed(i) == whole.allowed(i)
    np.testing.assert_array_equal(parts.any_nan, whole.any_nan)


def test_shapes_and_errors() -> None:
    empty = accept_products(np.zeros((0, 3), np.int8), np.zeros((0, 3), np.float16), "float32", HOST)
    assert empty.contains(np.zeros((0, 3), np.float32)).shape == (0, 3)
    one = accept_products(np.int8(1), np.float32(1), "float32", HOST)
    assert one.contains(np.ones(1, np.float32)).tolist() == [True]
    with pytest.raises(ValueError, match="got: float64 does not hold float32"):
        one.contains(np.ones(1))
    with pytest.raises(ValueError, match="output_dtype 'bfloat16'"):
        accept_products(np.int8([1]), np.float32([1]), "bfloat16", HOST)
    with pytest.raises(ValueError, match="scales float64"):
        accept_products(np.int8([1]), np.float64([1]), "float32", HOST)
    for pair in ({"rte16": True, "rtz16": True}, {"denorm_preserve32": True, "denorm_flush32": True}):
        with pytest.raises(ValueError, match="contradictory modes"):
            FloatModes(**pair)
