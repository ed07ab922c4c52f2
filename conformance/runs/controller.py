"""What the xdist controller (or pytest itself, without workers) does with verdicts: pytest's hooks around ``Run``.

Loaded by conformance.runs.plugin, which opens the run.
"""

from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest

from conformance.files import DISK, unwritable
from conformance.results.verdict import Verdict
from conformance.runs.session import EXPECTED, RUN, UNWRITTEN

_END = pytest.StashKey[list[str]]()
#: The controller's configuration, for the hooks that pytest does not pass it to.
_ACTIVE: list[pytest.Config] = []


def pytest_sessionstart(session: pytest.Session) -> None:
    """Remember the controller's configuration for the hooks that pytest does not pass it to."""
    _ACTIVE[:] = [session.config] if RUN in session.config.stash else []


def pytest_collection_finish(session: pytest.Session) -> None:
    """Take note of what is going to run, where this process runs it."""
    if run := session.config.stash.get(RUN, None):
        run.collected(item.nodeid for item in session.items)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any, ids: list[str]) -> None:
    """The same where workers do; each collects everything."""
    if run := node.config.stash.get(RUN, None):
        run.collected(ids)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Collect verdicts as they arrive; a report that cannot be written ends the run."""
    if not _ACTIVE:
        return
    run = _ACTIVE[0].stash[RUN]
    if data := getattr(report, "q4gsw_verdict", None):
        run.add(Verdict(**data))
    run.trouble = run.trouble or getattr(report, "q4gsw_trouble", "")
    if run.trouble:
        pytest.exit(run.trouble, UNWRITTEN)


@pytest.hookimpl(optionalhook=True)
def pytest_handlecrashitem(crashitem: str, report: pytest.TestReport) -> None:
    """Give the case that an xdist worker was at when it died its verdict, unless that had come already."""
    if not _ACTIVE:
        return
    config, run = _ACTIVE[0], _ACTIVE[0].stash[RUN]
    worker: Any = vars(report)["node"]
    found = run.died(crashitem, worker.gateway.id)
    if found is None:
        return
    text, verdict = found
    if verdict is None:  # it died afterwards: nothing of the case is lost
        report.outcome, report.when, report.longrepr = "passed", "teardown", None
        return
    file, _, name = crashitem.partition("::")
    report.when, report.longrepr, report.location = "call", text, (file, None, name)
    vars(report)["q4gsw_verdict"] = vars(verdict)
    session: Any = config.pluginmanager.getplugin("dsession")
    if config.option.maxfail and run.failures() + 1 >= config.option.maxfail:  # xdist does not count deaths
        session.shouldstop = f"stopping after {config.option.maxfail} failures"


@pytest.hookimpl(wrapper=True, trylast=True)  # around what writes files, within what prints the summary
def pytest_sessionfinish(session: pytest.Session) -> Generator[None]:
    """Close the stream, write the report; a run that judged nothing, or that cannot be written, fails."""
    run = session.config.stash.get(RUN, None)
    try:
        yield
    except OSError as error:  # of pytest's JUnit writer, which leaves what it has written so far
        if run is None or error.errno not in DISK:
            raise
        junit = Path(session.config.option.xmlpath)
        run.trouble = run.trouble or str(unwritable(junit, error))
        if junit.parent == run.report:
            junit.unlink(missing_ok=True)
    if run is None or session.config.getoption("collectonly"):
        return
    interrupted = session.exitstatus in {pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR}
    end = run.end(session.config.stash[EXPECTED], most=session.config.option.maxfail, interrupted=interrupted)
    session.config.stash[_END] = end.lines
    if end.code and (end.code == UNWRITTEN or session.exitstatus in {pytest.ExitCode.OK, pytest.ExitCode.INTERRUPTED}):
        session.exitstatus = end.code


def pytest_unconfigure(config: pytest.Config) -> None:
    """End with the line that names every outcome."""
    lines = config.stash.get(_END, [])
    if lines:
        print("\n".join(lines))  # noqa: T201 - the run's last lines
