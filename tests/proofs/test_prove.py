"""Proofs find planted bugs by name, and certificates of what is right hold."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.cli.main import main
from conformance.proofs import certificate
from conformance.proofs import layout as prove_layout
from conformance.proofs import target as prove_target
from conformance.proofs.arithmetic import SLOTS
from conformance.proofs.certificate import ArithmeticClaim, Certificate
from conformance.proofs.indexing import SHAPES, Shape, wrong_reads
from conformance.proofs.target import Array
from reference.table.layouts import pack_blocks
from tests.support.commands import interrupted

sys.path.insert(0, str(Path(__file__).parents[1] / "planted"))  # tests are not a package
from prove_shaders import planted

ROOT = Path(__file__).parents[2]
BUFFER = "flat-buffer-f32out-f32scale-buffer"


def prove(*words: str) -> int:
    return main(["prove", *map(str, words)])


def stored(folder: Path) -> Certificate:
    (path,) = folder.glob("*.json")
    return certificate.read(path)


@pytest.mark.parametrize("variant", ["flat-buffer-f16out-f16scale-buffer", "block-texture2d-f32out-f16scale-texture3d"])
def test_float16_is_proven_completely(variant: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove("arithmetic", "--variant", variant, "--out", tmp_path) == 0
    proof = stored(tmp_path)
    assert proof.result == "proven"
    assert isinstance(proof.claim, ArithmeticClaim)
    assert (proof.claim.domain, proof.claim.not_strict, len(proof.claim.sums)) == ("all", 0, 1)
    counts = "pairs 1048576, refused 0, not_strict 0, unconstrained 0, damaged 0"
    assert f"({counts})" in capsys.readouterr().out


@pytest.mark.parametrize("subject", ["reference", "executorch"])
def test_host_operators_are_proven(subject: str, tmp_path: Path) -> None:
    assert prove("arithmetic", "--subject", subject, "--variant", "linear-f32out-f16scale", "--out", tmp_path) == 0
    assert stored(tmp_path).claim.not_strict == 0


def test_one_ulp_of_one_scale_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shader = planted("one_ulp", tmp_path)
    words = ("--variant", BUFFER, "--range", "0x3EA00000:0x3EB00000", "--shader", shader, "--out", tmp_path)
    assert prove("arithmetic", *words) == 1
    printed = capsys.readouterr().out
    assert "scale 0x3EAAAAAB (0.33333334) times q = -4 (code 4): got 0xBFAAAAAC, allowed 0xBFAAAAAB" in printed
    assert "refused 4," in printed  # codes 0, 4, 8 and 12 come first of their four columns
    assert stored(tmp_path).result == "refuted"


@pytest.mark.parametrize(
    ("bug", "variant", "says"),
    [
        ("swapped_positions", BUFFER, "reads code [5, 42], not code [5, 41]"),
        ("swapped_positions", "block-texture2d-f16out-f32scale-texture3d", "reads code [5, 42], not code [5, 41]"),
        ("wrong_scale", "block-buffer-f32out-f16scale-buffer", "reads scale [6, 0], not scale [6, 1]"),
        ("constant", BUFFER, "reads something that is no code of the table, not code [4, 11]"),
        ("wrong_index", BUFFER, "reads index [0], not index [2]"),
        ("unwritten", BUFFER, "element [3, 0] is never written"),
        ("write_behind", BUFFER, "bytes changed outside the output"),
    ],
)
def test_wrong_addresses_are_named(bug: str, variant: str, says: str, tmp_path: Path) -> None:
    target = prove_target.open_target("impl", variant, shader=planted(bug, tmp_path))
    try:
        lines = wrong_reads(target, Shape(9, 64, 32, (9,)))
    finally:
        target.close()
    assert any(says in line for line in lines), lines


def test_our_addresses_are_right() -> None:
    target = prove_target.open_target("impl", "block-texture2d-f16out-f16scale-texture3d")
    try:
        for shape in SHAPES[:8]:
            assert wrong_reads(target, shape) == []
    finally:
        target.close()


@pytest.mark.parametrize(("bug", "says"), [("unwritten", "not written"), ("write_behind", "behind the output")])
def test_chunks_are_fenced_and_poisoned(bug: str, says: str, tmp_path: Path) -> None:
    """Scales that are all NaN: an element that nobody wrote would pass for a NaN over one poison alone."""
    target = prove_target.open_target("impl", BUFFER, shader=planted(bug, tmp_path))
    try:
        target.open_products(1 << 10, SLOTS)
        got = target.products(0, np.full(1 << 10, np.nan, np.float32))
    finally:
        target.close()
    assert says in got.damage


def test_a_device_that_cannot_hold_a_chunk_gets_a_smaller_one() -> None:
    target = prove_target.open_target("impl", BUFFER)
    try:
        assert target.open_products(1 << 40, 1) * 64 < 1 << 27  # lavapipe binds 128 MiB of float32 results
    finally:
        target.close()


def test_memory_stays_under_two_gib(tmp_path: Path) -> None:
    """Several chunks of the largest size, in a process of its own."""
    words = ["prove", "arithmetic", "--variant", BUFFER, "--range", "0x3F000000:0x3F400000", "--out", str(tmp_path)]
    code = (
        "import resource, sys; from conformance.cli.main import main; rc = main(sys.argv[1:]);"
        "print(rc, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    code_and_kib = done.stdout.split()[-2:]
    assert code_and_kib[0] == "0"
    assert int(code_and_kib[1]) < 2 << 20


@pytest.mark.parametrize("layout", prove_layout.PLACES)
def test_packers_keep_to_the_layouts(layout: str) -> None:
    pack = prove_layout.packer(None, layout, "buffer")
    assert not isinstance(pack, str)
    assert prove_layout.enumerate_packed(layout, 9, 64, pack) == ""
    assert prove_layout.by_arithmetic(layout, *prove_layout.LARGE[0]) == ""


def test_two_swapped_positions_in_one_row_of_one_block_are_named() -> None:
    def pack(values: Array) -> Array:
        harmed = values.copy()
        harmed[11, [36, 37]] = harmed[11, [37, 36]]
        return pack_blocks(harmed)

    wrong = prove_layout.enumerate_packed("blocks", 17, 64, pack)
    assert wrong.startswith("the nibble of row 11 column 36 ")
    assert "holds that of row 11 column 37 (2 are wrong)" in wrong


def test_padding_that_is_not_zero_is_named() -> None:
    def pack(values: Array) -> Array:
        return pack_blocks(np.concatenate([values, values[:1]]))

    assert "past the table" in prove_layout.enumerate_packed("blocks", 9, 32, pack)


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (lambda n, k, d: (n * (d // 2) + k // 2, 0), "not 1"),
        (lambda n, k, d: (n * (d // 4) + k // 2, 4 * (k % 2)), "the product of the ranges"),
        (lambda n, k, d: (1 + n * (d // 2) + k // 2, 4 * (k % 2)), "are not those of the table"),
        (lambda n, k, d: (n * (d // 2) + k // 2, 4 * ((k + n) % 2)), "fixed weight"),
    ],
)
def test_arithmetic_refutes_what_is_no_bijection(wrong: object, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(prove_layout.PLACES, "flat", wrong)  # type: ignore[arg-type]  # lambdas have no types
    assert says in prove_layout.by_arithmetic("flat", 70001, 32768)


@pytest.mark.parametrize(
    "words",
    [
        ("arithmetic", "--variant", "nothing"),
        ("arithmetic", "--subject", "nobody"),
        ("arithmetic", "--variant", BUFFER, "--range", "5:3"),
        ("arithmetic", "--variant", BUFFER, "--shader", "/nowhere.comp"),
        ("arithmetic", "--variant", BUFFER, "--device", "no such device"),
        ("layout", "--subject", "nobody"),
        ("everything",),
    ],
)
def test_bad_usage_is_one_line(words: tuple[str, ...], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert prove(*words, *(("--out", tmp_path) if len(words) > 1 else ())) == 2
    printed = capsys.readouterr().err
    assert printed.startswith("error: ")
    assert printed.count("\n") == 1


SUBJECT = """
import os, numpy as np
from conformance import Arrays, table_values
from reference.table.layouts import pack_flat

class Flat:
    def supports(self, case): return case.stage == "PACK" and case.question.layout == "flat"
    def run(self, case): return Arrays({"packed": pack_flat(table_values(case.question))})

class Raises(Flat):
    def run(self, case):
        raise KeyError("\x1b[2J\\nsecond line")

class Dies(Flat):
    def run(self, case):
        os.abort()

class Odd(Flat):
    def run(self, case):
        return Arrays({"packed": np.zeros(3, np.float16)})

class Two(Flat):
    def run(self, case):
        return Arrays({"packed": np.zeros(3), "more": np.zeros(3)})
"""


@pytest.mark.parametrize(
    ("name", "code", "says"),
    [
        ("Flat", 0, "proven: "),
        ("Raises", 1, "flat v1-d32 buffer: raised KeyError: '\\x1b[2J\\nsecond line'"),
        ("Dies", 2, "error: subject {}: Died: the subject's process ended with SIGABRT"),
        ("Odd", 1, "flat v1-d32 buffer: 12 nibbles, not 32"),
        ("Two", 1, "flat v1-d32 buffer: the answer is no single array"),
    ],
)
def test_a_packer_that_is_none_refutes_or_ends_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], name: str, code: int, says: str
) -> None:
    subject = tmp_path / "mine.py"
    subject.write_text(SUBJECT)
    assert prove("layout", "--subject", f"{subject}:{name}", "--out", tmp_path / "out") == code
    printed = capsys.readouterr()
    assert says.format(f"{subject}:{name}") in printed.out + printed.err
    assert all(line.isprintable() for line in (printed.out + printed.err).splitlines())


def test_ctrl_c_ends_a_proof_with_one_line(tmp_path: Path) -> None:
    words = ["prove", "arithmetic", "--variant", BUFFER, "--chunk", "65536", "--out", str(tmp_path)]
    code, error = interrupted(words, lambda: any(p.stat().st_size > 2000 for p in tmp_path.glob("*.journal")))
    assert code == 130
    assert error.splitlines()[-1].startswith("error: interrupted")
    assert "Traceback" not in error
    (journal,) = tmp_path.glob("*.journal")
    assert journal.read_bytes().endswith(b"\n")
