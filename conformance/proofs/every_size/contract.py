"""What the contract says of a lookup and of a prepacking, in terms: sizes, limits, what is bound, who reads what.

Sizes are variables. D is 32*m, G is 4*g (or g, where a group may have any size), D = G*ng, and V rows. Everything that
is assumed about them is in ``facts``; docs/proofs.md lists it in words.

Source: docs/contract.md sections 1, 2, 5.3 and 7.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import z3

from conformance.case.case import Variant
from conformance.proofs.every_size.spirv import terms
from conformance.proofs.every_size.spirv.symbolic import Environment, Real
from conformance.proofs.every_size.spirv.terms import Term, atom, define, quotient, remainder, variable, z

_INT, _BITS32 = z3.IntSort(), z3.BitVecSort(32)
#: The most bytes a storage buffer can have (maxStorageBufferRange is a 32-bit number), texels a 2D and a 3D image a
#: side, invocations of a grid an axis, and how far a grid that is rounded up to a local size exceeds what it covers.
BYTES, FLAT_TEXELS, TEXELS, REACH, ROUNDED = 1 << 32, 1 << 15, 1 << 14, 1 << 30, 1 << 10
_HALF, _WORD = 2, 4
#: Where the code of a column lies in its word: shift by column modulo 8.
_FLAT_SHIFTS = (4, 0, 12, 8, 20, 16, 28, 24)


@dataclass(frozen=True)
class Setting:
    """How the shader is run: the grid's rule, and which sizes the pipeline is given as constants.

    ``strides``: the grid covers the columns and any part of the rows, as ours does; else one invocation a row, rounded
    up, and 32 columns each, as ExecuTorch's runtime dispatches (contract 7.2).
    """

    strides: bool = True
    known_dim: bool = False
    known_group: bool = False
    known_rows: bool = False
    any_group: bool = False

    @property
    def name(self) -> str:
        """A short name."""
        known = [word for word, on in (("D", self.known_dim), ("G", self.known_group), ("rows", self.known_rows)) if on]
        grid = "striding" if self.strides else "covering"
        return " ".join([grid, *(["constants", *known] if known else []), *(["any-G"] if self.any_group else [])])


#: m, g, the groups of a row, C, N and how far the grid reaches over rows and planes, of small instances.
_SMALL = (
    (1, 2, 4, 1, 1, 3), (1, 1, 8, 2, 1, 2), (2, 4, 4, 1, 2, 3), (1, 8, 1, 3, 2, 2), (3, 2, 12, 2, 3, 5),
    (1, 4, 2, 1, 1, 40), (32, 8, 32, 1, 1, 7), (7, 7, 8, 2, 1, 3),
)  # fmt: skip


def instances(names: Sequence[str]) -> list[list[tuple[Any, Any]]]:
    """Small sizes for those of the variables that a problem has, and what follows for products."""
    found: list[dict[str, Any]] = []
    for m, g, groups, channels, batch, reach in _SMALL:
        own: dict[str, Any] = {"m": m, "g": g, "ng": groups, "C": channels, "N": batch, "planes": channels * batch}
        own |= {"Ry": reach, "Rz": reach, "Rx": 64 * m, "each": 2}
        found.append(own)
    # Any row length of a table of one row; any number of planes of the shortest rows.
    one = {"V": 1, "C": 1, "N": 1, "planes": 1, "Ry": 3, "Rz": 1, "each": 2}
    found += [{"g": g, "ng": 8 // g * z3.Int("m"), **one} for g in (1, 2, 8)]
    row = {"m": 1, "g": 2, "ng": 4, "Ry": 4, "Rz": 3, "each": 1}
    found += [{**row, "N": 1, "planes": z3.Int("C")}, {**row, "C": 1, "planes": z3.Int("N")}]
    return [
        [
            (z3.Int(name), z3.IntVal(value) if isinstance(value, int) else value)
            for name, value in own.items()
            if name in names
        ]
        for own in found
    ]


class Lookup:
    """A lookup of any size in one variant."""

    sizes = ("m", "g", "ng", "V", "C", "N", "planes", "Rx", "Ry", "Rz", "each")

    def __init__(self, variant: Variant, setting: Setting) -> None:
        terms.forget()
        self.variant, self.setting = variant, setting
        m, g, self.groups, self.vocab_size = (variable(name) for name in ("m", "g", "ng", "V"))
        self.embed_dim = 32 * m
        self.group_size: Term = g if setting.any_group else 4 * g
        self.height, self.channels, self.batch = (variable(name) for name in ("H", "C", "N"))
        self.identity = tuple(variable(name) for name in ("gx", "gy", "gz"))
        self.reach = tuple(terms.name((f"l{axis}", f"n{axis}"), f"R{axis}") for axis in "xyz")
        self.planes = terms.name(("C", "N"), "planes")
        terms.name(("H", "planes"), "places")
        self.places = terms.name(("C", "H", "N"), "places")
        self.rows_each: Term = variable("each") if setting.known_rows else 1
        self.textured = variant.io_storage == "texture3d"
        self.half = variant.output_dtype == "float16"
        per_scale = _HALF if variant.scale_dtype == "float16" else _WORD
        self.blocks = quotient(self.vocab_size + 7, 8)
        positive = [m, g, self.groups, self.vocab_size, self.height, self.channels, self.batch]
        sized = self.vocab_size * self.groups * per_scale
        self.facts: list[Any] = [
            *(z(size) >= 1 for size in positive),
            z(self.planes) == z3.Int("C") * z3.Int("N"),
            z(self.places) == z3.Int("H") * z(self.planes),
            z(self.embed_dim) == z(self.group_size) * z(self.groups),
            z(sized) < BYTES,
            *(z3.And(z(at) >= 0, z(at) < z(span)) for at, span in zip(self.identity, self.reach, strict=True)),
            *(z3.And(z(span) >= 1, z(span) <= REACH) for span in self.reach),
            # The reach stands for the product of these in all terms.
            *(z3.Int(f"{kind}{axis}") >= 1 for kind in "ln" for axis in "xyz"),
        ]
        if setting.known_rows:
            self.facts += [z(self.rows_each) >= 1, z(self.reach[1] * self.rows_each) <= REACH]
        self._limits()
        define(self.embed_dim, self.group_size, self.groups)
        self.environment = self._environment()

    def _limits(self) -> None:
        """What a device's limits say about the sizes."""
        out = _HALF if self.half else _WORD
        if self.textured:
            self.facts += [z(size) <= TEXELS for size in (quotient(self.embed_dim, 4), self.height, self.planes)]
        else:
            self.facts += [z(self.places * self.embed_dim * out) < BYTES, z(self.places * _WORD) < BYTES]
        if self.variant.weight_storage == "texture2d":
            self.facts += [z(size) <= FLAT_TEXELS for size in (quotient(self.embed_dim, 4), self.blocks)]
        else:
            self.facts.append(z(self.weight_words * _WORD) < BYTES)
        if not self.setting.strides:
            chunks = quotient(self.embed_dim, 32)
            covered = zip((chunks, self.height, self.planes), self.reach, strict=True)
            self.facts += [z3.And(z(span) >= z(size), z(span) < z(size) + ROUNDED) for size, span in covered]
            self.facts.append(z(self.reach[1] * self.reach[2]) <= REACH)

    @property
    def weight_words(self) -> Term:
        """Words of the weight buffer."""
        if self.variant.weight_layout == "flat":
            return self.vocab_size * quotient(self.embed_dim, 8)
        return self.blocks * self.embed_dim

    def _environment(self) -> Environment:
        weight = z3.Function("weight", _INT, _BITS32)
        texel = z3.Function("weight_texel", _INT, _INT, _INT, _BITS32)
        texture = self.variant.weight_storage == "texture2d"
        read = (lambda x, y, lane: texel(z(x), z(y), z(lane))) if texture else (lambda at: weight(z(at)))
        self.word: Callable[..., Any] = read
        width = 16 if self.variant.scale_dtype == "float16" else 32
        return Environment(
            self.identity,
            tuple(variable(f"n{axis}") for axis in "xyz"),
            (self.embed_dim, self.height, self.channels, self.batch),
            (self.group_size, int(self.variant.weight_layout == "block")),
            {3: self.vocab_size * self.groups},
            {1: self.index_read, 2: self.word, 3: lambda at: Real("load", (at,), width)},
        )

    def index_read(self, *at: Term) -> Term:
        """What a read of the indices gives: of a buffer's element, or of a texel's lane."""
        if self.textured:
            return atom(z3.Function("index_texel", *(_INT,) * 5)(*(z(one) for one in at)))
        return atom(z3.Function("index", _INT, _INT)(z(at[0])))

    def specialization(self) -> Mapping[int, Term]:
        """The pipeline's constants: local size, and what is known of D, G and the rows an invocation."""
        known: dict[int, Term] = {axis: variable(f"l{name}") for axis, name in enumerate("xyz")}
        if self.setting.known_dim:
            known[3] = self.embed_dim
        if self.setting.known_group:
            known[4] = self.group_size
        if self.setting.known_rows:
            known[5] = self.rows_each
        return known

    def index_place(self, row: Term, plane: Term) -> tuple[Term, ...]:
        """Where the index of an output row is (contract 7.1); of buffers the row's number is all."""
        if not self.textured:
            return (row,)
        column, lane = quotient(row, 4), remainder(row, 4)
        return column, remainder(plane, self.channels), quotient(plane, self.channels), lane

    def code(self, index: Term, column: Term, per_invocation: int) -> tuple[tuple[Term, ...], Any]:
        """Where the word of a code is, and the code's value as 32 bits (contract 1).

        ``per_invocation`` divides a column's part that is not constant, which rules out places in the word.
        """
        if self.variant.weight_layout == "flat":
            at: tuple[Term, ...] = (index * quotient(self.embed_dim, 8) + quotient(column, 8),)
            inside = remainder(column, 8)
            step = min(per_invocation, 8)
            offset = column_offset(column)
            choices = [(place, shift) for place, shift in enumerate(_FLAT_SHIFTS) if place % step == offset % step]
            return at, _chosen(self.word(*at), inside, choices)
        block, four = quotient(index, 8), quotient(column, 4)
        word, byte = remainder(index, 4), column_offset(column) % 4
        if self.variant.weight_storage == "texture2d":
            at = (four, block, word)
        else:
            at = ((block * quotient(self.embed_dim, 4) + four) * 4 + word,)
        high = remainder(quotient(index, 4), 2)
        return at, _chosen(self.word(*at), high, [(0, 8 * byte), (1, 8 * byte + 4)])

    def scale(self, index: Term, column: Term) -> Term:
        """The number of the scale of a column."""
        return index * self.groups + quotient(column, self.group_size)


class Prepack:
    """A prepacking of any size into a buffer or a texture."""

    sizes = ("m", "Rx", "Ry")

    def __init__(self, storage: str, setting: Setting) -> None:
        terms.forget()
        self.storage, self.setting = storage, setting
        m, self.vocab_size = variable("m"), variable("V")
        self.embed_dim = 32 * m
        self.identity = tuple(variable(name) for name in ("gx", "gy", "gz"))
        self.reach = tuple(terms.name((f"l{axis}", f"n{axis}"), f"R{axis}") for axis in "xyz")
        self.blocks = quotient(self.vocab_size + 7, 8)
        source = z3.Function("linear", _INT, _BITS32)
        self.facts: list[Any] = [
            z(m) >= 1,
            z(self.vocab_size) >= 1,
            z(self.vocab_size * quotient(self.embed_dim, 8) * _WORD) < BYTES,
            *(z3.And(z(at) >= 0, z(at) < z(span)) for at, span in zip(self.identity, self.reach, strict=True)),
            *(z3.And(z(span) >= 1, z(span) <= REACH) for span in self.reach),
            z(self.embed_dim) <= 4 * FLAT_TEXELS
            if storage == "texture2d"
            else z(self.blocks * self.embed_dim) < BYTES // 4,
        ]
        if storage == "texture2d":
            self.facts.append(z(self.blocks) <= FLAT_TEXELS)
        if not setting.strides:
            covered = zip((quotient(self.embed_dim, 8), self.blocks), self.reach, strict=False)
            self.facts += [z3.And(z(span) >= z(size), z(span) < z(size) + ROUNDED) for size, span in covered]
        self.source: Callable[[Term], Any] = lambda at: source(z(at))
        packed = (quotient(self.embed_dim, 4), self.blocks, variable("packed_z"), variable("packed_w"))
        self.environment = Environment(
            self.identity,
            tuple(variable(f"n{axis}") for axis in "xyz"),
            (),
            (*packed, self.embed_dim, self.vocab_size),
            {},
            {1: self.source},
        )

    def specialization(self) -> Mapping[int, Term]:
        """The local size."""
        return {axis: variable(f"l{name}") for axis, name in enumerate("xyz")}

    def word(self, block: Term, four: Term, number: int, parity: int) -> Any:
        """Word ``number`` of a block: four columns of two rows; ``parity`` is the remainder of ``four`` by 2."""
        bits = z3.BitVecVal(0, 32)
        for half in range(2):
            row = 8 * block + 4 * half + number
            read = self.source(row * quotient(self.embed_dim, 8) + quotient(four, 2))
            source = z3.If(z(row) < z(self.vocab_size), read, z3.BitVecVal(0x88888888, 32))
            for byte in range(4):
                code = z3.LShR(source, 4 * (4 * parity + byte)) & 15
                bits |= code << (8 * byte + 4 * half)
        return bits


def column_offset(column: Term) -> int:
    """The constant part of a column."""
    return next((value for key, value in terms.monomials(column) if key == ()), 0)


def _chosen(word: Any, place: Term, choices: Sequence[tuple[int, int]]) -> Any:
    """Four bits of a word, shifted as the place says."""
    codes = [z3.LShR(word, shift) & 15 for _place, shift in choices]
    result = codes[-1]
    for (number, _shift), code in list(zip(choices, codes, strict=True))[-2::-1]:
        result = z3.If(z(place) == number, code, result)
    return result
