"""A check of a saved program as a page of HTML that loads nothing and runs nothing.

Whatever a model's names hold is text there: each is ``printable``, and escaped.
"""

import math
from collections.abc import Iterable, Sequence
from html import escape
from pathlib import Path
from string import Template

from conformance.explain.check import Check, Compared, check_saved
from conformance.files import printable

_PAGE = Path(__file__).with_name("check_page.html")
#: Decibels at which the bar of an SNR is full: a little more than float32 can be apart.
_FULL = 160.0


def page_file(path: str, inputs: str, subject: str) -> str:
    """Whether it fails, as "1" or "0", then the page. Entry point of ``conformance.harness.limited``."""
    result = check_saved(path, inputs, subject)
    return f"{int(not result.right())}{page(result, path)}"


def page(result: Check, name: str) -> str:
    """The page of what ``q4gsw check`` says of the model ``name``."""
    first = next((value for value in result.values if not value.equal), None)
    summary = f"{result.size:,} bytes. " + (
        f"The first value that departs from eager: {first.node} ({first.what})."
        if first
        else "Every value is eager's, bit for bit."
    )
    sections = [
        *_list("What is wrong or wasted in the file", result.problems),
        *_list("What lowering did", result.lowering),
        *_table(result.values, first),
    ]
    texts = {
        "name": _text(name),
        "verdict": "right" if result.right() else "WRONG",
        "summary": _text(f"No file: {result.refused}" if result.refused else summary),
        "embeddings": "\n".join(map(_text, result.embeddings.split("\n"))),
        "sections": "\n".join(sections),
    }
    return Template(_PAGE.read_text(encoding="utf-8")).substitute(texts)


def _text(text: str) -> str:
    return escape(printable(text))


def _list(title: str, lines: Sequence[str]) -> Iterable[str]:
    if lines:
        yield f"<h2>{title}</h2>\n<ul>"
        yield from (f"<li>{_text(line)}</li>" for line in lines)
        yield "</ul>"


def _table(values: Sequence[Compared], first: Compared | None) -> Iterable[str]:
    if not values:
        return
    yield '<h2>The file beside eager, in the order of the program</h2>\n<div class="scroll"><table>'
    yield "<tr><th>what</th><th>node</th><th>shape</th><th>difference</th><th>SNR</th></tr>"
    for value in values:
        told = "equal" if value.equal else f"{value.ulp} ulp"
        full = 0.0 if math.isinf(value.snr) and value.snr < 0 else min(1.0, max(0.0, value.snr / _FULL))
        marked = ' class="first"' if value is first else ""
        yield (
            f'<tr{marked}><td>{_text(value.what)}</td><td class="mono">{_text(value.node)}</td>'
            f"<td>{_text(str(list(value.shape)))}</td><td>{told}</td>"
            f'<td class="snr" style="background-size: {100 * full:.0f}% 100%">'
            f"{'' if value.equal else f'{value.snr:.1f} dB'}</td></tr>"
        )
    yield "</table></div>"
