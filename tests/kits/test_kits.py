"""Kits: what is exported is judged from the files alone, one wrong bit is found, and nothing malformed is believed."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case
from conformance.cli import main
from conformance.cli.report import stream_of as verdict_stream
from conformance.kits import export as build_kit
from conformance.kits.kit import read_kit
from reference.arithmetic.accept import HOST, accept_products
from reference.program.spec import Dequantize, Linear, ProgramSpec, TensorSpec, Values

ROOT = Path(__file__).parents[2]
PYTHON = shlex.quote(sys.executable)


def write(folder: Path, name: str, array: Any) -> dict[str, Any]:
    raw = array.tobytes()
    (folder / name).write_bytes(raw)
    digest = hashlib.sha256(raw).hexdigest()
    return {"file": name, "dtype": str(array.dtype), "shape": list(array.shape), "sha256": digest}


def by_hand(root: Path) -> Path:
    """A kit whose one output has two groups of inexact float32 products, and a subnormal scale."""
    folder = root / "kits" / "hand__made"
    folder.mkdir(parents=True)
    values = np.arange(-8, 8, dtype=np.int8).reshape(2, 8)
    scales = np.array([[0.1, 3.7], [1e-41, 0.3]], np.float32)
    product = values * np.repeat(scales, 4, axis=1).astype(np.float64)
    (folder / "model.pte").write_bytes(b"never run here")
    output = {"name": "lookup0", "file": "output_0.bin", "dtype": "float32", "shape": [2, 8], "judged_by": "product"}
    output |= {"values": write(folder, "values_0.bin", values), "scales": write(folder, "scales_0.bin", scales)}
    output |= {"product": write(folder, "product_0.bin", product)}
    about = {
        "kit": 1,
        "case": "hand/made",
        "source": "3.2",
        "shows": "a wrong bit",
        "model": {"file": "model.pte", "sha256": hashlib.sha256(b"never run here").hexdigest()},
        "inputs": [write(folder, "input_0.bin", np.array([0, 1]))],
        "outputs": [output],
        "lowered_with": "impl",
    }
    (folder / "case.json").write_text(json.dumps(about))
    return folder


def answer(folder: Path, out: Path, change: Callable[[Any], Any] = lambda right: right) -> Path:
    kit = read_kit(folder)
    parts = {name: np.fromfile(folder / t.file, t.dtype).reshape(t.shape) for name, t in kit.outputs[0].parts.items()}
    scales = np.repeat(parts["scales"], 4, axis=1)
    right = accept_products(parts["values"], scales, "float32", HOST).candidates[0].view(np.float32).copy()
    (out / folder.name).mkdir(parents=True)
    (out / folder.name / "output_0.bin").write_bytes(np.asarray(change(right)).tobytes())
    return out


def judged(folder: Path, out: Path, *more: str) -> int:
    return main.main(["judge", str(folder.parent), str(out), *more])


def test_right_outputs_pass_and_every_flipped_bit_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    assert judged(folder, answer(folder, tmp_path / "out")) == 0
    for at in (0, 9, 36, 63 * 8 + 7 - 1):
        capsys.readouterr()
        out = tmp_path / f"flipped{at}"
        answer(folder, out)
        path = out / folder.name / "output_0.bin"
        data = bytearray(path.read_bytes())
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        assert judged(folder, out) == 1, at
        said = capsys.readouterr().out
        assert "RUN/array/" in said
        assert "1 of 16" in said


def test_what_a_device_may_do_is_accepted_with_its_profile_only(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)

    def neighbour(right: Any) -> Any:
        right[0, 1] = np.nextafter(right[0, 1], np.float32(-1), dtype=np.float32)  # -0.7, which is inexact
        return right

    def flushed(right: Any) -> Any:
        right[1, :4] = 0
        return right

    def modes(*names: str) -> tuple[str, str]:
        path = tmp_path / "profile.toml"
        path.write_text(f"execution_modes = {json.dumps(names)}\nprecise = true\n")
        return "--device-profile", str(path)

    for number, change in enumerate((neighbour, flushed)):
        out = answer(folder, tmp_path / f"out{number}", change)
        assert judged(folder, out) == 1
        assert judged(folder, out, *modes()) == 0
        assert judged(folder, out, *modes("RoundingModeRTE 32", "DenormPreserve 32")) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('execution_modes = ["RoundingModeUp 32"]', "execution mode 'RoundingModeUp 32' is not one of"),
        ('execution_modes = "RoundingModeRTE 32"', "must be a list"),
        ('execution_modes = ["RoundingModeRTE 32", "RoundingModeRTZ 32"]', "two contradictory modes"),
        ("tolerance = 0.1", "unknown field 'tolerance'"),
        ('io_storage = "texture2d"', "is not buffer or texture3d"),
        ("precise = 1", "is not true or false"),
        ("precise", "not a device profile"),
    ],
)
def test_a_wrong_profile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, said: str) -> None:
    folder = by_hand(tmp_path)
    profile = tmp_path / "profile.toml"
    profile.write_text(text)
    assert judged(folder, answer(folder, tmp_path / "out"), "--device-profile", str(profile)) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_missing_and_short_outputs_are_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out", lambda right: right.astype(np.float16))
    assert judged(folder, out) == 1
    assert "32 bytes; float32[2, 8] has 64" in capsys.readouterr().out
    (out / folder.name / "output_0.bin").unlink()
    assert judged(folder, out) == 1
    assert "RUN/dtype_shape/missing" in capsys.readouterr().out
    assert judged(folder, tmp_path / "nowhere") == 2
    assert main.main(["judge", str(tmp_path / "empty"), str(out)]) == 2


HOSTILE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("kit",), 2, "kit must be 1"),
    (("model", "file"), "../model.pte", "model.file '../model.pte' must be a plain file name"),
    (("model",), None, "model must be a table"),
    (("inputs",), "all", "inputs must be a list"),
    (("inputs", 0, "file"), "/etc/passwd", "inputs[0].file '/etc/passwd'"),
    (("outputs",), [], "outputs is empty"),
    (("outputs", 0, "file"), "a/b.bin", "outputs[0].file 'a/b.bin'"),
    (("outputs", 0, "name"), "../x", "outputs[0].name"),
    (("outputs", 0, "dtype"), "object", "outputs[0].dtype 'object'"),
    (("outputs", 0, "dtype"), "int32", "outputs[0].dtype 'int32' is not one of float32, float16"),
    (("outputs", 0, "shape"), [2, -8], "outputs[0].shape [2, -8]"),
    (("outputs", 0, "shape"), [1 << 31, 1 << 31], "takes 18446744073709551616 bytes"),
    (("outputs", 0, "shape"), [2, 4], "values.shape [2, 8] is not the output's [2, 4]"),
    (("outputs", 0, "shape"), [True, 8], "outputs[0].shape"),
    (("outputs", 0, "judged_by"), "eye", "outputs[0].judged_by 'eye'"),
    (("outputs", 0, "scales", "shape"), [2, 3], "does not group values"),
    (("outputs", 0, "scales", "shape"), [2, 4], "has 32"),
    (("outputs", 0, "values", "dtype"), "uint8", "values.dtype 'uint8'"),
    (("outputs", 0, "values", "sha256"), "0" * 64, "the file was changed"),
    (("outputs", 0, "product", "file"), "values_0.bin", "16 bytes; float64[2, 8] has 128"),
    (("shows",), "two\nlines", "shows must be a line of text"),
]


@pytest.mark.parametrize(("path", "value", "said"), HOSTILE, ids=lambda x: str(x)[:40])
def test_a_malformed_field_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[Any, ...], value: Any, said: str
) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    about = json.loads((folder / "case.json").read_text())
    place = about
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    (folder / "case.json").write_text(json.dumps(about))
    assert judged(folder, out) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_kit_that_contradicts_itself_is_not_believed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    about = json.loads((folder / "case.json").read_text())
    about["outputs"][0]["product"] = write(folder, "product_0.bin", np.zeros((2, 8)))
    (folder / "case.json").write_text(json.dumps(about))
    assert judged(folder, out) == 2
    assert "product_0.bin: is not values times scales" in capsys.readouterr().err
    (folder / "values_0.bin").unlink()
    (folder / "values_0.bin").symlink_to("/dev/zero")
    assert judged(folder, out) == 2
    (folder / "case.json").write_text("[" * 100000)
    assert judged(folder, out) == 2
    (folder / "case.json").write_bytes(b" " * (5 << 20))
    assert judged(folder, out) == 2
    assert "5242880 bytes; at most" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("command", "code", "said"),
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
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, code: int, said: str
) -> None:
    folder = by_hand(tmp_path)
    words = ["kit", "run", "--kits", str(folder), "--subject-command", command, "--case-seconds", "0.5"]
    started = time.monotonic()
    assert main.main(words) == code
    assert time.monotonic() - started < 20
    printed = capsys.readouterr()
    assert said in printed.out + printed.err


def test_a_runner_gets_model_outputs_and_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    runner = tmp_path / "runner.sh"
    right = out / folder.name / "output_0.bin"
    runner.write_text(f'test "$4" = "" && test -s "$3" && test -s "$1" && cp {right} "$2"/output_0.bin\n')
    words = ["kit", "run", "--kits", str(folder), "--subject-command", f"sh {runner} {{pte}} {{out}} {{inputs}}"]
    assert main.main(words) == 0
    assert "PASS  hand/made" in capsys.readouterr().out


def dot_by_hand(root: Path, exact: float = 1.0, bound: float = 1e-6, bound_any: float = 2e-6) -> Path:
    """A kit whose one output is one dot product."""
    folder = by_hand(root)
    about = json.loads((folder / "case.json").read_text())
    parts = {"exact": exact, "bound": bound, "bound_any": bound_any}
    described = {name: write(folder, f"{name}_0.bin", np.array([[part]])) for name, part in parts.items()}
    dot = {"name": "linear", "file": "output_0.bin", "dtype": "float32", "shape": [1, 1], "judged_by": "dot"}
    (folder / "case.json").write_text(json.dumps({**about, "outputs": [dot | described]}))
    return folder


@pytest.mark.parametrize(
    ("parts", "said"),
    [
        ({"bound": np.inf, "bound_any": np.inf}, "bound_0.bin: linear's bound[0, 0] is inf; it is finite and at least"),
        ({"bound": np.nan}, "linear's bound[0, 0] is nan"),
        ({"bound": -1e-9}, "linear's bound[0, 0] is -1e-09"),
        ({"bound_any": np.inf}, "bound_any_0.bin: linear's bound_any[0, 0] is inf; it is finite and at least 0"),
        ({"bound_any": 1e-7}, "linear's bound_any[0, 0] is 1e-07; it is at least bound"),
        ({"exact": np.nan}, "exact_0.bin: linear's exact[0, 0] is nan; it is finite"),
    ],
    ids=str,
)
def test_a_bound_that_bounds_nothing_is_not_believed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], parts: dict[str, float], said: str
) -> None:
    folder = dot_by_hand(tmp_path, **parts)
    out = tmp_path / "out" / folder.name
    out.mkdir(parents=True)
    (out / "output_0.bin").write_bytes(np.float32([[1e30]]).tobytes())
    assert judged(folder, tmp_path / "out") == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


def test_a_dot_product_has_the_wider_bound_only_where_rounding_is_left_open(tmp_path: Path) -> None:
    folder = dot_by_hand(tmp_path)
    out = tmp_path / "out" / folder.name
    out.mkdir(parents=True)
    profile, nearest = tmp_path / "silent.toml", tmp_path / "nearest.toml"
    profile.write_text("execution_modes = []\n")
    nearest.write_text('execution_modes = ["RoundingModeRTE 32"]\n')
    codes = []
    for off in (0.5e-6, 1.5e-6, 2.5e-6):
        (out / "output_0.bin").write_bytes(np.float32([[1.0 + off]]).tobytes())
        chosen = ((), ("--device-profile", str(nearest)), ("--device-profile", str(profile)))
        codes.append([judged(folder, tmp_path / "out", *more) for more in chosen])
    assert codes == [[0, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_verdicts_on_kits_are_a_report_beside_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = by_hand(tmp_path)
    about = folder / "case.json"
    about.write_text(about.read_text().replace("hand/made", "run/control"))
    right, wrong = answer(folder, tmp_path / "right"), answer(folder, tmp_path / "wrong", lambda a: a * np.float32(2))
    named, known = ("--subject-name", "my runtime"), tmp_path / "known.toml"
    assert judged(folder, wrong, *named, "--report", str(tmp_path / "old")) == 1
    (verdict,) = verdict_stream(tmp_path / "old").verdicts
    assert (verdict.subject, verdict.source, verdict.signature) == ("my runtime", "5.7", "RUN/array/values")
    assert {p.name for p in (tmp_path / "old").iterdir()} == {"verdicts.jsonl", "summary.md", "report.html"}
    capsys.readouterr()
    assert main.main(shlex.split(verdict.replay)[3:]) == 1, verdict.replay
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
    monkeypatch.setattr(build_kit, "_bundle", lambda *_: None)
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
    found = {v.case: v for v in verdict_stream(tmp_path / "new").verdicts}
    assert {name: (v.outcome, v.signature) for name, v in found.items()} == {
        "run/control": ("ERROR", "RUN/raised/ValueError"),
        "run/g2-refused": ("ERROR", "RUN/raised/NotLowered"),
        "run/tied-after": ("FAIL", "RUN/dtype_shape/missing"),
    }
    assert "impl does not lower it" in found["run/g2-refused"].reason
    assert main.main(["diff", str(tmp_path / "old"), str(tmp_path / "new")]) == 1
    capsys.readouterr()
    assert main.main(shlex.split(found["run/g2-refused"].replay)[3:]) == 1
    assert "RUN/raised/NotLowered" in capsys.readouterr().out
    assert main.main(["kit", "export", str(tmp_path / "kits"), *chosen]) == 2, "one of them is there already"


def test_a_linear_on_a_table_with_a_zero_point_is_refused() -> None:
    """The bound's exact sums are of codes times scales: with a zero point they would be another program's."""

    def program(zero_point: float) -> ProgramSpec:
        zeros = np.float32([0.0, -0.0, 0.0, zero_point]).tobytes().hex()
        tensors = (
            TensorSpec("w", "int8", (4, 32), Values("pairs")),
            TensorSpec("s", "float32", (4, 1), Values("constant", value=0.5)),
            TensorSpec("z", "float32", (4, 1), Values("literal", data=zeros)),
            TensorSpec("x", "float32", (2, 32), Values("constant", value=1.0), "input"),
        )
        return ProgramSpec((Dequantize("dq", "w", "s", (1, 32), "z"), Linear("head", "dq", "x")), tensors)

    assert build_kit._right(program(0.0), Linear("head", "dq", "x"))[0] == "dot"
    for zero_point in (1.0, float("nan")):
        with pytest.raises(ValueError, match="step head: dq's zero point z is not zero everywhere"):
            build_kit._right(program(zero_point), Linear("head", "dq", "x"))


def test_exported_kits_are_played_and_judged_elsewhere(tmp_path: Path) -> None:
    """The whole way, in processes of their own: export, play on Vulkan and CPU, judge, and judge a flipped bit."""

    def run(*words: str) -> tuple[int, str]:
        done = subprocess.run(
            [sys.executable, "-m", "conformance", *words], cwd=ROOT, capture_output=True, text=True, check=False
        )
        return done.returncode, done.stdout + done.stderr

    kits, out = tmp_path / "kits", tmp_path / "out"
    cases = ("run/control", "run/g2-refused", "run/tied-after")
    code, said = run("kit", "export", str(kits), *(word for case in cases for word in ("--case", case)))
    assert code == 0, said
    assert (kits / "README.md").is_file()
    assert (kits / "run__control/model.bpte").stat().st_size > (kits / "run__control/model.pte").stat().st_size
    kit = read_kit(kits / "run__tied-after")
    assert [o.judged_by for o in kit.outputs] == ["product", "dot"]
    assert read_kit(kits / "run__g2-refused").outputs[0].judged_by == "bits"
    again = run("kit", "export", str(kits), "--case", "run/control")
    assert again[0] == 2
    assert "is there already" in again[1]
    own = f"{PYTHON} -m conformance kit play-one {{pte}} {{out}} {{inputs}}"
    code, said = run("kit", "run", "--kits", str(kits / "run__g2-refused"), "--subject-command", own)
    assert code == 0, said
    code, said = run("kit", "play", str(kits), str(out))
    assert code == 0, said
    assert run("judge", str(kits), str(out))[0] == 0
    for name in ("run__control", "run__g2-refused"):
        wrong = tmp_path / f"wrong-{name}"
        shutil.copytree(out, wrong)
        data = bytearray((wrong / name / "output_0.bin").read_bytes())
        data[len(data) // 2] ^= 1
        (wrong / name / "output_0.bin").write_bytes(data)
        code, said = run("judge", str(kits), str(wrong))
        assert code == 1
        assert "passed:2 failed:1" in said
