"""Expectations: the known failures of a subject, strict both ways.

``conformance/expectations/SUBJECT.toml`` has ``[[known]]`` entries. A case that fails as its entry says
is XFAIL and does not fail the run; one that fails in another way stays FAIL; one that passes is XPASS,
which fails the run until the entry is removed. Several entries may name one ``defect``.

Source: docs/reading-a-report.md, "Known failures".
"""

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

from conformance.case.case import STAGES, Case
from conformance.case.conditions import WORDS, conditions
from conformance.files import read_text
from conformance.results.verdict import FAIL, PASS, UNSUPPORTED, XFAIL, XPASS, Verdict
from conformance.serialize import structure

FOLDER = Path(__file__).parent.parent / "expectations"
_DEFECT = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_SIGNATURE = re.compile(rf"({'|'.join(STAGES)})/\w+/\S+")
#: ``raised`` reasons that say nothing of the subject; they are never a known failure of it.
_NOT_KNOWABLE = ("EnvironmentProblem", "BadObservation")


@dataclass(frozen=True)
class KnownFailure:
    """One known failure.

    ``defect``: the short name that failures are grouped by. ``signature``: how it shows, one for each
    stage. ``case``: patterns (fnmatch) of the ids of the cases that fail. ``versions``: package ->
    pattern of the versions that have the defect; with others the cases are expected to pass. ``program``: words of
    ``conformance.case.conditions``; a generated program that fails with a signature of the entry is excused where
    one of them holds for it, and never without.
    """

    defect: str
    signature: tuple[str, ...]
    case: tuple[str, ...]
    reason: str
    link: str
    versions: Mapping[str, str] = field(default_factory=dict)
    program: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        """Check everything that the entry alone can show."""
        if not _DEFECT.fullmatch(self.defect):
            raise ValueError(f"defect {self.defect!r} must be a short name such as zero-point-ignored")
        for name in ("reason", "link"):
            if not getattr(self, name).strip():
                raise ValueError(f"{self.defect}: {name} is empty; say why the case fails and where that can be read")
        for signature in self.signature:
            if not _SIGNATURE.fullmatch(signature) or signature.rpartition("/")[2] in _NOT_KNOWABLE:
                raise ValueError(f"{self.defect}: signature {signature!r} is not one that a subject's failure can have")
        stages = [signature.partition("/")[0] for signature in self.signature]
        if len(set(stages)) != len(stages):
            raise ValueError(f"{self.defect}: two signatures of one stage; write an entry for each")
        for word in self.program:
            if word not in WORDS:
                raise ValueError(f"{self.defect}: program {word!r} is not one of {', '.join(sorted(WORDS))}")
        if not self.case or not self.signature:
            raise ValueError(f"{self.defect}: case and signature need a list with at least one of them")


@dataclass(frozen=True)
class _Document:
    """A file of expectations; ``include`` names another one in the same folder."""

    known: tuple[KnownFailure, ...] = ()
    include: str = ""


@dataclass(frozen=True)
class Expectations:
    """The entries that hold for the installed versions, and the signature expected, by case id."""

    by_case: Mapping[str, tuple[KnownFailure, str]] = field(default_factory=dict)
    known: tuple[KnownFailure, ...] = ()

    def excuses(self, case: Case, signature: str) -> bool:
        """Whether a generated program fails as an entry says, where the entry's condition on programs holds for it."""
        if case.program is None:
            return False
        there = conditions(case.program)
        return any(signature in known.signature and not there.isdisjoint(known.program) for known in self.known)

    def apply(self, verdict: Verdict) -> Verdict:
        """Return ``verdict`` as it counts beside what was expected of its case."""
        if verdict.case not in self.by_case:
            return verdict
        known, signature = self.by_case[verdict.case]
        if verdict.outcome == PASS:
            reason = f"expected {signature} ({known.defect}), but it passes: remove the expectation"
            return replace(verdict, outcome=XPASS, reason=reason, defect=known.defect)
        if verdict.outcome == UNSUPPORTED and verdict.facts.get("of_device"):
            return verdict
        if verdict.outcome == UNSUPPORTED:  # or a subject could get rid of its failures by declining to be judged
            reason = (
                f"expected {signature} ({known.defect}), but it is not judged: {verdict.reason}; remove the expectation"
            )
            return replace(verdict, outcome=FAIL, signature=f"{verdict.stage}/raised/Unsupported", reason=reason)
        if verdict.signature == signature:
            return replace(verdict, outcome=XFAIL, defect=known.defect)
        return replace(verdict, reason=f"{verdict.reason} [expected {signature} ({known.defect}) instead]")


NONE = Expectations()


def for_subject(subject: str) -> Path | None:
    """Return the file of a built-in subject's expectations, or None where it has none.

    >>> for_subject("executorch-src:/home/me/executorch@main").name
    'executorch-src.toml'
    """
    name = subject.partition(":")[0]
    path = FOLDER / f"{name}.toml"
    return path if re.fullmatch(r"[a-z0-9\-]+", name) and path.is_file() else None


def load(path: Path, cases: Iterable[Case], versions: Mapping[str, str]) -> Expectations:
    """Return the expectations of ``path`` that hold for ``versions``.

    Args:
        path: a file of [[known]] entries.
        cases: the whole catalogue, selected or not.
        versions: installed versions by package (``conformance.runs.run.versions``).

    Raises:
        ValueError: not TOML; an entry with a missing, empty or malformed field; a pattern that matches no
            case; two entries for one case. Names the file and the entry.
    """
    stages = {case.id: case.stage for case in cases}
    by_case: dict[str, tuple[KnownFailure, str]] = {}
    holding: list[KnownFailure] = []
    for number, known in enumerate(read(path), 1):
        where = f"{path}: known {number} ({known.defect})"
        for pattern in known.case:
            if not fnmatch.filter(stages, pattern):
                raise ValueError(f"{where}: case pattern {pattern!r} matches no case of the catalogue")
        if not all(fnmatch.fnmatchcase(versions.get(name, ""), wanted) for name, wanted in known.versions.items()):
            continue
        holding.append(known)
        for name in dict.fromkeys(name for pattern in known.case for name in fnmatch.filter(stages, pattern)):
            if name in by_case:
                raise ValueError(f"{where}: case {name} is expected twice, by {by_case[name][0].defect} too")
            signature = next((s for s in known.signature if s.startswith(f"{stages[name]}/")), None)
            if signature is None:
                raise ValueError(f"{where}: no signature is of stage {stages[name]}, which case {name} asks")
            by_case[name] = known, signature
    return Expectations(by_case, tuple(holding))


def read(path: Path, *, included: bool = False) -> tuple[KnownFailure, ...]:
    """Return the entries of one file, those of the file that it includes first.

    Raises:
        ValueError: as ``load``, as far as the file alone can show it.
    """
    try:
        table = tomllib.loads(read_text(path))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    document = structure(_Document, table, str(path))
    include = document.include
    if Path(include).name != include:
        raise ValueError(f"{path}: include {include!r} is not the name of a file beside it")
    if include and included:
        raise ValueError(f"{path}: an included file may not include {include!r} in turn")
    return (*(read(path.parent / include, included=True) if include else ()), *document.known)


def grouped(verdicts: Iterable[Verdict], expectations: Expectations) -> list[str]:
    """Return the lines that sum up known failures by defect; none where there are none."""
    known_failures: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome == XFAIL and verdict.case in expectations.by_case:  # shards of programs have their own line
            known_failures.setdefault(verdict.defect, []).append(verdict)
    if not known_failures:
        return []
    lines = [f"known failures: {sum(map(len, known_failures.values()))} cases, {len(known_failures)} defects"]
    for defect, there in sorted(known_failures.items(), key=lambda item: (-len(item[1]), item[0])):
        known, _ = expectations.by_case[there[0].case]
        lines.append(f"  {len(there):4} {defect}: {known.reason}")
        lines.append(f"       {known.link}")
    return lines
