"""The axes of the graph space: what a program is on each of them, read off its spec.

A histogram over drawn programs shows that every value is drawn and which pairs of values meet. Values are
worked out from the finished spec, not from what the generator meant to draw.

Source: docs/contract.md sections 4 and 5.
"""

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass

from reference.program.fusibility import violations
from reference.program.spec import (
    IDENTITY_OPS,
    OPAQUE_OPS,
    SOURCES,
    Apply,
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    Read,
    TensorSpec,
)

#: A table that the caller passes and the program writes to has cases of its own (match/written/*), and is not drawn.
_DRAWN = tuple(source for source in SOURCES if source != "mutated_input")

_OPS = ("none", *IDENTITY_OPS, *OPAQUE_OPS)
#: Every axis and the values that have to be drawn. A program may have several values of an axis.
AXES: Mapping[str, tuple[str, ...]] = {
    "dialect": ("split", "packed", "torchao_table"),
    "fusible": ("all", "some", "none"),
    "weight_source": _DRAWN,
    "weight_dtype": ("int8", "uint8", "int16", "int32"),
    "weight_values": ("uniform", "ramp", "zeros", "constant", "one_hot", "out_of_range"),
    "weight_ops": _OPS,
    "rows": ("0", "1", "2-7", "8", "9+", "256+", "16385+", "65537+", "131073+"),
    "columns": ("8", "16", "32", "48", "64", "80", "96", "128+", "1024+"),
    "group_size": ("1", "2", "3", "6", "4", "8", "12", "16", "20", "24", "32", "48+", "row"),
    "block": ("1xG", "NxG"),
    "qrange": ("-8..7", "-7..7", "-8..6", "0..15", "-128..127", "-16..15"),
    "scale_source": _DRAWN,
    "scale_dtype": ("float32", "float16", "bfloat16", "float64"),
    "scale_shape": ("V,G", "V", "other"),
    "scale_values": ("scales", "signed_scales", "special_scales", "bits", "powers_of_two", "zeros", "one_hot"),
    "scale_ops": _OPS,
    "zero_point": ("none", "zeros", "negative_zeros", "nonzero_once", "nonzero"),
    "zero_point_source": _DRAWN,
    "zero_point_dtype": (
        "int8", "int16", "uint8", "int32", "int64", "float16", "bfloat16", "float32", "float64",
    ),
    "zero_point_ops": _OPS,
    "output_dtype": ("float32", "float16", "bfloat16"),
    "table_ops": _OPS,
    "max_norm": ("no", "yes"),
    "lookups": ("1", "2", "3"),
    "shares": ("nothing", "dequantize", "weight", "scale", "zero_point", "weight_under_two_groups", "prefix"),
    "linear": ("none", "before", "after", "shares_dequantize", "bias"),
    "reads": ("nothing", "weight", "scale", "zero_point", "table", "indices", "x", "other"),
    "consumers": ("none", "mul", "add", "norm", "linear", "bias", "chain"),
    "returned": ("every_lookup", "some_lookups", "no_lookup"),
    "state": ("none", "read_and_written"),
    "indices_rank": ("0", "1", "2", "3", "4"),
    "indices_size": ("0", "1", "more", "65+"),
    "indices_moved": ("no", "yes"),
    "indices_bound": ("none", "bounded"),
    "indices_dtype": ("int64", "int32"),
    "indices_source": ("input", "computed", "lifted", "buffer"),
    "indices_dynamic": ("no", "first", "all"),
    "padding_idx": ("none", "first", "last"),
    "gradient_options": ("none", "scale_grad_by_freq", "sparse"),
}  # fmt: skip


@dataclass(frozen=True)
class Histogram:
    """How many of ``programs`` have each (axis, value), and each pair of values of two axes."""

    programs: int
    values: Mapping[tuple[str, str], int]
    pairs: Mapping[tuple[tuple[str, str], tuple[str, str]], int]

    def missing(self, share: float) -> tuple[tuple[str, str], ...]:
        """The values that fewer than that share of the programs have."""
        listed = ((axis, value) for axis, values in AXES.items() for value in values)
        return tuple(pair for pair in listed if self.values.get(pair, 0) < share * self.programs)

    def pairs_seen(self) -> tuple[int, int]:
        """How many pairs of values of two different axes were drawn, and how many there are."""
        sizes = [len(v) for v in AXES.values()]
        return len(self.pairs), (sum(sizes) ** 2 - sum(n * n for n in sizes)) // 2

    def lines(self) -> Iterator[str]:
        """The histogram as text, an axis a line."""
        for axis, values in AXES.items():
            shares = (f"{value} {100 * self.values.get((axis, value), 0) / self.programs:.1f} %" for value in values)
            yield f"{axis}: {', '.join(shares)}"
        seen, there_are = self.pairs_seen()
        yield f"pairs of values of two axes: {seen} of {there_are}"


def histogram(specs: Iterable[ProgramSpec]) -> Histogram:
    """Count the axis values of many programs.

    Raises:
        ValueError: a program has a value that AXES does not list.
    """
    values: Counter[tuple[str, str]] = Counter()
    pairs: Counter[tuple[tuple[str, str], tuple[str, str]]] = Counter()
    programs = 0
    for spec in specs:
        coordinates = sorted(axis_values(spec))
        programs += 1
        values.update(coordinates)
        pairs.update((a, b) for a, b in itertools.combinations(coordinates, 2) if a[0] != b[0])
    unknown = [pair for pair in values if pair[1] not in AXES[pair[0]]]
    if unknown:
        axis, value = unknown[0]
        raise ValueError(f"axis {axis} has no value {value!r}; known: {', '.join(AXES[axis])}")
    return Histogram(programs, values, pairs)


def axis_values(spec: ProgramSpec) -> set[tuple[str, str]]:
    """Every (axis, value) of a program."""
    coordinates: set[tuple[str, str]] = {("lookups", str(len(spec.lookups())))}
    broken = [bool(reasons) for reasons in violations(spec).values()]
    coordinates.add(("fusible", "none" if all(broken) else "some" if any(broken) else "all"))
    for step in spec.lookups():
        coordinates |= _packed(spec, step) if isinstance(step, PackedLookup) else _split(spec, step)
        coordinates |= _indices(spec.tensor(step.indices))
        moved = any(isinstance(other, Apply) and other.name == step.indices for other in spec.steps)
        coordinates.add(("indices_moved", "yes" if moved else "no"))
    hidden = [step.name in spec.hidden for step in spec.lookups()]
    coordinates.add(("returned", "no_lookup" if all(hidden) else "some_lookups" if any(hidden) else "every_lookup"))
    return coordinates | _sharing(spec) | _linears(spec) | _reads(spec) | _consumers(spec)


def _consumers(spec: ProgramSpec) -> set[tuple[str, str]]:
    steps = [s for s in spec.steps if isinstance(s, Apply) and spec.lookups_behind(s.name)]
    coordinates = {("consumers", s.function) for s in steps} or {("consumers", "none")}
    coordinates |= {("consumers", "bias") for s in steps if s.bias}
    coordinates |= {("consumers", "chain") for s in steps if any(s.of == other.name for other in steps)}
    state = any(s.other and spec.tensor(s.other).source == "mutated" for s in steps)
    return coordinates | {("state", "read_and_written" if state else "none")}


def _split(spec: ProgramSpec, step: Lookup) -> set[tuple[str, str]]:
    dequantize = spec.dequantize(step.table)
    weight, scale = spec.tensor(dequantize.weight), spec.tensor(dequantize.scale)
    rows, columns = weight.shape
    block_rows, group = dequantize.block_size
    coordinates = _weight(weight, columns)
    coordinates |= _scale(scale, (rows // block_rows, columns // group)) | _zero_point(spec, dequantize.zero_point)
    coordinates |= {("group_size", _group(group, columns)), ("rows", _rows(rows))}
    coordinates |= {("block", "1xG" if block_rows == 1 else "NxG"), ("output_dtype", dequantize.output_dtype)}
    coordinates |= {("qrange", f"{dequantize.qmin}..{dequantize.qmax}"), ("max_norm", "yes" if step.max_norm else "no")}
    coordinates |= (
        _ops("weight", dequantize.weight_ops) | _ops("scale", dequantize.scale_ops) | _ops("table", step.table_ops)
    )
    if dequantize.zero_point:
        coordinates |= _ops("zero_point", dequantize.zero_point_ops)
    padding = {-1: "none", 0: "first"}.get(step.padding_idx, "last")
    coordinates |= {("padding_idx", padding), ("dialect", "torchao_table" if "." in weight.name else "split")}
    options = {"scale_grad_by_freq": step.scale_grad_by_freq, "sparse": step.sparse}
    coordinates |= {("gradient_options", name) for name, on in options.items() if on}
    return coordinates if any(options.values()) else coordinates | {("gradient_options", "none")}


def _packed(spec: ProgramSpec, step: PackedLookup) -> set[tuple[str, str]]:
    weight, scale = spec.tensor(step.weight), spec.tensor(step.scale)
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    groups = scale.shape[1] if len(scale.shape) == 2 else 1
    coordinates = _weight(weight, columns) | _scale(scale, (rows, groups)) | _zero_point(spec, step.zero_point)
    group = columns // groups
    coordinates |= {("group_size", _group(group, columns)), ("rows", _rows(rows)), ("dialect", "packed")}
    coordinates |= {("qrange", f"{step.qmin}..{step.qmax}"), ("output_dtype", step.output_dtype)}
    return coordinates | _ops("weight", step.weight_ops) | _ops("scale", step.scale_ops)


def _weight(weight: TensorSpec, columns: int) -> set[tuple[str, str]]:
    values = weight.values
    pattern = {"quantized": "uniform"}.get(values.pattern, values.pattern)
    held = {"one_hot": (values.low, values.value), "uniform": (values.low, values.high)}.get(pattern, ())
    if weight.dtype == "int8" and any(not -8 <= v <= 7 for v in held):
        pattern = "out_of_range"
    coordinates = {("weight_source", weight.source), ("weight_dtype", weight.dtype), ("weight_values", pattern)}
    return coordinates | {("columns", "1024+" if columns >= 1024 else "128+" if columns >= 128 else str(columns))}


def _scale(scale: TensorSpec, shape: tuple[int, ...]) -> set[tuple[str, str]]:
    coordinates = {("scale_source", scale.source), ("scale_dtype", scale.dtype)}
    if scale.values.pattern != "quantized":
        coordinates.add(("scale_values", scale.values.pattern))
    kind = "V,G" if scale.shape == shape else "V" if scale.shape == shape[:1] else "other"
    return coordinates | {("scale_shape", kind)}


def _zero_point(spec: ProgramSpec, name: str) -> set[tuple[str, str]]:
    if not name:
        return {("zero_point", "none")}
    tensor = spec.tensor(name)
    values = tensor.values
    kinds = {"one_hot": "nonzero_once", "zeros": "zeros", "quantized": "zeros"}
    kind = kinds.get(values.pattern, "nonzero" if values.value else "negative_zeros")
    return {("zero_point", kind), ("zero_point_source", tensor.source), ("zero_point_dtype", tensor.dtype)}


def _ops(name: str, ops: tuple[str, ...]) -> set[tuple[str, str]]:
    return {(f"{name}_ops", op) for op in ops or ("none",)}


def _group(group: int, columns: int) -> str:
    return "row" if group == columns else "48+" if group >= 48 else str(group)


def _rows(rows: int) -> str:
    past = next((f"{most}+" for most in (131073, 65537, 16385, 256, 9) if rows >= most), str(rows))
    return "2-7" if rows in range(2, 8) else past


def _indices(tensor: TensorSpec) -> set[tuple[str, str]]:
    count = 1
    for size in tensor.shape:
        count *= size
    dynamic = "no" if not tensor.dynamic else "all" if len(tensor.dynamic) == len(tensor.shape) else "first"
    return {
        ("indices_rank", str(len(tensor.shape))),
        ("indices_size", str(count) if count < 2 else "65+" if count > 64 else "more"),
        ("indices_bound", "bounded" if tensor.bound else "none"),
        ("indices_dtype", tensor.dtype),
        ("indices_source", tensor.source),
        ("indices_dynamic", dynamic),
    }


def _sharing(spec: ProgramSpec) -> set[tuple[str, str]]:
    lookups = spec.lookups()
    tables = [s.table for s in lookups if isinstance(s, Lookup)]
    readers = [spec.dequantize(t) for t in dict.fromkeys(tables)]
    packed = [s for s in lookups if isinstance(s, PackedLookup)]
    coordinates = {("shares", "dequantize")} if len(set(tables)) < len(tables) else set()
    for field in ("weight", "scale", "zero_point"):
        names = [n for n in (getattr(s, field) for s in [*readers, *packed]) if n]
        if len(set(names)) < len(names):
            coordinates.add(("shares", field))
    if any(a.weight == b.weight and a.block_size != b.block_size for a, b in itertools.combinations(readers, 2)):
        coordinates.add(("shares", "weight_under_two_groups"))
    weights = [spec.tensor(s.weight) for s in [*readers, *packed]]
    if any(
        a.values == b.values and a.shape[1] == b.shape[1] and a.shape[0] < b.shape[0] and a.values.pattern == "uniform"
        for a, b in itertools.permutations(weights, 2)
    ):
        coordinates.add(("shares", "prefix"))
    return coordinates or {("shares", "nothing")}


def _linears(spec: ProgramSpec) -> set[tuple[str, str]]:
    coordinates = set()
    order = [s.name for s in spec.steps]
    tables = {s.table for s in spec.lookups() if isinstance(s, Lookup)}
    for step in spec.steps:
        if isinstance(step, Linear):
            first = min((order.index(s.name) for s in spec.lookups()), default=0)
            coordinates.add(("linear", "before" if order.index(step.name) < first else "after"))
            if step.bias:
                coordinates.add(("linear", "bias"))
            if step.table in tables:
                coordinates.add(("linear", "shares_dequantize"))
    return coordinates or {("linear", "none")}


def _reads(spec: ProgramSpec) -> set[tuple[str, str]]:
    kinds = {"s": "scale", "z": "zero_point", "i": "indices", "x": "x", "w": "weight", "packed": "weight"}
    coordinates = set()
    for step in spec.steps:
        if isinstance(step, Read):
            table = any(isinstance(s, Dequantize) and s.name == step.of for s in spec.steps)
            kind = "weight" if "." in step.of else kinds.get(step.of.rstrip("0123456789"), "other")
            coordinates.add(("reads", "table" if table else kind))
    return coordinates or {("reads", "nothing")}
