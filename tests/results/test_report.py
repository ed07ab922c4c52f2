"""summary.md, report.html, diff and timing come from verdict streams alone, and trust nothing in them."""

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from conformance.results import diff, report, timing
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, XFAIL, Stream, Verdict
from tests.runs.test_cli import MINIATURES, conformance

HEADER = {"subject": "impl", "device": "default", "revision": "0" * 40, "versions": {"torch": "2.13.0"}, "format": 3}
PICTURE = {"rows": 2, "columns": 4, "height": 2, "width": 4, "group": 2, "cells": "4.4r"}


def verdict(case: str, outcome: str = PASS, signature: str = "", **more: object) -> Verdict:
    given = {"stage": "PACK", "subject": "impl", "contract": "1", "seconds": 0.5, "digest": "d", **more}
    return Verdict(case=case, outcome=outcome, signature=signature, **given)  # type: ignore[arg-type]  # plain data


def stream(*verdicts: Verdict, truncated: bool = False) -> Stream:
    return Stream(HEADER, verdicts, truncated)


def data_of(page: str) -> dict[str, list[dict[str, object]]]:
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert found
    loaded: dict[str, list[dict[str, object]]] = json.loads(found[1])
    return loaded


def test_the_summary_counts_and_groups() -> None:
    verdicts = [
        verdict("a/1"),
        verdict("a/2", FAIL, "PACK/layout/codes", reason="x | y `z` <b>"),
        verdict("a/3", FAIL, "PACK/layout/codes"),
        verdict("a/4", XFAIL, "PACK/layout/offset", defect="offset-lost"),
    ]
    text = report.summary(verdicts, HEADER)
    assert "**2 unexpected**" in text
    assert "| `PACK/layout/codes` | 2 | `a/2` |" in text
    assert "`x / y 'z' <b>`" in text
    assert "Known failures: 1 cases of 1 defects: `offset-lost` (1)" in text
    assert text.rstrip().endswith("tests:4 passed:1 failed:2 error:0 unsupported:0 xfail:1 xpass:0")
    assert "as expected" in report.summary(verdicts[:1], HEADER)


def test_the_page_holds_every_verdict_and_nothing_that_could_run() -> None:
    hostile = "</script><script>alert(1)</script><!--"
    page = report.page([stream(verdict("a/1", FAIL, hostile, reason=hostile, mismatch={"picture": PICTURE}))])
    (row,) = data_of(page)["verdicts"]
    assert row["reason"] == hostile
    assert row["picture"] == PICTURE | {"sizes": {}}
    assert page.count("<script") == 2
    assert not re.search(r"https?://|src=|@import|url\(", page), "the page must be whole without a network"


@pytest.mark.parametrize(
    "picture",
    [
        {**PICTURE, "cells": "9x"},
        {**PICTURE, "height": 10**9},
        {**PICTURE, "width": -4},
        {**PICTURE, "rows": "2"},
        {**PICTURE, "cells": 7},
        {"rows": 2},
        "2 x 4",
    ],
)
def test_a_malformed_picture_is_left_out(picture: object) -> None:
    page = report.page([stream(verdict("a/1", FAIL, "s", mismatch={"picture": picture}))])
    assert data_of(page)["verdicts"][0]["picture"] is None


def test_a_run_writes_all_files_with_any_number_of_workers(tmp_path: Path) -> None:
    arguments = ("--subject", f"{MINIATURES}:Raises", "--stages", "PACK", "--report")
    for workers in ("0", "2"):
        conformance("run", *arguments, str(tmp_path / workers), "--workers", workers)
        files = {"verdicts.jsonl", "summary.md", "report.html", "replay", "junit.xml"}
        assert {p.name for p in (tmp_path / workers).iterdir()} == files
    alone, by_workers = (
        {(v["case"], v["outcome"], v["detects"]) for v in data_of(page.read_text())["verdicts"]}
        for page in (tmp_path / "0" / "report.html", tmp_path / "2" / "report.html")
    )
    assert alone == by_workers
    named = 'name="signature" value="PACK/raised/KeyError@subject_misbehaving.Raises.bad"'
    assert named in (tmp_path / "2" / "junit.xml").read_text()


def test_a_page_is_made_anew_from_the_verdicts(tmp_path: Path) -> None:
    conformance("run", "--subject", f"{MINIATURES}:Good", "--case", "pack/flat/v1", "--report", str(tmp_path / "r"))
    before = (tmp_path / "r" / "report.html").read_text()
    (tmp_path / "r" / "report.html").unlink()
    done = conformance("report", str(tmp_path / "r"), "--html", "--timing")
    assert done.returncode == 0
    assert "PACK           1" in done.stdout
    assert (tmp_path / "r" / "report.html").read_text() == before
    both = conformance("report", str(tmp_path / "r"), str(tmp_path / "r"), "--html", "--out", str(tmp_path / "no"))
    assert both.returncode == 2
    assert "summary.md: cannot be written" in both.stderr


def test_max_failures_and_last_failed(tmp_path: Path) -> None:
    arguments = ("--subject", f"{MINIATURES}:Raises", "--stages", "PACK", "--quiet", "--workers", "0")
    done = conformance("run", *arguments, "--max-failures", "2", "--report", str(tmp_path / "two"))
    assert done.returncode == 1
    assert "stopped after 2 failures" in done.stdout
    assert " failed:2 " in done.stdout
    again = conformance("run", *arguments, "--last-failed", str(tmp_path / "two"), "--report", str(tmp_path / "again"))
    assert again.stdout.splitlines()[-1].startswith("tests:2 passed:0 failed:2")
    fixed = conformance("run", "--subject", f"{MINIATURES}:Good", "--last-failed", str(tmp_path / "two"))
    assert "tests:2 passed:2" in fixed.stdout
    conformance("run", "--subject", f"{MINIATURES}:Good", "--stages", "PACK", "--report", str(tmp_path / "good"))
    nothing = conformance("run", "--last-failed", str(tmp_path / "good"))
    assert nothing.returncode == 2
    assert "nothing was unexpected there" in nothing.stderr
    stopped = conformance(
        "run", "--subject", f"{MINIATURES}:Raises", "--stages", "PACK", "--max-failures", "1", "--workers", "0"
    )
    assert " failed:1 " in stopped.stdout.splitlines()[-1]


def test_diff_tells_changes_apart() -> None:
    old = stream(
        verdict("same"),
        verdict("bits", digest="1"),
        verdict("broken"),
        verdict("fixed", FAIL, "PACK/layout/codes"),
        verdict("moved", FAIL, "PACK/layout/codes"),
        verdict("still", FAIL, "PACK/layout/codes"),
        verdict("gone"),
        verdict("lost", UNSUPPORTED),
        verdict("declined"),
        verdict("failed and declined", FAIL, "PACK/layout/codes"),
    )
    new = stream(
        verdict("same"),
        verdict("bits", digest="2"),
        verdict("broken", ERROR, "PACK/raised/Died"),
        verdict("fixed"),
        verdict("moved", FAIL, "PACK/layout/offset"),
        verdict("still", FAIL, "PACK/layout/codes"),
        verdict("lost"),
        verdict("declined", UNSUPPORTED),
        verdict("failed and declined", UNSUPPORTED),
        verdict("new", FAIL, "PACK/layout/codes"),
        verdict("more"),
    )
    found = diff.compare(old, new)
    assert [v.case for _, v in found.new_failures] == ["broken", "moved", "declined", "failed and declined", "new"]
    assert [v.case for _, v in found.fixed] == ["fixed"]
    assert [v.case for _, v in found.bits] == ["bits"]
    assert [v.case for _, v in found.other] == ["lost"]
    assert (found.gone, found.added) == (("gone",), ("new", "more"))
    assert diff.lines(found)[-1] == "new failures:5 fixed:1 changed:1 other bits:1 gone:1 added:2"


def test_a_shard_that_excuses_another_failure_is_a_new_failure() -> None:
    """A crash that was never seen before is no better for being in a generated program."""
    before = replace(verdict("gen/seed-0/shard-1/50-programs", XFAIL), facts={"excused": {"MATCH/a": 3}})
    for excused, failed in (({"MATCH/a": 3}, False), ({"MATCH/a": 2}, False), ({"MATCH/a": 3, "MATCH/b": 1}, True)):
        after = replace(before, facts={"excused": excused})
        assert diff.compare(stream(before), stream(after)).failed == failed
    asked = {"revision": "1", "level": "gate", "selection": ""}
    more = replace(before, facts={"excused": {"MATCH/a": 4}})
    alike = [Stream(asked, (one,), truncated=False) for one in (before, more)]
    assert diff.compare(*alike).failed
    assert not diff.compare(stream(before), stream(more)).failed, "other programs may have been drawn"


def test_what_is_gone_counts_where_both_runs_were_asked_the_same() -> None:
    asked = {"revision": "r1", "level": "gate", "selection": "PACK"}
    both = Stream(asked, (verdict("a"), verdict("b")), truncated=False)

    def failed(**other: str) -> bool:
        return diff.compare(both, Stream(asked | other, (verdict("a"),), truncated=False)).failed

    assert failed()
    assert not failed(revision="r2")
    assert not failed(level="smoke")
    assert not failed(selection="PACK -k a")
    assert not diff.compare(both, stream(verdict("a"))).failed, "a report that does not say what it was asked"
    assert "not run any more: b, although both runs were asked the same" in diff.lines(
        diff.compare(both, Stream(asked, (verdict("a"),), truncated=False))
    )


def test_diff_exits_1_on_new_failures_only(tmp_path: Path) -> None:
    for name in ("Good", "Raises"):
        arguments = ("--subject", f"{MINIATURES}:{name}", "--stages", "PACK", "--report", str(tmp_path / name))
        conformance("run", *arguments)
    good, bad = str(tmp_path / "Good"), str(tmp_path / "Raises")
    assert conformance("diff", good, bad).returncode == 1
    assert conformance("diff", bad, good).returncode == 0
    assert conformance("diff", bad, bad).returncode == 0
    assert conformance("diff", good, "nowhere").returncode == 2
    cut = tmp_path / "cut"
    cut.mkdir()
    whole = (tmp_path / "Good" / "verdicts.jsonl").read_text().splitlines(keepends=True)
    (cut / "verdicts.jsonl").write_text("".join(whole[:-2]))
    done = conformance("diff", good, str(cut))
    assert done.returncode == 2, "what a run did not reach is not known to be right"
    assert f"error: {cut}: the run did not finish" in done.stderr
    assert conformance("diff", str(cut), good).returncode == 0


def test_timing_leaves_the_importing_cases_out_of_the_rate() -> None:
    def took(case: str, seconds: float, **facts: str) -> Verdict:
        return replace(verdict(case, seconds=seconds), facts=facts)

    first = {"first_seconds": "3.0"}
    warm = [took(f"a/{i}", 0.1) for i in range(4)]
    (found,) = timing.by_stage([took("a/x", 3.0, **first), took("a/y", 3.0, **first), *warm])
    assert (found.cases, found.children, found.first) == (6, 2, 6.0)
    assert found.rate == pytest.approx(10.0)
    assert found.all_in == pytest.approx(6 / 6.4)
    assert timing.lines([took("a/1", 0.1)], workers=2)[1].split()[-2:] == ["20.0", "20.0"]
    assert timing.workers_of([{"workers": 2}, {"workers": 3}, {"workers": "many"}, {}]) == 3
    (shard,) = timing.by_stage([took("gen/seed-0/shard-0/50-programs", 3.4, programs="5", **first)])
    assert shard.rate == pytest.approx(10.0)
    (built,) = timing.by_stage(
        [took("a/x", 3.0, build_seconds="2.9", **first), *(took(f"a/{i}", 0.5, build_seconds="0.4") for i in range(3))]
    )
    assert built.building == pytest.approx(1.2), "what the first case built is among its importing"
    assert built.rate == pytest.approx(10.0)
    (exported,) = timing.by_stage([replace(took("a/1", 0.5, build_seconds="0.4"), stage="EXPORT")])
    assert exported.rate == pytest.approx(2.0), "exporting is what that stage is about"
    assert timing.lines([verdict("a/1")])[1].split()[:2] == ["PACK", "1"]
    (odd,) = timing.by_stage([took("a/z", 1.0, first_seconds="much", programs="nan")])
    assert (odd.cases, odd.first) == (0, 0.0)


def test_what_was_not_measured_says_so() -> None:
    """A stage's only case is its first, which has no rate; kits have no times at all."""
    first = Verdict("run/a", "RUN", "s", PASS, seconds=2.0, facts={"first_seconds": 1.5})
    kit = Verdict("kernel/a", "KERNEL", "s", PASS)
    none = "not measured"
    assert timing.rows([first, kit]) == [
        ["KERNEL", "1", none, none, none, none, none],
        ["RUN", "1", "2.00", "1.50", none, none, "0.5"],
    ]
    assert timing.lines([kit])[-1] == "  not measured"
