"""The embedding and prepack shaders on a device, judged by the reference."""

import dataclasses
from collections.abc import Iterator

import numpy as np
import pytest

from impl.dispatch.request import check_request, rows_per_run
from impl.kernel import VARIANTS, Device, Variant, run_embedding, run_prepack, variant_named
from impl.shader.float_modes import declared
from reference.table.layouts import pack_blocks, pack_linear_weight
from tests.support.kernel_inputs import Table, assert_right, random_table

F32 = variant_named("flat-buffer-f32out-f32scale-buffer")
SHAPES = ((), (5,), (2, 3), (2, 3, 5), (0, 2), (1, 1, 1))


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    """Validated throughout: a message of the layer, or a leak at the end, fails the module."""
    with Device(validate=True) as opened:
        yield opened


def lookup(device: Device, variant: Variant, table: Table, shape: tuple[int, ...], **options: bool) -> None:
    indices = np.random.default_rng(5).integers(0, table.vocab_size, shape)
    weight = table.weight(variant)
    result = run_embedding(
        device, variant, weight, table.scales, table.group_size, indices, vocab_size=table.vocab_size, **options
    )
    assert_right(result, variant, table, indices)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_variant_is_right_at_every_rank(device: Device, variant: Variant) -> None:
    for vocab_size, embed_dim, group_size in ((1, 32, 4), (9, 96, 12), (17, 64, 64)):
        table = random_table(vocab_size, embed_dim, group_size, variant.scale_dtype)
        for shape in SHAPES:
            lookup(device, variant, table, shape)
    lookup(device, variant, table, (3, 7), specialize=True)


@pytest.mark.parametrize("variant", VARIANTS[::5], ids=lambda v: v.name)
def test_many_rows_and_wide_rows(device: Device, variant: Variant) -> None:
    """Past 64 chunks a row, and past the rows at which an invocation takes four."""
    lookup(device, variant, random_table(11, 1056, 32, variant.scale_dtype), (2, 9))
    rows = (4099,) if variant.io_storage == "buffer" else (1099,)
    lookup(device, variant, random_table(300, 32, 8, variant.scale_dtype), rows, specialize=True)
    lookup(device, variant, random_table(300, 32, 8, variant.scale_dtype), rows)


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_special_scales(device: Device, variant: Variant) -> None:
    """Subnormal, huge, infinite, NaN and signed zero scales, with modes declared and without (contract 3)."""
    tiny, huge = np.finfo(variant.scale_dtype).smallest_subnormal, np.finfo(variant.scale_dtype).max
    scales = np.array([0.0, -0.0, tiny, -5 * tiny, huge, -huge, np.inf, np.nan, 0.1, 9e-6, 65504.0, 1e-3])
    table = random_table(12, 32, 32, variant.scale_dtype)
    table = dataclasses.replace(table, scales=scales.astype(variant.scale_dtype)[:, None])
    lookup(device, variant, table, (3, 12))
    lookup(device, dataclasses.replace(variant, float_modes="none"), table, (3, 12))


def test_every_allowed_mode_is_declared_and_none_means_none(device: Device) -> None:
    table = random_table(3, 32, 32, "float32")
    for modes, expected in (("declared", tuple(sorted(device.info.float_modes))), ("none", ())):
        variant = dataclasses.replace(F32, float_modes=modes)
        result = run_embedding(device, variant, table.weight(F32), table.scales, 32, np.array([2]), vocab_size=3)
        assert result.float_modes == expected
    assert len(result.spirv_sha256) == 64
    with pytest.raises(ValueError, match="not a little-endian SPIR-V module"):
        declared(b"GLSL")


@pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: v.name)
def test_unknown_index_gives_a_quiet_nan_row(device: Device, variant: Variant) -> None:
    """Contract 7.3, for one past the end, -1, and both ends of int32."""
    table = random_table(9, 64, 32, variant.scale_dtype)
    indices = np.array([0, 9, -1, 2**31 - 1, 8, -(2**31)])
    result = run_embedding(
        device, variant, table.weight(variant), table.scales, 32, indices, vocab_size=9, allow_out_of_range=True
    )
    good = dataclasses.replace(result, out=result.out[[0, 4]])
    assert_right(good, variant, table, indices[[0, 4]])
    quiet = {"float32": 0x7FC00000, "float16": 0x7E00}[variant.output_dtype]
    unsigned = {"float32": np.uint32, "float16": np.uint16}[variant.output_dtype]
    assert (result.out[[1, 2, 3, 5]].view(unsigned) & quiet == quiet).all()


def test_unchecked_run_gives_the_same(device: Device) -> None:
    lookup(device, F32, random_table(9, 64, 32, "float32"), (2, 3), checked=False)
    lookup(device, VARIANTS[-1], random_table(9, 64, 32, "float16"), (2, 3), checked=False)


def test_rows_beyond_a_limit_are_split(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Contract 7.5, with limits lowered to where a small case meets them."""
    small = {**device.info.limits, "maxStorageBufferRange": 9000, "maxImageDimension3D": 16}
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, limits=small))
    for variant in (F32, variant_named("flat-buffer-f16out-f32scale-texture3d")):
        table = random_table(9, 64, 32, variant.scale_dtype)
        lookup(device, variant, table, (100,))
        lookup(device, variant, table, (2, 3, 20))
    request = check_request(
        device.info,
        F32,
        table.weight(F32),
        table.scales,
        32,
        np.zeros(100, int),
        vocab_size=9,
        allow_out_of_range=False,
    )
    assert rows_per_run(device.info, request, 4096) == (9000 - 4096) // 256


@pytest.mark.parametrize("storage", ["buffer", "texture2d"])
@pytest.mark.parametrize(("vocab_size", "embed_dim"), [(1, 32), (8, 64), (9, 96), (1003, 160)])
def test_prepack_gives_the_reference_blocks(device: Device, storage: str, vocab_size: int, embed_dim: int) -> None:
    values = random_table(vocab_size, embed_dim, 32, "float32").values
    result = run_prepack(device, pack_linear_weight(values), storage)  # type: ignore[arg-type]  # parametrize gives str
    np.testing.assert_array_equal(result.out, pack_blocks(values))
    assert (result.unwritten, result.unstable, result.damage) == (None, None, "")


def test_staging_works_where_memory_is_not_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """The path of a discrete GPU, on whatever device there is: validated, every storage, guards included."""
    monkeypatch.setattr("impl.gpu.memory.shares_memory", lambda _device: False)
    with Device(validate=True) as device:
        for variant in VARIANTS[::3]:
            table = random_table(17, 64, 32, variant.scale_dtype)
            lookup(device, variant, table, (2, 3, 5))
            lookup(device, variant, table, (2, 3), checked=False)
        values = random_table(17, 64, 32, "float32").values
        for storage in ("buffer", "texture2d"):
            result = run_prepack(device, pack_linear_weight(values), storage)  # type: ignore[arg-type]  # a tuple of str
            np.testing.assert_array_equal(result.out, pack_blocks(values))
