"""From an obligation that failed to a case that shows it: sizes from z3's model, run on the concrete executor.

A model is first sought among small sizes, so that the case can run anywhere. A failed obligation without a case that
is wrong when it is run is not a refutation.

Source: docs/contract.md section 7.
"""

from collections.abc import Iterator, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import z3

from conformance.case.case import Dispatch, Table, Variant
from conformance.case.operands import operands, table_values
from conformance.proofs.every_size.contract import Lookup, Prepack
from conformance.proofs.every_size.instance import Grid, wrong_lookup, wrong_prepack
from conformance.proofs.every_size.spirv.machine import TooLong
from conformance.proofs.every_size.spirv.module import Module, Unsupported
from conformance.proofs.every_size.spirv.terms import Term, z
from reference.program.spec import Values

Question = Dispatch | Table
#: How ``wrong`` begins where a value is wrong, and how it ends where the pipeline was given sizes as constants.
VALUES, KNOWN = ("out[", "word ["), " with sizes as constants"
_MOST_ELEMENTS, _MOST_ROWS, _LOCAL = 1 << 26, 1 << 17, (5, 2, 1)
#: V, D, G and indices where there is no model to go by.
_USUAL = (
    (9, 64, 8, (5,)), (17, 96, 12, (2, 3)), (3, 32, 4, (2, 2, 3)), (1, 32, 32, ()), (40, 128, 64, (2, 1, 5)),
    (25, 224, 28, (3, 7)), (16, 1024, 4, (9,)), (11, 160, 20, (5, 2, 2)),
)  # fmt: skip


def lookup_question(sizes: Lookup, model: Any, read: Sequence[Term], *, outside: bool) -> Dispatch | None:
    """The lookup of the sizes in a model, or None if it is too large; ``outside``: of any index, else in [0, V)."""
    names = ("m", "g", "V", "H", "C", "N")
    m, g, rows, h, c, n = (model.eval(z3.Int(name), model_completion=True).as_long() for name in names)
    looked_up = [model.eval(z(one), model_completion=True).as_long() for one in read]
    looked_up = [one for one in looked_up if outside or 0 <= one < rows]
    group = g if sizes.setting.any_group else 4 * g
    if rows * m * 32 > _MOST_ELEMENTS or n * c * h * m * 32 > _MOST_ELEMENTS or n * c * h > _MOST_ROWS:
        return None
    return dispatch(sizes.variant, rows, 32 * m, group, _shape(n, c, h), looked_up)


def usual_lookups(variant: Variant, *, outside: bool = True) -> Iterator[Dispatch]:
    """Small lookups of every rank, with an index outside the table or without."""
    for rows, columns, group, shape in _USUAL:
        yield dispatch(variant, rows, columns, group, shape, [])
        if outside:
            yield dispatch(variant, rows, columns, group, shape, [-1])


def prepack_question(sizes: Prepack, model: Any) -> Table | None:
    """The table of the sizes in a model; None where it is too large to run."""
    m, rows = (model.eval(z3.Int(name), model_completion=True).as_long() for name in ("m", "V"))
    return table(sizes.storage, rows, 32 * m) if rows * m * 32 <= _MOST_ELEMENTS else None


def usual_tables(storage: str) -> Iterator[Table]:
    """Small tables."""
    for rows, columns, _group, _shape in _USUAL:
        yield table(storage, rows, columns)


def dispatch(
    variant: Variant, rows: int, columns: int, group: int, shape: tuple[int, ...], read: Sequence[int]
) -> Dispatch:
    """A KERNEL question that looks up what ``read`` names, the last row and the first, and others."""
    count = int(np.prod(shape, dtype=np.int64))
    others = np.random.Generator(np.random.PCG64(rows)).integers(0, rows, count)
    wanted = [one for one in read if -(1 << 31) <= one < 1 << 31]
    places = np.resize(np.array([*wanted, rows - 1, 0], np.int64), count)
    indices = np.where(np.arange(count) % 3 == 2, others, places) if count > len(wanted) + 2 else places  # noqa: PLR2004 - every third is another
    literal = Values("literal", data=indices.astype("<i4").tobytes().hex())
    own = asdict(variant)
    return Dispatch(
        **own, vocab_size=rows, embed_dim=columns, group_size=group, indices_shape=shape, index_values=literal
    )


def table(storage: str, rows: int, columns: int) -> Table:
    """A PREPACK question."""
    kind = {"buffer": "device_buffer", "texture2d": "texture2d"}[storage]
    return Table(rows, columns, Values("uniform", 1, -8, 7), "blocks", kind)


def wrong(module: Module, question: Question, *, strides: bool) -> str:
    """What is wrong with the shader on that question, in one line; "" where nothing is."""
    try:
        for grid in _grids(question, strides=strides):
            if isinstance(question, Table):
                storage = "texture2d" if question.storage == "texture2d" else "buffer"
                found = wrong_prepack(module, storage, table_values(question), grid)
            else:
                found = wrong_lookup(module, question, operands(question), grid)
            if found:
                return found + (KNOWN if any(number > 2 for number in grid.constants) else "")  # noqa: PLR2004 - local size
    except TooLong as error:
        return f"does not end: {error}"
    except Unsupported:
        return ""
    return ""


def _grids(question: Question, *, strides: bool) -> Iterator[Grid]:
    """Grids as a host makes them, rounded up to the local size: one that covers the rows, one that has to stride."""
    if isinstance(question, Table):
        extent = (question.embed_dim // 8, -(-question.vocab_size // 8), 1)
    else:
        n, c, h = (1,) * (3 - len(question.indices_shape)) + question.indices_shape
        textured = question.io_storage == "texture3d"
        wide = question.output_dtype == "float16" and not textured
        columns = question.embed_dim // (8 if wide else 4)
        extent = (columns, h, n * c) if textured else (columns, n * c * h, 1)
        if not strides:
            extent = (question.embed_dim // 32, h, n * c)
    local = _LOCAL if strides or (isinstance(question, Dispatch) and question.io_storage == "texture3d") else (4, 1, 1)
    constants = dict(enumerate(local))
    yield Grid(_groups(extent, local), constants)
    if strides:
        yield Grid(_groups((extent[0], -(-extent[1] // 3), -(-extent[2] // 2)), local), constants)
    if strides and isinstance(question, Dispatch):
        known = {3: question.embed_dim, 4: question.group_size, 5: 1 if question.io_storage == "texture3d" else 3}
        yield Grid(_groups((extent[0], -(-extent[1] // 4), extent[2]), local), constants | known)


def _groups(extent: Sequence[int], local: Sequence[int]) -> tuple[int, int, int]:
    x, y, z_ = (max(1, -(-size // step)) for size, step in zip(extent, local, strict=True))
    return x, y, z_


def _shape(n: int, c: int, h: int) -> tuple[int, ...]:
    """Indices of the least rank with these sizes."""
    return (h,) if n == c == 1 else (c, h) if n == 1 else (n, c, h)


def describe(question: Question) -> dict[str, Any]:
    """The sizes of a counter-example, for a line."""
    names = ("vocab_size", "embed_dim", "group_size", "indices_shape")
    return {name: getattr(question, name) for name in names if hasattr(question, name)}
