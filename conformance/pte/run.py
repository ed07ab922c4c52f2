"""Runs a whole ``.pte`` without a Vulkan runtime.

Each Vulkan delegate is executed by ``conformance.pte.delegate``; everything between two of them runs on the
wheel's real CPU runtime, control flow is followed here. State that a method writes lives from call to call where the
caller hands it on. What is not supported: state inside a delegate and data outside the file; each is a ``CannotRun``.

Source: docs/contract.md 5.7, 6.1, 6.2.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkTensor
from executorch.exir.schema import (
    Bool,
    DelegateCall,
    Double,
    FreeCall,
    Int,
    JumpFalseCall,
    KernelCall,
    MoveCall,
    String,
    Tensor,
)

from conformance.harness.errors import CannotRun, DeviceWouldFail
from conformance.harness.observation import Facts
from conformance.program.tensors import to_numpy, to_torch
from conformance.pte.cpu import run_calls
from conformance.pte.delegate import border_dtype, run_delegate
from conformance.pte.file import Method, PteFile, read_pte
from conformance.pte.producer import outputs_of

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
    """What a method returned (numpy arrays and numbers, in order), and facts of every lookup that ran.

    ``state`` holds the buffers that the method writes, by value id, for the next call; ``rows`` what each lookup
    gave, and ``delegated`` what each call of a Vulkan delegate returned, with the delegate's position.
    """

    outputs: tuple[Any, ...]
    lookups: tuple[Facts, ...]
    state: Mapping[int, Any] = field(default_factory=dict)
    rows: tuple[Any, ...] = ()
    delegated: tuple[tuple[int, tuple[Any, ...]], ...] = ()


def run_pte(
    source: PteFile | Path | str | bytes,
    inputs: Sequence[Any],
    method: str = "forward",
    state: Mapping[int, Any] | None = None,
) -> RunResult:
    """Execute one method of a ``.pte`` from its serialized bytes.

    Args:
        source: a parsed file, a path or the bytes.
        inputs: an array, tensor or number for each of the method's inputs, in order.
        method: its name.
        state: of the call before this one; None starts from what the file holds.

    Raises:
        BadFile: see ``read_pte``.
        KeyError: no such method.
        CannotRun: names the method, delegate and operator that cannot be executed, and why.
        EnvironmentProblem: no Vulkan device or shader compiler.
    """
    file = source if isinstance(source, PteFile) else read_pte(source)
    called = file.method(method)
    kept = _state(file, called) if state is None else state
    values = {**kept, **_inputs(called, inputs)}
    lookups: list[tuple[Any, Facts]] = []
    delegated: list[tuple[int, tuple[Any, ...]]] = []
    calls = list(called.instructions())
    at = 0
    while at < len(calls):
        call = calls[at]
        at += 1
        if isinstance(call, DelegateCall) and call.delegate_index in called.delegates:
            lookups += _call_delegate(called, call, values)
            results = call.args[len(called.delegates[call.delegate_index].graph.input_ids) :]
            delegated.append((call.delegate_index, tuple(_output(called, value, values) for value in results)))
        elif isinstance(call, JumpFalseCall):
            if not bool(_value(called, call.cond_value_index, values)):
                at = call.destination_instruction
        elif isinstance(call, MoveCall):
            values[call.move_to] = _value(called, call.move_from, values)
        elif not isinstance(call, FreeCall):  # memory that a stretch's own end frees
            end = _end_of_stretch(called, calls, at)
            stretch, at = [c for c in calls[at - 1 : end] if not isinstance(c, FreeCall)], end
            later = {*called.plan.outputs, *kept}.union(*(_reads(c) for c in calls if c not in stretch))
            values |= run_calls(file, called, stretch, values, later)
    outputs = tuple(_output(called, value, values) for value in called.plan.outputs)
    state = {value: values[value].clone() for value in kept}
    rows, facts = zip(*lookups, strict=True) if lookups else ((), ())
    return RunResult(outputs, facts, state, rows, tuple(delegated))


def run_in_turn(source: PteFile | Path | str | bytes, calls: Sequence[Sequence[Any]]) -> list[RunResult]:
    """``run_pte`` once for the inputs of each call; what a call writes is there for the next.

    Raises:
        DeviceWouldFail: besides, where our kernel is right about a lookup that the runtime's shader is wrong about.
    """
    results: list[RunResult] = []
    for inputs in calls:
        results.append(run_pte(source, inputs, state=results[-1].state if results else None))
        for rows, facts in zip(results[-1].rows, results[-1].lookups, strict=True):
            if facts.io_storage == "texture3d" and math.prod(rows.shape[:-2]) > 1:
                what = f"indices of shape {list(rows.shape[:-1])} in a texture"
                raise DeviceWouldFail(f"{what} give wrong rows: the runtime's shader reads them as one row")
    return results


def _end_of_stretch(method: Method, calls: list[Any], start: int) -> int:
    """Where the CPU's calls from ``start`` - 1 on end: at a Vulkan delegate, a jump, or where one leads to."""
    targets = {call.destination_instruction for call in calls if isinstance(call, JumpFalseCall)}
    for at in range(start, len(calls)):
        call = calls[at]
        vulkan = isinstance(call, DelegateCall) and call.delegate_index in method.delegates
        if vulkan or at in targets or isinstance(call, JumpFalseCall | MoveCall):
            return at
    return len(calls)


def _reads(call: Any) -> Sequence[int]:
    if isinstance(call, JumpFalseCall):
        return [call.cond_value_index]
    return [call.move_from] if isinstance(call, MoveCall) else getattr(call, "args", [])


def _state(file: PteFile, method: Method) -> dict[int, Any]:
    """The buffers that live from call to call, as the file or zeroed memory starts them: read before written."""
    written = set(method.plan.inputs)
    state: dict[int, Any] = {}
    for call in method.instructions():
        outs = _written_by(method, call)
        for value in (v for v in _reads(call) if v not in written):
            spec = method.plan.values[value].val
            if not isinstance(spec, Tensor) or spec.allocation_info is None:
                continue
            if value not in outs or value in call.args[:1]:  # an operator in place reads what it writes
                state[value] = _initial(file, spec)
        written |= outs
    return state


def _written_by(method: Method, call: Any) -> set[int]:
    if isinstance(call, KernelCall):
        return outputs_of(method, call)
    if isinstance(call, DelegateCall):
        delegate = method.delegates.get(call.delegate_index)
        return set(call.args[len(delegate.graph.input_ids) :]) if delegate else set(call.args)
    return {call.move_to} if isinstance(call, MoveCall) else set()


def _initial(file: PteFile, spec: Tensor) -> Any:
    dtype = scalar_dtype(spec)
    data = file.content.mutable_data
    if not spec.data_buffer_idx or not data:
        return torch.zeros(spec.sizes, dtype=dtype)
    count = math.prod(spec.sizes)
    return torch.frombuffer(bytearray(data[spec.data_buffer_idx].storage), dtype=dtype)[:count].reshape(spec.sizes)


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


def _call_delegate(method: Method, call: DelegateCall, values: dict[int, Any]) -> list[tuple[Any, Facts]]:
    delegate = method.delegates[call.delegate_index]
    count = len(delegate.graph.input_ids)
    results, lookups = run_delegate(delegate, [_value(method, v, values) for v in call.args[:count]])
    for number, (value, result) in enumerate(zip(call.args[count:], results, strict=True)):
        spec = method.plan.values[value].val
        if isinstance(spec, Tensor):
            inner = delegate.graph.values[delegate.graph.output_ids[number]].value
            values[value] = _handed_back(f"{delegate.name}, output {number}", result, spec, inner)
        else:
            values[value] = result
    return lookups


def _handed_back(what: str, result: Any, spec: Tensor, inner: Any) -> Any:
    """A delegate's output in the outer program's dtype, where the runtime has a conversion to it."""
    dtype = scalar_dtype(spec)
    if not isinstance(inner, VkTensor) or border_dtype(inner, dtype) is None:
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
