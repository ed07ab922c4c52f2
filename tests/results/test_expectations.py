"""Known failures are strict both ways, and an entry that says too little or matches nothing is an error."""

import functools
from pathlib import Path

import pytest

from conformance.case.catalogue import load
from conformance.case.single_table import SingleTable, single_table
from conformance.generate.search import generated_case
from conformance.results import expectations
from conformance.results.expectations import Expectations
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, XFAIL, XPASS, Verdict
from tests.runs.test_cli import MINIATURES, conformance

ROOT = Path(__file__).parents[2]
CASES = load()
WHEEL = expectations.FOLDER / "executorch.toml"
RAISED = "PACK/raised/KeyError@subject_misbehaving.Raises.bad"
ENTRY = """[[known]]
defect = "one-row-raises"
signature = ["PACK/raised/KeyError@subject_misbehaving.Raises.bad"]
case = ["pack/*/v1", "pack/worked-bytes/*"]
reason = "a miniature's mistake"
link = "https://example.org/1"
"""


def loaded(tmp_path: Path, text: str, **versions: str) -> Expectations:
    path = tmp_path / "known.toml"
    path.write_text(text)
    return expectations.load(path, CASES, versions)


def verdict(outcome: str, signature: str = "", case: str = "pack/flat/v1") -> Verdict:
    return Verdict(case, "PACK", "x", outcome, signature, "why")


@pytest.mark.parametrize(
    ("outcome", "signature", "becomes"),
    [
        (FAIL, RAISED, XFAIL),
        (FAIL, "PACK/layout/codes", FAIL),
        (PASS, "", XPASS),
        (ERROR, "PACK/raised/Timeout", ERROR),
        (UNSUPPORTED, "", FAIL),
    ],
)
def test_strict_both_ways(tmp_path: Path, outcome: str, signature: str, becomes: str) -> None:
    found = loaded(tmp_path, ENTRY).apply(verdict(outcome, signature))
    assert found.outcome == becomes
    assert loaded(tmp_path, ENTRY).apply(verdict(outcome, signature, "pack/flat/v7")).outcome == outcome


def test_another_failure_says_what_was_expected(tmp_path: Path) -> None:
    found = loaded(tmp_path, ENTRY).apply(verdict(FAIL, "PACK/layout/codes"))
    assert f"expected {RAISED} (one-row-raises) instead" in found.reason


def test_other_versions_are_expected_to_pass(tmp_path: Path) -> None:
    text = ENTRY + 'versions = { torch = "2.13.*" }\n'
    assert loaded(tmp_path, text, torch="2.13.0").by_case
    assert not loaded(tmp_path, text, torch="2.14.0").by_case


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('reason = "a miniature\'s mistake"', 'reason = " "', "reason is empty"),
        ('reason = "a miniature\'s mistake"\n', "", "field 'reason' is missing"),
        ('"https://example.org/1"', '""', "link is empty"),
        ("pack/*/v1", "pack/*/v1000", "case pattern 'pack/*/v1000' matches no case"),
        ("one-row-raises", "One row", "defect 'One row' must be a short name"),
        (RAISED, "PACK/raised/EnvironmentProblem", "not one that a subject's failure can have"),
        (RAISED, "raised", "not one that a subject's failure can have"),
        (f'"{RAISED}"', '"PACK/raised/A", "PACK/raised/B"', "two signatures of one stage"),
        (RAISED, "MATCH/raised/KeyError", "no signature is of stage PACK"),
        (f'["{RAISED}"]', "[]", "at least one of them"),
        ("[[known]]", "[[know]]", "unknown field 'know'; known: known, include"),
        ("[[known]]", "[[known]", "line"),
    ],
)
def test_an_entry_at_fault_names_its_place(tmp_path: Path, old: str, new: str, message: str) -> None:
    with pytest.raises(ValueError) as error:
        loaded(tmp_path, ENTRY.replace(old, new, 1))
    assert message in str(error.value)
    assert "known.toml" in str(error.value)


def test_a_file_includes_the_one_beside_it(tmp_path: Path) -> None:
    (tmp_path / "base.toml").write_text(ENTRY)
    own = ENTRY.replace("one-row-raises", "another").replace('"pack/*/v1", "pack/worked-bytes/*"', '"pack/*/v7"')
    found = loaded(tmp_path, 'include = "base.toml"\n' + own)
    assert {known.defect for known, _ in found.by_case.values()} == {"one-row-raises", "another"}
    for include, said in (
        ("../base.toml", "not the name of a file beside it"),
        ("known.toml", "may not include 'known.toml' in turn"),
        ("gone.toml", "gone.toml"),
    ):
        with pytest.raises(ValueError, match=said) as error:
            loaded(tmp_path, f'include = "{include}"\n')
        assert "\n" not in str(error.value)


def test_a_source_tree_s_subject_has_expectations_whatever_its_path() -> None:
    path = expectations.for_subject("executorch-src:/home/me/executorch@main")
    assert path is not None
    assert path.name == "executorch-src.toml"
    assert expectations.for_subject("path/to/impl.py:executorch") is None


def test_a_case_expected_twice_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"case pack/flat/v1 is expected twice, by one-row-raises too"):
        loaded(tmp_path, ENTRY + ENTRY)


@pytest.mark.parametrize("path", sorted(expectations.FOLDER.glob("*.toml")), ids=lambda p: p.stem)
def test_the_shipped_files_are_right(path: Path) -> None:
    versions: dict[str, str] = {}
    for known in expectations.read(path):
        assert known.versions, f"{known.defect}: name the versions that have it"
        assert known.link.startswith("https://") or (ROOT / known.link).is_file()
        versions |= known.versions
    assert expectations.load(path, CASES, versions).by_case
    assert not expectations.load(path, CASES, dict.fromkeys(versions, "0.0.0")).by_case


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_of_known_failures_is_as_expected(tmp_path: Path, workers: str) -> None:
    known = tmp_path / "known.toml"
    known.write_text(ENTRY)
    run = functools.partial(conformance, "run", "--workers", workers)
    arguments = ("--subject", f"{MINIATURES}:Raises", "--stages", "PACK", "--expectations", str(known), "--report")
    done = run(*arguments, str(tmp_path / "r"))
    assert done.returncode == 0, done.stdout
    assert "known failures: 4 cases, 1 defects" in done.stdout
    assert "4 one-row-raises: a miniature's mistake" in done.stdout
    assert "failed:0 error:0 unsupported:0 xfail:4 xpass:0" in done.stdout
    assert run(*arguments, str(tmp_path / "off"), "--no-expectations").returncode == 1
    fixed = run(*arguments, str(tmp_path / "good"), "--subject", f"{MINIATURES}:Good")
    assert fixed.returncode == 1
    assert "xfail:0 xpass:4" in fixed.stdout


def test_a_file_at_fault_is_bad_usage(tmp_path: Path) -> None:
    known = tmp_path / "known.toml"
    known.write_text(ENTRY.replace("pack/*/v1", "pack/*/v1000"))
    done = conformance("run", "--stages", "PACK", "--expectations", str(known))
    assert done.returncode == 2
    assert "matches no case of the catalogue" in done.stderr


def test_a_generated_program_is_excused_by_signature_and_condition_only() -> None:
    """A failure never seen before is none that is known, and neither is a known one of a program without its cause."""
    spec = single_table(SingleTable(route="synthetic", zero_point="ones"))
    asymmetric = generated_case(spec)
    symmetric = generated_case(single_table(SingleTable(route="synthetic")))
    raised = "MATCH/raised/AssertionError@executorch.backends.vulkan.patterns.quantized_embedding."
    signature = f"{raised}replace_torchao_quantized_embedding_patterns"
    expected = expectations.load(WHEEL, CASES, {"executorch": "1.5.1"})
    assert expected.excuses(asymmetric, signature)
    assert not expected.excuses(symmetric, signature)
    assert not expected.excuses(asymmetric, "MATCH/raised/RuntimeError@somewhere.never_seen_before")
    assert not expectations.load(WHEEL, CASES, {"executorch": "9"}).excuses(asymmetric, signature)


def test_every_entry_of_the_wheel_that_a_generated_program_can_meet_has_a_condition() -> None:
    for known in expectations.read(WHEEL):
        assert known.program or not any(signature.startswith("MATCH/") for signature in known.signature), known.defect
