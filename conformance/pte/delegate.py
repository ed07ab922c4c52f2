"""Executes a Vulkan delegate's graph: lookups on our Vulkan kernel, every other operator in eager Python.

An operator that has no eager implementation, or that the Vulkan runtime does not register, is a
``CannotRun`` that names it. Mutable buffers inside a delegate are not supported. What the runtime would abort on or
answer wrongly is a ``DeviceWouldFail``: conversions at the border that it does not have, computed weights, outputs
that it never writes, a memory plan that does not hold.

Source: docs/contract.md 5.7, 6.3.
"""

import math
import operator
from collections.abc import Callable, Sequence
from typing import Any

import executorch.backends.vulkan.custom_ops_lib  # defines the et_vk operators
import executorch.exir.passes.dim_order_ops_registry  # noqa: F401 - defines the dim_order_ops operators
import torch
from executorch.backends.vulkan.serialization.vulkan_graph_schema import (
    OperatorCall,
    SymInt,
    ValueList,
    VkDataType,
    VkTensor,
)

from conformance.harness.errors import CannotRun, DeviceWouldFail, one_line
from conformance.harness.observation import Facts
from conformance.program.tensors import to_numpy, to_torch, torch_dtype
from conformance.pte.calls import by_schema, literal, torch_operator
from conformance.pte.file import DTYPES, VulkanDelegate
from conformance.pte.lookup import LOOKUP, lookup_call, run_lookup
from conformance.pte.memory import memory_faults
from conformance.pte.operators import registered_operators


def _linear_of_8_bits(x: Any, scale: Any, zero: Any, weight: Any, _sums: Any, *others: Any) -> Any:
    """The linear on its quantized input, which the wheel's Python form leaves as it is."""
    rows = ([*[1] * (x.ndim - 1), x.shape[-1]], scale, zero, torch.int8, -128, 127)
    x = torch.ops.torchao.dequantize_affine(torch.ops.torchao.quantize_affine(x, *rows), *rows)
    return torch.ops.et_vk.linear_q4gsw(x, weight, *others)


#: What the runtime does with shapes and symbolic sizes, and where eager torch has no operator of the name, or another.
_OWN: dict[str, Callable[..., Any]] = {
    "et_vk.linear_dq8ca_q4gsw.default": _linear_of_8_bits,
    "aten.gelu.default": lambda x, _approximate: torch.nn.functional.gelu(x, approximate="tanh"),
    "sym_size.int": lambda tensor, dim: tensor.shape[dim],
    "et_vk.select_as_symint.default": lambda tensor, dim, index: int(tensor.select(dim, index)),
    "add": operator.add,
    "sub": operator.sub,
    "mul": operator.mul,
    "floordiv": operator.floordiv,
}
#: Conversions that the runtime has at a delegate's border: the dtype outside, and that of its staging buffer.
_CONVERTED = {
    (torch.int64, torch.int32),
    (torch.float64, torch.float32),
    (torch.float16, torch.float32),
}
#: Operators whose results the runtime does not resize when the caller chooses other sizes.
_NEVER_RESIZED = ("aten.split_with_sizes_copy.default",)
#: Operators whose first operand the runtime takes for a matrix, whatever else it is.
_OF_MATRICES = (
    "et_vk.linear_q4gsw.default",
    "et_vk.linear_dq8ca_q4gsw.default",
    "torchao.choose_qparams_affine.default",
)
#: Where an operator's weights stand among its arguments, which the runtime prepacks and cannot do if one is computed.
_CONSTANT_WEIGHTS = {
    "aten.embedding.default": (0,),
    "aten.linear.default": (1,),
    "aten.convolution.default": (1, 2),
    "aten.native_layer_norm.default": (2, 3),
    "aten.native_group_norm.default": (1, 2),
    "et_vk.rms_norm.default": (1,),
    "et_vk.linear_q4gsw.default": (1,),
    "et_vk.linear_dq8ca_q4gsw.default": (3,),
}


def run_delegate(delegate: VulkanDelegate, inputs: Sequence[Any]) -> tuple[list[Any], list[tuple[Any, Facts]]]:
    """Execute a delegate.

    Args:
        delegate: what to run.
        inputs: a tensor or number for each of the graph's inputs, in the outer program's dtypes.

    Returns:
        One tensor or number for each of the graph's outputs, in the graph's dtypes; result and facts of every lookup.
    """
    graph = delegate.graph
    values: dict[int, Any] = {}
    for value, argument in zip(graph.input_ids, inputs, strict=True):
        values[value] = _staged(delegate, value, argument)
    for kind, fault in memory_faults(delegate):
        raise DeviceWouldFail(f"{delegate.name}: {fault} [{kind}]")
    lookups: list[tuple[Any, Facts]] = []
    for call in graph.chain:
        if call.name not in registered_operators():
            raise DeviceWouldFail(f"{delegate.name}: the Vulkan runtime registers no operator {call.name}")
        _check_call(delegate, call)
        if call.name == LOOKUP:
            indices = _read(delegate, values, lookup_call(graph, call.args).indices)
            try:
                result, of_call = run_lookup(graph, call.args, delegate.constants, to_numpy(indices))
            except CannotRun as error:
                raise type(error)(f"{delegate.name}: {error}") from error
            values[call.args[-1]] = to_torch(result)
            lookups.append((result, of_call))
        else:
            _run_eager(delegate, call, values)
    for number, value in enumerate(graph.output_ids):
        spec = graph.values[value].value
        if isinstance(spec, VkTensor) and spec.constant_id >= 0:
            raise DeviceWouldFail(f"{delegate.name}: output {number} is a constant, which the runtime never writes")
    return [_read(delegate, values, value) for value in graph.output_ids], lookups


def border_dtype(spec: VkTensor, outside: Any) -> Any:
    """A tensor's dtype on its way over the border of a delegate; None where the runtime has no conversion for it.

    Source: backends/vulkan/runtime/graph/ComputeGraph.cpp, ``maybe_cast_and_copy_into_staging``.
    """
    staged = spec.datatype if spec.staging_datatype == VkDataType.UNSET else spec.staging_datatype
    dtype = torch_dtype(DTYPES[staged.name])
    return dtype if outside == dtype or (outside, dtype) in _CONVERTED else None


def _staged(delegate: VulkanDelegate, value: int, argument: Any) -> Any:
    """An input as the graph holds it; 64-bit numbers become 32-bit ones, as the runtime's staging does."""
    spec = delegate.graph.values[value].value
    if not isinstance(spec, VkTensor):
        return argument
    dtype, staging = torch_dtype(DTYPES[spec.datatype.name]), border_dtype(spec, argument.dtype)
    if staging is None:
        raise DeviceWouldFail(f"{delegate.name}: input {value} is {argument.dtype}, the graph holds {dtype}")
    return argument.to(staging).to(dtype)


def _check_call(delegate: VulkanDelegate, call: OperatorCall) -> None:
    """Check what the runtime takes for granted of an operator's values."""
    specs = [delegate.graph.values[value].value for value in call.args]
    for spec in (specs[position] for position in _CONSTANT_WEIGHTS.get(call.name, ())):
        if isinstance(spec, VkTensor) and spec.constant_id < 0:
            why = "its weight is computed; the runtime takes constants only"
            raise DeviceWouldFail(f"{delegate.name}: {call.name}: {why}")


def _run_eager(delegate: VulkanDelegate, call: OperatorCall, values: dict[int, Any]) -> None:
    """Run one operator in eager torch and store what it gives under the call's last value."""
    arguments = [_read(delegate, values, value) for value in call.args[:-1]]
    out = call.args[-1]
    if call.name in _OF_MATRICES and math.prod(arguments[0].shape[:-2]) > 1:
        what = f"an operand of shape {list(arguments[0].shape)}"
        raise DeviceWouldFail(f"{delegate.name}: {call.name}: {what}; the runtime is right about matrices only")
    try:
        with torch.no_grad():
            if call.name in _OWN:
                result = _OWN[call.name](*arguments)
            else:
                op = torch_operator(call.name)
                positional, keywords = by_schema(delegate.graph, op, arguments, out)
                result = op(*positional, **keywords)
    except NotImplementedError as error:
        raise CannotRun(f"{delegate.name}: no eager implementation of {call.name} is known here") from error
    except Exception as error:  # whatever an eager operator raises
        raise CannotRun(f"{delegate.name}: {call.name}: {one_line(error)}") from error
    _store(delegate, call.name, out, result, values)


def _store(delegate: VulkanDelegate, name: str, out: int, result: Any, values: dict[int, Any]) -> None:
    """Keep a result under the graph's value, in the graph's dtype."""
    spec = delegate.graph.values[out].value
    if isinstance(spec, ValueList):
        results = list(result)
        if len(results) != len(spec.items):
            raise CannotRun(
                f"{delegate.name}: {name} gives {len(results)} values where the graph has {len(spec.items)}"
            )
        for value, item in zip(spec.items, results, strict=True):
            _store(delegate, name, value, item, values)
        return
    if isinstance(spec, VkTensor):
        dtype = torch_dtype(DTYPES[spec.datatype.name])
        if not isinstance(result, torch.Tensor):
            raise CannotRun(f"{delegate.name}: {name} gives {type(result).__name__} where the graph has a tensor")
        narrowing = {torch.int64: torch.int32, torch.float64: torch.float32}
        if result.dtype != dtype and narrowing.get(result.dtype) != dtype:
            raise CannotRun(f"{delegate.name}: {name} gives {result.dtype} where the graph has {dtype}")
        if result.dim() != len(spec.dims) or any(n > most for n, most in zip(result.shape, spec.dims, strict=True)):
            raise DeviceWouldFail(f"{delegate.name}: {name} gives {list(result.shape)}, the graph has {spec.dims}")
        if name in _NEVER_RESIZED and list(result.shape) != list(spec.dims):
            raise DeviceWouldFail(f"{delegate.name}: {name} keeps its largest sizes {spec.dims}: {list(result.shape)}")
        result = result.to(dtype)
    values[out] = result


def _read(delegate: VulkanDelegate, values: dict[int, Any], value: int) -> Any:
    """A value of the graph: computed before, or a constant or literal of the file."""
    if value in values:
        return values[value]
    spec = delegate.graph.values[value].value
    if isinstance(spec, VkTensor) and spec.constant_id >= 0:
        values[value] = _constant(delegate, spec)
        return values[value]
    if isinstance(spec, ValueList):
        return [_read(delegate, values, item) for item in spec.items]
    if isinstance(spec, VkTensor | SymInt):
        raise CannotRun(f"{delegate.name}: value {value} ({type(spec).__name__}) is read before it is computed")
    return literal(spec)


def _constant(delegate: VulkanDelegate, spec: VkTensor) -> Any:
    data = bytearray(delegate.constants[spec.constant_id])
    dtype = torch_dtype(DTYPES[spec.datatype.name])
    flat = torch.frombuffer(data, dtype=dtype) if data else torch.empty(0, dtype=dtype)
    return flat.reshape(spec.dims)
