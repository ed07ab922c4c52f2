"""The oracles of stages LOWER and RUN: what a file must hold, and what it must compute.

Source: docs/contract.md 5.7, 6.1 to 6.3, 3.6.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np

from conformance.case.case import Program
from conformance.case.operands import lookup_operands
from conformance.harness.observation import SECOND, File, Graph, Place, Problem
from conformance.judging import compare
from conformance.judging.tables import judge_constants, judge_reads
from conformance.results.mismatch import ArrayMismatch, DecisionMismatch, DtypeShapeMismatch, Mismatch
from reference.arithmetic.accept import HOST, FloatModes, accept_products
from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name, from_bfloat16, to_bfloat16
from reference.arithmetic.dot_bound import dot_bound, overflow_reach, within_bound
from reference.arithmetic.norm_bound import norm_bound
from reference.arithmetic.rounding import FLOAT16, FLOAT32
from reference.program.apply import INEXACT, apply_exactly
from reference.program.evaluate import evaluate, second_call, written
from reference.program.fusibility import violations
from reference.program.sizes import other_sizes
from reference.program.spec import PASSED, Apply, Dequantize, Linear, Lookup, PackedLookup, ProgramSpec
from reference.program.values import tensor_values
from reference.table.dequantize import exact_weights

Array = np.ndarray[Any, Any]
#: Exact values, bounds, and how far partial sums reach up and down (``reference.arithmetic.dot_bound``).
Bounded = tuple[Array, Array, Callable[[], tuple[Array, ...]]]
_LOOKUP = "et_vk.embedding_q4gsw.default"


def judge_lower(question: Program, file: File) -> Mismatch | None:
    """Contract 6.1 to 6.3 on the file's facts; returns the first mismatch.

    Every lookup that 5.3 lets fuse is a delegate's, no other is; nothing in the file fails or is wrong on a device;
    a fused table is there once, packed, and neither its original nor a float copy unless something else reads it.
    What a real runtime made of the file is judged as at RUN.
    """
    spec = question.spec
    if question.force_fp16:  # the numbers are not section 3's then; all that is asked is that the file says so
        if any("force_fp16" in note for note in file.content.notes):
            return None
        return DecisionMismatch("of the file", "refused, or reported as force_fp16", "neither", "force_fp16")
    content = file.content
    return (
        _places(spec, {name: place == Place("vulkan", _LOOKUP) for name, place in content.places.items()})
        or _fixed(spec, content.dynamic)
        or _problems(content.problems)
        or judge_reads(spec, file.read, {name for name, reasons in violations(spec).items() if not reasons})
        or judge_constants(spec, content)
        or (_executed(spec, file) if file.outputs else None)
    )


def _executed(spec: ProgramSpec, file: File) -> Mismatch | None:
    delegated = {name for name, place in file.content.places.items() if place.place == "vulkan"}
    return judge_outputs(spec, file.outputs, compare.float_modes(file.facts), delegated, file.source_outputs)[0]


def judge_run(spec: ProgramSpec, graph: Graph) -> tuple[Mismatch | None, bool]:
    """Contract 5.7 on what the file computes; returns the first mismatch, and whether the strict set holds."""
    if wrong := _places(spec, {d.lookup: d.fused for d in graph.decisions}) or _fixed(spec, graph.dynamic):
        return wrong, False
    others = [s.name for s in spec.steps if isinstance(s, Linear | Apply) and s.name in graph.places]
    delegated = {name for name in others if graph.places[name].place == "vulkan"}
    delegated |= {d.lookup for d in graph.decisions if d.fused}
    modes, strict = compare.float_modes(graph.facts), True

    def judged(at: ProgramSpec, there: Graph) -> Mismatch | None:
        nonlocal strict
        for step in at.outputs():
            if step in there.failed:
                return DtypeShapeMismatch(step, "an array", there.failed[step], "missing")
        found, held = judge_outputs(at, there.outputs, modes, delegated, there.source_outputs)
        strict = strict and held
        return found

    wrong = judged(spec, graph) or at_other_sizes(spec, graph, judged, lowered=True)
    if wrong is None and (following := second_call(spec)):
        wrong = _elsewhere(judged(following, graph.at(SECOND)), "in the second call: what the first wrote is not there")
    wrong = wrong or judge_reads(spec, graph.read, {d.lookup for d in graph.decisions if d.fused})
    return wrong, strict and wrong is None


def at_other_sizes(
    spec: ProgramSpec, graph: Graph, judge: Callable[[ProgramSpec, Graph], Mismatch | None], *, lowered: bool = False
) -> Mismatch | None:
    """Return the first mismatch at another size than the traced one."""
    for size, sized in other_sizes(spec, lowered=lowered).items():
        if wrong := judge(sized, graph.at(size)):
            return _elsewhere(wrong, f"at size {size}")
    return None


def _elsewhere(wrong: Mismatch | None, where: str) -> Mismatch | None:
    if isinstance(wrong, ArrayMismatch | DtypeShapeMismatch):
        return replace(wrong, name=f"{wrong.name}, {where}")
    return wrong


def _fixed(spec: ProgramSpec, dynamic: Mapping[str, tuple[int, ...]]) -> Mismatch | None:
    """Contract 6.3: a size that the caller may choose is the caller's choice in the file, up to its bound."""
    for tensor in spec.tensors:
        if not tensor.dynamic or tensor.source not in PASSED:
            continue
        largest = tuple(max(n, tensor.bound) if d in tensor.dynamic else n for d, n in enumerate(tensor.shape))
        got = dynamic.get(tensor.name)
        if got is None or len(got) != len(largest) or any(a < b for a, b in zip(got, largest, strict=True)):
            found = "fixed" if got is None else f"up to {list(got)}"
            return DtypeShapeMismatch(tensor.name, f"sizes up to {list(largest)}", found, "dynamic")
    return None


def judge_outputs(
    spec: ProgramSpec,
    outputs: Mapping[str, Array],
    modes: FloatModes,
    delegated: Collection[str],
    source_outputs: Mapping[str, Array],
) -> tuple[Mismatch | None, bool]:
    """Judge what a lowered program returned, by step; returns the first mismatch, and whether the strict set holds.

    A delegated lookup is judged by the accept set of ``modes``, a delegated linear by contract 3.6, everything else
    bit for bit: against the reference, and a linear, or rows that are renormalised, against ``source_outputs`` of the
    program that was not lowered.
    """
    expected = evaluate(spec)
    tensors = tensor_values(spec) | expected
    strict = True
    for step in spec.steps:
        if isinstance(step, Dequantize) or step.name in spec.hidden:
            continue
        if (got := outputs.get(step.name)) is None:
            return DtypeShapeMismatch(step.name, "an array", "missing", "missing"), False
        wrong: Mismatch | None
        if isinstance(step, Apply):
            wrong = _applied(step, got, tensors, source_outputs, modes if step.name in delegated else None)
        elif step.name not in delegated:
            wrong = compare.same_bits(
                step.name, got, (expected if step.name in expected else source_outputs)[step.name]
            )
        elif isinstance(step, Linear):
            wrong = judge_linear(spec, step, got, tensors, modes)
        else:
            right = expected[step.name]
            wrong = compare.dtype_shape(step.name, got, dtype_name(right), right.shape)
            if wrong is None and isinstance(step, Lookup | PackedLookup):
                wrong = _accepted(spec, step, tensors, got, modes)
                strict = strict and _accepted(spec, step, tensors, got, HOST) is None
        if wrong:
            return wrong, False
        tensors[step.name] = got  # what later steps read
    return None, strict


def _applied(
    step: Apply, got: Array, values: Mapping[str, Array], source: Mapping[str, Array], modes: FloatModes | None
) -> Mismatch | None:
    """What a model makes of rows: from the rows that were seen. ``modes``: of a delegate; None: on the CPU."""
    if step.function not in INEXACT and step.of in values and (not step.other or step.other in values):
        return compare.same_bits(step.name, got, apply_exactly(step, values[step.of], values.get(step.other)))
    if step.function == "linear" and values[step.of].dtype in (np.float32, np.float16):
        # On the CPU too: the lowering may spell it as another operator, and no order of its sums is the contract's.
        weights = values[step.other].astype(np.float64)
        return _inside(step.name, got, _bounded(values[step.of], weights, modes or HOST, values.get(step.bias)))
    if modes and step.function == "norm" and values[step.of].dtype in (np.float32, np.float16):
        nearest = modes.rte16 if values[step.of].dtype == np.float16 else modes.rte32
        rows, weight = (values[name] for name in (step.of, step.other))
        bias = values[step.bias] if step.bias else np.zeros_like(weight)
        if wrong := compare.dtype_shape(step.name, got, dtype_name(rows), rows.shape):
            return wrong
        return _inside(step.name, got, norm_bound(rows, weight, bias, nearest=nearest))
    return compare.same_bits(step.name, got, source[step.name])


def written_tensors(spec: ProgramSpec, arrays: Mapping[str, Array]) -> Mismatch | None:
    """Buffers and inputs that the program writes to, and no others, hold what the original leaves there (5.2)."""
    expected = written(spec)
    for name in arrays:
        if name not in expected:
            return DtypeShapeMismatch(name, "not written", "written by the program", "made_up")
    for name, right in expected.items():
        if name not in arrays:
            return DtypeShapeMismatch(name, f"{dtype_name(right)}{list(right.shape)}", "not written", "not_written")
        if wrong := compare.same_bits(name, arrays[name], right):
            return wrong
    return None


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


def _problems(problems: Sequence[Problem]) -> Mismatch | None:
    """What the audit says would fail or be wrong; wasted bytes are judged by ``judge_constants`` against the spec."""
    for problem in problems:
        if problem.severity in {"fails", "wrong"}:
            return DecisionMismatch(problem.where, "a file that a device runs", problem.detail, problem.kind)
    return None


def _accepted(
    spec: ProgramSpec, step: Lookup | PackedLookup, tensors: Mapping[str, Array], got: Array, modes: FloatModes
) -> ArrayMismatch | None:
    table = lookup_operands(spec, step, tensors)
    scales, rows = table.scales_by_column(), table.indices.astype(np.int64)
    if got.dtype != BFLOAT16:
        right = accept_products(table.values[rows], scales[rows], dtype_name(got), modes)
        return compare.accepted(step.name, got, right)
    right = accept_products(table.values[rows], scales[rows], "float32", modes)  # what the host casts
    cast = from_bfloat16(to_bfloat16(right.candidates.view(np.float32))).view(np.uint32)
    return compare.accepted(step.name, from_bfloat16(got), replace(right, candidates=cast))


def judge_linear(
    spec: ProgramSpec, step: Linear, got: Array, tensors: Mapping[str, Array], modes: FloatModes
) -> ArrayMismatch | DtypeShapeMismatch | None:
    """A linear's output, inside contract 3.6's bound: of a delegate, or of a host (``HOST``)."""
    x, rows = tensors[step.x], len(tensors[spec.dequantize(step.table).weight])
    if wrong := compare.dtype_shape(step.name, got, dtype_name(x), (*x.shape[:-1], rows)):
        return wrong
    return _inside(step.name, got, _linear(spec, step, tensors, modes))


def _inside(name: str, got: Array, allowed: tuple[Array, Array] | Bounded) -> ArrayMismatch | None:
    """Compare dot products with their exact values and bounds."""
    exact, bound = allowed[:2]
    right = within_bound(got, *allowed)
    if bool(right.all()):
        return None
    index = tuple(int(i) for i in np.unravel_index(int(np.argmin(right)), right.shape))
    within = (f"{exact[index]!r} within {bound[index]!r}",)
    return ArrayMismatch(name, index, repr(got[index]), within, int((~right).sum()), right.size, "dot_product")


def exact_linear(
    spec: ProgramSpec, step: Linear, tensors: Mapping[str, Array], modes: FloatModes = HOST
) -> tuple[Array, Array]:
    """A linear's exact output and its bound (contract 3.6)."""
    return _linear(spec, step, tensors, modes)[:2]


def _linear(spec: ProgramSpec, step: Linear, tensors: Mapping[str, Array], modes: FloatModes) -> Bounded:
    table = spec.dequantize(step.table)
    zero_point = tensors[table.zero_point] if table.zero_point else None
    weights, roundings = exact_weights(
        tensors[table.weight], table.block_size, tensors[table.scale], zero_point, table.output_dtype
    )
    return _bounded(tensors[step.x], weights, modes, tensors.get(step.bias), roundings)


def _bounded(x: Array, weights: Array, modes: FloatModes, bias: Array | None, roundings: int = 1) -> Bounded:
    """A product with exact weights, its bound under what is declared for x's width, and how far partial sums reach."""
    half = x.dtype == np.float16
    nearest, preserve = modes.rte16 if half else modes.rte32, modes.preserves_denormals(FLOAT16 if half else FLOAT32)
    exact, bound = dot_bound(x, weights, nearest=nearest, preserve=preserve, bias=bias, roundings=roundings)
    return exact, bound, partial(overflow_reach, x, weights, bias, roundings)
