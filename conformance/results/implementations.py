"""Tables of verdict streams: implementations beside contract sections (docs/implementations.md), models by subject.

Source: docs/reading-a-report.md.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from conformance.results.report import device_of, known_failures
from conformance.results.verdict import PASS, UNEXPECTED, UNSUPPORTED, XFAIL, Stream, Verdict

_HEAD = """# Other implementations

KERNEL's question (values, scales, group size and indices in; rows out) asked of other projects' implementations of the
4-bit embedding, and of every scale there is where a proof could be run. `./dev peers` writes this file. Numbers are
cases that passed; `n wrong` are known failures; `!` is what nobody expected; `-` is not in its dialect. Each subject is
a file of `conformance/subjects/peers/` that states dialect and arithmetic; what that arithmetic allows passes.
"""

#: Columns of a table of models.
_MODELS = ("model", "subject", "outcome", "lookups, linears in Vulkan", "file, bytes", "to lower, s", "to lower, MB")
_LONGEST = 160


def page(runs: Sequence[tuple[Stream, Sequence[str]]]) -> str:
    """Return the page; each run comes with a line for each of its proofs."""
    named = [(_name(stream), stream, proofs) for stream, proofs in runs]
    sections = sorted({v.contract for stream, _ in runs for v in stream.verdicts}, key=_order)
    lines = [
        _HEAD,
        "| implementation | asked | " + " | ".join(sections) + " |",
        "| --- |" + " ---: |" * (1 + len(sections)),
    ]
    for name, stream, _ in named:
        asked = [v for v in stream.verdicts if v.outcome != UNSUPPORTED]
        cells = [_cell([v for v in asked if v.contract == section]) for section in sections]
        lines.append(f"| {name} | {len(asked)} | " + " | ".join(cells) + " |")
    for name, stream, proofs in named:
        lines += ["", f"## {name}", "", *_about(stream, proofs)]
    return "\n".join([*lines, ""])


def _name(stream: Stream) -> str:
    """The subject without its path, and its device where one was chosen."""
    subject, device = str(stream.header.get("subject", "?")).partition(":")[0], str(stream.header.get("device", ""))
    return subject if device in {"", "default"} else f"{subject} on {device}"


def _order(section: str) -> tuple[int, ...]:
    return tuple(map(int, section.split(".")))


def _cell(there: Sequence[Verdict]) -> str:
    if not there:
        return "-"
    count = {kind: sum(v.outcome == kind for v in there) for kind in (PASS, XFAIL)}
    bad = sum(v.outcome in UNEXPECTED for v in there)
    parts = [str(count[PASS])] if count[PASS] else []
    parts += [f"{count[XFAIL]} wrong"] if count[XFAIL] else []
    return ", ".join([*parts, *([f"{bad} !"] if bad else [])])


def _about(stream: Stream, proofs: Sequence[str]) -> list[str]:
    """Versions and date, the arithmetic, what is wrong, what is proven."""
    answered = [v for v in stream.verdicts if v.strict is not None]
    facts = answered[0].facts if answered else {}
    modes = ", ".join(facts.get("execution_modes", ())) or "nothing is declared"
    arithmetic = "one correctly rounded product" if facts.get("arithmetic") == "host" else modes
    strict = sum(v.strict is True for v in answered)
    started, python = (
        str(stream.header.get("started", "?"))[:10],
        dict(stream.header.get("versions", {})).get("python", "?"),
    )
    lines = [f"{device_of(answered) or 'nothing was answered'}, Python {python}, {started}. Arithmetic: {arithmetic}."]
    lines.append(f"{strict} of {len(answered)} numeric answers hold the strict set too.")
    rows = known_failures(stream.verdicts)
    lines += [f"- **{row['defect']}** ({row['cases']} cases): {row['reason']} [{row['link']}]" for row in rows]
    return [*lines, *(f"- Proof of {line}" for line in proofs)]


def models(streams: Sequence[Stream], cases: Iterable[str]) -> str:
    """Return a table in Markdown of the verdicts on models, by the ids of their cases, in their order."""
    rows: list[tuple[str, ...]] = [_MODELS, ("---", "---", "---", "---:", "---:", "---:", "---:")]
    verdicts = [v for stream in streams for v in stream.verdicts]
    for case in cases:
        name = case.removeprefix("run/model/")
        rows += [(name, v.subject.partition(":")[0], *_made(v)) for v in verdicts if v.case == case]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def _made(verdict: Verdict) -> tuple[str, ...]:
    made: Mapping[str, Any] = verdict.facts.get("provenance", {}) if verdict.facts else {}
    outcome = verdict.reason[:_LONGEST].replace("|", "/") if verdict.reason else "right"
    if verdict.outcome not in {PASS, UNSUPPORTED}:
        outcome = f"{'wrong' if made else 'no answer'}: {outcome}"
    counts = ", ".join(str(made[name]) for name in ("lookups", "linears") if name in made)
    return (outcome, counts, *(str(made.get(name, "")) for name in ("file_bytes", "lower_seconds", "lower_megabytes")))
