"""The arithmetic of dequantization and quantization against torchao itself, bit for bit."""

import itertools

import numpy as np
import pytest
import torch
from torchao.quantization import quantize_
from torchao.quantization.granularity import PerAxis, PerGroup
from torchao.quantization.quant_api import IntxWeightOnlyConfig
from torchao.quantization.quant_primitives import dequantize_affine as torchao_dequantize_affine

from reference.arithmetic.bfloat16 import BFLOAT16, cast_float, from_bfloat16, to_bfloat16, to_float
from reference.program.spec import Values
from reference.program.values import values_array
from reference.table.dequantize import dequantize_affine
from reference.table.quantize import quantize_symmetric
from tests.support.arrays import assert_same_bits, to_numpy, to_torch

FLOATS = ("float32", "float16", "bfloat16")
DTYPES = (*FLOATS, "float64", "int8", "int32", "int64")


BLOCKS = [  # for values [6, 16]: block size, a scale shape with one element a block
    ((1, 4), (6, 4)),
    ((1, 4), (24,)),
    ((1, 16), (6, 1)),
    ((1, 1), (6, 16)),
    ((2, 8), (3, 2)),
    ((6, 16), (1,)),
    ((1, 0), (6,)),
]


@pytest.mark.parametrize("output_dtype", FLOATS)
@pytest.mark.parametrize("scale_dtype", DTYPES)
def test_dequantize_affine_is_torchaos(output_dtype: str, scale_dtype: str) -> None:
    zero_dtypes = (None, *DTYPES, "uint8")
    for case, (zero_dtype, (block, shape)) in enumerate(itertools.product(zero_dtypes, BLOCKS)):
        values = values_array(Values("uniform", case, -128, 127), "int8", (6, 16))
        pattern = "bits" if scale_dtype.startswith("int") or case % 2 else "special_scales"
        scales = values_array(Values(pattern, case), scale_dtype, shape)
        zero_point = None if zero_dtype is None else values_array(Values("bits", case + 1), zero_dtype, shape)
        expected = torchao_dequantize_affine(
            to_torch(values),
            block,
            to_torch(scales),
            None if zero_point is None else to_torch(zero_point),
            torch.int8,
            -8,
            7,
            output_dtype=getattr(torch, output_dtype),
        )
        got = dequantize_affine(values, block, scales, zero_point, output_dtype)
        assert_same_bits(got, to_numpy(expected), (zero_dtype, block, shape, pattern))


def test_dequantize_affine_errors() -> None:
    values, scales = np.zeros((4, 8), np.int8), np.ones((4, 2), np.float32)
    with pytest.raises(ValueError, match="block_size: 3 does not divide the dimension of size 8"):
        dequantize_affine(values, (1, 3), scales, None, "float32")
    with pytest.raises(ValueError, match=r"block_size: .* 2 dimensions"):
        dequantize_affine(values, (4,), scales, None, "float32")
    with pytest.raises(ValueError, match=r"scales: 8 elements .* 16 blocks"):
        dequantize_affine(values, (1, 2), scales, None, "float32")
    with pytest.raises(ValueError, match="zero_point: 3 elements"):
        dequantize_affine(values, (1, 4), scales, np.zeros(3), "float32")
    with pytest.raises(ValueError, match="output_dtype: 'float64'"):
        dequantize_affine(values, (1, 4), scales, None, "float64")


@pytest.mark.parametrize("source", ["float32", "float64", "int32", "int64"])
@pytest.mark.parametrize("target", [*FLOATS, "float64"])
def test_cast_float_is_torchs(source: str, target: str) -> None:
    for values in (Values("bits", 5), Values("bits", 6), Values("powers_of_two", 7)):
        numbers = values_array(values, source, (20000,))
        got = cast_float(numbers, target)
        assert_same_bits(got, to_numpy(to_torch(numbers).to(getattr(torch, target))), values)


def test_cast_float_rounds_twice_as_torch_does() -> None:
    # Just above a tie of the 16-bit type; float32 rounds it onto the tie, which then goes to even.
    for numbers, target in (
        (np.full(37, 1 + 2**-11 + 2**-40), "float16"),
        (np.full(37, 1 + 2**-8 + 2**-40), "bfloat16"),
        (np.full(37, 2**35 + 2**27 + 1, np.int64), "bfloat16"),
    ):
        got = cast_float(numbers, target)
        assert_same_bits(got, to_numpy(to_torch(numbers).to(getattr(torch, target))), target)
        assert to_float(got).tolist() == [2.0 ** int(np.log2(numbers[0]))] * 37


def test_bfloat16_round_trips_every_pattern() -> None:
    every = np.arange(65536, dtype="<u2").view(BFLOAT16)
    wide = from_bfloat16(every)
    assert_same_bits(to_bfloat16(wide), every, "round trip")
    np.testing.assert_array_equal(np.isnan(wide), torch.isnan(to_torch(every)).numpy())
    ties = (wide.view(np.uint32) | np.uint32(0x8000)).view(np.float32)
    for numbers in (ties, (ties.view(np.uint32) - np.uint32(1)).view(np.float32)):
        assert_same_bits(to_bfloat16(numbers), to_numpy(torch.from_numpy(numbers).to(torch.bfloat16)), "ties")


def quantized_by_torchao(table: np.ndarray, group_size: int) -> tuple[np.ndarray, ...]:
    weights = to_torch(table)
    embedding = torch.nn.Embedding(*weights.shape, dtype=weights.dtype)
    embedding.weight = torch.nn.Parameter(weights, requires_grad=False)
    granularity = PerGroup(group_size) if group_size else PerAxis(0)
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=granularity)
    quantize_(embedding, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
    quantized = embedding.weight
    return tuple(to_numpy(part) for part in (quantized.qdata, quantized.scale, quantized.zero_point))


def edge_tables(dtype: str, shape: tuple[int, int], seed: int) -> dict[str, np.ndarray]:
    """Float tables [V, D] of one dtype that lie where rounding and clipping change."""
    bell = to_float(values_array(Values("weights", seed), dtype, shape)).astype(np.float64)
    bits = to_float(values_array(Values("bits", seed), dtype, shape))
    bits = np.where(np.isfinite(bits), bits, 0).astype(np.float64)
    largest = {"float32": 3.4028234663852886e38, "float16": 65504.0, "bfloat16": 3.3895313892515355e38}[dtype]
    half_steps = to_float(values_array(Values("uniform", seed, -15, 15), dtype, shape)).astype(np.float64) / 2
    half_steps[:, 0] = 7.5  # the scale is one where the group holds column 0: every other half is a tie
    negative = -np.abs(bell)
    negative[:, ::2] *= 2.0**6
    zero_groups = bell.copy()
    zero_groups[::2, : shape[1] // 2] = 0
    zero_groups[1::2] = -0.0
    return {
        "bell": bell,
        "bits": bits,
        "tiny": bell * 2.0**-120 if dtype != "float16" else bell * 2.0**-12,
        "subnormal": bell * 2.0**-135 if dtype != "float16" else bell * 2.0**-20,
        "huge": np.clip(bell * largest, -largest, largest),
        "extremes": np.where(half_steps < 0, -largest, largest),
        "half steps": half_steps,
        "negative": negative,
        "zero groups": zero_groups,
        "zeros": np.zeros(shape),
    }


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize(
    ("shape", "group_size"),
    [((5, 32), 4), ((7, 64), 0), ((1, 32), 32), ((3, 8), 2), ((4, 12), 6), ((2, 2), 0), ((64, 96), 48)],
)
def test_quantize_symmetric_is_torchaos(dtype: str, shape: tuple[int, int], group_size: int) -> None:
    for seed in range(3):
        for name, numbers in edge_tables(dtype, shape, seed).items():
            table = cast_float(numbers, dtype)
            expected = quantized_by_torchao(table, group_size)
            for part, got in zip(expected, quantize_symmetric(table, group_size), strict=True):
                assert_same_bits(got, part, (name, seed))


def test_quantize_symmetric_errors() -> None:
    with pytest.raises(ValueError, match="group_size: 1"):
        quantize_symmetric(np.ones((2, 4), np.float32), 1)
    with pytest.raises(ValueError, match="group_size: 3"):
        quantize_symmetric(np.ones((2, 4), np.float32), 3)
    with pytest.raises(ValueError, match="weights: float64"):
        quantize_symmetric(np.ones((2, 4)), 2)
    with pytest.raises(ValueError, match="infinity and NaN"):
        quantize_symmetric(np.float32([[np.inf, 0]]), 2)
