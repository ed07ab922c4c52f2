"""Finds what computed a method's output: which operator, in which delegate or on the CPU.

Operators that only hand a value on, kept or converted, are looked through.

Source: docs/contract.md 5.7, 6.1.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from executorch.backends.vulkan.serialization.vulkan_graph_schema import ValueList
from executorch.exir.schema import DelegateCall, KernelCall, TensorList

from conformance.program.lookups import LOOKUPS
from conformance.program.tensors import PASSING
from conformance.pte.file import Method, VulkanDelegate


@dataclass(frozen=True)
class Producer:
    """Where a value comes from: "vulkan", "cpu", "input" or "constant"; the operator; a delegate's position or -1.

    ``args``: the operator's values, of the delegate's graph or of the plan.
    """

    place: str
    operator: str
    delegate: int = -1
    args: tuple[int, ...] = ()


def producer(method: Method, value: int) -> Producer:
    """What computed a value of the method's plan."""
    calls = list(method.instructions())
    return _outer(method, value, len(calls), calls)


def lookups_behind(method: Method, value: int) -> list[Producer]:
    """The lookups, on the CPU or in delegates, that a value of the plan is made of, in the order of operands."""
    search = _Behind(method)
    search.outer(value, len(search.calls))
    return list(search.found.values())


class _Behind:
    """A search for lookups from a value back; each call, by its place in the plan and in its delegate, is met once."""

    def __init__(self, method: Method) -> None:
        self.method, self.calls = method, list(method.instructions())
        self.found: dict[tuple[int, int], Producer] = {}
        self._seen = set[tuple[int, int]]()

    def outer(self, value: int, before: int) -> None:
        """Follow a value of the plan that is read by its call number ``before``."""
        for position in range(before - 1, -1, -1):
            call = self.calls[position]
            if isinstance(call, KernelCall) and value in outputs_of(self.method, call):
                name = self.method.operator(call).replace("::", ".")
                if self._operands_of((position, -1), Producer("cpu", name, args=tuple(call.args))):
                    for operand in _flat(self.method.plan.values, call.args):
                        self.outer(operand, position)
                return
            delegate = self.method.delegates.get(call.delegate_index) if isinstance(call, DelegateCall) else None
            results = call.args[len(delegate.graph.input_ids) :] if delegate else ()
            if delegate and value in results:
                self._inner(
                    delegate, position, delegate.graph.output_ids[results.index(value)], len(delegate.graph.chain)
                )
                return

    def _inner(self, delegate: VulkanDelegate, position: int, value: int, before: int) -> None:
        graph = delegate.graph
        values = [v.value for v in graph.values]
        for at in range(before - 1, -1, -1):
            call = graph.chain[at]
            if value in {call.args[-1], *_flat(values, call.args[-1:])}:
                if self._operands_of((position, at), Producer("vulkan", call.name, delegate.index, tuple(call.args))):
                    for operand in _flat(values, call.args[:-1]):
                        self._inner(delegate, position, operand, at)
                return
        if value in graph.input_ids:
            self.outer(self.calls[position].args[graph.input_ids.index(value)], position)

    def _operands_of(self, call: tuple[int, int], by: Producer) -> bool:
        """Note a call; whether the search goes on behind it."""
        if _bare(by.operator) in LOOKUPS:
            self.found[call] = by
            return False
        new = call not in self._seen
        self._seen.add(call)
        return new


def _flat(values: Sequence[Any], numbers: Sequence[int]) -> list[int]:
    """The numbers of values, lists of tensors replaced by what is in them."""
    lists = {n: getattr(values[n], "val", values[n]) for n in numbers}
    return [i for n in numbers for i in (lists[n].items if isinstance(lists[n], ValueList | TensorList) else (n,))]


def _outer(method: Method, value: int, before: int, calls: list[Any]) -> Producer:
    for position in range(before - 1, -1, -1):
        call = calls[position]
        if isinstance(call, DelegateCall) and value in call.args:
            delegate = method.delegates.get(call.delegate_index)
            if delegate is None:
                return Producer("cpu", f"delegate {call.delegate_index}")
            inputs = len(delegate.graph.input_ids)
            if value not in call.args[inputs:]:
                continue
            inner = delegate.graph.output_ids[call.args[inputs:].index(value)]
            result = _inner(delegate, inner)
            if result.place != "input":
                return result
            return _outer(method, call.args[int(result.operator)], position, calls)
        if isinstance(call, KernelCall) and value in outputs_of(method, call):
            name = method.operator(call).replace("::", ".")
            if _bare(name) in PASSING:
                return _outer(method, call.args[0], position, calls)
            return Producer("cpu", name, args=tuple(call.args))
    return Producer("input" if value in method.plan.inputs else "constant", "")


def outputs_of(method: Method, call: KernelCall) -> set[int]:
    """The values that a kernel call writes."""
    last = call.args[-1]
    inner = method.plan.values[last].val
    return {last, *inner.items} if isinstance(inner, TensorList) else {last}


def _inner(delegate: VulkanDelegate, value: int) -> Producer:
    """What computed a value of a delegate's graph; of an input, ``operator`` is its number."""
    graph = delegate.graph
    for call in reversed(graph.chain):
        out = call.args[-1]
        inner = graph.values[out].value
        if value != out and not (isinstance(inner, ValueList) and value in inner.items):
            continue
        if _bare(call.name) in {*PASSING, "et_vk.prepack"}:
            return _inner(delegate, call.args[0])
        return Producer("vulkan", call.name, delegate.index, tuple(call.args))
    if value in graph.input_ids:
        return Producer("input", str(graph.input_ids.index(value)))
    return Producer("constant", "", delegate.index)


def _bare(name: str) -> str:
    """An operator's name without its overload."""
    return ".".join(name.split(".")[:2])
