"""The fast path over whole domains agrees with the accept sets, and misses nothing."""

import dataclasses
import itertools

import numpy as np
import pytest

from reference.arithmetic.accept import CODES, HOST, NOTHING_DECLARED, FloatModes, accept_products
from reference.arithmetic.accept_many import FIRST, Refused, host_rows, judge_rows
from reference.arithmetic.rounding import FLOAT16, bits_of, narrow
from reference.program.spec import Values
from reference.program.values import values_array

EVERY_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
TRUNCATING = dataclasses.replace(HOST, rte16=False, rtz16=True)
OUTPUTS = ("float32", "float16")


def scales_of(dtype: str, count: int = 40000) -> np.ndarray:
    return EVERY_FLOAT16 if dtype == "float16" else values_array(Values("bits", 3), "float32", (count,))


@pytest.mark.parametrize(("dtype", "output_dtype"), list(itertools.product(OUTPUTS, OUTPUTS)))
def test_host_rows_are_the_host_set(dtype: str, output_dtype: str) -> None:
    scales = scales_of(dtype)
    accept = accept_products(CODES[:, None], scales[None, :], output_dtype, HOST)
    got = host_rows(scales, output_dtype)
    assert got.shape == (scales.size, 16)
    assert accept.contains(got.T).all()
    np.testing.assert_array_equal(accept.candidates[0][~accept.any_nan], got.T[~accept.any_nan])


def test_host_rows_at_every_float16_value_and_tie() -> None:
    with np.errstate(all="ignore"):
        values = EVERY_FLOAT16.astype(np.float32)
        ties = ((values.astype(np.float64) + np.roll(values, -1)) / 2).astype(np.float32)
    for exact in (values, ties):
        for neighbour in (-1, 0, 1):
            scales = (exact.view(np.uint32) + np.uint32(neighbour % 2**32)).view(np.float32)
            got = host_rows(scales, "float16")[:, 9]  # code 9 is q = 1
            np.testing.assert_array_equal(got[~np.isnan(scales)], narrow(scales, FLOAT16)[2][~np.isnan(scales)])


@pytest.mark.parametrize("modes", [HOST, NOTHING_DECLARED, TRUNCATING])
@pytest.mark.parametrize(("dtype", "output_dtype"), list(itertools.product(OUTPUTS, OUTPUTS)))
def test_judgement_is_the_accept_sets(dtype: str, output_dtype: str, modes: FloatModes) -> None:
    """In parts so small that counts and first places are every place."""
    scales = scales_of(dtype)[:20000]
    got = host_rows(scales, output_dtype).copy()
    wrong = values_array(Values("uniform", 9, 0, 40), "int8", got.shape) == 0
    got[wrong] ^= got.dtype.type(1)
    got[::97] = 0  # flushed
    refused = ~accept_products(CODES[:, None], scales[None, :], output_dtype, modes).contains(got.T).T
    not_strict = ~accept_products(CODES[:, None], scales[None, :], output_dtype, HOST).contains(got.T).T
    unconstrained = accept_products(CODES[:, None], scales[None, :], output_dtype, modes).unconstrained.T
    for start in range(0, scales.size, 10):
        part = slice(start, start + 10)
        tally = judge_rows(scales[part], output_dtype, modes, got[part])
        assert tally.refused == np.count_nonzero(refused[part])
        assert tally.not_strict == np.count_nonzero(not_strict[part])
        assert tally.unconstrained == np.count_nonzero(unconstrained[part])
        bits = bits_of(scales[part])
        places = [(int(bits[row]), code, int(got[part][row, code])) for row, code in np.argwhere(refused[part])[:FIRST]]
        assert [(r.scale_bits, r.code, r.got) for r in tally.first] == places
    assert np.count_nonzero(not_strict) > 1000


def test_one_wrong_bit_anywhere_is_found_by_position() -> None:
    scales = values_array(Values("scales", 1), "float32", (40000,))
    clean = host_rows(scales, "float32")
    for code, row in ((0, 0), (7, 8191), (8, 8192), (15, 39999), (3, 32768)):
        got = clean.copy()
        got[row, code] ^= np.uint32(1)
        tally = judge_rows(scales, "float32", HOST, got)
        assert (tally.refused, tally.not_strict) == (1, 1)
        assert tally.first == (Refused(int(bits_of(scales)[row]), code, int(got[row, code])),)
    assert judge_rows(scales, "float32", HOST, clean).refused == 0


def test_any_nan_is_right_and_a_number_in_its_place_is_not() -> None:
    scales = np.uint32([0x7FC12345, 0x7F800001, 0xFFFFFFFF]).view(np.float32)
    got = np.full((3, 16), 0xFF812345, np.uint32)
    assert judge_rows(scales, "float32", HOST, got).refused == 0
    got[1, 4] = 0x7F800000
    assert judge_rows(scales, "float32", HOST, got).first == (Refused(0x7F800001, 4, 0x7F800000),)
    lenient = judge_rows(scales, "float32", NOTHING_DECLARED, got)
    assert lenient.refused == 0
    assert lenient.not_strict == 1
    assert lenient.unconstrained == 48


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"got: uint32 \(2, 16\) is not contiguous uint16 \(2, 16\)"):
        judge_rows(np.ones(2, np.float32), "float16", HOST, np.zeros((2, 16), np.uint32))
    with pytest.raises(ValueError, match=r"got: uint32 \(16, 2\) is not contiguous uint32 \(2, 16\)"):
        judge_rows(np.ones(2, np.float32), "float32", HOST, np.zeros((16, 2), np.uint32))
    with pytest.raises(ValueError, match=r"is not contiguous uint32 \(2, 16\)"):
        judge_rows(np.ones(2, np.float32), "float32", HOST, np.zeros((16, 2), np.uint32).T)
    assert judge_rows(np.ones(0, np.float32), "float32", HOST, np.zeros((0, 16), np.uint32)).pairs == 0
    assert bits_of(CODES.astype(np.float16)).dtype == np.uint16
