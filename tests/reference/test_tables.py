"""The layouts against the contract's words, nibble by nibble in plain Python."""

import numpy as np
import pytest

from reference.program.spec import Values
from reference.program.values import values_array
from reference.table.dequantize import dequantize_affine
from reference.table.layouts import (
    linear_weight_to_blocks,
    pack_blocks,
    pack_flat,
    pack_linear_weight,
    unpack_blocks,
    unpack_flat,
    unpack_linear_weight,
)
from reference.table.q4_0 import pack_q4_0, unpack_q4_0
from reference.table.quantize import quantize_hqq, quantize_symmetric

SHAPES = [(0, 32), (1, 4), (1, 32), (7, 8), (8, 32), (9, 36), (17, 64), (3, 0), (0, 0)]


def table(shape: tuple[int, int]) -> np.ndarray:
    return values_array(Values("uniform", seed=sum(shape), low=-8, high=7), "int8", shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_round_trips(shape: tuple[int, int]) -> None:
    values = table(shape)
    np.testing.assert_array_equal(unpack_flat(pack_flat(values)), values)
    np.testing.assert_array_equal(unpack_linear_weight(pack_linear_weight(values)), values)
    np.testing.assert_array_equal(unpack_blocks(pack_blocks(values), shape[0]), values)
    np.testing.assert_array_equal(linear_weight_to_blocks(pack_linear_weight(values)), pack_blocks(values))
    assert pack_flat(values).dtype == np.uint8
    assert pack_flat(values).shape == pack_linear_weight(values).shape == (shape[0], shape[1] // 2)
    assert pack_blocks(values).dtype == np.int32
    assert pack_blocks(values).shape == (-(-shape[0] // 8), shape[1] // 4, 4)


@pytest.mark.parametrize("shape", [(1, 4), (9, 12), (8, 32)])
def test_positions_are_the_contracts(shape: tuple[int, int]) -> None:
    values = table(shape)
    flat, linear, blocks = pack_flat(values), pack_linear_weight(values), pack_blocks(values)
    for n in range(shape[0]):
        for j in range(shape[1] // 2):
            even, odd = int(values[n, 2 * j]) + 8, int(values[n, 2 * j + 1]) + 8
            assert flat[n, j] == even << 4 | odd
            assert linear[n, j] == odd << 4 | even
    for n in range(blocks.shape[0] * 8):
        for k in range(shape[1]):
            word = int(blocks[n >> 3, k >> 2, n & 3]) & 0xFFFFFFFF
            code = word >> ((4 if n & 4 else 0) + 8 * (k & 3)) & 15
            assert code == (int(values[n, k]) + 8 if n < shape[0] else 8)


def test_views_of_any_stride_pack_alike() -> None:
    values = table((16, 64))
    for view in (values[::2], values[:, ::-1], np.asfortranarray(values)):
        copy = np.ascontiguousarray(view)
        np.testing.assert_array_equal(pack_flat(view), pack_flat(copy))
        np.testing.assert_array_equal(pack_blocks(view), pack_blocks(copy))


def test_errors_name_what_is_wrong() -> None:
    with pytest.raises(ValueError, match=r"values: 8 at \[1, 2\] is outside \[-8, 7\]"):
        pack_flat(np.array([[0, 0, 0, 0], [0, 0, 8, 9]], np.int8))
    with pytest.raises(ValueError, match=r"-9 at \[0, 0\]"):
        pack_blocks(np.array([[-9, 0, 0, 0]], np.int8))
    with pytest.raises(ValueError, match="embed_dim 3 is not a multiple of 2"):
        pack_linear_weight(np.zeros((1, 3), np.int8))
    with pytest.raises(ValueError, match="embed_dim 6 is not a multiple of 4"):
        pack_blocks(np.zeros((1, 6), np.int8))
    with pytest.raises(ValueError, match="values: int32"):
        pack_flat(np.zeros((1, 4), np.int32))
    with pytest.raises(ValueError, match=r"blocks: shape \(1, 1, 4\).*9 rows"):
        unpack_blocks(np.zeros((1, 1, 4), np.int32), 9)
    with pytest.raises(ValueError, match="packed: int8"):
        unpack_flat(np.zeros((1, 4), np.int8))


def test_every_block_comes_back() -> None:
    blocks = np.random.default_rng(1).integers(0, 256, (4096, 2, 18), np.uint8)
    values, scales = unpack_q4_0(blocks)
    assert values.shape == (4096, 64)
    assert (scales < 0).mean() > 0.4  # NaN has no sign here
    assert np.array_equal(pack_q4_0(values, scales), blocks)  # NaN payloads included


def test_a_block_by_hand() -> None:
    """Column 1 is the low nibble of byte 1, column 17 its high nibble."""
    block = np.zeros((1, 1, 18), np.uint8)
    block[0, 0, :2] = [0x00, 0xC0]  # -2.0, little-endian
    block[0, 0, 2 + 1] = 0xF1
    values, scales = unpack_q4_0(block)
    assert scales.tolist() == [[-2.0]]
    assert (values[0, 1], values[0, 17], values[0, 0]) == (-7, 7, -8)


@pytest.mark.parametrize(
    ("values", "scales"),
    [
        (np.zeros((2, 48), np.int8), np.zeros((2, 1), np.float16)),
        (np.zeros((2, 64), np.int8), np.zeros((2, 1), np.float16)),
        (np.zeros((2, 64), np.int8), np.zeros((2, 2), np.float32)),
        (np.full((2, 64), 8, np.int8), np.zeros((2, 2), np.float16)),
    ],
)
def test_what_q4_0_does_not_have_is_refused(values: np.ndarray, scales: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"Q4_0 has float16 scales|not in \[-8, 7\]"):
        pack_q4_0(values, scales)


def test_what_is_no_block_is_refused() -> None:
    with pytest.raises(ValueError, match="uint8"):
        unpack_q4_0(np.zeros((2, 1, 17), np.uint8))


def test_a_group_of_one_column_is_a_group() -> None:
    codes, scales, zero_points = quantize_hqq(np.array([[8.0, -4.0]], np.float32), 1)
    assert scales.shape == zero_points.shape == (1, 2)
    assert (np.abs(codes * scales) == [[8.0, 4.0]]).all()  # nothing else shares the scale


@pytest.mark.parametrize("group_size", [-1, 3, 5])
def test_groups_that_do_not_divide_the_columns_are_refused(group_size: int) -> None:
    with pytest.raises(ValueError, match=f"group_size: {group_size} does not divide embed_dim 4"):
        quantize_symmetric(np.ones((2, 4), np.float32), group_size)


@pytest.mark.parametrize(("q", "scale", "right"), [(3, np.int32(2049), 6148.0), (0, np.float64(1e300), 0.0)])
def test_a_single_scale_keeps_its_value(q: int, scale: np.generic, right: float) -> None:
    """2,049 is no float16, and torch multiplies by it as it is; 1e300 is no float32, and times 0 it is 0."""
    got = dequantize_affine(np.array([[q]], np.int8), (1, 1), np.array([[scale]]), None, "float16")
    assert got.item() == right
