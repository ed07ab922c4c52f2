"""Writes kits: builds a case's program, lowers it, and puts down everything that a runtime and the judge need."""

import hashlib
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from conformance.case.case import Case, Program
from conformance.case.toml import case_to_toml
from conformance.files import write_whole
from conformance.kits.kit import Description, KitFile, Tensor, outputs_of, strict_outputs
from conformance.program.build import BuiltProgram, build, other_inputs
from conformance.program.tensors import to_numpy, to_torch
from conformance.subjects.stages import Lower
from reference.arithmetic.bfloat16 import dtype_name
from reference.program.sizes import other_sizes

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
    """Write the kit of one RUN case into a directory of its own in ``folder`` and return it.

    A program with symbolic sizes has a kit beside it for each other size to ask: the same model, other inputs.
    """
    spec = case.program
    if spec is None or spec.route == "synthetic":
        raise ValueError("only programs of torch.export can be kits")
    target = folder_of(case, folder)
    outputs_of(spec)  # before anything is built: not every program can be judged
    built = build(spec)
    try:
        model = lowering(lower_with)(built.exported, {})
    except Exception as error:
        message = str(error).strip().partition("\n")[0]
        raise NotLowered(f"{lower_with} does not lower it: {type(error).__name__}: {message}") from error
    folder.mkdir(parents=True, exist_ok=True)
    for size, sized in other_sizes(spec, lowered=True).items():
        inputs = other_inputs(built, lowered=True)[size]
        own = replace(case, id=f"{case.id}-size-{size}", question=Program(sized))
        _write(own, replace(built, spec=sized, inputs=inputs), model, folder_of(own, folder), lower_with, versions)
    _write(case, built, model, target, lower_with, versions)
    readme = folder / "README.md"
    if not readme.exists():
        write_whole({readme: _README.read_text(encoding="utf-8")})
    return target


def _write(
    case: Case, built: BuiltProgram, model: bytes, target: Path, lower_with: str, versions: Mapping[str, str]
) -> None:
    folder = target.parent
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))

    def put(name: str, data: bytes) -> KitFile:
        write_whole({scratch / name: data})
        return KitFile(name, hashlib.sha256(data).hexdigest())

    try:
        inputs = []
        for number, array in enumerate(map(to_numpy, built.inputs)):
            file = put(f"input_{number}.bin", np.ascontiguousarray(array).tobytes())
            inputs.append(Tensor(file.file, file.sha256, dtype_name(array), array.shape))
        files = put("model.pte", model), put("case.toml", case_to_toml(case).encode())
        description = Description(*files, tuple(inputs), outputs_of(built.spec), lower_with, versions)
        put("case.json", description.to_json().encode())
        _bundle(scratch, built)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _bundle(folder: Path, built: BuiltProgram) -> None:
    """ExecuTorch's own bundle of program, inputs and outputs; its runner compares with a tolerance: no verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        from executorch.devtools import BundledProgram  # noqa: PLC0415 - takes seconds to load
        from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite  # noqa: PLC0415 - the same
        from executorch.devtools.bundled_program.serialize import (  # noqa: PLC0415 - the same
            serialize_from_bundled_program_to_flatbuffer,
        )

        outputs = [to_torch(array.copy()) for array in strict_outputs(built.spec).values()]
        suite = MethodTestSuite("forward", [MethodTestCase(list(built.inputs), outputs)])
        bundle = BundledProgram(
            executorch_program=None, method_test_suites=[suite], pte_file_path=str(folder / "model.pte")
        )
        write_whole({folder / "model.bpte": serialize_from_bundled_program_to_flatbuffer(bundle)})
