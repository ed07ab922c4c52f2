"""Which constants of a ``.pte`` nothing reads: every byte of them is accounted for by a reader.

A constant is read where an operator takes it whose result reaches an output of its method or a buffer that the method
writes to.

Source: docs/contract.md 6.1.
"""

from collections.abc import Iterator, Sequence
from typing import Any

from executorch.backends.vulkan.serialization.vulkan_graph_schema import ValueList, VkTensor
from executorch.exir.schema import DelegateCall, KernelCall, OptionalTensorList, Tensor, TensorList

from conformance.pte.file import Method, PteFile, VulkanDelegate


def unread_constants(file: PteFile) -> list[str]:
    """Each constant with bytes that nothing reads, where it lies and its size."""
    return sorted(_unread(file))


def _unread(file: PteFile) -> Iterator[str]:
    keys, buffers = set[str](), set[int]()
    for method in file.methods:
        live = _live_values(method)
        buffers |= {s.data_buffer_idx for s in (method.plan.values[v].val for v in live) if isinstance(s, Tensor)}
        for delegate in method.delegates.values():
            read = _read_in(delegate)
            keys |= {delegate.keys[n] for n in read}
            for number, data in enumerate(delegate.constants):
                if data and number not in read and not delegate.keys[number]:
                    yield f"{delegate.name}: constant {number}, {len(data)} bytes"
    named = file.content.named_data
    if named is not None:
        others = {k for m in file.methods for d in m.plan.delegates if d.id != "VulkanBackend" for k in named.pte_data}
        read_data = {named.pte_data[k].buffer_index for k in (keys | others) & set(named.pte_data)}
        for number, data in enumerate(named.buffers):
            if len(data) and number not in read_data:
                yield f"named data {number}, {len(data)} bytes"
    for number, constant in enumerate(file.content.program.constant_buffer):
        if number and constant.storage and number not in buffers:
            yield f"CPU constant {number}, {len(constant.storage)} bytes"


def _live_values(method: Method) -> set[int]:
    """Values of the plan that an output is made of, or that a written buffer is."""
    values = method.plan.values
    live = set(_flat(values, method.plan.outputs))
    for call in reversed(list(method.instructions())):
        if isinstance(call, KernelCall):
            writes = "copy_" in method.operator(call) and "_copy" not in method.operator(call)
            used = writes or live & set(_flat(values, call.args[-1:]))
        elif isinstance(call, DelegateCall):
            delegate = method.delegates.get(call.delegate_index)
            used = delegate is None or live & set(call.args[len(delegate.graph.input_ids) :])
        else:
            used = True
        live |= set(_flat(values, getattr(call, "args", ()))) if used else set()
    return live


def _read_in(delegate: VulkanDelegate) -> set[int]:
    """Constants of a delegate, by id, that one of its outputs is made of."""
    values = [v.value for v in delegate.graph.values]
    live = set(_flat(values, delegate.graph.output_ids))
    for call in reversed(delegate.graph.chain):
        if live & {call.args[-1], *_flat(values, call.args[-1:])}:
            live |= set(_flat(values, call.args))
    return {t.constant_id for t in (values[v] for v in live) if isinstance(t, VkTensor) and t.constant_id >= 0}


def _flat(values: Sequence[Any], numbers: Sequence[int]) -> list[int]:
    """The numbers of values, and for lists also of what is in them."""
    found = []
    for number in numbers:
        inner = getattr(values[number], "val", values[number]) if number >= 0 else None
        found += [number, *inner.items] if isinstance(inner, ValueList | TensorList | OptionalTensorList) else [number]
    return [n for n in found if n >= 0]
