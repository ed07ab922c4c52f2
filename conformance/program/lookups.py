"""Which node, or operator of a file, a lookup of a spec has become where the program does not return it.

Such a lookup stands behind what the program does return: the lookups there are taken in the order of the operands.
"""

from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

from reference.program.spec import ProgramSpec

T = TypeVar("T")
#: Operators that look rows up, of a graph or of a file, without overload.
LOOKUPS = {
    "et_vk.embedding_q4gsw",
    "aten.embedding",
    "quantized_decomposed.embedding_byte",
    "quantized_decomposed.embedding_2bit",
    "quantized_decomposed.embedding_4bit",
}


def op_name(node: torch.fx.Node) -> str:
    """An operator's name without overload and dialect, such as "aten.embedding"; "" for other nodes.

    Edge operators name themselves "aten.embedding.default", some of them as "aten::embedding".
    """
    if node.op != "call_function":
        return ""
    target = node.target
    schema = getattr(target, "_schema", None)
    if schema is not None:
        return str(schema.name).replace("::", ".")
    return str(getattr(target, "__name__", target))


def hidden_lookup(spec: ProgramSpec, lookup: str, behind: Callable[[str], Sequence[T]]) -> T | None:
    """Return what a lookup that is no output has become: its place among the lookups ``behind`` an output's step."""
    for step in spec.outputs():
        own = spec.lookups_behind(step)
        if lookup in own:
            found = behind(step)
            return found[own.index(lookup)] if len(found) == len(own) else None
    return None


def lookups_behind(node: torch.fx.Node) -> list[torch.fx.Node]:
    """Return the nodes of lookups that a node's value is made of, in the order of its operands."""
    found: list[torch.fx.Node] = []
    waiting, seen = [node], set[torch.fx.Node]()
    while waiting:
        node = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if op_name(node) in LOOKUPS:
            found.append(node)
        else:
            waiting += reversed(node.all_input_nodes)
    return found
