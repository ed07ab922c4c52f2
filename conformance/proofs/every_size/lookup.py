"""The obligations of a lookup: which element a path writes, what it read for it, and what it made of that.

Source: docs/contract.md sections 1, 2, 3.3, 7.1 and 7.3.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import z3

from conformance.proofs.every_size import layout
from conformance.proofs.every_size.claims import LAYOUT, Claims, monotone, rounds
from conformance.proofs.every_size.contract import Lookup
from conformance.proofs.every_size.solve import Solver
from conformance.proofs.every_size.spirv.explore import Walk, stores
from conformance.proofs.every_size.spirv.symbolic import Access, Bits, Loop, Path, Real
from conformance.proofs.every_size.spirv.terms import Term, quotient, variable, z

_EXPONENT_AND_QUIET = {16: 0x7E00, 32: 0x7FC00000}
_BLOCK = 32
_INDICES, _WEIGHT, _SCALES = 1, 2, 3


@dataclass(frozen=True)
class Place:
    """The row and plane that a path serves, in its loops' variables; of buffers the plane is 0."""

    row: Term
    plane: Term
    loops: tuple[Loop, ...]


class LookupClaims(Claims):
    """All obligations of one walk of an embedding shader."""

    def __init__(self, sizes: Lookup, walked: Walk, solver: Solver) -> None:
        self.own = sizes
        self._index: Term = variable("no_index")
        self.reads: list[Term] = []
        self._place: Place | None = None
        super().__init__(sizes, walked, solver)
        parts = z(sizes.embed_dim) / z(sizes.group_size)
        self.ask("scale", "lemma: a row divided by its groups' size is their number", [], parts == z(sizes.groups))

    def prove(self) -> None:
        """Ask everything."""
        own = self.own
        self.given("code", LAYOUT, layout.is_bijection(own.variant.weight_layout, own.embed_dim))
        self.given("code", "codes are looked for where the layout has them", layout.reads_as_laid_out(own))
        self._lookups()
        unchecked = any(one.group == "outside" for one in self.failures)
        # A shader that looks every index up is judged further as if it were given none outside the table.
        given = [z3.And(z(one) >= 0, z(one) < z(self.own.vocab_size)) for one in self.reads] if unchecked else []
        self.domain(given)
        for path in self.walk.paths:
            if not stores(path):
                self._reads(path, given)

    def _lookups(self) -> None:
        writing = [path for path in self.walk.paths if stores(path)]
        nests = {rounds(path) for path in writing}
        if len(nests) != 1:
            self.fail("writes", "nothing is written" if not nests else "writes are in different loops")
            return
        place = self._place = self._place_of(nests.pop())
        if place is None:
            self.fail("writes", "the loops are not those over rows and planes")
            return
        widths = {len(self._elements(path)) for path in writing}
        if len(widths) != 1 or _BLOCK % (width := widths.pop()):
            self.fail("writes", "the paths do not all write the same number of columns, a divisor of 32")
            return
        for path in writing:
            self._path(path, place, width)
        self._covered(writing, place, width)

    # Which rows.

    def _place_of(self, loops: tuple[Loop, ...]) -> Place | None:
        """What the loops walk, with the obligations that they walk all of it."""
        own, (_x, y, plane) = self.own, self.own.identity
        if not own.setting.strides:
            if loops:
                return None
            return Place(y, plane, ()) if own.textured else Place(plane * own.height + y, 0, ())
        if own.textured:
            if len(loops) != 2:  # noqa: PLR2004 - planes and rows
                return None
            self.loop(loops[0], plane, own.reach[2], "planes")
            self.loop(loops[1], y, own.reach[1], "rows")
            return Place(loops[1].variable, loops[0].variable, loops)
        if not loops or len(loops) > 2:  # noqa: PLR2004 - rows, and rows an invocation
            return None
        self.loop(loops[0], y, own.reach[1] * own.rows_each, "rows")
        if len(loops) == 1:
            return Place(loops[0].variable, 0, loops) if own.rows_each == 1 else None
        self.loop(loops[1], 0, 1, "rows of an invocation")
        return Place(loops[0].variable + loops[1].variable * own.reach[1], 0, loops)

    def _inside(self, place: Place) -> list[Any]:
        """The row and plane are those of the output."""
        own = self.own
        if own.textured:
            return [z(place.row) < z(own.height), z(place.plane) < z(own.planes)]
        return [z(place.row) < z(own.places)]

    def _covered(self, writing: Sequence[Path], place: Place, width: int) -> None:
        own = self.own
        there = [z(own.identity[0]) * width < z(own.embed_dim), *self._inside(place)]
        if not own.setting.strides:
            there += [z(own.identity[1]) < z(own.height), z(own.identity[2]) < z(own.planes)]
        for number, loop in enumerate(place.loops):
            there.append(z(loop.variable) >= z(loop.start))
            if number and not own.textured:
                there.append(z(loop.variable) < z(own.rows_each))
        some = z3.Or(*(z3.And(*(one.path)) for path in writing for one in stores(path)[-1:]))
        self.ask("writes", "every row and column is served", [*there, *self.hints()], some)

    def hints(self) -> list[Any]:
        """Products of what is below a size with that size's stride."""
        own, dim = self.own, self.own.embed_dim
        known = monotone(self._index, own.vocab_size, [quotient(dim, 8), own.groups])
        known += monotone(quotient(self._index, 8), own.blocks, [quotient(dim, 4)])
        if self._place is not None:
            known += monotone(self._place.row, own.height if own.textured else own.places, [quotient(dim, 8)])
            if not own.setting.strides:
                known += monotone(own.identity[2], own.planes, [own.height])
        return known

    # One path.

    def _path(self, path: Path, place: Place, width: int) -> None:
        own, taken = self.own, list(stores(path)[-1].path)
        first = width * own.identity[0]
        if any(one.binding != 0 or one.loops != place.loops for one in stores(path)):
            self.fail("writes", "something else than the output's row is written")
            return
        read = self._index_read(path, place, taken)
        self.ask(
            "writes", "the row written is inside the output", [*taken, *self.hints()], z3.And(*self._inside(place))
        )
        self.ask("writes", "the columns written are inside the row", taken, z(first) < z(own.embed_dim))
        if place.loops and not own.textured and len(place.loops) > 1:
            self.ask("once", "no row is of two rounds", taken, z(place.loops[1].variable) < z(own.rows_each))
        elements = self._elements(path)
        for offset, (at, value) in enumerate(elements):
            self._address(at, place, first + offset, taken)
            if isinstance(value, str):
                self.fail("arithmetic", value)
        values = [value for _at, value in elements]
        if all(isinstance(value, int) for value in values):
            self._outside(path, values, read, taken)
        elif read is None or not all(isinstance(value, Real) for value in values):
            self.fail("arithmetic", "an element is neither a product nor a constant")
        else:
            self._products(path, values, read, taken, width)

    def _elements(self, path: Path) -> list[tuple[tuple[Term, ...], Any]]:
        """What is written: (column, row, plane) or the element's number, and a float or a constant's bits."""
        found: list[tuple[tuple[Term, ...], Any]] = []
        size = 16 if self.own.half else 32
        for access in stores(path):
            for lane, value in enumerate(access.value):
                if self.own.textured:
                    x, *others = access.at
                    found.append(((4 * x + lane, *others), _constant(value, 32)))
                    continue
                parts = _parts(value, size)
                start = access.at[0] + lane
                if isinstance(value, Real) or size == 32:  # noqa: PLR2004 - an element is a scalar of the buffer
                    found.append(((start,), parts[0] if len(parts) == 1 else "a word is not one element"))
                else:
                    found.extend(((2 * start + half,), part) for half, part in enumerate(parts))
        return found

    def _address(self, at: tuple[Term, ...], place: Place, column: Term, taken: list[Any]) -> None:
        if self.own.textured:
            for what, got, right in zip(("column", "row", "plane"), at, (column, place.row, place.plane), strict=True):
                self.same("writes", f"a texel is written at its {what}", taken, got, right)
        else:
            self.same(
                "writes", "an element is written at its place", taken, at[0], place.row * self.own.embed_dim + column
            )

    def _index_read(self, path: Path, place: Place, taken: list[Any]) -> Term | None:
        """The index that the path looks up; that it is the row's own is an obligation."""
        own, right = self.own, self.own.index_place(place.row, place.plane)
        read: Term | None = None
        for access in path.accesses:
            if access.write or access.binding != _INDICES:
                continue
            lanes = self.walk.domain.lanes.get(tuple(z(one).sexpr() for one in access.at), []) if own.textured else []
            at = (*access.at, *lanes)
            if own.textured and len(lanes) != 1:
                self.fail("index", "not one lane of the texel of indices is used")
                continue
            for got, wanted in zip(at, right, strict=True):
                self.same("index", "the index read is that of the row", taken, got, wanted)
            self._bounds(access)
            read = own.index_read(*at) if read is None else read
            self.reads.extend([read] if read not in self.reads else [])
        self._index = variable("no_index") if read is None else read
        if read is None:
            self.fail("index", "no index is read")
        return read

    def _index_extent(self) -> tuple[Term, ...]:
        own = self.own
        return (quotient(own.height + 3, 4), own.channels, own.batch) if own.textured else (own.places,)

    def _bounds(self, access: Access, given: Sequence[Any] = ()) -> None:
        """A read is inside what is bound, whatever the path does later."""
        own, extents = self.own, {_INDICES: ("indices", self._index_extent())}
        extents[_SCALES] = ("scales", (own.vocab_size * own.groups,))
        if own.variant.weight_storage == "texture2d":
            extents[_WEIGHT] = ("texels of the weight", (quotient(own.embed_dim, 4), own.blocks))
        else:
            extents[_WEIGHT] = ("words of the weight", (own.weight_words,))
        what, extent = extents[access.binding]
        inside = [z3.And(z(one) >= 0, z(one) < z(size)) for one, size in zip(access.at, extent, strict=True)]
        known = [*access.path, *given, *self.hints()]
        self.ask("bounds", f"{what} are read inside what is bound", known, z3.And(*inside))

    def _reads(self, path: Path, given: Sequence[Any]) -> None:
        for access in path.accesses:
            if not access.write:
                self._bounds(access, given)

    def _outside(self, path: Path, values: Sequence[int], read: Term | None, taken: list[Any]) -> None:
        """A path of constants: a quiet NaN each, for an index outside the table."""
        size = 16 if self.own.half and not self.own.textured else 32
        mask = _EXPONENT_AND_QUIET[size]
        if any(value & mask != mask for value in values):
            self.fail("outside", "a constant row that is no quiet NaN")
        index = z(self._index) if read is None else z(read)
        beyond = z3.Or(index < 0, index >= z(self.own.vocab_size))
        self.ask("outside", "a row of NaN is of an index outside the table", [*taken, *self.hints()], beyond)
        for access in path.accesses:
            if not access.write and access.binding in {_WEIGHT, _SCALES}:
                self.fail("outside", "the table is read for an index outside it")

    def _products(self, path: Path, values: Sequence[Real], read: Term, taken: list[Any], width: int) -> None:
        own, index = self.own, z(read)
        inside = [index >= 0, index < z(own.vocab_size)]
        self.ask(
            "outside",
            "a row that is looked up is of an index inside the table",
            [*taken, *self.hints()],
            z3.And(*inside),
        )
        known = [*taken, *inside, *self.hints()]
        for access in path.accesses:
            if not access.write and access.binding != _INDICES:
                self._bounds(access, inside)
        for offset, value in enumerate(values):
            column = width * own.identity[0] + offset
            product, steps = _stripped(value)
            wrong = self._sequence(product, steps)
            if wrong:
                self.fail("arithmetic", wrong)
                continue
            code, scale = product.operands if _is_code(product.operands[0]) else product.operands[::-1]
            self.counts["arithmetic"] += 1
            _at, right = own.code(read, column, width)
            bits = code.operands[0]
            holds = bits == right - 8 if z3.is_bv(bits) else z3.BoolVal(val=False)
            self.ask("code", "the code is that of row and column", known, holds)
            load = _load(scale)
            self.same("scale", "the scale is that of row and group", known, load.operands[0], own.scale(read, column))

    def _sequence(self, product: Real, steps: Sequence[int]) -> str:
        """Why the value is not float(code - 8) * scale with the conversions that contract 3.3 has, or ""."""
        own = self.own
        if product.name != "OpFMul" or product.width != 32 or len(product.operands) != 2:  # noqa: PLR2004 - a product
            return f"an element is made by {product.name} of {product.width} bits, not by one product of float32"
        codes = [one for one in product.operands if _is_code(one)]
        scales = [one for one in product.operands if isinstance(one, Real) and _load(one) is not None]
        if len(codes) != 1 or len(scales) != 1:
            return "the product is not of one code and one scale"
        load = _load(scales[0])
        widened = scales[0] is not load
        if load.width != (16 if own.variant.scale_dtype == "float16" else 32) or widened != (load.width == 16):  # noqa: PLR2004 - bits
            return "the scale is not read as it is stored and widened once"
        allowed: dict[tuple[bool, bool], tuple[tuple[int, ...], ...]] = {
            (False, False): ((),), (False, True): ((),), (True, False): ((16,),), (True, True): ((16, 32), ())
        }  # fmt: skip
        if tuple(steps) not in allowed[own.half, own.textured]:
            return f"the product is converted to {' then '.join(f'float{width}' for width in steps) or 'nothing else'}"
        words = ["float32(code - 8) * float32(scale)", *(f"float{width}" for width in steps)]
        self.sequences.add(" -> ".join(words))
        return ""


def _stripped(value: Real) -> tuple[Real, tuple[int, ...]]:
    """A float without the conversions around it, and the widths that these convert to, in the order of execution."""
    steps: list[int] = []
    while value.name == "OpFConvert" and isinstance(value.operands[0], Real) and value.operands[0].name != "load":
        steps.insert(0, value.width)
        value = value.operands[0]
    return value, tuple(steps)


def _is_code(one: Any) -> bool:
    return isinstance(one, Real) and one.name == "OpConvertSToF" and one.width == 32  # noqa: PLR2004 - bits


def _load(scale: Any) -> Any:
    """The read of a scale, widened or not, else None."""
    if isinstance(scale, Real) and scale.name == "OpFConvert" and scale.width == 32:  # noqa: PLR2004 - bits
        scale = scale.operands[0]
    return scale if isinstance(scale, Real) and scale.name == "load" else None


def _parts(value: Any, size: int) -> list[Any]:
    """The elements of a word that is written, the low half first."""
    if isinstance(value, Real):
        return [_constant(value, size)]
    if isinstance(value, Bits):
        return [part if part.width == size else "a float of another width is written" for part in value.parts]
    if isinstance(value, int):
        return [value >> at & (1 << size) - 1 for at in range(0, 32, size)]
    return ["a word is written that is no float's bits"]


def _constant(value: Any, size: int) -> Any:
    """A float constant as its bits; another float as it is."""
    if isinstance(value, Real) and value.name == "constant":
        return value.operands[0]
    if isinstance(value, Real):
        return value if value.width == size else "a float of another width is written"
    return "what is written is no float"
