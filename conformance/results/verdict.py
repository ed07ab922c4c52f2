"""Verdict: one case judged, and the stream of verdicts that a run leaves behind.

``verdicts.jsonl``: a header line, a line a verdict, and a footer line with the counts; a file
without its footer is truncated, and says so when it is read. docs/formats.md describes every field.
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from conformance.files import append_line, make_folder, unwritable
from conformance.serialize import check_version, structure


class Outcome(StrEnum):
    """What became of a case; FAIL is the subject's, ERROR the machine's or the harness's."""

    PASS = "PASS"  # noqa: S105 - no password
    FAIL = "FAIL"
    ERROR = "ERROR"
    UNSUPPORTED = "UNSUPPORTED"
    XFAIL = "XFAIL"
    XPASS = "XPASS"


PASS, FAIL, ERROR, UNSUPPORTED, XFAIL, XPASS = Outcome
#: Outcomes that make a run fail.
UNEXPECTED = (FAIL, ERROR, XPASS)
FORMAT = 2
_TEXTS = ("device", "driver", "binding")


@dataclass(frozen=True)
class Verdict:
    """The judgement of one case.

    ``strict``: whether the strict set (contract 3) holds too, None without one. ``defect``: the known
    failure that this one is, or was expected to be (conformance.results.expectations). ``contract``: the case's
    section. ``digest``: of what was answered. ``facts``: the observation's, and how long things took.
    """

    case: str
    stage: str
    subject: str
    outcome: Outcome
    signature: str = ""
    reason: str = ""
    mismatch: Mapping[str, Any] | None = None
    strict: bool | None = None
    digest: str = ""
    seconds: float = 0.0
    replay: str = ""
    facts: Mapping[str, Any] = field(default_factory=dict)
    defect: str = ""
    contract: str = ""

    def __post_init__(self) -> None:
        """A stream may come from anywhere."""
        if self.seconds < 0:
            raise ValueError(f"seconds is {self.seconds}")
        if not all(isinstance(self.facts.get(name, ""), str) for name in _TEXTS):
            raise ValueError(f"facts is {dict(self.facts)!r}: {', '.join(_TEXTS)} are texts")


@dataclass(frozen=True)
class Stream:
    """A verdict file read back."""

    header: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    truncated: bool


def counts(verdicts: Iterable[Verdict]) -> dict[Outcome, int]:
    """Return the number of verdicts by outcome, every outcome present."""
    counted = Counter(v.outcome for v in verdicts)
    return {outcome: counted[outcome] for outcome in Outcome}


def last_line(verdicts: Iterable[Verdict]) -> str:
    """Return the line with which every run ends."""
    c = counts(verdicts)
    return (
        f"tests:{sum(c.values())} passed:{c[PASS]} failed:{c[FAIL]} error:{c[ERROR]} "
        f"unsupported:{c[UNSUPPORTED]} xfail:{c[XFAIL]} xpass:{c[XPASS]}"
    )


def exit_code(verdicts: Iterable[Verdict]) -> int:
    """Return 0 when everything was as expected, 1 otherwise; a run in which nothing was judged fails."""
    judged = {v.outcome for v in verdicts} - {UNSUPPORTED}
    return 0 if judged and judged.isdisjoint(UNEXPECTED) else 1


class Writer:
    """Writes a verdict stream, a line at a time, so that a killed run keeps what it had.

    Everything raises ValueError where a line cannot be written: the stream ends with the line before.
    """

    def __init__(self, path: Path, header: Mapping[str, Any]) -> None:
        """Create ``path``, which must not be there."""
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
        """Append one verdict."""
        self._line(vars(verdict))
        self._verdicts.append(verdict)

    def close(self) -> None:
        """Write the footer; without it the stream reads as truncated."""
        self._line({"footer": _footer(self._verdicts)})

    def _line(self, data: Mapping[str, Any]) -> None:
        append_line(self._path, json.dumps(data, default=dict))


def _footer(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    return {"counts": counts(verdicts), "tests": len(verdicts)}


def read(path: Path) -> Stream:
    """Return the stream in ``path``, or in the directory ``path``.

    One without a footer, or whose last line is cut, is ``truncated``.

    Raises:
        ValueError: not a verdict stream of this format, or one that was altered; names the file, the line and what is
            wrong.
    """
    path = path / "verdicts.jsonl" if path.is_dir() else path
    try:
        first, *rest = path.read_text(encoding="utf-8").splitlines() or [""]
        header = json.loads(first)["header"]
        written = header["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}:1: not a verdict stream ({error!r})") from error
    check_version(str(path), "verdict stream", written, FORMAT)
    verdicts: list[Verdict] = []
    footer: Any = None
    for number, line in enumerate(rest, 2):
        try:
            data = json.loads(line)
            if "footer" in data:
                footer = footer or (number, data["footer"])
            else:
                verdicts.append(structure(Verdict, data))
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            if number > len(rest):
                break  # the line that a killed run was writing
            raise ValueError(f"{path}:{number}: not a verdict stream ({error})") from error
    if footer is not None and footer != (len(rest) + 1, _footer(verdicts)):
        raise ValueError(f"{path}:{footer[0]}: the footer does not end the stream, or counts other verdicts: altered")
    return Stream(header, tuple(verdicts), truncated=footer is None)
