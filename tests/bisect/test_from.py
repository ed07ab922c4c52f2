"""From two reports to the searches that explain them; and what it takes for several answers to be one."""

import os
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.bisect import from_reports
from conformance.bisect.search import SearchEnded, ask
from conformance.case.case import Case, Table
from conformance.case.catalogue import load, select
from conformance.case.operands import table_values
from conformance.cli import main
from conformance.harness.observation import Arrays, Observation
from conformance.results.verdict import Verdict, Writer
from conformance.runs import run as runner
from reference.table.layouts import pack_flat
from tests.support.git_histories import HELPER, SUBJECT, SWAPPED, linear

ROOT = Path(__file__).parents[2]


def header_of(tmp_path: Path, name: str, outcome: str, **header: Any) -> Path:
    """A report of two cases, one with that outcome and one that fails in all reports."""
    writer = Writer(tmp_path / name / "verdicts.jsonl", {"subject": "impl", "revision": "r1", **header})
    writer.add(Verdict("pack/flat/d2", "PACK", "x", outcome, "PACK/layout/x" if outcome == "FAIL" else ""))
    writer.add(Verdict("pack/flat/every-pair", "PACK", "x", "FAIL", "PACK/layout/x"))
    writer.close()
    return tmp_path / name


def test_two_reports_of_other_revisions_become_searches_over_commits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old = header_of(tmp_path, "old", "PASS", subject="executorch-src:/r@aaa")
    assert from_reports.show(old, header_of(tmp_path, "new", "FAIL", subject="executorch-src:/r@bbb")) == 0
    said = capsys.readouterr().out
    assert "bisect commit pack/flat/d2 --repo /r --good aaa --bad bbb" in said
    assert "every-pair" not in said
    assert "cases that went red: 1" in said
    assert from_reports.show(old, old) == 1
    suite = [header_of(tmp_path, "a", "PASS"), header_of(tmp_path, "b", "FAIL", revision="r2")]
    assert main.main(["bisect", "--from", *map(str, suite)]) == 0
    assert (
        f"--repo {ROOT} --good r1 --bad r2 -- python -m conformance run --case pack/flat/d2" in capsys.readouterr().out
    )


def test_two_reports_of_other_versions_become_searches_over_releases(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def versions(executorch: str, torchao: str) -> dict[str, dict[str, str]]:
        return {"versions": {"executorch": executorch, "torchao": torchao, "torch": "2.13.0"}}

    old = header_of(tmp_path, "old", "PASS", **versions("1.5.0", "0.18.0"))
    assert from_reports.show(old, header_of(tmp_path, "new", "FAIL", **versions("1.5.1", "0.18.0"))) == 0
    said = capsys.readouterr().out
    command = "versions --case pack/flat/d2 --package executorch --since 1.5.0 --subject impl"
    assert f"q4gsw {command}\n" in said
    assert said.count("q4gsw") == 1
    main.parser("versions").parse_args(command.split()[1:])
    assert from_reports.show(old, header_of(tmp_path, "both", "FAIL", **versions("1.5.1", "0.19.0"))) == 0
    said = capsys.readouterr().out
    assert "--package executorch --since 1.5.0" in said
    assert "--package torchao --since 0.18.0" in said
    assert from_reports.show(old, header_of(tmp_path, "none", "FAIL", **versions("not installed", "0.18.0"))) == 0
    assert "bisect stage pack/flat/d2 --subject impl" in capsys.readouterr().out


def test_a_report_names_the_commit_that_a_branch_stood_for(tmp_path: Path) -> None:
    names = linear(tmp_path / "repo", 2, lambda i: {"README": str(i)})
    header = runner.header(f"executorch-src:{tmp_path / 'repo'}@main", "", "gate")
    assert str(header["subject"]).endswith(f"repo@{names[2]}")
    assert runner.header("impl", "", "gate")["subject"] == "impl"


def test_two_reports_of_a_subject_file_become_a_search_over_its_repository(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """From the run's own headers to the commit: all that was printed is then given to the shell's words."""
    monkeypatch.setenv("Q4GSW_CACHE", str(tmp_path / "cache"))
    repo = tmp_path / "a repo"
    names = linear(repo, 6, lambda i: {"ci/packs.py": SWAPPED if i >= 4 else SUBJECT, "helper.py": HELPER})
    monkeypatch.setenv("PYTHONPATH", str(repo))
    reports = []
    for name, revision in (("old", names[2]), ("new", names[6])):
        subprocess.run(["git", "-C", str(repo), "checkout", "-q", "--detach", revision], check=True)
        words = ["run", "--case", "pack/linear_weight/every-pair", "--report", str(tmp_path / name), "--quiet"]
        main.main([*words, "--subject", f"{os.path.relpath(repo)}/ci/packs.py:Packs"])
        reports.append(str(tmp_path / name))
    capsys.readouterr()
    assert main.main(["bisect", "--from", *reports]) == 0
    said = capsys.readouterr().out
    (command,) = re.findall(r"^q4gsw (.*)$", said, re.MULTILINE)
    assert f"--good {names[2]} --bad {names[6]} --subject-file ci/packs.py:Packs" in command
    assert main.main(shlex.split(command)) == 0
    assert f"first bad: {names[4]}" in capsys.readouterr().out


def test_a_repository_that_is_elsewhere_is_said_to_be(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def origin(revision: str) -> dict[str, str]:
        file = {"subject": "../ci/p.py:P", "subject_file": "ci/p.py:P"}
        return {**file, "subject_repository": "/gone", "subject_revision": revision}

    old = header_of(tmp_path, "old", "PASS", **origin("a1"))
    assert from_reports.show(old, header_of(tmp_path, "new", "FAIL", **origin("b2"))) == 0
    said = capsys.readouterr().out
    assert "# /gone is not on this machine: give your clone as --repo\n" in said
    assert "bisect commit pack/flat/d2 --repo /gone --good a1 --bad b2 --subject-file ci/p.py:P\n" in said
    assert from_reports.show(old, header_of(tmp_path, "unknown", "FAIL", **origin("unknown"))) == 0
    assert "bisect stage pack/flat/d2 --subject /gone/ci/p.py:P\n" in capsys.readouterr().out


def test_where_a_subject_file_comes_from(tmp_path: Path) -> None:
    names = linear(tmp_path / "repo", 2, lambda i: {"ci/packs.py": SUBJECT})
    subprocess.run(["git", "-C", str(tmp_path / "repo"), "checkout", "-q", "main"], check=True)
    found = {"subject_repository": str(tmp_path / "repo"), "subject_revision": names[2]}
    header = runner.header(f"{tmp_path}/repo/ci/packs.py:Packs", "", "gate")
    assert header.items() >= {**found, "subject_file": "ci/packs.py:Packs"}.items()
    alone = tmp_path / "alone.py"
    alone.touch()
    assert runner.subject_origin(f"{alone}:Packs")["subject_revision"] == "unknown"
    assert runner.subject_origin("impl") == {}


def test_the_bits_of_an_answer_count(tmp_path: Path) -> None:
    """A stand-in for a worker whose subject is right each time, and says something else each time."""
    (case,) = select(load(), ids=["pack/flat/d2"])

    class Moody:
        subject, said = "moody", 0

        def run(self, asked: Case) -> Observation:
            self.said += 1
            assert isinstance(asked.question, Table)
            packed = pack_flat(table_values(asked.question))
            return Arrays({"packed": packed, "counted": np.array(self.said > 4)})

    worker = Moody()
    assert ask(worker, case, 1).outcome == "PASS"  # type: ignore[arg-type]  # a worker in all that is asked of it
    assert ask(worker, case, 2).outcome == "PASS"  # type: ignore[arg-type]  # the same
    with pytest.raises(
        SearchEnded, match=r"d2 is flaky: 2 runs do not agree: PASS \(result \w{10}\), PASS \(result \w{10}\)"
    ):
        ask(worker, case, 2)  # type: ignore[arg-type]  # the same
