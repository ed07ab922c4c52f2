"""The fast path over whole domains agrees with the accept sets, and misses nothing."""

import dataclasses
import itertools

import numpy as np
import pytest

from reference.arithmetic.accept import CODES, HOST, NOTHING_DECLARED, accept_outer
from reference.arithmetic.exhaustive import host_outer, judge_outer
from reference.arithmetic.rounding import FLOAT16, bits_of, narrow
from reference.program.spec import Values
from reference.program.values import values_array

EVERY_FLOAT16 = np.arange(65536, dtype=np.uint16).view(np.float16)
TRUNCATING = dataclasses.replace(HOST, rte16=False, rtz16=True)
OUTPUTS = ("float32", "float16")


def scales_of(dtype: str, count: int = 40000) -> np.ndarray:
    return EVERY_FLOAT16 if dtype == "float16" else values_array(Values("bits", 3), "float32", (count,))


@pytest.mark.parametrize(("dtype", "output_dtype"), list(itertools.product(OUTPUTS, OUTPUTS)))
def test_host_outer_is_the_host_set(dtype: str, output_dtype: str) -> None:
    scales = scales_of(dtype)
    accept = accept_outer(scales, output_dtype, HOST)
    got = host_outer(scales, output_dtype)
    assert got.shape == (16, scales.size)
    assert accept.contains(got).all()
    np.testing.assert_array_equal(accept.candidates[0][~accept.any_nan], got[~accept.any_nan])


def test_host_outer_at_every_float16_value_and_tie() -> None:
    with np.errstate(all="ignore"):
        values = EVERY_FLOAT16.astype(np.float32)
        ties = ((values.astype(np.float64) + np.roll(values, -1)) / 2).astype(np.float32)
    for exact in (values, ties):
        for beside in (-1, 0, 1):
            scales = (exact.view(np.uint32) + np.uint32(beside % 2**32)).view(np.float32)
            got = host_outer(scales, "float16")[9]  # code 9 is q = 1
            np.testing.assert_array_equal(got[~np.isnan(scales)], narrow(scales, FLOAT16)[2][~np.isnan(scales)])


@pytest.mark.parametrize("modes", [HOST, NOTHING_DECLARED, TRUNCATING])
@pytest.mark.parametrize(("dtype", "output_dtype"), list(itertools.product(OUTPUTS, OUTPUTS)))
def test_judgement_is_the_accept_sets(dtype: str, output_dtype: str, modes: object) -> None:
    scales = scales_of(dtype)[:20000]
    got = host_outer(scales, output_dtype).copy()
    wrong = values_array(Values("uniform", 9, 0, 40), "int8", got.shape) == 0
    got[wrong] ^= got.dtype.type(1)
    got[:, ::97] = 0  # flushed
    judged = judge_outer(scales, output_dtype, modes, got)
    for positions, allowed in ((judged.refused, modes), (judged.not_strict, HOST)):
        accept = accept_outer(scales, output_dtype, allowed)
        np.testing.assert_array_equal(positions, np.argwhere(~accept.contains(got)))
    assert judged.lawless == accept_outer(scales, output_dtype, modes).anything.sum()
    assert len(judged.not_strict) > 1000


def test_one_wrong_bit_anywhere_is_found_by_position() -> None:
    scales = values_array(Values("scales", 1), "float32", (40000,))
    clean = host_outer(scales, "float32")
    for code, column in ((0, 0), (7, 16383), (8, 16384), (15, 39999), (3, 32768)):
        got = clean.copy()
        got[code, column] ^= np.uint32(1)
        judged = judge_outer(scales, "float32", HOST, got)
        assert judged.refused.tolist() == judged.not_strict.tolist() == [[code, column]]
    assert judge_outer(scales, "float32", HOST, clean).refused.shape == (0, 2)


def test_any_nan_is_right_and_a_number_in_its_place_is_not() -> None:
    scales = np.uint32([0x7FC12345, 0x7F800001, 0xFFFFFFFF]).view(np.float32)
    got = np.full((16, 3), 0xFF812345, np.uint32)
    assert judge_outer(scales, "float32", HOST, got).refused.size == 0
    got[4, 1] = 0x7F800000
    assert judge_outer(scales, "float32", HOST, got).refused.tolist() == [[4, 1]]
    lenient = judge_outer(scales, "float32", NOTHING_DECLARED, got)
    assert lenient.refused.size == 0
    assert lenient.not_strict.tolist() == [[4, 1]]
    assert lenient.lawless == 48


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"got: uint32 \(16, 2\) is not uint16 \(16, 2\)"):
        judge_outer(np.ones(2, np.float32), "float16", HOST, np.zeros((16, 2), np.uint32))
    with pytest.raises(ValueError, match=r"got: uint32 \(2, 16\) is not uint32 \(16, 2\)"):
        judge_outer(np.ones(2, np.float32), "float32", HOST, np.zeros((2, 16), np.uint32))
    assert judge_outer(np.ones(0, np.float32), "float32", HOST, np.zeros((16, 0), np.uint32)).lawless == 0
    assert bits_of(CODES.astype(np.float16)).dtype == np.uint16
