"""Bisection over released versions: each is asked in an environment of its own.

A version whose companions cannot be satisfied beside this environment's torch is listed as such and skipped.

Source: docs/bisecting.md.
"""

import json
import os
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.bisect import commands
from conformance.bisect.ask import check_unanimous
from conformance.bisect.commits import SearchEnded
from conformance.bisect.key import kept, surroundings, verdict_file
from conformance.bisect.search import BAD, GOOD, SKIP, STOP, state_of
from conformance.case.case import Case
from conformance.case.toml import case_from_toml, case_to_toml
from conformance.files import make_folder, write_whole
from conformance.harness.subject import names
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results import replay
from conformance.runs import run
from conformance.sources.releases import (
    COMPLETE,
    Unsatisfiable,
    environment,
    folder_of,
    importing,
    in_environment,
    releases,
)
from conformance.sources.tree import cache_directory, listing, source_tree, tree_hash


@dataclass(frozen=True)
class Asked:
    """What one version was found to be."""

    version: str
    state: str
    signature: str
    reason: str

    def line(self) -> str:
        """Return it in one line."""
        return " ".join(f"{self.version:8} {self.state:4}  {self.signature}  {self.reason}".split())


@dataclass(frozen=True)
class Question:
    """What every version is asked, how often, and since when (seconds since the epoch) a kept verdict answers it."""

    case: Case
    package: str
    subject: str = "executorch"
    wheels: Path | None = None
    seconds: float = 60.0
    repeat: int = 1
    since: float = 0.0


def ask(question: Question, version: str, sought: str) -> Asked:
    """Judge the case on the subject in the environment of ``version``; a verdict is kept for the next search.

    Raises:
        SearchEnded: ``repeat`` runs do not agree.
    """
    case, package = question.case, question.package
    try:
        python = environment(package, version, question.wheels)
    except Unsatisfiable as error:
        return Asked(version, SKIP, "", str(error))
    file = _kept_in(question, version)
    found = kept(file, question.since) if file else {}
    if not found:
        try:
            importing(python)
        except Unsatisfiable as error:
            return Asked(version, SKIP, "", str(error))
        answers = []
        for _ in range(question.repeat):
            words = ["conformance.bisect.version", str(question.seconds), question.subject]
            done = in_environment(python, words, case_to_toml(case))
            if done.returncode:
                return Asked(version, STOP, "", done.stderr.strip().rpartition("\n")[2])
            answers.append(json.loads(done.stdout.splitlines()[-1]))
        check_unanimous(f"{package} {version}", [(a["outcome"], a["signature"], a["digest"]) for a in answers])
        found = answers[0]
        if file and found["outcome"] in {"PASS", "FAIL"}:
            write_whole({make_folder(file.parent) / file.name: json.dumps(found)})
    reason = found["reason"] if found["outcome"] != "PASS" else ""
    return Asked(version, state_of(found["outcome"], found["signature"], sought), found["signature"], reason)


def _kept_in(question: Question, version: str) -> Path | None:
    """Where the verdict is kept; None on a subject file, as nobody knows what else it imports."""
    name, _, what = question.subject.partition(":")
    if name not in names():
        return None
    tree = tree_hash(listing(source_tree(what))) if name == "executorch-src" else ""
    folder = folder_of(question.package, version)
    packages = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    made_of = (folder / COMPLETE).read_text(encoding="utf-8")
    around = surroundings(question.case.stage, packages=packages, python_path=os.environ.get("PYTHONPATH", ""))
    asked = [case_to_toml(question.case), question.subject, tree, question.package, version, made_of]
    return verdict_file([*asked, question.repeat, around])


def search(versions: Sequence[str], answer: dict[str, Asked]) -> str | None:
    """Return the version to ask next between the last good and the first bad one known, or None at the end."""
    good = max((i for i, v in enumerate(versions) if v in answer and answer[v].state == GOOD), default=0)
    bad = min((i for i, v in enumerate(versions) if v in answer and answer[v].state == BAD and i > good), default=0)
    open_ones = [i for i in range(good + 1, bad) if versions[i] not in answer]
    return versions[open_ones[len(open_ones) // 2]] if open_ones else None


def show(question: Question, ends: tuple[str, str], sought: str = "") -> int:
    """Print the first bad version; 1 where versions that cannot be tested stand between the candidates.

    Raises:
        SearchEnded: an end is not what it is said to be, or the harness is broken.
        ValueError: no such version.
    """
    package = question.package
    everything = releases(package, question.wheels)
    good, bad = ends
    for version in ends:
        if version not in everything:
            raise ValueError(f"{package} has no version {version!r}; there are {', '.join(everything)}")
    low, high = everything.index(good), everything.index(bad)
    path = everything[low : high + 1] if low < high else everything[high : low + 1][::-1]
    answers: dict[str, Asked] = {}

    def put(version: str) -> Asked:
        nonlocal sought
        started = time.monotonic()
        found = answers[version] = ask(question, version, sought)
        print(f"  {package} {found.line()}  ({time.monotonic() - started:.1f} s)", flush=True)
        if found.state == STOP:
            raise SearchEnded(f"{package} {version}: {found.signature} {found.reason}")
        if found.state == BAD:
            sought = sought or found.signature
        return found

    if put(bad).state != BAD:
        raise SearchEnded(f"{package} {bad} (the bad end) does not fail as sought: {answers[bad].line()}; give another")
    if put(good).state != GOOD:
        raise SearchEnded(f"{package} {good} (the good end) is not good: {answers[good].line()}; give another")
    while (following := search(path, answers)) is not None:
        put(following)
    _tell(question, path, answers)
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    return 0 if path[last + 1] in answers and answers[path[last + 1]].state == BAD else 1


def _tell(question: Question, path: Sequence[str], answers: dict[str, Asked]) -> None:
    package = question.package
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    first = min(i for i, v in enumerate(path) if v in answers and answers[v].state == BAD and i > last)
    untested = [answers[v] for v in path[last + 1 : first]]
    for one in untested:
        print(f"  cannot be tested: {one.line()}")
    name = path[first] if not untested else f"one of {', '.join(path[last + 1 : first + 1])}"
    bad = answers[path[first]]
    print(f"first bad: {package} {name} ({bad.signature}); {path[last]} is right")
    print(f"  what:      {bad.reason}")
    recorded = replay.text(question.case, question.subject, bad.signature, run.versions())
    file = cache_directory() / "versions" / "by-hand" / replay.file_name(question.case.id)
    write_whole({make_folder(file.parent) / file.name: recorded})
    for what, version in (("good", path[last]), ("bad", path[first])):
        print(f"  {what} by hand: {commands.in_version(folder_of(package, version), file, question.seconds)}")


def main() -> int:
    """Judge the case on stdin in this environment, within SECONDS on SUBJECT, and print the verdict as JSON."""
    case, (seconds, subject) = case_from_toml(sys.stdin.read()), sys.argv[1:]
    with Worker(subject, float(seconds)) as worker:
        verdict = judge(case, worker.run(case), worker.subject)
    told = {"outcome": verdict.outcome, "signature": verdict.signature, "reason": verdict.reason}
    print(json.dumps(told | {"digest": verdict.digest}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
