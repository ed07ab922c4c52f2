"""Verdict: one case judged, and the stream of verdicts that a run leaves behind.

``verdicts.jsonl``: a header line, a line a verdict, and a footer line with the counts; a file
without its footer is truncated, and says so when it is read.
"""

import json
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from conformance.files import append_line, make_folder, unwritable

PASS, FAIL, ERROR, UNSUPPORTED, XFAIL, XPASS = "PASS", "FAIL", "ERROR", "UNSUPPORTED", "XFAIL", "XPASS"
OUTCOMES = (PASS, FAIL, ERROR, UNSUPPORTED, XFAIL, XPASS)
#: Outcomes that make a run fail.
UNEXPECTED = (FAIL, ERROR, XPASS)
FORMAT = 1


@dataclass(frozen=True)
class Verdict:
    """The judgement of one case.

    ``strict``: whether the strict set (contract 3) holds too, None without one. ``defect``: the known
    failure that this one is, or was expected to be (conformance.results.expectations). ``source``: the case's
    contract section.
    """

    case: str
    stage: str
    subject: str
    outcome: str
    signature: str = ""
    reason: str = ""
    mismatch: Mapping[str, Any] | None = None
    strict: bool | None = None
    digest: str = ""
    seconds: float = 0.0
    replay: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    defect: str = ""
    source: str = ""


@dataclass(frozen=True)
class Stream:
    """A verdict file read back."""

    header: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    truncated: bool


def counts(verdicts: Iterable[Verdict]) -> dict[str, int]:
    """Return the number of verdicts by outcome, every outcome present."""
    found = Counter(v.outcome for v in verdicts)
    return {outcome: found[outcome] for outcome in OUTCOMES}


def last_line(verdicts: Iterable[Verdict]) -> str:
    """Return the line with which every run ends."""
    c = counts(verdicts)
    return (
        f"tests:{sum(c.values())} passed:{c[PASS]} failed:{c[FAIL]} error:{c[ERROR]} "
        f"unsupported:{c[UNSUPPORTED]} xfail:{c[XFAIL]} xpass:{c[XPASS]}"
    )


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Return 0 when everything was as expected, 1 otherwise; a run in which nothing was judged fails."""
    c = counts(verdicts)
    judged = sum(c.values()) - c[UNSUPPORTED]
    return 0 if judged and not any(c[o] for o in UNEXPECTED) else 1


class Writer:
    """Writes a verdict stream, a line at a time, so that a killed run keeps what it had."""

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Create ``path``.

        Raises:
            ValueError: the file is there already, or cannot be written; names it and what to do.
        """
        make_folder(path.parent)
        try:
            path.touch(exist_ok=False)
        except FileExistsError as error:
            raise ValueError(f"{path}: another run's report is there; give --report an empty directory") from error
        except OSError as error:
            raise unwritable(path, error) from error
        self._path = path
        self._verdicts: list[Verdict] = []
        try:
            self._line({"header": {"format": FORMAT, **header}})
        except ValueError:
            path.unlink()  # or the next run, with room enough, would find another run's report
            raise

    def add(self, verdict: Verdict) -> None:
        """Append one verdict.

        Raises:
            ValueError: it cannot be written; the stream ends with the verdict before.
        """
        self._line(vars(verdict))
        self._verdicts.append(verdict)

    def close(self) -> None:
        """Write the footer.

        Raises:
            ValueError: it cannot be written; the stream reads as truncated.
        """
        self._line({"footer": {"counts": counts(self._verdicts), "tests": len(self._verdicts)}})

    def _line(self, data: Mapping[str, Any]) -> None:
        append_line(self._path, json.dumps(data, default=dict))


def read(path: Path) -> Stream:
    """Return the stream in ``path``, or in the directory ``path``.

    One without a footer, or whose last line is cut, is ``truncated``.

    Raises:
        ValueError: not a verdict stream; names the file, the line and what is wrong.
    """
    path = path / "verdicts.jsonl" if path.is_dir() else path
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: cannot be read ({error})") from error
    header: Mapping[str, Any] | None = None
    verdicts: list[Verdict] = []
    complete = False
    for number, line in enumerate(lines, 1):
        try:
            data = json.loads(line)
            if number == 1:
                header = data["header"]
            elif "footer" in data:
                complete = data["footer"]["tests"] == len(verdicts)
            else:
                verdicts.append(_checked(Verdict(**data)))
        except (ValueError, KeyError, TypeError) as error:
            if number == len(lines) and header is not None:
                break  # the line that a killed run was writing
            raise ValueError(f"{path}:{number}: not a verdict stream ({error!r})") from error
    if header is None or header.get("format") != FORMAT:
        raise ValueError(f"{path}:1: not a verdict stream of format {FORMAT}")
    return Stream(header, tuple(verdicts), truncated=not complete)


#: What a field that is not a text has to be.
_OTHER: Mapping[str, tuple[type, ...]] = {
    "mismatch": (dict, type(None)),
    "strict": (bool, type(None)),
    "seconds": (int, float),
    "facts": (dict,),
}


def _checked(verdict: Verdict) -> Verdict:
    """Return ``verdict`` if it can be reported: a stream may come from anywhere.

    Raises:
        ValueError: a field is not what it has to be; names it.
    """
    for name in (f.name for f in fields(Verdict)):
        if not isinstance(getattr(verdict, name), _OTHER.get(name, (str,))):
            raise ValueError(f"{name} is {getattr(verdict, name)!r}")
    if verdict.outcome not in OUTCOMES:
        raise ValueError(f"outcome is {verdict.outcome!r}, not one of {', '.join(OUTCOMES)}")
    if not (math.isfinite(verdict.seconds) and verdict.seconds >= 0):
        raise ValueError(f"seconds is {verdict.seconds}")
    for name in ("device", "driver", "binding"):
        if not isinstance(verdict.facts.get(name, ""), str):
            raise ValueError(f"facts is {dict(verdict.facts)!r}: {name} is no text")
    return verdict
