"""One case: run, judged, and what a failure prints; and what a run depends on."""

import functools
import importlib.metadata
import os
import platform
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from conformance.case.case import Case
from conformance.case.catalogue import load
from conformance.files import q4gsw
from conformance.harness.errors import one_line
from conformance.harness.subject import option_for, resolved
from conformance.harness.worker import Worker
from conformance.judging.judge import judge
from conformance.results import expectations, replay, timing
from conformance.results.expectations import Expectations
from conformance.results.verdict import ERROR, FAILED, Verdict
from conformance.runs.repeat import again
from conformance.sources import git
from conformance.sources.git import GitProblem

#: Whoever owns a checkout (in a container often another user), its code is about to be imported anyway.
_ANY_OWNER = ("-c", "safe.directory=*")
_PACKAGES = ("torch", "torchao", "executorch", "numpy", "hypothesis", "vulkan")
#: Other implementations: named where they are installed.
_PEERS = ("ai-edge-litert", "ggml-python", "mlx", "onnxruntime", "openvino", "wgpu")


@functools.cache
def versions() -> dict[str, str]:
    """Return the versions that a verdict depends on: Python and the packages under judgement."""
    found = {"python": platform.python_version()}
    for name in (*_PACKAGES, *_PEERS):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            if name in _PACKAGES:
                found[name] = "not installed"
    return found


def revision() -> str:
    """Return the suite's own git revision; outside a checkout $Q4GSW_REVISION, or "unknown"."""
    try:
        return git.text(Path(__file__).parent, *_ANY_OWNER, "rev-parse", "HEAD")
    except GitProblem:
        return os.environ.get("Q4GSW_REVISION", "unknown")


def subject_origin(subject: str) -> dict[str, str]:
    """Return the checkout that a subject file is in, its revision, and FILE.py:Class there; {} for other subjects."""
    path, colon, name = subject.rpartition(":")
    if not colon or not path.endswith(".py"):
        return {}
    file = Path(path).resolve()
    try:
        top, found = git.text(file.parent, *_ANY_OWNER, "rev-parse", "--show-toplevel", "HEAD").splitlines()
    except GitProblem:
        top, found = "unknown", "unknown"
    inside = file.relative_to(top).as_posix() if file.is_relative_to(top) else str(file)
    return {"subject_repository": top, "subject_revision": found, "subject_file": f"{inside}:{name}"}


def header(subject: str, device: str, level: str, selection: Sequence[str] = ()) -> dict[str, object]:
    """Return the header line of a verdict stream; ``selection`` is what chose the cases beside the level."""
    return {
        "subject": resolved(subject),  # a branch moves; what it stood for then is what --from needs
        **subject_origin(subject),
        "device": device or "default",
        "level": level,
        "selection": " ".join(filter(None, selection)),
        "revision": revision(),
        "versions": versions(),
        "started": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def expected_of(subject: str, file: str = "", *, off: bool = False) -> Expectations:
    """Return what is expected of ``subject``: from ``file``, else from the file of its name, else nothing.

    Raises:
        ValueError: the file, or an entry of it, is not right; names both.
    """
    path = Path(file) if file else expectations.for_subject(subject)
    if off or path is None:
        return expectations.NONE
    return expectations.load(path, load(), versions())


def run_case(
    worker: Worker,
    case: Case,
    report: Path | None,
    expected: Expectations = expectations.NONE,
    repeat: int = 1,
) -> Verdict:
    """Run and judge one case beside what is expected; a failure leaves a replay file in ``report``/replay.

    ``repeat``: how often it is asked (``conformance.runs.repeat``).
    """
    verdict = expected.apply(timed(worker, case, repeat))
    if report is None or verdict.outcome not in FAILED:
        return replace(verdict, replay=q4gsw("run", "--subject", worker.subject, "--case", case.id))
    path = replay.write(report / "replay", case, verdict, versions())
    repeated = ("--repeat", str(repeat)) if repeat > 1 else ()
    return replace(verdict, replay=q4gsw("replay", path, *option_for(worker.subject), *repeated))


def timed(worker: Worker, case: Case, repeat: int = 1) -> Verdict:
    """Return the verdict on a case, with the seconds from asking to verdict on the clock on the wall."""
    started = time.perf_counter()
    observation = worker.run(case)
    try:
        verdict = judge(case, observation, worker.subject)
        if repeat > 1:
            verdict = again(worker, case, observation, verdict, repeat)
    except Exception as error:  # noqa: BLE001 - whatever an answer makes of the oracles costs its own case
        trace = traceback.format_exc()
        reason = f"not judged, the harness raised {one_line(error)}"
        raised = f"{case.stage}/raised/Harness"
        verdict = Verdict(case.id, case.stage, worker.subject, ERROR, raised, reason, contract=case.contract)
    else:
        trace = ""
    seconds = round(time.perf_counter() - started, 4)
    first = {timing.FIRST: seconds} if worker.first else {}
    printed = f"{worker.printed.text()}\n{trace}".strip() if verdict.outcome in FAILED else ""
    return replace(verdict, seconds=seconds, facts={**verdict.facts, **first}, printed=printed)
