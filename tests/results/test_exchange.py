"""What other programs read of a report: SARIF, and annotations on a pull request."""

import json
import xml.etree.ElementTree as ET
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.cli.main import main
from conformance.results.exchange import annotations, junit, place, sarif
from conformance.results.verdict import ERROR, FAIL, PASS, XFAIL, Stream, Verdict, Writer

TRACE = """Traceback (most recent call last):
  File "/suite/conformance/harness/child.py", line 90, in answer
  File "/home/me/repo/src/my packer.py", line 41, in pack
  File "/usr/lib/python3.11/json/decoder.py", line 5, in raw_decode
KeyError: 'x'
"""
HEADER = {
    "subject": "s",
    "subject_repository": "/home/me/repo",
    "subject_file": "ci/subject.py:Mine",
    "revision": "abc",
}
RAISED = Verdict(
    "pack/a", "PACK", "s", FAIL, "PACK/raised/KeyError@my.pack", "KeyError: 'x'", contract="1", printed=TRACE
)
WRONG = Verdict("pack/b", "PACK", "s", FAIL, "PACK/layout/codes", "100% wrong: a,b", contract="1")
STREAM = Stream(
    HEADER,
    (
        RAISED,
        WRONG,
        Verdict("x", "PACK", "s", PASS),
        Verdict("y", "PACK", "s", XFAIL),
        Verdict("z", "PACK", "s", ERROR),
    ),
    truncated=False,
)


def test_a_failure_stands_on_the_line_of_the_subjects_repository_that_raised() -> None:
    assert place(RAISED, STREAM) == ("src/my packer.py", 41)
    assert place(WRONG, STREAM) == ("ci/subject.py", 1)
    assert place(RAISED, Stream({"subject": "impl"}, (), truncated=False)) == ("", 1)


def test_annotations_are_one_a_cause_and_cannot_be_left() -> None:
    first, second, third = annotations([STREAM])
    assert first.startswith(
        "::error file=src/my packer.py,line=41,title=PACK/raised/KeyError@my.pack::pack/a: KeyError"
    )
    assert second.endswith("::pack/b: 100%25 wrong: a,b [contract 1]")
    assert third.startswith("::error file=ci/subject.py,line=1::z:")
    evil = Verdict("pack/a", "PACK", "s", FAIL, "a,file=b::c%0A", "x", contract="1")
    (line,) = annotations([Stream(HEADER, (evil,), truncated=False)])
    assert "title=a%2Cfile=b%3A%3Ac%250A::" in line


def walk(schema: dict[str, Any], value: Any, path: str = "") -> None:
    """Types, and what has to be there, as SARIF 2.1.0 has it for what is written here."""
    assert isinstance(value, schema["is"]), path
    for name in schema.get("needs", ()):
        assert name in value, f"{path}/{name}"
    for name, below in schema.get("of", {}).items():
        for one in value.get(name, []) if isinstance(value.get(name), list) else [value[name]] if name in value else []:
            walk(below, one, f"{path}/{name}")


TEXT = {"is": dict, "needs": ["text"], "of": {"text": {"is": str}}}
REGION = {"is": dict, "of": {"startLine": {"is": int}}}
ARTIFACT = {"is": dict, "of": {"uri": {"is": str}}}
PHYSICAL = {"is": dict, "needs": ["artifactLocation"], "of": {"artifactLocation": ARTIFACT, "region": REGION}}
RESULT = {
    "is": dict,
    "needs": ["message"],
    "of": {"message": TEXT, "ruleId": {"is": str}, "locations": {"is": dict, "of": {"physicalLocation": PHYSICAL}}},
}
RULE = {"is": dict, "needs": ["id"], "of": {"id": {"is": str}, "shortDescription": TEXT}}
DRIVER = {"is": dict, "needs": ["name"], "of": {"name": {"is": str}, "rules": RULE}}
TOOL = {"is": dict, "needs": ["driver"], "of": {"driver": DRIVER}}
SARIF = {
    "is": dict,
    "needs": ["version", "runs"],
    "of": {"runs": {"is": dict, "needs": ["tool"], "of": {"tool": TOOL, "results": RESULT}}},
}


def test_sarif_has_a_rule_for_each_signature_and_a_result_for_each_failure() -> None:
    log = json.loads(sarif([STREAM]))
    walk(SARIF, log)
    assert log["version"] == "2.1.0"
    (run,) = log["runs"]
    ids = [rule["id"] for rule in run["tool"]["driver"]["rules"]]
    assert len(ids) == len(set(ids)) == 3
    assert {result["ruleId"] for result in run["results"]} == set(ids)
    (first, *_) = run["results"]
    assert first["locations"][0]["physicalLocation"]["artifactLocation"]["uri"] == "src/my%20packer.py"
    assert all(result["level"] == "error" for result in run["results"])


def test_the_report_command_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = Writer(tmp_path / "verdicts.jsonl", HEADER)
    for verdict in STREAM.verdicts:
        writer.add(verdict)
    writer.close()
    assert main(["report", str(tmp_path), "--sarif", str(tmp_path / "x.sarif"), "--annotations"]) == 1
    assert json.loads((tmp_path / "x.sarif").read_text()) == json.loads(sarif([STREAM]))
    assert "\n::error file=" in capsys.readouterr().out
    assert main(["report", str(tmp_path), "--sarif", str(tmp_path / "none" / "x.sarif")]) == 2


def test_junit_has_a_test_for_each_verdict_whatever_a_subject_says() -> None:
    evil = replace(RAISED, case="a<b&", reason=']]>\x1b[2J\ud800 "quoted"', printed="\x00<failure/>", seconds=1.5)
    stream = Stream({"subject": "s\x01"}, (*STREAM.verdicts, evil), truncated=False)
    (suite,) = ET.fromstring(junit([stream], {"pack/a": "a bug"}))  # noqa: S314 - made just now
    counts = {"tests": "6", "failures": "3", "errors": "1", "skipped": "1", "name": "s\\x01", "time": "1.500"}
    assert counts.items() <= suite.attrib.items()
    assert [[e.tag for e in test][1:] for test in suite] == [
        ["failure"],
        ["failure"],
        [],
        ["skipped"],
        ["error"],
        ["failure"],
    ]
    assert "contract:  docs/contract.md 1; a bug" in (suite[0][1].text or "")
    assert suite[5].attrib["name"] == "a<b&"
    assert suite[5][1].attrib["message"] == ']]>\\x1b[2J\\ud800 "quoted"'
    assert {p.attrib["name"]: p.attrib["value"] for p in suite[1][0]}["signature"] == "PACK/layout/codes"
