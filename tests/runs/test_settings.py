"""What a repository keeps for every command, subjects of other packages, answers as data, and completion."""

import json
import subprocess
import sys
import time
from pathlib import Path

import pytest

from conformance.cli.main import main
from conformance.results.verdict import read
from tests.runs.test_cli import MINIATURES, ROOT, conformance

WORDS = ("--stages", "PACK", "--workers", "0", "--quiet")


def repository(home: Path, table: str) -> Path:
    """A repository with ``table`` in its pyproject.toml; returns a folder deep inside."""
    inside = home / "src" / "deep"
    inside.mkdir(parents=True)
    (home / "pyproject.toml").write_text(table)
    return inside


def test_a_repository_keeps_its_options(tmp_path: Path) -> None:
    (tmp_path / "fakes.py").write_text(Path(MINIATURES).read_text())
    table = '[tool.q4gsw]\nsubject = "fakes.py:Raises"\nlevel = "smoke"\nreport = "reports"\n'
    inside = repository(tmp_path, table)
    (tmp_path / "reports" / "mine").mkdir(parents=True)
    done = conformance("run", *WORDS, cwd=inside)
    assert done.returncode == 1, done.stderr
    stream = read(tmp_path / "reports" / "latest")
    assert stream.header["subject"] == f"{tmp_path / 'fakes.py'}:Raises"
    assert stream.header["level"] == "smoke"
    good = conformance("run", *WORDS, "--subject", f"{tmp_path / 'fakes.py'}:Good", cwd=inside)
    assert "failed:0" in good.stdout, "the command line is stronger"
    assert len(list((tmp_path / "reports").iterdir())) == 4  # two reports, latest, and what was there


def test_only_old_reports_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from conformance.files import kept_folder

    for name in ("mine", "20260101-000000-notes", "latest-of-mine"):
        (tmp_path / name).mkdir()
    folders = [kept_folder(tmp_path, most=2) for _ in range(4)]
    left = {path.name for path in tmp_path.iterdir()} - {"mine", "20260101-000000-notes", "latest-of-mine", "latest"}
    assert left <= {folder.name for folder in folders}
    assert len(left) == 2
    assert (tmp_path / "latest").resolve() == folders[-1]


def test_a_report_that_is_being_written_stays(tmp_path: Path) -> None:
    from conformance.files import kept_folder

    code = f"from conformance.files import *; print(kept_folder(Path({str(tmp_path)!r})).name, flush=True); input()"
    with subprocess.Popen(
        [sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout
        running = tmp_path / other.stdout.readline().strip()
        time.sleep(1.1)  # names begin with the second
        newest = [kept_folder(tmp_path, most=2) for _ in range(3)][-1]
        assert running.is_dir()
        other.communicate("\n")
    kept_folder(tmp_path, most=1)
    assert not running.is_dir()
    assert not newest.is_dir()


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ('[tool.q4gsw]\nsubjekt = "x"\n', "unknown field 'subjekt'; known: subject, level, device"),
        ("[tool.q4gsw]\nlevel = 3\n", "tool.q4gsw.level: expected str, got 3"),
        ("[tool.q4gsw\n", "pyproject.toml"),
        ("tool = 5\n", "pyproject.toml"),
        ('[tool.q4gsw]\nlevel = "gat"\n', "unknown level 'gat'; did you mean gate"),
    ],
)
def test_a_wrong_table_is_one_line(tmp_path: Path, table: str, message: str) -> None:
    done = conformance("run", *WORDS, cwd=repository(tmp_path, table))
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (2, "", 1)
    assert message in done.stderr


def test_another_package_offers_a_subject(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "other_package.py").write_text(Path(MINIATURES).read_text())
    about = tmp_path / "other_package-1.0.dist-info"
    about.mkdir()
    (about / "METADATA").write_text("Metadata-Version: 2.1\nName: other-package\nVersion: 1.0\n")
    (about / "entry_points.txt").write_text("[q4gsw.subjects]\nother = other_package:Raises\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    report = tmp_path / "report"
    words = ["run", "--subject", "other", "--level", "smoke", *WORDS, "--report", str(report)]
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    assert main(words) == 1
    failure, _ = (v for v in read(report).verdicts if v.outcome == "FAIL")
    assert failure.replay.endswith("--subject other"), "a file may not choose what runs"
    file, _ = (report / "replay").iterdir()
    assert main(["replay", str(file)]) == 2
    assert main(["replay", str(file), "--subject", "other"]) == 1


def test_answers_are_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ("run", "--level", "smoke", *WORDS)
    for name in ("Good", "Raises"):
        conformance(*words, "--subject", f"{MINIATURES}:{name}", "--report", str(tmp_path / name))
    file, _ = (tmp_path / "Raises" / "replay").iterdir()

    def answer(*words: str | Path) -> tuple[int, object]:
        return main([*map(str, words), "--json"]), json.loads(capsys.readouterr().out)

    code, cases = answer("list", "--case", "pack/flat/v1")
    assert (code, cases[0]["id"], cases[0]["stage"]) == (0, "pack/flat/v1", "PACK")  # type: ignore[index]  # plain data
    code, summed = answer("report", tmp_path / "Raises")
    assert (code, summed["counts"]["FAIL"], summed["truncated"]) == (1, 2, False)  # type: ignore[index]
    assert summed["causes"][0]["example"]["replay"]  # type: ignore[index]
    code, changes = answer("diff", tmp_path / "Good", tmp_path / "Raises")
    assert (code, len(changes["new_failures"])) == (1, 2)  # type: ignore[index, arg-type]
    code, verdict = answer("replay", file, "--subject", f"{MINIATURES}:Raises")
    assert (code, verdict["outcome"]) == (1, "FAIL")  # type: ignore[index]
    code, devices = answer("devices")
    assert (code, "llvmpipe" in devices[0]["name"]) == (0, True)  # type: ignore[index]
    code, operators = answer("operators")
    assert "et_vk.embedding_q4gsw.default" in operators["operators"]  # type: ignore[index]


def test_a_shell_completes_commands_and_options(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    asks = "COMP_WORDS=(q4gsw run --sub); COMP_CWORD=2; _shtab_q4gsw q4gsw --sub run; echo ${COMPREPLY[@]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{asks}"], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["--subject"], done.stderr
