"""The evaluator against eager torch executing the same programs, bit for bit."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchao.quantization.quant_primitives import dequantize_affine

from reference.program.evaluate import evaluate, packed_lookup
from reference.program.spec import (
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Read,
    TensorSpec,
    Values,
    validate,
)
from reference.program.values import tensor_values, values_array
from tests.support.arrays import assert_same_bits, to_numpy, to_torch

INDICES = TensorSpec("i", "int32", (2, 3), Values("uniform", 3, 0, 8), "input")
FLOATS = ("float32", "float16", "bfloat16")


@pytest.mark.parametrize(("scale_dtype", "output_dtype"), list(itertools.product((*FLOATS, "float64"), FLOATS)))
def test_torchaos_form_is_eager(scale_dtype: str, output_dtype: str) -> None:
    tensors = (
        TensorSpec("q", "int8", (9, 64), Values("uniform", 1, -8, 7)),
        TensorSpec("s", scale_dtype, (9, 4), Values("special_scales", 2)),
        TensorSpec("z", "float32", (9, 4), Values("signed_scales", 5)),
        INDICES,
    )
    steps = (
        Dequantize("dq", "q", "s", (1, 16), "z", output_dtype=output_dtype),
        Lookup("out", "dq", "i"),
        Read("whole", "dq"),
        Read("scale", "s"),
    )
    spec = ProgramSpec(steps, tensors)
    validate(spec)
    got, values = evaluate(spec), tensor_values(spec)
    q, s, z, i = (to_torch(values[name]) for name in "qszi")
    table = dequantize_affine(q, (1, 16), s, z, torch.int8, -8, 7, output_dtype=getattr(torch, output_dtype))
    assert set(got) == {"out", "whole", "scale"}
    assert_same_bits(got["whole"], to_numpy(table), "table")
    assert_same_bits(got["out"], to_numpy(torch.nn.functional.embedding(i, table)), "lookup")
    assert_same_bits(got["scale"], values["s"], "read")


def test_adding_zero_loses_the_sign_of_zero() -> None:
    minus = TensorSpec("s", "float32", (9, 2), Values("constant", value=-0.0))
    tensors = (TensorSpec("q", "int8", (9, 4), Values("constant", value=1)), minus, INDICES)
    signs = {}
    for name, source, ops in (
        ("plain", "buffer", ()),
        ("computed", "computed", ()),
        ("added", "buffer", ("add_zero",)),
    ):
        steps = (Dequantize("dq", "q", "s", (1, 2), scale_ops=ops), Lookup("out", "dq", "i"), Read("read", "s"))
        spec = ProgramSpec(steps, (tensors[0], replace(minus, source=source), INDICES))
        results = evaluate(spec)
        signs[name] = np.signbit(results["out"]).all(), np.signbit(results["read"]).all()
    assert signs == {"plain": (True, True), "computed": (False, False), "added": (False, True)}
    steps = (Dequantize("dq", "q", "s", (1, 2)), Lookup("out", "dq", "i", table_ops=("clone", "add_zero")))
    assert not np.signbit(evaluate(ProgramSpec(steps, tensors))["out"]).any()


def test_signalling_nan_passes_without_a_warning() -> None:
    for dtype in (*FLOATS, "float64"):
        scale = TensorSpec("s", dtype, (9, 4), Values("bits", 1), "computed")
        tensors = (TensorSpec("q", "int8", (9, 8), Values("uniform", 1, -8, 7)), scale, INDICES)
        steps = (Dequantize("dq", "q", "s", (1, 2), output_dtype="float16"), Lookup("out", "dq", "i"))
        assert evaluate(ProgramSpec(steps, tensors))["out"].shape == (2, 3, 8)


@pytest.mark.parametrize("output_dtype", FLOATS)
@pytest.mark.parametrize("shape", [(9, 4), (9,)])
@pytest.mark.parametrize("zero_point", [False, True])
def test_embedding_4bit_is_eager_where_the_scales_are_float32(
    output_dtype: str, shape: tuple[int, ...], zero_point: bool
) -> None:
    tensors = (
        TensorSpec("w", "uint8", (9, 16), Values("bits", 1)),
        TensorSpec("s", "float32", shape, Values("special_scales", 2)),
        TensorSpec("z", "float32", shape, Values("signed_scales", 3)),
        INDICES,
    )
    packed = PackedLookup("out", "w", "s", "i", "z" if zero_point else "", output_dtype=output_dtype)
    spec = ProgramSpec((packed,), tensors)
    validate(spec)
    values = tensor_values(spec)
    weight = to_torch(values["w"])
    codes = torch.stack([weight >> 4, weight & 15], dim=-1).reshape(9, 32).view(torch.int8) - 8
    columns = torch.arange(32) // (32 // (shape[1] if len(shape) > 1 else 1))
    scale = to_torch(values["s"]).reshape(9, -1)[:, columns]
    zero = to_torch(values["z"]).reshape(9, -1)[:, columns] if zero_point else 0
    expected = ((codes - zero) * scale).to(getattr(torch, output_dtype))[to_torch(values["i"]).long()]
    assert_same_bits(evaluate(spec)["out"], to_numpy(expected), (output_dtype, shape))


def test_embedding_4bit_keeps_a_float16_scales_product_exact() -> None:
    # 7 * 0x2E67 needs 13 bits: eager rounds it to float16 first, section 2 and the CPU kernel do not.
    weight, scale = np.full((1, 16), 0xFF, np.uint8), np.array([[0x2E67]], np.uint16).view(np.float16)
    exact = np.float32(7) * np.float32(scale[0, 0])
    assert exact != np.float32(np.float16(exact))
    assert set(packed_lookup(weight, scale, None, np.array([0]), "float32").ravel().tolist()) == {float(exact)}


def test_quantized_tables_and_what_has_no_entry() -> None:
    table = QuantizedTable("emb", 9, 64, 32, Values("weights", 1), "float16")
    x = TensorSpec("x", "float16", (2, 64), Values("scales", 1), "input")
    steps = (
        Dequantize("dq", "emb.qdata", "emb.scale", (1, 32), "emb.zero_point", output_dtype="float16"),
        Lookup("out", "dq", "i"),
        Lookup("normed", "dq", "i", max_norm=1.0),
        Linear("linear", "dq", "x"),
        Read("whole", "dq"),
    )
    spec = ProgramSpec(steps, (INDICES, x), (table,))
    validate(spec)
    results = evaluate(spec)
    assert set(results) == {"out", "whole"}
    assert results["out"].dtype == np.float16
    np.testing.assert_array_equal(results["whole"][values_array(INDICES.values, "int32", (2, 3))], results["out"])


def test_an_index_outside_is_named() -> None:
    tensors = (
        TensorSpec("q", "int8", (3, 4), Values("zeros")),
        TensorSpec("s", "float32", (3, 2), Values("zeros")),
        replace(INDICES, values=Values("one_hot", position=4, value=3)),
    )
    steps = (Dequantize("dq", "q", "s", (1, 2)), Lookup("out", "dq", "i"))
    with pytest.raises(IndexError, match=r"indices: 3 at \(1, 1\) is outside \[0, 3\)"):
        evaluate(ProgramSpec(steps, tensors))
