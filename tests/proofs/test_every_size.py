"""`prove every-size`: what is right is proven, what is wrong is refuted by a case, and the argument is not vacuous."""

import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import cvc5
import numpy as np
import pytest
import z3

from conformance.case.case import Variant
from conformance.cli.main import main
from conformance.proofs import certificate
from conformance.proofs.certificate import EverySizeClaim
from conformance.proofs.every_size import contract, prove
from conformance.proofs.every_size import layout as layouts_of_any_size
from conformance.proofs.every_size.contract import Lookup, Setting
from conformance.proofs.every_size.decide import Decision, decide
from conformance.proofs.every_size.lookup import LookupClaims
from conformance.proofs.every_size.solve import FAILED, HELD, Solver
from conformance.proofs.every_size.spirv import opcodes
from conformance.proofs.every_size.spirv.explore import walk
from conformance.proofs.every_size.spirv.module import read
from conformance.proofs.targets import modules
from impl.kernel import variant_named
from impl.shader.compiler import compile_shader
from reference.table import layouts, positions

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))  # tests are not a package
from glsl import BUGS, SHADER, planted_source

FLAT, BLOCK = "flat-buffer-f32out-f32scale-buffer", "block-buffer-f32out-f32scale-buffer"
HALF, TEXTURE = "block-buffer-f16out-f32scale-buffer", "block-texture2d-f16out-f16scale-texture3d"
#: Where each planted bug shows; a shader with a race or an endless loop has no proof, and no counter-example in sizes.
WHERE = {
    "nibble_order": FLAT, "offset": FLAT, "row_within_block": BLOCK, "block_row": BLOCK, "group_index": FLAT,
    "scale_of_first_half": HALF, "index_lane": TEXTURE, "plane_order": TEXTURE, "negative_index": FLAT,
    "unwritten_tail": FLAT, "unwritten_row": FLAT, "write_behind": BLOCK,
}  # fmt: skip


def decided(name: str, source: Path = SHADER, setting: Setting | None = None) -> Decision:
    variant = variant_named(name)
    shader = compile_shader(source, variant.defines)
    form = Variant(
        *(
            getattr(variant, field)
            for field in ("output_dtype", "scale_dtype", "weight_layout", "weight_storage", "io_storage")
        )
    )
    return decide(shader.spirv, form, setting or Setting())


def test_a_form_is_proven_and_its_certificate_is_proven_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["prove", "every-size", "--variant", FLAT, "--jobs", "1", "--out", str(tmp_path)]) == 0
    path = tmp_path / f"every-size-{FLAT}.json"
    proof = certificate.read(path)
    assert isinstance(proof.claim, EverySizeClaim)
    assert set(proof.claim.cases.values()) == {"proven"}
    assert proof.claim.arithmetic == ("float32(code - 8) * float32(scale)",)
    assert main(["prove", "check", str(path)]) == 0
    assert "obligations hold" in capsys.readouterr().out
    first = next(iter(proof.claim.obligations))
    wrong = replace(proof.claim, obligations={**proof.claim.obligations, first: "0" * 64})
    certificate.write(path, replace(proof, claim=wrong))
    assert main(["prove", "check", str(path)]) == 1
    assert "the obligations differ" in capsys.readouterr().out


@pytest.mark.parametrize("name", sorted(WHERE))
def test_planted_bugs_are_refuted(name: str, tmp_path: Path) -> None:
    found = decided(WHERE[name], planted_source(name, tmp_path))
    assert found.result == "refuted", found


def test_no_planted_bug_is_left_out() -> None:
    assert set(BUGS) - set(WHERE) == {"missing_barrier", "infinite_loop"}


def test_what_has_no_semantics_is_named_and_never_proven(tmp_path: Path) -> None:
    found = decided(FLAT, planted_source("infinite_loop", tmp_path))
    assert found.result != "proven"
    assert "not supported" in found.findings[0].what


def test_a_refutation_that_the_device_contradicts_is_an_error_of_the_executor(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With & read as | by the executor, our right shader is refuted; the case passes on the device."""
    source = modules.source("impl", FLAT)
    with monkeypatch.context() as faulty:
        faulty.setitem(opcodes.NAMES, 199, "OpBitwiseOr")
        found = decided(FLAT)
    assert found.result == "refuted"
    monkeypatch.setattr(prove, "decisions", lambda _wanted, _jobs: iter([(FLAT, (found,))]))
    assert main(["prove", "every-size", "--variant", FLAT, "--out", str(tmp_path)]) == 1
    said = capsys.readouterr().out
    assert f"undecided: {tmp_path}" in said
    assert "ERROR: passes on this device: the executor is wrong" in said
    proof = certificate.read(tmp_path / f"every-size-{FLAT}.json")
    assert proof.target.spirv_sha256 == source.facts.spirv_sha256
    assert "refuted" not in proof.claim.cases.values()  # type: ignore[union-attr]


@pytest.mark.parametrize("layout", ["flat_place", "block_place"])
def test_a_layout_that_is_no_bijection_is_not_proven(layout: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows that overlap by a column, whatever V and D."""
    right: Any = getattr(positions, layout)
    for name in ("flat", "block"):
        sizes = Lookup(Variant(weight_layout=name), Setting())
        assert layouts_of_any_size.is_bijection(name, sizes.embed_dim)
        assert layouts_of_any_size.reads_as_laid_out(sizes)
    monkeypatch.setattr(layouts_of_any_size, layout, lambda n, k, columns: right(n, k, columns - 32))
    assert not all(layouts_of_any_size.is_bijection(name, sizes.embed_dim) for name in ("flat", "block"))
    assert not all(
        layouts_of_any_size.reads_as_laid_out(Lookup(Variant(weight_layout=name), Setting()))
        for name in ("flat", "block")
    )


@pytest.mark.parametrize("claim", ["code", "scale", "index_place"])
def test_a_broken_contract_is_not_proven(claim: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right: Any = getattr(Lookup, claim)

    def wrong(self: Lookup, *arguments: Any) -> Any:
        if claim == "code":
            at, code = right(self, *arguments)
            return at, code ^ 1
        if claim == "scale":
            return right(self, *arguments) + 1
        return (right(self, *arguments)[0] + 1,)

    monkeypatch.setattr(Lookup, claim, wrong)
    assert decided(FLAT).result != "proven"


def test_facts_can_hold_together() -> None:
    """Everything follows from facts that contradict each other."""
    form = Variant()
    for setting in (Setting(), Setting(known_dim=True, known_group=True, known_rows=True), Setting(strides=False)):
        for own in (form, replace(form, io_storage="texture3d", weight_storage="texture2d")):
            sizes = Lookup(own, setting)
            assert Solver(sizes.facts, contract.instances(sizes.sizes)).model([]) is not None


def test_a_limit_that_is_met_is_no_proof() -> None:
    a, b, c = z3.Ints("a b c")
    hard = z3.Not(z3.And(a > 2, b > 2, c > 2, a * a * a + b * b * b == c * c * c))
    assert Solver([], effort=1000).prove("Fermat", [], hard)[0] not in {HELD, FAILED}


def test_a_second_solver_agrees() -> None:
    """cvc5 on a sample of what z3 discharged; it may run out of time, and may not disagree."""
    claims = claims_of(FLAT)
    sizes, solver, asked = claims.own, claims.solver, list[tuple[Any, ...]]()
    kept = solver.prove

    def prove(what: str, conditions: Any, holds: Any) -> tuple[str, Any]:
        asked.append((what, [*sizes.facts, *conditions, z3.Not(holds)]))
        return kept(what, conditions, holds)

    solver.prove = prove  # type: ignore[method-assign]
    claims.prove()
    assert not claims.failures
    answers = [second(formulas) for _what, formulas in asked[::6]]
    assert "sat" not in answers
    assert answers.count("unsat") > len(answers) // 2


def claims_of(name: str) -> LookupClaims:
    """The obligations of our shader's variant, not asked yet."""
    source = modules.source("impl", name)
    assert isinstance(source.form, Variant)
    sizes = Lookup(source.form, Setting())
    solver = Solver(sizes.facts, contract.instances(sizes.sizes))
    walked = walk(read(source.spirv), sizes.environment, sizes.specialization(), solver.possible)
    return LookupClaims(sizes, walked, solver)


def test_buffers_beyond_what_devices_bind_would_overflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limits are what the proof needs: with larger ones z3 finds sizes, all of them beyond the real limit."""
    limit = contract.BYTES
    monkeypatch.setattr(contract, "BYTES", limit << 4)
    claims = claims_of(FLAT)
    claims.prove()
    found = [one.model for one in claims.failures if one.group == "overflow"]
    assert len(found) > 5
    for model in found:
        m, groups, rows, *places = (
            model.eval(z3.Int(name), model_completion=True).as_long() for name in ("m", "ng", "V", "H", "C", "N")
        )
        assert max(rows * 16 * m, rows * groups * 4, int(np.prod(places, dtype=object)) * 128 * m) >= limit


def second(formulas: list[Any]) -> str:
    script = z3.Solver()
    script.add(*formulas)
    solver = cvc5.Solver()
    solver.setOption("tlimit-per", "2000")
    parser = cvc5.InputParser(solver)
    parser.setStringInput(
        cvc5.InputLanguage.SMT_LIB_2_6, "(set-logic ALL)\n" + script.sexpr() + "(check-sat)", "obligation"
    )
    answer = ""
    while not (command := parser.nextCommand()).isNull():
        answer = command.invoke(solver, parser.getSymbolManager()).strip() or answer
    return answer


def test_layouts_of_the_contract_are_those_of_the_reference() -> None:
    """The symbolic contract, evaluated for one table, finds every code where the reference packs it."""
    values = np.random.default_rng(5).integers(-8, 8, (17, 96)).astype("int8")
    for layout, packed in (("flat", layouts.pack_flat(values)), ("block", layouts.pack_blocks(values))):
        sizes = Lookup(Variant(weight_layout=layout), Setting())
        words = packed.reshape(-1).view("uint32")
        chunk, row, m = z3.Ints("gx row m")
        index = contract.atom(row)
        for offset in range(4):
            at, code = sizes.code(index, 4 * sizes.identity[0] + offset, 4)
            for n, x in ((0, 0), (5, 3), (12, 7), (16, 23)):
                given = ((m, z3.IntVal(3)), (row, z3.IntVal(n)), (chunk, z3.IntVal(x)))
                place = z3.simplify(z3.substitute(contract.z(at[0]), *given)).as_long()
                word = z3.Function("weight", z3.IntSort(), z3.BitVecSort(32))(z3.IntVal(place))
                found = z3.simplify(
                    z3.substitute(z3.simplify(z3.substitute(code, *given)), (word, z3.BitVecVal(int(words[place]), 32)))
                )
                assert found.as_long() == values[n, 4 * x + offset] + 8
