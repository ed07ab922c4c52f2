"""Machines that are not as they should be: another Python, locale or owner, a process that is stopped."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from conformance.case.catalogue import load, select
from conformance.harness.worker import Worker
from conformance.results.verdict import ERROR, PASS, read
from conformance.runs import run
from tests.fakes import lying
from tests.fakes.lying import AT

ROOT = Path(__file__).parents[2]


def q4gsw(*words: str, python: tuple[str, ...] = (), **env: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, *python, "-m", "conformance", *words]
    own = {**os.environ, **env}
    return subprocess.run(command, cwd=ROOT, env=own, capture_output=True, text=True, check=False)


def test_another_python_is_named_in_one_line() -> None:
    done = q4gsw("list", python=("-S",))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert "is not this project's Python (No module named" in done.stderr


def test_a_locale_without_unicode_changes_nothing(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text(
        "class Mine:\n"
        "    def supports(self, case): return None\n"
        "    def run(self, case):\n"
        "        print('→ é')\n"
        "        raise KeyError('→ é')\n",
        encoding="utf-8",
    )
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    words = ("--subject", f"{tmp_path}/mine.py:Mine", "--case", AT, "--report", str(tmp_path / "r"))
    done = q4gsw("run", *words, **ascii_only)
    assert (done.returncode, done.stderr) == (1, "")
    assert "\\u2192 \\xe9" in done.stdout
    (verdict,) = read(tmp_path / "r").verdicts
    assert verdict.reason == "KeyError: '→ é'"
    assert verdict.printed.startswith("→ é")
    assert q4gsw("report", str(tmp_path / "r"), "--html", **ascii_only).returncode == 1


def test_a_checkout_of_another_owner_has_a_revision(monkeypatch: pytest.MonkeyPatch) -> None:
    own = run.revision()
    monkeypatch.setenv("GIT_TEST_ASSUME_DIFFERENT_OWNER", "1")
    assert run.revision() == own != "unknown"


def test_a_stopped_process_costs_its_own_case() -> None:
    before, at = (select(load(), ids=[name])[0] for name in ("pack/flat/v7", AT))
    with Worker(f"{lying.__file__}:Stops", 2) as worker:
        outcomes = [run.timed(worker, case) for case in (before, at, before)]
    assert [v.outcome for v in outcomes] == [PASS, ERROR, PASS]
    assert outcomes[1].signature == "PACK/raised/Timeout"
