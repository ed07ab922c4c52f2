"""The operator against its definition, one scalar at a time, and against torch's own arithmetic."""

import itertools

import numpy as np
import pytest
import torch

from reference.program.spec import Values
from reference.program.values import values_array
from reference.q4_embedding_ref import embedding_operands, embedding_products, embedding_q4gsw
from reference.table.layouts import pack_flat, pack_linear_weight


def same_bits(left: np.ndarray, right: np.ndarray) -> bool:
    """Bit for bit, but any NaN for any NaN."""
    nan = np.isnan(left)
    unsigned = f"u{left.dtype.itemsize}"
    return (
        left.dtype == right.dtype
        and left.shape == right.shape
        and bool((nan == np.isnan(right)).all())
        and bool((left.view(unsigned) == right.view(unsigned))[~nan].all())
    )


@pytest.mark.parametrize("output_dtype", ["float32", "float16"])
@pytest.mark.parametrize("scale_dtype", ["float32", "float16"])
@pytest.mark.parametrize("shape", [(), (0,), (5,), (2, 3), (2, 1, 2), (1, 2, 1, 2)])
def test_is_the_definition(output_dtype: str, scale_dtype: str, shape: tuple[int, ...]) -> None:
    values = values_array(Values("uniform", seed=1, low=-8, high=7), "int8", (9, 12))
    scales = values_array(Values("special_scales", seed=2), scale_dtype, (9, 3))
    indices = values_array(Values("uniform", seed=3, low=0, high=8), "int32", shape)
    expected = np.empty((*shape, 12), output_dtype)
    for place in itertools.product(*map(range, shape)):
        row = int(indices[place])
        for d in range(12):
            product = torch.tensor(float(values[row, d]) * float(scales[row, d // 4]), dtype=torch.float64)
            expected[(*place, d)] = product.to(torch.float32).to(getattr(torch, output_dtype)).numpy()
    for packed, is_linear in ((pack_flat(values), False), (pack_linear_weight(values), True)):
        for dtype in (np.int32, np.int64):
            got = embedding_q4gsw(packed, scales, 4, indices.astype(dtype), is_linear, output_dtype)
            assert same_bits(got, expected)


def test_every_group_size() -> None:
    values = values_array(Values("uniform", seed=4, low=-8, high=7), "int8", (3, 24))
    for group in (1, 2, 3, 4, 6, 8, 12, 24):
        scales = values_array(Values("scales", seed=group), "float32", (3, 24 // group))
        got = embedding_q4gsw(pack_flat(values), scales, group, np.array([2, 0]))
        columns = np.arange(24) // group
        assert same_bits(got, values[[2, 0]].astype(np.float32) * scales[[2, 0]][:, columns])
        operands = embedding_operands(pack_flat(values), scales, group, np.array([2, 0]))
        products = embedding_products(pack_flat(values), scales, group, np.array([2, 0]))
        np.testing.assert_array_equal(products, operands[0].astype(np.float64) * operands[1].astype(np.float64))
        assert products.dtype == np.float64


def test_float16_rounds_through_float32() -> None:
    # 3 * 0x3E800AAB is just above the tie of 0x3A00 and 0x3A01; float32 rounds it onto the tie, which goes to even.
    scale = np.uint32([[0x3E800AAB]]).view(np.float32)
    assert (3 * scale.astype(np.float64)).astype(np.float16).view(np.uint16).tolist() == [[0x3A01]]
    got = embedding_q4gsw(pack_flat(np.full((1, 2), 3, np.int8)), scale, 2, np.array(0), output_dtype="float16")
    assert got.view(np.uint16).tolist() == [0x3A00, 0x3A00]


WEIGHT, SCALES, INDICES = np.zeros((4, 8), np.uint8), np.ones((4, 2), np.float32), np.array([0])


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"weight": WEIGHT.astype(np.int8)}, ValueError, "weight: int8"),
        ({"weight": WEIGHT[0]}, ValueError, "weight: uint8"),
        ({"weight_scales": SCALES.astype(np.float64)}, ValueError, "weight_scales: dtype float64"),
        ({"weight_scales": SCALES.reshape(-1)}, ValueError, r"weight_scales: shape \(8,\) is not \(4, 2\)"),
        ({"group_size": 0}, ValueError, "group_size: 0 does not divide embed_dim 16"),
        ({"group_size": 5}, ValueError, "group_size: 5 does not divide embed_dim 16"),
        ({"group_size": -8}, ValueError, "group_size: -8"),
        ({"indices": np.array([0.0])}, ValueError, "indices: dtype float64"),
        ({"indices": np.array([[0, 3], [4, 0]])}, IndexError, r"indices: 4 at \(1, 0\) is outside \[0, 4\)"),
        ({"indices": np.array(-1)}, IndexError, r"indices: -1 at \(\) is outside \[0, 4\)"),
        ({"output_dtype": "bfloat16"}, ValueError, "output_dtype: 'bfloat16'"),
    ],
)
def test_errors_name_the_argument(change: dict[str, object], error: type[Exception], message: str) -> None:
    arguments = {"weight": WEIGHT, "weight_scales": SCALES, "group_size": 8, "indices": INDICES} | change
    with pytest.raises(error, match=message):
        embedding_q4gsw(**arguments)
