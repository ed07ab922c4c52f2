"""What the original program computes, bit for bit: the oracle of every rewritten one.

>>> from reference.program.spec import TensorSpec, Values
>>> table = TensorSpec("q", "int8", (2, 4), Values("ramp", low=-8, high=-1))
>>> scale = TensorSpec("s", "float32", (2, 2), Values("constant", value=0.5))
>>> indices = TensorSpec("i", "int64", (1,), Values("constant", value=1), source="input")
>>> steps = (Dequantize("dq", "q", "s", (1, 2)), Lookup("out", "dq", "i"), Read("raw", "q"))
>>> results = evaluate(ProgramSpec(steps, (table, scale, indices)))
>>> results["out"].tolist(), results["raw"].tolist()
([[-2.0, -1.5, -1.0, -0.5]], [[-8, -7, -6, -5], [-4, -3, -2, -1]])

Source: docs/contract.md sections 2, 4 and 5.7.
"""

from dataclasses import replace

import numpy as np

from reference import Array
from reference.arithmetic.bfloat16 import BFLOAT16, FLOAT_DTYPES, cast_float, dtype_name, to_float
from reference.program.apply import INEXACT, apply_exactly
from reference.program.spec import (
    Apply,
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    Read,
    Step,
    TensorSpec,
    Values,
)
from reference.program.values import tensor_values
from reference.q4_embedding_ref import check_indices
from reference.table.dequantize import dequantize_affine
from reference.table.layouts import unpack_flat


def evaluate(spec: ProgramSpec) -> dict[str, Array]:
    """Run a program on the host, every rounding to nearest even.

    A lookup of torchao's form has eager torchao's bits. One of embedding_4bit has section 2's (with a zero point: of
    ExecuTorch's CPU kernel, which subtracts it in float32). A "mutated" buffer is read as it was before the write.

    Args:
        spec: a well-formed program (program_spec.validate) with indices inside their tables.

    Returns:
        For every Lookup, PackedLookup, Apply and Read step's name an array of its dtype (BFLOAT16 for bfloat16). A
        Linear has no entry: contract 3.6 judges it by a bound. Neither has a lookup with ``max_norm``, which scales
        rows of a copy: nothing in the contract depends on the order in which the norm is summed; nor has a norm, nor
        what is computed from such a step.

    Raises:
        ValueError: a tensor's pattern cannot fill it, or shapes do not fit.
        IndexError: an index is outside its table.
    """
    tensors = tensor_values(spec)
    for tensor in spec.tensors:
        if tensor.source == "computed":
            tensors[tensor.name] = _add_zero(tensors[tensor.name])
    tables: dict[str, Array] = {}
    outputs: dict[str, Array] = {}
    for step in spec.steps:
        match step:
            case Dequantize():
                tables[step.name] = _dequantize(step, tensors)
            case Lookup() if step.max_norm == 0:
                rows = _through(step.table_ops, tables[step.table])
                outputs[step.name] = _gather(rows, tensors[step.indices])
            case PackedLookup():
                outputs[step.name] = packed_lookup(
                    _through(step.weight_ops, tensors[step.weight]),
                    _through(step.scale_ops, tensors[step.scale]),
                    tensors[step.zero_point] if step.zero_point else None,
                    tensors[step.indices],
                    step.output_dtype,
                )
            case Read():
                outputs[step.name] = (tensors | tables)[step.of].copy()
            case Apply() if step.function not in INEXACT and _known(step, tensors | outputs):
                read = tensors | outputs
                outputs[step.name] = apply_exactly(step, read[step.of], read.get(step.other))
            case Lookup() | Linear() | Apply():
                pass
    return outputs


def whole_tables(spec: ProgramSpec) -> dict[str, Array]:
    """What each lookup without ``max_norm`` would return for every row of its table: [V, D], by its name."""
    steps: list[Step] = [s for s in spec.steps if isinstance(s, Dequantize)]
    rows = []
    for step in spec.lookups():
        weight = spec.tensor(step.weight if isinstance(step, PackedLookup) else spec.dequantize(step.table).weight)
        if isinstance(step, PackedLookup) or not step.max_norm:
            size = weight.shape[0] if weight.shape else 0
            every = Values("ramp", high=max(size - 1, 0))
            rows.append(TensorSpec(f"{step.name} rows", "int64", (size,), every))
            steps.append(replace(step, indices=rows[-1].name))
    return evaluate(replace(spec, steps=tuple(steps), tensors=(*spec.tensors, *rows)))


def _known(step: Apply, values: dict[str, Array]) -> bool:
    return step.of in values and (not step.other or step.other in values)


def written(spec: ProgramSpec) -> dict[str, Array]:
    """What the program leaves in the tensors that it writes to: each one negated, by name.

    >>> table = TensorSpec("q", "int8", (3,), Values("ramp", low=-1, high=1), source="mutated")
    >>> written(ProgramSpec((Read("r", "q"),), (table,)))["q"].tolist()
    [1, 0, -1]
    """
    values = tensor_values(spec)
    names = [t.name for t in spec.tensors if t.source in {"mutated", "mutated_input"}]
    return {name: _negated(values[name]) for name in names}


def second_call(spec: ProgramSpec) -> ProgramSpec | None:
    """The program as the call after the first finds it; None where it keeps nothing that a call could see.

    Indices that the program writes to are outside their table then.
    """
    looked_up = {step.indices for step in spec.lookups()}
    kept = {name: array for name, array in written(spec).items() if spec.tensor(name).source == "mutated"}
    if not kept or looked_up & set(kept):
        return None

    def found(tensor: TensorSpec) -> TensorSpec:
        if tensor.name not in kept:
            return tensor
        return replace(tensor, values=Values("literal", data=kept[tensor.name].tobytes().hex()))

    return replace(spec, tensors=tuple(found(tensor) for tensor in spec.tensors))


def _negated(array: Array) -> Array:
    if array.dtype == BFLOAT16:
        return (array["bits"] ^ np.uint16(0x8000)).view(BFLOAT16)
    return np.negative(array)


def packed_lookup(weight: Array, scales: Array, zero_point: Array | None, indices: Array, output_dtype: str) -> Array:
    """quantized_decomposed.embedding_4bit as ExecuTorch's CPU kernel computes it: in float32, rounded once, then cast.

    Args:
        weight: uint8 [V, D/2], flat layout.
        scales: a float dtype, [V, D/G], or [V] for one a row.
        zero_point: None, or the same shape as the scales.
        indices: int32 or int64, any shape, each in [0, V).
        output_dtype: "float32", "float16" or "bfloat16".

    Returns:
        ``indices.shape + [D]`` of ``output_dtype``.

    Raises:
        ValueError: the scales' columns do not divide D, or indices of another dtype.
        IndexError: an index is outside [0, V).
    """
    return _gather(rows_of_values(unpack_flat(weight), scales, zero_point, output_dtype), indices)


def rows_of_values(values: Array, scales: Array, zero_point: Array | None, output_dtype: str) -> Array:
    """The whole table [V, D] that ExecuTorch's CPU kernels of quantized embeddings read from values of any width.

    Args and errors as ``packed_lookup``, but ``values``: integers [V, D].
    """
    vocab_size, embed_dim = values.shape
    per_row = np.reshape(scales, (vocab_size, -1)) if scales.size else np.zeros((vocab_size, 1), np.float32)
    groups = per_row.shape[1]
    if embed_dim % groups:
        raise ValueError(f"scales: {groups} columns do not divide embed_dim {embed_dim}")
    grouped = values.reshape(vocab_size, groups, embed_dim // groups).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):
        if zero_point is not None:
            grouped = grouped - to_float(zero_point).astype(np.float32).reshape(vocab_size, groups, 1)
        product = grouped * to_float(per_row).astype(np.float32)[:, :, None]
    return cast_float(product.reshape(vocab_size, embed_dim), output_dtype)


def _dequantize(step: Dequantize, tensors: dict[str, Array]) -> Array:
    return dequantize_affine(
        _through(step.weight_ops, tensors[step.weight]),
        step.block_size,
        _through(step.scale_ops, tensors[step.scale]),
        _through(step.zero_point_ops, tensors[step.zero_point]) if step.zero_point else None,
        step.output_dtype,
    )


def _gather(table: Array, indices: Array) -> Array:
    check_indices(indices, table.shape[0])
    return table[indices]


def _through(ops: tuple[str, ...], array: Array) -> Array:
    """Apply a chain of ops that keep every value; adding zero turns -0.0 into 0.0."""
    return _add_zero(array) if "add_zero" in ops else array


def _add_zero(array: Array) -> Array:
    """``array + 0`` in the array's own dtype."""
    if dtype_name(array) not in FLOAT_DTYPES:
        return array
    with np.errstate(invalid="ignore"):  # a signalling NaN becomes quiet
        total = to_float(array) + to_float(array).dtype.type(0)
    return cast_float(total, "bfloat16") if array.dtype == BFLOAT16 else total
