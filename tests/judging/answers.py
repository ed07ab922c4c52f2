"""Right answers to cases, made by the oracles alone; what is altered in one of them is a wrong one."""

from dataclasses import replace
from typing import Any

import numpy as np

from conformance.case.case import Case
from conformance.case.operands import operands, table_values
from conformance.harness.observation import (
    SECOND,
    Arrays,
    Decision,
    Facts,
    File,
    FileContent,
    Graph,
    Observation,
    Place,
    named_at,
)
from conformance.judging.lowered import exact_linear
from reference.arithmetic.bfloat16 import cast_float
from reference.program.evaluate import evaluate, second_call, whole_tables, written
from reference.program.export_form import export_dynamic, export_forms, export_operands, export_tables
from reference.program.fusibility import violations
from reference.program.sizes import other_sizes
from reference.program.spec import Linear, PackedLookup, ProgramSpec
from reference.program.values import tensor_values
from reference.table import layouts
from reference.table.layouts import unpack_flat

#: Declares all there is: the strict set.
STRICT = Facts(
    execution_modes=tuple(
        f"{mode} {n}" for n in (16, 32) for mode in ("RoundingModeRTE", "DenormPreserve", "SignedZeroInfNanPreserve")
    ),
    precise=True,
)
LOOKUP = "et_vk.embedding_q4gsw.default"
PACKERS = {"flat": layouts.pack_flat, "linear_weight": layouts.pack_linear_weight, "blocks": layouts.pack_blocks}


def right(case: Case) -> Observation:
    """An answer that the contract allows."""
    question: Any = case.question
    if case.stage in {"PACK", "PREPACK"}:
        name = "blocks" if question.layout == "blocks" else "packed"
        return Arrays({name: PACKERS[question.layout](table_values(question))})
    if case.stage == "KERNEL":
        return Arrays({"out": rows(question)}, Facts(arithmetic="host"))
    if case.stage == "EXPORT":
        return exported(question.spec)
    if case.stage == "LOWER":
        return file(question.spec)
    return graph(question.spec, lowered=case.stage == "RUN")


def rows(question: Any) -> np.ndarray:
    """What a dispatch computes on a host; NaN for an index that is outside."""
    read = operands(question)
    inside = (read.indices >= 0) & (read.indices < len(read.values))
    with np.errstate(over="ignore", invalid="ignore"):
        table = read.values.astype(np.float32) * read.scales_by_column().astype(np.float32)
    out = np.full((*read.indices.shape, read.values.shape[1]), np.nan, np.float32)
    out[inside] = table[read.indices[inside].astype(np.int64)]
    with np.errstate(over="ignore"):
        return out.astype(question.output_dtype)


def outputs(spec: ProgramSpec) -> dict[str, np.ndarray]:
    """Every output that the oracles have; a linear's nearest to its exact value."""
    found = dict(evaluate(spec))
    for step in spec.steps:
        dtype = spec.dequantize(step.table).output_dtype if isinstance(step, Linear) else ""
        if isinstance(step, Linear) and dtype != "bfloat16":  # which has no bound
            tensors = tensor_values(spec) | found
            found[step.name] = cast_float(exact_linear(spec, step, tensors)[0], dtype)
    return found


def read(spec: ProgramSpec, fused: set[str]) -> dict[str, np.ndarray]:
    """Whole tables, as observers report them."""
    tensors, tables, found = tensor_values(spec), whole_tables(spec), {}
    for lookup in spec.lookups():
        if lookup.name in fused:
            step = lookup if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table)
            weight = tensors[step.weight]
            found[f"{lookup.name}.values"] = unpack_flat(weight) if isinstance(lookup, PackedLookup) else weight
            found[f"{lookup.name}.scales"] = tensors[step.scale].reshape(len(weight), -1)
        elif lookup.name in tables:
            found[f"{lookup.name}.table"] = tables[lookup.name]
    return found


def graph(spec: ProgramSpec, *, lowered: bool = False) -> Graph:
    """An answer to MATCH or RUN: everything as the oracles have it."""
    reasons = violations(spec)
    fused = {name for name, why in reasons.items() if not why}
    decisions = tuple(Decision(name, not why, min(why, default=None)) for name, why in reasons.items())
    computed = outputs(spec)
    for size, sized in other_sizes(spec, lowered=lowered).items():
        computed |= named_at(size, outputs(sized))
    if lowered and (following := second_call(spec)):
        computed |= named_at(SECOND, outputs(following))
    places = {name: Place("vulkan" if name in fused else "cpu", LOOKUP) for name in reasons} if lowered else {}
    tables = read(spec, fused)
    kept = {} if lowered else written(spec)
    return Graph(
        decisions, computed, computed, written=kept, read=tables, places=places, dynamic=dynamic(spec), facts=STRICT
    )


def dynamic(spec: ProgramSpec) -> dict[str, tuple[int, ...]]:
    """Largest sizes of what the caller passes."""
    return {t.name: tuple(max(n, t.bound) for n in t.shape) for t in spec.tensors if t.dynamic}


def exported(spec: ProgramSpec) -> Graph:
    """An answer to EXPORT."""
    made = graph(spec)
    sizes = export_dynamic(spec)
    return replace(
        made,
        decisions=(),
        source_outputs=export_operands(spec),
        forms=export_forms(spec),
        tables=export_tables(spec),
        dynamic=sizes,
    )


def file(spec: ProgramSpec) -> File:
    """An answer to LOWER: every table once, packed."""
    reasons = violations(spec)
    fused = {name for name, why in reasons.items() if not why}
    places = {s.name: Place("cpu", "aten.linear") for s in spec.steps if isinstance(s, Linear)}
    places |= {name: Place("vulkan" if name in fused else "cpu", LOOKUP) for name in reasons}
    copies = {}
    for lookup in spec.lookups():
        own_bytes = isinstance(lookup, PackedLookup)
        once = {"original": 0, "packed linear_weight": 1} | (
            {} if own_bytes else {"packed flat": 0, "dequantized float32": 0}
        )
        copies[lookup.weight if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table).weight] = once
    return File("0", FileContent(1, places, copies, dynamic=dynamic(spec)), read(spec, fused))
