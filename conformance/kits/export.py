"""Writes kits: builds a case's program, lowers it, and puts down everything that a runtime and the judge need.

Source: docs/kits.md; docs/contract.md section 3.
"""

import hashlib
import json
import shutil
import tempfile
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.case.case import Case
from conformance.case.toml import case_to_toml
from conformance.files import write_whole
from conformance.kits.kit import FORMAT
from conformance.kits.readme import README
from conformance.program.build import BuiltProgram, build
from conformance.program.tensors import to_numpy, to_torch
from conformance.subjects.stages import Lower
from reference.arithmetic.bfloat16 import dtype_name, to_float
from reference.arithmetic.dot_bound import dot_bound
from reference.program.evaluate import evaluate
from reference.program.fusibility import violations
from reference.program.spec import Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Step
from reference.program.values import tensor_values
from reference.table.layouts import unpack_flat

Array = np.ndarray[Any, Any]


class NotLowered(Exception):  # noqa: N818 - it names what the lowering did
    """The lowering raised; one line with what it said."""


def folder_of(case: Case, folder: Path) -> Path:
    """Return the directory in ``folder`` that a case's kit is written to.

    Raises:
        ValueError: it is there already.
    """
    target = folder / case.id.replace("/", "__")
    if target.exists():
        raise ValueError(f"{target}: is there already; export into an empty directory")
    return target


def lowering(name: str) -> Lower:
    """Return the lowering of that name: "impl" or "executorch".

    Raises:
        ValueError: neither.
    """
    from conformance.subjects import executorch, impl  # noqa: PLC0415 - they load torch

    known: dict[str, Lower] = {"impl": impl.lower, "executorch": executorch.lower}
    if name not in known:
        raise ValueError(f"--lower-with {name!r} is not one of {', '.join(known)}")
    return known[name]


def export(case: Case, folder: Path, lower_with: str, versions: Mapping[str, str]) -> Path:
    """Write the kit of one RUN case into a directory of its own in ``folder`` and return it.

    Raises:
        ValueError: the case cannot be a kit, or its directory is there already; says why.
        NotLowered: the lowering raised.
    """
    spec = case.program
    if spec is None or spec.route == "synthetic":
        raise ValueError("only programs of torch.export can be kits")
    target = folder_of(case, folder)
    built = build(spec)
    try:
        data = lowering(lower_with)(built.exported, {})
    except Exception as error:
        said = str(error).strip().partition("\n")[0]
        raise NotLowered(f"{lower_with} does not lower it: {type(error).__name__}: {said}") from error
    folder.mkdir(parents=True, exist_ok=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        _write(scratch, case, built, data, lower_with, versions)
        scratch.chmod(0o755)
        scratch.rename(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    readme = folder / "README.md"
    if not readme.exists():
        write_whole({readme: README})
    return target


def _write(
    folder: Path, case: Case, built: BuiltProgram, data: bytes, lower_with: str, versions: Mapping[str, str]
) -> None:
    def put(name: str, array: Array) -> dict[str, Any]:
        raw = np.ascontiguousarray(array).tobytes()
        (folder / name).write_bytes(raw)
        digest = hashlib.sha256(raw).hexdigest()
        return {"file": name, "dtype": dtype_name(array), "shape": list(array.shape), "sha256": digest}

    (folder / "model.pte").write_bytes(data)
    (folder / "case.toml").write_text(case_to_toml(case), encoding="utf-8")
    inputs = [put(f"input_{i}.bin", to_numpy(t)) for i, t in enumerate(built.inputs)]
    outputs, first = [], {}
    for step in built.spec.steps:
        if isinstance(step, Dequantize):
            continue
        position = built.outputs[step.name]
        way, parts, shown = _right(built.spec, step)
        described = {part: put(f"{part}_{position}.bin", array) for part, array in parts.items()}
        shape, dtype = list(shown.shape), dtype_name(shown)
        first[position] = shown
        entry = {"name": step.name, "file": f"output_{position}.bin", "dtype": dtype, "shape": shape, "judged_by": way}
        outputs.append({**entry, **described})
    about = {
        "kit": FORMAT,
        "case": case.id,
        "source": case.contract,
        "shows": case.detects,
        "method": "forward",
        "model": {"file": "model.pte", "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "inputs": inputs,
        "outputs": sorted(outputs, key=lambda o: str(o["file"])),
        "lowered_with": lower_with,
        "versions": dict(versions),
    }
    (folder / "case.json").write_text(json.dumps(about, indent=1) + "\n", encoding="utf-8")
    _bundle(folder, built, [first[i] for i in sorted(first)])


def _right(spec: ProgramSpec, step: Step) -> tuple[str, dict[str, Array], Array]:
    """How a step's output is judged, with what, and an array of its dtype and shape."""
    tensors, expected = tensor_values(spec), evaluate(spec)
    if isinstance(step, Linear):
        _check_no_zero_point(spec, step, tensors)
        values, scales = _operands(spec, step.table, tensors)
        weights = values.astype(np.float64) * np.repeat(scales, values.shape[1] // scales.shape[1], axis=1)
        exact, bound = dot_bound(tensors[step.x], weights, nearest=True)
        _, wider = dot_bound(tensors[step.x], weights, nearest=False)
        return "dot", {"exact": exact, "bound": bound, "bound_any": wider}, exact.astype(np.float32)
    if step.name not in expected:  # max_norm: nothing of the contract depends on how a norm is summed
        raise ValueError(f"step {step.name} has no value that the contract fixes; it cannot be in a kit")
    want = expected[step.name]
    if not isinstance(step, Lookup | PackedLookup) or violations(spec)[step.name]:
        return "bits", {"expected": want}, want
    values, scales = _operands(spec, step if isinstance(step, PackedLookup) else step.table, tensors)
    rows = tensors[step.indices].astype(np.int64)
    chosen, row_scales = values[rows], scales[rows]
    with np.errstate(invalid="ignore"):  # infinity times zero is NaN, and meant
        product = chosen * np.repeat(row_scales, values.shape[1] // scales.shape[1], axis=-1).astype(np.float64)
    return "product", {"values": chosen, "scales": row_scales, "product": product}, want


def _check_no_zero_point(spec: ProgramSpec, step: Linear, tensors: Mapping[str, Array]) -> None:
    """Refuse a table whose values are not its codes times its scales: the exact sums would be another program's.

    Raises:
        ValueError: an element of the table's zero point is not zero; names the step and the tensor.
    """
    name = spec.dequantize(step.table).zero_point
    if name and not (to_float(tensors[name]) == 0).all():
        raise ValueError(
            f"step {step.name}: {step.table}'s zero point {name} is not zero everywhere, and the bound of a dot "
            f"product knows none; it cannot be in a kit"
        )


def _operands(spec: ProgramSpec, table: str | PackedLookup, tensors: Mapping[str, Array]) -> tuple[Array, Array]:
    if isinstance(table, PackedLookup):
        return unpack_flat(tensors[table.weight]), tensors[table.scale]
    step = spec.dequantize(table)
    return tensors[step.weight], tensors[step.scale]


def _bundle(folder: Path, built: BuiltProgram, expected: list[Array]) -> None:
    """ExecuTorch's own bundle of program, inputs and outputs; its runner compares with a tolerance: no verdict."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        from executorch.devtools import BundledProgram  # noqa: PLC0415 - takes seconds to load
        from executorch.devtools.bundled_program.config import MethodTestCase, MethodTestSuite  # noqa: PLC0415 - the same
        from executorch.devtools.bundled_program.serialize import (  # noqa: PLC0415 - the same
            serialize_from_bundled_program_to_flatbuffer,
        )

        outputs = [to_torch(array.copy()) for array in expected]
        suite = MethodTestSuite("forward", [MethodTestCase(list(built.inputs), outputs)])
        bundle = BundledProgram(
            executorch_program=None, method_test_suites=[suite], pte_file_path=str(folder / "model.pte")
        )
        (folder / "model.bpte").write_bytes(serialize_from_bundled_program_to_flatbuffer(bundle))
