"""Devices and compiled shaders: what is missing is named, what is cached is used."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from impl.errors import ShaderCompileError, ShaderToolMissing, VulkanUnavailable
from impl.gpu.device import list_devices
from impl.gpu.info import choose_device
from impl.kernel import VARIANTS, devices, embedding_shader
from impl.shader import compiler
from impl.shader.float_modes import declare, declared

ROOT = Path(__file__).parents[2]
GLSL = compiler.GLSL / "embedding_q4gsw.comp"


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("Q4GSW_SPIRV_CACHE", str(tmp_path / "cache"))
    compiler._compile.cache_clear()
    return tmp_path / "cache"


def test_two_widths_of_every_mode_are_declared(cache: Path) -> None:
    modes = tuple(f"{mode} {width}" for mode in ("DenormPreserve", "RoundingModeRTE") for width in (16, 32))
    shader = compiler.compile_shader(GLSL, (), modes)
    assert shader.float_modes == modes == declared(shader.spirv)
    assert declare(shader.spirv, modes) == shader.spirv  # nothing twice
    assert len(list(cache.iterdir())) == 2  # the plain module and the one with modes


def test_a_cached_module_needs_no_tools(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = compiler.compile_shader(GLSL, ("OUT_HALF",))
    compiler._compile.cache_clear()
    monkeypatch.setenv("PATH", "")
    assert compiler.compile_shader(GLSL, ("OUT_HALF",)) == first
    assert compiler.compile_shader(GLSL, ("OUT_HALF",), ("RoundingModeRTE 32",)).float_modes == ("RoundingModeRTE 32",)
    with pytest.raises(ShaderToolMissing, match=f"glslc is not installed and the shader is not in {cache}: apt-get"):
        compiler.compile_shader(GLSL, ("SCALES_HALF",))


def test_a_missing_validator_is_named(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    del cache
    glslc = compiler._tool("glslc")
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "glslc").symlink_to(glslc)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    with pytest.raises(ShaderToolMissing, match=r"spirv-val is not installed .* apt-get install spirv-tools"):
        compiler.compile_shader(GLSL)


def test_a_changed_source_is_another_module(cache: Path, tmp_path: Path) -> None:
    del cache
    changed = tmp_path / GLSL.name
    changed.write_text(GLSL.read_text().replace("- 8)", "- 7)"))
    assert compiler.compile_shader(changed).sha256 != compiler.compile_shader(GLSL).sha256
    changed.write_text("#version 450\nvoid main() { nonsense }")
    with pytest.raises(ShaderCompileError, match=r"glslc refuses embedding_q4gsw.comp with NAME=1: .*nonsense"):
        compiler.compile_shader(changed, ("NAME=1",))


def test_all_variants_differ() -> None:
    info = list_devices()[0]
    assert len(VARIANTS) == 24
    assert len({embedding_shader(info, variant).sha256 for variant in VARIANTS}) == 24
    assert len({variant.name for variant in VARIANTS}) == 24


def test_devices_are_listed_and_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    there = list_devices()
    listed = devices()
    assert [row["name"] for row in listed] == [info.name for info in there]
    assert set(listed[0]["variants"]) <= {variant.name for variant in VARIANTS}
    assert choose_device(there, 0) == choose_device(there, there[0].name[:5].upper()) == there[0]
    monkeypatch.setenv("Q4GSW_DEVICE", "no such thing")
    with pytest.raises(VulkanUnavailable, match=f"no Vulkan device 'no such thing'; there is 0: {there[0].name[:5]}"):
        choose_device(there)


def test_without_a_driver_the_package_is_named(tmp_path: Path) -> None:
    """Importing works, opening a device says what to install."""
    environment = {
        **os.environ,
        "VK_ICD_FILENAMES": str(tmp_path / "none.json"),
        "VK_DRIVER_FILES": str(tmp_path / "none.json"),
    }
    program = "from impl.kernel import Device\nDevice()"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=ROOT, env=environment, check=False
    )
    assert "VulkanUnavailable: no Vulkan driver: install" in done.stderr
    assert "mesa-vulkan-drivers" in done.stderr


def test_a_damaged_cache_is_repaired(cache: Path) -> None:
    first = compiler.compile_shader(GLSL)
    (kept,) = cache.iterdir()
    for damaged in (b"", b"garbage", first.spirv[:-4], first.spirv[:100] + b"\1" + first.spirv[101:]):
        kept.write_bytes(damaged)
        compiler._compile.cache_clear()
        assert compiler.compile_shader(GLSL) == first
        assert kept.read_bytes() == first.spirv


def test_a_cache_that_cannot_be_written_costs_time_only(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = compiler.compile_shader(GLSL)
    for place in (GLSL / "a file", Path("/dev/full"), Path("/proc/nothing")):
        monkeypatch.setenv("Q4GSW_SPIRV_CACHE", str(place))
        compiler._compile.cache_clear()
        assert compiler.compile_shader(GLSL) == first
    for name in ("Q4GSW_SPIRV_CACHE", "XDG_CACHE_HOME", "HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda _: (_ for _ in ()).throw(KeyError))
    compiler._compile.cache_clear()
    assert compiler.compile_shader(GLSL) == first
