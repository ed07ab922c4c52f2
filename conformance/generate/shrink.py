"""Making a failing program smaller while it fails the same way.

Works on the ProgramSpec: steps are dropped, fields go back to their defaults, tensors become plain. So a
shrunk program reads like one that a person would have written to show the failure.
"""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from reference.program.spec import Dequantize, Lookup, PackedLookup, ProgramSpec, Step, TensorSpec, Values, validate


def shrink(spec: ProgramSpec, fails: Callable[[ProgramSpec], bool], limit: int = 1000) -> ProgramSpec:
    """Return a program that fails and none of whose simplifications does (or the best after ``limit`` tries).

    Args:
        spec: a program that fails.
        fails: whether a program fails in the same way; it must not raise.
        limit: how many programs to try.
    """
    tries = 0
    again = True
    while again:
        again = False
        for candidate in simpler(spec):
            if tries == limit:
                return spec
            if not _well_formed(candidate):
                continue
            tries += 1
            if fails(candidate):
                spec, again = candidate, True
                break
    return spec


def simpler(spec: ProgramSpec) -> Iterator[ProgramSpec]:
    """Programs one simplification away, the largest cuts first."""
    for at, step in enumerate(spec.steps):
        if not isinstance(step, Dequantize):
            yield without_unused(dataclasses.replace(spec, steps=spec.steps[:at] + spec.steps[at + 1 :]))
    for at, step in enumerate(spec.steps):
        for plainer in _simpler_steps(spec, step):
            steps = (*spec.steps[:at], plainer, *spec.steps[at + 1 :])
            yield without_unused(dataclasses.replace(spec, steps=steps))
    for position, tensor in enumerate(spec.tensors):
        for plain in _simpler_tensors(tensor):
            tensors = (*spec.tensors[:position], plain, *spec.tensors[position + 1 :])
            yield dataclasses.replace(spec, tensors=tensors)


def without_unused(spec: ProgramSpec) -> ProgramSpec:
    """The program without dequantize steps, tensors and tables that nothing reads."""
    read = {getattr(s, name, "") for s in spec.steps for name in ("table", "of")}
    steps = tuple(s for s in spec.steps if not isinstance(s, Dequantize) or s.name in read)
    fields = ("weight", "scale", "zero_point", "indices", "x", "of")
    named = {getattr(s, name, "") for s in steps for name in fields}
    tensors = tuple(t for t in spec.tensors if t.name in named)
    tables = tuple(t for t in spec.tables if any(n.startswith(f"{t.name}.") for n in named))
    return dataclasses.replace(spec, steps=steps, tensors=tensors, tables=tables)


def _simpler_steps(spec: ProgramSpec, step: Step) -> Iterator[Step]:
    """The step with one option at its default, or reading what an earlier step of its kind reads."""
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if field.name in {"qmin", "input_dtype"} or field.default is dataclasses.MISSING or value == field.default:
            continue
        default: Any = {"qmin": -8, "qmax": 7} if field.name == "qmax" else {field.name: field.default}
        yield dataclasses.replace(step, **default)
    if isinstance(step, Lookup | PackedLookup):
        first = next(s for s in spec.steps if isinstance(s, Lookup | PackedLookup))
        if first.indices != step.indices:
            yield dataclasses.replace(step, indices=first.indices)


def _simpler_tensors(tensor: TensorSpec) -> Iterator[TensorSpec]:
    is_index = tensor.name.startswith("i")
    plain = "input" if is_index or tensor.name.startswith("x") else "buffer"
    changes: list[dict[str, Any]] = [{"dynamic": ()}] if tensor.dynamic else []
    changes += [{"source": plain}] if tensor.source != plain else []
    changes += [{"values": dataclasses.replace(tensor.values, seed=0)}] if tensor.values.seed else []
    changes += [{"values": Values("zeros")}] if tensor.values != Values("zeros") else []
    if is_index:
        changes += [{"shape": (1,), "dynamic": ()}] if tensor.shape != (1,) else []
        changes += [{"dtype": "int64"}] if tensor.dtype != "int64" else []
    elif "float" in tensor.dtype:
        changes += [{"dtype": "float32"}] if tensor.dtype != "float32" else []
    elif tensor.dtype not in {"int8", "uint8"}:
        changes += [{"dtype": "int8"}]
    for change in changes:
        yield dataclasses.replace(tensor, **change)


def _well_formed(spec: ProgramSpec) -> bool:
    try:
        validate(spec)
    except ValueError:
        return False
    return bool(spec.steps)
