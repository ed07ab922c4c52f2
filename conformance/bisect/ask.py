"""Asking one case several times: an answer counts only when all of them agree.

Source: docs/bisecting.md, "Flaky subjects".
"""

from collections.abc import Sequence

from conformance.bisect.commits import SearchEnded
from conformance.bisect.search import STOP, disagreement, state_of
from conformance.case.case import Case
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results.verdict import Verdict


def ask(worker: Worker, case: Case, repeat: int) -> Verdict:
    """Return the verdict on which ``repeat`` runs of the case agree.

    Raises:
        SearchEnded: they do not.
    """
    verdicts = [judge(case, worker.run(case), worker.subject) for _ in range(repeat)]
    check_unanimous(case.id, [(v.outcome, v.signature, v.digest) for v in verdicts])
    return verdicts[0]


def check_unanimous(what: str, answers: Sequence[tuple[str, str, str]]) -> None:
    """Check that all answers (outcome, signature, digest of the result) are the same.

    Raises:
        SearchEnded: they are not; lists them in the order in which they came.
    """
    if said := disagreement(answers):
        raise SearchEnded(f"{what} is flaky: {said}")


def check_harness(verdict: Verdict) -> None:
    """Check that a verdict says something of the subject.

    Raises:
        SearchEnded: the machine lacks something, or the harness is at fault; says what.
    """
    if state_of(verdict.outcome, verdict.signature, "") == STOP:
        raise SearchEnded(f"{verdict.case}: {verdict.signature}: {verdict.reason}: this is not the subject's")
