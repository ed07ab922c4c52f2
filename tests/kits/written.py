"""Kits written by hand, answers to them and their judge, for the tests of kits."""

import hashlib
import shlex
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from conformance.case.case import Case, Program
from conformance.case.toml import case_to_toml
from conformance.cli import main
from conformance.kits.kit import Call, Description, KitFile, Tensor, outputs_of, read_kit, strict_outputs
from reference.program.spec import Dequantize, Linear, Lookup, ProgramSpec, TensorSpec, Values
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
