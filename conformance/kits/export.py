"""Writes kits: builds a case's program, lowers it, and puts down everything that a runtime and the judge need."""

import contextlib
import hashlib
import shutil
import tempfile
import zipfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, EndToEnd, Program
from conformance.case.operands import operands
from conformance.case.toml import case_to_toml
from conformance.files import write_whole
from conformance.harness.errors import one_line
from conformance.harness.observation import Refused
from conformance.kits.kit import Array, Call, Description, KitFile, Tensor, inputs_of, outputs_of
from conformance.program.build import build
from conformance.program.tensors import to_numpy, to_torch
from conformance.subjects.executorch_runtime import lookup_file, not_chosen
from conformance.subjects.stages import Lower, unlowerable
from reference.arithmetic.bfloat16 import dtype_name
from reference.program.sizes import other_sizes

#: Writes a file of a kit.
Put = Callable[[str, bytes], KitFile]

#: The README that a directory of kits carries.
_README = Path(__file__).with_name("README.md.txt")


class NotLowered(Exception):  # noqa: N818 - it names what the lowering did
    """The lowering raised; one line with its message."""


def folder_of(case: Case, folder: Path) -> Path:
    """Return the directory in ``folder`` that a case's kit is written to; ValueError where it is there already."""
    target = folder / case.id.replace("/", "__")
    if target.exists():
        raise ValueError(f"{target}: is there already; export into an empty directory")
    return target


def lowering(name: str) -> Lower:
    """Return the lowering of that name: "impl" or "executorch"."""
    from conformance.subjects import executorch, impl  # noqa: PLC0415 - they load torch

    known: dict[str, Lower] = {"impl": impl.lower, "executorch": executorch.lower}
    if name not in known:
        raise ValueError(f"--lower-with {name!r} is not one of {', '.join(known)}")
    return known[name]


def export(case: Case, folder: Path, lower_with: str, versions: Mapping[str, str]) -> Path:
    """Write the kit of one RUN or KERNEL case into a directory of its own in ``folder`` and return it.

    A program with symbolic sizes is called at other sizes too.

    Raises:
        ValueError: such a case cannot be a kit; says why.
        NotLowered: the lowering raised.
    """
    reason = not_a_kit(case)
    if reason:
        raise ValueError(reason)
    target = folder_of(case, folder)
    cases = (case, *other_calls(case))
    outputs = [outputs_of(one) for one in cases]  # before anything is built: not every program can be judged
    if isinstance(case.question, Dispatch | EndToEnd):
        model = _one_operator(case.question)
    else:
        assert isinstance(case.question, Program)  # noqa: S101 - stage RUN has no other question
        model = _lowered(build(case.question.spec).exported, lower_with)
    with _new(target) as put:
        calls, first, at = [], 0, 0
        for number, one in enumerate(cases):
            files = tuple(_tensor(put, f"input_{at + n}.bin", array) for n, array in enumerate(inputs_of(one)))
            text = put("case.toml" if not number else f"case_{number}.toml", case_to_toml(one).encode())
            calls.append(Call(files, outputs_of(one, first), text))
            at, first = at + len(files), first + len(outputs[number])
        _finish(put, Description(put("model.pte", model), tuple(calls), lower_with, versions))
    return target


def not_a_kit(case: Case) -> str:
    """Return why a case cannot be a kit, "" where it can."""
    question = case.question
    if isinstance(question, Dispatch | EndToEnd):
        read = operands(question)
        outside = read.indices.size and not (0 <= read.indices.min() <= read.indices.max() < len(read.values))
        if outside or (isinstance(question, Dispatch) and question.exceeds_limit):
            return "what a runtime does with indices outside of the table, or past a device's limits, is not fixed"
        return not_chosen(question, len(read.values)) or ""
    if case.stage != "RUN" or not isinstance(question, Program) or unlowerable(case):
        return "only programs of torch.export and kernel dispatches can be kits"
    return ""


def other_calls(case: Case) -> tuple[Case, ...]:
    """Return a RUN case at every other size that its symbolic dimensions are asked at; none without any."""
    if case.program is None or case.stage != "RUN":
        return ()
    sizes = other_sizes(case.program, lowered=True).items()
    return tuple(replace(case, id=f"{case.id}-size-{size}", question=Program(spec)) for size, spec in sizes)


def export_program(path: Path, inputs: Path, folder: Path, lower_with: str, versions: Mapping[str, str]) -> Path:
    """Write the kit of a user's saved program into ``folder``: a call with ``inputs``, and what its source makes of it.

    Args:
        path: what torch.export.save wrote.
        inputs: an ``.npz`` archive with an array for every input, in order.
        folder: an empty or new directory.
        lower_with: who turns the program into a file.
        versions: of what a kit depends on.

    Raises:
        BadFile, ValueError: the program or its inputs cannot be read, or do not fit; one line.
        NotLowered: the lowering raised.
    """
    from conformance.explain.explain import load_pt2  # noqa: PLC0415 - loads torch

    program = load_pt2(path)
    try:
        with np.load(inputs, allow_pickle=False) as archive:
            arrays = [archive[name] for name in archive.files]
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, AttributeError) as error:
        raise ValueError(f"{inputs}: no .npz archive of arrays ({one_line(error)})") from error
    try:
        results = program.module()(*(to_torch(array) for array in arrays))
    except Exception as error:  # whatever the program raises on inputs that are not its own
        raise ValueError(f"{inputs}: the program does not take them ({one_line(error)})") from error
    outputs = [to_numpy(r) for r in (results if isinstance(results, tuple | list) else (results,))]
    model = _lowered(program, lower_with)
    target = folder / path.stem
    with _new(target) as put:
        given = tuple(_tensor(put, f"input_{n}.bin", array) for n, array in enumerate(arrays))
        right = tuple(_tensor(put, f"expected_{n}.bin", array, f"output{n}") for n, array in enumerate(outputs))
        left = tuple(replace(t, file=f"output_{n}.bin", sha256="") for n, t in enumerate(right))
        _finish(put, Description(put("model.pte", model), (Call(given, left, None, right),), lower_with, versions))
    return target


def _one_operator(question: Dispatch | EndToEnd) -> bytes:
    model = lookup_file(question)
    if isinstance(model, Refused):
        raise NotLowered(f"impl does not fuse it: {model.reason}: {model.detail}")
    return model


def _lowered(program: Any, lower_with: str) -> bytes:
    try:
        return lowering(lower_with)(program, {})
    except Exception as error:
        message = str(error).strip().partition("\n")[0]
        raise NotLowered(f"{lower_with} does not lower it: {type(error).__name__}: {message}") from error


@contextlib.contextmanager
def _new(target: Path) -> Iterator[Put]:
    """Write a directory whole or not at all; what is handed out writes a file into it."""
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=target.parent))

    def put(name: str, data: bytes) -> KitFile:
        write_whole({scratch / name: data})
        return KitFile(name, hashlib.sha256(data).hexdigest())

    try:
        yield put
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    readme = target.parent / "README.md"
    if not readme.exists():
        write_whole({readme: _README.read_text(encoding="utf-8")})


def _tensor(put: Put, name: str, array: Array, step: str = "") -> Tensor:
    file = put(name, np.ascontiguousarray(array).tobytes())
    return Tensor(file.file, file.sha256, dtype_name(array), array.shape, step)


def _finish(put: Put, description: Description) -> None:
    put("case.json", description.to_json().encode())
    put("arguments.txt", (" ".join(description.arguments()) + "\n").encode())
