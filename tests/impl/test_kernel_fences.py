"""What must not pass: planted shaders, and arguments that the host has to refuse."""

import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from impl.errors import DeviceLacksFeature, DeviceLimitExceeded, ValidationFailed
from impl.gpu.memory import Buffer
from impl.kernel import Device, KernelResult, Variant, run_embedding, run_prepack, variant_named
from tests.planted.glsl import BUGS, planted_source
from tests.support.kernel_inputs import assert_right, random_table

F32 = variant_named("flat-buffer-f32out-f32scale-buffer")
ROOT = Path(__file__).parents[2]
#: The variant that a bug shows in, where it is not the flat float32 one.
SHOWN_IN = {
    "row_within_block": "block-buffer-f16out-f32scale-buffer",
    "block_row": "block-buffer-f32out-f16scale-buffer",
    "scale_of_first_half": "flat-buffer-f16out-f16scale-buffer",
    "index_lane": "block-texture2d-f32out-f32scale-texture3d",
    "plane_order": "flat-buffer-f16out-f32scale-texture3d",
}


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device() as opened:
        yield opened


def run_planted(device: Device, variant: Variant, name: str, directory: Path, indices: Any) -> KernelResult:
    table = random_table(9, 96, 4, variant.scale_dtype)
    return run_embedding(
        device,
        variant,
        table.weight(variant),
        table.scales,
        4,
        np.asarray(indices),
        vocab_size=9,
        allow_out_of_range=True,
        shader_source=planted_source(name, directory),
    )


@pytest.mark.parametrize("name", [n for n, bug in BUGS.items() if bug.caught_by == "values" and n != "negative_index"])
def test_wrong_values_are_caught_by_the_values_alone(device: Device, tmp_path: Path, name: str) -> None:
    variant = variant_named(SHOWN_IN.get(name, F32.name))
    indices = np.random.default_rng(3).integers(0, 9, (2, 4, 9))
    result = run_planted(device, variant, name, tmp_path, indices)
    assert (result.unwritten, result.unstable, result.damage) == (None, None, "")
    with pytest.raises(AssertionError, match="first wrong at"):
        assert_right(result, variant, random_table(9, 96, 4, variant.scale_dtype), indices)


def test_negative_index_check_is_needed(device: Device, tmp_path: Path) -> None:
    result = run_planted(device, F32, "negative_index", tmp_path, [-1])
    assert not np.isnan(result.out).all()


@pytest.mark.parametrize(
    ("name", "first"), [("unwritten_tail", 96 - 4), ("unwritten_row", 96 * 20), ("missing_barrier", None)]
)
def test_unwritten_elements_are_caught_by_poison(device: Device, tmp_path: Path, name: str, first: int | None) -> None:
    result = run_planted(device, F32, name, tmp_path, np.arange(21) % 9)
    assert result.unwritten is not None or result.unstable is not None
    assert result.damage == ""
    if first is not None:
        assert result.unwritten == first


@pytest.mark.parametrize("name", ["flat-buffer-f32out-f32scale-buffer", "flat-buffer-f16out-f32scale-texture3d"])
def test_a_write_behind_the_output_is_caught_by_guards(device: Device, tmp_path: Path, name: str) -> None:
    result = run_planted(device, variant_named(name), "write_behind", tmp_path, np.arange(7))
    assert not result.guards_intact
    expected = {
        "buffer": "bytes behind t_out of run 1",
        "texture3d": r"texel (0, 7, 0) outside the output's (24, 7, 1)",
    }
    assert expected[variant_named(name).io_storage] in result.damage


def test_a_shader_that_never_ends_is_reported_as_a_hang(tmp_path: Path) -> None:
    """In a process of its own: a hung device cannot be freed."""
    source = planted_source("infinite_loop", tmp_path)
    program = f"""
import numpy as np, os
from pathlib import Path
from impl.gpu.memory import Buffer
from impl.kernel import Device, run_embedding, variant_named
from impl.errors import DeviceHang
try:
    with Device(timeout_s=0.5) as device:
        run_embedding(device, variant_named({F32.name!r}), np.zeros((1, 16), np.uint8), np.ones((1, 1), np.float32), 32,
                      np.array([0]), vocab_size=1, shader_source=Path({str(source)!r}))
except DeviceHang as error:
    print(error, flush=True)
os._exit(0)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT, check=True
    )
    assert "did not end within 0.5 s" in done.stdout


def test_an_interrupted_submission_is_waited_for(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whoever caught the interrupt frees the memory; a shader that still ran would write where nothing is."""
    size, vk = 1 << 28, device.vk

    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    buffer = Buffer(device, size, host=False)
    vk.vkCmdFillBuffer(device.begin(), buffer.handle, 0, size, 1)
    monkeypatch.setattr(vk, "vkWaitForFences", interrupt)
    with pytest.raises(KeyboardInterrupt):
        device.submit()
    monkeypatch.undo()
    vk.vkGetFenceStatus(device.handle, device._fence)
    vk.vkResetFences(device.handle, 1, [device._fence])
    buffer.close()


def test_no_growth_over_ten_thousand_dispatches(device: Device) -> None:
    """Two dispatches a checked run, images in a tenth of them: resident memory stays within 4 MiB."""
    table = random_table(9, 32, 32, "float32")
    textured = variant_named("block-texture2d-f32out-f32scale-texture3d")
    variants = [F32] * 9 + [textured]
    weights = {variant.name: table.weight(variant) for variant in variants}

    def run(tens: int) -> int:
        for _ in range(tens):
            for variant in variants:
                run_embedding(device, variant, weights[variant.name], table.scales, 32, np.arange(9), vocab_size=9)
        return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

    warm = run(50)
    assert run(450) - warm < 4 << 20


def test_validation_speaks_and_ends_the_run() -> None:
    with Device(validate=True) as device:
        assert "SYNC-HAZARD-WRITE-AFTER-WRITE" in device.hazard_seen
        device.messages.append("planted")
        with pytest.raises(ValidationFailed, match="planted"):
            device.check_messages()
    with pytest.raises(ValidationFailed, match="has not been destroyed"), Device(validate=True) as leaky:
        leaky.vk.vkCreateFence(leaky.handle, leaky.vk.VkFenceCreateInfo(), None)


def arguments(**changes: Any) -> dict[str, Any]:
    good = {
        "variant": F32,
        "weight": np.zeros((9, 32), np.uint8),
        "scales": np.ones((9, 2), np.float32),
        "group_size": 32,
        "indices": np.array([[1, 2], [3, 8]]),
        "vocab_size": 9,
    }
    return {**good, **changes}


BLOCK = variant_named("block-buffer-f32out-f16scale-buffer")


@pytest.mark.parametrize(
    ("changes", "error", "says"),
    [
        ({"indices": np.array([[1, 2], [9, 0]])}, IndexError, r"indices\[1, 0\] is 9; it must be in \[0, 8\]"),
        ({"indices": np.array(-1)}, IndexError, r"indices\[\] is -1"),
        ({"indices": np.array([1.0])}, ValueError, "indices is float64; it must be int32 or int64"),
        ({"indices": np.zeros((1, 1, 1, 1), int)}, ValueError, "indices has rank 4"),
        ({"weight": np.zeros((9, 32), np.int8)}, ValueError, "weight is int8; the flat layout is uint8"),
        ({"weight": np.zeros((8, 32), np.uint8)}, ValueError, r"weight has shape \(8, 32\); .* is \[9, D/2\]"),
        ({"weight": np.zeros((9, 24), np.uint8)}, ValueError, "embed_dim is 48 .* multiple of 32"),
        ({"variant": BLOCK}, ValueError, "weight is uint8; the block layout is int32"),
        ({"variant": BLOCK, "weight": np.zeros((3, 8, 4), np.int32)}, ValueError, r"9 rows is \[2, D/4, 4\]"),
        ({"group_size": 6}, ValueError, "group_size is 6; it must be a multiple of 4 that divides embed_dim 64"),
        ({"group_size": 0}, ValueError, "group_size is 0"),
        ({"group_size": 24}, ValueError, "divides embed_dim 64"),
        ({"scales": np.ones((9, 2), np.float16)}, ValueError, "scales is float16; .* takes float32"),
        ({"scales": np.ones(18, np.float32)}, ValueError, r"scales has shape \(18,\); .* take \(9, 2\)"),
        ({"vocab_size": 0}, ValueError, "vocab_size is 0"),
    ],
)
def test_wrong_arguments_are_named(device: Device, changes: dict[str, Any], error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        run_embedding(device, **arguments(**changes))


def test_features_and_limits_are_named(device: Device, monkeypatch: pytest.MonkeyPatch) -> None:
    half = variant_named("flat-buffer-f16out-f16scale-texture3d")
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, features=()))
    with pytest.raises(
        DeviceLacksFeature, match=r"lacks shaderFloat16, storageBuffer16BitAccess, which flat-buffer-f16"
    ):
        run_embedding(device, **arguments(variant=half))
    limits = {**device.info.limits, "maxStorageBufferRange": 287, "maxImageDimension2D": 7, "maxImageDimension3D": 15}
    monkeypatch.setattr(device, "info", dataclasses.replace(device.info, limits=limits))
    with pytest.raises(DeviceLimitExceeded, match="weight has 288 bytes, beyond maxStorageBufferRange = 287"):
        run_embedding(device, **arguments())
    limits["maxStorageBufferRange"] = 1 << 20
    textured = variant_named("flat-buffer-f32out-f32scale-texture3d")
    with pytest.raises(DeviceLimitExceeded, match="embed_dim 64 needs 16 texels in x, beyond maxImageDimension3D = 15"):
        run_embedding(device, **arguments(variant=textured))
    packed = np.zeros((9, 16), np.uint8)
    with pytest.raises(DeviceLimitExceeded, match=r"\(8, 2, 1\) texels, beyond maxImageDimension2D = 7"):
        run_prepack(device, packed, "texture2d")
    with pytest.raises(ValueError, match="packed is int8"):
        run_prepack(device, packed.view(np.int8))
    with pytest.raises(ValueError, match="unknown variant 'flat'"):
        variant_named("flat")
