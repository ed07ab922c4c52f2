"""The observer of stage EXPORT: how torch.export and to_edge spell a program, and what it computes.

Source: docs/contract.md section 4.
"""

from typing import Any

import torch

from conformance.harness.observation import Graph, named_at
from conformance.observe.execute import run_program
from conformance.observe.match import outputs_by_step, written_by_tensor
from conformance.program.build import BuiltProgram, other_inputs
from conformance.program.lookups import op_name
from conformance.program.tensors import PASSING, Array, dtype_name, to_numpy, user_inputs
from reference.program.spec import Apply, Dequantize, Linear, Read

#: An operator's tensor arguments by the name that the spec's step gives them.
_OPERANDS = {
    "input": "weight",
    "scale": "scale",
    "zero_point": "zero_point",
    "indices": "indices",
    "weight": "weight",
    "weight_scales": "scale",
    "weight_zero_points": "zero_point",
}


def observe_export(built: BuiltProgram) -> Graph:
    """Return the form of every quantized step, the values that it reads, and the program's outputs.

    Returns:
        ``outputs``: by step name. ``source_outputs``: what the steps read, by "STEP.operand". The builder's facts.
    """
    values = run_program(built.program, built.inputs)
    outputs, failed = outputs_by_step(built, built.program, values)
    for size, inputs in other_inputs(built).items():
        there, why = outputs_by_step(built, built.program, run_program(built.program, inputs))
        outputs |= named_at(size, there)
        failed |= named_at(size, why)
    nodes = {n.name: n for n in built.program.graph.nodes}
    forms, tables, operands = dict[str, str](), dict[str, str](), dict[str, Array]()
    for step in built.spec.steps:
        if isinstance(step, Apply | Linear | Read) or step.name not in built.nodes:
            continue
        node = nodes[built.nodes[step.name]]
        node = node if isinstance(step, Dequantize) else _through(node)
        forms[step.name], read = _form(node)
        if (table := read.get("table")) is not None:
            tables[step.name] = _form(_through(table))[0]
        for name, operand in read.items():
            value = values.get(operand.name) if name != "table" else None
            if isinstance(value, torch.Tensor):
                operands[f"{step.name}.{name}"] = to_numpy(value)
    dynamic = _dynamic(built, nodes)
    return Graph(
        decisions=(),
        outputs=outputs,
        source_outputs=operands,
        written=written_by_tensor(built, built.program, values),
        failed=failed,
        forms=forms,
        tables=tables,
        dynamic=dynamic,
        facts=built.facts,
    )


def _form(node: Any) -> tuple[str, dict[str, Any]]:
    """An operator with its plain arguments, defaults filled in; and the nodes that it reads, by the spec's names."""
    if not op_name(node):
        return node.op, {}
    schema = node.target._schema  # noqa: SLF001 - torch names an operator's parameters nowhere else
    words, read = [op_name(node)], {}
    embedding = words[0] == "aten.embedding"  # its weight is the dequantized table, a step of its own
    for position, parameter in enumerate(schema.arguments):
        default = parameter.default_value if parameter.has_default_value() else None
        argument = node.args[position] if position < len(node.args) else node.kwargs.get(parameter.name, default)
        if isinstance(argument, torch.fx.Node):
            known = _OPERANDS.get(parameter.name, parameter.name)
            read["table" if embedding and parameter.name == "weight" else known] = argument
        elif parameter.name not in _OPERANDS:
            words.append(f"{parameter.name}={_plain(parameter, argument)}")
    return " ".join(words), read


def _dynamic(built: BuiltProgram, nodes: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """Which dimensions of each user input's placeholder are no plain numbers."""
    dynamic = {}
    for tensor in user_inputs(built.spec):
        for name in built.placeholders[tensor.name]:
            sizes = nodes[name].meta["val"].shape
            dynamic[tensor.name] = tuple(d for d, size in enumerate(sizes) if not isinstance(size, int))
    return dynamic


def _through(node: Any) -> Any:
    """What stands behind operators that only hand their operand on."""
    while op_name(node) in PASSING:
        node = node.args[0]
    return node


def _plain(parameter: Any, argument: Any) -> str:
    """A value as specs spell it. A schema keeps a dtype's default as a number: 6 is float32."""
    if isinstance(argument, torch.dtype):
        return dtype_name(argument)
    if "dtype" in parameter.name and isinstance(argument, int):
        return "float32" if argument == 6 else f"dtype {argument}"  # noqa: PLR2004 - c10::ScalarType::Float
    return str(list(argument)) if isinstance(argument, list | tuple) else str(argument)
