"""Verdict: one case judged, and the stream of verdicts that a run leaves behind.

``verdicts.jsonl``: a header line, a line a verdict, and a footer line with the counts; a file
without its footer is truncated, and says so when it is read. docs/formats.md describes every field.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from conformance.case.case import STAGES
from conformance.files import append_line, make_folder, printable, read_text, unwritable
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
#: Outcomes of which what was printed is kept.
FAILED = (FAIL, ERROR, XFAIL)
FORMAT = 3
_MOST_BYTES = 1 << 30
_TEXTS = ("device", "driver", "binding")


@dataclass(frozen=True)
class Verdict:
    """The judgement of one case.

    ``strict``: whether the strict set (contract 3) holds too, None without one. ``defect``: the known
    failure that this one is, or was expected to be (conformance.results.expectations). ``contract``: the case's
    section. ``digest``: of what was answered. ``facts``: the observation's, and how long things took. ``printed``: what
    the subject's process printed, tracebacks too, its beginning and its end; of a failure only.
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
    printed: str = ""

    def __post_init__(self) -> None:
        """A stream may come from anywhere: all texts but what was printed become lines that a terminal only shows."""
        for name, value in vars(self).items():
            if type(value) is str and name != "printed" and not value.isprintable():
                object.__setattr__(self, name, printable(value))
        if self.seconds < 0:
            raise ValueError(f"seconds is {self.seconds}")
        if not all(isinstance(self.facts.get(name, ""), str) for name in _TEXTS):
            raise ValueError(f"facts is {dict(self.facts)!r}: {', '.join(_TEXTS)} are texts")


@dataclass(frozen=True)
class _Header:
    """What a header may hold (docs/formats.md)."""

    format: int
    subject: str = ""
    subject_repository: str = ""
    subject_revision: str = ""
    subject_file: str = ""
    device: str = ""
    level: str = ""
    selection: str = ""
    revision: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    started: str = ""
    seed: int = 0
    workers: int = 1
    shard: str = ""
    selected: str = ""


@dataclass(frozen=True)
class Stream:
    """A verdict file read back."""

    header: Mapping[str, Any]
    verdicts: tuple[Verdict, ...]
    truncated: bool


def in_order(verdicts: Iterable[Verdict], cases: Iterable[str] = ()) -> list[Verdict]:
    """Return verdicts by stage, then as the ids of ``cases`` come: workers answer as it happens."""
    stages, order = ({name: number for number, name in enumerate(names)} for names in (STAGES, cases))
    return sorted(verdicts, key=lambda v: (stages.get(v.stage, 0), order.get(v.case, len(order)), v.case))


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
        self._digest = hashlib.sha256()
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
        self._line({"footer": _footer(self._verdicts, self._digest.hexdigest())})

    def _line(self, data: Mapping[str, Any]) -> None:
        line = json.dumps(data, default=dict)
        append_line(self._path, line)
        self._digest.update(f"{line}\n".encode())


def _footer(verdicts: Sequence[Verdict], digest: str) -> dict[str, Any]:
    return {"counts": counts(verdicts), "tests": len(verdicts), "digest": digest}


def read(path: Path) -> Stream:
    """Return the stream in ``path``, or in the directory ``path``.

    One without a footer, or whose last line is cut, is ``truncated``.

    Raises:
        ValueError: not a verdict stream of this format, or one that was altered; names the file, the line and what is
            wrong.
    """
    path = path / "verdicts.jsonl" if path.is_dir() else path
    try:
        first, *rest = (text := read_text(path, _MOST_BYTES)).splitlines() or [""]
        header = json.loads(first)["header"]
        written = header["format"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{path}:1: not a verdict stream ({error!r})") from error
    check_version(str(path), "verdict stream", written, FORMAT)
    structure(_Header, header, f"{path}:1: header")
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
    if footer is not None:
        before = text.encode()[: -len(rest[-1].encode()) - 1]
        if footer != (len(rest) + 1, _footer(verdicts, hashlib.sha256(before).hexdigest())):
            raise ValueError(
                f"{path}:{footer[0]}: the footer does not end the stream, or is of other verdicts: altered"
            )
    return Stream(_shown(header), tuple(verdicts), truncated=footer is None)


def _shown(value: Any) -> Any:
    """A header as it is printed: its texts are lines."""
    if isinstance(value, dict):
        return {printable(name): _shown(one) for name, one in value.items()}
    return printable(value) if isinstance(value, str) else value
