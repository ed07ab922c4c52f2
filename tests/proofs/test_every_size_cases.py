"""Shaders wrong only for sizes that no case and no listed shape has: refuted, by a case that fails on the device."""

from pathlib import Path

import pytest

from conformance.case.case import Variant
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.proofs.every_size.contract import Setting
from conformance.proofs.every_size.decide import decide
from conformance.proofs.every_size.prove import case_of
from impl.kernel import variant_named
from impl.shader.compiler import GLSL, compile_shader

SHADER = GLSL / "embedding_q4gsw.comp"
#: Form, text of our shader, and what it becomes.
SIZES = {
    "the last row of 4,001": (
        "flat-buffer-f32out-f32scale-buffer",
        "row * (embed_dim() >> 3)",
        "(row == 4000 && t_scales.length() == 4001 * (embed_dim() / group()) ? row - 1 : row) * (embed_dim() >> 3)",
    ),
    "a row of 416 columns": (
        "block-buffer-f32out-f32scale-buffer",
        "column / group()",
        "(column + (embed_dim() == 416 && column >= 208 ? 4 : 0)) / group()",
    ),
    "the 77th row of 5 planes": (
        "block-buffer-f32out-f32scale-texture3d",
        "const int row = texelFetch(t_indices, ivec3(y >> 2, at), 0)[y & 3];",
        "const int row = texelFetch(t_indices, ivec3(y >> 2, at), 0)[out_sizes.z == 5 && y == 76 ? 1 : y & 3];",
    ),
}


@pytest.mark.parametrize("what", sorted(SIZES))
def test_it_is_refuted_and_fails_on_the_device(what: str, tmp_path: Path) -> None:
    name, old, new = SIZES[what]
    text, source = SHADER.read_text(), tmp_path / "changed.comp"
    assert text.count(old) == 1
    source.write_text(text.replace(old, new))
    variant = variant_named(name)
    form = Variant(**{key: value for key, value in vars(variant).items() if key != "float_modes"})
    found = decide(compile_shader(source, variant.defines).spirv, form, Setting())
    assert found.result == "refuted", found
    case = next(case for finding in found.findings if (case := case_of(name, finding)))
    subject = tmp_path / "mine.py"
    subject.write_text(
        "from pathlib import Path\nfrom conformance.subjects.impl import SubjectUnderTest, run_kernel\n"
        "class Mine(SubjectUnderTest):\n    def run(self, case):\n"
        f"        return run_kernel(case.question, shader_source=Path({str(source)!r}))\n"
    )
    with Worker(f"{subject}:Mine") as worker:
        verdict = judge(case, worker.run(case), worker.subject)
    assert verdict.outcome == "FAIL", verdict
    with Worker("impl") as worker:
        assert judge(case, worker.run(case), worker.subject).outcome == "PASS"
