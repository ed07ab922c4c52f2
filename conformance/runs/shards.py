"""Generated programs in the suite: a fixed number of seeded shards, one verdict for each.

A shard draws the same programs whatever the number of workers. It passes when all its programs do; the
first that fails is shrunk, and the smallest program that fails in the same way is the failure. A program that fails as
a known failure says, and of which the entry's condition on programs holds, is excused, and another one is drawn for it.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from conformance.case.case import LEVELS, Case
from conformance.files import make_folder, write_whole
from conformance.harness.worker import Worker
from conformance.results import replay, timing
from conformance.results.verdict import ERROR, PASS, UNSUPPORTED, XFAIL, Verdict
from conformance.runs import run

SHARDS = 10
#: Programs of a whole run, by level.
PROGRAMS = {"smoke": 0, "gate": 500, "deep": 20_000}
#: Programs that are lowered, and then asked at LOWER and RUN, by level.
LOWERED = {"smoke": 0, "gate": 0, "deep": 1_000}
#: Shards at least, and programs of a shard before there are more: each shard begins with the same simplest program.
_LEAST, _MOST = 2, 50
#: Whether a program is excused for a signature.
Excuses = Callable[[Case, str], bool]


@dataclass(frozen=True)
class Shard:
    """``programs`` programs that the seed and the shard's number stand for.

    ``stage`` "RUN": each is lowered, and asked at LOWER and RUN.
    """

    seed: int
    number: int
    programs: int
    stage: str = "MATCH"
    #: Which shards there are depends on the level already.
    level: ClassVar = LEVELS[0]

    @property
    def contract(self) -> str:
        """The section that its programs ask first."""
        return "5.7" if self.stage == "RUN" else "5.3"

    @property
    def name(self) -> str:
        """Its name among those of its seed, and of its files."""
        return f"{'lowered-' if self.stage == 'RUN' else ''}shard-{self.number}"

    @property
    def id(self) -> str:
        """The shard's name in verdicts."""
        return f"gen/seed-{self.seed}/{self.name}/{self.programs}-programs"

    @staticmethod
    def named(name: str) -> "Shard | None":
        """Return the shard with that id, of any seed and level, or None.

        >>> Shard.named("gen/seed-7/shard-0/50-programs")
        Shard(seed=7, number=0, programs=50, stage='MATCH')
        """
        found = re.fullmatch(r"gen/seed-(\d+)/(lowered-)?shard-(\d)/(\d+)-programs", name)
        if not found:
            return None
        return Shard(int(found[1]), int(found[3]), int(found[4]), "RUN" if found[2] else "MATCH")


def shards(level: str, stages: Sequence[str], seed: int) -> tuple[Shard, ...]:
    """Return the shards of a run; none where its level or its stages (empty: all) leave them out.

    >>> [shard.id for shard in shards("gate", (), 7)][:2]
    ['gen/seed-7/shard-0/50-programs', 'gen/seed-7/shard-1/50-programs']
    """
    drawn = []
    for stage, programs in (("MATCH", PROGRAMS[level]), ("RUN", LOWERED[level])):
        if programs and (not stages or stage in stages):
            count = min(SHARDS, max(_LEAST, programs // _MOST))
            drawn += [Shard(seed, number, programs // count, stage) for number in range(count)]
    return tuple(drawn)


def run_shard(
    worker: Worker,
    shard: Shard,
    report: Path,
    excuses: Excuses = lambda _case, _signature: False,
    examples: Path | None = None,
) -> tuple[Case | None, Verdict]:
    """Run and judge a shard's programs until one fails that is not excused.

    Each program is in ``report``/journal, as a replay file, before it runs; the file goes when the shard is done, so
    one that is there names what a killed run was doing. ``examples`` is Hypothesis's example database, if any.

    Returns:
        The smallest program that fails as the first failing one does (None: all passed), and the shard's verdict: PASS,
        FAIL or ERROR; UNSUPPORTED where the subject takes no program; XFAIL where the only failures are known.
    """
    from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: PLC0415 - only where programs are drawn

    from conformance.generate.search import search  # noqa: PLC0415 - the same

    journal = make_folder(report / "journal") / f"{shard.name}.toml"
    verdicts: list[Verdict] = []
    excused: list[Verdict] = []
    stages = ("LOWER", "RUN") if shard.stage == "RUN" else (shard.stage,)

    def check(case: Case) -> str:
        seconds = 0.0
        for stage in stages:
            asked = replace(case, stage=stage)
            write_whole({journal: replay.text(asked, worker.subject, "", run.versions())})
            verdict = run.timed(worker, asked)
            seconds += verdict.seconds
            if verdict.signature:
                break
        verdict = replace(verdict, seconds=seconds)
        if not verdicts or verdicts[-1] in excused or not verdicts[-1].signature:  # what follows a failure is shrinking
            verdicts.append(verdict)
            if verdict.signature and excuses(case, verdict.signature):
                excused.append(verdict)
        return verdict.signature

    database = DirectoryBasedExampleDatabase(examples / shard.name) if examples else None
    seed = f"{shard.seed}/{shard.number}"
    smallest = search(check, seed=seed, count=shard.programs, excused=excuses, examples=database, stage=shard.stage)
    journal.unlink(missing_ok=True)
    whole, last = _whole(shard, verdicts, excused), verdicts[-1]
    if smallest is not None:
        smallest = replace(smallest, stage=last.stage)
    if smallest is None:
        return None, whole
    verdict = run.run_case(worker, smallest, report)
    if verdict.signature != last.signature:
        again = verdict.signature or "nothing"
        reason = f"{smallest.id} failed once with {last.signature} and then with {again}"
        return smallest, replace(whole, outcome=ERROR, signature=last.signature, reason=reason, digest="")
    place = f"{smallest.id}, shrunk; seed {shard.seed}, program {len(verdicts)} of {shard.id}"
    facts = {**verdict.facts, **whole.facts}
    reason = f"{verdict.reason} [{place}]"
    return smallest, replace(verdict, case=shard.id, reason=reason, seconds=whole.seconds, facts=facts)


def _whole(shard: Shard, verdicts: Sequence[Verdict], pardoned: Sequence[Verdict]) -> Verdict:
    """The verdict on a shard in which nothing fails that is not excused."""
    excused = Counter(verdict.signature for verdict in pardoned)
    first = [verdict.facts[timing.FIRST] for verdict in verdicts if timing.FIRST in verdict.facts]
    building = sum(float(v.facts.get(timing.BUILDING, 0)) for v in verdicts if timing.FIRST not in v.facts)
    facts: dict[str, Any] = {"programs": len(verdicts), "seed": shard.seed, "known_failures": excused.total()}
    facts |= {"excused": dict(excused)} if excused else {}
    facts |= {timing.BUILDING: round(building, 4)} | ({timing.FIRST: first[0]} if first else {})
    seconds = round(sum(verdict.seconds for verdict in verdicts), 4)
    whole = Verdict(
        shard.id, shard.stage, verdicts[0].subject, PASS, seconds=seconds, facts=facts, contract=shard.contract
    )
    if all(verdict.outcome == UNSUPPORTED for verdict in verdicts):
        return replace(whole, outcome=UNSUPPORTED, reason=verdicts[0].reason)
    digest = hashlib.sha256("".join(verdict.digest for verdict in verdicts).encode()).hexdigest()
    if not excused:
        return replace(whole, digest=digest)
    counts = ", ".join(f"{signature} {count}" for signature, count in excused.most_common())
    reason = f"{excused.total()} of {len(verdicts)} programs fail as some catalogue case is known to: {counts}"
    if len(verdicts) - len(pardoned) < shard.programs:
        reason = f"{reason}; only {len(verdicts) - len(pardoned)} others were found"
    return replace(whole, outcome=XFAIL, reason=reason, defect="generated-programs", digest=digest)


def summed(verdicts: Iterable[Verdict]) -> list[str]:
    """Return the line that counts generated programs; none where there are no shards."""
    judged = [v for v in verdicts if v.case.startswith("gen/seed-")]
    if not judged:
        return []
    programs, known = (sum(int(v.facts.get(name, 0)) for v in judged) for name in ("programs", "known_failures"))
    seeds = ", ".join(dict.fromkeys(str(v.facts.get("seed", "?")) for v in judged))
    excused = f", {known} of them known failures" if known else ""
    return [f"generated programs: {programs}{excused}; seed {seeds}; {len(judged)} shards, each counted as one test"]
