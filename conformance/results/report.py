"""The files of a report beside verdicts.jsonl: summary.md for a pull request, report.html, junit.xml for CI.

They come from the verdict stream alone, so ``q4gsw report DIR --html`` writes them again.
They are written whole and together, or not at all.

Source: docs/reading-a-report.md.
"""

import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from conformance.case.case import STAGES, Case
from conformance.files import printable, write_whole
from conformance.results import diff, exchange, expectations, timing
from conformance.results.causes import causes
from conformance.results.picture import KINDS, Picture
from conformance.results.verdict import UNEXPECTED, XFAIL, Outcome, Stream, Verdict, counts, in_order, last_line
from conformance.serialize import structure

_PAGE = Path(__file__).parent / "report_page.html"
#: Causes of which summary.md shows an example.
_NAMED = 20


def write(folder: Path, streams: Sequence[Stream], cases: Sequence[Case] = ()) -> list[Path]:
    """Write summary.md, report.html and junit.xml into ``folder`` and return their paths.

    ``cases``: where the order, the contract section and the bug that a case detects are taken from, by id.

    Raises:
        ValueError: a file cannot be written; names it.
    """
    streams = [replace(s, verdicts=tuple(in_order(s.verdicts, (c.id for c in cases)))) for s in streams]
    verdicts = [v for stream in streams for v in stream.verdicts]
    texts = {
        folder / "summary.md": summary(verdicts, streams[0].header if streams else {}),
        folder / "report.html": page(streams, cases),
        folder / "junit.xml": exchange.junit(streams, {case.id: case.detects for case in cases}),
    }
    write_whole(texts)
    return list(texts)


def summary(verdicts: Sequence[Verdict], header: Mapping[str, Any]) -> str:
    """Return the text for a pull request's comment: counts, failures by signature, strict, known failures."""
    by_outcome = counts(verdicts)
    bad = [v for v in verdicts if v.outcome in UNEXPECTED]
    verdict = "as expected" if not bad else f"**{len(bad)} unexpected**"
    lines = [f"### q4gsw conformance of {_code(header.get('subject', '?'))}: {verdict}", ""]
    lines += ["| " + " | ".join(Outcome) + " |", "| ---: " * len(Outcome) + "|"]
    lines += ["| " + " | ".join(str(by_outcome[o]) for o in Outcome) + " |", ""]
    lines += strict_lines(verdicts)
    if bad:
        by_cause = causes(bad)
        lines += ["", "| unexpected | cases | for example |", "| --- | ---: | --- |"]
        for v, *others in by_cause:
            lines.append(f"| {_code(v.signature or v.outcome)} | {1 + len(others)} | {_code(v.case)} |")
        lines += ["", "<details><summary>An example of each</summary>", ""]
        for v, *_ in by_cause[:_NAMED]:
            lines.append(f"- {v.outcome} {_code(v.case)} (contract {_code(v.contract)}): {_code(v.reason, 300)}")
            lines.append(f"  replay: {_code(v.replay, 1000)}")
        lines += ["", "</details>"]
    known = Counter(v.defect for v in verdicts if v.outcome == XFAIL)
    if known:
        lines += ["", f"Known failures: {sum(known.values())} cases of {len(known)} defects: "]
        lines[-1] += ", ".join(f"{_code(name)} ({count})" for name, count in known.most_common())
    versions = ", ".join(f"{k} {v}" for k, v in dict(header.get("versions", {})).items())
    lines += ["", f"<sub>{_code(versions, 500)}; device {_code(device_of(verdicts) or header.get('device', '?'))}; "]
    lines[-1] += f"suite {_code(str(header.get('revision', '?'))[:12])}</sub>"
    return "\n".join([*lines, "", last_line(verdicts), ""])


def strict_lines(verdicts: Sequence[Verdict]) -> list[str]:
    """Return the line that counts the strict verdicts; none where no verdict is about numbers."""
    strict = [v.strict for v in verdicts if v.strict is not None]
    return [f"strict: {sum(strict)} of {len(strict)} numeric verdicts hold the strict set too"] if strict else []


def device_of(verdicts: Iterable[Verdict]) -> str:
    """Return the first Vulkan device and driver that a verdict names, or ""."""
    for v in verdicts:
        if v.stage == "KERNEL" and v.facts.get("device"):
            return f"{v.facts['device']} ({v.facts.get('driver', 'driver unknown')})"
    return ""


def page(streams: Sequence[Stream], cases: Iterable[Case] = ()) -> str:
    """Return the report as one self-contained HTML page."""
    guarded = {c.id: (c.contract, c.detects) for c in cases}
    verdicts = [v for stream in streams for v in stream.verdicts]
    subjects = ", ".join(dict.fromkeys(str(s.header.get("subject", "?")) for s in streams))
    data = {
        "about": [f"{subjects}; {last_line(verdicts)}", *map(_origin, streams)],
        "titles": _titles(),
        "changes": diff.lines(diff.compare(*streams)) if _two_of_one(streams) else [],
        "stages": STAGES,
        "kinds": KINDS,
        "truncated": [
            f"{s.header.get('subject', '?')} wrote {len(s.verdicts)} verdicts" for s in streams if s.truncated
        ],
        "verdicts": [_row(v, *guarded.get(v.case, (v.contract, ""))) for v in verdicts],
        "known": known_failures(verdicts),
        "timing": timing.rows(verdicts, timing.workers_of(s.header for s in streams)),
        "streams": [str(s.header.get("subject", "?")) for s in streams],
        "environment": _environment(streams),
    }
    text = json.dumps(data, ensure_ascii=True, separators=(",", ":"))
    # Inside a script element nothing but "<" can end it or open a comment.
    return _PAGE.read_text(encoding="utf-8").replace("@DATA@", text.replace("<", "\\u003c"))


def _two_of_one(streams: Sequence[Stream]) -> bool:
    """Whether there are two reports of one implementation, maybe at two revisions: an old and a new one."""
    names = [str(s.header.get("subject", "?")).partition("@")[0] for s in streams]
    return len(names) == 2 and names[0] == names[1]  # noqa: PLR2004 - old and new


def _origin(stream: Stream) -> str:
    """When, on what and with which revision of the suite a run was made."""
    header = stream.header
    device = device_of(stream.verdicts) or header.get("device", "?")
    revision = str(header.get("revision", "?"))[:12]
    return f"{header.get('subject', '?')}: {header.get('started', 'no date')}, device {device}, suite {revision}"


@functools.cache
def _titles() -> Mapping[str, str]:
    """The contract's sections by number, with their bold title, else that of the chapter."""
    text = (Path(__file__).parents[2] / "docs" / "contract.md").read_text(encoding="utf-8")
    titles = dict(re.findall(r"^## (\d+) (.+)$", text, re.MULTILINE))
    for section, title in re.findall(r"^(\d+\.\d+) (?:\*\*(.+?)\.?\*\*)?", text, re.MULTILINE):
        titles[section] = title or titles[section.partition(".")[0]]
    return titles


def _row(v: Verdict, contract: str, detects: str) -> dict[str, Any]:
    plain = {
        n: getattr(v, n) for n in ("case", "stage", "subject", "outcome", "signature", "reason", "strict", "defect")
    }
    device = device_of([v])
    return {
        **plain,
        "contract": v.contract or contract,
        "detects": detects,
        "seconds": v.seconds,
        "replay": v.replay,
        "printed": v.printed if v.outcome in UNEXPECTED else "",
        "device": device,
        "picture": _picture(v),
    }


def _picture(v: Verdict) -> dict[str, Any] | None:
    """The verdict's picture if it has a well-formed one: a stream may come from anywhere."""
    try:
        return vars(structure(Picture, (v.mismatch or {}).get("picture")))
    except ValueError:
        return None


def known_failures(verdicts: Sequence[Verdict]) -> list[dict[str, Any]]:
    """A row for each known failure: ``cases``, ``subject``, ``defect``, ``reason``, ``link``."""
    counted = Counter((v.subject, v.defect) for v in verdicts if v.outcome == XFAIL)
    rows = []
    for (subject, defect), count in counted.most_common():
        known = _entries(subject).get(defect)
        if known:
            text = {"reason": known.reason, "link": known.link}
        else:  # a shard of generated programs, or an entry of the user's own file
            example = next(v for v in verdicts if (v.subject, v.defect, v.outcome) == (subject, defect, XFAIL))
            text = {"reason": f"for example {example.case}: {example.reason}", "link": ""}
        rows.append({"cases": count, "subject": subject, "defect": defect, **text})
    return rows


@functools.cache
def _entries(subject: str) -> Mapping[str, expectations.KnownFailure]:
    """A built-in subject's known failures by defect."""
    path = expectations.for_subject(subject)
    return {known.defect: known for known in expectations.read(path)} if path else {}


def _environment(streams: Sequence[Stream]) -> list[list[str]]:
    """A row for everything that a header names, with a column for each stream."""
    columns = []
    for stream in streams:
        column = {k: str(v) for k, v in stream.header.items() if k not in {"versions", "format", "subject"}}
        column |= {k: str(v) for k, v in dict(stream.header.get("versions", {})).items()}
        if device := device_of(stream.verdicts):
            column["Vulkan device"] = device
        columns.append(column)
    names = dict.fromkeys(name for column in columns for name in column)
    return [[name, *(column.get(name, "") for column in columns)] for name in names]


def _code(text: object, most: int = 120) -> str:
    """Text as a code span, in which nothing is an element, an image, a link or a mention; it ends no table's cell."""
    plain = printable(" ".join(str(text).split())).replace("|", "/").replace("`", "'") or "-"
    return f"`{plain if len(plain) <= most else plain[:most] + '...'}`"
