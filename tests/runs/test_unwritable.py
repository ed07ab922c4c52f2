"""Full disks, read-only directories, other runs' reports: one clear line, a red run, and nothing written in part."""

import errno
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from conformance.cli.main import main
from conformance.files import Unwritable
from conformance.kits import export
from conformance.proofs.journal import Journal, Record
from conformance.results import report
from conformance.results.verdict import PASS, Stream, Verdict, Writer, read
from tests.runs.test_robustness import until
from tests.support.small_disks import DISKS, read_only
from tests.support.suite_runs import PACKED, ROOT, SUBJECTS, WAYS, ended, run, start

GOOD = ("--subject", f"{SUBJECTS}:Good")
Capture = pytest.CaptureFixture[str]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "r"
    path.mkdir()
    return path


def names(path: Path) -> set[str]:
    """All that is there, hidden or not."""
    return {p.name for p in path.iterdir()}


def error_of(said: str, start: str, why: str) -> str:
    """The one line that tells what cannot be written, why, and what to do."""
    (line,) = (line for line in said.splitlines() if line.startswith("error: "))
    assert line.startswith(f"error: {start}"), line
    assert f"cannot be written ({why}); " in line
    assert line.endswith("or write to another directory")
    return line


def is_cut_between_lines(stream: Path) -> None:
    """What was written before the disk was full is whole, and says that it is not all."""
    assert stream.read_bytes().endswith(b"}\n")
    found = read(stream)
    assert found.truncated
    assert 0 < len(found.verdicts) < len(PACKED)


@pytest.mark.parametrize("disk", DISKS)
@pytest.mark.parametrize("way", WAYS)
def test_a_disk_that_fills_up_ends_a_run(disk: str, way: str, folder: Path, capsys: Capture) -> None:
    fill, why = DISKS[disk]
    with fill(folder, 8):
        done = run(way, "Good", folder)
        assert done.returncode == 2
        assert done.stderr.splitlines() == [error_of(done.stderr, f"{folder}/verdicts.jsonl: ", why)]
        assert names(folder) == {"verdicts.jsonl"}
        is_cut_between_lines(folder / "verdicts.jsonl")
        assert main(["report", str(folder)]) == 1
    assert "truncated: the run did not finish" in capsys.readouterr().out


@pytest.mark.parametrize("disk", DISKS)
def test_a_run_without_room_for_its_page_is_not_green(disk: str, folder: Path) -> None:
    fill, why = DISKS[disk]
    with fill(folder, 12):
        done = run("alone", "Good", folder, "--level", "smoke")
        assert done.returncode == 2
        error_of(done.stderr, f"{folder}/report.html: ", why)
        assert names(folder) == {"verdicts.jsonl"}
        stream = read(folder / "verdicts.jsonl")
        assert not stream.truncated
        assert {v.outcome for v in stream.verdicts} == {PASS}


@pytest.mark.parametrize("way", WAYS)
def test_a_replay_file_that_cannot_be_written_ends_the_run(way: str, folder: Path) -> None:
    """By then a failure is known, which the disk must not turn into a shorter, greener report."""
    (folder / "replay").touch()
    done = run(way, "Wrong", folder)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line == f"error: {folder}/replay: cannot be written (File exists); it is a file; name a directory"
    assert read(folder / "verdicts.jsonl").truncated
    assert "INTERNALERROR" not in done.stdout


@pytest.mark.parametrize("disk", DISKS)
def test_an_older_report_stays_whole(disk: str, folder: Path, capsys: Capture) -> None:
    fill, why = DISKS[disk]
    with fill(folder, 16):
        writer = Writer(folder / "verdicts.jsonl", {"subject": "impl"})
        writer.add(Verdict("pack/flat/v1", "PACK", "impl", PASS))
        writer.close()
        for name in ("summary.md", "report.html"):
            (folder / name).write_text("older")
        assert main(["report", str(folder), "--html"]) == 2
        error_of(capsys.readouterr().err, f"{folder}/report.html: ", why)
        assert {(folder / name).read_text() for name in ("summary.md", "report.html")} == {"older"}
        assert names(folder) == {"verdicts.jsonl", "summary.md", "report.html"}


@pytest.mark.parametrize("disk", DISKS)
def test_a_kit_that_does_not_fit_is_not_left_in_part(
    disk: str, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(export, "lowering", lambda *_: lambda *_: b"x" * 64 * 1024)
    fill, why = DISKS[disk]
    (folder / "older").mkdir()
    with fill(folder, 12):
        assert main(["kit", "export", str(folder / "kits"), "--case", "run/control"]) == 2
        error_of(capsys.readouterr().err, str(folder), why)
        assert names(folder) <= {"older", "kits"}
        assert not (folder / "kits").exists() or not names(folder / "kits")


@pytest.mark.parametrize("disk", DISKS)
def test_a_certificate_that_does_not_fit_leaves_the_older_one(disk: str, folder: Path, capsys: Capture) -> None:
    fill, why = DISKS[disk]
    size = 4 if disk == "mounted" else 1
    with fill(folder, size):
        (folder / "layout-reference.json").write_text("older")
        assert main(["prove", "layout", "--subject", "reference", "--out", str(folder)]) == 2
        error_of(capsys.readouterr().err, str(folder), why)
        assert (folder / "layout-reference.json").read_text() == "older"
        assert names(folder) == {"layout-reference.json"}


@pytest.mark.parametrize("disk", DISKS)
def test_a_journal_that_was_full_goes_on_when_there_is_room(disk: str, folder: Path) -> None:
    fill, _ = DISKS[disk]
    path = folder / "a.journal"
    with fill(folder, 8):
        journal = Journal(path, {"what": "test"}, resume=False)
        written = []
        with pytest.raises(Unwritable):  # noqa: PT012 - which chunk does not fit is the disk's
            for start in range(1000):
                journal.add(Record(start, start + 1, damage="x" * 100))
                written.append(start)
        kept = path.read_text()
        journal.close()
    path.write_text(kept)
    again = Journal(path, {"what": "test"}, resume=True)
    assert [record.start for record in again.records] == written


@pytest.mark.parametrize("command", ["run", "list"])
def test_a_full_standard_output_is_one_line_and_red(command: str, tmp_path: Path) -> None:
    more = [*GOOD, "--report", str(tmp_path / "r")] if command == "run" else []
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "conformance", command, "--case", "pack/flat/v1", *more],
            cwd=ROOT,
            env={name: value for name, value in os.environ.items() if name != "PYTHONUNBUFFERED"},
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1
    error_of(done.stderr, "standard output: ", "No space left on device")


def test_a_header_that_does_not_fit_leaves_no_stream(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Or the next run, with room enough, would be told that another run's report is there."""
    with pytest.MonkeyPatch.context() as full:
        full.setattr("conformance.results.verdict.append_line", _no_space)
        with pytest.raises(ValueError, match="cannot be written"):
            Writer(folder / "verdicts.jsonl", {"subject": "impl"})
    assert not names(folder)
    Writer(folder / "verdicts.jsonl", {"subject": "impl"}).close()


def _no_space(path: Path, line: str) -> None:
    from conformance.files import unwritable

    raise unwritable(path, OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))


def test_summary_and_page_are_replaced_together_or_not_at_all(folder: Path) -> None:
    """The page's place is a directory, which no file replaces: the summary must not be a newer one."""
    (folder / "summary.md").write_text("older")
    (folder / "report.html").mkdir()
    stream = Stream({"subject": "impl"}, (Verdict("a", "PACK", "impl", PASS),), truncated=False)
    with pytest.raises(ValueError, match=r"report\.html: cannot be written \(Is a directory\)"):
        report.write(folder, [stream])
    assert (folder / "summary.md").read_text() == "older"
    assert names(folder) == {"summary.md", "report.html"}


def a_file(path: Path) -> None:
    path.touch()


_DENIED = "cannot be written (Permission denied); write to another directory"
#: What is where the report is to go: what makes it, the report's place from there, and what the line says.
PLACES: dict[str, tuple[Callable[[Path], Callable[[], None] | None], str, str]] = {
    "a file": (a_file, "r", "cannot be written (File exists); it is a file; name a directory"),
    "below a file": (a_file, "r/below", "cannot be written (Not a directory); a part of that path is a file"),
    "read-only": (read_only, "r", _DENIED),
    "in a read-only one": (read_only, "r/below", _DENIED),
}


@pytest.mark.parametrize("place", PLACES)
def test_a_place_that_cannot_be_written_is_told_before_any_case(place: str, tmp_path: Path) -> None:
    make, below, why = PLACES[place]
    before = make(tmp_path / "r")
    mark = tmp_path / "asked"
    done = run("alone", "Marks", tmp_path / below, env={"MARK": str(mark)}, before=before)
    assert done.returncode == 2
    (line,) = done.stderr.splitlines()
    assert line.startswith(f"error: {tmp_path / below}")
    assert why in line
    assert not mark.exists()


@pytest.mark.parametrize(
    "words",
    [
        ("kit", "export", "{}", "--case", "run/control"),
        ("prove", "layout", "--subject", "reference", "--out", "{}"),
        ("prove", "arithmetic", "--subject", "reference", "--out", "{}"),
    ],
    ids=" ".join,
)
def test_other_outputs_are_told_before_the_work(words: tuple[str, ...], tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "r").touch()
    for below, why in (("r", "it is a file; name a directory"), ("r/x", "a part of that path is a file")):
        assert main([word.format(tmp_path / below) for word in words]) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path / below}: cannot be written ")
        assert why in line


@pytest.mark.parametrize("way", WAYS)
def test_parents_that_are_not_there_are_made(way: str, tmp_path: Path) -> None:
    place = tmp_path / "not" / "yet" / "there"
    assert run(way, "Good", place, "--level", "smoke").returncode == 0
    assert names(place) >= {"verdicts.jsonl", "summary.md", "report.html"}


@pytest.mark.parametrize("killed", [False, True])
def test_another_run_s_report_is_left_alone(killed: bool, folder: Path) -> None:
    """One that is still running, one that was killed, and one that is finished."""
    mark, stream = folder.parent / "hangs", folder / "verdicts.jsonl"
    first = start("alone", "Hangs", folder, env={"MARK": str(mark)})
    until(mark.exists)

    def refused() -> None:
        before = {p: p.read_bytes() for p in folder.iterdir()}
        for way in WAYS:
            done = run(way, "Good", folder)
            assert done.returncode == 2
            assert f"{stream}: another run's report is there; give --report an empty directory" in done.stderr
        for path, was in before.items():
            assert path.read_bytes().startswith(was)
        assert names(folder) == {p.name for p in before}

    if not killed:
        refused()
    first.kill()
    ended(first)
    if killed:
        refused()
        return
    stream.unlink()
    assert run("alone", "Good", folder, "--level", "smoke").returncode == 0
    finished = {p: p.read_bytes() for p in folder.iterdir()}
    refused()
    assert {p: p.read_bytes() for p in folder.iterdir()} == finished
    assert json.loads(stream.read_text().splitlines()[-1])["footer"]
