"""One lookup or prepacking of given sizes on the concrete executor, and what is wrong with it.

The counter-example of a refuted obligation becomes such an instance; so does a case of stage KERNEL, which is how the
executor is compared with devices.

Source: docs/contract.md sections 1, 2, 3 and 7.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from conformance.case.case import Variant
from conformance.case.operands import Operands
from conformance.proofs.every_size.spirv.concrete import Buffer, Dispatch, Image, run
from conformance.proofs.every_size.spirv.module import Module
from reference.q4_embedding_ref import embedding_q4gsw
from reference.table.layouts import linear_weight_to_blocks, pack_blocks, pack_flat, pack_linear_weight

Array = np.ndarray[Any, Any]
_POISON = 0x5A5A5A5A
_QUIET = {"float32": 0x7FC00000, "float16": 0x7E00}


@dataclass(frozen=True)
class Grid:
    """Work groups, and the specialization constants by number: 0 to 2 are the local size."""

    groups: tuple[int, int, int]
    constants: Mapping[int, int] = field(default_factory=dict)


def lookup(module: Module, variant: Variant, own: Operands, grid: Grid) -> tuple[Array, list[str]]:
    """Bit patterns [*indices, D] that the shader writes, and what it did that no shader may."""
    columns = own.values.shape[1]
    n, c, h = (1,) * (3 - own.indices.ndim) + own.indices.shape
    half = variant.output_dtype == "float16"
    textured = variant.io_storage == "texture3d"
    count = own.indices.size * columns
    out: Buffer | Image
    indices: Buffer | Image
    if textured:
        poison = np.full((n * c, h, columns // 4, 4), _POISON, np.uint32).view(np.float32)
        packed = np.zeros((n, c, 4 * -(-h // 4)), np.int32)
        packed[:, :, :h] = own.indices.reshape(n, c, h)
        out, indices = Image(poison.copy()), Image(packed.reshape(n, c, -1, 4))
    else:
        out = Buffer(np.full(count, _POISON & 0xFFFF if half else _POISON, np.uint16 if half else np.uint32))
        if half and not _stores_halves(module):
            out = Buffer(out.words.view(np.uint32))
        indices = Buffer(np.ascontiguousarray(own.indices.reshape(-1)).astype(np.int32))
    weight = pack_flat(own.values) if variant.weight_layout == "flat" else pack_blocks(own.values)
    words = np.ascontiguousarray(weight).reshape(-1).view(np.uint32)
    table = Image(weight[None].astype(np.int32)) if variant.weight_storage == "texture2d" else Buffer(words)
    scales = np.ascontiguousarray(own.scales).reshape(-1)
    resources: dict[int, Buffer | Image] = {
        0: out,
        1: indices,
        2: table,
        3: Buffer(scales.view(f"u{scales.itemsize}")),
        4: Buffer(np.array([columns, h, c, n], np.int32)),
    }
    push = (own.group_size, int(variant.weight_layout == "block"))
    dispatch = Dispatch(resources, push, grid.constants, grid.groups)
    run(module, dispatch)
    faults = [*dispatch.faults, *_written(dispatch)]
    if isinstance(out, Image):
        with np.errstate(over="ignore"):
            values = out.texels.astype(variant.output_dtype)
        bits = values.view(np.uint16 if half else np.uint32)
    else:
        bits = out.words.view(np.uint16 if half else np.uint32)
    return bits.reshape(*own.indices.shape, columns), faults


def wrong_lookup(module: Module, variant: Variant, own: Operands, grid: Grid) -> str:
    """The first thing that is wrong with a lookup, in one line; "" where nothing is."""
    got, faults = lookup(module, variant, own, grid)
    if faults:
        return faults[0]
    rows = own.values.shape[0]
    inside = (own.indices >= 0) & (own.indices < rows)
    safe = np.where(inside, own.indices, 0)
    right = embedding_q4gsw(pack_flat(own.values), own.scales, own.group_size, safe, output_dtype=variant.output_dtype)
    bits = np.where(inside[..., None], right.view(got.dtype), got.dtype.type(_QUIET[variant.output_dtype]))
    nan = np.isnan(np.where(inside[..., None], right, 0)) | ~inside[..., None]
    quiet = (got & got.dtype.type(_QUIET[variant.output_dtype])) == _QUIET[variant.output_dtype]
    bad = np.argwhere(np.where(nan, ~quiet, got != bits))
    if not bad.size:
        return ""
    at = tuple(bad[0])
    return f"out{[int(i) for i in at]} is {int(got[at]):#x}, not {int(bits[at]):#x} ({len(bad)} of {got.size} wrong)"


def wrong_prepack(module: Module, storage: str, values: Array, grid: Grid) -> str:
    """The first thing that is wrong with a prepacking, in one line; "" where nothing is."""
    rows, columns = values.shape
    packed = pack_linear_weight(values)
    blocks = linear_weight_to_blocks(packed)
    poison = np.full(blocks.shape, _POISON, np.int32)
    out: Buffer | Image = Image(poison[None].copy()) if storage == "texture2d" else Buffer(poison.reshape(-1).copy())
    source = Buffer(np.ascontiguousarray(packed).reshape(-1).view(np.uint32))
    push = (columns, blocks.shape[0], 1, 1, columns, rows)
    dispatch = Dispatch({0: out, 1: source}, push, grid.constants, grid.groups)
    run(module, dispatch)
    if faults := [*dispatch.faults, *_written(dispatch)]:
        return faults[0]
    got = (out.texels if isinstance(out, Image) else out.words).reshape(blocks.shape)
    bad = np.argwhere(got != blocks)
    if not bad.size:
        return ""
    at = tuple(bad[0])
    return f"word {[int(i) for i in at]} is {int(got[at]):#010x}, not {int(blocks[at]):#010x} ({len(bad)} wrong)"


def _written(dispatch: Dispatch) -> list[str]:
    for what, bad in (("never", dispatch.writes < 1), ("more than once", dispatch.writes > 1)):
        if bad.any():
            return [f"word or texel {int(np.argmax(bad))} of the output is written {what}"]
    return []


def _stores_halves(module: Module) -> bool:
    """Whether the output buffer is an array of float16, as ExecuTorch's is, and not of words."""
    array = module.type(module.variables[module.bound()[0]]).of[0].of[0]
    return array.of[0].lanes[0].width == 16  # noqa: PLR2004 - bits
