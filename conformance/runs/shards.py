"""Generated programs in the suite: a fixed number of seeded shards, one verdict for each.

A shard draws the same programs whatever the number of workers. It passes when all its programs do; the
first that fails is shrunk, and the smallest program that fails in the same way is the failure. Where a
subject has known failures, their signatures do not count here: one of its programs may have several.

Source: docs/contract.md section 5.
"""

import hashlib
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.case.case import Case
from conformance.files import make_folder, write_whole
from conformance.harness.worker import Worker
from conformance.results import replay, timing
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, XFAIL, Verdict
from conformance.runs import run

STAGE = "MATCH"
SHARDS = 10
#: Programs of a whole run, by level.
PROGRAMS = {"smoke": 0, "gate": 500, "deep": 20_000}


@dataclass(frozen=True)
class Shard:
    """``programs`` programs that the seed and the shard's number stand for."""

    seed: int
    number: int
    programs: int

    @property
    def id(self) -> str:
        """The shard's name in verdicts."""
        return f"gen/seed-{self.seed}/shard-{self.number}/{self.programs}-programs"


def shards(level: str, stages: Sequence[str], seed: int) -> tuple[Shard, ...]:
    """Return the shards of a run; none where its level or its stages (empty: all) leave them out.

    >>> [shard.id for shard in shards("gate", (), 7)][:2]
    ['gen/seed-7/shard-0/50-programs', 'gen/seed-7/shard-1/50-programs']
    """
    count = PROGRAMS[level] // SHARDS
    if not count or (stages and STAGE not in stages):
        return ()
    return tuple(Shard(seed, number, count) for number in range(SHARDS))


def run_shard(
    worker: Worker, shard: Shard, report: Path, versions: Mapping[str, str], known: Collection[str] = ()
) -> tuple[Case | None, Verdict]:
    """Run and judge a shard's programs until one fails.

    Each program is in ``report``/journal, as a replay file, before it runs; the file goes when the shard
    is done, so one that is there names what a killed run was doing.

    Args:
        worker: serves the subject.
        shard: what to draw.
        report: the report's directory; the failure goes to ``report``/replay.
        versions: to record in replay files.
        known: signatures of known failures.

    Returns:
        The smallest program that fails as the first failing one does (None: all passed), and the shard's
        verdict: PASS, FAIL or ERROR; UNSUPPORTED where the subject takes no program; XFAIL where the only
        failures are known.
    """
    from conformance.generate.search import search  # noqa: PLC0415 - Hypothesis, only where programs are drawn

    seen: Counter[str] = Counter()
    excused: Counter[str] = Counter()
    reasons: list[str] = []
    digests, seconds = hashlib.sha256(), 0.0
    first: dict[str, str] = {}
    building = 0.0
    journal = make_folder(report / "journal") / f"shard-{shard.number}.toml"

    def check(case: Case) -> str:
        nonlocal building, seconds
        write_whole({journal: replay.text(case, worker.subject, "", versions)})
        verdict = run.timed(worker, case)
        if worker.first and not first:
            first[timing.FIRST] = f"{verdict.seconds:.4f}"
        if seen[FAIL]:
            return verdict.signature  # it is being shrunk
        seconds += verdict.seconds
        building += 0.0 if worker.first else float(verdict.facts.get(timing.BUILDING, 0))
        digests.update(verdict.digest.encode())
        if verdict.outcome == UNSUPPORTED:
            reasons.append(verdict.reason)
        expected = verdict.signature in known
        excused[verdict.signature] += expected
        seen[XFAIL if expected else FAIL if verdict.signature else verdict.outcome] += 1
        return verdict.signature

    found = search(check, seed=shard.seed, shard=shard.number, count=shard.programs, ignore=known)
    journal.unlink(missing_ok=True)
    facts = {"programs": str(seen.total()), "seed": str(shard.seed), "known_failures": str(seen[XFAIL]), **first}
    facts[timing.BUILDING] = f"{building:.4f}"
    whole = Verdict(shard.id, STAGE, worker.subject, PASS, seconds=round(seconds, 4), facts=facts, source="5.3")
    if found is not None:
        smallest = run.run_case(worker, found.case, report, versions)
        if smallest.signature != found.signature:
            told = f"{found.case.id} failed once with {found.signature} and then with {smallest.signature or 'nothing'}"
            return found.case, replace(whole, outcome=ERROR, signature=found.signature, reason=told)
        reason = f"{smallest.reason} [{found.case.id}, shrunk; seed {shard.seed}, program {seen.total()} of {shard.id}]"
        both = {**smallest.facts, **facts}
        return found.case, replace(smallest, case=shard.id, reason=reason, seconds=whole.seconds, facts=both)
    whole = replace(whole, digest=digests.hexdigest())
    if seen[UNSUPPORTED] == seen.total():
        return None, replace(whole, outcome=UNSUPPORTED, reason=reasons[0], digest="")
    if seen[XFAIL]:
        told = ", ".join(f"{name} {count}" for name, count in excused.most_common() if count)
        reason = f"{seen[XFAIL]} of {seen.total()} programs fail as some catalogue case is known to: {told}"
        return None, replace(whole, outcome=XFAIL, reason=reason, defect="generated-programs")
    return None, whole


def summed(verdicts: Iterable[Verdict]) -> list[str]:
    """Return the line that counts generated programs; none where there are no shards."""
    there = [v for v in verdicts if v.case.startswith("gen/seed-")]
    if not there:
        return []
    programs, known = (sum(int(v.facts.get(name, 0)) for v in there) for name in ("programs", "known_failures"))
    seeds = ", ".join(dict.fromkeys(v.facts.get("seed", "?") for v in there))
    excused = f", {known} of them known failures" if known else ""
    return [f"generated programs: {programs}{excused}; seed {seeds}; {len(there)} shards, each counted as one test"]
