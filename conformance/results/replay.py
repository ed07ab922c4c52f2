"""Replay files: one TOML file from which a case replays anywhere, with the signature it should show.

A file holds ``[replay]`` and ``[case]``, the whole resolved case. docs/formats.md describes every field.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import tomli_w

from conformance.case.case import Case
from conformance.case.toml import case_from_table, case_to_table
from conformance.files import make_folder, read_text, write_whole
from conformance.results.verdict import Verdict
from conformance.serialize import check_version, structure, unstructure

FORMAT = 2


@dataclass(frozen=True)
class Replay:
    """A case, the subject that failed it and the signature it failed with ("" if it passed)."""

    case: Case
    subject: str
    signature: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)


def file_name(case_id: str) -> str:
    """Return the file name for a case: its id with slashes as double underscores."""
    return case_id.replace("/", "__") + ".toml"


def write(folder: Path, case: Case, verdict: Verdict, versions: Mapping[str, str]) -> Path:
    """Write the replay file of one verdict into ``folder`` and return its path.

    Raises:
        ValueError: it cannot be written; names it.
    """
    path = make_folder(folder) / file_name(case.id)
    write_whole({path: text(case, verdict.subject, verdict.signature, versions)})
    return path


def text(case: Case, subject: str, signature: str, versions: Mapping[str, str]) -> str:
    """Return the text of a replay file."""
    head = unstructure(Replay(case, subject, signature, versions)) | {"version": FORMAT}
    return tomli_w.dumps({"replay": {k: v for k, v in head.items() if k != "case"}, "case": case_to_table(case)})


def read(path: Path) -> Replay:
    """Return what ``path`` replays.

    Raises:
        ValueError: no such file, or not a replay file of this version; names the file, the field and what is wrong.
    """
    try:
        document = tomllib.loads(read_text(path))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such replay file") from error
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a replay file ({error})") from error
    head = document.get("replay")
    if not isinstance(head, dict) or "case" not in document:
        raise ValueError(f"{path}: not a replay file: it needs [replay] with a subject, and [case]")
    check_version(str(path), "replay file", head.pop("version", 1), FORMAT)
    case = case_from_table(document["case"], f"{path}: case")
    return structure(Replay, {**head, "case": case}, str(path), "replay")
