"""Failures of one cause are one block, on the terminal, in a report and in a comparison."""

from pathlib import Path

import pytest

from conformance.bisect import from_reports
from conformance.results import diff
from conformance.results.causes import blocks, causes
from conformance.results.verdict import FAIL, XPASS, Verdict, Writer
from tests.results.test_report import stream, verdict
from tests.runs.test_cli import MINIATURES, conformance

CODES, OFFSET = "PACK/layout/codes", "PACK/layout/offset"
RED = [
    verdict("a/1", FAIL, OFFSET),
    verdict("a/2"),
    *(verdict(f"b/{n}", FAIL, CODES, replay=f"q4gsw replay {n}") for n in range(50)),
    verdict("c/1", XPASS, defect="one"),
    verdict("c/2", XPASS, defect="two"),
]


def replays(texts: list[str]) -> int:
    return sum(text.count("  replay:") for text in texts)


def test_a_cause_is_a_signature_and_the_most_frequent_comes_first() -> None:
    assert [[v.case for v in there][:2] for there in causes(RED)] == [["b/0", "b/1"], ["a/1"], ["c/1"], ["c/2"]]


def test_a_block_shows_one_example_and_names_the_others() -> None:
    texts = blocks(RED, {"b/0": "swapped nibbles"})
    assert replays(texts) == 4
    assert "FAIL b/0 " in texts[0]
    assert "; swapped nibbles\n" in texts[0]
    assert texts[0].endswith("\n  others:    49 more: b/1, b/2, b/3, ... (--all shows each)")
    assert "others:" not in texts[1]
    assert replays(blocks(RED, {}, every=True)) == 53


def test_new_failures_are_compared_by_cause() -> None:
    before = stream(*(verdict(v.case) for v in RED if v.case != "b/7"))
    lines = diff.lines(diff.compare(before, stream(*RED)))
    assert sum(line.startswith("new failure:") for line in lines) == 4  # codes, codes of a new case, offset, XPASS
    assert "  48 more: b/1, b/2, b/3, ... (--all shows each)" in lines
    every = diff.lines(diff.compare(before, stream(*RED)), every=True)
    assert sum(line.startswith("new failure:") for line in every) == 53
    assert lines[-1] == every[-1]


def test_bisecting_from_reports_explains_a_cause_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def written(name: str, verdicts: list[Verdict]) -> Path:
        writer = Writer(tmp_path / name / "verdicts.jsonl", {"subject": "impl"})
        for v in verdicts:
            writer.add(v)
        writer.close()
        return tmp_path / name

    old, new = written("old", [verdict(v.case) for v in RED]), written("new", RED)
    for every, commands in ((False, 4), (True, 53)):
        assert from_reports.show(old, new, every=every) == 0
        assert capsys.readouterr().out.count("q4gsw bisect stage") == commands


def test_a_run_prints_a_block_for_each_cause(tmp_path: Path) -> None:
    words = ("run", "--subject", f"{MINIATURES}:Raises", "--stages", "PACK", "--level", "smoke", "--workers", "0")
    one, every = conformance(*words), conformance(*words, "--all")
    assert every.stdout.count("  replay:") > one.stdout.count("  replay:") == 1
    assert "short test summary info" not in one.stdout
