"""Every condition of contract 5.3 by itself, at its boundary, on both dialects; decided by hand from the text."""

import dataclasses
from dataclasses import replace

import pytest

from reference.program.fusibility import REASONS, Limits, violations
from reference.program.spec import (
    Dequantize,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Read,
    TensorSpec,
    Values,
    validate,
)

WEIGHT = TensorSpec("q", "int8", (9, 64), Values("uniform", 1, -8, 7), "parameter")
SCALE = TensorSpec("s", "float32", (9, 2), Values("special_scales", 2))
ZERO = TensorSpec("z", "int8", (9, 2), Values("zeros"))
INDICES = TensorSpec("i", "int64", (5,), Values("uniform", 3, 0, 8), "input")
DEQUANTIZE = Dequantize("dq", "q", "s", (1, 32), "z")
LOOKUP = Lookup("out", "dq", "i")
FLAT = TensorSpec("p", "uint8", (9, 32), Values("bits", 4), "parameter")
PACKED = PackedLookup("out", "p", "s", "i")


def split(**changes: dict[str, object]) -> ProgramSpec:
    """The control program of torchao's form, with fields of its parts replaced."""
    parts = {"weight": WEIGHT, "scale": SCALE, "zero": ZERO, "indices": INDICES, "dq": DEQUANTIZE, "out": LOOKUP}
    parts |= {name: replace(parts[name], **fields) for name, fields in changes.items()}
    spec = ProgramSpec((parts.pop("dq"), parts.pop("out")), tuple(parts.values()))
    validate(spec)
    return spec


def packed(**changes: dict[str, object]) -> ProgramSpec:
    """The control program of embedding_4bit's form, with fields of its parts replaced."""
    parts = {"weight": FLAT, "scale": SCALE, "zero": ZERO, "indices": INDICES, "out": PACKED}
    parts |= {name: replace(parts[name], **fields) for name, fields in changes.items()}
    spec = ProgramSpec((parts.pop("out"),), tuple(parts.values()))
    validate(spec)
    return spec


def geometry(vocab_size: int, embed_dim: int, group_size: int, *scale_shape: int) -> dict[str, dict[str, object]]:
    shape = scale_shape or (vocab_size, embed_dim // group_size if group_size else 0)
    return {
        "weight": {"shape": (vocab_size, embed_dim)},
        "scale": {"shape": shape},
        "zero": {"shape": shape},
        "dq": {"block_size": (1, group_size)},
    }


SPLIT = [
    ({}, ""),
    # where the constants come from
    ({"weight": {"source": "buffer"}, "scale": {"source": "lifted"}, "zero": {"source": "non_persistent"}}, ""),
    ({"weight": {"source": "input"}}, "weight_not_constant"),
    ({"weight": {"source": "computed"}}, "weight_not_constant"),
    ({"weight": {"source": "mutated"}}, "weight_written"),
    ({"weight": {"source": "input", "values": Values("constant", value=8)}}, "weight_not_constant"),
    ({"scale": {"source": "input"}}, "scale_not_constant"),
    ({"scale": {"source": "computed"}}, "scale_not_constant"),
    ({"scale": {"source": "mutated"}}, "scale_written"),
    ({"zero": {"source": "input"}}, "zero_point_not_constant"),
    ({"zero": {"source": "computed"}}, "zero_point_not_constant"),
    ({"zero": {"source": "mutated"}}, "zero_point_written"),
    ({"zero": {"source": "mutated", "values": Values("constant", value=1)}}, "zero_point_written zero_point_nonzero"),
    ({"zero": {"source": "input", "values": Values("constant", value=1)}}, "zero_point_not_constant"),
    # a zero point that dequantize does not read is nobody's
    ({"zero": {"values": Values("constant", value=1)}, "dq": {"zero_point": ""}}, ""),
    # what stands between
    ({"dq": {"weight_ops": ("clone",), "scale_ops": ("view", "clone"), "zero_point_ops": ("clone", "view")}}, ""),
    ({"dq": {"weight_ops": ("clone", "add_zero")}}, "weight_not_constant"),
    ({"dq": {"weight_ops": ("transpose_twice",)}}, "weight_not_constant"),
    ({"dq": {"scale_ops": ("add_zero",)}}, "scale_not_constant"),
    ({"dq": {"zero_point_ops": ("add_zero",)}}, "zero_point_not_constant"),
    ({"out": {"table_ops": ("clone",)}}, "table_ops"),
    ({"out": {"table_ops": ("view",)}}, "table_ops"),
    ({"out": {"table_ops": ("add_zero",)}}, "table_ops"),
    # the table
    ({"weight": {"dtype": "int16"}, "dq": {"input_dtype": "int16"}}, "weight_dtype"),
    ({"weight": {"dtype": "uint8", "values": Values("uniform", low=0, high=7)}}, "weight_dtype"),
    ({"dq": {"input_dtype": "uint8"}}, "weight_dtype"),
    ({"weight": {"values": Values("one_hot", low=7, position=575, value=8)}}, "weight_values"),
    ({"weight": {"values": Values("one_hot", low=-8, position=0, value=-9)}}, "weight_values"),
    ({"weight": {"values": Values("one_hot", low=-8, position=0, value=7)}}, ""),
    ({"weight": {"shape": (576,)}}, "weight_shape"),
    ({"weight": {"shape": (9, 64, 1)}}, "weight_shape"),
    ({"dq": {"qmin": -7}}, "qmin_qmax"),
    ({"dq": {"qmax": 8}}, "qmin_qmax"),
    ({"dq": {"qmin": 0, "qmax": 15}}, "qmin_qmax"),
    ({"dq": {"qmin": -128, "qmax": 127}}, "qmin_qmax"),
    # group size
    (geometry(9, 64, 4), ""),
    (geometry(9, 64, 64), ""),
    (geometry(9, 96, 12), ""),
    (geometry(9, 96, 48), ""),
    (geometry(9, 64, 1), "group_size_not_multiple_of_4"),
    (geometry(9, 64, 2), "group_size_not_multiple_of_4"),
    (geometry(9, 96, 6), "group_size_not_multiple_of_4"),
    (geometry(9, 96, 3), "group_size_not_multiple_of_4"),
    (geometry(9, 64, 12), "embed_dim_not_divisible_by_group scale_shape"),
    (geometry(9, 64, 128), "embed_dim_not_divisible_by_group scale_shape"),
    (geometry(9, 64, 5), "embed_dim_not_divisible_by_group scale_shape group_size_not_multiple_of_4"),
    (geometry(9, 64, 0, 9, 1), "block_size"),
    (geometry(9, 64, -1, 9, 1), "block_size"),
    ({"dq": {"block_size": (3, 32)}, "scale": {"shape": (3, 2)}, "zero": {"shape": (3, 2)}}, "block_size scale_shape"),
    ({"dq": {"block_size": (9, 32)}, "scale": {"shape": (1, 2)}, "zero": {"shape": (1, 2)}}, "block_size scale_shape"),
    ({"dq": {"block_size": (64,)}}, "block_size"),
    ({"dq": {"block_size": ()}}, "block_size"),
    ({"dq": {"block_size": (1, 32, 1)}}, "block_size"),
    # D and V
    (geometry(9, 32, 32), ""),
    (geometry(9, 16, 16), "embed_dim_not_multiple_of_32"),
    (geometry(9, 48, 16), "embed_dim_not_multiple_of_32"),
    (geometry(9, 100, 4), "embed_dim_not_multiple_of_32"),
    (geometry(9, 0, 32), "embed_dim_not_multiple_of_32"),
    (geometry(1, 64, 32), ""),
    (geometry(0, 64, 32), "empty_table"),
    (geometry(0, 0, 32), "empty_table embed_dim_not_multiple_of_32"),
    # scales
    ({"scale": {"dtype": "float16"}}, ""),
    ({"scale": {"dtype": "bfloat16"}}, ""),
    ({"scale": {"dtype": "float64"}}, "scale_dtype"),
    ({"scale": {"dtype": "int32", "values": Values("constant", value=1)}}, "scale_dtype"),
    ({"scale": {"values": Values("zeros")}}, ""),
    ({"scale": {"values": Values("constant", value=float("nan"))}}, ""),
    ({"scale": {"values": Values("constant", value=float("-inf"))}}, ""),
    ({"scale": {"shape": (18,)}}, "scale_shape"),
    ({"scale": {"shape": (2, 9)}}, "scale_shape"),
    ({"scale": {"shape": (9, 2, 1)}}, "scale_shape"),
    ({"scale": {"shape": (1, 9, 2)}}, "scale_shape"),
    (geometry(9, 64, 64, 9), "scale_shape"),
    (geometry(9, 64, 32, 9, 4), "scale_shape"),
    # zero points
    ({"dq": {"zero_point": ""}}, ""),
    ({"zero": {"dtype": "float32", "values": Values("constant", value=-0.0)}}, ""),
    ({"zero": {"dtype": "bfloat16"}}, ""),
    ({"zero": {"dtype": "int64", "shape": (18,)}}, ""),
    ({"zero": {"values": Values("one_hot", position=17, value=1)}}, "zero_point_nonzero"),
    ({"zero": {"dtype": "float32", "values": Values("one_hot", value=float("nan"))}}, "zero_point_nonzero"),
    ({"zero": {"dtype": "float64", "values": Values("one_hot", value=1e-300)}}, "zero_point_nonzero"),
    ({"zero": {"dtype": "bfloat16", "values": Values("one_hot", value=0.5)}}, "zero_point_nonzero"),
    # output
    ({"dq": {"output_dtype": "float16"}}, ""),
    ({"dq": {"output_dtype": "float16"}, "scale": {"dtype": "float16"}}, ""),
    ({"dq": {"output_dtype": "bfloat16"}}, ""),
    ({"dq": {"output_dtype": "float64"}}, "output_dtype"),
    # lookup
    ({"indices": {"dtype": "int32"}}, ""),
    ({"indices": {"dtype": "int16"}}, "indices_dtype"),
    ({"indices": {"dtype": "uint8"}}, "indices_dtype"),
    ({"indices": {"shape": ()}}, ""),
    ({"indices": {"shape": (0,)}}, ""),
    ({"indices": {"shape": (2, 2, 2), "dynamic": (0, 1)}}, ""),
    ({"indices": {"shape": (1, 1, 1, 1)}}, "indices_rank"),
    ({"indices": {"source": "computed"}}, ""),
    ({"indices": {"source": "mutated"}}, ""),
    ({"out": {"padding_idx": 3, "scale_grad_by_freq": True, "sparse": True}}, ""),
    ({"out": {"max_norm": 1.0}}, "max_norm"),
    ({"out": {"max_norm": -1.0}}, "max_norm"),
    # several at once
    (
        {"dq": {"qmin": 0}, "scale": {"dtype": "float64"}, "indices": {"shape": (1, 1, 1, 1)}},
        "qmin_qmax scale_dtype indices_rank",
    ),
]


@pytest.mark.parametrize(("changes", "expected"), SPLIT)
def test_torchaos_form(changes: dict[str, dict[str, object]], expected: str) -> None:
    assert violations(split(**changes)) == {"out": frozenset(expected.split())}


PACKED_ROWS = [
    ({}, ""),
    ({"out": {"zero_point": "z"}}, ""),
    ({"out": {"zero_point": "z"}, "zero": {"values": Values("one_hot", value=1)}}, "zero_point_nonzero"),
    ({"out": {"zero_point": "z"}, "zero": {"source": "input"}}, "zero_point_not_constant"),
    ({"out": {"zero_point": "z"}, "zero": {"source": "mutated"}}, "zero_point_written"),
    ({"zero": {"values": Values("constant", value=1)}}, ""),
    ({"weight": {"values": Values("constant", value=255)}}, ""),
    ({"weight": {"dtype": "int8"}}, "weight_dtype"),
    ({"weight": {"source": "input"}}, "weight_not_constant"),
    ({"weight": {"source": "mutated"}}, "weight_written"),
    ({"out": {"weight_ops": ("clone", "view"), "scale_ops": ("clone",)}}, ""),
    ({"out": {"weight_ops": ("add_zero",)}}, "weight_not_constant"),
    ({"out": {"scale_ops": ("transpose_twice",)}}, "scale_not_constant"),
    ({"scale": {"source": "mutated"}}, "scale_written"),
    ({"scale": {"dtype": "bfloat16"}}, ""),
    ({"scale": {"dtype": "float64"}}, "scale_dtype"),
    ({"scale": {"shape": (9,)}}, ""),
    ({"scale": {"shape": (8,)}}, "scale_shape"),
    ({"scale": {"shape": (9, 1, 1)}}, "scale_shape"),
    ({"weight": {"shape": (9, 24)}, "scale": {"shape": (9,)}}, "embed_dim_not_multiple_of_32"),
    ({"scale": {"shape": (9, 1)}}, ""),
    ({"scale": {"shape": (9, 16)}}, ""),
    ({"scale": {"shape": (9, 32)}}, "group_size_not_multiple_of_4"),
    ({"scale": {"shape": (9, 64)}}, "group_size_not_multiple_of_4"),
    ({"scale": {"shape": (9, 3)}}, "embed_dim_not_divisible_by_group scale_shape"),
    ({"scale": {"shape": (9, 128)}}, "embed_dim_not_divisible_by_group scale_shape"),
    ({"scale": {"shape": (9, 0)}}, "scale_shape"),
    ({"scale": {"shape": (8, 2)}}, "scale_shape"),
    ({"weight": {"shape": (9, 8)}, "scale": {"shape": (9, 1)}}, "embed_dim_not_multiple_of_32"),
    ({"weight": {"shape": (9, 24)}, "scale": {"shape": (9, 1)}}, "embed_dim_not_multiple_of_32"),
    ({"weight": {"shape": (9, 0)}, "scale": {"shape": (9, 1)}}, "embed_dim_not_multiple_of_32"),
    ({"weight": {"shape": (0, 32)}, "scale": {"shape": (0, 2)}}, "empty_table"),
    ({"weight": {"shape": (288,)}}, "weight_shape"),
    ({"out": {"qmin": 0, "qmax": 15}}, "qmin_qmax"),
    ({"out": {"output_dtype": "float16"}, "scale": {"dtype": "float16"}}, ""),
    ({"out": {"output_dtype": "bfloat16"}}, ""),
    ({"out": {"output_dtype": "float64"}}, "output_dtype"),
    ({"indices": {"shape": (1, 1, 1, 1)}}, "indices_rank"),
]


@pytest.mark.parametrize(("changes", "expected"), PACKED_ROWS)
def test_embedding_4bit(changes: dict[str, dict[str, object]], expected: str) -> None:
    assert violations(packed(**changes)) == {"out": frozenset(expected.split())}


@pytest.mark.parametrize(
    ("limits", "fits"),
    [
        (Limits(), True),
        (Limits(max_storage_buffer_range=512), True),  # 9 rows are 2 blocks high, 16 wide, 16 bytes each
        (Limits(max_storage_buffer_range=511), False),
        (Limits(max_image_dimension_2d=16), True),
        (Limits(max_image_dimension_2d=15), False),
        (Limits(max_storage_buffer_range=512, max_image_dimension_2d=15), False),
    ],
)
def test_limits(limits: Limits, fits: bool) -> None:
    expected = frozenset() if fits else frozenset({"table_limit"})
    assert violations(split(), limits) == {"out": expected}
    assert violations(packed(), limits) == {"out": expected}


def test_limits_count_rows_of_blocks_and_the_scales() -> None:
    tall = split(**geometry(129, 32, 32))
    assert violations(tall, Limits(max_image_dimension_2d=17))["out"] == frozenset()
    assert violations(tall, Limits(max_image_dimension_2d=16))["out"] == {"table_limit"}
    fine = split(**geometry(8, 64, 4))  # 256 bytes of blocks, 8 * 16 float32 scales: 512 bytes
    assert violations(fine, Limits(max_storage_buffer_range=512))["out"] == frozenset()
    assert violations(fine, Limits(max_storage_buffer_range=511))["out"] == {"table_limit"}


def test_each_lookup_is_judged_by_itself() -> None:
    table = QuantizedTable("emb", 8, 64, 32, Values("weights", 1))
    steps = (
        Dequantize("dq", "emb.qdata", "emb.scale", (1, 32), "emb.zero_point"),
        Dequantize("odd", "emb.qdata", "emb.scale", (1, 32), "emb.zero_point", qmin=-7),
        Lookup("normed", "dq", "i", max_norm=1.0),
        Lookup("plain", "dq", "i"),
        Lookup("refused", "odd", "i"),
        Read("read", "dq"),
    )
    spec = ProgramSpec(steps, (replace(INDICES, values=Values("zeros")),), (table,))
    validate(spec)
    assert violations(spec) == {
        "normed": frozenset({"max_norm"}),
        "plain": frozenset(),
        "refused": frozenset({"qmin_qmax"}),
    }


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("group_size", [0, 2, 32])
def test_quantized_tables(dtype: str, group_size: int) -> None:
    table = QuantizedTable("emb", 8, 64, group_size, Values("weights", 1), dtype)
    block = (1, group_size or 64)
    dequantize = Dequantize("dq", "emb.qdata", "emb.scale", block, "emb.zero_point", output_dtype=dtype)
    spec = ProgramSpec((dequantize, LOOKUP), (replace(INDICES, values=Values("zeros")),), (table,))
    expected = {"group_size_not_multiple_of_4"} if group_size == 2 else set()
    assert violations(spec) == {"out": expected}


def test_every_reason_has_a_row() -> None:
    shown = {reason for _, expected in SPLIT for reason in expected.split()} | {"table_limit"}
    assert shown == set(REASONS)
    assert len(REASONS) == len(set(REASONS))


def test_unused_tensors_decide_nothing() -> None:
    spec = split()
    unused = (
        replace(WEIGHT, name="w2", source="mutated", values=Values("constant", value=100)),
        replace(ZERO, name="z2", source="input", values=Values("constant", value=9)),
    )
    assert violations(dataclasses.replace(spec, tensors=spec.tensors + unused)) == {"out": frozenset()}
