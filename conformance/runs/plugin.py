"""The suite under pytest and xdist, as ``q4gsw run`` starts it.

Every case that is collected ends with one verdict, also when the process that was at it is killed: xdist replaces
that process and goes on, and what was in flight is an ERROR.

Source: docs/reading-a-report.md, "When a run is cut short".
"""

import contextlib
import os
from argparse import Namespace
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from conformance.case.case import LEVELS, Case
from conformance.case.catalogue import load, nearest, select
from conformance.files import DISK, Unwritable, q4gsw, unwritable
from conformance.harness.errors import BadSubject
from conformance.harness.worker import Worker
from conformance.results import replay
from conformance.results.verdict import ERROR, UNEXPECTED, UNSUPPORTED, XFAIL, Verdict, exit_code, read
from conformance.runs import run
from conformance.runs.report import Report
from conformance.runs.shards import Shard, run_shard, shards
from conformance.serialize import structure

#: What has a verdict of its own.
Asked = Case | Shard
_ROOT = Path(__file__).parents[2]
#: Fewer cases than these are not worth a process of their own.
_CASES_A_WORKER = 20
_VERDICT = pytest.StashKey[Verdict]()
#: Why the run cannot go on, where that ended a test.
_TROUBLE = pytest.StashKey[str]()


def selected(options: Namespace) -> tuple[Asked, ...]:
    """Return the cases, and the shards of generated programs, that ``options`` select.

    Raises:
        ValueError: an unknown level, stage or id; a file that cannot be read; a report without unexpected verdicts.
    """
    nearest("level", options.level, LEVELS)
    patterns = list(options.case)
    if options.case_list:
        lines = Path(options.case_list).read_text(encoding="utf-8").splitlines()
        patterns += [line.strip() for line in lines if line.strip() and not line.startswith("#")]
        if not patterns:
            raise ValueError(f"{options.case_list}: names no case")
    failed: set[str] = set()
    if options.last_failed:
        failed = {v.case for v in read(Path(options.last_failed)).verdicts if v.outcome in UNEXPECTED}
        if not failed:
            raise ValueError(f"{options.last_failed}: nothing was unexpected there; leave --last-failed out")
    patterns = patterns or sorted(failed)
    drawn = [*shards(options.level, options.stages, options.seed), *filter(None, map(Shard.named, patterns))]
    every: list[Asked] = [*load(), *dict.fromkeys(drawn)]
    chosen = select(every, level=options.level, stages=options.stages, ids=patterns)
    return tuple(one for one in chosen if not failed or one.id in failed)


def judge(options: Namespace, after: Sequence[str] = ()) -> int:
    """Judge what ``options`` select, with ``after`` as pytest's own options, and return the exit code.

    Raises:
        ValueError: an option, the subject or the report directory is not right; nothing was judged.
        Unwritable: the report cannot be written any more.
        KeyboardInterrupt: by the user; the report says that it is truncated.
    """
    judging = Judging(options)
    cores = len(os.sched_getaffinity(0))
    most = min(cores, len(judging.asked) // _CASES_A_WORKER)
    workers = options.workers if options.workers is not None else most if most > 1 else 0
    chosen_by = (*options.stages, *options.case, options.case_list, options.keyword, options.last_failed)
    header = run.header(options.subject, options.device, options.level, chosen_by)
    header |= {"seed": options.seed, "workers": workers or 1}
    report = Report(options.report, header, judging.expected)
    options.report, options.workers = str(report.folder), workers
    controller = Controller(options, report, judging.asked)
    words = [
        f"{_ROOT}/conformance/suite",
        "-c",
        f"{_ROOT}/pyproject.toml",
        "--rootdir",
        str(_ROOT),
        "-q",
        "--no-header",
    ]
    words += ["--disable-plugin-autoload", "-p", "xdist", "-p", "no:cacheprovider"]
    words += ["-n", str(workers), "--junitxml", f"{report.folder}/junit.xml", "-r", "fE" if options.quiet else "fEs"]
    words += ["-q", "-p", "no:terminaldistreporter"] if options.quiet else []
    if options.max_failures or options.level == "deep":
        # One case after the other: handed out in advance, all the long shards of level deep would be one worker's, and
        # cases would run on past --max-failures. The quick cases of other levels are better off in large batches.
        words += ["--maxschedchunk", "1"]
    try:
        judging.check()
        status = pytest.main([*words, "-k", options.keyword, *after], plugins=[judging, controller])
    except BadSubject:
        report.discard()
        raise
    return controller.end(status)


class Judging:
    """In every process that judges: a case is a test, and the test ends as the verdict says."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.asked = selected(options)
        self.expected = run.expected_of(options.subject, options.expectations, off=options.no_expectations)
        self._versions = run.versions()
        self._worker = Worker(options.subject, options.case_seconds)

    def check(self) -> None:
        """Let the child load a subject of the user's, which may be anything.

        Raises:
            BadSubject: it is no subject.
        """
        if ".py:" not in self.options.subject:
            return
        try:
            self._worker.check(next((one for one in self.asked if isinstance(one, Case)), load()[0]))
        except BadSubject:
            self._worker.close()
            raise
        if self.options.workers:  # which have children of their own
            self._worker.close()

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give a test of the suite its cases, or its shards of generated programs."""
        for name, kind in (("case", Case), ("shard", Shard)):
            if name in metafunc.fixturenames:
                asked = [one for one in self.asked if isinstance(one, kind)]
                metafunc.parametrize(name, asked, ids=[one.id for one in asked])

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Leave out a test that has no case: pytest would report it as a skip."""
        items[:] = [item for item in items if not item.name.endswith("[NOTSET]")]

    def pytest_sessionfinish(self) -> None:
        """End the child."""
        self._worker.close()

    @pytest.fixture
    def judge(self, request: pytest.FixtureRequest) -> Callable[[Asked], None]:
        """What a test of the suite calls."""
        return lambda asked: self._judge(request.node, asked)

    def _judge(self, item: pytest.Item, asked: Asked) -> None:
        report = Path(self.options.report)
        try:
            if isinstance(asked, Shard):
                known, examples = self.expected.signatures(), self.options.examples
                case, verdict = run_shard(
                    self._worker, asked, report, self._versions, known, examples and Path(examples)
                )
            else:
                case, verdict = asked, run.run_case(self._worker, asked, report, self._versions, self.expected)
        except Unwritable as error:
            item.stash[_TROUBLE] = str(error)
            pytest.fail(str(error), pytrace=False)
        item.stash[_VERDICT] = verdict
        named = {"contract": verdict.contract, "outcome": str(verdict.outcome), "signature": verdict.signature}
        item.user_properties.extend(named.items())  # of the case in junit.xml
        if verdict.outcome == XFAIL:
            pytest.xfail(f"{verdict.defect}: {verdict.reason}")
        if verdict.outcome in UNEXPECTED:
            pytest.fail(run.describe(case, verdict) if case else verdict.reason, pytrace=False)
        if verdict.outcome == UNSUPPORTED:
            pytest.skip(verdict.reason)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send the verdict along with pytest's report, from whatever process it comes from."""
        report = yield
        if _TROUBLE in item.stash:
            vars(report)["q4gsw_trouble"] = item.stash[_TROUBLE]
            return report
        verdict, first = item.stash.get(_VERDICT, None), call.when == "call"
        if verdict is None and call.excinfo is not None and isinstance(item, pytest.Function):
            asked: Any = item.callspec.params.get(
                "case", item.callspec.params.get("shard")
            )  # the harness is at fault; the case must not be missing
            reason = f"not judged, the harness raised {call.excinfo.exconly().partition(chr(10))[0]}"
            item.stash[_VERDICT] = verdict = error_verdict(asked, self.options.subject, "Harness", reason)
            first = True
        if verdict and first:
            vars(report)["q4gsw_verdict"] = {
                **vars(verdict),
                "outcome": str(verdict.outcome),
            }
        return report


class Controller:
    """In the process that the user started: verdicts as they come, and what becomes of the cases without one."""

    def __init__(self, options: Namespace, report: Report, asked: Iterable[Asked]) -> None:
        self.options, self.report = options, report
        self._asked = {one.id: one for one in asked}
        #: What pytest runs and nothing has judged yet, by node id.
        self._left: dict[str, Asked] = {}
        self._judged: set[str] = set()
        self._trouble = ""
        self._stopped = self._interrupted = False

    @pytest.hookimpl(optionalhook=True)
    def pytest_configure_node(self, node: Any) -> None:
        """Hand the options on to an xdist worker."""
        node.workerinput["q4gsw"] = vars(self.options) | {"call": None}

    def pytest_sessionstart(self, session: pytest.Session) -> None:
        """Remember what can be stopped."""
        self._session: Any = session.config.pluginmanager.getplugin("dsession") or session

    def pytest_collection_finish(self, session: pytest.Session) -> None:
        """Take note of what is going to run, where this process runs it."""
        self._collected(item.nodeid for item in session.items)

    @pytest.hookimpl(optionalhook=True)
    def pytest_xdist_node_collection_finished(self, ids: Sequence[str]) -> None:
        """The same where workers do; each collects everything."""
        self._collected(ids)

    def _collected(self, node_ids: Iterable[str]) -> None:
        for node_id in node_ids:
            name = node_id.partition("[")[2].removesuffix("]")
            if name not in self._judged:
                self._left[node_id] = self._asked[name]

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect verdicts as they arrive; a report that cannot be written ends the run."""
        self._trouble = self._trouble or getattr(report, "q4gsw_trouble", "")
        data = getattr(report, "q4gsw_verdict", None)
        if data and not self._trouble:
            try:
                self.report.add(structure(Verdict, data))
            except Unwritable as error:
                self._trouble = str(error)
            else:
                self._judged.add(self._left.pop(report.nodeid).id)
        self._stopped |= 0 < self.options.max_failures <= self.report.failures
        if self._trouble or self._stopped:
            self._session.shouldstop = self._trouble or f"stopping after {self.report.failures} failures"

    @pytest.hookimpl(optionalhook=True)
    def pytest_handlecrashitem(self, crashitem: str, report: pytest.TestReport) -> None:
        """Give the case that an xdist worker was at when it died its verdict, unless that had come already."""
        asked = self._left.get(crashitem)
        if asked is None:  # it died afterwards: nothing of the case is lost
            report.outcome, report.when, report.longrepr = "passed", "teardown", None
            return
        process = vars(report)["node"].gateway.id
        verdict = died(asked, self.options.subject, process, self.report.folder)
        text = run.describe(asked, verdict) if isinstance(asked, Case) else f"{ERROR} {asked.id}: {verdict.reason}"
        file, _, name = crashitem.partition("::")
        report.when, report.longrepr, report.location = "call", text, (file, None, name)
        vars(report)["q4gsw_verdict"] = {**vars(verdict), "outcome": str(verdict.outcome)}

    def pytest_keyboard_interrupt(self, excinfo: pytest.ExceptionInfo[BaseException]) -> None:
        """Tell Ctrl-C from the end that ``shouldstop`` brings."""
        self._interrupted = excinfo.type is KeyboardInterrupt

    @pytest.hookimpl(wrapper=True)
    def pytest_report_teststatus(
        self, report: pytest.TestReport
    ) -> Generator[None, tuple[str, str, object], tuple[str, str, object]]:
        """With --quiet, print no letter for what is as expected."""
        category, letter, word = yield
        return (category, "", "") if self.options.quiet and not report.failed else (category, letter, word)

    @pytest.hookimpl(wrapper=True, trylast=True)  # around what writes files, within what prints the summary
    def pytest_sessionfinish(self) -> Generator[None]:
        """Leave no JUnit file that was cut off by a full disk."""
        try:
            yield
        except OSError as error:
            if error.errno not in DISK:
                raise
            junit = self.report.folder / "junit.xml"
            self._trouble = self._trouble or str(unwritable(junit, error))
            junit.unlink(missing_ok=True)

    def end(self, status: int) -> int:
        """Finish the report, print the last lines, and return the exit code; ``status`` is pytest's.

        Raises:
            Unwritable: the report cannot be written.
            KeyboardInterrupt: that is what ended the run.
        """
        if self._trouble:
            raise Unwritable(self._trouble)
        if status == pytest.ExitCode.USAGE_ERROR:  # pytest has said what is wrong with its options
            self.report.discard()
            return 2
        cut = not self._stopped and status in {pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR}
        lines = []
        if self._stopped:
            lines = [f"stopped after {self.report.failures} failures; {len(self._left)} cases were not run"]
        elif cut:
            lines = [f"interrupted: {len(self._left)} cases were not run, and the report says that it is truncated"]
        elif self._left:
            for asked in self._left.values():
                reason = "not judged: the processes of this run had died before it was this case's turn"
                self.report.add(error_verdict(asked, self.options.subject, "NotRun", reason))
            lines = [f"{len(self._left)} cases were not judged: too many test processes died; each is an ERROR"]
        print("\n".join([*lines, *self.report.finish(truncated=cut)]))  # noqa: T201 - the run's last lines
        if self._interrupted:
            raise KeyboardInterrupt
        return 1 if cut else exit_code(self.report.verdicts)


def error_verdict(asked: Asked, subject: str, kind: str, reason: str) -> Verdict:
    """Return the ERROR of a case, or of a shard, that nothing judged."""
    command = q4gsw("run", "--subject", subject, "--case", asked.id)
    signature = f"{asked.stage}/raised/{kind}"
    return Verdict(asked.id, asked.stage, subject, ERROR, signature, reason, replay=command, contract=asked.contract)


def died(asked: Asked, subject: str, process: str, report: Path) -> Verdict:
    """Return the ERROR of what was in flight when ``process`` died, with a file in ``report`` that replays it."""
    reason = f"its test process, {process}, died (killed, or out of memory?) while it ran: it is not judged"
    verdict = error_verdict(asked, subject, "WorkerDied", reason)
    if isinstance(asked, Shard):
        journal = report / "journal" / f"shard-{asked.number}.toml"
        reason = f"{reason}; the program that it was at is in {journal}"
        return replace(verdict, reason=reason, replay=q4gsw("replay", journal))
    with contextlib.suppress(Unwritable):  # the stream will meet the same trouble, and stop the run
        path = replay.write(report / "replay", asked, verdict, run.versions())
        verdict = replace(verdict, replay=q4gsw("replay", path))
    return verdict
