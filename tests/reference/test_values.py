"""Values never drift: their digests are pinned, and each pattern does what its name says."""

import dataclasses
import hashlib

import numpy as np
import pytest

from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name, to_float
from reference.program.spec import Lookup, ProgramSpec, QuantizedTable, TensorSpec, Values
from reference.program.values import PATTERNS, float_table, special_bits, tensor_values, values_array

FLOATS = ("float16", "bfloat16", "float32", "float64")
EXAMPLES = {
    "uniform": Values("uniform", 3, -8, 7),
    "zeros": Values("zeros"),
    "constant": Values("constant", value=-3.0),
    "one_hot": Values("one_hot", low=2, position=5, value=-7.0),
    "ramp": Values("ramp", low=-3, high=3),
    "scales": Values("scales", 4),
    "signed_scales": Values("signed_scales", 5),
    "special_scales": Values("special_scales", 6),
    "bits": Values("bits", 7),
    "pairs": Values("pairs"),
    "powers_of_two": Values("powers_of_two", 8),
    "weights": Values("weights", 9),
}
GOLDEN = {
    "bits": "87009d1d1993276a",
    "constant": "d638ac71f23ceb0d",
    "one_hot": "638e5a4ffbbdd35c",
    "pairs": "c032d9a2aaf7749f",
    "powers_of_two": "34602d259508689f",
    "ramp": "a95fd8878aadbdae",
    "scales": "b348a40d7c813afd",
    "signed_scales": "2ea866eca54ef5eb",
    "special_scales": "b2c7cd6e000a5c9d",
    "uniform": "d27fb009c159beab",
    "weights": "5442088e4e46ac19",
    "zeros": "272a4604c0f48df5",
}


@pytest.mark.parametrize("pattern", sorted(EXAMPLES))
def test_digests_are_pinned(pattern: str) -> None:
    digest = hashlib.sha256()
    for dtype in ("int8", "int64", *FLOATS):
        try:
            array = values_array(EXAMPLES[pattern], dtype, (9, 7))
        except ValueError:
            assert dtype.startswith("int")
            continue
        assert array.shape == (9, 7)
        assert dtype_name(array) == dtype
        digest.update(dtype.encode() + array.tobytes())
    assert digest.hexdigest()[:16] == GOLDEN[pattern]


def test_every_pattern_is_pinned() -> None:
    assert set(EXAMPLES) == set(PATTERNS) - {"literal", "quantized"}


@pytest.mark.parametrize("dtype", FLOATS)
def test_scales_are_positive_normal_and_tell_neighbours_apart(dtype: str) -> None:
    scales = to_float(values_array(Values("scales", 1), dtype, (40, 12))).astype(np.float64)
    assert (scales >= 2.0**-20).all()
    assert (scales < 2.0**12).all()
    exponents = np.frexp(scales)[1]
    assert (exponents[:, 1:] != exponents[:, :-1]).all()
    assert len(np.unique(exponents)) >= 25
    assert len(np.unique(scales)) >= 0.9 * scales.size
    signed = to_float(values_array(Values("signed_scales", 1), dtype, (40, 12)))
    np.testing.assert_array_equal(np.abs(signed), scales)
    assert 0.3 < (signed < 0).mean() < 0.7


@pytest.mark.parametrize("dtype", FLOATS)
def test_special_scales_hold_every_special(dtype: str) -> None:
    array = values_array(Values("special_scales", 2), dtype, (50,))
    assert set(special_bits(dtype).tolist()) <= set(array.view(f"<u{array.dtype.itemsize}").tolist())
    numbers = to_float(array)
    assert np.isnan(numbers).any()
    assert np.isposinf(numbers).any()
    assert np.isneginf(numbers).any()
    assert (numbers == 0).any()


def test_integer_patterns() -> None:
    drawn = values_array(Values("uniform", 1, -8, 7), "int8", (4000,))
    assert set(drawn.tolist()) == set(range(-8, 8))
    assert min(np.bincount(drawn + 8)) > 4000 / 16 / 2
    wide = values_array(Values("uniform", 1, -(2**31), 2**31 - 1), "int64", (1000,))
    assert wide.min() < -(2**30) < 2**30 < wide.max()
    one_hot = values_array(Values("one_hot", low=0, position=7, value=float("nan")), "float16", (2, 4))
    assert np.flatnonzero(np.isnan(one_hot)).tolist() == [7]
    assert one_hot[0].tolist() == [0, 0, 0, 0]
    minus = values_array(Values("constant", value=-0.0), "bfloat16", (3,))
    assert minus["bits"].tolist() == [0x8000] * 3


def test_weights_have_rows_of_their_own_magnitude() -> None:
    table = float_table(QuantizedTable("t", 12, 256, 32, Values("weights", 3)))
    spread = table.std(axis=1)
    assert len(np.unique(np.round(np.log2(spread), 2))) == 12
    assert (np.abs(table) < spread[:, None]).mean() > 0.6
    assert abs(float((table / spread[:, None]).mean())) < 0.1


def test_literal_and_empty() -> None:
    assert values_array(Values("literal", data="f0ff 0100"), "int16", (2, 1)).tolist() == [[-16], [1]]
    got = values_array(Values("literal", data="803f"), "bfloat16", ())
    assert got.dtype == BFLOAT16
    assert to_float(got).tolist() == 1.0
    for pattern in sorted(set(EXAMPLES) - {"one_hot"}):
        assert values_array(EXAMPLES[pattern], "float32", (0, 4)).shape == (0, 4)


@pytest.mark.parametrize(
    ("values", "dtype", "message"),
    [
        (Values("unknown"), "int8", "pattern 'unknown' is not one of bits, constant, literal"),
        (Values("quantized"), "int8", "part of a quantized table"),
        (Values("uniform", low=0, high=200), "int8", "do not fit int8"),
        (Values("uniform", low=2, high=1), "int8", "low <= high"),
        (Values("constant", value=0.5), "int8", "0.5 is not a whole number"),
        (Values("constant", value=float("nan")), "int8", "nan is not a whole number"),
        (Values("constant", value=128), "int8", "do not fit int8"),
        (Values("one_hot", position=4), "int8", "position 4 is outside the 4 elements"),
        (Values("scales"), "int8", "pattern 'scales' fills float16"),
        (Values("weights"), "int32", "pattern 'weights' fills float16"),
        (Values("literal", data="00"), "int8", "1 bytes; shape .* needs 4"),
        (Values("literal", data="0x"), "int8", "literal data is not hex"),
    ],
)
def test_errors(values: Values, dtype: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        values_array(values, dtype, (2, 2))


def test_tensor_values_include_a_tables_parts_and_name_the_culprit() -> None:
    table = QuantizedTable("emb", 5, 64, 32, Values("weights", 1), "float16")
    indices = TensorSpec("i", "int64", (3,), Values("uniform", 2, 0, 4), source="input")
    tensors = tensor_values(ProgramSpec((Lookup("out", "dq", "i"),), (indices,), (table,)))
    assert {name: (array.dtype.name, array.shape) for name, array in tensors.items()} == {
        "i": ("int64", (3,)),
        "emb.qdata": ("int8", (5, 64)),
        "emb.scale": ("float16", (5, 2)),
        "emb.zero_point": ("int8", (5, 2)),
    }
    bad = dataclasses.replace(indices, values=Values("nothing"))
    with pytest.raises(ValueError, match="tensor 'i': pattern 'nothing'"):
        tensor_values(ProgramSpec((), (bad,)))
    with pytest.raises(ValueError, match="table 'emb': group_size: 1"):
        tensor_values(ProgramSpec((), (), (dataclasses.replace(table, group_size=1),)))
