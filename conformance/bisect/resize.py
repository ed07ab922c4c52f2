"""A program with another size: every tensor that the first lookup's table, scales or indices determine goes along.

Source: docs/bisecting.md.
"""

import math
from dataclasses import replace
from typing import Any

from reference.program.spec import Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, TensorSpec


def sizes(program: ProgramSpec) -> dict[str, int]:
    """Return vocab_size, embed_dim, group_size and the number of indices of the first lookup.

    Raises:
        ValueError: the program has no lookup, or its scales are not [V, D/G].
    """
    if not program.lookups():
        raise ValueError("the program has no lookup, and so no such axis")
    lookup = program.lookups()[0]
    indices = program.tensor(lookup.indices)
    if isinstance(lookup, Lookup):
        step = program.dequantize(lookup.table)
        weight, scale, width = program.tensor(step.weight), program.tensor(step.scale), 1
    else:
        weight, scale, width = program.tensor(lookup.weight), program.tensor(lookup.scale), 2
    if len(weight.shape) != 2 or len(scale.shape) != 2 or not scale.shape[1]:  # noqa: PLR2004 - rows and columns
        raise ValueError(f"scales of shape {list(scale.shape)} have no groups to resize")
    columns = weight.shape[1] * width
    group = columns // scale.shape[1]
    count = math.prod(indices.shape)
    return {"vocab_size": weight.shape[0], "embed_dim": columns, "group_size": group, "indices": count}


def resized(program: ProgramSpec, axis: str, size: int) -> ProgramSpec:
    """Return the program with ``axis`` at ``size``, for every table of the same sizes as the first lookup's.

    Raises:
        ValueError: a tensor that has to change is given as literal bytes; names it.
    """
    old = sizes(program)
    new = old | {axis: size}
    if axis == "indices":
        name = program.lookups()[0].indices
        return replace(program, tensors=tuple(_shaped(t, (size,)) if t.name == name else t for t in program.tensors))
    shapes: dict[str, tuple[int, ...]] = {}
    looked_up: set[str] = set()
    steps: list[Any] = []
    groups = new["embed_dim"] // new["group_size"]
    for step in program.steps:
        if isinstance(step, Dequantize):
            block = (step.block_size[0], new["group_size"])
            steps.append(replace(step, block_size=block))
            shapes[step.weight] = (new["vocab_size"], new["embed_dim"])
            shapes |= {name: (new["vocab_size"], groups) for name in (step.scale, step.zero_point) if name}
            continue
        steps.append(step)
        if isinstance(step, Linear):
            x = program.tensor(step.x)
            shapes[step.x] = (*x.shape[:-1], new["embed_dim"])
        elif isinstance(step, PackedLookup):
            shapes[step.weight] = (new["vocab_size"], new["embed_dim"] // 2)
            shapes |= {name: (new["vocab_size"], groups) for name in (step.scale, step.zero_point) if name}
        if isinstance(step, Lookup | PackedLookup):
            looked_up.add(step.indices)
    tensors = tuple(_shaped(t, shapes.get(t.name, t.shape)) for t in program.tensors)
    tensors = tuple(_within(t, new["vocab_size"]) if t.name in looked_up else t for t in tensors)
    tables = tuple(
        replace(
            t, vocab_size=new["vocab_size"], embed_dim=new["embed_dim"], group_size=t.group_size and new["group_size"]
        )
        for t in program.tables
    )
    return replace(program, steps=tuple(steps), tensors=tensors, tables=tables)


def _shaped(tensor: TensorSpec, shape: tuple[int, ...]) -> TensorSpec:
    if shape != tensor.shape and tensor.values.pattern == "literal":
        raise ValueError(f"tensor {tensor.name} is literal bytes; give a case that draws it, to change its size")
    return replace(tensor, shape=shape)


def _within(tensor: TensorSpec, rows: int) -> TensorSpec:
    """Keep drawn indices inside a smaller table."""
    values = tensor.values
    return replace(tensor, values=replace(values, low=min(values.low, rows - 1), high=min(values.high, rows - 1)))
