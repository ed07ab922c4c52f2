"""What a verdict means for a search, and what a search over commits is about.

Every step of a search over commits is a process of its own, which reads the search from its folder.

Source: docs/bisecting.md.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from conformance.case.case import Case
from conformance.files import cache_directory, make_folder, write_whole
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results.verdict import ERROR, PASS, UNSUPPORTED, XPASS, Verdict

GOOD, BAD, SKIP, STOP = "good", "bad", "skip", "stop"


class SearchEnded(ValueError):  # noqa: N818 - it is the end of a search, with its reason
    """The search cannot go on; one line: what, where, what to do."""

    exit_code = 1


@dataclass(frozen=True)
class Search:
    """One search over commits. ``old`` and ``new`` are commits, the older one first; ``signature`` is the one sought.

    ``kind``: how a commit is judged: "executorch-src" (the subject of that name), "file" (a subject file in the
    repository) or "command". ``what``: the subject file and class, or the command's words.
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

    @property
    def folder(self) -> Path:
        """Where this search keeps its clone, its log and its verdicts."""
        plain = asdict(self) | {"signature": ""}
        return cache_directory() / "bisect" / hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:20]

    @property
    def clone(self) -> Path:
        """A bare repository of its own that borrows the objects of ``repo``."""
        return self.folder / "clone.git"

    @property
    def memo(self) -> Path:
        """Verdicts by the hash of the tree that was judged, until the search ends: an interrupted one continues."""
        return self.folder / "verdicts"

    @property
    def stopped(self) -> Path:
        """The file in which a step says why the search cannot go on."""
        return self.folder / "stopped"

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
    """The answer for one commit. ``state``: good, bad, or skip (the commit says nothing of what is sought)."""

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
        answer = f"{self.outcome} {self.signature}".strip()
        from_cache = ", from the cache" if self.cached else ""
        why = f": {self.reason}" if self.state == SKIP and self.reason else ""
        return (
            f"{self.commit[:10]}  {self.state:4}  {answer}  (tree {self.tree[:10]}, {self.seconds:.1f} s{from_cache})"
            f"{why}"
        )


def trouble(signature: str) -> str:
    """Return what was raised, of the signature STAGE/raised/WHAT; "" of any other."""
    _, tag, what = (*signature.split("/", 2), "", "")[:3]
    return what if tag == "raised" else ""


def state_of(outcome: str, signature: str, sought: str) -> str:
    """Return what a verdict means for the search; with nothing ``sought`` yet, any failure is the one.

    Another failure than the one sought says nothing of it: such a commit is skipped. So is one that cannot be tried.
    """
    if outcome in {PASS, XPASS}:
        return GOOD
    if outcome == ERROR and trouble(signature) not in {"Untestable", "Died", "Timeout"}:
        return STOP
    if outcome == UNSUPPORTED or trouble(signature) == "Untestable":
        return SKIP
    return BAD if sought in {"", signature} else SKIP


def check_harness(verdict: Verdict) -> None:
    """Raise SearchEnded where a verdict is not the subject's: the machine lacks something, or the harness is broken."""
    if state_of(verdict.outcome, verdict.signature, "") == STOP:
        raise SearchEnded(f"{verdict.case}: {verdict.signature}: {verdict.reason}: this is not the subject's")


def ask(worker: Worker, case: Case, repeat: int) -> Verdict:
    """Return the verdict on which ``repeat`` runs of the case agree."""
    return unanimous(case.id, [judge(case, worker.run(case), worker.subject) for _ in range(repeat)])


def unanimous(name: str, verdicts: Sequence[Verdict]) -> Verdict:
    """Return the one answer that all runs of ``name`` gave: outcome, signature and the bits of the result.

    Raises:
        SearchEnded: they differ; lists them in the order in which they came.
    """
    if len({(v.outcome, v.signature, v.digest) for v in verdicts}) == 1:
        return verdicts[0]
    in_bits = len({(v.outcome, v.signature) for v in verdicts}) == 1
    answers = [
        f"{v.outcome} {v.signature}".strip() + (f" (result {v.digest[:10]})" if in_bits else "") for v in verdicts
    ]
    raise SearchEnded(f"{name} is flaky: {len(answers)} runs do not agree: {', '.join(answers)}")
