"""A picture tells a nibble swap, a wrong group and a wrong row apart, and stays small."""

import numpy as np
import pytest

from conformance.judging.compare import accepted, same_bits, same_codes
from conformance.results.mismatch import ArrayMismatch, LayoutMismatch, as_data
from conformance.results.picture import SIDE, decode, draw
from reference.arithmetic.accept import HOST, accept_products
from reference.program.spec import Values
from reference.program.values import values_array
from reference.table.layouts import pack_blocks, pack_flat, pack_linear_weight

V, D, G = 12, 64, 16
CODES = values_array(Values("uniform", 3, -8, 7), "int8", (V, D))
SCALES = values_array(Values("scales", 4), "float32", (V, D // G))
RIGHT = CODES * np.repeat(SCALES, G, axis=1)


def letters(got: np.ndarray, right: np.ndarray = RIGHT, group: int = G) -> np.ndarray:
    picture = draw(got, right, group)
    cells = decode(picture.cells, picture.height * picture.width)
    return np.array(list(cells)).reshape(picture.height, picture.width)


def test_a_nibble_swap_is_seen_everywhere() -> None:
    swapped = CODES.reshape(V, -1, 2)[:, :, ::-1].reshape(V, D) * np.repeat(SCALES, G, axis=1)
    assert set(np.unique(letters(swapped))) == {"n", "."}


def test_the_scale_of_another_group_is_seen_group_by_group() -> None:
    scales = SCALES.copy()
    scales[5, 2] = SCALES[5, 1]
    found = letters(CODES * np.repeat(scales, G, axis=1))
    assert set(found[5, 2 * G : 3 * G]) <= {"s", "."}
    assert (found[5, 2 * G : 3 * G] == "s").sum() > G // 2
    found[5, 2 * G : 3 * G] = "."
    assert (found == ".").all()


def test_another_offset_is_not_taken_for_another_scale() -> None:
    """It keeps the order too; where a group has no -1 and no 0, nothing tells the two apart."""
    found = letters((CODES + np.int8(1)) * np.repeat(SCALES, G, axis=1))
    telling = np.isin(CODES, (-1, 0)).reshape(V, -1, G).any(axis=2).repeat(G, axis=1)
    assert telling.mean() > 0.5
    assert set(found[telling]) <= {"x", "n"}


def test_another_row_is_seen_as_a_row() -> None:
    got = RIGHT.copy()
    got[7] = RIGHT[2]
    found = letters(got)
    assert set(found[7]) <= {"r", "."}
    assert (np.delete(found, 7, axis=0) == ".").all()


def test_anything_else_is_only_wrong() -> None:
    got = RIGHT.copy()
    got[3, 9] += 1
    found = letters(got)
    assert found[3, 9] == "x"
    assert (found != ".").sum() == 1


def test_large_arrays_are_reduced_and_keep_their_one_wrong_element() -> None:
    got = np.zeros((1000, 3000), np.float32)
    got[999, 2999] = 1
    picture = draw(got, np.zeros_like(got))
    assert (picture.height, picture.width, picture.rows, picture.columns) == (SIDE, SIDE, 1000, 3000)
    assert picture.cells == f"{SIDE * SIDE - 1}.x"


@pytest.mark.parametrize("shape", [(), (0,), (0, 4), (5,), (2, 3, 4), (1, 1)])
def test_every_shape_can_be_drawn(shape: tuple[int, ...]) -> None:
    right = np.zeros(shape, np.float16)
    picture = draw(right + np.float16(1), right)
    assert set(decode(picture.cells, picture.height * picture.width)) <= {"x", "s"}


@pytest.mark.parametrize("cells", ["3.", "5.", "4", "4?", "99999999.", "2.2.x", "-4."])
def test_malformed_cells_are_refused(cells: str) -> None:
    with pytest.raises(ValueError, match="picture: "):
        decode(cells, 4)


def test_mismatches_carry_one() -> None:
    rows = np.arange(V)
    wrong = RIGHT.copy()
    wrong[0, 1] = 99
    exact = same_bits("out", wrong, RIGHT)
    accept = accept_products(CODES[rows], np.repeat(SCALES, G, axis=1), "float32", HOST)
    for found in (exact, accepted("out", wrong, accept)):
        assert isinstance(found, ArrayMismatch)
        assert found.picture is not None
        assert decode(found.picture.cells, V * D).count(".") == V * D - 1


@pytest.mark.parametrize("layout", ["flat", "linear_weight", "blocks"])
def test_packed_tables_are_drawn_as_the_codes_that_they_hold(layout: str) -> None:
    pack = {"flat": pack_flat, "linear_weight": pack_linear_weight, "blocks": pack_blocks}[layout]
    swapped = np.ascontiguousarray(CODES.reshape(V, -1, 2)[:, :, ::-1]).reshape(V, D)
    found = same_codes("packed", pack(swapped), pack(CODES), CODES, layout)
    assert isinstance(found, LayoutMismatch)
    data = as_data(found)["picture"]
    assert (data["rows"], data["columns"]) == (16 if layout == "blocks" else V, D)
    assert set(decode(data["cells"], data["height"] * data["width"])) == {"n", "."}


@pytest.mark.parametrize(
    ("dtype", "across_zero"),
    [("float16", "16,384 to 32,767 ulp"), ("float32", "32,768 or more ulp"), ("float64", "32,768 or more ulp")],
)
def test_sizes_of_errors_are_in_ulp_whatever_the_dtype_and_the_sign(dtype: str, across_zero: str) -> None:
    right = np.array([[1, -1, 0, 1, 1, 1]], dtype)
    got = np.nextafter(right, np.array(np.inf, dtype))
    got[0, 3:] = -1, np.nan, 1
    assert draw(got, right).sizes == {"not finite": 1, "1 ulp": 3, across_zero: 1}
