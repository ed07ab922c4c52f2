"""An operator call of a Vulkan delegate's graph as a call of eager torch.

Source: docs/contract.md 6.3.
"""

from typing import Any

import torch
from executorch.backends.vulkan.serialization.vulkan_graph_schema import (
    Bool,
    BoolList,
    Double,
    DoubleList,
    Int,
    IntList,
    String,
    ValueList,
    VkGraph,
    VkTensor,
)

from conformance.program.tensors import torch_dtype
from conformance.pte.file import DTYPES


def torch_operator(name: str) -> Any:
    """The torch operator of a serialized name such as "aten.add.Tensor"."""
    namespace, _, rest = name.partition(".")
    packet, _, overload = rest.partition(".")
    try:
        return getattr(getattr(getattr(torch.ops, namespace), packet), overload or "default")
    except AttributeError as error:
        raise NotImplementedError(name) from error


_INTEGERS = ("int", "Optional[int]")


def by_schema(graph: VkGraph, op: Any, arguments: list[Any], out: int) -> tuple[list[Any], dict[str, Any]]:
    """Arguments as the operator's schema takes them; a dtype, which the file does not hold, is the output's."""
    spec = graph.values[out].value
    outs = {"dtype": spec, "output_dtype": spec} if isinstance(spec, VkTensor) else {}
    if isinstance(spec, ValueList) and op._schema.name == "torchao::choose_qparams_affine":  # noqa: SLF001 - as below
        names = ("scale_dtype", "zero_point_dtype")
        outs = {name: graph.values[item].value for name, item in zip(names, spec.items, strict=True)}
    positional: list[Any] = []
    keywords: dict[str, Any] = {}
    for argument, value in zip(op._schema.arguments, arguments, strict=True):  # noqa: SLF001 - torch's way to a schema
        passed = value
        if passed is None and argument.name in outs:
            passed = torch_dtype(DTYPES[outs[argument.name].datatype.name])
        elif passed is None and argument.name == "target_dtype":
            passed = torch.int8  # what the runtime computes, whatever the program says
        elif isinstance(passed, float) and passed.is_integer() and str(argument.type) in _INTEGERS:
            passed = int(passed)  # the serializer keeps one value for 3 and 3.0, and the runtime reads either
        if argument.kwarg_only:
            keywords[argument.name] = passed
        else:
            positional.append(passed)
    return positional, keywords


def literal(spec: Any) -> Any:
    """What a value of the graph that is no tensor holds; None for Null."""
    match spec:
        case Int(int_val=number):
            return number
        case Bool(bool_val=flag):
            return flag
        case Double(double_val=number):
            return float(number)
        case String(string_val=text):
            return text
        case IntList(items=items) | BoolList(items=items) | DoubleList(items=items):
            return list(items)
        case _:
            return None  # Null
