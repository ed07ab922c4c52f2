"""The graph space: programs drawn choice by choice, as ProgramSpecs and never as graphs.

``program(pick)`` makes every decision through ``pick``, which chooses from a sequence whose first element
is the simplest; Hypothesis drives it (``programs()``). Each lookup is drawn from choices that keep it
fusible, and then up to two of ``DEFECTS`` are put into it, each of which breaks a condition of contract 5.3.

Source: docs/contract.md sections 4 and 5.
"""

from collections.abc import Callable, Sequence
from typing import Any

from hypothesis import strategies as st

from conformance.generate.tensors import Shelf, constant_ops, indices, scales, zero_point
from conformance.generate.tensors import weight as new_weight
from reference.program.spec import (
    IDENTITY_OPS,
    OPAQUE_OPS,
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Read,
    Step,
    Values,
)

Pick = Callable[[Sequence[Any]], Any]

#: What can be put into a lookup to break it, by its kind. The names are those of contract 5.4's subjects.
DEFECTS = {
    "split": (
        "weight_source",
        "weight_ops",
        "weight_dtype",
        "weight_dtype",  # twice, like others that have many values of their own
        "weight_values",
        "qrange",
        "qrange",
        "group_size",
        "group_size",
        "embed_dim",
        "embed_dim",
        "block_rows",
        "empty_table",
        "scale_source",
        "scale_ops",
        "scale_dtype",
        "scale_dtype",
        "scale_shape",
        "zero_point_source",
        "zero_point_ops",
        "zero_point_values",
        "output_dtype",
        "indices_rank",
        "table_ops",
        "max_norm",
    ),
    "quantized": ("group_size", "table_dtype", "indices_rank", "table_ops", "max_norm"),
    "packed": (
        "weight_source",
        "weight_ops",
        "qrange",
        "qrange",
        "group_size",
        "embed_dim",
        "embed_dim",
        "empty_table",
        "scale_source",
        "scale_ops",
        "scale_dtype",
        "scale_shape",
        "zero_point_source",
        "zero_point_values",
        "output_dtype",
        "indices_rank",
    ),
}
_GROUPS = (32, 4, 8, 12, 16, 20, 24, 48, 64, 96, 128)
_ODD_GROUPS = (2, 1, 3, 6)
_QRANGES = ((-7, 7), (-8, 6), (0, 15), (-128, 127), (-16, 15))


#: Bytes of a program: one a choice. Past the last one the simplest option is taken.
CHOICES = 192


def programs() -> st.SearchStrategy[ProgramSpec]:
    """A Hypothesis strategy over the graph space.

    It draws one string of bytes, a byte a choice: a hundred small draws would cost thirty times as much, and
    Hypothesis would repeat parts of one program in the next, so that a fifth of them would be duplicates.
    Zero is the simplest option. A failing program is best shrunk by ``conformance.generate.shrink``.
    """
    return st.binary(min_size=CHOICES, max_size=CHOICES).map(program_of)


def program_of(choices: bytes) -> ProgramSpec:
    """The program that a string of choices means.

    >>> len(program_of(b"").lookups())
    1
    """
    rest = iter(choices)
    return program(lambda options: options[next(rest, 0) * len(options) >> 8])


def program(pick: Pick) -> ProgramSpec:
    """Draw one program for the synthetic route; every choice goes through ``pick``."""
    draft = _Draft(pick)
    for _ in range(pick((1, 2, 1, 3, 2, 1))):
        draft.lookup()
    for _ in range(pick((0, 1, 0, 0))):
        draft.linear()
    for _ in range(pick((0, 1, 0, 2, 1))):
        draft.read()
    return ProgramSpec(tuple(draft.steps), tuple(draft.shelf.tensors), tuple(draft.tables))


class _Draft:
    """The steps so far, and what later ones may share."""

    def __init__(self, pick: Pick) -> None:
        self.pick = pick
        self.shelf = Shelf(pick)
        self.steps: list[Step] = []
        self.tables: list[QuantizedTable] = []

    def lookup(self) -> None:
        """Append a lookup, with the dequantize step that it needs unless it shares one."""
        kind = self.pick(("split", "split", "split", "split", "quantized", "packed"))
        defects = {self.pick(DEFECTS[kind]) for _ in range(self.pick((0, 1, 0, 1, 2)))}
        if kind == "packed":
            self.packed(defects)
            return
        known = [s for s in self.steps if isinstance(s, Dequantize)]
        if known and self.pick((False, True, False)):
            dequantize = self.pick(known)
        else:
            dequantize = self.quantized(defects) if kind == "quantized" else self.dequantize(defects)
            self.steps.append(dequantize)
        rows = self.rows(dequantize)
        table_ops = (self.pick(IDENTITY_OPS + OPAQUE_OPS),) if "table_ops" in defects else ()
        self.steps.append(
            Lookup(
                self.name("lookup"),
                dequantize.name,
                indices(self.shelf, rows, deep="indices_rank" in defects),
                table_ops,
                self.pick((-1, -1, 0, rows - 1)),
                self.pick((False, False, False, True)),
                self.pick((False, False, False, True)),
                self.pick((1.0, 0.25)) if "max_norm" in defects else 0.0,
            )
        )

    def dequantize(self, defects: set[str]) -> Dequantize:
        """A torchao.dequantize_affine step; its tensors are new or shared."""
        pick = self.pick
        weight = new_weight(self.shelf, defects)
        rows, columns = weight.shape
        group = self.group(columns, defects)
        block = (max(rows, 1), group) if "block_rows" in defects else (1, group)
        shape = (rows // block[0] if rows else 0, columns // group)
        qmin, qmax = pick(_QRANGES) if "qrange" in defects else (-8, 7)
        if weight.dtype == "uint8":  # torchao refuses bounds that the carrier does not hold
            qmin, qmax = 0, 15
        return Dequantize(
            self.name("dq"),
            weight.name,
            scales(self.shelf, shape, defects).name,
            block,
            zero_point(self.shelf, shape, defects),
            qmin,
            qmax,
            weight.dtype,
            "bfloat16" if "output_dtype" in defects else pick(("float32", "float32", "float16")),
            constant_ops(pick, opaque="weight_ops" in defects),
            constant_ops(pick, opaque="scale_ops" in defects),
            constant_ops(pick, opaque="zero_point_ops" in defects),
        )

    def quantized(self, defects: set[str]) -> Dequantize:
        """What quantizing an nn.Embedding with torchao gives; the table is new, or one drawn before."""
        pick = self.pick
        if self.tables and pick((False, True)):
            table = pick(self.tables)
        else:
            columns = pick((64, 32, 96))
            group = pick((6, 3, 2)) if "group_size" in defects else pick((32, 0, 4, 8, 16))
            columns = 96 if "group_size" in defects else columns
            dtype = "bfloat16" if "table_dtype" in defects else pick(("float32", "float32", "float16"))
            values = Values("weights", pick(range(8)))
            table = QuantizedTable(f"emb{len(self.tables)}", pick((9, 1, 8, 33)), columns, group, values, dtype)
            self.tables.append(table)
        block = (1, table.group_size or table.embed_dim)
        parts = (f"{table.name}.qdata", f"{table.name}.scale", block, f"{table.name}.zero_point")
        return Dequantize(self.name("dq"), *parts, output_dtype=table.dtype)

    def packed(self, defects: set[str]) -> None:
        """Append a quantized_decomposed.embedding_4bit."""
        pick = self.pick
        weight = new_weight(self.shelf, defects, packed=True)
        rows, columns = weight.shape[0], 2 * weight.shape[1]
        shape = (rows, columns // self.group(columns, defects))
        flat_scales = "scale_shape" in defects
        scale = scales(self.shelf, (rows,) if flat_scales else shape, defects - {"scale_shape"}, packed=True)
        zero = ""
        if pick((False, True)) or any(d.startswith("zero_point") for d in defects):
            zero = zero_point(self.shelf, scale.shape, defects, dtype=scale.dtype)  # its eager form wants equal dtypes
        qmin, qmax = pick(_QRANGES) if "qrange" in defects else (-8, 7)
        self.steps.append(
            PackedLookup(
                self.name("lookup"),
                weight.name,
                scale.name,
                indices(self.shelf, rows, deep="indices_rank" in defects),
                zero,
                qmin,
                qmax,
                "bfloat16" if "output_dtype" in defects else pick(("float32", "float16")),
                constant_ops(pick, opaque="weight_ops" in defects),
                constant_ops(pick, opaque="scale_ops" in defects),
            )
        )

    def linear(self) -> None:
        """Put a tied linear before or after everything else, on a dequantized table of its own or a lookup's."""
        known = [s for s in self.steps if isinstance(s, Dequantize)]
        if not known:
            return
        twin = self.pick(known)
        dtype, columns = twin.output_dtype, self.shape(twin)[1]
        x = self.shelf.add("x", dtype, (2, columns), Values("weights", self.pick(range(4))), "input")
        if self.pick((True, False)):
            own = Dequantize(**{**vars(twin), "name": self.name("dq")})
            pair: list[Step] = [own, Linear(self.name("linear"), own.name, x.name)]
            self.steps = pair + self.steps if self.pick((False, True)) else self.steps + pair
        else:
            at = self.steps.index(twin) + 1
            at = at if self.pick((False, True)) else len(self.steps)
            self.steps.insert(at, Linear(self.name("linear"), twin.name, x.name))

    def read(self) -> None:
        """Append another consumer of anything that there is."""
        made = [s.name for s in self.steps if isinstance(s, Dequantize)]
        of = self.pick(made + [t.name for t in self.shelf.tensors] + [f"{t.name}.qdata" for t in self.tables])
        self.steps.append(Read(self.name("read"), of))

    def group(self, columns: int, defects: set[str]) -> int:
        """A group size that divides the columns; with the defect, one that is no multiple of 4."""
        sizes = _ODD_GROUPS if "group_size" in defects else _GROUPS
        fitting = [g for g in sizes if columns % g == 0] or [columns]
        return int(self.pick(fitting))

    def shape(self, dequantize: Dequantize) -> tuple[int, ...]:
        """The shape of a dequantized table."""
        return ProgramSpec((), tuple(self.shelf.tensors), tuple(self.tables)).tensor(dequantize.weight).shape

    def rows(self, dequantize: Dequantize) -> int:
        """The rows of a dequantized table."""
        return self.shape(dequantize)[0]

    def name(self, kind: str) -> str:
        """The next name of a step of that kind."""
        return f"{kind}{sum(s.name.startswith(kind) for s in self.steps)}"
