"""One case asked several times: in one process, and once in a new one.

Source: docs/runtime.md, "Determinism".
"""

from conformance.case.case import Case
from conformance.harness.observation import Arrays, File, Graph, Observation
from conformance.harness.worker import Worker
from conformance.judging.judge import judge, verdict_on
from conformance.judging.repeat import Answer, differences
from conformance.results.verdict import FAIL, PASS, Verdict


def again(worker: Worker, case: Case, first: Observation, verdict: Verdict, times: int) -> Verdict:
    """Return the verdict on a case that is asked ``times`` times in all, the last time in a new process.

    Answers that differ are a failure of their own; else the verdict is ``verdict``, on the ``first`` answer.
    """
    if verdict.outcome not in {PASS, FAIL} or not _outputs(first):
        return verdict
    observations = [first, *(worker.run(case) for _ in range(times - 2))]
    worker.close()
    observations.append(worker.run(case))
    for other in observations[1:]:
        if not _outputs(other):  # it answered once, and not again
            return judge(case, other, worker.subject)
    mismatch = differences([_outputs(o) for o in observations], [0] * (times - 1) + [1])
    if mismatch is None:
        return verdict
    facts = getattr(first, "facts", None)
    return verdict_on(case, worker.subject, FAIL, mismatch, digest=verdict.digest, facts=facts)


def _outputs(observation: Observation) -> Answer:
    if isinstance(observation, Arrays):
        return observation.arrays
    return observation.outputs if isinstance(observation, Graph | File) else {}
