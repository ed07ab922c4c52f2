"""A real ExecuTorch runtime with a Vulkan backend, behind one call: in this process, or a runner's.

A shared library that registers the backend is loaded into the wheel's own runtime: one a process, and the process must
not fork once it has executed something. A runner is called as ``conformance.harness.command`` says.

Source: docs/runtime.md.
"""

import ctypes
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import executorch
import executorch.kernels.quantized  # registers the quantized embedding kernels of the CPU
import numpy as np
import torch
from executorch.runtime import Runtime

from conformance.harness.command import THEN, call, read_told, told
from conformance.harness.errors import BadSubject, EnvironmentProblem, RuntimeFailed, one_line
from conformance.program.tensors import Array, to_numpy, to_torch
from conformance.pte.file import VULKAN
from conformance.sources.runtime import RuntimeSource
from reference.arithmetic.bfloat16 import dtype_name, numpy_dtype

#: How long a runner may take for one file; a case has a limit of its own.
_SECONDS = 600.0
#: The inputs of one call of method ``forward``, in order: arrays or tensors.
Inputs = Sequence[Any]


class RealRuntime(Protocol):
    """Runs files."""

    def run(self, model: bytes, calls: Sequence[Inputs]) -> list[tuple[Array, ...]]:
        """Load a ``.pte`` once, call its method ``forward`` with each of ``calls`` and return the outputs of each.

        Raises:
            RuntimeFailed: the runtime does not load or run it, or answers with something else than tensors.
        """
        ...


def open_runtime(source: RuntimeSource) -> RealRuntime:
    """Open a runtime.

    Raises:
        BadSubject: the library cannot be loaded or registers no Vulkan backend.
        EnvironmentProblem: its backend finds no Vulkan device.
    """
    return Library(Path(source.words[0])) if source.library else Runner(source.words)


class Library:
    """The wheel's runtime with a Vulkan backend from a shared library."""

    def __init__(self, path: Path) -> None:
        wheel = next(iter(executorch.__path__))
        try:
            for library in (Path(wheel) / "lib" / "libexecutorch.so", path):
                if library is path or library.is_file():
                    ctypes.CDLL(str(library), ctypes.RTLD_GLOBAL)
        except OSError as error:
            raise BadSubject(f"subject executorch-runtime: {path} cannot be loaded ({one_line(error)})") from error
        backends = Runtime.get().backend_registry
        if VULKAN not in backends.registered_backend_names:
            known = ", ".join(backends.registered_backend_names) or "none"
            raise BadSubject(f"subject executorch-runtime: {path} registers no {VULKAN} (registered: {known})")
        if not backends.is_available(VULKAN):
            raise EnvironmentProblem(f"{path}: {VULKAN} is not available: no Vulkan driver or device")

    def run(self, model: bytes, calls: Sequence[Inputs]) -> list[tuple[Array, ...]]:
        """See ``RealRuntime``."""
        try:
            method = Runtime.get().load_program(model).load_method("forward")
            if method is None:
                raise RuntimeFailed("the runtime finds no method 'forward'")
            results = [[_copy(out) for out in method.execute([_tensor(x) for x in inputs])] for inputs in calls]
        except RuntimeError as error:
            raise RuntimeFailed(one_line(error)) from error
        return [tuple(outputs) for outputs in results]


class Runner:
    """A command, called once a file."""

    def __init__(self, words: Sequence[str]) -> None:
        self._words = tuple(words)

    def run(self, model: bytes, calls: Sequence[Inputs]) -> list[tuple[Array, ...]]:
        """See ``RealRuntime``."""
        with tempfile.TemporaryDirectory(prefix="q4gsw-runtime-") as name:
            folder, out = Path(name), Path(name) / "out"
            out.mkdir()
            (folder / "model.pte").write_bytes(model)
            arrays = [[to_numpy(_tensor(x)) for x in inputs] for inputs in calls]
            words = [str(folder / "model.pte"), str(out), *_arguments(folder, arrays)]
            if trouble := call((*self._words, *words), _SECONDS):
                raise RuntimeFailed(trouble.reason)
            outputs = list(_outputs(out))
        each, rest = divmod(len(outputs), len(calls))
        if rest or not each:
            raise RuntimeFailed(f"the runner left {len(outputs)} outputs of {len(calls)} calls")
        return [tuple(outputs[at : at + each]) for at in range(0, len(outputs), each)]


def _arguments(folder: Path, calls: Sequence[Sequence[Array]]) -> list[str]:
    words: list[str] = []
    for number, arrays in enumerate(calls):
        words += [THEN] if number else []
        for position, array in enumerate(arrays):
            path = folder / f"input_{number}_{position}.bin"
            path.write_bytes(np.ascontiguousarray(array).tobytes())
            words.append(f"{path}:{told(dtype_name(array), array.shape)}")
    return words


def _outputs(folder: Path) -> "list[Array]":
    outputs: list[Array] = []
    while (path := folder / f"output_{len(outputs)}.bin").is_file():
        try:
            dtype, shape = read_told(path.with_suffix(".txt").read_text(encoding="utf-8"))
            outputs.append(np.frombuffer(path.read_bytes(), numpy_dtype(dtype)).reshape(shape))
        except (OSError, ValueError, TypeError) as error:
            raise RuntimeFailed(f"{path.name}: {one_line(error)}") from error
    return outputs


def _tensor(value: Any) -> Any:
    tensor = value if isinstance(value, torch.Tensor) else to_torch(np.asarray(value))
    # The wheel's binding aborts on the strides that numpy gives an array without elements.
    return tensor if tensor.numel() else torch.empty(tensor.shape, dtype=tensor.dtype)


def _copy(output: Any) -> Array:
    if not isinstance(output, torch.Tensor):
        raise RuntimeFailed(f"an output is {type(output).__name__}, not a tensor")
    return to_numpy(output)
