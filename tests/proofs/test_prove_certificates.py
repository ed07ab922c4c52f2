"""Certificates and journals: what was edited, cut off or is of something else is rejected in one line."""

import copy
import hashlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.cli.main import main
from conformance.proofs import certificate as prove_certificate
from conformance.proofs import check
from conformance.proofs.certificate import Rejected
from conformance.proofs.journal import Journal, JournalRefused, Record
from reference.arithmetic.accept import NOTHING_DECLARED, accept_products

ROOT = Path(__file__).parents[2]
COMMITTED = sorted((ROOT / "docs" / "certificates").rglob("*.json"))
VARIANT = "flat-buffer-f16out-f16scale-buffer"
RANGE = "0x3F000000:0x3F200000"


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One of each kind, made here: arithmetic on the device and on the host, indexing, layout."""
    out = tmp_path_factory.mktemp("certificates")
    for words in (
        ("arithmetic", "--variant", VARIANT),
        ("arithmetic", "--subject", "reference", "--variant", "flat-f32out-f16scale"),
        ("indexing", "--variant", VARIANT),
        ("layout", "--subject", "reference"),
    ):
        assert main(["prove", *words, "--out", str(out)]) == 0
    return {path.stem: path for path in out.glob("*.json")}


def mutations(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[tuple[Any, ...], Any]]:
    """(path, new value) for every field of a certificate, lists and tables included."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from mutations(inner, (*path, key))
        yield (*path, "added"), "field"
    elif isinstance(value, list):
        for index, inner in enumerate(value[:2]):
            yield from mutations(inner, (*path, index))
        yield path, [*value, "added"]
    elif isinstance(value, str):
        yield path, value + "0"
        yield path, value[:-1] + ("1" if value[-1:] == "0" else "0")
    else:
        yield path, value + 1
        yield path, str(value)


def changed(certificate: dict[str, Any], path: tuple[Any, ...], value: Any) -> dict[str, Any]:
    """The certificate with one field changed and, but for times, which nothing else holds, the digest made right."""
    new = copy.deepcopy(certificate)
    inner: Any = new
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = value
    return new if path[0] in {"digest", "timing"} else sealed(new)


def sealed(certificate: dict[str, Any], *, evidence: bool = False) -> dict[str, Any]:
    """The certificate with the digest of its content and, if asked for, the evidence, as a forger would seal it."""
    body = {name: value for name, value in certificate.items() if name != "digest"}
    if evidence:
        body["evidence"] = sha256({k: v for k, v in body.items() if k not in {"certificate", "timing", "evidence"}})
    return {**body, "digest": sha256(body)}


def sha256(value: Any) -> str:
    return hashlib.sha256(prove_certificate.canonical(value).encode()).hexdigest()


def rejected(certificate: dict[str, Any], folder: Path, *, rerun: bool = False) -> str:
    path = folder / "changed.json"
    path.write_text(json.dumps(certificate))
    with pytest.raises(Rejected) as caught:
        check.check(path, rerun=rerun)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_every_kind_holds(certificates: dict[str, Path], capsys: pytest.CaptureFixture[str]) -> None:
    assert len(certificates) == 4
    assert main(["prove", "check", *map(str, certificates.values())]) == 0
    printed = capsys.readouterr().out
    assert printed.count(": holds;") == 3
    assert printed.count(": holds as far as it was run again;") == 1  # four of an indexing proof's shapes
    assert printed.count("run again: ") == 4
    assert main(["prove", "check", "--no-rerun", *map(str, certificates.values())]) == 0
    assert capsys.readouterr().out.count(": is consistent, but was not run again;") == 4


@pytest.mark.parametrize(
    ("shapes", "outcome", "says"),
    [
        ("", "no such limit 7", "none is proven"),
        ("v1-d32-g4-i", "no such limit 7", "names no limit of a device"),
        (
            "v1-d32-g4-i",
            "8 texels, beyond maxImageDimension2D = 2 of DEVICE in x; use a buffer variant",
            "0 texels are not",
        ),
        (
            "v9-d131104-g32-i2",
            "beyond maxImageDimension3D = 9 of another; use a buffer variant",
            "a limit of 'another', not",
        ),
    ],
)
def test_a_refusal_that_no_limit_asks_for_is_rejected(
    certificates: dict[str, Path], tmp_path: Path, shapes: str, outcome: str, says: str
) -> None:
    certificate = json.loads(certificates[f"indexing-{VARIANT}"].read_text())
    outcome = "refused: " + outcome.replace("DEVICE", certificate["target"]["device"])
    for name in certificate["claim"]["cases"]:
        if not shapes or name == shapes:
            certificate["claim"]["cases"][name] = outcome
    assert says in rejected(sealed(certificate, evidence=True), tmp_path)


def test_nothing_proven_is_no_proof(certificates: dict[str, Path], tmp_path: Path) -> None:
    certificate = json.loads(certificates["layout-reference"].read_text())
    certificate["claim"]["cases"] = dict.fromkeys(certificate["claim"]["cases"], "refused: it has none")
    assert "none is proven" in rejected(sealed(certificate, evidence=True), tmp_path)


def test_what_is_run_again_is_not_the_files_choice(tmp_path: Path) -> None:
    """Planted: the sum of one segment, and the count of all, changed and sealed again: every segment is compared."""
    name = "arithmetic-flat-buffer-f32out-f32scale-buffer-nomodes-boundary.json"
    right = json.loads((ROOT / "docs" / "certificates" / "lavapipe" / name).read_text())
    assert len(right["claim"]["sums"]) > 1
    for segment in range(len(right["claim"]["sums"])):
        sums = list(right["claim"]["sums"])
        sums[segment] = "0" * 16
        assert f"segment {segment} adds up to" in rejected(
            sealed(changed(right, ("claim", "sums"), sums), evidence=True), tmp_path, rerun=True
        )
    forged = sealed(changed(right, ("claim", "not_strict"), right["claim"]["not_strict"] + 1), evidence=True)
    assert "results are not strict" in rejected(forged, tmp_path, rerun=True)


def test_every_single_field_mutation_is_rejected(certificates: dict[str, Path], tmp_path: Path) -> None:
    for path in certificates.values():
        certificate = json.loads(path.read_text())
        tried = list(mutations(certificate))
        assert len(tried) > 30
        for where, value in tried:
            assert rejected(changed(certificate, where, value), tmp_path), where


def test_claims_are_checked_even_where_both_hashes_are_made_right(
    certificates: dict[str, Path], tmp_path: Path
) -> None:
    """Whoever recomputes the evidence too is caught by what the fields say of each other, and by running again."""
    for name in (f"arithmetic-{VARIANT}-all", f"indexing-{VARIANT}", "layout-reference"):
        certificate = json.loads(certificates[name].read_text())
        for where, value in mutations(certificate):
            if where[0] in {"evidence", "digest", "timing", "versions"}:
                continue
            forged = sealed(changed(certificate, where, value), evidence=True)
            if where[-1] in {"device", "driver"}:
                continue  # a device that is not here cannot be asked
            needs_device = where[-1] == "not_strict" or where[:2] == ("claim", "sums")
            assert rejected(forged, tmp_path, rerun=needs_device), where


HOST_PROOF = "arithmetic-flat-f32out-f16scale-all"


@pytest.mark.parametrize(
    ("name", "path", "value", "says"),
    [
        (HOST_PROOF, ("claim", "not_strict"), 1, "counts 1 results that are not strict"),
        (HOST_PROOF, ("claim", "not_strict"), -1, "a count is below zero"),
        (HOST_PROOF, ("claim", "sums"), [], "sums are of 0 segments; domain all has 1"),
        (HOST_PROOF, ("claim", "sums"), ["0" * 15 + "g"], "are not hexadecimal numbers of 64 bits"),
        (HOST_PROOF, ("claim", "domain"), "0:65536", "domain is '0:65536', whose name is '0x0:0x10000'"),
        (HOST_PROOF, ("timing", "working_s"), -0.5, "a time is below zero"),
        (HOST_PROOF, ("timing", "started"), "yesterday", "Invalid isoformat string"),
        (HOST_PROOF, ("versions",), {"numpy": "1"}, "versions are not those"),
        (f"arithmetic-{VARIANT}-all", ("claim", "not_strict"), (1 << 20) + 1, "results that are not strict"),
        ("layout-reference", ("target", "device"), "one", "facts that a layout does not depend on"),
        (f"indexing-{VARIANT}", ("claim", "kind"), "layout", "facts that a layout does not depend on"),
    ],
)
def test_a_claim_that_cannot_be_is_rejected_without_running_again(
    certificates: dict[str, Path], tmp_path: Path, name: str, path: tuple[str, ...], value: Any, says: str
) -> None:
    forged = sealed(changed(json.loads(certificates[name].read_text()), path, value), evidence=True)
    assert says in rejected(forged, tmp_path)


@pytest.mark.parametrize("share", [0.0, 0.3, 0.99])
def test_truncated_certificates_are_rejected(share: float, certificates: dict[str, Path], tmp_path: Path) -> None:
    text = certificates[f"arithmetic-{VARIANT}-all"].read_text()
    path = tmp_path / "cut.json"
    path.write_text(text[: int(len(text) * share)])
    with pytest.raises(Rejected, match="truncated or no JSON"):
        check.check(path)
    assert main(["prove", "check", str(path)]) == 1


def test_other_versions_and_missing_files_are_rejected(certificates: dict[str, Path], tmp_path: Path) -> None:
    certificate = json.loads(certificates[f"arithmetic-{VARIANT}-all"].read_text())
    for version in (1, 3):
        line = rejected(changed(certificate, ("certificate",), version), tmp_path)
        assert f"has version {version}, this release reads version 2: prove it again" in line
        assert "docs/certificates/reseal.py" in line
    assert "is no certificate" in rejected({"kind": "arithmetic"}, tmp_path)
    assert main(["prove", "check", str(tmp_path / "none.json")]) == 1


def test_a_shader_that_has_changed_is_refused(tmp_path: Path) -> None:
    shader = tmp_path / "own.comp"
    shader.write_bytes((ROOT / "vulkan" / "glsl" / "embedding_q4gsw.comp").read_bytes())
    words = ["--variant", VARIANT, "--range", "0:4096", "--shader", str(shader), "--out", str(tmp_path)]
    assert main(["prove", "arithmetic", *words]) == 0
    (path,) = tmp_path.glob("*.json")
    assert check.check(path, shader=shader)
    shader.write_text(shader.read_text().replace("- 8)", "- 7)"))
    with pytest.raises(Rejected, match=r"own\.comp is another now: target\.glsl_sha256"):
        check.check(path, shader=shader)


def test_a_refuted_certificate_is_rejected(certificates: dict[str, Path], tmp_path: Path) -> None:
    certificate = json.loads(certificates[f"arithmetic-{VARIANT}-all"].read_text())
    certificate["mismatches"], certificate["claim"]["refused"] = ["scale 0x3C00 ..."], 1
    assert "says itself that the proof failed: scale 0x3C00" in rejected(sealed(certificate, evidence=True), tmp_path)
    certificate["mismatches"] = []
    assert "says itself that the proof failed" in rejected(sealed(certificate, evidence=True), tmp_path)


@pytest.mark.parametrize("path", COMMITTED, ids=lambda p: str(p.relative_to(ROOT / "docs" / "certificates")))
def test_committed_certificates_hold(path: Path, tmp_path: Path) -> None:
    assert check.check(path, rerun=False)
    certificate = json.loads(path.read_text())
    tried = list(mutations(certificate))
    for where, value in random.Random(path.name).sample(tried, 25):  # noqa: S311 - all of them are tried above
        assert rejected(changed(certificate, where, value), tmp_path), where


def test_there_are_committed_certificates() -> None:
    assert COMMITTED


def test_a_fast_oracle_that_is_wrong_is_found_by_fractions(monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: it takes nothing for declared, so that both neighbours are allowed."""

    def lax(values: Any, scales: Any, output_dtype: str, _modes: Any) -> Any:
        return accept_products(values, scales, output_dtype, NOTHING_DECLARED)

    path = ROOT / "docs" / "certificates" / "lavapipe" / "arithmetic-flat-buffer-f32out-f32scale-buffer-boundary.json"
    assert check.check(path, rerun=False)
    monkeypatch.setattr(check, "accept_products", lax)
    with pytest.raises(Rejected, match="the fast oracle is wrong for scale"):
        check.check(path, rerun=False)


HEADER = {"target.device": "one", "target.spirv_sha256": "a", "chunk": 4}


def test_a_journal_goes_on_where_it_was_cut_off(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, HEADER, resume=False)
    journal.add(Record(0, 4))
    journal.add(Record(8, 12))
    journal.close()
    path.write_text(path.read_text() + '{"start": 4, "st')
    journal = Journal(path, HEADER, resume=True)
    assert journal.missing(14, 4) == [(4, 8), (12, 14)]
    journal.add(Record(4, 8))
    journal.close()
    journal = Journal(path, HEADER, resume=True)
    assert journal.missing(14, 4) == [(12, 14)]


@pytest.mark.parametrize(
    ("header", "says"),
    [
        ({**HEADER, "target.device": "two"}, "target.device is 'one' there, 'two' here"),
        ({**HEADER, "target.spirv_sha256": "b"}, "target.spirv_sha256 is 'a' there, 'b' here"),
        ({**HEADER, "chunk": 8}, "chunk is 4 there, 8 here"),
    ],
)
def test_a_journal_of_another_proof_is_refused(header: dict[str, Any], says: str, tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, HEADER, resume=False)
    journal.add(Record(0, 4))
    journal.close()
    before = path.read_bytes()
    with pytest.raises(JournalRefused, match=says):
        Journal(path, header, resume=True)
    assert path.read_bytes() == before


def test_a_journal_is_not_overwritten_and_damage_is_seen(tmp_path: Path) -> None:
    path = tmp_path / "a.journal"
    journal = Journal(path, HEADER, resume=False)
    journal.add(Record(0, 4))
    with pytest.raises(JournalRefused, match="another process is at this proof"):
        Journal(path, HEADER, resume=True)
    journal.close()
    with pytest.raises(JournalRefused, match="--resume goes on with it"):
        Journal(path, HEADER, resume=False)
    whole = path.read_text()
    for damaged, says in (
        (whole + whole.splitlines()[1] + "\n", "is there twice"),
        (whole + '{"start":4,"stop":8}\n', "the digest of chunk 1"),
        (whole.replace('"stop":4', '"stop":5'), "the digest of chunk 0"),
        (whole.replace('"stop":4', '"damage":"x","stop":4'), "the digest of chunk 0"),
        ("\n", "is no journal"),
        ("{}\n[]\n", "a line of it is no table"),
        (whole + "[" * 100_000 + "\n", "is no journal"),
    ):
        path.write_text(damaged)
        with pytest.raises(JournalRefused, match=says):
            Journal(path, HEADER, resume=True)
        assert path.read_text() == damaged


def test_a_clock_that_is_set_back_spoils_no_certificate() -> None:
    times = prove_certificate.timing(1000.0, 500.0, 1.0, {"device": 1.0})
    assert times.started == times.finished


def without_timings(path: Path) -> dict[str, Any]:
    return {k: v for k, v in json.loads(path.read_text()).items() if k not in {"timing", "digest"}}


def test_a_proof_killed_three_times_ends_with_the_same_certificate(tmp_path: Path) -> None:
    def command(out: Path) -> list[str]:
        words = ["--subject", "impl", "--variant", "flat-buffer-f32out-f32scale-buffer", "--range", RANGE]
        words += ["--chunk", "32768", "--out", str(out), "--resume"]
        return [sys.executable, "-m", "conformance", "prove", "arithmetic", *words]

    def run(out: Path, seconds: float | None) -> int:
        """Run it; with ``seconds``, kill it that long after its journal has grown."""
        with subprocess.Popen(command(out), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:
            if seconds is not None:
                before = size(out)
                deadline = time.monotonic() + 60
                while size(out) <= before and process.poll() is None and time.monotonic() < deadline:
                    time.sleep(0.002)
                time.sleep(seconds)
                os.kill(process.pid, signal.SIGKILL)
            return process.wait(timeout=120)

    def size(out: Path) -> int:
        return sum(path.stat().st_size for path in out.glob("*.journal"))

    plain, killed = tmp_path / "plain", tmp_path / "killed"
    assert run(plain, None) == 0
    moments = random.Random(5)  # noqa: S311 - moments, not secrets
    for _ in range(3):
        assert run(killed, moments.random() / 40) == -signal.SIGKILL
        assert list(killed.glob("*.journal")), "the proof was over before it was killed"
        assert not list(killed.glob("*.json"))
    assert run(killed, None) == 0
    (one,), (other,) = plain.glob("*.json"), killed.glob("*.json")
    assert without_timings(one) == without_timings(other)
    assert not list(killed.glob("*.journal"))
    assert check.check(other)
