"""Generated programs in the suite: a fixed number of seeded shards, one verdict for each.

A shard draws the same programs whatever the number of workers. It passes when all its programs do; the
first that fails is shrunk, and the smallest program that fails in the same way is the failure. Where a
subject has known failures, their signatures do not count here: one of its programs may have several.
"""

import hashlib
import re
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from conformance.case.case import LEVELS, Case
from conformance.files import make_folder, write_whole
from conformance.harness.worker import Worker
from conformance.results import replay, timing
from conformance.results.verdict import ERROR, PASS, UNSUPPORTED, XFAIL, Verdict
from conformance.runs import run

SHARDS = 10
#: Programs of a whole run, by level.
PROGRAMS = {"smoke": 0, "gate": 500, "deep": 20_000}


@dataclass(frozen=True)
class Shard:
    """``programs`` programs that the seed and the shard's number stand for."""

    seed: int
    number: int
    programs: int
    stage: ClassVar = "MATCH"
    contract: ClassVar = "5.3"
    #: Which shards there are depends on the level already.
    level: ClassVar = LEVELS[0]

    @property
    def id(self) -> str:
        """The shard's name in verdicts."""
        return f"gen/seed-{self.seed}/shard-{self.number}/{self.programs}-programs"

    @staticmethod
    def named(name: str) -> "Shard | None":
        """Return the shard with that id, of any seed and level, or None.

        >>> Shard.named("gen/seed-7/shard-0/50-programs")
        Shard(seed=7, number=0, programs=50)
        """
        found = re.fullmatch(r"gen/seed-(\d+)/shard-(\d)/(\d+)-programs", name)
        return Shard(*map(int, found.groups())) if found else None


def shards(level: str, stages: Sequence[str], seed: int) -> tuple[Shard, ...]:
    """Return the shards of a run; none where its level or its stages (empty: all) leave them out.

    >>> [shard.id for shard in shards("gate", (), 7)][:2]
    ['gen/seed-7/shard-0/50-programs', 'gen/seed-7/shard-1/50-programs']
    """
    count = PROGRAMS[level] // SHARDS
    if not count or (stages and Shard.stage not in stages):
        return ()
    return tuple(Shard(seed, number, count) for number in range(SHARDS))


def run_shard(
    worker: Worker,
    shard: Shard,
    report: Path,
    known: Collection[str] = (),
    examples: Path | None = None,
) -> tuple[Case | None, Verdict]:
    """Run and judge a shard's programs until one fails with a signature that is not ``known``.

    Each program is in ``report``/journal, as a replay file, before it runs; the file goes when the shard is done, so
    one that is there names what a killed run was doing. ``examples`` is Hypothesis's example database, if any.

    Returns:
        The smallest program that fails as the first failing one does (None: all passed), and the shard's verdict: PASS,
        FAIL or ERROR; UNSUPPORTED where the subject takes no program; XFAIL where the only failures are known.
    """
    from hypothesis.database import DirectoryBasedExampleDatabase  # noqa: PLC0415 - only where programs are drawn

    from conformance.generate.search import search  # noqa: PLC0415 - the same

    journal = make_folder(report / "journal") / f"shard-{shard.number}.toml"
    verdicts: list[Verdict] = []

    def check(case: Case) -> str:
        write_whole({journal: replay.text(case, worker.subject, "", run.versions())})
        verdict = run.timed(worker, case)
        if not verdicts or verdicts[-1].signature in {"", *known}:  # what follows a failure is shrinking
            verdicts.append(verdict)
        return verdict.signature

    database = DirectoryBasedExampleDatabase(examples / f"shard-{shard.number}") if examples else None
    seed = f"{shard.seed}/{shard.number}"
    smallest = search(check, seed=seed, count=shard.programs, known=known, examples=database)
    journal.unlink(missing_ok=True)
    whole, last = _whole(shard, verdicts, known), verdicts[-1]
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


def _whole(shard: Shard, verdicts: Sequence[Verdict], known: Collection[str]) -> Verdict:
    """The verdict on a shard in which nothing fails that is not known."""
    excused = Counter(verdict.signature for verdict in verdicts if verdict.signature in known)
    first = [verdict.facts[timing.FIRST] for verdict in verdicts if timing.FIRST in verdict.facts]
    building = sum(float(v.facts.get(timing.BUILDING, 0)) for v in verdicts if timing.FIRST not in v.facts)
    facts = {"programs": len(verdicts), "seed": shard.seed, "known_failures": excused.total()}
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
