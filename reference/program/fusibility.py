"""Which lookups may become et_vk.embedding_q4gsw, judged on the ProgramSpec and never on a graph.

A lookup fuses exactly where its set of violated conditions is empty.

>>> from reference.program.spec import Dequantize, Lookup, ProgramSpec, TensorSpec, Values
>>> table = TensorSpec("q", "int8", (8, 32), Values("uniform", low=-8, high=7))
>>> scale = TensorSpec("s", "float32", (8, 2), Values("scales"))
>>> indices = TensorSpec("i", "int64", (3,), Values("uniform", low=0, high=7), source="input")
>>> steps = (Dequantize("dq", "q", "s", (1, 16)), Lookup("out", "dq", "i"))
>>> violations(ProgramSpec(steps, (table, scale, indices)))
{'out': frozenset()}
>>> asymmetric = (Dequantize("dq", "q", "s", (1, 16), qmin=0, qmax=15), Lookup("out", "dq", "i"))
>>> violations(ProgramSpec(asymmetric, (table, scale, indices)))
{'out': frozenset({'qmin_qmax'})}

Source: docs/contract.md sections 5.3 and 5.4.
"""

from dataclasses import dataclass, replace

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import numpy_dtype, to_float
from reference.program.spec import IDENTITY_OPS, PASSED, Lookup, PackedLookup, ProgramSpec, TensorSpec
from reference.program.values import tensor_values

#: The project's vocabulary for refusals; each is one condition of contract 5.3 that does not hold.
REASONS = (
    "weight_not_constant",  # an input, or computed: an op that is no identity stands before dequantize
    "weight_written",  # a buffer that the program writes to
    "weight_dtype",  # not int8 (embedding_4bit: not uint8), or dequantized as another type
    "weight_shape",  # not of rank 2
    "weight_values",  # a value outside [-8, 7]
    "qmin_qmax",  # not -8 and 7
    "block_size",  # not [1, G] with G >= 1
    "embed_dim_not_divisible_by_group",
    "group_size_not_multiple_of_4",
    "embed_dim_not_multiple_of_32",  # or less than 32
    "empty_table",  # no rows
    "scale_not_constant",
    "scale_written",
    "scale_dtype",  # neither float16, bfloat16 nor float32
    "scale_shape",  # not exactly [V, D/G]; embedding_4bit: nor [V], one group a row
    "zero_point_not_constant",
    "zero_point_written",
    "zero_point_nonzero",  # an element that is not zero; NaN is not, -0.0 is
    "output_dtype",  # neither float32, float16 nor bfloat16
    "indices_dtype",  # neither int32 nor int64
    "indices_rank",  # above 3
    "max_norm",  # embedding_renorm scales the rows that this lookup reads
    "table_ops",  # an op between dequantize and embedding, even an identity
    "table_limit",  # the packed table or its scales exceed a limit that the caller gives
)

BITS_4 = (-8, 7)
#: Of scales and results: bfloat16 scales widen exactly to float32, a bfloat16 result is one cast of a float32 one.
FUSED_DTYPES = frozenset({"float32", "float16", "bfloat16"})
MAX_INDICES_RANK = 3


@dataclass(frozen=True)
class Limits:
    """A device's limits; None is no limit.

    ``max_storage_buffer_range``: bytes of the packed table (in blocks of 8 rows), and of the scales.
    ``max_image_dimension_2d``: texels of the block texture, D/4 wide and ceil(V/8) high.
    """

    max_storage_buffer_range: int | None = None
    max_image_dimension_2d: int | None = None


def violations(spec: ProgramSpec, limits: Limits | None = None) -> dict[str, frozenset[str]]:
    """The conditions of contract 5.3 that each lookup violates; none means that it must be fused.

    Args:
        spec: a well-formed program (program_spec.validate).
        limits: what the caller says about the device.

    Returns:
        For each lookup step's name, in step order, a subset of REASONS.
    """
    contents = tensor_values(spec)
    by_lookup: dict[str, frozenset[str]] = {}
    for step in spec.lookups():
        if isinstance(step, PackedLookup):
            reasons = _packed(spec, step, contents, limits)
        else:
            reasons = _split(spec, step, contents, limits)
        by_lookup[step.name] = frozenset(reasons | _indices(spec.tensor(step.indices)))
    return by_lookup


def _split(spec: ProgramSpec, lookup: Lookup, contents: dict[str, Array], limits: Limits | None) -> set[str]:
    """torchao.dequantize_affine followed by aten.embedding."""
    dequantize = spec.dequantize(lookup.table)
    weight, scale = spec.tensor(dequantize.weight), spec.tensor(dequantize.scale)
    reasons = _constant("weight", weight, dequantize.weight_ops)
    reasons |= _constant("scale", scale, dequantize.scale_ops)
    reasons |= _scalars(dequantize.qmin, dequantize.qmax, dequantize.output_dtype)
    if lookup.table_ops:
        reasons.add("table_ops")
    if lookup.max_norm != 0:
        reasons.add("max_norm")
    if weight.dtype != "int8" or dequantize.input_dtype != "int8":
        reasons.add("weight_dtype")
    if _readable(weight, dequantize.weight_ops):
        values = to_float(contents[weight.name])
        if values.size and not ((values >= BITS_4[0]) & (values <= BITS_4[1])).all():
            reasons.add("weight_values")
    if dequantize.zero_point:
        zero_point = spec.tensor(dequantize.zero_point)
        reasons |= _zero_point(zero_point, dequantize.zero_point_ops, contents)
    block = dequantize.block_size
    if len(block) != 2 or block[0] != 1 or block[1] < 1:  # noqa: PLR2004 - [1, G]
        reasons.add("block_size")
    group_size = block[1] if len(block) == 2 else 0  # noqa: PLR2004 - [1, G]
    return reasons | _table(weight, 1, scale, group_size, limits)


def _packed(spec: ProgramSpec, lookup: PackedLookup, contents: dict[str, Array], limits: Limits | None) -> set[str]:
    """quantized_decomposed.embedding_4bit: two codes a byte, the group size implied by the scales' columns."""
    weight, scale = spec.tensor(lookup.weight), spec.tensor(lookup.scale)
    reasons = _constant("weight", weight, lookup.weight_ops)
    reasons |= _constant("scale", scale, lookup.scale_ops)
    reasons |= _scalars(lookup.qmin, lookup.qmax, lookup.output_dtype)
    if weight.dtype != "uint8":
        reasons.add("weight_dtype")
    if lookup.zero_point:
        reasons |= _zero_point(spec.tensor(lookup.zero_point), (), contents)
    embed_dim = 2 * weight.shape[-1] if weight.shape else 0
    if len(scale.shape) == 1:  # one group a row
        scale = replace(scale, shape=(*scale.shape, 1))
    groups = scale.shape[1] if len(scale.shape) == 2 else 0  # noqa: PLR2004 - [V, D/G]
    group_size = 0
    if not groups:
        reasons.add("scale_shape")
    elif embed_dim % groups:
        reasons |= {"embed_dim_not_divisible_by_group", "scale_shape"}
    else:
        group_size = embed_dim // groups
    return reasons | _table(weight, 2, scale, group_size, limits)


def _table(weight: TensorSpec, per_element: int, scale: TensorSpec, group_size: int, limits: Limits | None) -> set[str]:
    """Shapes: the table of ``per_element`` columns an element, the scales, and the group size (below 1: unknown)."""
    reasons: set[str] = set()
    if scale.dtype not in FUSED_DTYPES:
        reasons.add("scale_dtype")
    if group_size >= 1 and group_size % 4:
        reasons.add("group_size_not_multiple_of_4")
    if len(weight.shape) != 2:  # noqa: PLR2004 - [V, D]
        return reasons | {"weight_shape"}
    vocab_size, embed_dim = weight.shape[0], per_element * weight.shape[1]
    if embed_dim < 32 or embed_dim % 32:  # noqa: PLR2004 - contract 5.3
        reasons.add("embed_dim_not_multiple_of_32")
    if vocab_size < 1:
        reasons.add("empty_table")
    if group_size >= 1:
        if embed_dim % group_size:
            reasons |= {"embed_dim_not_divisible_by_group", "scale_shape"}  # no shape is [V, D/G] then
        elif scale.shape != (vocab_size, embed_dim // group_size):
            reasons.add("scale_shape")
    if limits and _exceeds(limits, vocab_size, embed_dim, scale):
        reasons.add("table_limit")
    return reasons


def _exceeds(limits: Limits, vocab_size: int, embed_dim: int, scale: TensorSpec) -> bool:
    """Whether blocks or scales pass a given limit."""
    block_rows, block_columns = -(-vocab_size // 8), -(-embed_dim // 4)
    wide = "float32" if scale.dtype == "bfloat16" else scale.dtype
    scale_bytes = int(np.prod(scale.shape, dtype=np.int64)) * numpy_dtype(wide).itemsize
    largest = max(block_rows * block_columns * 16, scale_bytes)
    by_range, by_extent = limits.max_storage_buffer_range, limits.max_image_dimension_2d
    return (by_range is not None and largest > by_range) or (
        by_extent is not None and max(block_rows, block_columns) > by_extent
    )


def _scalars(qmin: int, qmax: int, output_dtype: str) -> set[str]:
    reasons = set()
    if (qmin, qmax) != BITS_4:
        reasons.add("qmin_qmax")
    if output_dtype not in FUSED_DTYPES:
        reasons.add("output_dtype")
    return reasons


def _indices(indices: TensorSpec) -> set[str]:
    reasons = set()
    if indices.dtype not in {"int32", "int64"}:
        reasons.add("indices_dtype")
    if len(indices.shape) > MAX_INDICES_RANK:
        reasons.add("indices_rank")
    return reasons


def _zero_point(zero_point: TensorSpec, ops: tuple[str, ...], contents: dict[str, Array]) -> set[str]:
    reasons = _constant("zero_point", zero_point, ops)
    if _readable(zero_point, ops) and not (to_float(contents[zero_point.name]) == 0).all():
        reasons.add("zero_point_nonzero")
    return reasons


def _constant(role: str, tensor: TensorSpec, ops: tuple[str, ...]) -> set[str]:
    reasons = set()
    if tensor.source in PASSED or any(op not in IDENTITY_OPS for op in ops):
        reasons.add(f"{role}_not_constant")
    if tensor.source == "mutated":
        reasons.add(f"{role}_written")
    return reasons


def _readable(tensor: TensorSpec, ops: tuple[str, ...]) -> bool:
    """The program holds the tensor's data (for a buffer that it writes to: what it starts with)."""
    return tensor.source not in PASSED and all(op in IDENTITY_OPS for op in ops)
