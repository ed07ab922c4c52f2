"""Arrays compared: a table of right and wrong answers, and every bit of any array."""

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from conformance.harness.observation import Declared
from conformance.judging import compare
from conformance.results.mismatch import ArrayMismatch
from reference.arithmetic.accept import HOST, FloatModes, accept_products
from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name
from reference.table.layouts import pack_flat, pack_linear_weight

#: By dtype: some not-a-numbers as bits, quiet and signalling, of both signs.
NANS = {
    "float32": (0x7FC00000, 0xFFC00001, 0x7FA00000),
    "float16": (0x7E00, 0xFE01, 0x7D00),
    "bfloat16": (0x7FC0, 0xFFC1, 0x7FA0),
}
INFINITY = {"float32": 0x7F800000, "float16": 0x7C00, "bfloat16": 0x7F80}
WIDTHS = {"float32": 32, "float16": 16, "bfloat16": 16, "int8": 8, "uint8": 8, "int32": 32, "int64": 64}


def array(bits: list[int], dtype: str) -> np.ndarray:
    """Elements of any dtype from their bits."""
    words = np.array(bits, f"<u{WIDTHS[dtype] // 8}")
    return words.view(BFLOAT16 if dtype == "bfloat16" else np.dtype(dtype))


def not_a_number(bits: int, dtype: str) -> bool:
    return dtype in INFINITY and bits & (1 << WIDTHS[dtype] - 1) - 1 > INFINITY[dtype]


@pytest.mark.parametrize("dtype", WIDTHS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_every_bit_of_every_element_counts_but_those_of_nan(dtype: str, data: st.DataObject) -> None:
    width = WIDTHS[dtype]
    right = data.draw(st.lists(st.integers(0, 2**width - 1), min_size=1, max_size=4))
    assert compare.same_bits("x", array(right, dtype), array(right, dtype)) is None
    place, bit = data.draw(st.integers(0, len(right) - 1)), data.draw(st.integers(0, width - 1))
    wrong = [bits ^ (1 << bit) * (n == place) for n, bits in enumerate(right)]
    found = compare.same_bits("x", array(wrong, dtype), array(right, dtype))
    if not_a_number(right[place], dtype) and not_a_number(wrong[place], dtype):
        assert found is None
        return
    zeros = dtype in INFINITY and bit == width - 1 and not wrong[place] & ~(1 << width - 1)
    assert (found.index, found.wrong, found.of) == ((place,), 1, len(right))
    assert found.reason == ("sign_of_zero" if zeros else "values")


@pytest.mark.parametrize("dtype", NANS)
def test_nan_matches_any_nan_and_nothing_else(dtype: str) -> None:
    for one in NANS[dtype]:
        for other in NANS[dtype]:
            assert compare.same_bits("x", array([one], dtype), array([other], dtype)) is None
        for number in (0, INFINITY[dtype], INFINITY[dtype] - 1):
            for pair in (([one], [number]), ([number], [one])):
                assert compare.same_bits("x", *(array(bits, dtype) for bits in pair)).reason == "values"
    assert compare.same_bits("x", array([INFINITY[dtype]], dtype), array([INFINITY[dtype]], dtype)) is None


def test_only_signs_of_zero_is_said_of_nothing_else() -> None:
    right = np.float32([0.0, 1.0])
    assert compare.same_bits("x", np.float32([-0.0, 1.0]), right).reason == "sign_of_zero"
    assert compare.same_bits("x", np.float32([-0.0, -1.0]), right).reason == "values"
    assert compare.same_bits("x", np.float32([0.0, -1.0]), right).reason == "values"


@pytest.mark.parametrize(
    ("got", "reason"),
    [
        (np.zeros((3, 2), np.float32), "shape"),  # as many elements
        (np.zeros(6, np.float32), "shape"),
        (np.zeros((2, 3, 1), np.float32), "shape"),
        (np.zeros((2, 3), np.float64), "dtype"),
        (np.zeros((2, 3), np.int32), "dtype"),  # as many bytes
        (np.zeros((3, 2), np.float16), "dtype"),
    ],
)
def test_another_type_or_shape_is_seen_before_any_value(got: np.ndarray, reason: str) -> None:
    right = np.zeros((2, 3), np.float32)
    for compared in (compare.same_bits, lambda *a: compare.same_codes(*a, right, "flat")):
        wrong = compared("x", got, right)
        assert (wrong.tag, wrong.reason, wrong.expected) == ("dtype_shape", reason, "float32[2, 3]")
        assert wrong.got == f"{dtype_name(got)}{list(got.shape)}"


@pytest.mark.parametrize(("layout", "rows"), [("flat", 2), ("linear_weight", 2), ("blocks", 9)])
def test_packed_tables_byte_for_byte(layout: str, rows: int) -> None:
    from reference.table import layouts

    values = np.arange(rows * 8, dtype=np.int64).reshape(rows, 8) * 7 % 16 - 8
    pack = {"flat": layouts.pack_flat, "linear_weight": layouts.pack_linear_weight, "blocks": layouts.pack_blocks}[
        layout
    ]
    right = pack(values.astype(np.int8))
    assert compare.same_codes("t", right.copy(), right, values, layout) is None
    for index in np.ndindex(right.shape):
        wrong = right.copy()
        wrong[index] ^= 1 << 3
        found = compare.same_codes("t", wrong, right, values, layout)
        assert (found.position, found.wrong, found.of) == (index, 1, right.size)
        assert found.got == f"0x{int(wrong[index]) & 256**right.itemsize - 1:0{2 * right.itemsize}x}"
        filled_up = layout == "blocks" and index[0] == 1 and index[2] > 0  # words of row 9 on, low nibbles
        assert found.reason == ("padding" if filled_up else "codes")


def test_well_known_mistakes_of_packing_have_their_names() -> None:
    from reference.table import layouts

    values = np.arange(72, dtype=np.int64).reshape(9, 8) * 5 % 13 - 8
    flat, blocks = layouts.pack_flat(values.astype(np.int8)), layouts.pack_blocks(values.astype(np.int8))
    assert compare.same_codes("t", flat >> 4 | flat << 4, flat, values, "flat").reason == "nibble_order"
    assert compare.same_codes("t", flat ^ 0x88, flat, values, "flat").reason == "offset"
    moved = values[[0, 1, 2, 3, 4, 6, 5, 7, 8]]
    found = compare.same_codes("t", layouts.pack_blocks(moved.astype(np.int8)), blocks, values, "blocks")
    assert (found.reason, found.read_from) == ("row_order", "row 5 holds row 6")


def test_an_accept_set_takes_what_it_holds() -> None:
    values, scales = np.array([[7, -8, 0, 7]], np.int8), np.float32([[0.1, 0.1, np.inf, 2.0**126]])
    allowed = accept_products(values, scales, "float32", HOST)
    right = np.float32([[np.float32(0.1) * np.float32(7), np.float32(0.1) * -8, np.nan, np.inf]])
    assert compare.accepted("out", right, allowed) is None
    for place, other in (
        (0, np.nextafter(right[0, 0], np.float32(1))),
        (1, -right[0, 1]),
        (2, 0.0),
        (3, np.nan),
        (3, -math.inf),
    ):
        wrong = right.copy()
        wrong[0, place] = other
        found = compare.accepted("out", wrong, allowed)
        assert (found.index, found.wrong, found.of, found.reason) == ((0, place), 1, 4, "values")
        assert (found.allowed == ("any NaN",)) == (place == 2)


MODES = {
    "rte": "RoundingModeRTE",
    "rtz": "RoundingModeRTZ",
    "denorm_preserve": "DenormPreserve",
    "denorm_flush": "DenormFlushToZero",
    "signed_zero_inf_nan_preserve": "SignedZeroInfNanPreserve",
}


@pytest.mark.parametrize("width", [16, 32])
@pytest.mark.parametrize("field", MODES)
def test_a_declared_mode_is_that_mode_of_that_width(field: str, width: int) -> None:
    assert compare.float_modes(Declared((f"{MODES[field]} {width}",))) == FloatModes(**{f"{field}{width}": True})


def test_what_is_not_declared_is_not_assumed() -> None:
    assert compare.float_modes(Declared()) == FloatModes()
    assert compare.float_modes(Declared((), precise=True)) == FloatModes(precise=True)
    assert compare.float_modes(Declared((), io_storage="texture3d")) == FloatModes(image_output16=True)
    assert compare.float_modes(Declared((), io_storage="texture2d")) == FloatModes()


@pytest.mark.parametrize("pack", [pack_flat, pack_linear_weight])
def test_a_table_that_was_repacked_under_another_reader_is_recognised(pack: Callable[[np.ndarray], np.ndarray]) -> None:
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    wrong = compare.same_bits("read_weight", pack(values), values)
    assert str(wrong) == "read_weight is uint8[2, 4], its packed bytes, expected int8[2, 8]"
    other = compare.same_bits("read_weight", pack(values) ^ np.uint8(1), values)
    assert str(other) == "read_weight is uint8[2, 4], expected int8[2, 8]"


def test_bytes_in_the_other_nibble_order_are_recognised() -> None:
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    wrong = compare.same_bits("read_weight", pack_linear_weight(values), pack_flat(values))
    assert isinstance(wrong, ArrayMismatch)
    assert wrong.picture
    assert wrong.picture.cells == "8p"
