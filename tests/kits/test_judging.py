"""Kits are judged as their cases are, by numpy alone; whatever is malformed in one is named."""

import hashlib
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case, Program
from conformance.case.toml import case_to_toml
from conformance.cli import main
from conformance.judging.lowered import exact_linear
from conformance.kits.kit import read_kit, strict_outputs
from reference.program.fusibility import violations
from reference.program.spec import Dequantize, Linear, Lookup, Read, TensorSpec, Values
from reference.program.values import tensor_values
from tests.kits.written import LOOKUP, ROOT, answer, by_hand, judged, linear


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
        (
            replace(LOOKUP, tensors=(*LOOKUP.tensors[:2], replace(indices, shape=(3,)))),
            "inputs are not those of case.toml",
        ),
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


def test_an_output_may_be_a_link_inside_its_folder_only(tmp_path: Path) -> None:
    folder = by_hand(tmp_path)
    out = answer(folder, tmp_path / "out")
    path = out / folder.name / "output_0.bin"
    path.rename(path.with_name("renamed.bin"))
    path.symlink_to("renamed.bin")
    assert judged(folder, out) == 0
    path.with_name("renamed.bin").rename(tmp_path / "elsewhere.bin")
    path.unlink()
    path.symlink_to(tmp_path / "elsewhere.bin")
    assert judged(folder, out) == 1
    path.unlink()
    path.symlink_to(path.name)  # a link to itself
    assert judged(folder, out) == 1


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
