"""Shaders and modules that a careless executor would call right: none is proven, and each says why."""

import struct
from pathlib import Path

import pytest

from conformance.case.case import Variant
from conformance.proofs.every_size.contract import Setting
from conformance.proofs.every_size.decide import Decision, decide
from conformance.proofs.every_size.spirv.module import BadModule, Unsupported, read
from impl.kernel import variant_named
from impl.shader.compiler import GLSL, compile_shader

SHADER = GLSL / "embedding_q4gsw.comp"
FLAT, IMAGES = "flat-buffer-f32out-f32scale-buffer", "block-texture2d-f32out-f32scale-texture3d"
RETURN = "  if (chunk >= embed_dim() / COLUMNS) {\n"
LOOP = "  for (int base = first; base < places;"
#: Form, text of our shader, what it becomes, and what is said of that.
HOLES = {
    "a read before an invocation gives up": (
        FLAT, RETURN, "  if (chunk >= embed_dim() / COLUMNS && (t_indices[chunk] & 3) < 4) {\n",
        "bounds: indices are read inside what is bound",
    ),
    "local memory that a round changes": (
        FLAT, "write_chunk(chunk, t_indices[place], place);",
        "write_chunk(chunk, t_indices[place + late[chunk & 1]], place);\n        late[0] = -1;",
        "changes local memory",
    ),
    "a loop that does not end": (
        FLAT, RETURN,
        "  int turn = 0;\n  for (; turn < 1; turn += out_sizes.x & 31) {}\n  if (turn < 1) return;\n" + RETURN,
        "does not end",
    ),
    "a limit that depends on the way to the loop": (
        FLAT, LOOP,
        "  int last = places;\n  if (chunk == 77) last = t_indices[places - 1];\n" + LOOP.replace("places", "last"),
        "test depends on the path",
    ),
    "a level that an image does not have": (
        IMAGES, "ivec2(k4, row >> 3), 0)", "ivec2(k4, row >> 3), 1)", "a read of level 1 of an image that has one",
    ),
    "a local size of its own": (FLAT, "local_size_x_id = 0", "local_size_x = 64", "local size"),
    "an image of layers": (IMAGES, "highp isampler3D t_indices", "highp isampler2DArray t_indices", "of layers"),
}  # fmt: skip


@pytest.mark.parametrize("what", sorted(HOLES))
def test_it_is_not_proven(what: str, tmp_path: Path) -> None:
    name, old, new, says = HOLES[what]
    text, source = SHADER.read_text(), tmp_path / "hole.comp"
    assert text.count(old) == 1
    changed = text.replace(old, new)
    if "late[" in new:
        changed = changed.replace("void main() {\n", "void main() {\n  int late[2] = int[2](0, 0);\n")
    source.write_text(changed)
    found = decided(compile_shader(source, variant_named(name).defines).spirv, name)
    assert found.result != "proven"
    assert says in found.findings[0].line.replace(": not ", ": "), found.findings


def decided(spirv: bytes, name: str) -> Decision:
    own = {key: value for key, value in vars(variant_named(name)).items() if key != "float_modes"}
    return decide(spirv, Variant(**own), Setting())


@pytest.mark.parametrize(
    "kind",
    [
        0,  # RelaxedPrecision
        20,  # Aliased
        39,  # FPRoundingMode
        40,  # FPFastMathMode
    ],
)
def test_a_decoration_that_may_change_a_result_is_named(kind: int) -> None:
    with pytest.raises(Unsupported, match=f"decoration {kind} of %"):
        read(with_decoration(kind, before="OpDecorate"))


def test_a_decoration_behind_its_target_is_refused() -> None:
    with pytest.raises(BadModule, match="decorated after its definition"):
        read(with_decoration(6, before="OpFunction"))


def with_decoration(kind: int, before: str) -> bytes:
    """Our module with one decoration more, of an id that is a type, before the first instruction of that name."""
    spirv = compile_shader(SHADER, variant_named(FLAT).defines).spirv
    words, at, array = list(struct.unpack(f"<{len(spirv) // 4}I", spirv)), 5, 0
    places: dict[int, int] = {}
    while at < len(words):
        code = words[at] & 0xFFFF
        places.setdefault(code, at)
        array = words[at + 1] if code == 29 else array  # OpTypeRuntimeArray
        at += words[at] >> 16
    place = places[{"OpDecorate": 71, "OpFunction": 54}[before]]
    words[place:place] = [4 << 16 | 71, array, kind, 8]
    return struct.pack(f"<{len(words)}I", *words)
