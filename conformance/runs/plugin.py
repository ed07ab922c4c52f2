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
from conformance.files import Unwritable, q4gsw, say
from conformance.harness.errors import BadSubject
from conformance.harness.subject import option_for, peers
from conformance.harness.worker import Worker
from conformance.results import merge, replay
from conformance.results.causes import blocks, describe
from conformance.results.verdict import ERROR, UNEXPECTED, UNSUPPORTED, XFAIL, Verdict, exit_code, in_order, read
from conformance.runs import run
from conformance.runs.report import Report
from conformance.runs.shards import Shard, run_shard, shards
from conformance.serialize import structure

#: What has a verdict of its own.
Asked = Case | Shard
_ROOT = Path(__file__).parents[2]
#: Fewer cases than these are not worth a process of their own.
_CASES_A_WORKER = 20
#: The kind of failure of a test that gave no verdict.
_HARNESS = "Harness"
#: How a test ended: its verdict, or why the run cannot go on.
_END = pytest.StashKey[Verdict | str]()


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
    chosen = tuple(one for one in chosen if not failed or one.id in failed)
    if not chosen:
        raise ValueError("no case is selected: none of that level and those stages is named")
    return chosen


def judge(options: Namespace, after: Sequence[str] = ()) -> int:
    """Judge what ``options`` select, with ``after`` as pytest's own options, and return the exit code.

    Raises:
        ValueError: an option, the subject or the report directory is not right; nothing was judged.
        Unwritable: the report cannot be written any more.
        KeyboardInterrupt: by the user; the report says that it is truncated.
    """
    judging = Judging(options)
    most = min(len(os.sched_getaffinity(0)), len(judging.asked) // _CASES_A_WORKER)
    workers = options.workers if options.workers is not None else most if most > 1 else 0
    chosen_by = (*options.stages, *options.case, options.case_list, options.keyword, options.last_failed)
    header = run.header(options.subject, options.device, options.level, chosen_by)
    header |= {"seed": options.seed, "workers": workers or 1}
    if options.shard:
        header |= merge.shard_header(options.shard, [one.id for one in judging.whole])
    report = Report(options.report, header, judging.expected)
    options.report, options.workers = str(report.folder), workers
    controller = Controller(options, report, judging.asked)
    files = {"test_generated.py" if isinstance(one, Shard) else "test_cases.py" for one in judging.asked}
    words = [
        *(f"{_ROOT}/conformance/suite/{file}" for file in sorted(files)),
        "-q",
        "--no-header",
        "-k",
        options.keyword,
    ]
    words += ["-c", f"{_ROOT}/pyproject.toml", "--rootdir", str(_ROOT)]
    # What Python says of pipes while it cleans up after an interruption is no verdict; tests/ looks at such warnings.
    words += ["--disable-plugin-autoload", "-p", "xdist", "-p", "no:cacheprovider", "-p", "no:unraisableexception"]
    words += ["-n", str(workers)]
    # Failures are printed by cause, at the end; pytest would print each, and where CI is set each twice.
    words += ["--tb", "no", "-r", "N" if options.quiet else "s"]
    words += ["-q", "-p", "no:terminaldistreporter"] if options.quiet else []
    if options.max_failures or options.level == "deep":
        # One case after the other: handed out in advance, all the long shards of level deep would be one worker's, and
        # cases would run on past --max-failures. The quick cases of other levels are better off in large batches.
        words += ["--maxschedchunk", "1"]
    try:
        # The user's may be anything, and another project's may not be installed.
        if ".py:" in options.subject or options.subject.partition(":")[0] in {*peers(), "executorch-runtime"}:
            judging.worker.check(next((one for one in judging.asked if isinstance(one, Case)), load()[0]))
            if workers:  # which have children of their own
                judging.worker.close()
        status = pytest.main([*words, *after], plugins=[judging, controller])
    except BadSubject:
        report.discard()
        raise
    return controller.end(status)


class Judging:
    """In every process that judges: a case is a test, and the test ends as the verdict says."""

    def __init__(self, options: Namespace) -> None:
        self.options = options
        self.whole = selected(options)
        number, count = options.shard or (1, 1)
        self.asked = self.whole[number - 1 :: count]
        if not self.asked:
            raise ValueError(f"shard {number} of {count} is empty: there are fewer cases than shards")
        self.expected = run.expected_of(options.subject, options.expectations, off=options.no_expectations)
        self.worker = Worker(options.subject, options.case_seconds)

    def pytest_generate_tests(self, metafunc: pytest.Metafunc) -> None:
        """Give a test of the suite its cases, or its shards of generated programs."""
        for name, kind in (("case", Case), ("shard", Shard)):
            if name in metafunc.fixturenames:
                asked = [one for one in self.asked if isinstance(one, kind)]
                metafunc.parametrize(name, asked, ids=[one.id for one in asked])

    def pytest_sessionfinish(self) -> None:
        """End the child."""
        self.worker.close()

    @pytest.fixture
    def judge(self, request: pytest.FixtureRequest) -> Callable[[Asked], None]:
        """What a test of the suite calls."""
        return lambda asked: self._judge(request.node, asked)

    def _judge(self, item: pytest.Item, asked: Asked) -> None:
        report = Path(self.options.report)
        try:
            if isinstance(asked, Shard):
                examples = self.options.examples and Path(self.options.examples)
                case, verdict = run_shard(self.worker, asked, report, self.expected.excuses, examples)
            else:
                case, verdict = asked, run.run_case(self.worker, asked, report, self.expected, self.options.repeat)
        except Unwritable as error:
            item.stash[_END] = str(error)
            pytest.fail(str(error), pytrace=False)
        item.stash[_END] = verdict
        if verdict.outcome == XFAIL:
            pytest.xfail(f"{verdict.defect}: {verdict.reason}")
        if verdict.outcome in UNEXPECTED:
            pytest.fail(describe(verdict, case.detects) if case else verdict.reason, pytrace=False)
        if verdict.outcome == UNSUPPORTED:
            pytest.skip(verdict.reason)

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_makereport(
        self, item: pytest.Item, call: pytest.CallInfo[None]
    ) -> Generator[None, pytest.TestReport, pytest.TestReport]:
        """Send the verdict along with pytest's report, from whatever process it comes from."""
        report = yield
        end = item.stash.get(_END, None)
        if end is None and call.excinfo is not None and isinstance(item, pytest.Function):
            (asked,) = (one for one in self.asked if one.id == item.callspec.id)
            reason = f"not judged, the harness raised {call.excinfo.exconly().splitlines()[0]}"
            item.stash[_END] = end = error_verdict(asked, self.options.subject, _HARNESS, reason)
        elif call.when != "call":
            return report
        vars(report)["q4gsw"] = _plain(end) if isinstance(end, Verdict) else end
        return report


class Controller:
    """In the process that the user started: verdicts as they come, and what becomes of the cases without one."""

    def __init__(self, options: Namespace, report: Report, asked: Iterable[Asked]) -> None:
        self.options, self.report = options, report
        self._asked = {one.id: one for one in asked}
        #: What pytest runs and nothing has judged yet, by node id.
        self._left: dict[str, Asked] = {}
        self._trouble = ""
        self._stopped = self._interrupted = False
        #: What the harness itself raised, with pytest's traceback.
        self._tracebacks: list[str] = []

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
        if not self.report.verdicts:  # a worker that replaces a dead one collects everything once more
            self._left = {node_id: self._asked[node_id.partition("[")[2].removesuffix("]")] for node_id in node_ids}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Collect verdicts as they arrive; a report that cannot be written ends the run."""
        end = getattr(report, "q4gsw", None)
        if isinstance(end, str):
            self._trouble = self._trouble or end
        elif end and not self._trouble:
            try:
                verdict = structure(Verdict, end)
                self.report.add(verdict)
                del self._left[report.nodeid]
                if verdict.signature.endswith(_HARNESS) and not verdict.printed:
                    self._tracebacks.append(report.longreprtext)
            except Unwritable as error:
                self._trouble = str(error)
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
        reason = f"its test process, {process}, died (killed, or out of memory?) while it ran: it is not judged"
        if isinstance(asked, Shard):
            journal = self.report.folder / "journal" / f"{asked.name}.toml"
            reason = f"{reason}; the program that it was at is in {journal}"
            verdict = error_verdict(asked, self.options.subject, "WorkerDied", reason, journal)
            text = f"{ERROR} {asked.id}: {reason}"
        else:
            verdict = error_verdict(asked, self.options.subject, "WorkerDied", reason)
            with contextlib.suppress(Unwritable):  # the stream will meet the same trouble, and stop the run
                path = replay.write(self.report.folder / "replay", asked, verdict, run.versions())
                verdict = replace(verdict, replay=q4gsw("replay", path, *option_for(verdict.subject)))
            text = describe(verdict, asked.detects)
        file, _, name = crashitem.partition("::")
        report.when, report.longrepr, report.location = "call", text, (file, None, name)
        vars(report)["q4gsw"] = _plain(verdict)

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
        if cut:  # maybe between a verdict's line and what is noted of it here
            judged = {verdict.case for verdict in self.report.reread()}
            self._left = {node_id: asked for node_id, asked in self._left.items() if asked.id not in judged}
        count, lines = f"{len(self._left)} cases were not", []
        if self._stopped:
            lines = [f"stopped after {self.report.failures} failures; {count} run"]
        elif cut:
            lines = [f"interrupted: {count} run, and the report says that it is truncated"]
        elif self._left:
            lines = [f"{count} judged: too many test processes died; each is an ERROR"]
            reason = "not judged: the processes of this run had died before it was this case's turn"
            for asked in self._left.values():
                self.report.add(error_verdict(asked, self.options.subject, "NotRun", reason))
        verdicts = in_order(self.report.verdicts, self._asked)
        detects = {case.id: case.detects for case in self._asked.values() if isinstance(case, Case)}
        failures = blocks(verdicts, detects, every=self.options.all)
        last = self.report.finish(truncated=cut)
        say(*"\n".join([*self._tracebacks, *failures, *lines, *last]).split("\n"))
        if self._interrupted:
            raise KeyboardInterrupt
        return 1 if cut else exit_code(self.report.verdicts)


def error_verdict(asked: Asked, subject: str, kind: str, reason: str, file: Path | None = None) -> Verdict:
    """Return the ERROR of a case, or of a shard, that nothing judged; ``file`` replays it, or its id does."""
    command = q4gsw("run", "--subject", subject, "--case", asked.id)
    if file:
        command = q4gsw("replay", file, *option_for(subject))
    signature = f"{asked.stage}/raised/{kind}"
    return Verdict(asked.id, asked.stage, subject, ERROR, signature, reason, replay=command, contract=asked.contract)


def _plain(verdict: Verdict) -> dict[str, Any]:
    """A verdict as xdist can send it."""
    return vars(verdict) | {"outcome": str(verdict.outcome)}
