"""What can be said of a program in one word: the conditions on which a known failure excuses a generated one.

Source: docs/reading-a-report.md, "Known failures".
"""

import math
from collections.abc import Iterator

from reference.program.fusibility import REASONS, violations
from reference.program.spec import SOURCES, Dequantize, Linear, PackedLookup, ProgramSpec, Read

#: Every word; those of ``reference.program.fusibility.REASONS`` say that a lookup breaks that condition.
WORDS = frozenset(
    {
        *REASONS,
        *(f"output_{dtype}" for dtype in ("float16", "float32", "bfloat16", "float64")),
        *(f"{part}_{source}" for part in ("weight", "scale") for source in SOURCES),
        *("indices_of_several_rows", "scale_bfloat16", "packed_scale_of_rows", "packed_zero_point", "state"),
        *("zero_point_bfloat16", "zero_point_int16", "weight_read", "table_read", "weight_shared", "scale_shared"),
        *("linear", "linear_float16", "linear_bfloat16", "linear_rows_not_multiple_of_4", "linear_without_zero_point"),
    }
)


def conditions(spec: ProgramSpec) -> frozenset[str]:
    """Return the words that hold for a well-formed program."""
    return frozenset().union(*violations(spec).values(), _lookups(spec), _readers(spec))


def _lookups(spec: ProgramSpec) -> Iterator[str]:
    for lookup in spec.lookups():
        table = lookup if isinstance(lookup, PackedLookup) else spec.dequantize(lookup.table)
        yield f"output_{table.output_dtype}"
        if math.prod(spec.tensor(lookup.indices).shape[:-1]) > 1:
            yield "indices_of_several_rows"
        scale = spec.tensor(table.scale)
        if scale.dtype == "bfloat16":
            yield "scale_bfloat16"
        if table is lookup and len(scale.shape) == 1:
            yield "packed_scale_of_rows"
        if table is lookup and table.zero_point:
            yield "packed_zero_point"
        if table.zero_point and (dtype := spec.tensor(table.zero_point).dtype) in {"bfloat16", "int16"}:
            yield f"zero_point_{dtype}"


def _readers(spec: ProgramSpec) -> Iterator[str]:
    tables = [s for s in spec.steps if isinstance(s, Dequantize | PackedLookup)]
    weights, scales = [t.weight for t in tables], [t.scale for t in tables]
    yield from (f"weight_{spec.tensor(name).source}" for name in weights)
    yield from (f"scale_{spec.tensor(name).source}" for name in scales)
    if len(set(weights)) < len(weights):
        yield "weight_shared"
    if len(set(scales)) < len(scales):
        yield "scale_shared"
    if any(tensor.source.startswith("mutated") for tensor in spec.tensors):
        yield "state"
    for step in spec.steps:
        if isinstance(step, Read) and step.of in {*weights, *(t.name for t in tables)}:
            yield "weight_read" if step.of in weights else "table_read"
        if isinstance(step, Linear):
            table = spec.dequantize(step.table)
            yield "linear"
            if table.output_dtype in {"float16", "bfloat16"}:
                yield f"linear_{table.output_dtype}"
            if spec.tensor(table.weight).shape[0] % 4:
                yield "linear_rows_not_multiple_of_4"
            if not table.zero_point:
                yield "linear_without_zero_point"
