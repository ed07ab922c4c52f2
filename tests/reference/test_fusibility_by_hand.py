"""Programs decided by hand, from the words of contract 5.3 to 5.5 alone, before the predicate saw them.

Each row: what is special, the clause it was decided by, the program, and the verdict on each lookup in
order: F it must fuse, R it must be refused.
"""

import pytest

from reference.program.fusibility import REASONS, Limits, violations
from reference.program.spec import (
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Read,
    TensorSpec,
    Values,
    validate,
)

SCALES, ZEROS = Values("signed_scales", 2), Values("zeros")
INDICES = TensorSpec("i", "int64", (2, 3), ZEROS, "input")


def fill(value: float) -> Values:
    return Values("constant", value=value)


def table(
    v: int, d: int, *, dtype: str = "int8", source: str = "parameter", values: Values | None = None, name: str = "w"
) -> TensorSpec:
    return TensorSpec(name, dtype, (v, d), values or Values("uniform", 1, -8, 7), source)


def scales(
    *shape: int, dtype: str = "float32", source: str = "buffer", values: Values = SCALES, name: str = "s"
) -> TensorSpec:
    return TensorSpec(name, dtype, shape, values, source)


def zero(
    *shape: int, dtype: str = "int8", source: str = "buffer", values: Values = ZEROS, name: str = "z"
) -> TensorSpec:
    return TensorSpec(name, dtype, shape, values, source)


def ids(*shape: int, dtype: str = "int64", source: str = "input", dynamic: tuple[int, ...] = ()) -> TensorSpec:
    return TensorSpec("i", dtype, shape, ZEROS, source, dynamic)


def dequantize(group: int, zero_point: str = "", name: str = "dq", **fields: object) -> Dequantize:
    return Dequantize(name, "w", "s", (1, group), zero_point, **fields)  # type: ignore[arg-type]  # checked by validate


def lookup(name: str = "out", of: str = "dq", **fields: object) -> Lookup:
    return Lookup(name, of, "i", **fields)  # type: ignore[arg-type]  # checked by validate


def program(*parts: object, route: str = "synthetic", unwrap: bool = False) -> ProgramSpec:
    """A program of its parts in any order; without indices of its own it takes int64 [2, 3] as input."""
    tensors = tuple(p for p in parts if isinstance(p, TensorSpec))
    tables = tuple(p for p in parts if isinstance(p, QuantizedTable))
    steps = tuple(p for p in parts if not isinstance(p, TensorSpec | QuantizedTable))
    if all(t.name != "i" for t in tensors):
        tensors += (INDICES,)
    return ProgramSpec(steps, tensors, tables, route=route, unwrap=unwrap)  # type: ignore[arg-type]  # validate tells


def one(v: int, d: int, group: int, *more: TensorSpec, zero_point: str = "", **fields: object) -> ProgramSpec:
    """The plainest program of a geometry, with fields of its dequantize changed."""
    return program(table(v, d), scales(v, d // group), *more, dequantize(group, zero_point, **fields), lookup())


def weighted(weight: TensorSpec, **fields: object) -> ProgramSpec:
    return program(weight, scales(8, 2), dequantize(32, **fields), lookup())


def scaled(scale: TensorSpec) -> ProgramSpec:
    return program(table(8, 64), scale, dequantize(32), lookup())


def pointed(zero_point: TensorSpec, **fields: object) -> ProgramSpec:
    return one(8, 64, 32, zero_point, zero_point="z", **fields)


def indexed(indices: TensorSpec) -> ProgramSpec:
    return program(table(8, 64), scales(8, 2), indices, dequantize(32), lookup())


def packed(weight: TensorSpec, scale: TensorSpec, *more: TensorSpec, **fields: object) -> ProgramSpec:
    return program(weight, scale, *more, PackedLookup("out", "w", "s", "i", **fields))  # type: ignore[arg-type]


def flat(v: int, half: int, **fields: object) -> TensorSpec:
    return table(v, half, dtype="uint8", values=Values("bits", 3), **fields)  # type: ignore[arg-type]


def quantized(
    dtype: str, group: int, *more: object, d: int = 64, route: str = "torchao", unwrap: bool = False
) -> ProgramSpec:
    emb = QuantizedTable("emb", 8, d, group, Values("weights", 1), dtype)
    dq = Dequantize("dq", "emb.qdata", "emb.scale", (1, group or d), "emb.zero_point", output_dtype=dtype)
    return program(emb, dq, lookup(), *more, route=route, unwrap=unwrap)


X = TensorSpec("x", "float32", (3, 64), Values("signed_scales", 5), "input")
G16 = Dequantize("dq16", "w", "s16", (1, 16))
G2 = Dequantize("dq2", "w", "s2", (1, 2))
S16, S2 = scales(8, 4, name="s16"), scales(8, 32, name="s2")
NONZERO_LAST = Values("one_hot", position=15, value=1)

ROWS = [
    # 5.3 "table int8 [V, D], a constant the program does not write to"
    ("persistent buffer", "5.3 table", weighted(table(8, 64, source="buffer")), "F"),
    ("non-persistent buffer", "5.3 table", weighted(table(8, 64, source="non_persistent")), "F"),
    ("lifted constant", "5.3 table", weighted(table(8, 64, source="lifted")), "F"),
    ("the caller passes the table", "5.4 receives as input", weighted(table(8, 64, source="input")), "R"),
    ("the program computes the table", "5.4 computes", weighted(table(8, 64, source="computed")), "R"),
    ("the program writes to the table", "5.4 writes to", weighted(table(8, 64, source="mutated")), "R"),
    ("int32 carrier of 4-bit values", "5.3 int8", weighted(table(8, 64, dtype="int32"), input_dtype="int32"), "R"),
    ("uint8 carrier, values 0 to 7", "5.3 int8", weighted(table(8, 64, dtype="uint8", values=fill(7)),
     input_dtype="uint8"), "R"),
    ("a table of rank 3", "5.3 [V, D]",
     program(TensorSpec("w", "int8", (8, 64, 1), ZEROS), scales(8, 2), dequantize(32), lookup()), "R"),
    # The text says: values within [-8, 7]; qmin = -8 and qmax = 7
    ("only the lowest value", "5.3 values", weighted(table(8, 64, values=fill(-8))), "F"),
    ("only the highest value", "5.3 values", weighted(table(8, 64, values=fill(7))), "F"),
    ("one 8 in the last row, which is never looked up", "5.3 values",
     weighted(table(8, 64, values=Values("one_hot", position=511, value=8))), "R"),
    ("one -9 in the middle", "5.3 values", weighted(table(8, 64, values=Values("one_hot", position=200, value=-9))),
     "R"),
    ("8-bit range declared over 4-bit values", "5.4 other qmin/qmax", one(8, 64, 32, qmin=-128, qmax=127), "R"),
    ("qmax 6", "5.4 other qmin/qmax", one(8, 64, 32, qmax=6), "R"),
    ("qmin -7, the symmetric range", "5.4 other qmin/qmax", one(8, 64, 32, qmin=-7), "R"),
    # The text says: block [1, G]; D % G == 0; G % 4 == 0; D >= 32 and D % 32 == 0; V >= 1
    ("smallest of all: V 1, D 32, G 4", "5.3 V, D, G", one(1, 32, 4), "F"),
    ("G = D, one scale a row", "5.3 block", one(9, 96, 96), "F"),
    ("G 12 divides 96 and is three times 4", "5.3 G % 4", one(7, 96, 12), "F"),
    ("G 2", "5.4 not a multiple of 4", one(8, 64, 2), "R"),
    ("G 6 divides 96", "5.4 not a multiple of 4", one(8, 96, 6), "R"),
    ("G 1", "5.4 not a multiple of 4", one(8, 64, 1), "R"),
    ("D 16 = G", "5.3 D >= 32", one(8, 16, 16), "R"),
    ("D 36, a multiple of 4 above 32", "5.3 D % 32", one(8, 36, 36), "R"),
    ("G 24 does not divide 64", "5.3 D % G", program(table(8, 64), scales(8, 2), dequantize(24), lookup()), "R"),
    ("G 128 above D", "5.3 D % G", program(table(8, 64), scales(8, 1), dequantize(128), lookup()), "R"),
    ("a block of two rows", "5.3 block [1, G]",
     program(table(8, 64), scales(4, 2), Dequantize("dq", "w", "s", (2, 32)), lookup()), "R"),
    ("no rows", "5.3 V >= 1", one(0, 64, 32), "R"),
    # The text says: scales constant, exactly [V, D/G], float16 or float32 (any values)
    ("float16 scales, float32 out", "5.3 scales", scaled(scales(8, 2, dtype="float16")), "F"),
    ("bfloat16 scales, float32 out", "5.3 bfloat16 scales", scaled(scales(8, 2, dtype="bfloat16")), "F"),
    ("float64 scales", "5.3 float16 or float32", scaled(scales(8, 2, dtype="float64")), "R"),
    ("every scale NaN", "5.3 any values", scaled(scales(8, 2, values=fill(float("nan")))), "F"),
    ("every scale -infinity", "5.3 any values", scaled(scales(8, 2, values=fill(float("-inf")))), "F"),
    ("every scale zero", "5.3 any values", scaled(scales(8, 2, values=ZEROS)), "F"),
    ("subnormal float16 scales", "5.3 any values", scaled(scales(8, 2, dtype="float16", values=fill(2.0**-24))), "F"),
    ("flat scales of V*D/G elements, as eager accepts", "5.4 another shape", scaled(scales(16)), "R"),
    ("scales [V, D/G, 1]", "5.4 another shape", scaled(scales(8, 2, 1)), "R"),
    ("scales [V] where G = D", "5.4 another shape", program(table(8, 64), scales(8), dequantize(64), lookup()), "R"),
    ("scales lifted", "5.3 scales constant", scaled(scales(8, 2, source="lifted")), "F"),
    ("scales passed by the caller", "5.4 receives as input", scaled(scales(8, 2, source="input")), "R"),
    ("scales computed", "5.4 computes", scaled(scales(8, 2, source="computed")), "R"),
    ("scales written to", "5.4 writes to", scaled(scales(8, 2, source="mutated")), "R"),
    # The text says: zero point absent or all zero, proven on the real values
    ("zero point int8 zeros", "5.3 zero point", pointed(zero(8, 2)), "F"),
    ("zero point float32 -0.0 everywhere", "5.3 all zero", pointed(zero(8, 2, dtype="float32", values=fill(-0.0))),
     "F"),
    ("zero point int64 zeros, flat", "5.3 all zero, any shape", pointed(zero(16, dtype="int64")), "F"),
    ("zero point bfloat16 zeros", "5.3 all zero", pointed(zero(8, 2, dtype="bfloat16")), "F"),
    ("zero point 1 in the last place", "5.4 non-zero", pointed(zero(8, 2, values=NONZERO_LAST)), "R"),
    ("zero point a tiny float64", "5.4 non-zero",
     pointed(zero(8, 2, dtype="float64", values=Values("one_hot", position=3, value=1e-300))), "R"),
    ("zero point a NaN", "5.4 non-zero", pointed(zero(8, 2, dtype="float32", values=fill(float("nan")))), "R"),
    ("zeros passed by the caller", "5.4 unprovable", pointed(zero(8, 2, source="input")), "R"),
    ("zeros computed", "5.4 unprovable", pointed(zero(8, 2, source="computed")), "R"),
    ("zeros that the program writes to", "5.4 writes to", pointed(zero(8, 2, source="mutated")), "R"),
    ("the all-zero scales are the zero point too", "5.3 all zero",
     program(table(8, 64), scales(8, 2, values=ZEROS), dequantize(32, "s"), lookup()), "F"),
    # The text says: output float32 or float16
    ("float16 out of float32 scales", "5.3 output", one(8, 64, 32, output_dtype="float16"), "F"),
    ("bfloat16 out", "5.3 output", one(8, 64, 32, output_dtype="bfloat16"), "F"),
    ("float64 out", "5.3 output", one(8, 64, 32, output_dtype="float64"), "R"),
    # The text says: indices int32 or int64, rank 0 to 3, static or dynamic, computed or given
    ("a scalar int32 index", "5.3 indices", indexed(ids(dtype="int32")), "F"),
    ("rank 3, two dimensions dynamic", "5.3 indices", indexed(ids(2, 3, 4, dynamic=(0, 2))), "F"),
    ("no indices at all: [0]", "5.3 indices", indexed(ids(0)), "F"),
    ("computed indices", "5.3 computed", indexed(ids(5, source="computed")), "F"),
    ("indices in a buffer that is written to", "5.3 computed or given", indexed(ids(5, source="mutated")), "F"),
    ("constant int32 indices", "5.3 indices", indexed(ids(4, dtype="int32", source="lifted")), "F"),
    ("rank 4, one element", "5.4 ranks above 3", indexed(ids(1, 1, 1, 1)), "R"),
    ("int16 indices", "5.3 int32 or int64", indexed(ids(4, dtype="int16")), "R"),
    # The text says: any padding_idx, sparse, scale_grad_by_freq; max_norm
    ("padding_idx the last row, sparse, scale_grad_by_freq", "5.3 any padding_idx",
     program(table(8, 64), scales(8, 2), dequantize(32), lookup(padding_idx=7, sparse=True,
     scale_grad_by_freq=True)), "F"),
    ("max_norm", "5.4 embedding_renorm", program(table(8, 64), scales(8, 2), dequantize(32), lookup(max_norm=2.0)),
     "R"),
    # The text says: between constant and dequantize only value-preserving identities (clone, no-op view)
    ("clones and no-op views of all three", "5.3 identities",
     pointed(zero(8, 2), weight_ops=("view", "clone"), scale_ops=("clone",), zero_point_ops=("view",)), "F"),
    ("table + 0", "5.3 only identities", one(8, 64, 32, weight_ops=("add_zero",)), "R"),
    ("table transposed twice", "5.3 only identities", one(8, 64, 32, weight_ops=("clone", "transpose_twice")), "R"),
    ("scales + 0", "5.3 only identities", one(8, 64, 32, scale_ops=("add_zero", "clone")), "R"),
    ("zeros + 0", "5.4 unprovable", pointed(zero(8, 2), zero_point_ops=("add_zero",)), "R"),
    ("a clone between dequantize and embedding", "5.3 only between constant and dequantize",
     program(table(8, 64), scales(8, 2), dequantize(32), lookup(table_ops=("clone",))), "R"),
    # the other dialect (4, 5.3)
    ("embedding_4bit, float16 scales, float32 out", "4 both dialects", packed(flat(9, 32), scales(9, 2,
     dtype="float16")), "F"),
    ("embedding_4bit, one scale a row as [V, 1]", "5.3 scales", packed(flat(9, 32), scales(9, 1)), "F"),
    ("embedding_4bit, scales [V]", "5.3 one group a row", packed(flat(9, 32), scales(9)), "F"),
    ("embedding_4bit, 16 bytes a row: D 32", "5.3 D", packed(flat(3, 16), scales(3, 8)), "F"),
    ("embedding_4bit, 8 bytes a row: D 16", "5.3 D >= 32", packed(flat(3, 8), scales(3, 1)), "R"),
    ("embedding_4bit, G 2", "5.4 not a multiple of 4", packed(flat(3, 16), scales(3, 16)), "R"),
    ("embedding_4bit, zero points all zero", "5.3 zero point", packed(flat(8, 32), scales(8, 2), zero(8, 2),
     zero_point="z"), "F"),
    ("embedding_4bit, one zero point not zero", "5.4 non-zero",
     packed(flat(8, 32), scales(8, 2), zero(8, 2, values=NONZERO_LAST), zero_point="z"), "R"),
    ("embedding_4bit, table written to", "5.4 writes to", packed(flat(8, 32, source="mutated"), scales(8, 2)), "R"),
    ("embedding_4bit, 0 to 15", "5.4 other qmin/qmax", packed(flat(8, 32), scales(8, 2), qmin=0, qmax=15), "R"),
    ("embedding_4bit, bfloat16 out", "5.3 output", packed(flat(8, 32), scales(8, 2),
     output_dtype="bfloat16"), "F"),
    # through torchao
    ("torchao per group", "4", quantized("float32", 16), "F"),
    ("torchao per axis", "4 PerAxis", quantized("float16", 0, unwrap=True), "F"),
    ("torchao on a bfloat16 table", "5.3 bfloat16", quantized("bfloat16", 32), "F"),
    ("torchao per group of 2", "5.4 not a multiple of 4", quantized("float32", 2), "R"),
    ("torchao, D 48", "5.3 D % 32", quantized("float32", 16, d=48), "R"),
    # 5.5 several uses: "every lookup that satisfies 5.3 fuses"
    ("tied lm_head after, with the tables unwrapped", "5.5", quantized("float32", 32, Linear("lin", "dq", "x"), X,
     unwrap=True), "F"),
    ("table, scales and dequantized table read by others", "5.5",
     program(table(8, 64), scales(8, 2), Read("a", "w"), Read("b", "s"), dequantize(32), Read("c", "dq"), lookup()),
     "F"),
    ("tied lm_head before the lookup", "5.5 in either order",
     program(table(8, 64), scales(8, 2), X, dequantize(32), Linear("lin", "dq", "x"), lookup()), "F"),
    ("three lookups into one dequantized table", "5.5",
     program(table(8, 64), scales(8, 2), dequantize(32), lookup("a"), lookup("b", padding_idx=0), lookup("c")), "FFF"),
    ("one table under G 32, 16 and 2", "5.5 several group sizes",
     program(table(8, 64), scales(8, 2), S16, S2, dequantize(32), G16, G2, lookup("a"), lookup("b", "dq2"),
     lookup("c", "dq16")),
     "FRF"),
    ("max_norm beside a plain lookup", "5.5 every lookup by itself",
     program(table(8, 64), scales(8, 2), dequantize(32), lookup("a", max_norm=1.0), lookup("b")), "RF"),
    ("zero and non-zero zero points over one table", "5.5 every lookup by itself",
     program(table(8, 64), scales(8, 2), zero(8, 2), zero(8, 2, values=fill(-3), name="y"), dequantize(32, "z"),
             dequantize(32, "y", name="odd"), lookup("a", "odd"), lookup("b")), "RF"),
    ("one lookup's scales are written to, the other's not", "5.5 every lookup by itself",
     program(table(8, 64), scales(8, 2), scales(8, 4, source="mutated", name="s16"), dequantize(32), G16, lookup("a",
     "dq16"),
             lookup("b")), "RF"),
    ("one table for a lookup of each output type", "5.5",
     program(table(8, 64), scales(8, 2), dequantize(32), dequantize(32, name="half", output_dtype="float16"),
             dequantize(32, name="brain", output_dtype="bfloat16"), lookup("a"), lookup("b", "half"), lookup("c",
             "brain")), "FFF"),
    ("a value out of range refuses every lookup of the table", "5.3 values",
     program(table(8, 64, values=fill(8)), scales(8, 2), S16, dequantize(32), G16, lookup("a"), lookup("b", "dq16")),
     "RR"),
]  # fmt: skip

#: 5.4 "a table beyond a limit that the caller gives": 16 rows of 64 columns are 2 * 16 blocks of 16 bytes, 512 in all.
LIMITS = [
    ("no limit", Limits(), "F"),
    ("the table is exactly the range", Limits(max_storage_buffer_range=512), "F"),
    ("the table is one byte beyond the range", Limits(max_storage_buffer_range=511), "R"),
    ("the block texture is exactly as wide as allowed", Limits(max_image_dimension_2d=16), "F"),
    ("the block texture is one texel too wide", Limits(max_image_dimension_2d=15), "R"),
]


@pytest.mark.parametrize(("clause", "spec", "verdicts"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_the_predicate_decides_as_the_text_does(clause: str, spec: ProgramSpec, verdicts: str) -> None:
    validate(spec)
    found = violations(spec)
    decided = "".join("R" if reasons else "F" for reasons in found.values())
    assert decided == verdicts, f"contract {clause}: {found}"


@pytest.mark.parametrize(("limits", "verdict"), [row[1:] for row in LIMITS], ids=[row[0] for row in LIMITS])
def test_limits_by_hand(limits: Limits, verdict: str) -> None:
    (reasons,) = violations(one(16, 64, 32), limits).values()
    assert ("R" if reasons else "F") == verdict, reasons
    assert reasons <= {"table_limit"}


def test_each_condition_alone_decides_a_row() -> None:
    """Without any one of its conditions the predicate would let a row through: none is there for nothing."""
    found = [reasons for _, _, spec, _ in ROWS for reasons in violations(spec).values()]
    found += [reasons for _, limits, _ in LIMITS for reasons in violations(one(16, 64, 32), limits).values()]
    alone = {next(iter(reasons)) for reasons in found if len(reasons) == 1}
    # Where G does not divide D, or a block spans rows, no valid scales are [V, D/G] either: these come together.
    paired = {"embed_dim_not_divisible_by_group", "block_size"}
    assert all(frozenset({reason, "scale_shape"}) in found for reason in paired)
    assert alone | paired == set(REASONS)


def test_the_table_is_one() -> None:
    """Forty rows at least, no two alike, both verdicts well represented."""
    assert len({row[0] for row in ROWS}) == len(ROWS) >= 40
    lookups = "".join(row[3] for row in ROWS)
    assert min(lookups.count("F"), lookups.count("R")) >= 0.4 * len(lookups)
