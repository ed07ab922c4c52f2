"""report.html in real headless Chromium: its script runs without an error, filters, and draws."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from conformance.picture import draw
from conformance.report import page
from conformance.verdict import FAIL, PASS, XFAIL, Stream, Verdict

LONG = "gen/" + "identifier-of-a-generated-program-" * 6
HOSTILE = "<img src=x onerror=alert(1)></script>"


@pytest.fixture(scope="module")
def browser() -> str:
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("chromium is not installed: ./dev installs it, or: apt-get install chromium", pytrace=False)
    return found


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """1,000 cases that pass, three that do not, one known."""
    right = np.arange(24, dtype=np.float32).reshape(4, 6)
    picture = vars(draw(right[:, [1, 0, 3, 2, 5, 4]], right, 2))
    good = Verdict("pack/0", "PACK", "impl", PASS, source="1", seconds=0.01)
    bad = Verdict(
        "kernel/swap", "KERNEL", "impl", FAIL, "KERNEL/array/values", HOSTILE, {"picture": picture}, source="7.1"
    )
    verdicts = [replace(good, case=f"pack/{i}") for i in range(1000)]
    verdicts += [bad, replace(bad, case=LONG, stage="MATCH", mismatch=None, source="5.5")]
    verdicts += [replace(bad, case="kernel/other", signature="KERNEL/dtype_shape/dtype", mismatch=None)]
    verdicts += [replace(bad, case="kernel/known", outcome=XFAIL, defect="some-defect", subject="other")]
    path = tmp_path_factory.mktemp("page") / "report.html"
    path.write_text(page([Stream({"subject": "impl", "versions": {}}, tuple(verdicts), truncated=True)]))
    return path


def opened(browser: str, report: Path, wishes: str = "", width: int = 1280) -> str:
    """The page's elements after its script ran; the part after # sets the filters."""
    # Without a sandbox, because root has none: the page is our own and asks for nothing from outside.
    options = ["--headless", "--no-sandbox", "--disable-gpu", f"--window-size={width},900", "--enable-logging=stderr"]
    home = f"--user-data-dir={report.parent / 'profile'}"
    command = [browser, *options, home, "--virtual-time-budget=2000", "--dump-dom", f"{report.as_uri()}#{wishes}"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert not re.search(r"CONSOLE.*(Uncaught|Refused|Error)", done.stderr), done.stderr
    return done.stdout


def cases(dom: str) -> list[str]:
    return re.findall(r'<span class="mono id">([^<]*)</span>', dom)


def test_it_opens_on_what_was_unexpected(browser: str, report: Path) -> None:
    dom = opened(browser, report)
    assert cases(dom) == ["kernel/swap", LONG, "kernel/other"]
    assert "3 of 1004 cases" in dom
    assert "The run did not finish: impl wrote 1004 verdicts" in dom
    assert "0 / 0 / 1000" in dom
    assert "2 / 0 / 0" in dom
    assert dom.count("<canvas") == 1
    assert "nibbles swapped" in dom


def test_filters_work_together(browser: str, report: Path) -> None:
    assert cases(opened(browser, report, "stage=KERNEL&text=dtype")) == ["kernel/other"]
    assert cases(opened(browser, report, "outcome=&subject=other")) == ["kernel/known"]
    assert len(cases(opened(browser, report, "outcome=PASS&section=1"))) == 1000


def test_what_a_subject_said_stays_text(browser: str, report: Path) -> None:
    dom = opened(browser, report, "text=kernel/swap")
    assert "&lt;img src=x onerror=alert(1)&gt;&lt;/script&gt;" in dom
    assert "<img" not in dom
