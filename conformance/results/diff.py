"""Two runs compared: which cases changed outcome, and which changed bits while still passing.

Source: docs/reading-a-report.md, "Comparing two runs".
"""

from collections import Counter
from dataclasses import dataclass, replace

from conformance.results.causes import grouped, others
from conformance.results.verdict import PASS, UNEXPECTED, UNSUPPORTED, XFAIL, Stream, Verdict


@dataclass(frozen=True)
class Diff:
    """What changed from the old run to the new one, by (subject-independent) case id.

    ``new_failures``: unexpected now, and before either not, or with another signature, or not run; and what was judged
    before and is UNSUPPORTED now, or a subject would turn a failure green by declining to be judged; and a shard of
    generated programs that excuses a failure which it did not.
    ``fixed``: unexpected before and not now. ``other``: any other change of outcome. ``bits``: passes in
    both, with another digest of what the subject answered. ``gone`` and ``added``: in one run only. ``lost``: whether
    both runs say that they were asked the same, so that what is gone counts as a new failure.
    """

    new_failures: tuple[tuple[Verdict | None, Verdict], ...]
    fixed: tuple[tuple[Verdict, Verdict], ...]
    other: tuple[tuple[Verdict, Verdict], ...]
    bits: tuple[tuple[Verdict, Verdict], ...]
    gone: tuple[str, ...]
    added: tuple[str, ...]
    lost: bool = False

    @property
    def failed(self) -> bool:
        """Whether something is worse than it was."""
        return bool(self.new_failures or (self.lost and self.gone))


def compare(old: Stream, new: Stream) -> Diff:
    """Compare two verdict streams, which may be of two subjects or two versions of one."""
    before, after = ({v.case: v for v in stream.verdicts} for stream in (old, new))
    failures: list[tuple[Verdict | None, Verdict]] = []
    fixed, other, bits = [], [], []
    asked = [[stream.header.get(n) for n in ("revision", "level", "selection")] for stream in (old, new)]
    alike = asked[0] == asked[1] and None not in asked[0] and "unknown" not in asked[0]
    for case, now in after.items():
        then = before.get(case)
        was_bad = then is not None and then.outcome in UNEXPECTED
        if now.outcome in UNEXPECTED:
            if then is None or not was_bad or then.signature != now.signature:
                failures.append((then, now))
        elif then is None:
            continue
        elif now.outcome == UNSUPPORTED and then.outcome != UNSUPPORTED:
            failures.append((then, now))
        elif was_bad:
            fixed.append((then, now))
        elif more := _newly_excused(then, now, alike=alike):
            failures.append((then, replace(now, reason=f"programs are excused that were not: {more}")))
        elif then.outcome != now.outcome or (now.outcome == XFAIL and then.signature != now.signature):
            other.append((then, now))
        elif now.outcome == PASS and then.digest != now.digest:
            bits.append((then, now))
    gone = tuple(case for case in before if case not in after)
    added = tuple(case for case in after if case not in before)
    lost = alike and not new.truncated
    return Diff(tuple(failures), tuple(fixed), tuple(other), tuple(bits), gone, added, lost)


def _newly_excused(then: Verdict, now: Verdict, *, alike: bool) -> str:
    """What a shard excuses that it did not: another signature; where both runs drew ``alike``, more programs too."""
    before, after = (
        Counter({str(name): n for name, n in counts.items() if isinstance(n, int)})
        if isinstance(counts, dict)
        else Counter()
        for counts in (verdict.facts.get("excused", {}) for verdict in (then, now))
    )
    more = after - before if alike else Counter({name: n for name, n in after.items() if name not in before})
    return ", ".join(f"{signature} {count}" for signature, count in more.most_common())


def lines(diff: Diff, *, every: bool = False) -> list[str]:
    """Return what ``q4gsw diff`` prints: new failures by cause, or with ``every`` each."""
    text = []
    for there in grouped(diff.new_failures, lambda pair: (named(pair[0]), named(pair[1]))):
        for then, now in there if every else there[:1]:
            text.append(f"new failure: {now.case}: {named(then)} -> {named(now)}: {now.reason}")
        if not every and len(there) > 1:
            text.append(f"  {others([now.case for _, now in there])}")
    text += [f"fixed: {now.case}: {named(then)} -> {named(now)}" for then, now in diff.fixed]
    text += [f"changed: {now.case}: {named(then)} -> {named(now)}" for then, now in diff.other]
    text += [f"other bits, still passing: {now.case}" for _then, now in diff.bits]
    why = ", although both runs were asked the same" if diff.lost else ""
    text += [f"not run any more: {case}{why}" for case in diff.gone]
    text += [f"new case: {case}" for case in diff.added]
    counts = {
        "new failures": diff.new_failures,
        "fixed": diff.fixed,
        "changed": diff.other,
        "other bits": diff.bits,
        "gone": diff.gone,
        "added": diff.added,
    }
    return [*text, " ".join(f"{name}:{len(there)}" for name, there in counts.items())]


def named(verdict: Verdict | None) -> str:
    """Return an outcome with its signature, as lines name it."""
    if verdict is None:
        return "not run"
    return f"{verdict.outcome} ({verdict.signature})" if verdict.signature else verdict.outcome
