"""Plays kits: on a real runtime, or without one (delegates on our kernel, the rest on the wheel's CPU runtime).

Both functions are tasks of ``conformance.harness.limited``: a model may be anything.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from conformance.files import make_folder, write_whole
from conformance.harness.command import THEN, read_told, told
from conformance.harness.errors import BadFile, one_line
from conformance.kits.command import AGAIN
from conformance.kits.kit import TROUBLE, Array, read_file, read_kit, read_tensor
from conformance.pte.run import run_pte
from conformance.pte.runtime import Inputs, RealRuntime, open_runtime
from conformance.sources.runtime import runtime_source
from reference.arithmetic.bfloat16 import dtype_name, numpy_dtype


class NoRuntime:
    """Runs files without a Vulkan runtime."""

    def run(self, model: bytes, calls: Sequence[Inputs]) -> list[tuple[Array, ...]]:
        """See ``conformance.pte.runtime.RealRuntime``."""
        return [run_pte(model, inputs).outputs for inputs in calls]


def player(runtime: str) -> RealRuntime:
    """Return what plays: the runtime that ``PATH`` names, or without one our own; errors as of ``open_runtime``."""
    return open_runtime(runtime_source(runtime)) if runtime else NoRuntime()


def play(case_json: str, outputs: str, runtime: str, repeat: str, *others: str) -> str:
    """Play the kit that ``case_json`` describes, and ``others``, into ``outputs``, a directory each; return "".

    All calls of a kit are made ``repeat`` times; from 2 on the last time after its model was loaded once more. A
    directory without outputs and without ``TROUBLE`` is of a kit that ended this process.
    """
    plays, times = player(runtime), int(repeat)
    for path in (case_json, *others):
        folder = Path(path).parent.resolve()
        out = make_folder(Path(outputs) / folder.name)
        try:
            kit = read_kit(folder)
            model = read_file(folder, kit.description.model)
            calls = [[read_tensor(folder, t).copy() for t in call.inputs] for call in kit.description.calls]
            first = plays.run(model, calls * max(1, times - 1))
            if times > 1:
                _write(out / AGAIN, plays.run(model, calls))
            _write(out, first)
        except Exception as error:  # noqa: BLE001 - whatever a runtime raises costs its own kit only
            shutil.rmtree(out / AGAIN, ignore_errors=True)
            write_whole({out / TROUBLE: one_line(error)})
    return ""


def play_one(model: str, outputs: str, runtime: str, *words: str) -> str:
    """Do what a runner does (``conformance.harness.command``); return "". BadFile where a word is no input."""
    calls: list[list[Array]] = [[]]
    try:
        for word in words:
            if word == THEN:
                calls.append([])
                continue
            path, *text = word.rsplit(":", 2)
            dtype, shape = read_told(":".join(text))
            calls[-1].append(np.fromfile(path, numpy_dtype(dtype)).reshape(shape))
        data = Path(model).read_bytes()
    except (OSError, ValueError, TypeError, LookupError) as error:
        raise BadFile(one_line(error)) from error
    _write(Path(outputs), player(runtime).run(data, calls))
    return ""


def _write(folder: Path, answers: Sequence[Sequence[Array]]) -> None:
    make_folder(folder)
    for position, array in enumerate(output for outputs in answers for output in outputs):
        path = folder / f"output_{position}.bin"
        text = told(dtype_name(array), array.shape)
        write_whole({path: np.ascontiguousarray(array).tobytes(), path.with_suffix(".txt"): text})
