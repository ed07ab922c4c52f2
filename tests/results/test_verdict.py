"""The verdict stream: written line by line, truncated when its footer is missing, never overwritten."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from conformance.case.case import QUESTIONS, Case
from conformance.harness.observation import Facts
from conformance.results.replay import Replay
from conformance.results.verdict import (
    ERROR,
    FAIL,
    PASS,
    UNSUPPORTED,
    XFAIL,
    XPASS,
    Verdict,
    Writer,
    exit_code,
    last_line,
    read,
)

ROOT = Path(__file__).parents[2]


def verdict(outcome: str) -> Verdict:
    return Verdict("a/b", "PACK", "impl", outcome, mismatch={"index": [1, 2]})


def write(path: Path, *outcomes: str, close: bool = True) -> None:
    writer = Writer(path, {"subject": "impl"})
    for outcome in outcomes:
        writer.add(verdict(outcome))
    if close:
        writer.close()


def test_a_stream_reads_back(tmp_path: Path) -> None:
    write(tmp_path / "v.jsonl", PASS, FAIL)
    stream = read(tmp_path / "v.jsonl")
    assert stream.verdicts == (verdict(PASS), verdict(FAIL))
    assert not stream.truncated


def test_a_killed_run_says_truncated(tmp_path: Path) -> None:
    write(tmp_path / "v.jsonl", PASS, FAIL, close=False)
    stream = read(tmp_path / "v.jsonl")
    assert stream.truncated
    assert len(stream.verdicts) == 2


@pytest.mark.parametrize("cut", [1, 10, 100])
def test_a_line_cut_short_is_truncation(tmp_path: Path, cut: int) -> None:
    write(tmp_path / "v.jsonl", PASS, FAIL, close=False)
    whole = (tmp_path / "v.jsonl").read_text()
    (tmp_path / "v.jsonl").write_text(whole[:-cut])
    assert read(tmp_path / "v.jsonl").truncated


def test_a_footer_with_another_count_is_of_an_altered_stream(tmp_path: Path) -> None:
    write(tmp_path / "v.jsonl", PASS, FAIL)
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    (tmp_path / "v.jsonl").write_text("\n".join([lines[0], *lines[2:]]))
    with pytest.raises(ValueError, match="altered"):
        read(tmp_path / "v.jsonl")


def test_another_run_is_never_overwritten(tmp_path: Path) -> None:
    write(tmp_path / "v.jsonl", PASS)
    before = (tmp_path / "v.jsonl").read_bytes()
    with pytest.raises(ValueError, match="another run's report is there"):
        write(tmp_path / "v.jsonl", PASS)
    assert (tmp_path / "v.jsonl").read_bytes() == before


def test_a_stream_of_another_version_says_which_and_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "v.jsonl").write_text(json.dumps({"header": {"format": 1}}) + "\n")
    with pytest.raises(ValueError, match=r"v.jsonl: a verdict stream of version 1; this suite reads version 3: make"):
        read(tmp_path / "v.jsonl")


@pytest.mark.parametrize("text", ["", "{}\n", "not json\n", '{"header": 1}\n'])
def test_what_is_no_stream_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "v.jsonl").write_text(text)
    with pytest.raises(ValueError, match="not a verdict stream"):
        read(tmp_path / "v.jsonl")


@pytest.mark.parametrize(
    "odd",
    [
        {"case": None},
        {"reason": ["two", "lines"]},
        {"seconds": "fast"},
        {"seconds": float("nan")},
        {"seconds": -1},
        {"strict": "yes"},
        {"mismatch": "picture"},
        {"facts": ["device"]},
        {"facts": {"device": 7}},
        {"outcome": "MAYBE"},
    ],
    ids=str,
)
def test_a_malformed_field_is_named(tmp_path: Path, odd: dict[str, object]) -> None:
    write(tmp_path / "v.jsonl", PASS, PASS)
    lines = (tmp_path / "v.jsonl").read_text().splitlines()
    lines[1] = json.dumps(json.loads(lines[1]) | odd)
    (tmp_path / "v.jsonl").write_text("\n".join(lines))
    with pytest.raises(ValueError, match=rf"v.jsonl:2: not a verdict stream .*{next(iter(odd))}"):
        read(tmp_path / "v.jsonl")


@pytest.mark.parametrize(
    ("outcomes", "code"),
    [
        ([PASS, UNSUPPORTED, XFAIL], 0),
        ([PASS, FAIL], 1),
        ([PASS, ERROR], 1),
        ([PASS, XPASS], 1),
        ([UNSUPPORTED, UNSUPPORTED], 1),
        ([], 1),
    ],
)
def test_exit_codes(outcomes: list[str], code: int) -> None:
    assert exit_code([verdict(o) for o in outcomes]) == code


def test_the_last_line_counts_every_outcome() -> None:
    line = last_line([verdict(o) for o in (PASS, PASS, FAIL, ERROR, UNSUPPORTED, XFAIL, XPASS)])
    assert line == "tests:7 passed:2 failed:1 error:1 unsupported:1 xfail:1 xpass:1"


@pytest.mark.parametrize("kind", [Verdict, Facts, Case, Replay, *QUESTIONS.values()], ids=lambda k: k.__name__)
def test_every_field_of_a_file_is_described(kind: type) -> None:
    formats = (ROOT / "docs" / "formats.md").read_text()
    for field in dataclasses.fields(kind):
        assert re.search(rf"`([a-z]+\.)?{field.name}`", formats) or field.name == "question", field.name
