"""Kits from strangers, and runners that misbehave: refused by name, in bounds, and nothing is left running."""

import hashlib
import json
import os
import resource
import time
from pathlib import Path

import pytest

from conformance.cli.main import main
from tests.kits.written import answer, by_hand, judged
from tests.project.test_security import refused
from tests.support.commands import interrupted

ROOT = Path(__file__).parents[2]


def runner(folder: Path, script: str, *more: str) -> list[str]:
    path = folder / "runner.sh"
    path.write_text(script)
    return ["kit", "run", "--kits", str(folder), "--subject-command", f"sh {path} {{pte}} {{out}} {{inputs}}", *more]


def alive(number: Path) -> bool:
    stat = Path(f"/proc/{number.read_text().strip()}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


@pytest.mark.parametrize("script", ["setsid sleep 600 & echo $! > {}\nexit 3", "sleep 600 & echo $! > {}\nsleep 600"])
def test_a_runner_s_daemon_neither_holds_the_run_nor_outlives_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], script: str
) -> None:
    by_hand(tmp_path)
    words = runner(tmp_path / "kits", script.format(tmp_path / "number"), "--case-seconds", "2")
    started = time.monotonic()
    assert main(words) == 1
    assert time.monotonic() - started < 60
    assert "RUN/raised/" in capsys.readouterr().out
    assert not alive(tmp_path / "number")


def test_a_runner_s_output_is_bounded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    by_hand(tmp_path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    assert main(runner(tmp_path / "kits", "head -c 200M /dev/zero; echo; echo no GPU; exit 3")) == 1
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"
    printed = capsys.readouterr().out
    assert "no GPU" in printed
    assert "\0" not in printed


def test_ctrl_c_leaves_no_runner(tmp_path: Path) -> None:
    by_hand(tmp_path)
    number = tmp_path / "number"
    words = runner(tmp_path / "kits", f"setsid sleep 600 & echo $! > {number}.new; mv {number}.new {number}; sleep 600")
    code, error = interrupted(words, number.exists)
    assert (code, error.count("\n")) == (130, 1)
    assert not alive(number)


def test_what_is_no_regular_file_is_named_and_never_read(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whoever opens the FIFO hangs; whoever reads the sparse file needs its size."""
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    for name in ("model.pte", "input_0.bin", "case.toml", "case.json"):
        kept = (folder / name).read_bytes()
        for put in (
            os.mkfifo,
            lambda path: path.symlink_to("/dev/zero"),
            lambda path: path.symlink_to(tmp_path / "elsewhere"),
            lambda path: path.mkdir(),
            lambda path: (path.touch(), os.truncate(path, 8 << 30)),
        ):
            (folder / name).unlink()
            put(folder / name)
            words = ["kit", "judge", str(folder), str(out)] if name.startswith("case") else runner(folder, "touch ran")
            line = refused(capsys, *words)
            assert name in line or (name == "case.json" and "no kit there" in line)
            (folder / name).rmdir() if (folder / name).is_dir() else (folder / name).unlink()
            (folder / name).write_bytes(kept)
    assert judged(folder, out) == 0
    output = out / folder.name / "output_0.bin"
    output.unlink()
    os.mkfifo(output)
    assert judged(folder, out) == 1
    assert "RUN/dtype_shape/missing" in capsys.readouterr().out


def test_an_altered_input_does_not_reach_the_runner(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    (folder / "input_0.bin").write_bytes(bytes(16))
    assert "input_0.bin: its SHA-256 is not" in refused(capsys, *runner(folder, f"touch {tmp_path}/ran"))
    assert not (tmp_path / "ran").exists()


def test_playing_an_altered_kit_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["kit", "export", str(tmp_path / "kits"), "--case", "run/control"]) == 0
    folder = tmp_path / "kits" / "run__control"
    whole = (folder / "model.pte").read_bytes()
    about = (folder / "case.json").read_text()
    assert main(["kit", "play", str(folder), str(tmp_path / "out")]) == 0
    capsys.readouterr()
    for data in (b"garbage" * 100, whole[: len(whole) // 2], whole[:64] + bytes(64) + whole[128:]):
        (folder / "model.pte").write_bytes(data)
        assert "model.pte: its SHA-256 is not" in refused(capsys, "kit", "play", folder, tmp_path / "no")
        named = json.loads(about)
        named["model"]["sha256"] = hashlib.sha256(data).hexdigest()
        (folder / "case.json").write_text(json.dumps(named))
        assert main(["kit", "play", str(folder), str(tmp_path / "no")]) == 1
        assert "(RUN/raised/" in capsys.readouterr().out
        (folder / "case.json").write_text(about)
