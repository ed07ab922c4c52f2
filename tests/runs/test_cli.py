"""The command line as a user meets it: exit codes, one-line errors, replay from a file alone."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance.case.catalogue import load, select
from conformance.results.verdict import read

ROOT = Path(__file__).parents[2]
MINIATURES = Path(__file__).parents[1] / "fakes/misbehaving.py"
PACK = ("--stages", "PACK")
PACKED = len(select(load(), level="gate", stages=["PACK"]))


def conformance(*arguments: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Run ``python -m conformance`` with ``arguments``."""
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "conformance", *arguments]
    return subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False, timeout=120)


def suite(*arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the suite under pytest, as nox does."""
    command = [sys.executable, "-m", "pytest", "conformance/suite", "-q", "-p", "no:cacheprovider", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False, timeout=120)


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


@pytest.mark.parametrize("option", [("--subject", "imp"), ("--level", "smok"), ("--stages", "PAK")])
def test_the_pytest_way_names_the_nearest_too(option: tuple[str, str]) -> None:
    done = suite(*option)
    assert done.returncode == 4  # pytest's code for usage
    assert "did you mean" in done.stderr


def test_a_good_run_exits_0_and_ends_with_the_counts(tmp_path: Path) -> None:
    done = conformance("run", "--subject", f"{MINIATURES}:Good", *PACK, "--report", str(tmp_path / "r"))
    assert done.returncode == 0
    assert done.stdout.splitlines()[-1].startswith(f"tests:{PACKED} passed:{PACKED} failed:0 error:0 unsupported:0")


@pytest.mark.parametrize("way", ["cli", "pytest"])
def test_a_run_that_judges_nothing_fails(tmp_path: Path, way: str) -> None:
    arguments = ("--subject", f"{MINIATURES}:SupportsNothing", *PACK, "--report", str(tmp_path / "r"))
    done = conformance("run", *arguments) if way == "cli" else suite(*arguments)
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
    again = conformance("replay", "case.toml", cwd=elsewhere)
    assert again.returncode == 1
    assert "recorded signature: PACK/raised/KeyError@subject_misbehaving.Raises.bad (the same failure)" in again.stdout
    mended = conformance("replay", "case.toml", "--subject", f"{MINIATURES}:Good", cwd=elsewhere)
    assert mended.returncode == 0
    assert "not the recorded failure" in mended.stdout


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
        suite("--subject", f"{MINIATURES}:Raises", *PACK, "-n", workers, "--report", str(report))
        stream = read(report / "verdicts.jsonl")
        assert not stream.truncated
        outcomes.append({(v.case, v.outcome, v.signature) for v in stream.verdicts})
    assert outcomes[0] == outcomes[1]
    assert len(outcomes[0]) == PACKED


def test_xdist_workers_leave_replay_files_in_the_run_s_own_new_directory(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "pytest", str(ROOT / "conformance" / "suite"), "-q", "-p", "no:cacheprovider"]
    options = ["-n", "2", "--subject", f"{MINIATURES}:Raises", *PACK, "--level", "smoke", "--rootdir", str(ROOT)]
    env = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, env=env, capture_output=True, text=True, check=False, timeout=120
    )
    report = next(line for line in done.stdout.splitlines() if line.startswith("report: "))
    folder = Path(report.removeprefix("report: ").split("/verdicts.jsonl")[0])
    assert list((folder / "replay").glob("*.toml"))
    assert not (tmp_path / "replay").exists()


def test_list_shows_each_case_once() -> None:
    done = conformance("list")
    ids = [line.split()[0] for line in done.stdout.splitlines()[:-1]]
    assert len(ids) == len(set(ids)) >= 60
