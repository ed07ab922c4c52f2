"""The obligations of a prepacking: which words of which blocks a path writes, and from what.

Source: docs/contract.md sections 1 and 7.4.
"""

from typing import Any

import z3

from conformance.proofs.every_size import layout
from conformance.proofs.every_size.claims import LAYOUT, Claims, monotone, rounds
from conformance.proofs.every_size.contract import Prepack
from conformance.proofs.every_size.solve import Solver
from conformance.proofs.every_size.spirv.explore import Walk, stores
from conformance.proofs.every_size.spirv.symbolic import Access, Path
from conformance.proofs.every_size.spirv.terms import Term, quotient, z

_SOURCE, _ROWS, _WORDS, _BLOCKS = 1, 8, 4, 2


class PrepackClaims(Claims):
    """All obligations of one walk of a prepack shader."""

    def __init__(self, sizes: Prepack, walked: Walk, solver: Solver) -> None:
        self.own = sizes
        self._block: Term = sizes.identity[1]
        super().__init__(sizes, walked, solver)

    def prove(self) -> None:
        """Ask everything."""
        for name in ("linear_weight", "block"):
            self.given("code", f"{LAYOUT} ({name})", layout.is_bijection(name, self.own.embed_dim))
        self.given("code", "codes come from and go to where the layouts have them", layout.packs_as_laid_out(self.own))
        own, writing = self.own, [path for path in self.walk.paths if stores(path)]
        nests = {rounds(path) for path in writing}
        if len(nests) != 1 or len(loops := next(iter(nests))) != int(own.setting.strides):
            self.fail("writes", "the loops are not one over blocks, or nothing is written")
            return
        if loops:
            self._block = loops[0].variable
            self.loop(loops[0], own.identity[1], own.reach[1], "blocks")
        self.domain()
        for path in writing:
            self._path(path)
        for path in self.walk.paths:
            self._reads(path)
        eight = quotient(own.embed_dim, 8)
        there = [z(own.identity[0]) < z(eight), z(self._block) < z(own.blocks), z(self._block) >= z(own.identity[1])]
        some = z3.Or(*(z3.And(*stores(path)[-1].path) for path in writing))
        self.ask("writes", "every block is served", there, some)

    def hints(self) -> list[Any]:
        """Products of rows and blocks with their strides."""
        own, stride = self.own, quotient(self.own.embed_dim, 8)
        known = monotone(self._block, own.blocks, [2 * stride])
        return known + [
            one for row in range(_ROWS) for one in monotone(8 * self._block + row, own.vocab_size, [stride])
        ]

    def _path(self, path: Path) -> None:
        own, written = self.own, stores(path)
        taken = list(written[-1].path)
        known = [*taken, *self.hints()]
        self.ask("writes", "the block written is inside the output", known, z(self._block) < z(own.blocks))
        inside = z(own.identity[0]) < z(quotient(own.embed_dim, 8))
        self.ask("writes", "the columns written are inside the row", known, inside)
        if len(written) != _BLOCKS or any(one.binding != 0 or len(one.value) != _WORDS for one in written):
            self.fail("writes", "a path does not write two blocks")
            return
        for parity, access in enumerate(written):
            self._store(access, parity, known)

    def _reads(self, path: Path) -> None:
        for access in path.accesses:
            if not access.write:
                at, words = access.at[0], self.own.vocab_size * quotient(self.own.embed_dim, 8)
                self.ask(
                    "bounds",
                    "words are read inside what is bound",
                    [*access.path, *self.hints()],
                    z3.And(z(at) >= 0, z(at) < z(words)),
                )

    def _store(self, access: Access, parity: int, known: list[Any]) -> None:
        own, four = self.own, 2 * self.own.identity[0] + parity
        if own.storage == "texture2d":
            for what, got, right in zip(("column", "row"), access.at, (four, self._block), strict=False):
                self.same("writes", f"a texel is written at its {what}", known, got, right)
        else:
            right = 4 * (self._block * quotient(own.embed_dim, 4) + four)
            self.same("writes", "a block is written at its place", known, access.at[0], right)
        for number, value in enumerate(access.value):
            word = z3.BitVecVal(value, 32) if isinstance(value, int) else value
            right = own.word(self._block, four, number, parity)
            holds = word == right if z3.is_bv(word) else z3.BoolVal(val=False)
            self.ask("code", "the word holds the codes of its rows and columns", known, holds)
