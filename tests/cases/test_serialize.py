"""The one converter is strict: no value of another type, nothing unknown or missing, one line that names the place."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

import pytest

from conformance.case.toml import case_from_table, case_from_toml
from conformance.serialize import check_version, structure, unstructure


class Colour(StrEnum):
    RED = "red"


@dataclass(frozen=True)
class Part:
    name: str
    ratio: float = 0.0


@dataclass(frozen=True)
class Whole:
    count: int
    parts: tuple[Part, ...] = ()
    exact: bool = False
    colour: Colour = Colour.RED
    sizes: Mapping[str, int] = field(default_factory=dict)
    version: int = 2

    def __post_init__(self) -> None:
        if self.count < 0:
            raise ValueError("count is negative")


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"count": True}, "f.toml: count: expected int, got True"),
        ({"count": 3.0}, "f.toml: count: expected int, got 3.0"),
        ({"count": "3"}, "f.toml: count: expected int, got '3'"),
        ({"count": 1, "exact": 1}, "f.toml: exact: expected bool, got 1"),
        ({"count": 1, "parts": "ab"}, "f.toml: parts: expected a list, got 'ab'"),
        ({"count": 1, "parts": [{"name": "a"}, {"name": 7}]}, "f.toml: parts[1].name: expected str, got 7"),
        ({"count": 1, "parts": [{"name": "a", "ratio": float("nan")}]}, "f.toml: parts[0].ratio: nan is not finite"),
        ({"count": 1, "parts": [{"nam": "a"}]}, "f.toml: parts[0]: unknown field 'nam'; known: name, ratio"),
        ({"count": 1, "parts": [{}]}, "f.toml: parts[0]: field 'name' is missing"),
        ({"count": 1, "sizes": {"a": "b"}}, "f.toml: sizes[a]: expected int, got 'b'"),
        ({"count": 1, "sizes": []}, "f.toml: sizes: expected a table, got []"),
        ({"count": 1, "colour": "blue"}, "f.toml: colour: 'blue' is not a valid Colour"),
        ({}, "f.toml: field 'count' is missing"),
        ([], "f.toml: expected a table, got []"),
        ({"count": -1}, "f.toml: count is negative"),
    ],
)
def test_what_is_wrong_is_one_line_with_its_place(data: Any, message: str) -> None:
    with pytest.raises(ValueError) as error:
        structure(Whole, data, "f.toml")
    assert str(error.value) == message


def test_what_is_written_reads_back() -> None:
    whole = Whole(3, (Part("a", -0.0), Part("b", 0.5)), sizes={"x": 1})
    data = unstructure(whole)
    assert data == {
        "count": 3,
        "parts": [{"name": "a", "ratio": 0.0}, {"name": "b", "ratio": 0.5}],
        "sizes": {"x": 1},
    } | {
        "version": 2  # written although it is the default
    }
    assert repr(structure(Whole, data)) == repr(whole)  # -0.0 is not 0.0, which is left out
    assert "ratio" not in unstructure(Part("a"))
    assert structure(Part, {"name": "a", "ratio": 2}).ratio == 2.0


def test_another_version_says_which_and_what_to_do() -> None:
    with pytest.raises(ValueError, match=r"^k.json: a kit of version 1; this suite reads version 2: make it again"):
        check_version("k.json", "kit", 1, 2)
    with pytest.raises(ValueError, match=r"^old.toml: a case of version 1; this suite reads version 2"):
        case_from_toml('id = "a/b"\nstage = "PACK"\nsource = "1"\nshows = "x"\nversion = 1\n', "old.toml")


@pytest.mark.parametrize("table", [[], "text", None])
def test_what_is_no_table_is_no_case(table: Any) -> None:
    with pytest.raises(ValueError, match=r"^f.toml: a case is a table"):
        case_from_table(table, "f.toml")


def test_a_case_holds_one_question() -> None:
    row = {"id": "a/b", "stage": "PACK", "contract": "1", "detects": "x"}
    table = {"vocab_size": 1, "embed_dim": 2, "values": {"pattern": "zeros"}}
    with pytest.raises(ValueError, match="a case holds one question, not table and quantize"):
        case_from_table({**row, "table": table, "quantize": {}})
    with pytest.raises(ValueError, match=r"a PACK case needs \[table\]"):
        case_from_table({**row, "quantize": {}})
    with pytest.raises(ValueError, match=r"table.vocab_size: expected int, got 1.0"):
        case_from_table({**row, "table": {**table, "vocab_size": 1.0}})
