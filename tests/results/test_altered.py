"""Verdict streams from strangers: what was altered is not taken as whole, and texts are only shown."""

import dataclasses
import json
import re
from pathlib import Path

import pytest

from conformance.cli.main import main
from conformance.results.verdict import FORMAT, Verdict, Writer, read
from tests.project.test_security import PACK, refused


def stream(folder: Path) -> tuple[Path, list[str]]:
    """A whole stream of two verdicts, as lines."""
    writer = Writer(folder / "verdicts.jsonl", {"subject": "impl"})
    for name, outcome in (("pack/flat/v1", "PASS"), (PACK, "FAIL")):
        writer.add(Verdict(name, "PACK", "impl", outcome, "PACK/layout/nibble_order" if outcome == "FAIL" else ""))
    writer.close()
    return folder / "verdicts.jsonl", (folder / "verdicts.jsonl").read_text().splitlines()


def test_an_altered_stream_is_not_taken_as_whole(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, lines = stream(tmp_path)
    assert not read(path).truncated
    flipped = lines[2].replace('"FAIL"', '"PASS"').replace("PACK/layout/nibble_order", "")
    for altered in (
        [*lines[:2], flipped, lines[3]],
        [*lines[:2], lines[1], *lines[2:]],
        [*lines[:3], lines[3], lines[2]],
        [*lines, lines[3]],
        [lines[0], lines[1], lines[3]],
        [*lines[:2], flipped, lines[3].replace('"PASS": 1, "FAIL": 1', '"PASS": 2, "FAIL": 0')],
        [lines[0], lines[1], lines[2].replace("nibble_order", "offset"), lines[3]],
        [lines[0].replace('"impl"', '"mine"'), *lines[1:]],
    ):
        path.write_text("".join(f"{line}\n" for line in altered))
        assert "altered" in refused(capsys, "report", path)
    path.write_text("".join(f"{line}\n" for line in lines[:3]))
    assert read(path).truncated


@pytest.mark.parametrize(
    "header",
    [
        [],
        5,
        {"format": FORMAT, "versions": 5},
        {"format": FORMAT, "versions": {"torch": 5}},
        {"format": FORMAT, "subject": ["impl"]},
        {"format": FORMAT, "workers": "2"},
        {"format": FORMAT, "revision": "\ud800"},
        {"format": FORMAT, "more": ""},
        {"format": [FORMAT]},
    ],
)
def test_a_header_of_other_types_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str], header: object) -> None:
    (tmp_path / "verdicts.jsonl").write_text(json.dumps({"header": header}) + "\n")
    assert f"{tmp_path}/verdicts.jsonl" in refused(capsys, "report", tmp_path, "--html", "--timing")


EVIL = "\x1b[2J\u202e\nPASS all\r| `<img src=x onerror=alert(1)>` ![i](http://x/y.png) @everyone <!-- ]]> -->"


def test_what_a_stream_says_is_only_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Escape sequences, second lines, markup, images and mentions, in every text that a stream has."""
    texts = {f.name: EVIL for f in dataclasses.fields(Verdict) if f.type is str}
    facts = {"device": EVIL, "driver": EVIL}
    for name, outcome in (("old", "PASS"), ("new", "FAIL")):
        header = dict.fromkeys(("subject", "device", "level", "selection", "revision", "subject_file"), EVIL)
        writer = Writer(tmp_path / name / "verdicts.jsonl", header | {"versions": {EVIL: EVIL}})
        for case in ("a", EVIL):
            line = {
                **texts,
                "case": case,
                "outcome": outcome,
                "mismatch": {"picture": EVIL, EVIL: EVIL},
                "facts": facts,
            }
            writer._line(line)
            writer._verdicts.append(Verdict(case, "", "", outcome))
        writer.close()
    for words in (["report", "new", "--html", "--timing"], ["diff", "old", "new"], ["bisect", "--from", "old", "new"]):
        main([str(tmp_path / w) if w in {"old", "new"} else w for w in words])
        printed = capsys.readouterr()
        lines = (printed.out + printed.err).splitlines()
        assert all(line.isprintable() for line in lines), words
        assert not any(line.startswith("PASS all") for line in lines)
        assert "Traceback" not in printed.err
    summary = (tmp_path / "new/summary.md").read_text()
    outside = re.sub(r"`[^`\n]*`", "", summary)
    assert "everyone" in summary
    for evil in ("everyone", "img", "http", "!--", "\x1b", "\u202e"):
        assert evil not in outside
    page = (tmp_path / "new/report.html").read_text()
    assert "<img src=x" not in page
    assert "<!-- ]]>" not in page
