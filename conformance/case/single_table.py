"""SingleTable: a program around one quantized table, from a few parameters.

A catalogue row states only what deviates from the control program, which fuses: one torchao-quantized
nn.Embedding, V=9, D=64, G=32, float32, one lookup with five int64 indices. The resolved ProgramSpec
is what a case carries; nothing but the catalogue knows templates.

Source: docs/contract.md sections 4 and 5.
"""

from dataclasses import dataclass, replace

from reference.program.spec import (
    Apply,
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Read,
    Step,
    TensorSpec,
    Values,
)


@dataclass(frozen=True)
class SingleTable:
    """The parameters. "" for a dtype or 0 for a size means: as the control program has it.

    ``zero_point``: "zeros", "none", "one_nonzero" (the last group only) or "ones". ``linear``: "",
    "before" or "after" the lookups. ``reads``: other consumers, of "weight", "scale" or "table".
    ``dialect``: "torchao" or "embedding_4bit". ``group_sizes`` gives each lookup its own grouping. ``consumers`` of the
    first lookup's rows, each of what the one before it yields: "mul", "add" (of an input), "positions" (adds the last
    lookup's rows), "norm", "linear", "linear_bias"; ``linear_of_rows``: the tied linear reads rows too.
    ``hide_lookups``: only consumers' values are returned. ``indices_moved``: an offset is added to indices first.
    """

    route: str = "torchao"
    dialect: str = "torchao"
    vocab_size: int = 9
    embed_dim: int = 64
    group_size: int = 32
    group_sizes: tuple[int, ...] = ()
    dtype: str = "float32"
    scale_dtype: str = ""
    output_dtype: str = ""
    scale_shape: tuple[int, ...] = ()
    block_size: tuple[int, ...] = ()
    qmin: int = -8
    qmax: int = 7
    values: Values = Values("uniform", 11, -8, 7)
    scales: Values = Values("scales", 12)
    zero_point: str = "zeros"
    zero_point_dtype: str = "int8"
    weight_dtype: str = "int8"
    weight_source: str = "buffer"
    scale_source: str = "buffer"
    zero_point_source: str = "buffer"
    weight_ops: tuple[str, ...] = ()
    scale_ops: tuple[str, ...] = ()
    zero_point_ops: tuple[str, ...] = ()
    table_ops: tuple[str, ...] = ()
    lookups: int = 1
    share_dequantize: bool = False
    indices_shape: tuple[int, ...] = (5,)
    indices_dtype: str = "int64"
    indices_source: str = "input"
    indices_dynamic: tuple[int, ...] = ()
    indices_bound: int = 0
    padding_idx: int = -1
    sparse: bool = False
    scale_grad_by_freq: bool = False
    max_norm: float = 0.0
    linear: str = ""
    linear_bias: bool = False
    linear_of_rows: bool = False
    reads: tuple[str, ...] = ()
    consumers: tuple[str, ...] = ()
    hide_lookups: bool = False
    indices_moved: bool = False
    unwrap: bool = False
    strict: bool = False


def single_table(p: SingleTable) -> ProgramSpec:
    """Return the program that ``p`` describes.

    Raises:
        ValueError: a parameter that the route or dialect cannot express.
    """
    if p.route == "torchao" and p.dialect != "torchao":
        raise ValueError("route 'torchao' makes the torchao dialect only")
    groupings = p.group_sizes or (p.group_size,)
    tensors = list(_index_tensors(p))
    if p.linear and not p.linear_of_rows:
        tensors.append(TensorSpec("x", p.dtype, (2, p.embed_dim), Values("weights", 31), "input"))
    tables: tuple[QuantizedTable, ...] = ()
    if p.route == "torchao":
        if p.group_sizes:
            raise ValueError("route 'torchao' quantizes a table under one group size")
        tables = (QuantizedTable("emb", p.vocab_size, p.embed_dim, p.group_size, Values("weights", 21), p.dtype),)
    else:
        tensors += _table_tensors(p, groupings)
    steps: list[Step] = []
    for i in range(p.lookups):
        steps += _lookup(p, i, groupings[i % len(groupings)], steps)
    if p.linear:
        x, bias = ("lookup0" if p.linear_of_rows else "x"), ("bias" if p.linear_bias else "")
        if bias:
            tensors.append(TensorSpec(bias, p.dtype, (p.vocab_size,), Values("weights", 32)))
        linear: list[Step] = [_dequantize(p, "dq_linear", groupings[0]), Linear("linear", "dq_linear", x, bias)]
        steps = linear + steps if p.linear == "before" else steps + linear
    steps += [Read(f"read_{of}", _read_name(p, of, groupings[0])) for of in p.reads]
    for number, function in enumerate(p.consumers):
        steps += _consumer(p, f"made{number}", function, f"made{number - 1}" if number else "lookup0", tensors)
    read = {getattr(step, field, "") for step in steps for field in ("of", "other", "x")}
    hidden = tuple(f"lookup{i}" for i in range(p.lookups) if p.hide_lookups and f"lookup{i}" in read)
    return ProgramSpec(tuple(steps), tuple(tensors), tables, p.route, p.unwrap, p.strict, hidden)


def _consumer(p: SingleTable, name: str, function: str, of: str, tensors: list[TensorSpec]) -> list[Step]:
    """One consumer of rows; what else it reads is added to ``tensors``."""
    dtype = p.output_dtype or p.dtype

    def held(what: str, shape: tuple[int, ...], source: str = "buffer") -> str:
        tensors.append(TensorSpec(f"{name}_{what}", dtype, shape, Values("weights", 51 + len(tensors)), source))
        return f"{name}_{what}"

    match function:
        case "mul":
            return [Apply(name, of, "mul", 8.0)]
        case "add":
            return [Apply(name, of, "add", other=held("added", (p.embed_dim,), "input"))]
        case "positions":
            return [Apply(name, of, "add", other=f"lookup{p.lookups - 1}")]
        case "norm":
            return [Apply(name, of, "norm", other=held("weight", (p.embed_dim,)), bias=held("bias", (p.embed_dim,)))]
        case "linear" | "linear_bias":
            bias = held("bias", (8,)) if function == "linear_bias" else ""
            return [Apply(name, of, "linear", other=held("weight", (8, p.embed_dim)), bias=bias)]
    raise ValueError(f"consumer {function!r} is not one of mul, add, positions, norm, linear, linear_bias")


def _index_tensors(p: SingleTable) -> list[TensorSpec]:
    high = max(p.vocab_size - 1, 0)
    return [
        TensorSpec(
            f"indices{i}",
            p.indices_dtype,
            p.indices_shape,
            Values("uniform", 41 + i, 0, max(high - p.indices_moved, 0)),
            p.indices_source,
            p.indices_dynamic,
            p.indices_bound,
        )
        for i in range(p.lookups)
    ] + ([TensorSpec("offset", p.indices_dtype, (1,), Values("constant", value=1.0))] if p.indices_moved else [])


def _table_tensors(p: SingleTable, groupings: tuple[int, ...]) -> list[TensorSpec]:
    if p.dialect == "embedding_4bit":
        packed = (p.vocab_size, p.embed_dim // 2)
        tensors = [TensorSpec("weight", "uint8", packed, Values("uniform", p.values.seed, 0, 255), p.weight_source)]
    else:
        tensors = [TensorSpec("weight", p.weight_dtype, (p.vocab_size, p.embed_dim), p.values, p.weight_source)]
    for group_size in dict.fromkeys(groupings):
        shape = (p.vocab_size, p.embed_dim // group_size if group_size else 1)
        seeded = Values(
            p.scales.pattern, p.scales.seed + group_size, p.scales.low, p.scales.high, p.scales.position, p.scales.value
        )
        scales = p.scales if p.scales.pattern == "literal" else seeded
        tensors.append(
            TensorSpec(_scale(group_size), p.scale_dtype or p.dtype, p.scale_shape or shape, scales, p.scale_source)
        )
        if p.zero_point != "none":
            last = shape[0] * shape[1] - 1
            values = {
                "zeros": Values("zeros"),
                "ones": Values("constant", value=1.0),
                "one_nonzero": Values("one_hot", position=last, value=1.0),
            }[p.zero_point]
            tensors.append(TensorSpec(_zero_point(group_size), p.zero_point_dtype, shape, values, p.zero_point_source))
    return tensors


def _lookup(p: SingleTable, i: int, group_size: int, before: list[Step]) -> list[Step]:
    indices, name = f"indices{i}", f"lookup{i}"
    if p.indices_moved:
        moved = Apply(f"moved{i}", indices, "add", other="offset")
        still = replace(p, indices_moved=False)
        return [moved, *(_at(step, moved.name) for step in _lookup(still, i, group_size, before))]
    if p.dialect == "embedding_4bit":
        zero_point = "" if p.zero_point == "none" else _zero_point(group_size)
        output = p.output_dtype or p.dtype
        return [
            PackedLookup(name, "weight", _scale(group_size), indices, zero_point, p.qmin, p.qmax, output, p.weight_ops)
        ]
    table = "dq0" if p.share_dequantize else f"dq{i}"
    lookup = Lookup(name, table, indices, p.table_ops, p.padding_idx, p.scale_grad_by_freq, p.sparse, p.max_norm)
    known = any(s.name == table for s in before)
    return [lookup] if known else [_dequantize(p, table, group_size), lookup]


def _at(step: Step, indices: str) -> Step:
    return replace(step, indices=indices) if isinstance(step, Lookup | PackedLookup) else step


def _dequantize(p: SingleTable, name: str, group_size: int) -> Dequantize:
    if p.route == "torchao":
        block = (1, p.group_size or p.embed_dim)
        return Dequantize(name, "emb.qdata", "emb.scale", block, "emb.zero_point", output_dtype=p.dtype)
    return Dequantize(
        name,
        "weight",
        _scale(group_size),
        p.block_size or (1, group_size or p.embed_dim),
        "" if p.zero_point == "none" else _zero_point(group_size),
        p.qmin,
        p.qmax,
        p.weight_dtype,
        p.output_dtype or p.dtype,
        p.weight_ops,
        p.scale_ops,
        p.zero_point_ops,
    )


def _read_name(p: SingleTable, of: str, group_size: int) -> str:
    if of == "table":
        return "dq0"
    if p.route == "torchao":
        return {"weight": "emb.qdata", "scale": "emb.scale"}[of]
    return {"weight": "weight", "scale": _scale(group_size)}[of]


def _scale(group_size: int) -> str:
    return f"scale_g{group_size}"


def _zero_point(group_size: int) -> str:
    return f"zero_point_g{group_size}"
