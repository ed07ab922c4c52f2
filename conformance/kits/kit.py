"""Kits: one directory a file, that any runtime in any language can play, and that is judged afterwards.

``case.json`` names the model's calls, and every file with its dtype, shape and SHA-256; ``case.toml`` is the case of
the first call; tensors are raw little-endian row-major bytes. A kit may come from a stranger: names cannot leave its
directory, every size is checked before anything is read or computed, and whatever is malformed is named by its field.

Source: docs/kits.md; docs/formats.md, "Kits".
"""

import hashlib
import json
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, EndToEnd, Program
from conformance.case.operands import operands
from conformance.case.toml import case_from_toml
from conformance.harness.command import THEN, told
from conformance.judging.lowered import exact_linear
from conformance.serialize import structure, unstructure
from reference.arithmetic.bfloat16 import dtype_name, numpy_dtype
from reference.program.evaluate import evaluate
from reference.program.spec import PASSED, Apply, Dequantize, Linear, ProgramSpec, validate
from reference.program.values import tensor_values, values_array

FORMAT = 3
#: What a runtime can be asked.
STAGES_OF_KITS = ("KERNEL", "RUN")
#: In the outputs of a kit that could not be played: why, in one line.
TROUBLE = "trouble.txt"
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8")
_NAME = re.compile(r"[A-Za-z0-9_]+\.(bin|json|pte|toml|txt)")
_SHA256 = re.compile(r"([0-9a-f]{64})?")
_MAX_TEXT, _MAX_BYTES, _MAX_RANK = 4 << 20, 512 << 20, 8

Array = np.ndarray[Any, Any]


class WrongFile(ValueError):  # noqa: N818 - says what the file is
    """A file that is not the one it should be; ``kind``: "missing", "size" or "changed"."""

    def __init__(self, path: Path, kind: str, why: str) -> None:
        super().__init__(f"{path}: {why}")
        self.kind = kind


@dataclass(frozen=True)
class KitFile:
    """A file of a kit. ``sha256`` is "" for an output, which does not exist yet."""

    file: str
    sha256: str = ""

    def __post_init__(self) -> None:
        """A name cannot leave the kit's directory; a digest is one."""
        if not _NAME.fullmatch(self.file):
            raise ValueError(f"file {self.file!r} must be a plain file name, such as input_0.bin")
        if not _SHA256.fullmatch(self.sha256):
            raise ValueError(f"sha256 {self.sha256!r} of {self.file} must be 64 hexadecimal digits")


@dataclass(frozen=True)
class Tensor(KitFile):
    """A file of raw little-endian elements; ``name`` is the step whose value an output is."""

    dtype: str = ""
    shape: tuple[int, ...] = ()
    name: str = ""

    def __post_init__(self) -> None:
        """A known dtype, and a shape whose bytes a machine can hold."""
        super().__post_init__()
        if self.dtype not in DTYPES:
            raise ValueError(f"dtype {self.dtype!r} is not one of {', '.join(DTYPES)}")
        if len(self.shape) > _MAX_RANK or min(self.shape, default=0) < 0 or self.size > _MAX_BYTES:
            raise ValueError(f"shape {list(self.shape)} is not of at most {_MAX_RANK} sizes and {_MAX_BYTES} bytes")

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Call:
    """One call of method ``forward``: its ``inputs`` and ``outputs`` in order.

    ``case`` is what it is judged by; without one, a user's own program is, by ``expected``: what its source computes.
    """

    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]
    case: KitFile | None = None
    expected: tuple[Tensor, ...] = ()


@dataclass(frozen=True)
class Description:
    """``case.json``: what a runtime has to know. The model is loaded once for all of its calls."""

    model: KitFile
    calls: tuple[Call, ...]
    lowered_with: str
    versions: Mapping[str, str]

    def to_json(self) -> str:
        """The text of ``case.json``."""
        return json.dumps({"kit": FORMAT, **unstructure(self)}, indent=1) + "\n"

    def arguments(self, folder: str = "") -> list[str]:
        """What a runner is given after the model and the output directory; ``folder`` is before each input's file."""
        words: list[str] = []
        for number, one in enumerate(self.calls):
            words += [THEN] if number else []
            words += [f"{folder}{tensor.file}:{told(tensor.dtype, tensor.shape)}" for tensor in one.inputs]
        return words


@dataclass(frozen=True)
class Kit:
    """One directory, read and checked; tensors are not read yet. ``cases``: of each call, none in a user's program."""

    folder: Path
    cases: tuple[Case, ...]
    description: Description

    @property
    def case(self) -> Case:
        """The case of the first call, or one that names a user's program."""
        spec = ProgramSpec((), route="export")
        name = re.sub(r"[^a-z0-9_.\-]", "_", self.folder.resolve().name.lower()).lstrip("_.-") or "program"
        own = Case(f"model/{name}", "RUN", "5.7", "a wrong bit in a program of the user's own", Program(spec))
        return self.cases[0] if self.cases else own


def kits(folder: Path) -> tuple[Path, ...]:
    """Return the directories of ``folder`` that hold a kit, or ``folder`` itself; ValueError where there is none."""
    if (folder / "case.json").is_file():
        return (folder,)
    folders = tuple(sorted(p.parent for p in folder.glob("*/case.json"))) if folder.is_dir() else ()
    if not folders:
        raise ValueError(f"{folder}: no kit there: neither case.json nor a directory with one")
    return folders


def read_kit(folder: Path) -> Kit:
    """Return the kit in ``folder``; ValueError names the file, the field, its value and what is allowed."""
    where = folder / "case.json"
    try:
        data = json.loads(read_file(folder, KitFile("case.json"), _MAX_TEXT))
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a kit's case.json ({error})") from error
    version = data.pop("kit", None) if isinstance(data, dict) else None
    if type(version) is not int or version != FORMAT:
        raise ValueError(f"{where}: kit is {version!r}, this release reads {FORMAT}: export the kit again")
    description = structure(Description, data, str(where))
    calls = description.calls
    if not calls or bool(calls[0].case) == bool(calls[0].expected) or len({bool(call.case) for call in calls}) > 1:
        raise ValueError(f"{where}: every call needs a case, or every one needs expected outputs")
    given = [file for call in calls for file in (*call.inputs, *call.expected, *filter(None, [call.case]))]
    if not all(file.sha256 for file in (description.model, *given)):
        raise ValueError(f"{where}: model, cases, every input and expected output need a sha256")
    cases, first = [], 0
    for call in calls:
        if call.case:
            case, inputs, outputs = _case_of(folder, call.case, first)
            if [(t.sha256, t.dtype, t.shape) for t in call.inputs] != inputs:
                raise ValueError(f"{where}: inputs are not those of {call.case.file}")
            cases.append(case)
        else:
            outputs = tuple(
                Tensor(f"output_{first + n}.bin", "", t.dtype, t.shape, t.name) for n, t in enumerate(call.expected)
            )
        if call.outputs != outputs:
            wrong = (o.file for o, own in zip(call.outputs, outputs, strict=False) if o != own)
            source = call.case.file if call.case else "what is expected"
            raise ValueError(f"{where}: outputs are not those of {source}; {next(wrong, 'their number')} differs")
        first += len(outputs)
    return Kit(folder, tuple(cases), description)


_Inputs = list[tuple[str, str, tuple[int, ...]]]


def _case_of(folder: Path, file: KitFile, first: int) -> tuple[Case, _Inputs, tuple[Tensor, ...]]:
    """A call's case, digest, dtype and shape of its inputs, and its outputs; ValueError where it cannot be judged."""
    path = folder / file.file
    case = case_from_toml(read_file(folder, file, _MAX_TEXT).decode(), str(path))
    if case.stage not in STAGES_OF_KITS:
        raise ValueError(f"{path}: a kit is a case of stage {' or '.join(STAGES_OF_KITS)}, not {case.stage}")
    try:
        outputs = outputs_of(case, first)  # first: not every program can be judged
        inputs = [(hashlib.sha256(a.tobytes()).hexdigest(), dtype_name(a), a.shape) for a in inputs_of(case)]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{path}: {error}") from error
    return case, inputs, outputs


def inputs_of(case: Case) -> tuple[Array, ...]:
    """Return what a kit's call passes, in order."""
    if isinstance(case.question, Dispatch | EndToEnd):
        return (operands(case.question).indices,)
    if not isinstance(case.question, Program):
        raise ValueError("a model is no kit: only torch can judge it")
    passed = (tensor for tensor in case.question.spec.tensors if tensor.source in PASSED)
    return tuple(values_array(tensor.values, tensor.dtype, tensor.shape) for tensor in passed)


def outputs_of(case: Case, first: int = 0) -> tuple[Tensor, ...]:
    """Return the outputs of a case that can be a kit, in order, numbered from ``first``; ValueError where it cannot."""
    if isinstance(case.question, Dispatch | EndToEnd):
        read = operands(case.question)
        shape = (*read.indices.shape, read.values.shape[1])
        return (Tensor(f"output_{first}.bin", "", case.question.output_dtype, shape, "out"),)
    if not isinstance(case.question, Program):
        raise ValueError("a model is no kit: only torch can judge it")
    return tuple(
        Tensor(f"output_{first + position}.bin", "", dtype_name(array), array.shape, name)
        for position, (name, array) in enumerate(strict_outputs(case.question.spec).items())
    )


def strict_outputs(spec: ProgramSpec) -> dict[str, Array]:
    """Return what a host makes of the program, a linear's exact sums rounded once, by step in order.

    ValueError, with the step and why, where an output cannot be judged: such a program cannot be a kit.
    """
    validate(spec)
    for step in spec.steps:
        if isinstance(step, Apply):  # a device may round it either way, and what it reads need not be seen
            raise ValueError(f"step {step.name}: what a model makes of its rows cannot be in a kit")
    expected, tensors = evaluate(spec), tensor_values(spec)
    outputs = {}
    for step in spec.steps:
        if isinstance(step, Linear):
            outputs[step.name] = exact_linear(spec, step, tensors)[0].astype(tensors[step.x].dtype)
        elif step.name in expected:
            outputs[step.name] = expected[step.name]
        elif not isinstance(step, Dequantize):  # max_norm: nothing of the contract depends on how a norm is summed
            raise ValueError(f"step {step.name} has no value that the contract fixes; it cannot be in a kit")
    return outputs


def read_tensor(folder: Path, tensor: Tensor) -> Array:
    """Return a tensor's array; WrongFile as ``read_file``."""
    data = read_file(folder, tensor)
    return np.frombuffer(data, numpy_dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


def read_file(folder: Path, file: KitFile, most: int = _MAX_BYTES) -> bytes:
    """Return the bytes of a kit's file, whose size is checked before it is read; WrongFile where it is another file."""
    path = folder / file.file
    inside = Path(os.path.realpath(path)).is_relative_to(os.path.realpath(folder))  # a runner may link its outputs
    if not inside or not path.is_file():
        raise WrongFile(path, "missing", "no regular file" if os.path.lexists(path) else "no such file")
    size = path.stat().st_size
    if isinstance(file, Tensor) and size != file.size:
        raise WrongFile(path, "size", f"{size} bytes; {file.dtype}{list(file.shape)} has {file.size}")
    if size > most:
        raise WrongFile(path, "size", f"{size} bytes; at most {most}")
    data = path.read_bytes()
    if file.sha256 and hashlib.sha256(data).hexdigest() != file.sha256:
        raise WrongFile(path, "changed", "its SHA-256 is not the one in case.json; the file was changed")
    return data
