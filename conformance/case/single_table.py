"""SingleTable: a program around one quantized table, from a few parameters.

A catalogue row states only what deviates from the control program, which fuses: one torchao-quantized
nn.Embedding, V=9, D=64, G=32, float32, one lookup with five int64 indices. The resolved ProgramSpec
is what a case carries; nothing but the catalogue knows templates.

Source: docs/contract.md sections 4 and 5.
"""

from dataclasses import dataclass

from reference.program.spec import (
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
    ``dialect``: "torchao" or "embedding_4bit". ``group_sizes`` gives each lookup its own grouping.
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
    padding_idx: int = -1
    sparse: bool = False
    scale_grad_by_freq: bool = False
    max_norm: float = 0.0
    linear: str = ""
    reads: tuple[str, ...] = ()
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
    if p.linear:
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
        linear: list[Step] = [_dequantize(p, "dq_linear", groupings[0]), Linear("linear", "dq_linear", "x")]
        steps = linear + steps if p.linear == "before" else steps + linear
    steps += [Read(f"read_{of}", _read_name(p, of, groupings[0])) for of in p.reads]
    return ProgramSpec(tuple(steps), tuple(tensors), tables, p.route, p.unwrap, p.strict)


def _index_tensors(p: SingleTable) -> list[TensorSpec]:
    high = max(p.vocab_size - 1, 0)
    return [
        TensorSpec(
            f"indices{i}",
            p.indices_dtype,
            p.indices_shape,
            Values("uniform", 41 + i, 0, high),
            p.indices_source,
            p.indices_dynamic,
        )
        for i in range(p.lookups)
    ]


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
