"""Kits: what is exported is judged from the files alone, one wrong bit is found, and nothing malformed is believed."""

import hashlib
import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case, Program
from conformance.case.toml import case_to_toml
from conformance.cli import main
from conformance.judging.lowered import exact_linear
from conformance.kits import export as build_kit
from conformance.kits.kit import Call, Description, KitFile, Tensor, outputs_of, read_kit, strict_outputs
from conformance.results.verdict import read as verdict_stream
from reference.program.fusibility import violations
from reference.program.spec import Dequantize, Linear, Lookup, ProgramSpec, Read, TensorSpec, Values
from reference.program.values import tensor_values

ROOT = Path(__file__).parents[2]
PYTHON = shlex.quote(sys.executable)


SCALES = np.array([[0.1, 3.7], [1e-41, 0.3]], np.float32)
LOOKUP = ProgramSpec(
    (Dequantize("dq", "w", "s", (1, 16)), Lookup("lookup0", "dq", "i")),
    (
        TensorSpec("w", "int8", (2, 32), Values("ramp", low=-8, high=7)),
        TensorSpec("s", "float32", (2, 2), Values("literal", data=SCALES.tobytes().hex())),
        TensorSpec("i", "int64", (2,), Values("ramp", low=0, high=1), "input"),
    ),
    route="export",
)


def linear(zero_point: float = 0.0) -> ProgramSpec:
    """One dot product of 32 ones with a table of which every element is 0.5 times its code, and a zero point."""
    zeros = np.float32([0.0, -0.0, 0.0, zero_point]).tobytes().hex()
    tensors = (
        TensorSpec("w", "int8", (4, 32), Values("pairs")),
        TensorSpec("s", "float32", (4, 1), Values("constant", value=0.5)),
        TensorSpec("z", "float32", (4, 1), Values("literal", data=zeros)),
        TensorSpec("x", "float32", (2, 32), Values("constant", value=1.0), "input"),
    )
    return ProgramSpec((Dequantize("dq", "w", "s", (1, 32), "z"), Linear("head", "dq", "x")), tensors, route="export")


def by_hand(root: Path, spec: ProgramSpec = LOOKUP, case_id: str = "hand/written") -> Path:
    """A kit as export writes it, but for the model; by default two groups of inexact products and a subnormal scale."""
    folder = root / "kits" / case_id.replace("/", "__")
    folder.mkdir(parents=True)

    def put(name: str, data: bytes) -> KitFile:
        (folder / name).write_bytes(data)
        return KitFile(name, hashlib.sha256(data).hexdigest())

    case = Case(case_id, "RUN", "3.2", "a wrong bit", Program(spec))
    inputs = []
    for tensor in spec.tensors:
        if tensor.source == "input":
            file = put(f"input_{len(inputs)}.bin", tensor_values(spec)[tensor.name].tobytes())
            inputs.append(Tensor(file.file, file.sha256, tensor.dtype, tensor.shape))
    call = Call(tuple(inputs), outputs_of(case), put("case.toml", case_to_toml(case).encode()))
    about = Description(put("model.pte", b"never run here"), (call,), "impl", {})
    put("case.json", about.to_json().encode())
    return folder


def answer(folder: Path, out: Path, change: Callable[[Any], Any] = lambda right: right) -> Path:
    """Write what a strict host returns, changed, as the kit's first output; returns ``out``."""
    kit = read_kit(folder)
    right = next(iter(strict_outputs(kit.case.program).values())).copy()
    (out / folder.name).mkdir(parents=True)
    (out / folder.name / "output_0.bin").write_bytes(np.asarray(change(right)).tobytes())
    return out


def judged(folder: Path, out: Path, *more: str) -> int:
    return main.main(["kit", "judge", str(folder.parent), str(out), *more])


def test_right_outputs_pass_and_every_flipped_bit_fails(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    assert judged(folder, answer(folder, tmp_path / "out")) == 0
    for at in (0, 9, 36, 255 * 8 + 6):
        capsys.readouterr()
        out = tmp_path / f"flipped{at}"
        answer(folder, out)
        path = out / folder.name / "output_0.bin"
        data = bytearray(path.read_bytes())
        data[at // 8] ^= 1 << at % 8
        path.write_bytes(data)
        assert judged(folder, out) == 1, at
        message = capsys.readouterr().out
        assert "RUN/array/" in message
        assert "1 of 64" in message


def test_what_a_device_may_do_is_accepted_with_its_profile_only(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)

    def neighbour(right: Any) -> Any:
        right[0, 1] = np.nextafter(right[0, 1], np.float32(-1), dtype=np.float32)  # -0.7, which is inexact
        return right

    def flushed(right: Any) -> Any:
        right[1, :16] = 0
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
    ("text", "message"),
    [
        ('execution_modes = ["RoundingModeUp 32"]', "execution mode 'RoundingModeUp 32' is not one of"),
        ('execution_modes = "RoundingModeRTE 32"', "execution_modes: expected a list"),
        ('execution_modes = ["RoundingModeRTE 32", "RoundingModeRTZ 32"]', "two contradictory modes"),
        ("tolerance = 0.1", "unknown field 'tolerance'"),
        ('execution_modes = []\nio_storage = "texture2d"', "is not buffer or texture3d"),
        ("precise = 1", "precise: expected bool, got 1"),
        ("precise", "not a device profile"),
    ],
)
def test_a_wrong_profile_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str) -> None:
    folder = by_hand(tmp_path)
    profile = tmp_path / "profile.toml"
    profile.write_text(text)
    assert judged(folder, answer(folder, tmp_path / "out"), "--device-profile", str(profile)) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1


def test_missing_and_short_outputs_are_failures(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out", lambda right: right.astype(np.float16))
    assert judged(folder, out) == 1
    assert "128 bytes; float32[2, 32] has 256" in capsys.readouterr().out
    (out / folder.name / "output_0.bin").unlink()
    assert judged(folder, out) == 1
    assert "RUN/dtype_shape/missing" in capsys.readouterr().out
    assert judged(folder, tmp_path / "nowhere") == 2
    assert main.main(["kit", "judge", str(tmp_path / "empty"), str(out)]) == 2


HOSTILE: list[tuple[tuple[Any, ...], Any, str]] = [
    (("kit",), 1, "kit is 1, this release reads 3: export the kit again"),
    (("kit",), True, "kit is True"),
    (("model", "file"), "../model.pte", "model: file '../model.pte' must be a plain file name"),
    (("model",), None, "model: expected a table"),
    (("model", "sha256"), "", "need a sha256"),
    (("calls", 0, "case", "file"), "../case.toml", "calls[0].case: file '../case.toml'"),
    (("calls", 0, "case", "sha256"), "0" * 64, "case.toml: its SHA-256 is not the one in case.json"),
    (("calls", 0, "case", "file"), "case_2.toml", "case_2.toml: no such file"),
    (("calls", 0, "inputs"), "all", "calls[0].inputs: expected a list"),
    (("calls", 0, "inputs", 0, "file"), "/etc/passwd", "calls[0].inputs[0]: file '/etc/passwd'"),
    (("calls", 0, "inputs", 0, "dtype"), "object", "calls[0].inputs[0]: dtype 'object' is not one of float32"),
    (("calls", 0, "inputs", 0, "shape"), [2, -8], "calls[0].inputs[0]: shape [2, -8]"),
    (("calls", 0, "inputs", 0, "shape"), [1 << 31, 1 << 31], "calls[0].inputs[0]: shape [2147483648, 2147483648]"),
    (("calls", 0, "inputs", 0, "shape"), [True, 8], "calls[0].inputs[0].shape[0]: expected int"),
    (("calls", 0, "inputs", 0, "sha256"), "", "need a sha256"),
    (("calls", 0, "inputs"), [], "inputs are not those of case.toml"),
    (("calls", 0, "inputs", 0, "sha256"), "0" * 64, "inputs are not those of case.toml"),
    (("calls", 0, "inputs", 0, "dtype"), "float64", "inputs are not those of case.toml"),
    (("calls", 0, "inputs", 0, "sha256"), "w" * 64, "must be 64 hexadecimal digits"),
    (("calls", 0, "outputs"), [], "outputs are not those of case.toml"),
    (("calls", 0, "outputs", 0, "file"), "a/b.bin", "calls[0].outputs[0]: file 'a/b.bin'"),
    (("calls", 0, "outputs", 0, "file"), "output_1.bin", "outputs are not those of case.toml; output_1.bin differs"),
    (("calls", 0, "outputs", 0, "name"), "other", "output_0.bin differs"),
    (("calls", 0, "outputs", 0, "dtype"), "int32", "output_0.bin differs"),
    (("calls", 0, "outputs", 0, "shape"), [2, 16], "output_0.bin differs"),
    (("calls", 0, "outputs", 0, "added"), 1, "calls[0].outputs[0]: unknown field 'added'"),
    (("calls",), [], "every call needs a case"),
    (("calls", 0, "case"), None, "every call needs a case, or every one needs expected outputs"),
    (("lowered_with",), 1, "lowered_with: expected str, got 1"),
]


@pytest.mark.parametrize(("path", "value", "message"), HOSTILE, ids=lambda x: str(x)[:40])
def test_a_malformed_field_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], path: tuple[Any, ...], value: Any, message: str
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
    assert message in error
    assert error.count("\n") == 1


def reseal(folder: Path, text: str) -> None:
    """Put another case into a kit, with its digest made right."""
    about = json.loads((folder / "case.json").read_text())
    (folder / "case.toml").write_text(text)
    about["calls"][0]["case"]["sha256"] = hashlib.sha256(text.encode()).hexdigest()
    (folder / "case.json").write_text(json.dumps(about))


def test_a_case_that_is_not_the_kits_or_that_cannot_be_judged_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    text = (folder / "case.toml").read_text()
    indices, tensor = LOOKUP.tensors[2], LOOKUP.tensors[0]
    for spec, message in (
        (replace(LOOKUP, tensors=(*LOOKUP.tensors[:2], replace(indices, shape=(3,)))), "inputs are not those of case.toml"),
        (replace(LOOKUP, tensors=(*LOOKUP.tensors[:2], replace(indices, shape=(1 << 40,)))), "elements; at most"),
        (
            replace(LOOKUP, tensors=(replace(tensor, shape=(1 << 31, 1 << 31)), *LOOKUP.tensors[1:])),
            "elements; at most",
        ),
        (replace(LOOKUP, tensors=(replace(tensor, shape=()), *LOOKUP.tensors[1:])), "case.toml: "),
        (
            replace(LOOKUP, tensors=(*LOOKUP.tensors[:2], replace(indices, values=Values("constant", value=7)))),
            "outside [0, 2)",
        ),
        (replace(LOOKUP, steps=(LOOKUP.steps[0], Lookup("lookup0", "dq", "i", max_norm=1.0))), "it cannot be in a kit"),
    ):
        reseal(folder, case_to_toml(Case("hand/written", "RUN", "3.2", "a wrong bit", Program(spec))))
        assert judged(folder, out) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert error.count("\n") == 1
    reseal(folder, text.replace('"RUN"', '"MATCH"'))
    assert judged(folder, out) == 2
    assert "a kit is a case of stage KERNEL or RUN, not MATCH" in capsys.readouterr().err
    reseal(folder, text.replace("detects", "shows"))
    assert judged(folder, out) == 2
    assert "unknown field 'shows'" in capsys.readouterr().err


def test_files_that_cannot_be_read_are_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    (folder / "case.toml").unlink()
    (folder / "case.toml").symlink_to("/dev/zero")
    assert judged(folder, out) == 2
    assert "case.toml: no regular file" in capsys.readouterr().err
    (folder / "case.json").write_text("[" * 100000)
    assert judged(folder, out) == 2
    (folder / "case.json").write_bytes(b" " * (5 << 20))
    assert judged(folder, out) == 2
    assert "5242880 bytes; at most" in capsys.readouterr().err


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


def test_a_dot_product_has_the_wider_bound_only_where_rounding_is_left_open(tmp_path: Path) -> None:
    """33 * u * sum |x||w| with u = 2^-24, and twice that."""
    folder = by_hand(tmp_path, linear())
    spec = read_kit(folder).case.program
    exact, bound = exact_linear(spec, spec.steps[1], tensor_values(spec))
    profile, nearest = tmp_path / "silent.toml", tmp_path / "nearest.toml"
    profile.write_text("execution_modes = []\n")
    nearest.write_text('execution_modes = ["RoundingModeRTE 32"]\n')
    codes = []
    for off in (0.5, 1.5, 2.5, np.inf, np.nan):
        out = answer(folder, tmp_path / f"out{off}", lambda right, off=off: (exact + off * bound).astype(np.float32))
        chosen = ((), ("--device-profile", str(nearest)), ("--device-profile", str(profile)))
        codes.append([judged(folder, out, *more) for more in chosen])
    assert codes == [[0, 0, 0], [1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 1]]


def test_every_kind_of_wrong_output_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A lookup that may fuse, one that may not (bit for bit), and a linear: each in one kit, each wrong by itself."""
    refused = Dequantize("two", "w2", "s2", (1, 2))
    tensors = (
        *LOOKUP.tensors,
        TensorSpec("w2", "int8", (2, 32), Values("pairs")),
        TensorSpec("s2", "float32", (2, 16), Values("constant", value=1e-41)),
        TensorSpec("x", "float32", (3, 32), Values("weights", 4), "input"),
    )
    steps = (*LOOKUP.steps, refused, Lookup("lookup1", "two", "i"), Linear("head", "dq", "x"), Read("raw", "w"))
    folder = by_hand(tmp_path, replace(LOOKUP, steps=steps, tensors=tensors))
    program = read_kit(folder).case.program
    assert [bool(violations(program)[name]) for name in ("lookup0", "lookup1")] == [False, True]
    outputs = list(strict_outputs(program).items())
    assert [name for name, _ in outputs] == ["lookup0", "lookup1", "head", "raw"]
    out = tmp_path / "out" / folder.name
    out.mkdir(parents=True)

    def write(wrong: str = "") -> int:
        for position, (name, array) in enumerate(outputs):
            data = bytearray(array.tobytes())
            data[-2] ^= 0x10 if name == wrong else 0
            (out / f"output_{position}.bin").write_bytes(data)
        return judged(folder, out.parent)

    assert write() == 0
    for name, signature in (
        ("lookup0", "RUN/array/values"),
        ("lookup1", "RUN/array/values"),
        ("head", "RUN/array/dot_product"),
        ("raw", "RUN/array/values"),
    ):
        capsys.readouterr()
        assert write(name) == 1, name
        printed = capsys.readouterr().out
        assert f"  {name}[" in printed
        assert f"({signature})" in printed
    silent = tmp_path / "silent.toml"
    silent.write_text("execution_modes = []\n")
    assert write() == 0
    (out / "output_1.bin").write_bytes(bytes(outputs[1][1].nbytes))
    assert judged(folder, out.parent, "--device-profile", str(silent)) == 1, "flushed, and not in a delegate"


def test_verdicts_on_kits_are_a_report_beside_what_is_expected(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = by_hand(tmp_path, case_id="run/control")
    right, wrong = answer(folder, tmp_path / "right"), answer(folder, tmp_path / "wrong", lambda a: a * np.float32(2))
    named, known = ("--subject-name", "my runtime"), tmp_path / "known.toml"
    assert judged(folder, wrong, *named, "--report", str(tmp_path / "old")) == 1
    (verdict,) = verdict_stream(tmp_path / "old").verdicts
    assert (verdict.subject, verdict.contract, verdict.signature) == ("my runtime", "3.2", "RUN/array/values")
    assert {p.name for p in (tmp_path / "old").iterdir()} == {"verdicts.jsonl", "summary.md", "report.html"}
    capsys.readouterr()
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


def test_a_linear_on_a_table_with_a_zero_point_is_judged_by_it() -> None:
    spec = linear(1.0)
    exact, _ = exact_linear(spec, spec.steps[1], tensor_values(spec))
    forgotten, _ = exact_linear(linear(), spec.steps[1], tensor_values(linear()))
    assert (exact != forgotten)[..., -1].all()
    assert list(strict_outputs(spec)) == ["head"]


@pytest.mark.parametrize("module", ["torch", "executorch", "vulkan", "impl"])
def test_judging_loads_neither_torch_nor_a_device(tmp_path: Path, module: str) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    code = f"import sys; sys.modules[{module!r}] = None; from conformance.cli.main import main; sys.exit(main())"
    done = subprocess.run(
        [sys.executable, "-c", code, "kit", "judge", str(folder), str(out)], cwd=ROOT, capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr


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
