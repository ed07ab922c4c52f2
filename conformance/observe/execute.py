"""Runs an edge program node by node, et_vk.embedding_q4gsw through the reference operator.

So is quantized_decomposed.embedding_4bit, whose eager form multiplies in the scales' dtype: contract 4
takes ExecuTorch's CPU kernel for what it means. Every other node runs through its own eager
implementation, so a rewritten program and its source differ only in what the rewriting did. A node
that fails costs what depends on it, not the rest.

Source: docs/contract.md sections 2, 4 and 5.7.
"""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.export.graph_signature import InputKind, OutputKind

from conformance.program.lookups import op_name
from conformance.program.tensors import dtype_name, to_numpy, to_torch
from reference.program.evaluate import packed_lookup
from reference.q4_embedding_ref import embedding_q4gsw

FUSED = "et_vk.embedding_q4gsw"
PACKED = "quantized_decomposed.embedding_4bit"
_PARAMETERS = ("weight", "weight_scales", "group_size", "indices", "is_linear_weight")


@dataclass(frozen=True)
class Failure:
    """A node that could not run: its name, and what it raised."""

    node: str
    error: str


def user_output_nodes(program: Any) -> list[Any]:
    """The nodes (or literals) that the program returns to its caller, in order; mutations left out."""
    (output,) = (n for n in program.graph.nodes if n.op == "output")
    specs = program.graph_signature.output_specs
    return [value for value, spec in zip(output.args[0], specs, strict=True) if spec.kind == OutputKind.USER_OUTPUT]


def run_program(program: Any, inputs: tuple[Any, ...]) -> dict[str, Any]:
    """Return the value of every node by name: tensors, other values, or ``Failure``.

    The program's constants are passed as they are: an operator that writes to one leaves its trace for
    the snapshots to find.
    """
    remaining = iter(inputs)
    constants = {**program.constants, **program.state_dict}
    values: dict[str, Any] = {}
    for spec in program.graph_signature.input_specs:
        if spec.kind == InputKind.USER_INPUT:
            values[spec.arg.name] = next(remaining)
        elif spec.target in constants:
            values[spec.arg.name] = constants[spec.target]
        else:
            raise ValueError(f"placeholder {spec.arg.name} ({spec.kind.name} {spec.target}) has no value")
    with torch.no_grad(), _one_thread():
        for node in program.graph.nodes:
            if node.op == "call_function":
                values[node.name] = _run_node(node, values)
            elif node.op == "get_attr":
                values[node.name] = getattr(program.graph_module, node.target)
    return values


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """One thread: waking others costs more than these small tensors, and much more where every core runs a worker."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _run_node(node: torch.fx.Node, values: dict[str, Any]) -> Any:
    failed = next((values[n.name] for n in node.all_input_nodes if isinstance(values[n.name], Failure)), None)
    if failed is not None:
        return failed
    arguments = torch.fx.node.map_arg(node.args, lambda n: values[n.name])
    keywords = torch.fx.node.map_arg(node.kwargs, lambda n: values[n.name])
    try:
        if op_name(node) == FUSED:
            return _reference(arguments, keywords)
        if op_name(node) == PACKED:
            return _packed_reference(*arguments, **keywords)
        return node.target(*arguments, **keywords)
    except Exception as error:  # noqa: BLE001 - whatever a node raises is an observation
        return Failure(node.name, f"{type(error).__name__}: {error}")


def _reference(arguments: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    named = _named(arguments, keywords)
    tensors = {name: to_numpy(named[name]) for name in ("weight", "weight_scales", "indices")}
    result = embedding_q4gsw(
        tensors["weight"],
        tensors["weight_scales"],
        named["group_size"],
        tensors["indices"],
        named["is_linear_weight"],
    )
    return torch.from_numpy(result)


def _packed_reference(
    weight: Any, scales: Any, zero_point: Any, _qmin: int, _qmax: int, indices: Any, *, dtype: Any = torch.float32
) -> Any:
    zero = None if zero_point is None else to_numpy(zero_point)
    return to_torch(packed_lookup(to_numpy(weight), to_numpy(scales), zero, to_numpy(indices), dtype_name(dtype)))


def fused_arguments(node: torch.fx.Node) -> dict[str, Any]:
    """The arguments of an et_vk.embedding_q4gsw node by the operator's own names, the default filled in."""
    return _named(node.args, node.kwargs)


def _named(arguments: Any, keywords: Any) -> dict[str, Any]:
    return {"is_linear_weight": False, **dict(zip(_PARAMETERS, arguments, strict=False)), **keywords}
