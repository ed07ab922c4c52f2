"""The suite under pytest: options, parametrisation by case, skips with reasons, the report.

Loaded by conftest.py at the root, whatever path is given. Only the xdist controller writes the report.
"""

import contextlib
import os
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any

import pytest

from conformance.case.case import LEVELS, STAGES, Case
from conformance.case.catalogue import load, nearest, select
from conformance.cli import report as cli_report
from conformance.files import Unwritable, new_folder
from conformance.harness.errors import EnvironmentProblem
from conformance.harness.subject import check_name
from conformance.harness.worker import CASE_SECONDS, Worker
from conformance.results.verdict import UNEXPECTED, UNSUPPORTED, XFAIL, Verdict
from conformance.runs import run as runner
from conformance.runs import shards as generate_shards
from conformance.runs.session import EXPECTED, RUN, Run, error_verdict

pytest_plugins = ("conformance.runs.controller",)
_SUITE = Path(__file__).parent.parent / "suite"
_CASES = pytest.StashKey[tuple[Case, ...]]()
_SHARDS = pytest.StashKey[tuple[generate_shards.Shard, ...]]()
_VERDICT = pytest.StashKey[Verdict]()
#: Why a case's replay file or journal cannot be written, where that ended its test.
_TROUBLE = pytest.StashKey[str]()


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    """Add the suite's options."""
    group = parser.getgroup("conformance", "q4gsw conformance suite")
    group.addoption("--subject", default="impl", help="impl | executorch | path.py:Class (default: impl)")
    group.addoption("--level", default="gate", help=" | ".join(LEVELS) + " (default: gate)")
    group.addoption("--stages", default="", help="comma-separated, of " + ", ".join(STAGES))
    group.addoption("--device", default="", help="Vulkan device by name or index (see python -m conformance devices)")
    group.addoption(
        "--validate", action="store_true", help="with Vulkan's validation layer; any message fails the case"
    )
    group.addoption("--seed", type=int, default=0, help="seed of the generated programs (default: 0)")
    group.addoption(
        "--examples", type=Path, metavar="DIR", help="keep generated programs that fail in DIR, and try them first"
    )
    group.addoption("--report", default="", help="directory for verdicts.jsonl and replay files (default: a new one)")
    group.addoption("--case-seconds", type=float, default=CASE_SECONDS, help="time limit of a case")
    group.addoption("--max-failures", type=int, default=0, metavar="N", help="stop after N unexpected verdicts")
    group.addoption("--expectations", default="", metavar="FILE", help="known failures, instead of the subject's own")
    group.addoption("--no-expectations", action="store_true", help="known failures fail like any other")
    if not pluginmanager.has_plugin("cacheprovider"):  # which has an option of that name, without a directory
        group.addoption("--last-failed", default="", metavar="DIR", help="only what was unexpected in DIR's report")


@pytest.hookimpl(tryfirst=True)  # before pytest's own JUnit writer reads where to write
def pytest_configure(config: pytest.Config) -> None:
    """Check the options once, on the controller; workers inherit the report directory."""
    if not _is_suite(config):
        return
    try:
        check_name(config.getoption("--subject"))
        config.stash[_CASES], config.stash[_SHARDS] = _selected(config)
        given = (config.getoption(f"--{o}") for o in ("subject", "expectations"))
        config.stash[EXPECTED] = runner.expected_of(*given, off=config.getoption("--no-expectations"))
        if (device := config.getoption("--device")) and _is_controller(config):
            from conformance.pte.device import check_device  # noqa: PLC0415 - needs the Vulkan loader

            check_device(device)
            os.environ["Q4GSW_DEVICE"] = device  # the workers inherit it
    except (ValueError, EnvironmentProblem) as error:
        raise pytest.UsageError(str(error)) from error
    if config.getoption("--validate"):
        os.environ["Q4GSW_VALIDATE"] = "1"
    if _is_controller(config):
        try:
            _start(config)
        except ValueError as error:
            raise pytest.UsageError(str(error)) from error


def _start(config: pytest.Config) -> None:
    """Open the report, and fill in what pytest's own options are told of it."""
    report = Path(config.getoption("--report") or new_folder("q4gsw-report-"))
    config.option.report = str(report)
    config.option.xmlpath = config.option.xmlpath or str(report / "junit.xml")
    if config.option.reportchars == "a":  # known failures are listed by defect, not one by one
        config.option.reportchars = "fEs"
    most = config.getoption("--max-failures")
    config.option.maxfail = most or config.option.maxfail
    if (most or config.getoption("--level") == "deep") and getattr(config.option, "maxschedchunk", 1) is None:
        # One case after the other: handed out in advance, all the long shards of level deep would be one worker's, and
        # cases would run on past --max-failures. The quick cases of other levels are better off in large batches.
        config.option.maxschedchunk = 1
    subject, device, level = (config.getoption(f"--{o}") for o in ("subject", "device", "level"))
    chosen = (config.getoption("--stages"), config.option.keyword, getattr(config.option, "last_failed", ""))
    header = runner.header(subject, device, level, chosen) | {
        "seed": config.getoption("--seed"),
        "workers": _workers(config),
    }
    config.stash[RUN] = Run(report, header, (*config.stash[_CASES], *config.stash[_SHARDS]))


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    """Tell each xdist worker the report directory: workers parse their options anew, and this one was filled in."""
    node.workerinput["q4gsw_report"] = node.config.option.report


def _report(config: pytest.Config) -> Path:
    """The run's report directory, on the controller and on workers."""
    given = getattr(config, "workerinput", {}).get("q4gsw_report") or config.getoption("--report")
    return Path(given)


def _selected(config: pytest.Config) -> tuple[tuple[Case, ...], tuple[generate_shards.Shard, ...]]:
    stages = tuple(s.strip() for s in config.getoption("--stages").split(",") if s.strip())
    level = config.getoption("--level")
    nearest("level", level, LEVELS)
    cases = select(load(), level=level, stages=stages)
    last = getattr(config.option, "last_failed", "")
    if last:
        return cli_report.only_failed(cases, Path(last)), ()
    return cases, generate_shards.shards(level, stages, config.getoption("--seed"))


def _workers(config: pytest.Config) -> int:
    """How many processes judge at once."""
    given = getattr(config.option, "numprocesses", None)
    return given if isinstance(given, int) and given > 0 else 1


def _is_suite(config: pytest.Config) -> bool:
    """Whether this run is asked for the suite's modules at all (and not only for tests/)."""
    root = config.rootpath
    given = [config.invocation_params.dir / str(a).split("::")[0] for a in config.args] or [root / "tests"]
    return any(p.resolve() == root or _SUITE in (p.resolve(), *p.resolve().parents) for p in given)


def _is_controller(config: pytest.Config) -> bool:
    return not hasattr(config, "workerinput")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Give a suite module's test the cases of its STAGE, or the shards of generated programs."""
    if "shard" in metafunc.fixturenames and _SHARDS in metafunc.config.stash:
        shards = metafunc.config.stash[_SHARDS]
        metafunc.parametrize("shard", shards, ids=[s.id for s in shards])
        return
    stage = getattr(metafunc.module, "STAGE", None)
    if stage is None or "case" not in metafunc.fixturenames or _CASES not in metafunc.config.stash:
        return
    cases = [c for c in metafunc.config.stash[_CASES] if c.stage == stage]
    metafunc.parametrize("case", cases, ids=[c.id for c in cases])


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out the suite's modules that have no case to ask: pytest would report each as a skip."""
    items[:] = [i for i in items if not (_SUITE in i.path.parents and i.name.endswith("[NOTSET]"))]


@pytest.fixture(scope="session")
def subject_worker(request: pytest.FixtureRequest) -> Iterator[Worker]:
    """A child process serving the subject, one for each xdist worker."""
    with Worker(request.config.getoption("--subject"), request.config.getoption("--case-seconds")) as worker:
        yield worker


@pytest.fixture(scope="session")
def known_versions() -> dict[str, str]:
    """Versions to record in replay files."""
    return runner.versions()


@pytest.fixture
def verdict_on(request: pytest.FixtureRequest, subject_worker: Worker, known_versions: dict[str, str]) -> Any:
    """A function that runs and judges a case, records the verdict, and fails or skips accordingly."""

    def run(case: Case) -> None:
        report, expected = _report(request.config), request.config.stash[EXPECTED]
        with _writing(request):
            verdict = runner.run_case(subject_worker, case, report, known_versions, expected)
        _conclude(request, case, verdict)

    return run


@pytest.fixture
def verdict_on_shard(request: pytest.FixtureRequest, subject_worker: Worker, known_versions: dict[str, str]) -> Any:
    """The same for a shard of generated programs."""

    def run(shard: generate_shards.Shard) -> None:
        report, known = _report(request.config), request.config.stash[EXPECTED].signatures()
        with _writing(request):
            examples = request.config.getoption("--examples")
            case, verdict = generate_shards.run_shard(subject_worker, shard, report, known_versions, known, examples)
        _conclude(request, case, verdict)

    return run


@contextlib.contextmanager
def _writing(request: pytest.FixtureRequest) -> Iterator[None]:
    """End the test where its replay file or journal cannot be written; the controller then ends the run."""
    try:
        yield
    except Unwritable as error:
        request.node.stash[_TROUBLE] = str(error)
        pytest.fail(str(error), pytrace=False)


def _conclude(request: pytest.FixtureRequest, case: Case | None, verdict: Verdict) -> None:
    """Record a verdict, and end the test as it says; ``case`` is what failed, if something did."""
    request.node.stash[_VERDICT] = verdict
    named = {"contract": verdict.source, "outcome": verdict.outcome, "signature": verdict.signature}
    request.node.user_properties.extend(named.items())  # what junit.xml tells of the case
    if verdict.outcome == XFAIL:
        pytest.xfail(f"{verdict.defect}: {verdict.reason}")
    if verdict.outcome in UNEXPECTED:
        pytest.fail(runner.describe(case, verdict) if case else verdict.reason, pytrace=False)
    if verdict.outcome == UNSUPPORTED:
        pytest.skip(verdict.reason)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """Send the verdict along with pytest's report, from whatever process it was made in."""
    report = yield
    if trouble := item.stash.get(_TROUBLE, ""):
        vars(report)["q4gsw_trouble"] = trouble
        return report
    verdict = item.stash.get(_VERDICT, None)
    if verdict is None and report.failed:  # the harness's own mistake; without a verdict the case would be missing
        if verdict := _unjudged(item, call):
            item.stash[_VERDICT] = verdict
            vars(report)["q4gsw_verdict"] = vars(verdict)
    elif call.when == "call" and verdict is not None:
        vars(report)["q4gsw_verdict"] = vars(verdict)
    return report


def _unjudged(item: pytest.Item, call: pytest.CallInfo[None]) -> Verdict | None:
    """The verdict on a case whose test raised instead of judging; None for a test that has no case."""
    given = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
    asked = given.get("case") or given.get("shard")
    if call.excinfo is None or not isinstance(asked, Case | generate_shards.Shard):
        return None
    said = call.excinfo.exconly().partition("\n")[0]
    return error_verdict(asked, item.config.getoption("--subject"), "Harness", f"not judged, the harness raised {said}")
