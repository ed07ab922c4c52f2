"""The oracles of stages LOWER and RUN: what a file must hold, and what it must compute.

Source: docs/contract.md 5.7, 6.1 to 6.3, 3.6.
"""

import json
from typing import Any

import numpy as np

from conformance.case.case import Program
from conformance.case.operands import lookup_operands, table_operands
from conformance.harness.observation import File, Graph
from conformance.judging import compare
from conformance.results.mismatch import ArrayMismatch, DecisionMismatch, DtypeShapeMismatch, Mismatch
from reference.arithmetic.accept import HOST, FloatModes, accept_products
from reference.arithmetic.bfloat16 import dtype_name
from reference.arithmetic.dot_bound import dot_bound, within_bound
from reference.program.evaluate import evaluate
from reference.program.fusibility import violations
from reference.program.spec import Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Read
from reference.program.values import tensor_values

Array = np.ndarray[Any, Any]
_LOOKUP = "et_vk.embedding_q4gsw.default"
_LINEAR = "et_vk.linear_q4gsw.default"


def judge_lower(question: Program, file: File) -> Mismatch | None:
    """Contract 6.1 to 6.3 on the file's facts; returns the first mismatch.

    Every lookup that 5.3 lets fuse is a delegate's, no other is; nothing in the file fails or is wrong on a device;
    a fused table is there once, packed, and neither its original nor a float copy unless something else reads it.
    """
    spec = question.spec
    if question.force_fp16:  # the numbers are not section 3's then; all that is asked is that the file says so
        said = any("force_fp16" in note for note in json.loads(file.facts["notes"]))
        unsaid = DecisionMismatch("of the file", "refused, or reported as force_fp16", "neither", "force_fp16")
        return None if said else unsaid
    places = json.loads(file.facts["places"])
    return (
        _places(spec, {name: (place, operator) == ("vulkan", _LOOKUP) for name, (place, operator) in places.items()})
        or _problems(json.loads(file.facts["problems"]))
        or _copies(spec, json.loads(file.facts["copies"]), places)
    )


def judge_run(spec: ProgramSpec, graph: Graph) -> tuple[Mismatch | None, bool]:
    """Contract 5.7 on what the file computes; returns the first mismatch, and whether the strict set holds.

    A delegated lookup is judged by the accept set of what its shader declares, a delegated linear by 3.6, everything
    else bit for bit: against the reference, and a linear on the CPU against the program that was not rewritten.
    """
    fused = {d.lookup: d.fused for d in graph.decisions}
    wrong = _places(spec, fused)
    strict = True
    expected, tensors = evaluate(spec), tensor_values(spec)
    modes = compare.float_modes(graph.facts)
    places = json.loads(graph.facts["places"])
    for step in spec.steps:
        if isinstance(step, Dequantize) or wrong is not None:
            continue
        if step.name not in graph.outputs:
            wrong = DtypeShapeMismatch(step.name, "an array", "missing", "missing")
        elif isinstance(step, Linear):
            wrong = judge_linear(spec, step, graph, tensors, delegated=places[step.name][0] == "vulkan")
        elif step.name not in expected:
            continue  # max_norm: nothing of the contract depends on how a norm is summed
        elif fused.get(step.name):
            want = expected[step.name]
            wrong = compare.dtype_shape(step.name, graph.outputs[step.name], dtype_name(want), want.shape)
            if wrong is None and isinstance(step, Lookup | PackedLookup):
                wrong = _accepted(spec, step, tensors, graph.outputs[step.name], modes)
                strict = strict and _accepted(spec, step, tensors, graph.outputs[step.name], HOST) is None
        else:
            wrong = compare.same_bits(step.name, graph.outputs[step.name], expected[step.name])
    return wrong, strict and wrong is None


def _places(spec: ProgramSpec, delegated: dict[str, bool]) -> Mismatch | None:
    for lookup, reasons in violations(spec).items():
        why = " and ".join(sorted(reasons))
        if lookup not in delegated:
            return DecisionMismatch(lookup, "an output of the file", "no such output", "undecided")
        if delegated[lookup] and reasons:
            return DecisionMismatch(lookup, f"on the CPU ({why})", "in a delegate", f"undue_delegation:{min(reasons)}")
        if not delegated[lookup] and not reasons:
            return DecisionMismatch(lookup, f"a delegate's {_LOOKUP}", "something else", "missed_delegation")
    return None


def _problems(problems: list[list[str]]) -> Mismatch | None:
    """What the audit says would fail or be wrong; wasted bytes are judged by ``_copies`` against the spec."""
    for severity, kind, where, detail in problems:
        if severity in {"fails", "wrong"}:
            return DecisionMismatch(where, "a file that a device runs", detail, kind)
    return None


def _copies(spec: ProgramSpec, copies: dict[str, dict[str, int]], places: dict[str, list[str]]) -> Mismatch | None:
    refused = {name for name, reasons in violations(spec).items() if reasons}
    for table, counts in copies.items():
        readers = _readers(spec, table)
        if {s.name for s in readers if isinstance(s, Lookup | PackedLookup)} & refused:
            continue  # how a refused lookup carries its table is the lowering's choice
        others = [s for s in readers if isinstance(s, Read) or (isinstance(s, Linear) and places[s.name][1] != _LINEAR)]
        packed = counts.get("packed linear_weight", 0) + counts.get("packed flat", 0)
        packed -= counts["original"] if any(isinstance(s, PackedLookup) for s in readers) and packed > 1 else 0
        if packed != 1:
            kind = "table_missing" if not packed else "table_duplicated"
            return DecisionMismatch(f"table {table}", "packed once in the file", f"{packed} times", kind)
        if others:
            continue
        for form, count in counts.items():
            if count and form.startswith("dequantized"):
                return DecisionMismatch(f"table {table}", "no float copy", f"{form}, {count} times", "float_copy")
        if counts["original"] and not any(isinstance(s, PackedLookup) for s in readers):
            return DecisionMismatch(f"table {table}", "no unused original", f"{counts['original']} times", "original")
    return None


def _readers(spec: ProgramSpec, table: str) -> list[Any]:
    """Every step that reads the tensor, itself or dequantized, but for the dequantize steps."""
    names = {table} | {s.name for s in spec.steps if isinstance(s, Dequantize) and s.weight == table}
    fields = ("weight", "table", "of")
    return [s for s in spec.steps if not isinstance(s, Dequantize) and names & {getattr(s, f, None) for f in fields}]


def _accepted(
    spec: ProgramSpec, step: Lookup | PackedLookup, tensors: dict[str, Array], got: Array, modes: FloatModes
) -> ArrayMismatch | None:
    given = lookup_operands(spec, step, tensors)
    scales, rows = given.scales_by_column(), given.indices.astype(np.int64)
    return compare.accepted(step.name, got, accept_products(given.values[rows], scales[rows], dtype_name(got), modes))


def judge_linear(
    spec: ProgramSpec, step: Linear, graph: Graph, tensors: dict[str, Array], *, delegated: bool
) -> ArrayMismatch | DtypeShapeMismatch | None:
    """A linear's output: inside contract 3.6's bound in a delegate, the source program's bits outside of one."""
    got, source = graph.outputs[step.name], graph.source_outputs[step.name]
    if wrong := compare.dtype_shape(step.name, got, dtype_name(source), source.shape):
        return wrong
    if not delegated:
        return compare.same_bits(step.name, got, source)
    table = table_operands(spec.dequantize(step.table), tensors)
    weights = table.values.astype(np.float64) * table.scales_by_column().astype(np.float64)
    nearest = "RoundingModeRTE 32" in graph.facts.get("execution_modes", "")
    exact, bound = dot_bound(tensors[step.x], weights, nearest=nearest)
    right = within_bound(got, exact, bound)
    if bool(right.all()):
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(right)), right.shape))
    allowed = (f"{exact[index]!r} within {bound[index]!r}",)
    return ArrayMismatch(step.name, index, repr(got[index]), allowed, int((~right).sum()), right.size, "dot_product")
