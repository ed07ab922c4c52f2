"""The space of generated programs, as a Hypothesis strategy of ProgramSpecs (never of graphs).

Each lookup is drawn from choices that keep it fusible; then up to two of ``DEFECTS`` are put into it, each of which
breaks a condition of contract 5.3. The simplest option of every choice comes first, so that Hypothesis shrinks a
failing program to the smallest that fails. A new kind of step is a function and a row of ``STEPS``.
"""

import functools
from collections.abc import Callable
from dataclasses import replace

from hypothesis import strategies as st

from conformance.generate.tensors import FLOATS, OPS, Draft, float_table, indices, scales, table, zero_point
from reference.program.apply import INEXACT
from reference.program.spec import Apply, Dequantize, Linear, Lookup, PackedLookup, ProgramSpec, Read, Values

_ANY = ("group_size", "indices_rank")
_ON_TABLE = ("table_ops", "max_norm")
_ON_TENSORS = (
    *("weight_source", "weight_ops", "qrange", "qrange", "embed_dim", "embed_dim", "empty_table"),
    *("scale_source", "scale_ops", "zero_point_source", "zero_point_values"),
)
_ON_SPLIT = (
    *("weight_dtype", "weight_dtype", "weight_values", "group_size", "block_rows", "zero_point_ops"),
    *("scale_dtype", "scale_dtype", "scale_shape"),
)
#: What can be put into a lookup to break it, by its kind; what has many values of its own is there twice.
DEFECTS = {
    "quantized": (*_ANY, *_ON_TABLE),
    "split": (*_ANY, *_ON_TABLE, *_ON_TENSORS, *_ON_SPLIT),
    "packed": (*_ANY, *_ON_TENSORS),
}
#: Those of them that a program may have which is to be lowered: the CPU carries what is left of it.
LOWERED = ("group_size", "qrange", "embed_dim", "zero_point_values")
#: Rows of a linear that is no table's.
_HEAD = 8
_QRANGES = ((-7, 7), (-8, 6), (0, 15), (-128, 127), (-16, 15))


def _lookup(draft: Draft) -> None:
    """Append a lookup, with the dequantize step that it needs unless it shares one."""
    choose = draft.choose
    kind = choose(("quantized", "split", "split", "split", "split", "packed"))
    known_defects = [d for d in DEFECTS[kind] if not draft.lowered or d in LOWERED]
    defects = set(draft.some((0, 1, 2, 1, 0), lambda: choose(known_defects)))
    shared, known = draft.chance(1, 3), _dequantized(draft)
    if kind == "packed":
        draft.steps.append(_packed(draft, defects))
        return
    tensors, tables = len(draft.tensors), len(draft.tables)
    dequantize = (_quantized if kind == "quantized" else _split)(draft, defects)
    if shared and known:  # drawn in any case: without the other lookup this one is whole
        dequantize = choose(known)
        del draft.tensors[tensors:], draft.tables[tables:]
    else:
        draft.steps.append(dequantize)
    rows = draft.spec().tensor(dequantize.weight).shape[0]
    draft.steps.append(
        Lookup(
            draft.name("lookup"),
            dequantize.name,
            indices(draft, rows, defects),
            choose([(op,) for op in OPS] if "table_ops" in defects else [()]),
            padding_idx=choose((-1, 0, rows - 1, -1)),
            scale_grad_by_freq=draft.chance(1, 4),
            sparse=draft.chance(1, 4),
            max_norm=choose((1.0, 0.25) if "max_norm" in defects else (0.0,)),
        )
    )


def _dequantized(draft: Draft) -> list[Dequantize]:
    return [step for step in draft.steps if isinstance(step, Dequantize)]


def _quantized(draft: Draft, defects: set[str]) -> Dequantize:
    """What quantizing an nn.Embedding with torchao gives."""
    source = float_table(draft, defects)
    block = (1, source.group_size or source.embed_dim)
    parts = (f"{source.name}.qdata", f"{source.name}.scale", block, f"{source.name}.zero_point")
    return Dequantize(draft.name("dq"), *parts, output_dtype=source.dtype)


def _split(draft: Draft, defects: set[str]) -> Dequantize:
    """A torchao.dequantize_affine step; its tensors are new or shared."""
    weight, group = table(draft, defects)
    rows, columns = weight.shape
    block = (max(rows, 1), group) if "block_rows" in defects else (1, group)
    shape = (rows // block[0], columns // group)
    qmin, qmax = draft.choose(_QRANGES if "qrange" in defects else ((-8, 7),))
    if weight.dtype == "uint8":  # torchao refuses bounds that the carrier does not hold
        qmin, qmax = 0, 15
    return Dequantize(
        draft.name("dq"),
        weight.name,
        scales(draft, shape, defects).name,
        block,
        zero_point(draft, shape, defects),
        qmin,
        qmax,
        weight.dtype,
        draft.choose(FLOATS),
        *(draft.constant_ops(opaque=f"{part}_ops" in defects) for part in ("weight", "scale", "zero_point")),
    )


def _packed(draft: Draft, defects: set[str]) -> PackedLookup:
    """A quantized_decomposed.embedding_4bit."""
    weight, group = table(draft, defects, packed=True)
    rows, columns = weight.shape[0], 2 * weight.shape[1]
    scale = scales(draft, (rows, columns // group), defects, packed=True)
    return PackedLookup(
        draft.name("lookup"),
        weight.name,
        scale.name,
        indices(draft, rows, defects),
        zero_point(draft, scale.shape, defects, (scale.dtype,)),  # its eager form wants equal dtypes
        *draft.choose(_QRANGES if "qrange" in defects else ((-8, 7),)),
        draft.choose(FLOATS),
        *(draft.constant_ops(opaque=f"{part}_ops" in defects) for part in ("weight", "scale")),
    )


def _linear(draft: Draft) -> None:
    """Put a tied linear before or after everything else, on a lookup's dequantized table or one of its own."""
    if not (known := _dequantized(draft)):
        return
    dequantize = draft.choose(known)
    columns = draft.spec().tensor(dequantize.weight).shape[1]
    x = draft.add("x", dequantize.output_dtype, (2, columns), Values("weights", draft.choose(range(4))), "input")
    own, early = draft.chance(1, 2), draft.chance(1, 2)
    at = len(draft.steps)
    if early:
        at = 0 if own else draft.steps.index(dequantize) + 1
    if own:
        dequantize = replace(dequantize, name=draft.name("dq"))
    biased, rows = draft.chance(1, 3), draft.spec().tensor(dequantize.weight).shape[0]
    bias = draft.add("b", dequantize.output_dtype, (rows,), Values("weights", 5), "buffer").name if biased else ""
    linear = Linear(draft.name("linear"), dequantize.name, x.name, bias)
    draft.steps[at:at] = [dequantize, linear] if own else [linear]


def _consumer(draft: Draft) -> None:
    """Append what a model does with rows, or with what it made of them; the rows need not be returned."""
    spec = draft.spec()
    made = [
        s for s in draft.steps if isinstance(s, Lookup | PackedLookup) or (isinstance(s, Apply) and s.name[0] == "y")
    ]
    if not made:
        return
    read = draft.choose(made)
    lookup = spec.lookups_behind(read.name)[0]
    dtype, shape = _rows_of(spec, lookup)
    if isinstance(read, Apply) and read.function == "linear":
        shape = (*shape[:-1], _HEAD)
    functions = ("mul", "add", "norm", "linear") if len(shape) == 2 else ("mul", "add", "norm")  # noqa: PLR2004
    function = draft.choose(functions)
    sources = ("buffer", "parameter", "input", "mutated")
    seed, source, biased, hide = draft.choose(range(8)), draft.choose(sources), draft.chance(1, 2), draft.chance(1, 2)
    own = (_HEAD, shape[-1]) if function == "linear" else shape[-1:]
    other = "" if function == "mul" else draft.add("c", dtype, own, Values("weights", seed), source).name
    biased = biased and function in INEXACT
    bias = draft.add("d", dtype, own[:1], Values("weights", seed + 8), "buffer").name if biased else ""
    draft.steps.append(Apply(draft.name("y"), read.name, function, 8.0 if function == "mul" else 0.0, other, bias))
    if hide and read.name not in draft.hidden:
        draft.hidden.append(read.name)


def _rows_of(spec: ProgramSpec, lookup: str) -> tuple[str, tuple[int, ...]]:
    """The type and the shape of what a lookup yields."""
    step = next(s for s in spec.lookups() if s.name == lookup)
    table = step if isinstance(step, PackedLookup) else spec.dequantize(step.table)
    columns = spec.tensor(table.weight).shape[1] * (2 if step is table else 1)
    return table.output_dtype, (*spec.tensor(step.indices).shape, columns)


def _read(draft: Draft) -> None:
    """Append another consumer of anything that there is."""
    names = [step.name for step in _dequantized(draft)] + [tensor.name for tensor in draft.tensors]
    names += [f"{source.name}.qdata" for source in draft.tables]
    kind = draft.choose(("i", "dq", "s", "w", "emb", "packed", "z", "x"))
    of = draft.choose([name for name in names if name.startswith(kind)] or names)
    draft.steps.append(Read(draft.name("read"), of))


#: The kinds of step in the order in which a program's are drawn, and how many there may be: the fewest first.
STEPS: tuple[tuple[Callable[[Draft], None], tuple[int, ...]], ...] = (
    (_lookup, (1, 2, 3, 1, 2, 1)),
    (_linear, (0, 1, 0, 0)),
    (_read, (0, 1, 2, 1, 0)),
    (_consumer, (0, 1, 2, 0)),
)
#: The same for programs that are lowered, which takes its time for every node.
LOWERED_STEPS = (
    (_lookup, (1, 2, 1, 1)),
    (_linear, (0, 1, 0)),
    (_read, (0, 1, 0, 0)),
    (_consumer, (0, 1, 1, 2)),
)


@st.composite
def programs(draw: st.DrawFn, *, lowered: bool = False) -> ProgramSpec:
    """Draw a program for the synthetic route, or one for torch.export that is to be ``lowered``."""
    draft = Draft(draw, lowered=lowered)
    for add, counts in LOWERED_STEPS if lowered else STEPS:
        draft.some(counts, functools.partial(add, draft))
    return draft.spec()
