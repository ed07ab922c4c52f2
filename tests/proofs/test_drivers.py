"""SwiftShader as a second device: it flushes subnormals, and has neither float16 nor 16-bit storage."""

import sys
from pathlib import Path

import pytest

from conformance.cli.main import main
from conformance.proofs import certificate
from conformance.results.expectations import Expectations, KnownFailure
from conformance.results.verdict import UNSUPPORTED, Verdict, read
from impl.errors import VulkanUnavailable
from impl.gpu import device as gpu

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))  # tests are not a package
from prove_shaders import planted

SWIFTSHADER = ("--device", "swiftshader")
PLAIN = "flat-buffer-f32out-f32scale-buffer"
#: Products that are subnormal or next to it.
SMALL = ("--range", "0x007F0000:0x00810000")


@pytest.fixture(autouse=True)
def _own_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """``q4gsw run`` hands the device on by environment."""
    monkeypatch.setenv("Q4GSW_DEVICE", "")


def test_what_the_device_lacks_is_unsupported_by_name(tmp_path: Path) -> None:
    words = ["--workers", "0", "--quiet", "--report", str(tmp_path / "report")]
    cases = ["kernel/flat-buffer/float16-float16/control", "kernel/flat-buffer/float32-float32/special-scales"]
    cases += ["prepack/device_buffer/*", "kernel/block-buffer/float32-float16/control"]
    assert main(["run", *SWIFTSHADER, *words, *(word for case in cases for word in ("--case", case))]) == 0
    verdicts = {verdict.case: verdict for verdict in read(tmp_path / "report").verdicts}
    half, single = (verdicts[case] for case in cases[:2])
    assert "SwiftShader" in half.reason
    assert "lacks shaderFloat16, storageBuffer16BitAccess" in half.reason
    assert "SwiftShader" in single.facts["device"]
    assert single.strict is False  # it flushes: what lavapipe never shows
    assert {v.outcome for v in verdicts.values()} == {"PASS", "UNSUPPORTED"}


def test_a_known_failure_that_the_device_cannot_show_is_no_failure() -> None:
    known = KnownFailure("a-defect", ("KERNEL/array/values",), ("kernel/a",), "a reason", "a link")
    expected = Expectations({"kernel/a": (known, "KERNEL/array/values")})
    declined = Verdict("kernel/a", "KERNEL", "executorch-src", UNSUPPORTED, facts={"of_device": True})
    assert expected.apply(declined) == declined
    assert expected.apply(Verdict("kernel/a", "KERNEL", "executorch-src", UNSUPPORTED)).outcome == "FAIL"


def test_proofs_go_on_without_the_variants_that_the_device_lacks(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["prove", "arithmetic", *SWIFTSHADER, *SMALL, "--out", str(tmp_path), "--variant"]
    assert main([*words, f"{PLAIN},flat-buffer-f16out-f32scale-buffer"]) == 0
    printed = capsys.readouterr().out
    assert "unsupported: SwiftShader Device (Subzero) lacks shaderFloat16, which flat-buffer-f16out-f32" in printed
    proof = certificate.read(*tmp_path.glob("*.json"))
    assert "SwiftShader" in proof.target.device
    assert vars(proof.claim)["not_strict"] > 1 << 17  # flushed
    assert main(["prove", "check", *map(str, tmp_path.glob("*.json"))]) == 0
    assert "run again" in capsys.readouterr().out
    assert main([*words, "flat-buffer-f16out-f32scale-buffer"]) == 2
    assert "nothing was proven" in capsys.readouterr().err


def test_a_wrong_product_is_not_excused_by_flushing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing rounds as declared on SwiftShader, so that both neighbours pass; two units away do not."""
    shader = planted("one_ulp", tmp_path)
    source = shader.read_text()
    shader.write_text(source.replace("+ 1u", "+ 2u"))
    assert shader.read_text() != source
    words = ["--variant", PLAIN, "--range", "0x3EA00000:0x3EB00000", "--shader", str(shader), "--out", str(tmp_path)]
    assert main(["prove", "arithmetic", *SWIFTSHADER, *words]) == 1
    assert "scale 0x3EAAAAAB" in capsys.readouterr().out


def test_the_driver_is_taken_for_its_own_device_only(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert not any("SwiftShader" in info.name for info in gpu.list_devices())
    assert any("SwiftShader" in info.name for info in gpu.list_devices("swiftshader"))
    monkeypatch.setattr(gpu, "_DRIVERS", {"swiftshader": (tmp_path / "none.json", "chromium")})
    assert gpu.named_drivers() == []
    with pytest.raises(VulkanUnavailable, match=r"none.json \(Debian: apt-get install chromium\)"):
        gpu.list_devices("swiftshader")
