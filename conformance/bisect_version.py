"""Bisection over released versions: each is asked in an environment of its own.

A version whose companions cannot be satisfied beside this environment's torch is listed as such and skipped.

Source: docs/bisecting.md.
"""

from __future__ import annotations

import hashlib
import json
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conformance.bisect_ask import check_unanimous
from conformance.bisect_commit import SearchEnded
from conformance.bisect_search import BAD, GOOD, SKIP, STOP, state_of, write_whole
from conformance.bisect_step import suite_hash
from conformance.case import Case
from conformance.judge import judge
from conformance.source_tree import cache_directory
from conformance.toml_io import case_from_toml, case_to_toml
from conformance.version_environments import (
    COMPLETE,
    Unsatisfiable,
    environment,
    folder_of,
    importing,
    in_environment,
    releases,
)
from conformance.worker import Worker


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


def ask(
    case: Case, package: str, version: str, wheels: Path | None, sought: str, seconds: float, repeat: int = 1
) -> Asked:
    """Judge ``case`` on subject "executorch" in the environment of ``version``; a verdict is kept for the next search.

    Raises:
        SearchEnded: ``repeat`` runs do not agree.
    """
    try:
        python = environment(package, version, wheels)
    except Unsatisfiable as error:
        return Asked(version, SKIP, "", str(error))
    made_of = (folder_of(package, version) / COMPLETE).read_text(encoding="utf-8")
    asked = json.dumps([case_to_toml(case), package, version, made_of, repeat, suite_hash()])
    kept = cache_directory() / "verdicts" / f"{hashlib.sha256(asked.encode()).hexdigest()}.json"
    if kept.is_file():
        found = json.loads(kept.read_text(encoding="utf-8"))
    else:
        try:
            importing(python)
        except Unsatisfiable as error:
            return Asked(version, SKIP, "", str(error))
        answers = []
        for _ in range(repeat):
            done = in_environment(python, ["conformance.bisect_version", str(seconds)], case_to_toml(case))
            if done.returncode:
                return Asked(version, STOP, "", done.stderr.strip().rpartition("\n")[2])
            answers.append(json.loads(done.stdout.splitlines()[-1]))
        check_unanimous(f"{package} {version}", [(a["outcome"], a["signature"]) for a in answers])
        found = answers[0]
        if found["outcome"] in {"PASS", "FAIL"}:
            write_whole(kept, json.dumps(found))
    reason = found["reason"] if found["outcome"] != "PASS" else ""
    return Asked(version, state_of(found["outcome"], found["signature"], sought), found["signature"], reason)


def search(versions: Sequence[str], answer: dict[str, Asked]) -> str | None:
    """Return the version to ask next between the last good and the first bad one known, or None at the end."""
    good = max((i for i, v in enumerate(versions) if v in answer and answer[v].state == GOOD), default=0)
    bad = min((i for i, v in enumerate(versions) if v in answer and answer[v].state == BAD and i > good), default=0)
    open_ones = [i for i in range(good + 1, bad) if versions[i] not in answer]
    return versions[open_ones[len(open_ones) // 2]] if open_ones else None


def show(
    case: Case,
    package: str,
    ends: tuple[str, str],
    wheels: Path | None,
    sought: str = "",
    seconds: float = 60.0,
    repeat: int = 1,
) -> int:
    """Print the first bad version; 1 where versions that cannot be tested stand between the candidates.

    Raises:
        SearchEnded: an end is not what it is said to be, or the harness is broken.
        ValueError: no such version.
    """
    everything = releases(package, wheels)
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
        found = answers[version] = ask(case, package, version, wheels, sought, seconds, repeat)
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
    _tell(case, package, path, answers)
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    return 0 if path[last + 1] in answers and answers[path[last + 1]].state == BAD else 1


def _tell(case: Case, package: str, path: Sequence[str], answers: dict[str, Asked]) -> None:
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    first = min(i for i, v in enumerate(path) if v in answers and answers[v].state == BAD and i > last)
    untested = [answers[v] for v in path[last + 1 : first]]
    for one in untested:
        print(f"  cannot be tested: {one.line()}")
    name = path[first] if not untested else f"one of {', '.join(path[last + 1 : first + 1])}"
    print(f"first bad: {package} {name} ({answers[path[first]].signature}); {path[last]} is right")
    print(f"  what:      {answers[path[first]].reason}")
    file = cache_directory() / "versions" / f"{case.id.replace('/', '__')}.case.toml"
    write_whole(file, case_to_toml(case))
    for what, version in (("good", path[last]), ("bad", path[first])):
        python = folder_of(package, version) / "bin" / "python"
        print(
            f"  {what} by hand: {shlex.quote(str(python))} -m conformance.bisect_version 60 < {shlex.quote(str(file))}"
        )


def main() -> int:
    """Judge the case on stdin in this environment and print the verdict as JSON."""
    case = case_from_toml(sys.stdin.read())
    with Worker("executorch", float(sys.argv[1])) as worker:
        verdict = judge(case, worker.run(case), "executorch")
    print(json.dumps({"outcome": verdict.outcome, "signature": verdict.signature, "reason": verdict.reason}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
