"""Runs stretches of a method's kernel calls on the wheel's real CPU runtime.

A program with a Vulkan delegate does not load there; a run of its kernel calls, written out again as a
program of its own, does. Delegates of other backends stay in their stretch.

Source: docs/contract.md 5.7, 6.2.
"""

import copy
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers the CPU's quantized embedding kernels
import torch
from executorch.exir._serialize._program import PTEFile, serialize_pte_binary
from executorch.exir.schema import (
    Bool,
    Buffer,
    Chain,
    DelegateCall,
    Double,
    EValue,
    Instruction,
    Int,
    KernelCall,
    Null,
    OptionalTensorList,
    String,
    Tensor,
    TensorList,
)
from executorch.runtime import Runtime

from conformance.harness.errors import CannotRun, one_line
from conformance.pte.file import Method, PteFile

Calls = Sequence[Any]
_SCALARS = {bool: Bool, int: Int, float: Double, str: String}


def run_calls(file: PteFile, method: Method, calls: Calls, known: Mapping[int, Any], later: set[int]) -> dict[int, Any]:
    """Run ``calls`` and return the values that something ``later`` needs.

    Args:
        file: where the calls come from.
        method: the method they are in.
        calls: kernel calls, and calls of delegates other than Vulkan's, in order.
        known: value id -> tensor or number, for everything computed so far.
        later: ids of what the rest of the method reads or returns.
    """
    touched = _touched(method.plan, calls)
    inputs = [v for v in sorted(touched) if isinstance(known.get(v), torch.Tensor)]
    outputs = [v for v in sorted(touched & later) if _is_result(method.plan, v, known, calls)]
    names = ", ".join(dict.fromkeys(method.operator(c) for c in calls if isinstance(c, KernelCall)))
    where = f"method {method.name!r}, CPU operators {names}"
    data = _segment(file, method, calls, touched, known, inputs, outputs)
    try:
        loaded = Runtime.get().load_program(data).load_method(method.name)
        if loaded is None:
            raise CannotRun(f"{where}: the runtime has no such method")
        results = loaded.execute([known[v] for v in inputs])
    except RuntimeError as error:
        raise CannotRun(f"{where}: {one_line(error)}") from error
    return dict(zip(outputs, results, strict=True))


def registered() -> set[str]:
    """The operators that the wheel's CPU runtime registers, such as "aten::add.out"."""
    return set(Runtime.get().operator_registry.operator_names)


def _touched(plan: Any, calls: Calls) -> set[int]:
    touched: set[int] = set()
    waiting = [v for call in calls for v in call.args]
    while waiting:
        value = waiting.pop()
        if value in touched or value < 0:
            continue
        touched.add(value)
        inner = plan.values[value].val
        if isinstance(inner, TensorList | OptionalTensorList):
            waiting += inner.items
        elif type(inner).__name__ == "IntList":
            waiting += inner.items  # an IntList holds the ids of its numbers
    return touched


def _is_result(plan: Any, value: int, known: Mapping[int, Any], calls: Calls) -> bool:
    """Whether the calls may have written the value: not a constant, and not one that was only read."""
    inner = plan.values[value].val
    if isinstance(inner, Tensor):
        constant = inner.data_buffer_idx > 0 and inner.allocation_info is None
        return not constant and (value not in known or _written(value, calls))
    return isinstance(inner, Int | Bool | Double) and value not in known


def _written(value: int, calls: Calls) -> bool:
    return any(call.args and call.args[-1] == value for call in calls)


def _segment(
    file: PteFile,
    method: Method,
    calls: Calls,
    touched: set[int],
    known: Mapping[int, Any],
    inputs: list[int],
    outputs: list[int],
) -> bytes:
    """The calls as a program of their own; whatever they do not touch is left out."""
    content = file.content
    plan = copy.copy(method.plan)
    plan.values = [
        _value(entry, known.get(number)) if number in touched else EValue(Null())
        for number, entry in enumerate(plan.values)
    ]
    plan.inputs, plan.outputs = inputs, outputs
    used = sorted({c.delegate_index for c in calls if isinstance(c, DelegateCall)})
    renumbered = {old: new for new, old in enumerate(used)}
    plan.delegates = [copy.deepcopy(plan.delegates[old]) for old in used]
    program = copy.copy(content.program)
    program.backend_delegate_data = [content.program.backend_delegate_data[d.processed.index] for d in plan.delegates]
    for position, delegate in enumerate(plan.delegates):
        delegate.processed.index = position
    instructions = [
        Instruction(DelegateCall(renumbered[c.delegate_index], c.args) if isinstance(c, DelegateCall) else c)
        for c in calls
    ]
    plan.chains = [Chain(inputs=[], outputs=[], instructions=instructions, stacktrace=None)]
    buffers = {v.val.data_buffer_idx for v in plan.values if isinstance(v.val, Tensor)}
    program.constant_buffer = [
        b if n in buffers else Buffer(storage=b"") for n, b in enumerate(content.program.constant_buffer)
    ]
    program.execution_plan = [plan]
    kept = PTEFile(program, content.mutable_data, content.named_data if used else None)
    return bytes(serialize_pte_binary(kept, extract_delegate_segments=True))


def _value(entry: Any, value: Any) -> Any:
    """The entry, or where it is a number that is known, that number; a tensor that is known needs no first values."""
    kind = _SCALARS.get(type(value))
    if isinstance(entry.val, Tensor) and value is not None and entry.val.allocation_info is not None:
        return EValue(replace(entry.val, data_buffer_idx=0))
    return entry if kind is None else EValue(kind(value))
