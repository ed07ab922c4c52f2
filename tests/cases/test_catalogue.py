"""The catalogue is well formed, its rows are distinct questions, and a malformed row names its place."""

import dataclasses
import fnmatch
import re
from pathlib import Path

import pytest

from conformance.case.case import STAGES, Case, Dispatch, Table
from conformance.case.catalogue import load, load_file, select
from conformance.case.toml import case_from_toml, case_to_toml
from reference.program.fusibility import violations
from reference.program.spec import Values
from tests.meta.telling_inputs import cannot_show_a_bug

CASES = load()
CONTRACT = (Path(__file__).parents[2] / "docs" / "contract.md").read_text()


#: Cases whose inputs cannot show a bug, because they are about exactly that: pattern of ids -> why that is so.
ABOUT = {
    "kernel/*-buffer/empty": "no index is looked up",
    "match/torchao/empty-indices": "lookup lookup0: no index is looked up",
    "match/found/empty-*table-*refused": "lookup lookup0: no index is looked up",
    "lower/zero-table": "lookup lookup0: every value is the same",
    "match/values/out-of-range-refused": "lookup lookup0: every value is the same",  # but one, which nobody looks up
}
#: Sections that only introduce others.
WITHOUT_CASES = {"3", "5", "6", "7"}


def musts() -> list[str]:
    """Every numbered section of the contract that demands something of an implementation."""
    found = re.findall(r"^(?:## |- )?([1-7](?:\.\d)?) ", CONTRACT, re.MULTILINE)
    assert set(found) >= WITHOUT_CASES
    return sorted(set(found) - WITHOUT_CASES)


def test_at_least_a_thousand_distinct_questions_at_gate() -> None:
    questions = {dataclasses.replace(c, id="x", detects="x", contract="x", level="gate") for c in CASES}
    assert len(questions) == len(CASES)
    assert len(select(CASES, level="gate")) >= 1000


@pytest.mark.parametrize("section", musts())
def test_every_section_with_a_must_has_cases(section: str) -> None:
    assert any(c.contract == section for c in CASES)


def test_every_case_could_show_a_bug() -> None:
    reasons = {c.id: why for c in CASES if (why := cannot_show_a_bug(c))}
    for pattern, expected in ABOUT.items():
        about = fnmatch.filter(list(reasons), pattern)
        assert about, f"{pattern} is trusted, or gone"
        assert {reasons.pop(name) for name in about} == {expected}
    assert not reasons


@pytest.mark.parametrize(
    ("table", "why"),
    [
        (Table(4, 8, Values("zeros")), "every value is the same"),
        (Table(4, 2, Values("literal", data="01010202ffff0000")), "both nibbles of every byte are equal"),
        (Table(2, 4, Values("literal", data="0102010203040304")), "every byte of a row is the same"),
        (Table(2, 4, Values("literal", data="0102030401020304")), "every row is the same"),
        (Table(8, 4, Values("ramp", low=-8, high=7), "blocks"), "both halves of every block are the same"),
        (Table(2, 4, Values("literal", data="01020304ff020304")), None),
    ],
)
def test_untrustworthy_tables_are_named(table: Table, why: str | None) -> None:
    stage = "PREPACK" if table.layout == "blocks" else "PACK"
    assert cannot_show_a_bug(Case("a/b", stage, "1", "x", table)) == why


@pytest.mark.parametrize(
    ("dispatch", "why"),
    [
        (Dispatch(), None),
        (Dispatch(values=Values("zeros")), "every value is the same"),
        (Dispatch(scales=Values("constant", value=0.5)), "the groups of each row share one scale"),
        (Dispatch(scales=Values("zeros")), "every scale is zero"),
        (Dispatch(group_size=64, scales=Values("constant", value=0.5)), "the rows share their scales"),
        (Dispatch(index_values=Values("constant", value=0.0)), "only row 0 is looked up"),
        (Dispatch(index_values=Values("constant", value=3.0)), "every index is the same"),
        (Dispatch(indices_shape=(0,)), "no index is looked up"),
        (Dispatch(index_values=Values("constant", value=99.0)), "every index is outside the table"),
    ],
)
def test_untrustworthy_dispatches_are_named(dispatch: Dispatch, why: str | None) -> None:
    assert cannot_show_a_bug(Case("a/b", "KERNEL", "7.1", "x", dispatch)) == why


def test_at_least_thirty_start_from_torchao() -> None:
    assert sum(c.program is not None and c.program.route == "torchao" for c in CASES) >= 30


def test_every_stage_that_has_an_oracle_is_asked() -> None:
    assert {c.stage for c in CASES} >= {"MATCH", "PACK", "PREPACK", "KERNEL"}
    assert {c.stage for c in CASES} <= set(STAGES)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.id)
def test_a_case_survives_its_own_file(case: Case) -> None:
    assert case_from_toml(case_to_toml(case)) == case


@pytest.mark.parametrize("section", sorted({c.contract for c in CASES}))
def test_cited_sections_exist(section: str) -> None:
    heading = f"\n## {section} " if "." not in section else f"{section} "
    assert f"\n{heading}" in CONTRACT or heading in CONTRACT


@pytest.mark.parametrize("case", [c for c in CASES if c.stage == "MATCH"], ids=lambda c: c.id)
def test_names_agree_with_the_predicate(case: Case) -> None:
    """A case called "-refused" is one that the predicate refuses, so that ids do not lie."""
    assert case.program is not None
    reasons = violations(case.program)
    if case.id.endswith("-refused"):
        assert any(reasons.values()) if len(reasons) > 1 else all(reasons.values())
    elif case.contract == "5.3":
        assert not any(reasons.values()), reasons


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[[case]\n", "rows.toml: "),
        ('[[case]]\nid = "a/b"\n', "case a/b: Case: field 'stage' is missing"),
        (
            '[[case]]\nid = "a/b"\nstage = "PAK"\ncontract = "1"\ndetects = "x"\n',
            "case a/b: stage 'PAK' is not one of QUANTIZE",
        ),
        (
            '[[case]]\nid = "a/b"\nstage = "PACK"\ncontract = "1"\ndetects = "x"\n',
            "case a/b: a PACK case needs [table]",
        ),
        ('[[case]]\nid = "A b"\nstage = "PACK"\ncontract = "1"\ndetects = "x"\n', "id 'A b' must look like"),
        ('[[case]]\nid = "a/b"\nstage = "PACK"\ncontract = "9"\ndetects = "x"\n', "contract '9' must be a section"),
        ('[[case]]\nid = "a/b"\nstage = "PACK"\ncontract = "1"\ndetects = "x"\ncolour = 1\n', "unknown field 'colour'"),
        (
            '[[case]]\nid = "a/b"\nstage = "PACK"\ncontract = "1"\ndetects = "x"\ntable = { vocab_size = "9" }\n',
            "table.vocab_size: expected int, got '9'",
        ),
        (
            '[[case]]\nid = "a/b"\nstage = "MATCH"\ncontract = "5"\ndetects = "x"\nprogram.single_table.lookup = 2\n',
            "program.single_table: unknown field 'lookup'",
        ),
        ("[case]\n", "case is one table; write [[case]]"),
        ("[rows]\n", "unknown table 'rows'"),
    ],
)
def test_a_malformed_row_names_file_case_and_fault(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "rows.toml"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        load_file(path)
    assert message in str(error.value)
    assert "rows.toml" in str(error.value)


def test_an_id_used_twice_is_an_error(tmp_path: Path) -> None:
    table = '{ vocab_size = 1, embed_dim = 2, values = { pattern = "pairs" } }'
    row = f'[[case]]\nid = "a/b"\nstage = "PACK"\ncontract = "1"\ndetects = "x"\ntable = {table}\n'
    (tmp_path / "one.toml").write_text(row + row)
    with pytest.raises(ValueError, match=r"a/b: the id is used twice"):
        load(tmp_path)


def test_levels_include_the_ones_before() -> None:
    smoke, gate = (set(select(CASES, level=level)) for level in ("smoke", "gate"))
    assert smoke < gate


@pytest.mark.parametrize(
    ("wanted", "message"),
    [
        ({"level": "smok"}, "unknown level 'smok'; did you mean smoke"),
        ({"stages": ["KERNAL"]}, "unknown stage 'KERNAL'; did you mean KERNEL"),
        ({"ids": ["pack/flat/v8"]}, "unknown case 'pack/flat/v8'; did you mean pack/flat/v"),
    ],
)
def test_unknown_names_get_the_nearest(wanted: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError) as error:
        select(CASES, **wanted)  # type: ignore[arg-type]  # wrong on purpose
    assert message in str(error.value)
