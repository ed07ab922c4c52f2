"""What a bisection over commits is about, on disk: every step is a process of its own and reads it there.

Source: docs/bisecting.md.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from conformance.files import append_line, make_folder, write_whole
from conformance.sources.tree import cache_directory

#: How a commit is asked: the executorch-src subject, a subject file in the repository, or a command.
KINDS = ("executorch-src", "file", "command")
GOOD, BAD, SKIP, STOP = "good", "bad", "skip", "stop"


@dataclass(frozen=True)
class Search:
    """One search. ``old`` and ``new`` are commits, the older one first; ``signature`` is the failure sought.

    ``what``: for "file" the subject file and class, for "command" its words; they run in the commit's files.
    ``since``: verdicts that were kept before (seconds since the epoch) are not used.
    """

    repo: str
    case: str
    kind: str
    old: str
    new: str
    what: tuple[str, ...] = ()
    find_fix: bool = False
    first_parent: bool = False
    repeat: int = 1
    seconds: float = 60.0
    signature: str = ""
    since: float = 0.0

    @property
    def folder(self) -> Path:
        """Where this search keeps its clone, its log and its verdicts."""
        plain = asdict(self) | {"signature": "", "since": 0.0}
        return cache_directory() / "bisect" / hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:20]

    @property
    def clone(self) -> Path:
        """A bare repository of its own that borrows the objects of ``repo``."""
        return self.folder / "clone.git"

    def save(self) -> None:
        """Write the search where its steps find it."""
        write_whole({make_folder(self.folder) / "search.json": json.dumps(asdict(self), indent=1)})

    @staticmethod
    def load(folder: Path) -> "Search":
        """Return the search that ``save`` wrote."""
        data = json.loads((folder / "search.json").read_text(encoding="utf-8"))
        return Search(**{**data, "what": tuple(data["what"])})


@dataclass(frozen=True)
class Step:
    """What one commit was found to be. ``state``: good, bad, skip (cannot be said) or stop (the search must end)."""

    commit: str
    tree: str
    state: str
    outcome: str
    signature: str
    reason: str
    seconds: float
    cached: bool = False

    def line(self) -> str:
        """Return the step in one line."""
        said = f"{self.outcome} {self.signature}".strip()
        from_cache = ", from the cache" if self.cached else ""
        why = f": {self.reason}" if self.state in {SKIP, STOP} and self.reason else ""
        where = f"tree {self.tree[:10]}, {self.seconds:.1f} s{from_cache}"
        return f"{self.commit[:10]}  {self.state:4}  {said}  ({where}){why}"


def state_of(outcome: str, signature: str, sought: str) -> str:
    """Return what a verdict means for the search; with nothing ``sought`` yet, any failure is the one.

    Another failure than the one sought says nothing of it: such a commit is skipped. So is one that cannot be tried.
    """
    if outcome in {"PASS", "XPASS"}:
        return GOOD
    trouble = signature.rpartition("/")[2] if "/raised/" in signature else ""
    if outcome == "ERROR" and trouble not in {"Untestable", "Died", "Timeout"}:
        return STOP
    if outcome == "UNSUPPORTED" or trouble == "Untestable":
        return SKIP
    return BAD if sought in {"", signature} else SKIP


def disagreement(answers: Sequence[tuple[str, str, str]]) -> str:
    """Return what several answers to one question (outcome, signature, digest) say where they differ, else "".

    >>> disagreement([("PASS", "", "1f"), ("PASS", "", "1f")])
    ''
    >>> disagreement([("PASS", "", "1f"), ("PASS", "", "2e")])
    '2 runs do not agree: PASS (result 1f), PASS (result 2e)'
    """
    if len(set(answers)) == 1:
        return ""
    in_bits = len({a[:2] for a in answers}) == 1
    said = [
        f"{outcome} {signature}".strip() + (f" (result {digest[:10]})" if in_bits else "")
        for outcome, signature, digest in answers
    ]
    return f"{len(answers)} runs do not agree: {', '.join(said)}"


def log_step(folder: Path, step: Step) -> None:
    """Append a step to the search's log, steps.jsonl."""
    append_line(folder / "steps.jsonl", json.dumps(asdict(step)))


def steps(folder: Path) -> list[Step]:
    """Return the steps of the log; a line that a killed process left half written is left out."""
    path = folder / "steps.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            data: Mapping[str, Any] = json.loads(line)
        except ValueError:
            continue
        found.append(Step(**data))
    return found
