"""Replay files: one TOML file from which a case replays anywhere, with the signature it should show.

A file holds ``[replay]`` (subject, signature, versions) and ``[case]``, the whole resolved case.
"""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tomli_w

from conformance.case.case import Case
from conformance.case.toml import case_from_table, case_to_table
from conformance.files import make_folder, write_whole
from conformance.results.verdict import Verdict


@dataclass(frozen=True)
class Replay:
    """A case, the subject that failed it and the signature it failed with ("" if it passed)."""

    case: Case
    subject: str
    signature: str = ""


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
    """Return what a replay file says."""
    head = {"subject": subject, "signature": signature, "versions": dict(versions)}
    return tomli_w.dumps({"replay": head, "case": case_to_table(case)})


def read(path: Path) -> Replay:
    """Return what ``path`` replays.

    Raises:
        ValueError: no such file, or not a replay file; names the file, the field and what is wrong.
    """
    try:
        document: dict[str, Any] = tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise ValueError(f"{path}: no such replay file") from error
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise ValueError(f"{path}: not a replay file ({error})") from error
    head = document.get("replay")
    if not isinstance(head, dict) or not isinstance(head.get("subject"), str) or "case" not in document:
        raise ValueError(f"{path}: not a replay file: it needs [replay] with a subject, and [case]")
    case = case_from_table(document["case"], f"{path}: case")
    return Replay(case, head["subject"], str(head.get("signature", "")))
