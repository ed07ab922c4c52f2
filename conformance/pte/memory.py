"""What a Vulkan delegate's graph says of memory: live ranges, sizes, storages and layouts, against what can be.

A memory object that several tensors share holds one of them at a time. Every operator's result has the sizes that its
operands give it. Storages and layouts are those that the wheel's own operator registry, from which its partitioner
plans, has for the operator.

Source: docs/contract.md 6.3, 7.1.
"""

import functools
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from executorch.backends.vulkan.op_registry import vulkan_supported_ops
from executorch.backends.vulkan.serialization.vulkan_graph_schema import (
    OperatorCall,
    SymInt,
    ValueList,
    VkGraph,
    VkTensor,
)

from conformance.program.tensors import torch_dtype
from conformance.pte.calls import by_schema, literal, torch_operator
from conformance.pte.file import DTYPES, VulkanDelegate
from conformance.pte.lookup import LOOKUP, lookup_call, storage_of


def memory_faults(delegate: VulkanDelegate) -> Iterator[tuple[str, str]]:
    """Yield what is wrong, as a stable kind and a sentence."""
    yield from _shared(delegate.graph)
    for call in delegate.graph.chain:
        yield from _sizes(delegate.graph, call)
        yield from _storages(delegate.graph, call)


def _tensors(graph: VkGraph, values: Sequence[int]) -> list[int]:
    """The tensors among values, those in lists too."""
    flat: list[int] = []
    for value in values:
        inner = graph.values[value].value
        flat += inner.items if isinstance(inner, ValueList) else [value]
    return [v for v in flat if isinstance(graph.values[v].value, VkTensor)]


def _shared(graph: VkGraph) -> Iterator[tuple[str, str]]:
    """Two tensors of one memory object, both of which are still to be read."""
    ranges = dict.fromkeys(graph.input_ids, (-1, -1))
    for at, call in enumerate(graph.chain):
        for value in _tensors(graph, call.args):
            ranges[value] = (ranges.get(value, (at, at))[0], at)
    ranges |= {value: (ranges.get(value, (-1, -1))[0], len(graph.chain)) for value in graph.output_ids}
    objects: dict[int, list[int]] = {}
    for value in sorted(ranges):
        tensor = graph.values[value].value
        if isinstance(tensor, VkTensor) and tensor.mem_obj_id >= 0 and tensor.constant_id < 0:
            objects.setdefault(tensor.mem_obj_id, []).append(value)
    for number, held in objects.items():
        held.sort(key=lambda value: ranges[value])
        busy, until = held[0], ranges[held[0]][1]
        for value in held[1:]:
            if ranges[value][0] <= until:
                names = f"values {busy} and {value}"
                yield "memory_shared", f"{names} are in memory object {number} while both are still read or written"
                break
            busy, until = value, ranges[value][1]


def _sizes(graph: VkGraph, call: OperatorCall) -> Iterator[tuple[str, str]]:
    out = graph.values[call.args[-1]].value
    if not isinstance(out, VkTensor):
        return
    if call.name == LOOKUP:
        lookup = lookup_call(graph, call.args)
        right = [*graph.values[lookup.indices].value.dims, 2 * graph.values[lookup.weight].value.dims[1]]
    elif (worked_out := _worked_out(graph, call)) is None:
        return
    else:
        right = worked_out
    if list(out.dims) != right:
        yield "sizes", f"{call.name}: its result is {list(out.dims)} in the graph, its operands give {right}"


def _worked_out(graph: VkGraph, call: OperatorCall) -> list[int] | None:
    """The sizes that torch gives an operator's result; None where torch does not know it, or them."""
    if not call.name.startswith("aten.") or _symbolic(graph, call.args):
        return None
    arguments = [_without_data(graph, value) for value in call.args[:-1]]
    try:
        positional, keywords = by_schema(graph, torch_operator(call.name), arguments, call.args[-1])
        result = torch_operator(call.name)(*positional, **keywords)
    except Exception:  # noqa: BLE001 - what cannot run is RUN's to say
        return None
    return list(result.shape) if isinstance(result, torch.Tensor) else None


def _symbolic(graph: VkGraph, values: Sequence[int]) -> bool:
    inner = [graph.values[v].value for v in values]
    lists = [item for v in inner if isinstance(v, ValueList) for item in v.items]
    return any(isinstance(v, SymInt) for v in inner) or any(isinstance(graph.values[v].value, SymInt) for v in lists)


def _without_data(graph: VkGraph, value: int) -> Any:
    spec = graph.values[value].value
    if isinstance(spec, ValueList):
        return [_without_data(graph, item) for item in spec.items]
    if isinstance(spec, VkTensor):
        return torch.empty(spec.dims, dtype=torch_dtype(DTYPES[spec.datatype.name]), device="meta")
    return literal(spec)


@functools.cache
def _features() -> dict[str, Any]:
    """The registry's features by the name that a graph's call has."""
    return {getattr(op, "__name__", str(op)): features for op, features in vulkan_supported_ops.items()}


def _storages(graph: VkGraph, call: OperatorCall) -> Iterator[tuple[str, str]]:
    features = _features().get(call.name)
    if features is None or features.pick_io_storage_fn is not None:
        return  # what such an operator serves depends on more than its name
    places = [(f"argument {n}", v, features.inputs_storage[n]) for n, v in enumerate(call.args[:-1])]
    for what, value, allowed in [*places, ("its result", call.args[-1], features.outputs_storage[0])]:
        for tensor in (graph.values[v].value for v in _tensors(graph, [value])):
            if tensor.constant_id >= 0 or not hasattr(allowed, "valid_buffer_layouts") or allowed.is_empty():
                continue
            storage, layout = storage_of(graph, tensor), tensor.memory_layout.name
            sets = {"buffer": allowed.valid_buffer_layouts, "texture3d": allowed.valid_texture_layouts}
            names = {known.name for known in sets.get(storage, ())}
            if not names or (layout != "DEFAULT_LAYOUT" and layout not in names):
                yield "storage", f"{call.name}: {what} is {layout} in a {storage}; the operator serves {allowed}"
