"""The oracle of a model at RUN.

Source: docs/contract.md 6.4.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from conformance.case.model import Model
from conformance.harness.observation import Graph
from conformance.judging import compare
from conformance.results.mismatch import ArrayMismatch, DecisionMismatch, DtypeShapeMismatch, Mismatch
from reference.arithmetic.bfloat16 import cast_float, dtype_name, to_float

Array = np.ndarray[Any, Any]
#: How much farther from the exact result than the model's own arithmetic another order and other functions may be.
TIMES = 8
#: How much of what 8-bit inputs change altogether a few inputs that round to the neighbour may change.
ROUNDED = 0.25
_UNITS = {"float32": 2.0**-24, "float16": 2.0**-11, "bfloat16": 2.0**-8}


def judge_model(model: Model, graph: Graph) -> tuple[Mismatch | None, bool | None]:
    """Contract 6.4; returns the first mismatch."""
    for what, expected in (("lookup", model.lookups), ("linear", model.linears)):
        found = sum(name.startswith(what) for name in graph.places)
        if found < expected:
            return DecisionMismatch(f"of a {what}", f"{expected} in delegates", str(found), f"missed_{what}s"), None
    for call in range(len(model.calls)):
        there = graph.at(str(call))
        seen = [name for name in there.outputs if name.startswith("rows")]
        of_model = [name for name in there.source_outputs if name.startswith("rows")]
        for name in seen:
            if wrong := _rows(f"{name}, call {call}", there.outputs[name], [there.source_outputs[o] for o in of_model]):
                return wrong, None
        for name in (name for name in there.source_outputs if name.startswith("output")):
            if wrong := _output(f"{name}, call {call}", there.outputs.get(name), name, there.source_outputs):
                return wrong, None
    return None, None


def _rows(where: str, got: Array, of_model: list[Array]) -> Mismatch | None:
    """A lookup gives the bits of one of the model's lookups: a file says of none which it is."""
    found: Mismatch | None = DtypeShapeMismatch(where, "rows of one of the model's tables", "of none", "unknown")
    for right in of_model:
        if got.size != right.size:
            continue
        halves = got.dtype == np.float32 and dtype_name(right) in {"float16", "bfloat16"}
        same = cast_float(got, dtype_name(right)) if halves else got  # a delegate holds what is cast outside
        found = compare.same_bits(where, same.reshape(right.shape), right)
        if found is None:
            return None
    return found


def _output(where: str, got: Array | None, name: str, sources: Mapping[str, Array]) -> Mismatch | None:
    own, exact = sources[name], sources[name.replace("output", "exact")]
    if got is None:
        return DtypeShapeMismatch(where, "an array", "missing", "missing")
    if wrong := compare.dtype_shape(where, got, dtype_name(own), own.shape):
        return wrong
    unit = _UNITS[dtype_name(own)]
    allowed = TIMES * max(distance(own, exact), unit * distance(exact, np.zeros_like(exact)))
    if (unrounded := sources.get(name.replace("output", "unrounded"))) is not None:
        allowed = max(allowed, ROUNDED * distance(unrounded, exact))
    far = distance(got, exact)
    if far <= allowed:  # not a number: wrong
        return None
    apart = np.abs(to_float(got).astype(np.float64) - exact)
    index = tuple(int(i) for i in np.unravel_index(int(np.nanargmax(np.nan_to_num(apart, nan=np.inf))), exact.shape))
    told = (f"{exact[index]!r}, the whole within {allowed:.3g} where it is {far:.3g}",)
    return ArrayMismatch(where, index, repr(got[index]), told, int((apart > allowed).sum()), exact.size, "distance")


def distance(one: Array, other: Array) -> float:
    """The root of the summed squares of the difference, over the whole output."""
    return float(np.sqrt(np.sum((to_float(one).astype(np.float64) - other) ** 2)))
