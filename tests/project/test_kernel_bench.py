"""The bench program and ExecuTorch's shaders from a checkout, both in miniature."""

import csv
import json
import shutil
import xml.etree.ElementTree as ET
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from bench import kernel_bench
from bench.kernel_ablation import ABLATIONS
from conformance.subjects.executorch_shaders import executorch_shaders, prepack_name, shader_name
from impl.dispatch.grid import executorch_local_size
from impl.errors import ShaderCompileError, ShaderToolMissing, VulkanError
from impl.kernel import Device, run_embedding, run_prepack, variant_named
from reference.table.layouts import pack_blocks, pack_linear_weight
from tests.support.kernel_inputs import assert_right, random_table

CHECKOUT = Path(__file__).parents[1] / "data/checkout"
SMALL = ["--vocab-size", "64", "--embed-dim", "64", "--group-size", "32"]


@pytest.fixture(scope="module")
def device() -> Iterator[Device]:
    with Device(validate=True) as opened:
        yield opened


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("Q4GSW_SPIRV_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_bench_writes_table_csv_json_and_svg(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--rows", "1", "9", "--ablation", "--out", str(tmp_path)]
    assert kernel_bench.main([*SMALL, *options]) == 0
    shown = capsys.readouterr().out
    rows = list(csv.DictReader((tmp_path / "kernel.csv").read_text().splitlines()))
    shapes = sum(bool(c.rows or c.local) for c in ABLATIONS)  # of buffers only
    assert len(rows) == 3 * (2 * 2 + len(ABLATIONS)) - shapes  # variants x (sizes x who, and the ablations at one size)
    assert {row["ratio"] for row in rows} == {""}  # no checkout, no ratio
    assert all(float(row["median_us"]) > 0 for row in rows)
    assert shown.count("| flat-buffer-f16out-f16scale-buffer") == 2 * 2 + len(ABLATIONS)
    report = json.loads((tmp_path / "kernel.json").read_text())
    assert report["embed_dim"] == 64
    assert len(report["measurements"]) == len(rows)
    # 9 rows of 64 float32, 32 bytes of codes, two float32 scales, one index
    assert {int(r["useful_bytes"]) for r in rows if r["rows"] == "9"} == {
        9 * (256 + 32 + 8 + 4),
        9 * (128 + 32 + 4 + 4),
        9 * (128 + 32 + 8 + 4),
    }
    assert ET.fromstring((tmp_path / "kernel.svg").read_text()).tag.endswith("svg")  # noqa: S314 (we wrote it ourselves)


def test_bench_against_a_checkout_and_a_wrong_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name = "flat-buffer-f32out-f32scale-buffer"
    options = ["--rows", "5", "--variants", name, "--executorch-src", str(CHECKOUT), "--out", str(tmp_path)]
    assert kernel_bench.main([*SMALL, *options]) == 0
    rows = list(csv.DictReader((tmp_path / "kernel.csv").read_text().splitlines()))
    assert [row["who"] for row in rows] == ["ExecuTorch", "ours", "ours, sizes at run time"]
    assert float(rows[0]["ratio"]) == 1.0
    assert all(float(row["ratio"]) > 0 for row in rows)
    expected = kernel_bench.expected
    monkeypatch.setattr(kernel_bench, "expected", lambda table, indices: -expected(table, indices))
    with pytest.raises(VulkanError, match=f"ExecuTorch, {name}, 5 rows: the output is wrong"):
        kernel_bench.main([*SMALL, *options])


def test_precompiled_modules_need_no_compiler(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kernel_bench.main(["--precompile", str(cache), "--executorch-src", str(CHECKOUT)]) == 0
    assert len(list((cache / "executorch").glob("*.spv"))) == 4
    monkeypatch.setenv("PATH", "")
    theirs = ["--executorch-src", str(cache / "executorch"), "--variants", "flat-buffer-f32out-f32scale-buffer"]
    assert kernel_bench.main([*SMALL, *theirs, "--rows", "3", "--out", str(tmp_path / "out")]) == 0
    assert kernel_bench.main([*SMALL, "--rows", "3", "--ablation", "--out", str(tmp_path / "out")]) == 0


def test_a_checkouts_shaders_are_judged_like_ours(device: Device, cache: Path) -> None:
    """The miniature is right where it is meant to be, and its planted bug shows at rank 2 only."""
    shaders = executorch_shaders(CHECKOUT)
    assert executorch_shaders(CHECKOUT) == shaders == executorch_shaders(next(cache.glob("executorch-*")))
    for name in ("flat-buffer-f32out-f32scale-buffer", "flat-buffer-f32out-f16scale-buffer"):
        variant = variant_named(name)
        table = random_table(9, 96, 12, variant.scale_dtype)
        for shape in ((), (5,), (2, 3), (2, 3, 4)):
            indices = np.random.default_rng(2).integers(0, 9, shape)
            result = run_embedding(
                device,
                variant,
                table.weight(variant),
                table.scales,
                12,
                indices,
                vocab_size=9,
                shader=shaders[shader_name(variant)],
                grid="executorch",
            )
            assert result.float_modes == ()
            assert_right(result, variant, table, indices)
    variant = variant_named("flat-buffer-f32out-f32scale-texture3d")
    table = random_table(9, 64, 32, "float32")
    found = []
    for shape in ((5,), (2, 5)):
        indices = np.arange(np.prod(shape)).reshape(shape) % 9
        result = run_embedding(
            device,
            variant,
            table.weight(variant),
            table.scales,
            32,
            indices,
            vocab_size=9,
            shader=shaders[shader_name(variant)],
            grid="executorch",
        )
        expected = table.values[indices] * np.repeat(table.scales[indices], 32, axis=-1)
        found.append(bool(np.array_equal(result.out, expected)))
    assert found == [True, False]
    values = random_table(9, 64, 32, "float32").values
    packed = run_prepack(device, pack_linear_weight(values), shader=shaders[prepack_name("buffer")])
    np.testing.assert_array_equal(packed.out, pack_blocks(values))


def test_a_damaged_cache_of_a_checkout_is_made_again(cache: Path) -> None:
    shaders = executorch_shaders(CHECKOUT)
    (kept,) = cache.glob("executorch-*")
    module = next(iter(kept.glob("*.spv")))
    whole = module.read_bytes()
    for damage in (lambda: module.write_bytes(whole[:-4]), module.unlink, (kept / "more.spv").touch):
        damage()
        assert executorch_shaders(CHECKOUT) == shaders
        assert module.read_bytes() == whole
        assert list(cache.iterdir()) == [kept]


def test_a_bad_checkout_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    with pytest.raises(
        FileNotFoundError, match=r"no ExecuTorch checkout at .*: backends/vulkan/runtime/gen_vulkan_spv.py"
    ):
        executorch_shaders(tmp_path)
    shutil.copytree(CHECKOUT, tmp_path / "broken")
    template = tmp_path / "broken/backends/vulkan/runtime/graph/ops/glsl/embedding_q4gsw.glsl"
    template.write_text("nonsense")
    with pytest.raises(ShaderCompileError, match=r"gen_vulkan_spv\.py made 0 modules"):
        executorch_shaders(tmp_path / "broken")
    monkeypatch.setenv("PATH", "")
    with pytest.raises(ShaderToolMissing, match="glslc is not installed"):
        executorch_shaders(CHECKOUT)


@pytest.mark.parametrize(
    ("wanted", "local"),
    [
        ((64, 2047, 1), (4, 16, 1)),
        ((64, 1, 1), (64, 1, 1)),
        ((1, 5, 1), (1, 64, 1)),
        ((2, 9, 3), (2, 8, 3)),
        ((7, 3, 1), (32, 2, 1)),
    ],
)
def test_local_size_of_executorch(wanted: tuple[int, int, int], local: tuple[int, int, int]) -> None:
    """Worked by hand from create_local_wg_size: largest axis first, 8 x 4 x 2, or 2D shapes where one axis is 1."""
    assert executorch_local_size(wanted) == local
