"""A subject judged with released versions of executorch or torchao: which there are, one of them judged, the gate.

Source: docs/versions.md.
"""

import itertools
import shlex
from collections.abc import Sequence
from pathlib import Path

from packaging.version import Version

from conformance.results.expectations import Expectations
from conformance.results.verdict import UNSUPPORTED, counts, read
from conformance.sources.releases import ROOT, environment, folder_of, importing, in_environment, releases
from conformance.versions.matrix import Judged, as_judged, news


class RunBroke(RuntimeError):  # noqa: N818 - it says what happened
    """A version's run ended without all its verdicts; one line with the reason."""


def chosen(package: str, wheels: Path | None, *, versions: str = "", since: str = "") -> list[str]:
    """Return the versions to judge, oldest first: all there are, some ("A,B"), or those from one on.

    Raises:
        ValueError: one of them does not exist, or none do; names those there are.
    """
    named = {Version(v.strip()) for v in versions.split(",") if v.strip()}
    first = Version(since) if since else None
    there = releases(package, wheels)
    if unknown := sorted(named - {Version(v) for v in there}):
        raise ValueError(f"{package} has no version {str(unknown[0])!r}; there are {', '.join(there)}")
    chosen = [v for v in there if (not named or Version(v) in named) and (first is None or Version(v) >= first)]
    if not chosen:
        raise ValueError(f"{package} has no version from {since} on; there are {', '.join(there)}")
    return chosen


def judge_version(package: str, version: str, wheels: Path | None, words: Sequence[str], folder: Path) -> Judged:
    """Run the suite in the version's environment: ``conformance run WORDS`` with its report in ``folder``.

    Raises:
        Unsatisfiable: the version cannot be had with what is here, or does not import.
        RunBroke: the run ended without all its verdicts.
    """
    python = environment(package, version, wheels)
    importing(python)
    done = in_environment(python, ["-m", "conformance", "run", "--quiet", "--report", str(folder), *words])
    last = done.stderr.strip().rpartition("\n")[2]
    if done.returncode not in {0, 1}:
        raise RunBroke(f"the run ended with exit code {done.returncode}: {last}")
    try:
        stream = read(folder / "verdicts.jsonl")
    except ValueError as error:
        raise RunBroke(f"the run left no verdicts: {last}") from error
    if stream.truncated:
        raise RunBroke(f"the run stopped after {len(stream.verdicts)} verdicts: {last}")
    if (ran := stream.header["versions"][package]) != version:
        raise RunBroke(f"the run used {package} {ran}")
    return Judged(version, stream)


def by_hand(package: str, judged: Sequence[Judged], words: Sequence[str]) -> list[str]:
    """Return a command for each version whose verdicts differ from a neighbour's; exit code 0 where all is right."""
    answers = {j.version: [(v.outcome, v.signature) for v in as_judged(j.stream).verdicts] for j in judged}
    pairs = [pair for pair in itertools.pairwise(answers) if answers[pair[0]] != answers[pair[1]]]
    changed = [v for v in answers if any(v in pair for pair in pairs)]
    run = f"-m conformance run --no-expectations {shlex.join(words)}"
    pythons = {v: shlex.quote(str(folder_of(package, v) / "bin/python")) for v in changed}
    return [f"{v} by hand: (cd {shlex.quote(str(ROOT))} && {python} {run})" for v, python in pythons.items()]


def gate(package: str, pinned: str, judged: Sequence[Judged], expected: Expectations) -> tuple[list[str], bool]:
    """Return a line for each version from ``pinned`` on, with what is unexpected, and whether all is as expected.

    ``expected``: what holds for the pinned version; a newer one that fails in the same way breaks nothing.
    """
    lines, good = [], True
    for one in judged:
        if Version(one.version) < Version(pinned):
            continue
        unexpected = news(one.stream.verdicts, expected)
        supported = len(one.stream.verdicts) - counts(one.stream.verdicts)[UNSUPPORTED]
        good &= not unexpected and supported > 0
        line = "as expected" if supported else "nothing was judged: every case is unsupported"
        lines.append(f"gate: {package} {one.version}: {f'{len(unexpected)} unexpected' if unexpected else line}")
        lines += [f"  {v.outcome} {v.case}  {v.signature}  {' '.join(v.reason.split())}" for v in unexpected]
    older = f"versions before {pinned} are shown, not gated"
    return [*lines, f"gate: {older}" if lines else f"gate: no version from {pinned} on was judged; {older}"], good
