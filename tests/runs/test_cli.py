"""The command line as a user meets it: exit codes, one-line errors, replay from a file alone."""

import argparse
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from conformance.bisect.search import SearchEnded
from conformance.case.catalogue import load, select
from conformance.cli.main import COMMANDS, main, parser
from conformance.cli.options import Parser
from conformance.harness.errors import EnvironmentProblem
from conformance.results.verdict import read
from conformance.runs.plugin import selected

ROOT = Path(__file__).parents[2]
MINIATURES = Path(__file__).parents[1] / "fakes/misbehaving.py"
PACK = ("--stages", "PACK")
PACKED = len(select(load(), level="gate", stages=["PACK"]))


def conformance(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python -m conformance`` with ``arguments``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "--subject", "imp"], "unknown subject 'imp'; did you mean impl"),
        (["run", "--subject", "nothing.py:X"], "subject 'nothing.py:X': no file nothing.py"),
        (["run", "--level", "smok"], "unknown level 'smok'; did you mean smoke"),
        (["run", "--stages", "PACKING"], "unknown stage 'PACKING'; did you mean PACK"),
        (["run", "--case", "pack/flat/v77"], "unknown case 'pack/flat/v77'; did you mean pack/flat/v7"),
        (["replay", "nothing.toml"], "nothing.toml: no such replay file"),
        (["replay", "pyproject.toml"], "pyproject.toml: not a replay file"),
        (["report", "pyproject.toml"], "pyproject.toml:1: not a verdict stream"),
        (["frobnicate"], "unknown command 'frobnicate'"),
    ],
)
def test_bad_usage_is_one_line_and_exit_code_2(arguments: list[str], message: str) -> None:
    done = conformance(*arguments)
    assert done.returncode == 2
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_an_unknown_device_is_bad_usage() -> None:
    done = conformance("run", "--stages", "KERNEL", "--level", "smoke", "--device", "no such device")
    assert done.returncode == 2
    assert "no such device" in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_good_run_exits_0_and_ends_with_the_counts(tmp_path: Path) -> None:
    done = conformance("run", "--subject", f"{MINIATURES}:Good", *PACK, "--report", str(tmp_path / "r"))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(f"tests:{PACKED} passed:{PACKED} failed:0 error:0 unsupported:0")


@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_run_that_judges_nothing_fails(tmp_path: Path, workers: str) -> None:
    arguments = ("--subject", f"{MINIATURES}:SupportsNothing", *PACK, "--report", str(tmp_path / "r"))
    done = conformance("run", *arguments, "--workers", workers)
    assert done.returncode == 1
    assert f"passed:0 failed:0 error:0 unsupported:{PACKED}" in done.stdout


def test_a_failure_replays_from_its_file_alone_in_an_empty_directory(tmp_path: Path) -> None:
    report = tmp_path / "r"
    done = conformance("run", "--subject", f"{MINIATURES}:Raises", *PACK, "--report", str(report))
    assert done.returncode == 1
    assert "PACK/raised/KeyError@subject_misbehaving.Raises.bad" in done.stdout
    elsewhere = tmp_path / "empty"
    elsewhere.mkdir()
    shutil.copy(report / "replay" / "pack__flat__v1.toml", elsewhere / "case.toml")
    again = conformance("replay", "case.toml", "--subject", f"{MINIATURES}:Raises", cwd=elsewhere)
    assert again.returncode == 1
    assert "recorded signature: PACK/raised/KeyError@subject_misbehaving.Raises.bad (the same failure)" in again.stdout
    fixed = conformance("replay", "case.toml", "--subject", f"{MINIATURES}:Good", cwd=elsewhere)
    assert fixed.returncode == 0
    assert "(it is fixed)" in fixed.stdout


def test_a_killed_run_leaves_a_report_that_says_so(tmp_path: Path) -> None:
    report = tmp_path / "r"
    arguments = ["run", "--subject", f"{MINIATURES}:Hangs", *PACK, "--report", str(report)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        [sys.executable, "-m", "conformance", *arguments], cwd=ROOT, env=env, stdout=subprocess.DEVNULL
    ) as run:
        for _ in range(600):
            if (report / "verdicts.jsonl").exists() and (report / "verdicts.jsonl").read_text():
                break
            time.sleep(0.1)
        run.send_signal(signal.SIGKILL)
    done = conformance("report", str(report))
    assert done.returncode == 1
    assert "truncated: the run did not finish" in done.stdout


def test_two_runs_into_one_directory_is_an_error(tmp_path: Path) -> None:
    arguments = ("--subject", f"{MINIATURES}:Good", "--case", "pack/flat/v1", "--report", str(tmp_path / "r"))
    assert conformance("run", *arguments).returncode == 0
    again = conformance("run", *arguments)
    assert again.returncode == 2
    assert "another run's report is there" in again.stderr


def test_workers_do_not_change_verdicts(tmp_path: Path) -> None:
    outcomes = []
    for workers in ("0", "2"):
        report = tmp_path / workers
        words = ("--subject", f"{MINIATURES}:Raises", *PACK, "--workers", workers, "--report", str(report))
        conformance("run", *words)
        stream = read(report / "verdicts.jsonl")
        assert not stream.truncated
        outcomes.append({(v.case, v.outcome, v.signature) for v in stream.verdicts})
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == PACKED


def test_xdist_workers_leave_replay_files_in_the_run_s_own_new_directory(tmp_path: Path) -> None:
    options = ("--workers", "2", "--subject", f"{MINIATURES}:Raises", *PACK, "--level", "smoke")
    done = conformance("run", *options, cwd=tmp_path)
    report = next(line for line in done.stdout.splitlines() if line.startswith("report: "))
    folder = Path(report.removeprefix("report: file://").split("/report.html")[0])
    assert list((folder / "replay").glob("*.toml"))
    assert not (tmp_path / "replay").exists()


def test_list_shows_each_case_once() -> None:
    done = conformance("list")
    ids = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert len(ids) == len(set(ids)) >= 60


def parsers(parser: Parser) -> Iterator[Parser]:
    """A parser and those of its ways."""
    yield parser
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from parsers(below)


def test_the_menu_names_every_command_and_every_help_has_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    menu = capsys.readouterr().out
    for name in COMMANDS:
        assert re.search(rf"^  {name} +\w", menu, re.MULTILINE)
        for one in parsers(parser(name)):
            assert re.search(rf"^example: {one.prog.split(' WAY')[0]}\b", one.format_help(), re.MULTILINE), one.prog


def test_examples_are_right() -> None:
    for command in COMMANDS.values():
        name, *words = shlex.split(command.example)
        parser(name).parse_args(words)


def test_the_version_is_the_project_s() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert conformance("--version").stdout == f"q4gsw {project['version']}\n"


def test_proofs_need_neither_torch_nor_toml(tmp_path: Path) -> None:
    blocked = "import sys; sys.modules.update(dict.fromkeys(['torch', 'executorch', 'tomli_w', 'pytest', 'impl']))"
    code = f"{blocked}; from conformance.cli.main import main; sys.exit(main())"
    words = ["prove", "layout", "--subject", "reference", "--out", str(tmp_path)]
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def test_every_error_ends_in_one_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """One handler: an error with an exit code of its own, and one without."""
    for error, code in ((SearchEnded("x"), 1), (ValueError("x"), 2), (EnvironmentProblem("x"), 2)):
        monkeypatch.setattr("conformance.cli.run._list", raising(error))
        assert main(["list"]) == code


def raising(error: Exception) -> Callable[..., int]:
    def call(_options: argparse.Namespace) -> int:
        raise error

    return call


SUBJECT = """
class Good:
    def supports(self, case): return None
    def run(self, case): raise KeyError
class Unsure(Good):
    def supports(self, case): return 0
class Unborn(Good):
    def __init__(self, what): pass
class Never(Good):
    def supports(self, case): return False
class Always(Good):
    def supports(self, case): return True
class Runless:
    def supports(self, case): return None
"""


@pytest.mark.parametrize(
    ("text", "name", "message"),
    [
        (SUBJECT, "Goood", "no class Goood there"),
        (SUBJECT, "Runless", "needs the methods supports(case) and run(case)"),
        (SUBJECT, "Unborn", "TypeError: Unborn.__init__() missing 1 required positional argument: 'what'"),
        (SUBJECT, "Unsure", "supports() returns 0, neither a bool nor a reason as a text"),
        ("import nothing_of_that_name", "Good", "ModuleNotFoundError: No module named 'nothing_of_that_name'"),
        ("def (:", "Good", "SyntaxError"),
        ("import os; os.abort()", "Good", "the subject's process ended with SIGABRT"),
    ],
)
@pytest.mark.parametrize("workers", ["0", "2"])
def test_a_bad_subject_is_one_line_before_the_run(
    tmp_path: Path, text: str, name: str, message: str, workers: str
) -> None:
    file, report = tmp_path / "subject.py", tmp_path / "r"
    file.write_text(text)
    words = ("run", *PACK, "--workers", workers, "--report", str(report), "--subject")
    done = conformance(*words, f"{file}:{name}")
    assert done.returncode == 2
    assert done.stdout == ""
    assert message in done.stderr
    assert done.stderr.startswith("error: subject ")
    assert len(done.stderr.splitlines()) == 1
    assert not list(report.iterdir()), "the next run may have the directory"


@pytest.mark.parametrize(("name", "counts"), [("Always", "failed:2"), ("Never", "failed:0 error:0 unsupported:2")])
def test_supports_may_return_a_bool(tmp_path: Path, name: str, counts: str) -> None:
    (tmp_path / "subject.py").write_text(SUBJECT)
    done = conformance("run", *PACK, "--level", "smoke", "--subject", f"{tmp_path}/subject.py:{name}")
    assert counts in done.stdout.splitlines()[-1]


def asked(*words: str) -> list[str]:
    """The ids that a run is about."""
    options = parser("run").parse_args(words)
    return [one.id for one in selected(options)]


def test_one_selection(tmp_path: Path) -> None:
    assert asked("--case", "pack/flat/v1") == ["pack/flat/v1"]
    assert asked("--case", "pack/flat/*") == [i for i in asked("--level", "deep") if i.startswith("pack/flat/")]
    (tmp_path / "list").write_text("# these\npack/flat/v1\n\npack/*/v7\n")
    assert asked("--case-list", str(tmp_path / "list")) == ["pack/flat/v1", "pack/flat/v7", "pack/linear_weight/v7"]
    every = asked("--stages", "MATCH")
    assert sum(name.startswith("gen/") for name in every) == 10
    assert asked("--case", "gen/*", "--seed", "5", "--stages", "MATCH") == [
        name.replace("seed-0", "seed-5") for name in every if name.startswith("gen/")
    ]
    deep = "gen/seed-9/shard-4/2000-programs"
    assert asked("--case", deep, "--case", "pack/flat/v1") == ["pack/flat/v1", deep]
    with pytest.raises(ValueError, match="unknown case 'pack/flat/v77'; did you mean pack/flat/v7"):
        asked("--case", "pack/flat/v1", "--case", "pack/flat/v77")


def test_an_expression_selects_and_pytest_s_own_options_follow(tmp_path: Path) -> None:
    good = ("run", "--subject", f"{MINIATURES}:Good", *PACK)
    done = conformance(*good, "-k", "flat/v7-d128", "--workers", "0", "--", "-vv")
    assert done.stdout.splitlines()[-1].startswith("tests:1 passed:1 ")
    assert "test_case[pack/flat/v7-d128] PASSED" in done.stdout
    wrong = conformance(*good, "--report", str(tmp_path / "r"), "--", "--no-such-option")
    assert wrong.returncode == 2
    assert "unrecognized arguments: --no-such-option" in wrong.stderr
    assert not list((tmp_path / "r").iterdir())


def test_few_cases_start_no_workers_and_many_do(tmp_path: Path) -> None:
    for words, processes in ((("--case", "pack/flat/v1"), 1), (PACK, min(2, len(os.sched_getaffinity(0))))):
        report = tmp_path / str(processes)
        conformance("run", "--subject", f"{MINIATURES}:Good", *words, "--report", str(report))
        assert read(report).header["workers"] == processes


def test_pytest_alone_says_how_the_suite_is_started() -> None:
    command = [sys.executable, "-m", "pytest", "conformance/suite", "-q", "-p", "no:cacheprovider"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 4
    assert "the suite is started by: q4gsw run" in done.stderr
