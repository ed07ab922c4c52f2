"""Subjects of other projects: dialects, the arithmetic that they declare, and one line where a wheel is missing."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from conformance.case.catalogue import load
from conformance.cli.main import main
from conformance.harness.subject import names, peers
from conformance.judging.judge import judge
from conformance.proofs import certificate
from conformance.results import implementations
from conformance.results.verdict import Stream, Verdict
from conformance.subjects.peers.peer import AFFINE, FLUSHES, Array, Dialect, Peer, nibbles
from conformance.subjects.peers.torch_bag import SubjectUnderTest as TorchBag

ROOT = Path(__file__).parents[2]
CASES = {case.id: case for case in load() if case.stage == "KERNEL"}
SPECIAL = "kernel/flat-buffer/float32-float32/special-scales"
OUTSIDE = "kernel/dialect/g32/float32/out-of-range"


class Right(Peer):
    """Answers as numpy does."""

    dialect = Dialect("numpy", (("float32", "float32"),))

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:
        if ((indices < 0) | (indices >= len(values))).any():
            raise IndexError("an index is outside the table")
        with np.errstate(all="ignore"):
            return (values * np.repeat(scales, group_size, axis=1))[indices]


class Flushing(Right):
    """Flushes subnormal results, and says so."""

    dialect = Dialect("numpy", (("float32", "float32"),), facts=FLUSHES)

    def lookup(self, *question: object) -> Array:  # type: ignore[override]
        rows = super().lookup(*question)  # type: ignore[arg-type]
        return np.where(np.abs(rows) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), rows), rows)


class Doubled(Flushing):
    """Flushes, and doubles the rest."""

    def lookup(self, *question: object) -> Array:  # type: ignore[override]
        with np.errstate(all="ignore"):
            return super().lookup(*question) * 2


class Strict(Flushing):
    """Flushes without saying so."""

    dialect = Right.dialect


class Refusing(Right):
    """Refuses indices that are in the table."""

    def lookup(self, *question: object) -> Array:  # type: ignore[override]
        raise IndexError("not today")


def outcome(peer: Peer, case: str) -> Verdict:
    assert peer.supports(CASES[case]) is None
    return judge(CASES[case], peer.run(CASES[case]), "a-peer")


def test_a_flush_passes_where_it_is_declared_and_a_wrong_product_never() -> None:
    assert (outcome(Right(), SPECIAL).outcome, outcome(Right(), SPECIAL).strict) == ("PASS", True)
    assert (outcome(Flushing(), SPECIAL).outcome, outcome(Flushing(), SPECIAL).strict) == ("PASS", False)
    assert outcome(Strict(), SPECIAL).signature == outcome(Doubled(), SPECIAL).signature == "KERNEL/array/values"


def test_an_index_outside_may_be_refused_and_one_inside_may_not() -> None:
    assert outcome(Right(), OUTSIDE).outcome == "PASS"
    assert outcome(Refusing(), SPECIAL).signature == "KERNEL/raised/index_outside"


def test_a_dialect_declines_by_name() -> None:
    def why(case: str, **dialect: object) -> str:
        own = Dialect("numpy", (("float32", "float32"), ("float16", "float32")), **dialect)  # type: ignore[arg-type]
        return str(type("Own", (Right,), {"dialect": own})().supports(CASES[case]))

    assert "float16 output are not in its dialect" in why("kernel/flat-buffer/float16-float16/control")
    assert "layout" in why("kernel/block-buffer/float32-float32/control")
    assert why("kernel/flat-buffer/g8", groups=(32, 64)) == "its dialect has groups of 32, 64, not 8"
    assert why("kernel/flat-buffer/g8", a_row=True) == "its dialect has one scale a row"
    assert why("kernel/flat-buffer/d160", multiple=64) == "its dialect has rows of a multiple of 64 columns"
    assert why(SPECIAL, highest=1.0) == "its dialect has scales up to 1"
    assert why(OUTSIDE, outside="never ask") == "never ask"
    assert why(SPECIAL) == "None"


def test_torch_is_a_peer_that_is_always_there(tmp_path: Path) -> None:
    asked = [case for case in CASES.values() if TorchBag().supports(case) is None]
    assert len(asked) >= 5
    assert {judge(case, TorchBag().run(case), "torch-bag").outcome for case in asked} == {"PASS"}
    words = ["--subject", "torch-bag", "--range", "0x0000:0x6C00", "--out", str(tmp_path)]
    assert main(["prove", "arithmetic", *words]) == 0
    proof = certificate.read(*tmp_path.glob("*.json"))
    assert (proof.result, proof.target.execution_modes) == ("proven", ",".join(AFFINE.execution_modes))
    assert main(["prove", "check", *map(str, tmp_path.glob("*.json"))]) == 0
    words[3] = "0x6C00:0x7C00"  # from 8192 on the bias is infinite
    assert main(["prove", "arithmetic", *words]) == 1


@pytest.mark.parametrize("name", ["ggml", "onnxruntime"])
def test_a_missing_wheel_is_one_line(name: str, tmp_path: Path) -> None:
    """Also where it is there: a module of that name that cannot be imported comes first."""
    (tmp_path / f"{name}.py").write_text("raise ModuleNotFoundError('No module named " + name + "')\n")
    command = [sys.executable, "-m", "conformance", "run", "--subject", name, "--case", SPECIAL]
    environment = {"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{ROOT}:{tmp_path}", "HOME": str(tmp_path)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment, check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"error: subject '{name}': No module named" in done.stderr
    assert "./dev peers" in done.stderr


def test_the_page_counts_what_each_implementation_gets_wrong() -> None:
    verdicts = [
        Verdict("kernel/a", "KERNEL", "mlx", "PASS", strict=True, contract="3.2", facts={"arithmetic": "host"}),  # type: ignore[arg-type]
        Verdict("kernel/b", "KERNEL", "mlx", "XFAIL", contract="3.2", defect="two-roundings"),  # type: ignore[arg-type]
        Verdict("kernel/c", "KERNEL", "mlx", "UNSUPPORTED", contract="7.3"),  # type: ignore[arg-type]
    ]
    stream = Stream({"subject": "mlx", "started": "2026-11-28T00:00:00Z"}, tuple(verdicts), truncated=False)
    page = implementations.page([(stream, ["f32out-f32scale, boundary: refuted"])])
    assert "| implementation | asked | 3.2 | 7.3 |" in page
    assert "| mlx | 2 | 1, 1 wrong | - |" in page
    assert "**two-roundings** (1 cases): code * scale is rounded" in page
    assert "- Proof of f32out-f32scale, boundary: refuted" in page


def test_every_peer_has_a_name_of_its_own() -> None:
    assert {"ggml", "litert", "mlx", "onnxruntime", "openvino", "torch-bag", "executorch-cpu"} <= set(peers())
    assert set(peers()) < set(names())
    assert nibbles(np.int8([[-8, 7]])).tolist() == [[0x78]]
