"""The oracle of whole tables: every byte that a lookup could read, and every constant of a file.

Source: docs/contract.md 5.2, 5.3, 6.1, 6.2.
"""

from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from conformance.harness.observation import ArrayMap, FileContent, Graph
from conformance.judging import compare
from conformance.results.mismatch import DecisionMismatch, DtypeShapeMismatch, Mismatch
from reference.arithmetic.bfloat16 import to_float
from reference.program.evaluate import whole_tables
from reference.program.fusibility import violations
from reference.program.spec import Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Read
from reference.program.values import tensor_values
from reference.table.layouts import unpack_flat

_LINEAR = "et_vk.linear_q4gsw.default"


def judge_operands(graph: Graph) -> Mismatch | None:
    """Return the first fused lookup whose operands the kernel cannot serve (contract 5.3, 7.1)."""
    for lookup, why in graph.unserved.items():
        return DecisionMismatch(lookup, "operands that the kernel serves", why, "unservable")
    return None


def judge_reads(spec: ProgramSpec, read: ArrayMap, fused: Collection[str]) -> Mismatch | None:
    """Return the first table that is not the spec's in every row, looked up or not.

    A fused lookup reads the int8 values and the scales, the scales in any dtype that holds them. Every other one, where
    constants are all that it reads, would return eager's bits for any row.
    """
    tensors, tables = tensor_values(spec), whole_tables(spec)
    for lookup in spec.lookups():
        if lookup.name in fused:
            step = lookup if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table)
            weight = tensors[step.weight]
            values = unpack_flat(weight) if isinstance(lookup, PackedLookup) else weight
            scales = _wide(tensors[step.scale]).reshape(len(values), -1)
            if wrong := _same(f"{lookup.name}.values", read, values):
                return wrong
            if wrong := _same(f"{lookup.name}.scales", read, scales):
                return wrong
            continue
        name = f"{lookup.name}.table"
        if name in read and lookup.name in tables and (wrong := _same(name, read, tables[lookup.name])):
            return wrong
    return None


def _wide(scales: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Scales as float64, which holds those of every dtype."""
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes quiet
        return to_float(scales).astype(np.float64)


def _same(name: str, read: ArrayMap, right: np.ndarray[Any, Any]) -> Mismatch | None:
    if name not in read:
        return DtypeShapeMismatch(name, f"{right.dtype}{list(right.shape)}", "not found", "missing")
    got = read[name]
    if right.dtype == np.float64:  # scales
        got = _wide(got)
    return compare.same_bits(name, got, right)


def judge_constants(spec: ProgramSpec, content: FileContent) -> Mismatch | None:
    """Return the first constant that a file has no use for: one that nothing reads, or a table that is there again.

    Every fused table is there once, packed; as it was, or dequantized, only where a step reads it so. How a refused
    lookup carries its table is the lowering's choice.
    """
    refused = {name for name, reasons in violations(spec).items() if reasons}
    for table, counts in content.copies.items():
        readers = _readers(spec, table)
        lookups = [s for s in readers if isinstance(s, Lookup | PackedLookup)]
        if {s.name for s in lookups} & refused:
            continue
        wrong = _copies(table, counts, _wanted(spec, table, readers, content))
        if wrong:
            return wrong
    for where in content.unread:
        return DecisionMismatch("of the file", "constants that something reads", where, "unread_constant")
    return None


def _wanted(spec: ProgramSpec, table: str, readers: Collection[Any], content: FileContent) -> set[str]:
    """The forms, besides the packed one, that a step reads the table in."""
    wanted = {"original"} if any(isinstance(s, Read) and s.of == table for s in readers) else set()
    floats: list[Read | Linear] = [s for s in readers if isinstance(s, Read) and s.of != table]
    floats += [s for s in readers if isinstance(s, Linear) and content.places[s.name].operator != _LINEAR]
    for step in floats:
        dtype = spec.dequantize(step.of if isinstance(step, Read) else step.table).output_dtype
        wanted |= {f"dequantized {dtype}"}
        wanted |= {f"dequantized {dtype} transposed"} if isinstance(step, Linear) else set()
    return wanted


def _copies(table: str, counts: Mapping[str, int], wanted: Collection[str]) -> Mismatch | None:
    packed_dialect = "packed flat" not in counts  # embedding_4bit: the original is flat bytes
    packed = counts.get("packed linear_weight", 0)
    packed += counts["original"] * ("original" not in wanted) if packed_dialect else counts["packed flat"]
    if packed != 1:
        kind = "table_missing" if not packed else "table_duplicated"
        return DecisionMismatch(f"table {table}", "packed once in the file", f"{packed} times", kind)
    for form, count in counts.items():
        if (
            count
            and form not in wanted
            and not form.startswith("packed")
            and not (packed_dialect and form == "original")
        ):
            kind = "float_copy" if form.startswith("dequantized") else "original"
            return DecisionMismatch(f"table {table}", f"no copy of it, {form}", f"{count} times", kind)
    return None


def _readers(spec: ProgramSpec, table: str) -> list[Any]:
    """Every step that reads the tensor, itself or dequantized, but for the dequantize steps."""
    names = {table} | {s.name for s in spec.steps if isinstance(s, Dequantize) and s.weight == table}
    fields = ("weight", "table", "of")
    return [s for s in spec.steps if not isinstance(s, Dequantize) and names & {getattr(s, f, None) for f in fields}]
