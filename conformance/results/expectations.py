"""Expectations: the known failures of a subject, strict both ways.

``conformance/expectations/SUBJECT.toml`` has ``[[known]]`` entries. A case that fails as its entry says
is XFAIL and does not fail the run; one that fails in another way stays FAIL; one that passes is XPASS,
which fails the run until the entry is removed. Several entries may name one ``defect``.

Source: docs/reading-a-report.md, "Known failures".
"""

import fnmatch
import re
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from conformance.case.case import STAGES, Case
from conformance.results.verdict import FAIL, PASS, UNSUPPORTED, XFAIL, XPASS, Verdict
from conformance.serialize import structure

FOLDER = Path(__file__).parent.parent / "expectations"
_DEFECT = re.compile(r"[a-z0-9][a-z0-9.\-]*")
_SIGNATURE = re.compile(rf"({'|'.join(STAGES)})/\w+/\S+")
#: ``raised`` reasons that say nothing of the subject; they are never a known failure of it.
_NOT_KNOWABLE = ("EnvironmentProblem", "BadObservation")


@dataclass(frozen=True)
class Known:
    """One known failure.

    ``defect``: the short name that failures are grouped by. ``signature``: how it shows, one for each
    stage. ``case``: patterns (fnmatch) of the ids of the cases that fail. ``versions``: package ->
    pattern of the versions that have the defect; with others the cases are expected to pass.
    """

    defect: str
    signature: tuple[str, ...]
    case: tuple[str, ...]
    reason: str
    link: str
    versions: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Expectations:
    """The entries that hold for the installed versions, and the signature expected, by case id."""

    by_case: Mapping[str, tuple[Known, str]] = field(default_factory=dict)

    def signatures(self) -> frozenset[str]:
        """Every signature that some case is expected to fail with."""
        return frozenset(signature for _, signature in self.by_case.values())

    def apply(self, verdict: Verdict) -> Verdict:
        """Return ``verdict`` as it counts beside what was expected of its case."""
        if verdict.case not in self.by_case:
            return verdict
        known, signature = self.by_case[verdict.case]
        if verdict.outcome == PASS:
            reason = f"expected {signature} ({known.defect}), but it passes: remove the expectation"
            return replace(verdict, outcome=XPASS, reason=reason, defect=known.defect)
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
    by_case: dict[str, tuple[Known, str]] = {}
    for number, known in enumerate(read(path), 1):
        where = f"{path}: known {number} ({known.defect})"
        matched = _matched(known, tuple(stages), where)
        if not all(fnmatch.fnmatchcase(versions.get(name, ""), want) for name, want in known.versions.items()):
            continue
        for name in matched:
            if name in by_case:
                raise ValueError(f"{where}: case {name} is expected twice, by {by_case[name][0].defect} too")
            signature = next((s for s in known.signature if s.startswith(f"{stages[name]}/")), None)
            if signature is None:
                raise ValueError(f"{where}: no signature is of stage {stages[name]}, which case {name} asks")
            by_case[name] = known, signature
    return Expectations(by_case)


def read(path: Path, *, included: bool = False) -> tuple[Known, ...]:
    """Return the entries of one file, those of a file beside it that it includes first.

    Raises:
        ValueError: as ``load``, as far as the file alone can show it.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: {error}") from error
    rows, include = document.get("known", []), document.get("include", "")
    if set(document) - {"known", "include"} or not isinstance(rows, list):
        raise ValueError(f"{path}: a file of expectations has include and [[known]] entries and nothing else")
    if not isinstance(include, str) or Path(include).name != include:
        raise ValueError(f"{path}: include {include!r} is not the name of a file beside it")
    if include and included:
        raise ValueError(f"{path}: an included file may not include {include!r} in turn")
    entries = list(read(path.parent / include, included=True)) if include else []
    for number, row in enumerate(rows, 1):
        name = row.get("defect", "no defect") if isinstance(row, dict) else "no table"
        entries.append(_entry(row, f"{path}: known {number} ({name})"))
    return tuple(entries)


def _entry(row: Any, where: str) -> Known:
    if not isinstance(row, dict):
        raise ValueError(f"{where}: known is a list of something else; write [[known]]")
    known = structure(Known, row, where)
    for name in ("reason", "link"):
        if not getattr(known, name).strip():
            raise ValueError(f"{where}: {name} is empty; say why the case fails and where that can be read")
    if not _DEFECT.fullmatch(known.defect):
        raise ValueError(f"{where}: defect {known.defect!r} must be a short name such as zero-point-ignored")
    for signature in known.signature:
        if not _SIGNATURE.fullmatch(signature) or signature.rpartition("/")[2] in _NOT_KNOWABLE:
            raise ValueError(f"{where}: signature {signature!r} is not one that a subject's failure can have")
    stages = [signature.partition("/")[0] for signature in known.signature]
    if len(set(stages)) != len(stages):
        raise ValueError(f"{where}: two signatures of one stage; write an entry for each")
    if not known.case or not known.signature:
        raise ValueError(f"{where}: case and signature need a list with at least one of them")
    return known


def _matched(known: Known, ids: Sequence[str], where: str) -> list[str]:
    matched: list[str] = []
    for pattern in known.case:
        found = fnmatch.filter(ids, pattern)
        if not found:
            raise ValueError(f"{where}: case pattern {pattern!r} matches no case of the catalogue")
        matched += found
    return list(dict.fromkeys(matched))


def grouped(verdicts: Iterable[Verdict], expectations: Expectations) -> list[str]:
    """Return the lines that sum up known failures by defect; none where there are none."""
    found: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        if verdict.outcome == XFAIL and verdict.case in expectations.by_case:  # shards of programs have their own line
            found.setdefault(verdict.defect, []).append(verdict)
    lines = [f"known failures: {sum(map(len, found.values()))} cases, {len(found)} defects"] if found else []
    for defect, there in sorted(found.items(), key=lambda item: (-len(item[1]), item[0])):
        known, _ = expectations.by_case[there[0].case]
        lines.append(f"  {len(there):4} {defect}: {known.reason}")
        lines.append(f"       {known.link}")
    return lines
