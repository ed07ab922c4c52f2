"""Kits: what is exported is judged from the files alone, one wrong bit is found, and nothing malformed is believed."""

import json
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case
from conformance.cli import main
from conformance.kits import export as build_kit
from conformance.kits.kit import read_kit, strict_outputs
from conformance.results.verdict import read as verdict_stream
from tests.kits.written import PYTHON, ROOT, answer, by_hand, judged


@pytest.mark.parametrize(
    ("command", "code", "message"),
    [
        ("sh -c 'cp {pte} {out}/output_0.bin'", 1, "RUN/dtype_shape/size"),
        ("sh -c 'echo no GPU; exit 3' {pte} {out}", 1, "exit code 3: no GPU"),
        ("sh -c 'kill -SEGV $$' {pte} {out}", 1, "signal SIGSEGV"),
        ("sh -c 'sleep 60' {pte} {out}", 1, "no answer within 0.5 s"),
        ("no-such-runner {pte} {out} {inputs}", 2, "no-such-runner cannot be run"),
        ("runner {pte}", 2, "needs {pte} and {out}"),
    ],
)
def test_a_runner_is_called_with_a_time_limit(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, message: str
) -> None:
    folder = by_hand(tmp_path)
    words = ["kit", "run", "--kits", str(folder), "--subject-command", command, "--case-seconds", "0.5"]
    started = time.monotonic()
    assert main.main(words) == code
    assert time.monotonic() - started < 20
    printed = capsys.readouterr()
    assert message in printed.out + printed.err


def test_a_runner_gets_model_outputs_and_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    runner = tmp_path / "runner.sh"
    right = out / folder.name / "output_0.bin"
    runner.write_text(f'test "$3" = {folder}/input_0.bin:int64:2 && test -s "$1" && cp {right} "$2"/output_0.bin\n')
    words = ["kit", "run", "--kits", str(folder), "--subject-command", f"sh {runner} {{pte}} {{out}} {{inputs}}"]
    assert main.main(words) == 0
    assert "PASS  hand/written" in capsys.readouterr().out


def test_verdicts_on_kits_are_a_report_beside_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = by_hand(tmp_path, case_id="run/control")
    right, wrong = answer(folder, tmp_path / "right"), answer(folder, tmp_path / "wrong", lambda a: a * np.float32(2))
    named, known = ("--subject-name", "my runtime"), tmp_path / "known.toml"
    assert judged(folder, wrong, *named, "--report", str(tmp_path / "old")) == 1
    (verdict,) = verdict_stream(tmp_path / "old").verdicts
    assert (verdict.subject, verdict.contract, verdict.signature) == ("my runtime", "3.2", "RUN/array/values")
    files = {"verdicts.jsonl", "summary.md", "report.html", "junit.xml"}
    assert {p.name for p in (tmp_path / "old").iterdir()} == files
    capsys.readouterr()
    assert judged(folder, wrong, *named, "--json") == 1
    (said,) = json.loads(capsys.readouterr().out)
    assert (said["outcome"], said["subject"], said["signature"]) == ("FAIL", "my runtime", "RUN/array/values")
    assert main.main(shlex.split(verdict.replay)[1:]) == 1, verdict.replay
    assert "RUN/array/values" in capsys.readouterr().out
    known.write_text(
        '[[known]]\ndefect = "doubled"\nsignature = ["RUN/array/values"]\ncase = ["run/control"]\n'
        'reason = "it adds the row twice"\nlink = "https://example.org/1"\n'
    )
    expected = (*named, "--expectations", str(known))
    assert judged(folder, wrong, *expected) == 0
    assert "doubled" in capsys.readouterr().out
    assert judged(folder, right, *expected) == 1, "an unexpected pass"
    assert "xpass:1" in capsys.readouterr().out
    assert judged(folder, right, *named, "--report", str(tmp_path / "old")) == 2, "another run's report"
    assert judged(folder, right, *named, "--report", str(tmp_path / "new")) == 0
    assert main.main(["diff", str(tmp_path / "new"), str(tmp_path / "old")]) == 1
    assert main.main(["diff", str(tmp_path / "old"), str(tmp_path / "new")]) == 0


def test_a_case_that_is_not_exported_costs_only_itself_and_has_a_verdict(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that is not lowered, and one that cannot be a kit: named, an ERROR each, and a new failure for diff."""
    cases = ("run/control", "run/g2-refused", "run/tied-after")

    def export(case: Case, folder: Path, *more: Any) -> Path:
        if trouble := troubles.get(case.id):
            raise trouble
        return whole(case, folder, *more)

    whole = build_kit.export
    monkeypatch.setattr(build_kit, "lowering", lambda *_: lambda *_: b"x" * 64)
    monkeypatch.setattr(build_kit, "export", export)
    chosen = [word for case in cases for word in ("--case", case)]
    command = ["--subject-command", "sh -c 'echo not there' {pte} {out}"]

    troubles: dict[str, Exception] = {}
    assert main.main(["kit", "run", *chosen, *command, "--report", str(tmp_path / "old")]) == 1
    troubles |= {"run/g2-refused": build_kit.NotLowered("impl does not lower it"), "run/control": ValueError("no kit")}
    capsys.readouterr()
    assert main.main(["kit", "export", str(tmp_path / "kits"), *chosen]) == 1
    printed = capsys.readouterr()
    assert printed.err == "run/control: no kit\nrun/g2-refused: impl does not lower it\n"
    assert "1 of 3 cases written" in printed.out

    assert main.main(["kit", "run", *chosen, *command, "--report", str(tmp_path / "new")]) == 1
    verdicts = {v.case: v for v in verdict_stream(tmp_path / "new").verdicts}
    assert {name: (v.outcome, v.signature) for name, v in verdicts.items()} == {
        "run/control": ("ERROR", "RUN/raised/ValueError"),
        "run/g2-refused": ("ERROR", "RUN/raised/NotLowered"),
        "run/tied-after": ("FAIL", "RUN/dtype_shape/missing"),
    }
    assert "impl does not lower it" in verdicts["run/g2-refused"].reason
    assert main.main(["diff", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    capsys.readouterr()
    assert main.main(shlex.split(verdicts["run/g2-refused"].replay)[1:]) == 1
    assert "RUN/raised/NotLowered" in capsys.readouterr().out
    assert main.main(["kit", "export", str(tmp_path / "kits"), *chosen]) == 2, "it is not empty"


def test_exported_kits_are_played_and_judged_elsewhere(tmp_path: Path) -> None:
    """The whole way, in processes of their own: export, play on Vulkan and CPU, judge, and judge a flipped bit."""

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "conformance", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    kits, out = tmp_path / "kits", tmp_path / "out"
    cases = ("run/control", "run/g2-refused", "run/tied-after")
    code, message = run("kit", "export", str(kits), *(word for case in cases for word in ("--case", case)))
    assert code == 0, message
    assert (kits / "README.md").is_file()
    assert (kits / "run__control/arguments.txt").read_text() == "input_0.bin:int64:5\n"
    kit = read_kit(kits / "run__tied-after")
    assert [output.name for call in kit.description.calls for output in call.outputs] == list(
        kit.case.program.outputs()
    )
    again = run("kit", "export", str(kits), "--case", "run/control")
    assert again[0] == 2
    assert "is not empty" in again[1]
    own = f"{PYTHON} -m conformance kit play-one {{pte}} {{out}} {{inputs}}"
    code, message = run("kit", "run", "--kits", str(kits / "run__g2-refused"), "--subject-command", own)
    assert code == 0, message
    code, message = run("kit", "play", str(kits), str(out))
    assert code == 0, message
    assert message.count("PASS  run/") == 3
    assert run("kit", "judge", str(kits), str(out))[0] == 0
    for name in ("run__control", "run__g2-refused"):
        wrong = tmp_path / f"wrong-{name}"
        shutil.copytree(out, wrong)
        data = bytearray((wrong / name / "output_0.bin").read_bytes())
        data[len(data) // 2] ^= 1
        (wrong / name / "output_0.bin").write_bytes(data)
        code, message = run("kit", "judge", str(kits), str(wrong))
        assert code == 1
        assert "passed:2 failed:1" in message


def several(tmp_path: Path, mode: str = "") -> tuple[Path, list[str]]:
    """A kit of three calls, and a runner for it that hands out the right answers."""
    folder = by_hand(tmp_path)
    about = json.loads((folder / "case.json").read_text())
    answers = tmp_path / "answers"
    answers.mkdir()
    (answers / "mode").write_text(mode)
    (first,) = about["calls"]
    about["calls"] = [
        {**first, "outputs": [{**first["outputs"][0], "file": f"output_{number}.bin"}]} for number in range(3)
    ]
    (folder / "case.json").write_text(json.dumps(about))
    (right,) = strict_outputs(read_kit(folder).case.program).values()
    for number in range(12):
        np.save(answers / f"{number}.npy", right)
    return folder, [sys.executable, str(ROOT / "tests" / "fakes" / "runner.py"), str(answers)]


def run_kits(folder: Path, words: list[str], *more: str) -> int:
    command = shlex.join(words) + " {pte} {out} {inputs}"
    return main.main(["kit", "run", "--kits", str(folder), "--subject-command", command, *more])


def test_every_call_of_a_kit_is_judged(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, runner = several(tmp_path)
    assert run_kits(folder, runner) == 0
    answers = Path(runner[-1])
    np.save(answers / "2.npy", np.load(answers / "2.npy") * np.float32(2))
    capsys.readouterr()
    assert run_kits(folder, runner) == 1
    printed = capsys.readouterr().out
    assert "call 3 of 3: lookup0[" in printed
    assert "(RUN/array/" in printed


def test_answers_that_differ_between_equal_calls_are_a_failure_of_their_own(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A flaky runner: the second time it is right but for one element; the third it is another one."""
    folder, runner = several(tmp_path)
    assert run_kits(folder, runner, "--repeat", "4") == 0
    answers = Path(runner[-1])
    flaky = np.load(answers / "4.npy")
    flaky[1, 17] = np.nextafter(flaky[1, 17], np.float32(1))
    np.save(answers / "4.npy", flaky)
    capsys.readouterr()
    assert run_kits(folder, runner) == 0, "the first time is right"
    assert run_kits(folder, runner, "--repeat", "4") == 1
    printed = capsys.readouterr().out
    assert "output_1[1, 17] is 0x" in printed
    assert "1 of 64 elements differ" in printed
    assert "tiles (row, columns / 32) [1, 0]  (RUN/nondeterministic/in_process)" in printed


def test_a_symbolic_size_is_played_at_several_sizes_and_a_dispatch_as_one_operator(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cases = (
        "run/dynamic-indices",
        "kernel/large/flat-buffer-texture3d/v2000",
        "kernel/limit/flat-buffer-texture3d/d8192",
    )
    words = [word for case in cases for word in ("--case", case)]
    assert main.main(["kit", "export", str(tmp_path / "kits"), *words]) == 1
    printed = capsys.readouterr()
    assert printed.err == (
        "kernel/limit/flat-buffer-texture3d/d8192: what a runtime does with indices outside of the table, or past a "
        "device's limits, is not fixed\n"
    )
    sized = read_kit(tmp_path / "kits" / "run__dynamic-indices")
    assert [call.inputs[0].shape for call in sized.description.calls] == [(5,), (0,), (1,), (3,)]
    assert [call.outputs[0].shape for call in sized.description.calls] == [(5, 64), (0, 64), (1, 64), (3, 64)]
    assert main.main(["kit", "play", str(tmp_path / "kits"), str(tmp_path / "out"), "--repeat", "3"]) == 0
    wrong = tmp_path / "out" / "run__dynamic-indices" / "output_3.bin"
    wrong.write_bytes(bytes(wrong.stat().st_size))
    capsys.readouterr()
    assert main.main(["kit", "judge", str(tmp_path / "kits"), str(tmp_path / "out")]) == 1
    assert "FAIL  run/dynamic-indices-size-3  call 4 of 4: lookup0[" in capsys.readouterr().out


def test_a_program_of_the_user_s_own_is_a_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from torchao.quantization import IntxWeightOnlyConfig, quantize_
    from torchao.quantization.granularity import PerGroup

    model, ids = torch.nn.Sequential(torch.nn.Embedding(40, 64)).eval(), torch.tensor([3, 39, 0])
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    quantize_(model, config, lambda module, _: isinstance(module, torch.nn.Embedding))
    torch.export.save(torch.export.export(model, (ids,)), tmp_path / "mine.pt2")
    np.savez(tmp_path / "inputs.npz", ids.numpy())
    words = ["kit", "export", str(tmp_path / "mine.pt2"), str(tmp_path / "kits"), "--inputs"]
    assert main.main([*words, str(tmp_path / "mine.pt2")]) == 2
    np.savez(tmp_path / "wrong.npz", np.zeros(3, np.float32))
    assert main.main([*words, str(tmp_path / "wrong.npz")]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert main.main([*words, str(tmp_path / "inputs.npz")]) == 0
    assert main.main(["kit", "play", str(tmp_path / "kits"), str(tmp_path / "out")]) == 0
    assert "PASS  model/mine" in capsys.readouterr().out
    wrong = tmp_path / "out" / "mine" / "output_0.bin"
    wrong.write_bytes(bytes(wrong.stat().st_size))
    assert main.main(["kit", "judge", str(tmp_path / "kits"), str(tmp_path / "out")]) == 1


def test_a_model_that_cannot_be_played_costs_its_own_kit(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What ends the player, and what the player refuses, stand between two kits that are right."""
    words = [word for case in ("run/control", "run/int32-indices") for word in ("--case", case)]
    assert main.main(["kit", "export", str(tmp_path / "kits"), *words]) == 0
    by_hand(tmp_path, case_id="run/hand")
    capsys.readouterr()
    assert main.main(["kit", "play", str(tmp_path / "kits"), str(tmp_path / "out")]) == 1
    printed = capsys.readouterr().out
    assert "FAIL  run/hand  BadFile: " in printed
    assert "passed:2 failed:1" in printed
