"""A certificate is brought to this release only where what was proven stays: fields that follow, or the same SPIR-V."""

import json
import runpy
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.proofs import check
from conformance.proofs.certificate import Rejected, read, write

ROOT = Path(__file__).parents[2]
OLD = ROOT / "tests" / "data" / "certificate_version_1.json"
NEW = ROOT / "docs" / "certificates" / "lavapipe" / "arithmetic-flat-buffer-f16out-f16scale-buffer-all.json"
SCRIPT = runpy.run_path(str(ROOT / "docs" / "certificates" / "reseal.py"))


def resealed(old: dict[str, Any], folder: Path, *, seals: bool = True) -> Path:
    if seals:
        old["evidence"] = SCRIPT["sha256"]({k: v for k, v in old.items() if k not in {"timing", "evidence", "digest"}})
        old["digest"] = SCRIPT["sha256"]({k: v for k, v in old.items() if k != "digest"})
    path = folder / "certificate.json"
    path.write_text(json.dumps(old))
    SCRIPT["reseal"](path)
    return path


def test_the_committed_certificate_is_what_the_script_makes_of_the_old_one(tmp_path: Path) -> None:
    with pytest.raises(Rejected, match=r"has version 1, this release reads version 2.*reseal\.py"):
        check.check(OLD, rerun=False)
    path = resealed(json.loads(OLD.read_text()), tmp_path, seals=False)
    SCRIPT["reseal"](path)  # a comment of the shader is another one than then
    assert path.read_bytes() == NEW.read_bytes()
    assert check.check(path, rerun=False)


def test_only_a_shader_of_the_same_spirv_is_another_text(tmp_path: Path) -> None:
    stored = read(NEW)
    stale = replace(stored, target=replace(stored.target, glsl_sha256="0" * 64))
    write(path := tmp_path / "certificate.json", stale)
    SCRIPT["reseal"](path)
    assert path.read_bytes() == NEW.read_bytes()
    write(path, replace(stale, target=replace(stale.target, spirv_sha256="0" * 64)))
    with pytest.raises(ValueError, match="compiles to another SPIR-V today"):
        SCRIPT["reseal"](path)


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("result",), "refuted"),
        (("command",), "python -m conformance prove all"),
        (("counts", "pairs"), 16),
        (("counts", "lawless"), 1),
        (("segments", "scales"), 1),
        (("target", "precise"), "0"),
        (("target", "scale_dtype"), "float32"),
        (("timing", "elapsed_s"), 1.0),
        (("timing", "binds"), "oracle"),
        (("timing", "stages", "oracle", "pairs_per_s"), 1),
        (("added",), 1),
    ],
)
def test_what_does_not_follow_is_not_left_out(path: tuple[str, ...], value: Any, tmp_path: Path) -> None:
    old = json.loads(OLD.read_text())
    inner = old
    for name in path[:-1]:
        inner = inner[name]
    inner[path[-1]] = value
    with pytest.raises(ValueError, match=f"{path[-1]} is .*which the other fields do not give"):
        resealed(json.loads(json.dumps(old)), tmp_path)
    with pytest.raises(ValueError, match="was changed: its"):
        resealed(old, tmp_path, seals=False)
