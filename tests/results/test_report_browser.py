"""report.html as its reader has it: in Debian's Chromium, driven through Playwright by mouse and keys.

Whatever a test does, the page stays silent and alone: nothing on the console, no dialog, no request but for itself.
"""

import math
import re
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import Dialog, Locator, Page, expect, sync_playwright

from conformance.results.picture import KINDS, draw
from conformance.results.report import write
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, XFAIL, XPASS, Stream, Verdict

Visit = Callable[..., Page]

#: What a text needs to be read by most eyes, and what a patch of colour needs to be seen (WCAG 2.2, 1.4.3 and 1.4.11).
TEXT, PATCH = 4.5, 3.0
CHECKOUT = "executorch-src:/home/somebody/work/on-a-longer-path/than-most/executorch@" + "0123456789" * 4
LONG = "gen/" + "identifier-of-a-generated-program-" * 6
HOSTILE = "<img src=x onerror=alert(1)></script><script>alert(2)</script>"
REPLAY = "q4gsw replay report/replay/kernel__swap.toml"

RIGHT = np.arange(1, 97, dtype=np.float32).reshape(4, 24)
#: A way of being wrong -> an array that is wrong in this way alone.
WRONG = {
    "n": RIGHT.reshape(4, 12, 2)[:, :, ::-1].reshape(4, 24),
    "s": RIGHT * np.repeat(np.array([1, 3, 1], np.float32), 8),
    "r": RIGHT[[0, 3, 2, 3]],
    "x": np.where(RIGHT == 50, np.float32(-1), RIGHT),
    "p": RIGHT.astype(np.uint8) << 4 | RIGHT.astype(np.uint8) >> 4,
}


def chromium() -> str:
    """Debian's browser: nothing is downloaded, whatever browser Playwright was made for."""
    found = shutil.which("chromium")
    if found is None:
        pytest.fail(
            "Debian's package chromium is missing: ./dev installs it, or: apt-get install chromium", pytrace=False
        )
    return found


@pytest.fixture(scope="module")
def tab() -> Iterator[Page]:
    """One tab for all tests: a browser takes a second to start, and a window half of one."""
    # Without a sandbox, because root has none: the page is our own and asks for nothing from outside.
    with (
        sync_playwright() as playwright,
        playwright.chromium.launch(executable_path=chromium(), chromium_sandbox=False) as browser,
    ):
        page = browser.new_page(offline=True)
        page.set_default_timeout(10_000)
        expect.set_options(timeout=10_000)
        yield page


@pytest.fixture
def visit(tab: Page) -> Iterator[Visit]:
    """Opens a report; ``wishes`` is the part after #. What else the browser was asked or told fails the test."""
    said: list[str] = []
    asked: list[str] = []
    opened: list[str] = []

    def dismiss(dialog: Dialog) -> None:
        said.append(dialog.message)
        dialog.dismiss()

    on: dict[Any, Callable[[Any], None]] = {
        "console": lambda message: said.append(message.text),
        "pageerror": lambda error: said.append(str(error)),
        "dialog": dismiss,
        "request": lambda request: asked.append(request.url),
    }

    def open_report(path: Path, wishes: str = "", width: int = 1280, scheme: Any = "light") -> Page:
        tab.goto("about:blank")  # with another # alone, the page would stay as it is
        tab.set_viewport_size({"width": width, "height": 900})
        tab.emulate_media(media="screen", color_scheme=scheme)
        opened.append(path.as_uri())
        tab.goto(f"{path.as_uri()}#{wishes}")
        return tab

    for event, react in on.items():
        tab.on(event, react)
    yield open_report
    for event, react in on.items():
        tab.remove_listener(event, react)
    assert not said
    assert asked == opened


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three subjects, 400 cases, every outcome, every kind of picture; the first run did not finish."""
    header = {"subject": "impl", "device": "default", "versions": {"torch": "2.13.0", "numpy": "2.4.6"}}
    good = Verdict("pack/0", "PACK", "impl", PASS, contract="1", seconds=0.01)
    bad = Verdict("match/other", "MATCH", "impl", FAIL, "MATCH/dtype_shape/dtype", "lookup0 is float32", contract="5.3")
    wrong = replace(bad, stage="KERNEL", signature="KERNEL/array/values", contract="7.1", strict=False)
    impl = [replace(good, case=f"pack/{i}") for i in range(300)]
    for kind, got in WRONG.items():
        picture = vars(draw(got, RIGHT.astype(got.dtype), 8))
        facts = {"device": "llvmpipe", "driver": "Mesa 22.3.6"}
        why = f"out[0, 0] is 2.0, allowed is 1.0 ({kind})"
        shown = replace(wrong, case=f"kernel/{kind}", reason=why, mismatch={"picture": picture}, replay=REPLAY)
        impl.append(replace(shown, facts=facts, seconds=3.25))
    impl += [
        bad,
        replace(wrong, case="kernel/dead", outcome=ERROR, reason="the worker died"),
        replace(wrong, case=LONG),
    ]
    impl += [replace(bad, case="match/fixed", outcome=XPASS, reason="remove the expectation", defect="some-defect")]
    known = replace(bad, subject="other", outcome=XFAIL, defect="some-defect")
    other = [replace(known, case=f"match/known/{i}") for i in range(3)]
    other += [replace(good, case=f"pack/{i}", subject="other", contract="5.3") for i in range(50)]
    other += [replace(known, case="run/0", stage="RUN", outcome=UNSUPPORTED, reason="no runtime", contract="6.2")]
    source = [replace(good, case=f"pack/{i}", subject=CHECKOUT) for i in range(40)]
    streams = [
        Stream(header, tuple(impl), truncated=True),
        Stream(header | {"subject": "other", "seed": 0}, tuple(other), truncated=False),
        Stream(header | {"subject": CHECKOUT}, tuple(source), truncated=False),
    ]
    return written(tmp_path_factory.mktemp("page"), streams)


def written(folder: Path, streams: Sequence[Stream]) -> Path:
    return write(folder, streams)[1]


def cases(page: Page) -> list[str]:
    return page.locator("#cases .id").all_text_contents()


def row(page: Page, case: str) -> Locator:
    return page.get_by_role("button").filter(has=page.get_by_text(case, exact=True))


def choice(page: Page, name: str) -> Locator:
    return page.get_by_role("combobox", name=name)


def cells(page: Page, table: str) -> list[list[str]]:
    found: list[list[str]] = page.locator(f"#{table} tr").evaluate_all(
        "rows => rows.map(row => [...row.cells].map(cell => cell.textContent))"
    )
    return found


def drawn_cells(page: Page, height: int, width: int) -> np.ndarray[Any, np.dtype[np.str_]]:
    """The colour of each of the picture's cells, or "pale"."""
    found: list[list[str]] = page.locator("figure canvas").evaluate(
        """(canvas, [rows, columns]) => {
        const {width, height} = canvas, high = height / rows, wide = width / columns;
        const {data} = canvas.getContext("2d").getImageData(0, 0, width, height);
        const place = (i, j) => 4 * (Math.floor((i + .4) * high) * width + Math.floor((j + .4) * wide));
        const at = (i, j) => data.slice(place(i, j), place(i, j) + 4);
        const named = ([r, g, b, alpha]) => alpha === 255 ? `rgb(${r}, ${g}, ${b})` : "pale";
        return [...Array(rows).keys()].map(i => [...Array(columns).keys()].map(j => named(at(i, j))));
    }""",
        [height, width],
    )
    return np.array(found)


def test_without_chromium_the_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(pytest.fail.Exception, match="Debian's package chromium is missing"):
        chromium()


def test_it_opens_on_what_was_unexpected(visit: Visit, report: Path) -> None:
    page = visit(report)
    assert page.title() == "q4gsw conformance report"
    assert cases(page) == [
        "match/fixed",
        "match/other",
        LONG,
        "kernel/dead",
        "kernel/n",
        "kernel/p",
        "kernel/r",
        "kernel/s",
        "kernel/x",
    ]
    expect(page.get_by_role("status")).to_have_text("9 of 403 cases")
    expect(page.locator("#truncated")).to_have_text("The run did not finish: impl wrote 309 verdicts")
    expect(page.locator("#truncated")).to_be_visible()
    tiles = page.locator(".tile").all_text_contents()
    assert tiles == ["7FAIL", "1ERROR", "1XPASS", "3XFAIL", "390PASS", "1UNSUPPORTED", "0 / 7hold the strict set"]


def test_filters_by_outcome_stage_and_typed_text(visit: Visit, report: Path) -> None:
    page = visit(report)
    choice(page, "stage").select_option("KERNEL")
    assert cases(page) == [LONG, "kernel/dead", "kernel/n", "kernel/p", "kernel/r", "kernel/s", "kernel/x"]
    page.get_by_role("searchbox").press_sequentially("DIED")
    assert cases(page) == ["kernel/dead"]
    choice(page, "stage").select_option("every stage")
    page.get_by_role("searchbox").fill("some-defect")
    assert cases(page) == ["match/fixed"]
    choice(page, "outcome").select_option("XFAIL")
    assert cases(page) == [f"match/known/{i}" for i in range(3)]
    choice(page, "outcome").select_option("every outcome")
    assert len(cases(page)) == 5
    page.get_by_role("searchbox").fill("nothing has this")
    assert cases(page) == []
    page.get_by_role("button", name="show all").click()
    expect(page.get_by_role("status")).to_have_text("403 of 403 cases")


def test_the_address_keeps_the_filters(visit: Visit, report: Path) -> None:
    page = visit(report)
    choice(page, "outcome").select_option("every outcome")
    choice(page, "subject").select_option("other")
    page.get_by_role("searchbox").fill("known/2")
    page.keyboard.press("Enter")
    assert cases(page) == ["match/known/2"]
    visit(report, page.url.split("#")[1])
    assert cases(page) == ["match/known/2"]
    page.evaluate("location.hash = 'stage=MATCH'")  # a link to another choice, followed in this page
    expect(page.get_by_role("status")).to_have_text("2 of 403 cases")
    page.get_by_role("link", name="Environment").click()
    expect(page.get_by_role("status")).to_have_text("2 of 403 cases")
    visit(report, "stage=NONE&outcome=%3Cb%3E&__proto__=x&cases=1")
    expect(page.get_by_role("status")).to_have_text("403 of 403 cases")
    assert choice(page, "stage").evaluate("list => list.selectedOptions[0]?.text") == "every stage"


def test_a_failure_explains_itself(visit: Visit, report: Path) -> None:
    page = visit(report)
    failure = row(page, "kernel/n")
    expect(failure).to_contain_text("out[0, 0] is 2.0, allowed is 1.0 (n)")
    failure.click()
    expect(failure).to_have_attribute("aria-expanded", "true")
    said = dict(zip(*(page.locator(f".detail {tag}").all_text_contents() for tag in ("dt", "dd")), strict=True))
    assert said == {
        "what": "out[0, 0] is 2.0, allowed is 1.0 (n)",
        "contract": "docs/contract.md 7.1",
        "signature": "KERNEL/array/values",
        "replay": f"{REPLAY} copy",
        "subject": "impl",
        "device": "llvmpipe (Mesa 22.3.6)",
        "strict": "outside the strict set",
        "seconds": "3.25",
    }
    assert page.get_by_text(REPLAY).evaluate("e => [e.innerText, getComputedStyle(e).userSelect]") == [REPLAY, "auto"]
    failure.click()
    expect(page.locator(".detail")).to_have_count(0)


@pytest.mark.parametrize("kind", WRONG)
def test_the_picture_tells_what_is_wrong(visit: Visit, report: Path, kind: str) -> None:
    """Those cells have the colour that the legend explains which are wrong, and no others."""
    page = visit(report, f"text=kernel/{kind}")  # so few are found that it opens expanded
    legend = page.locator("figcaption > div")
    expect(legend).to_have_text(KINDS[kind])
    key = legend.locator("span").evaluate("e => getComputedStyle(e).backgroundColor")
    page.get_by_role("img", name=KINDS[kind]).scroll_into_view_if_needed()
    drawn = drawn_cells(page, 4, 24)
    assert np.array_equal(drawn, np.where(WRONG[kind] != RIGHT, key, "pale"))
    expect(page.locator("figcaption")).to_contain_text(
        "4 rows down, 24 columns across; lines every 8 columns, which share a scale"
    )


def test_lines_never_hide_a_wide_picture(visit: Visit, tmp_path: Path) -> None:
    """4,096 columns in 64 cells: between two lines there would be three pixels."""
    right = np.ones((8, 4096), np.float16)
    picture = vars(draw(right + right, right, 32))
    wide = Verdict("kernel/wide", "KERNEL", "impl", FAIL, "s", mismatch={"picture": picture}, contract="7.1")
    page = visit(written(tmp_path, [Stream({"subject": "impl"}, (wide,), truncated=False)]))
    expect(page.locator("figcaption")).to_contain_text(
        "8 rows down, 4096 columns across, shown as 8 x 64 cells; every 32 columns share a scale"
    )
    red = page.locator(".key").evaluate("e => getComputedStyle(e).backgroundColor")
    every_pixel = drawn_cells(page, 8, 64 * 6)
    assert set(every_pixel.flat) == {red, "pale"}, "cells and the seams between them"
    assert (every_pixel == red).mean() > 0.8


def test_the_matrix_leads_to_its_cases(visit: Visit, report: Path) -> None:
    page = visit(report)
    head, *lines = cells(page, "matrix")
    assert head == ["subject", "1", "5.3", "6.2", "7.1"]
    assert lines == [
        ["executorch-src:…/executorch@0123456789", "40", "", "", ""],
        ["impl", "300", "✗2", "", "✗7"],
        ["other", "", "~350", "-", ""],
    ]
    page.get_by_role("searchbox").fill("swept away by the next click")
    page.get_by_role(
        "button", name="other, section 5.3: 0 unexpected, 3 known failures, 50 passed, 0 unsupported"
    ).click()
    expect(page.get_by_role("status")).to_have_text(
        "53 of 403 cases"
    )  # although the page had opened on what was unexpected
    expect(choice(page, "outcome")).to_be_focused()
    expect(choice(page, "subject")).to_be_in_viewport()
    page.get_by_role("button", name="impl, section 5.3").click()
    assert cases(page) == ["match/fixed", "match/other"]
    page.get_by_role("button", name="other, section 6.2").click()
    assert cases(page) == ["run/0"]
    assert "subject=other" in page.url


def test_a_line_says_whose_it_is(visit: Visit, report: Path) -> None:
    page = visit(report, "outcome=PASS&text=pack/7")
    lines = page.locator(".row .where").all_text_contents()
    assert {"PACK 1 · impl", "PACK 5.3 · other", "PACK 1 · executorch-src:…/executorch@0123456789"} == set(lines)


def test_tables_below_the_cases(visit: Visit, report: Path) -> None:
    page = visit(report)
    for table in ("matrix", "defect", "slowest", "timing", "environment"):
        assert len({len(line) for line in cells(page, table)}) == 1, "a column without its heading, or the reverse"
    head, *slowest = cells(page, "slowest")
    assert head == ["seconds", "case", "stage", "outcome", "subject"]
    assert len(slowest) == 10
    assert [line[:2] for line in slowest[:6]] == [["3.250", f"kernel/{k}"] for k in sorted(WRONG)] + [
        ["0.010", "pack/0"]
    ]
    known = cells(page, "defect")[1]
    assert known[:3] == ["3", "other", "some-defect"]
    assert known[3] == "for example match/known/0: lookup0 is float32"
    environment = cells(page, "environment")
    assert environment[0] == ["", "impl", "other", CHECKOUT]
    assert ["torch", "2.13.0", "2.13.0", "2.13.0"] in environment
    assert ["seed", "", "0", ""] in environment
    assert ["Vulkan device", "llvmpipe (Mesa 22.3.6)", "", ""] in environment
    assert [line[0] for line in cells(page, "timing")] == ["stage", "MATCH", "PACK", "KERNEL"]


def test_keys_are_enough(visit: Visit, report: Path) -> None:
    page = visit(report)
    focused = "document.activeElement.id || document.activeElement.className || document.activeElement.textContent"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Causes"
    page.keyboard.press("Tab")
    assert page.evaluate(focused) == "Cases"
    page.keyboard.press("Enter")  # past the matrix
    reached = []
    for _ in range(7):
        page.keyboard.press("Tab")
        reached.append(page.evaluate(focused))
    assert reached == ["outcome", "stage", "section", "subject", "text", "show all", "row"]
    first = row(page, "match/fixed")
    expect(first).to_be_focused()
    assert first.evaluate("e => getComputedStyle(e).outlineStyle") == "solid", "the focus must be seen"
    page.keyboard.press("Enter")
    expect(first).to_have_attribute("aria-expanded", "true")
    page.keyboard.press("Space")
    expect(first).to_have_attribute("aria-expanded", "false")
    choice(page, "stage").focus()
    page.keyboard.type("MATCH")  # as one chooses from a list
    assert cases(page) == ["match/fixed", "match/other"]
    for name in ("outcome", "stage", "section", "subject"):
        expect(page.get_by_role("combobox", name=name)).to_have_count(1)
    expect(page.get_by_role("searchbox", name="text in id, signature, reason")).to_have_count(1)
    for name in ("Subjects and contract sections", "Slowest cases", "Environment"):
        expect(page.get_by_role("table", name=name)).to_have_count(1)


def test_what_a_subject_said_stays_text(visit: Visit, tmp_path: Path) -> None:
    hostile = Verdict(HOSTILE, "KERNEL", HOSTILE, FAIL, HOSTILE, HOSTILE, replay=HOSTILE, contract=HOSTILE, seconds=1)
    known = replace(hostile, case="known", subject="other", outcome=XFAIL, defect=HOSTILE, facts={"device": HOSTILE})
    header = {"subject": HOSTILE, HOSTILE: HOSTILE, "versions": {HOSTILE: HOSTILE}}
    page = visit(written(tmp_path, [Stream(header, (hostile, known), truncated=True)]))
    expect(page.locator(".detail dd").first).to_have_text(HOSTILE)
    page.get_by_role("button", name="show all").click()
    expect(page.locator(".detail")).to_have_count(2)
    assert page.locator("img, script").count() == 2  # the page's own data and script
    for table in ("matrix", "defect", "slowest", "environment"):
        assert any(HOSTILE in cell for line in cells(page, table) for cell in line), table


def test_thousands_of_cases_open_at_once(visit: Visit, tmp_path: Path) -> None:
    good = Verdict("", "KERNEL", "impl", PASS, contract="7.1", reason="a reason of common length " * 4)
    many = tuple(replace(good, case=f"kernel/{i:04}", contract=f"7.{i % 40}") for i in range(5000))
    page = visit(written(tmp_path, [Stream({"subject": "impl"}, many, truncated=False)]))
    (loaded,) = page.evaluate("performance.getEntriesByType('navigation').map(e => e.domComplete)")
    assert loaded < 5000, "milliseconds; a fifth of it on an idle machine"
    assert len(cases(page)) == 200
    expect(page.locator("#environment")).to_be_attached()
    assert page.evaluate("document.documentElement.scrollHeight") < 20_000, "what comes after the cases is out of reach"
    page.get_by_role("button", name="show 200 more of 4800").click()
    assert len(cases(page)) == 400
    expect(row(page, "kernel/0200")).to_be_focused()
    page.get_by_role("searchbox").fill("kernel/4999")
    assert cases(page) == ["kernel/4999"]
    expect(page.locator("#more")).to_be_hidden()


def test_a_narrow_window_scrolls_down_only(visit: Visit, report: Path) -> None:
    page = visit(report, width=400)
    for case in ("kernel/n", LONG):
        row(page, case).click()
    assert page.evaluate("document.documentElement.scrollWidth") == 400
    picture = page.locator("figure canvas").bounding_box()
    assert picture
    assert picture["x"] + picture["width"] <= 400
    first = page.get_by_role("button", name="impl, section 1:").bounding_box()
    assert first
    assert first["x"] + first["width"] <= 400, "a long subject's name has pushed every cell out of sight"


def shades(page: Page) -> list[tuple[str, str, str]]:
    """Every text on the page, and every key of a legend as "": what it says, its colour and the ground behind it."""
    found: list[tuple[str, str, str]] = page.evaluate("""() => {
        const style = e => getComputedStyle(e), own = e => style(e).backgroundColor;
        const ground = e => own(e) === "rgba(0, 0, 0, 0)" && e.parentElement ? ground(e.parentElement) : own(e);
        const says = e => [...e.childNodes].some(n => n.nodeType === Node.TEXT_NODE && n.data.trim());
        const seen = [...document.body.querySelectorAll(":not(option)")].filter(e => e.checkVisibility());
        return [...seen.filter(says).map(e => [e.textContent, style(e).color, ground(e)]),
            ...seen.filter(e => e.className === "key").map(e => ["", own(e), ground(e.parentElement)])];
    }""")
    return found


def contrast(one: str, other: str) -> float:
    """WCAG's ratio of two colours, 1 to 21."""

    def luminance(colour: str) -> float:
        assert re.fullmatch(r"rgb\(\d+, \d+, \d+\)", colour), "an opaque colour"
        parts = [int(n) / 255 for n in re.findall(r"\d+", colour)]
        red, green, blue = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts)
        return 0.2126 * red + 0.7152 * green + 0.0722 * blue

    dark, light = sorted((luminance(one), luminance(other)))
    return (light + 0.05) / (dark + 0.05)


def test_contrast_is_computed_right() -> None:
    assert math.isclose(contrast("rgb(0, 0, 0)", "rgb(255, 255, 255)"), 21)
    assert (
        round(contrast("rgb(119, 119, 119)", "rgb(255, 255, 255)"), 2) == 4.48
    )  # the grey that is known to fall short


@pytest.mark.parametrize(("scheme", "ground"), [("light", "rgb(255, 255, 255)"), ("dark", "rgb(20, 23, 28)")])
def test_everything_can_be_read(visit: Visit, report: Path, scheme: str, ground: str) -> None:
    page = visit(report, scheme=scheme)
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == ground
    assert page.evaluate("getComputedStyle(document.documentElement).colorScheme") == scheme
    for kind in WRONG:
        row(page, f"kernel/{kind}").click()
    found = shades(page)
    choice(page, "subject").select_option("other")
    choice(page, "outcome").select_option("every outcome")
    found += shades(page)
    assert {*KINDS.values(), FAIL, ERROR, XPASS, XFAIL, PASS, UNSUPPORTED} <= {text for text, _, _ in found}
    faint = {(text[:40], one, other) for text, one, other in found if contrast(one, other) < (TEXT if text else PATCH)}
    assert not faint
    assert sum(not text for text, _, _ in found) == len(WRONG)


def test_it_prints_dark_on_white(visit: Visit, report: Path) -> None:
    page = visit(report, scheme="dark")
    row(page, "kernel/n").click()
    page.emulate_media(media="print")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert not [text for text, one, other in shades(page) if text and contrast(one, other) < TEXT]
    expect(choice(page, "stage")).to_be_hidden()
    expect(page.locator("figure canvas")).to_be_visible()
    expect(page.locator(".detail")).to_contain_text(REPLAY)
