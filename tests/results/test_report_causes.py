"""The page's head, its table of causes, sizes of errors and the comparison of two reports, in Debian's Chromium."""

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
from playwright.sync_api import Page, expect

from conformance.results.picture import draw
from conformance.results.verdict import FAIL, PASS, Stream, Verdict
from tests.results.test_report_browser import (  # noqa: F401 - fixtures
    REPLAY,
    RIGHT,
    Visit,
    cases,
    report,
    tab,
    visit,
    written,
)

HEADER = {"subject": "impl", "device": "llvmpipe", "revision": "ab" * 20, "started": "2026-11-28T10:00:00Z"}


def rows(page: Page) -> list[list[str]]:
    return [row.locator("td").all_inner_texts() for row in page.locator("#cause tbody tr").all()]


def test_the_causes_lead(visit: Visit, report: Path) -> None:  # noqa: F811 - fixtures
    """What fails most often comes first, with its section's title, an example and its picture; it leads there."""
    page = visit(report)
    first, second, *_ = rows(page)
    assert first[0] == "7"
    assert first[1].split("\n")[0] == "KERNEL/array/values"
    assert "KERNEL, contract 7.1 Kernel" in first[1]
    assert second[0] == "2"
    assert " ".join(second[1].split()).startswith("MATCH/dtype_shape/dtype MATCH, contract 5.3 Fuse when match/fixed")
    assert page.locator("#cause canvas").count() == 1
    page.get_by_role("button", name="MATCH/dtype_shape/dtype").click()
    assert cases(page) == ["match/fixed", "match/other"]
    assert page.locator("#causes").bounding_box()["y"] < page.locator("#matrix").bounding_box()["y"]  # type: ignore[index]  # both are shown


def test_a_long_signature_hides_nothing_on_a_narrow_page(visit: Visit, tmp_path: Path) -> None:  # noqa: F811 - fixtures
    long = "MATCH/raised/RuntimeError@" + "a.module_of_a_long_name." * 10
    wrong = Verdict("match/a", "MATCH", "impl", FAIL, long, "x" * 300, contract="5.3")
    page = visit(written(tmp_path, [Stream(HEADER, (wrong,), truncated=False)]), width=390)
    whole, seen = page.locator("#causes .scroll").evaluate("box => [box.scrollWidth, box.clientWidth]")
    assert whole <= seen


def test_a_replay_command_is_copied(visit: Visit, report: Path) -> None:  # noqa: F811 - fixtures
    page = visit(report, "text=kernel/n")
    page.get_by_role("button", name=f"copy {REPLAY}").click()
    expect(page.get_by_text("copied")).to_be_visible()
    page.locator("#text").fill("")
    page.locator("#text").focus()
    page.keyboard.press("Control+V")
    assert page.locator("#text").input_value() == REPLAY


def test_a_rounding_bug_has_other_sizes_than_a_wrong_row(visit: Visit, tmp_path: Path) -> None:  # noqa: F811 - fixtures
    wrong = Verdict("kernel/a", "KERNEL", "impl", FAIL, "KERNEL/array/values", "x", contract="7.1")
    rounded, shifted = np.nextafter(RIGHT, np.float32(np.inf)), np.where(RIGHT == 96, np.float32(np.nan), RIGHT * 2)
    shown = [
        replace(wrong, case=f"kernel/{n}", mismatch={"picture": vars(draw(got, RIGHT, 8))})
        for n, got in enumerate((rounded, shifted))
    ]
    page = visit(written(tmp_path, [Stream(HEADER, tuple(shown), truncated=False)]))
    one, two = page.locator("table.sizes").all()
    assert re.split(r"\s+", one.inner_text().strip()) == ["1", "ulp", "96"]
    assert re.split(r"[\t\n]+", two.inner_text().strip()) == ["not finite", "1", "32,768 or more ulp", "95"]


def test_two_reports_of_one_implementation_are_compared(visit: Visit, tmp_path: Path) -> None:  # noqa: F811 - fixtures
    good = Verdict("pack/a", "PACK", "impl", PASS, contract="1")
    bad = replace(good, outcome=FAIL, signature="PACK/layout/codes", reason="packed[0, 0] is 0x00")
    later = HEADER | {"revision": "cd" * 20, "started": "2026-11-29T10:00:00Z"}
    streams = [Stream(HEADER, (good,), truncated=False), Stream(later, (bad,), truncated=False)]
    page = visit(written(tmp_path, streams))
    assert page.locator("#change li").all_inner_texts()[0].startswith("new failure: pack/a: PASS -> FAIL")
    about = page.locator("#about p").all_inner_texts()
    assert about[1:] == [
        "impl: 2026-11-28T10:00:00Z, device llvmpipe, suite abababababab",
        "impl: 2026-11-29T10:00:00Z, device llvmpipe, suite cdcdcdcdcdcd",
    ]
    alone = visit(written(tmp_path, [streams[0], Stream(later | {"subject": "other"}, (bad,), truncated=False)]))
    expect(alone.locator("#changes")).to_be_hidden()
