"""Runs a whole ``.pte`` without a Vulkan runtime.

Each Vulkan delegate is executed by ``conformance.pte.delegate``; everything between two of them runs on the
wheel's real CPU runtime. What is not supported: control flow in a method that also calls Vulkan,
mutable state that such a method writes, and data outside the file; each is a ``CannotRun``.

Source: docs/contract.md 5.7, 6.1, 6.2.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from executorch.exir.schema import Bool, DelegateCall, Double, FreeCall, Int, KernelCall, String, Tensor

from conformance.harness.errors import CannotRun, DeviceWouldFail
from conformance.harness.observation import Facts
from conformance.program.tensors import to_numpy, to_torch
from conformance.pte.cpu import run_calls
from conformance.pte.delegate import run_delegate
from conformance.pte.file import Method, PteFile, read_pte

#: torch's dtypes by ScalarType's names.
_SCALAR_DTYPES = {
    "BYTE": torch.uint8,
    "CHAR": torch.int8,
    "SHORT": torch.int16,
    "INT": torch.int32,
    "LONG": torch.int64,
    "HALF": torch.float16,
    "FLOAT": torch.float32,
    "DOUBLE": torch.float64,
    "BOOL": torch.bool,
    "BFLOAT16": torch.bfloat16,
}


@dataclass(frozen=True)
class RunResult:
    """What a method returned (numpy arrays and numbers, in order), and facts of every lookup that ran."""

    outputs: tuple[Any, ...]
    lookups: tuple[Facts, ...]


def run_pte(source: PteFile | Path | str | bytes, inputs: Sequence[Any], method: str = "forward") -> RunResult:
    """Execute one method of a ``.pte`` from its serialized bytes.

    Args:
        source: a parsed file, a path or the bytes.
        inputs: an array, tensor or number for each of the method's inputs, in order.
        method: its name.

    Raises:
        BadFile: see ``read_pte``.
        KeyError: no such method.
        CannotRun: names the method, delegate and operator that cannot be executed, and why.
        EnvironmentProblem: no Vulkan device or shader compiler.
    """
    file = source if isinstance(source, PteFile) else read_pte(source)
    called = file.method(method)
    values = _inputs(called, inputs)
    lookups: list[Facts] = []
    stretches = list(_stretches(called))
    for position, stretch in enumerate(stretches):
        if isinstance(stretch, DelegateCall):
            lookups += _call_delegate(called, stretch, values)
            continue
        later = set(called.plan.outputs)
        for rest in stretches[position + 1 :]:
            later.update(rest.args if isinstance(rest, DelegateCall) else [v for call in rest for v in call.args])
        values |= run_calls(file, called, stretch, values, later)
    return RunResult(tuple(_output(called, value, values) for value in called.plan.outputs), tuple(lookups))


def _inputs(method: Method, inputs: Sequence[Any]) -> dict[int, Any]:
    if len(inputs) != len(method.plan.inputs):
        raise CannotRun(f"method {method.name!r} takes {len(method.plan.inputs)} inputs, {len(inputs)} given")
    values: dict[int, Any] = {}
    for number, (value, argument) in enumerate(zip(method.plan.inputs, inputs, strict=True)):
        spec = method.plan.values[value].val
        if not isinstance(spec, Tensor):
            values[value] = argument
            continue
        tensor = argument if isinstance(argument, torch.Tensor) else to_torch(argument)
        values[value] = _fits(f"method {method.name!r}, input {number}", tensor, spec)
    return values


def _fits(what: str, tensor: Any, spec: Tensor) -> Any:
    """The tensor, whose dtype and shape must be those of the program (sizes are bounds where it is dynamic)."""
    dtype = scalar_dtype(spec)
    static = spec.shape_dynamism == 0
    fits = len(tensor.shape) == len(spec.sizes) and all(
        size == bound if static else size <= bound for size, bound in zip(tensor.shape, spec.sizes, strict=True)
    )
    if tensor.dtype != dtype or not fits:
        bound = "" if static else " at most"
        raise CannotRun(f"{what} is {tensor.dtype}{list(tensor.shape)}, the program has{bound} {dtype}{spec.sizes}")
    return tensor


def scalar_dtype(spec: Tensor) -> Any:
    """A program tensor's dtype as torch's."""
    name = spec.scalar_type.name
    if name not in _SCALAR_DTYPES:
        raise CannotRun(f"a tensor of scalar type {name} cannot be handed over")
    return _SCALAR_DTYPES[name]


def _stretches(method: Method) -> Iterator[Any]:
    """Calls of Vulkan delegates, and between them lists of all other calls."""
    stretch: list[Any] = []
    for call in method.instructions():
        if isinstance(call, DelegateCall) and call.delegate_index in method.delegates:
            if stretch:
                yield stretch
                stretch = []
            yield call
        elif isinstance(call, KernelCall | DelegateCall):
            stretch.append(call)
        elif not isinstance(call, FreeCall):  # memory that a stretch's own end frees
            raise CannotRun(f"method {method.name!r}: {type(call).__name__} (control flow) is not supported here")
    if stretch:
        yield stretch


def _call_delegate(method: Method, call: DelegateCall, values: dict[int, Any]) -> list[Facts]:
    delegate = method.delegates[call.delegate_index]
    count = len(delegate.graph.input_ids)
    results, facts = run_delegate(delegate, [_value(method, v, values) for v in call.args[:count]])
    for number, (value, result) in enumerate(zip(call.args[count:], results, strict=True)):
        spec = method.plan.values[value].val
        if isinstance(spec, Tensor):
            values[value] = _handed_back(f"{delegate.name}, output {number}", result, spec)
        else:
            values[value] = result
    return facts


def _handed_back(what: str, result: Any, spec: Tensor) -> Any:
    """A delegate's output in the outer program's dtype: only 64-bit numbers, and halves, may differ inside."""
    dtype = scalar_dtype(spec)
    widened = {(torch.int32, torch.int64), (torch.float32, torch.float64), (torch.float16, torch.float32)}
    if result.dtype != dtype and (result.dtype, dtype) not in widened:
        raise DeviceWouldFail(f"{what} is {result.dtype}, the outer program has {dtype}")
    return _fits(what, result.to(dtype), spec)


def _value(method: Method, value: int, values: dict[int, Any]) -> Any:
    if value in values:
        return values[value]
    match method.plan.values[value].val:
        case Int(int_val=literal) | Bool(bool_val=literal) | String(string_val=literal) | Double(double_val=literal):
            return literal
        case other:
            raise CannotRun(
                f"method {method.name!r}: value {value} ({type(other).__name__}) is read before it is known"
            )


def _output(method: Method, value: int, values: dict[int, Any]) -> Any:
    result = _value(method, value, values)
    return to_numpy(result) if isinstance(result, torch.Tensor) else result
