"""Every path of a shader: loops are walked once, for an arbitrary round.

A loop's variable starts somewhere and grows by a step that is the same in every round, or the loop is not supported.
What is shown for an arbitrary value of the variable then holds in each round, and which values there are is the
inductive argument that ``claims`` makes: start, start + step, ... up to the first for which the header's test fails.
"""

import ctypes
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import z3

from conformance.proofs.every_size.spirv.machine import Machine, Scalar, State, Value
from conformance.proofs.every_size.spirv.module import Instruction, Module, Unsupported
from conformance.proofs.every_size.spirv.symbolic import Access, Environment, Loop, Path, Terms
from conformance.proofs.every_size.spirv.terms import Poly, Term, monomials, variable, z

_MOST_PATHS = 1024


@dataclass(frozen=True)
class Walk:
    """All paths: their accesses and conditions, the loops with their steps, obligations and facts."""

    paths: tuple[Path, ...]
    steps: Mapping[Loop, Term]
    tests: Mapping[Loop, Any]
    domain: Terms


def walk(
    module: Module,
    environment: Environment,
    specialization: Mapping[int, Term],
    possible: Callable[[Sequence[Any]], bool],
) -> Walk:
    """Execute ``main``; ``possible`` says whether conditions may hold together, and may err on the side of yes.

    Raises:
        Unsupported: names the instruction or the loop.
    """
    explorer = _Explorer(module, Terms(module, environment, possible), dict(specialization))
    explorer.run(Path())
    return Walk(tuple(explorer.paths), explorer.steps, explorer.tests, explorer.terms)


class _Explorer(Machine):
    strange: ClassVar[tuple[type[Exception], ...]] = (*Machine.strange, z3.Z3Exception, ctypes.ArgumentError)

    def __init__(self, module: Module, terms: Terms, specialization: dict[int, Scalar]) -> None:
        self.terms = terms
        self.paths: list[Path] = []
        self.steps: dict[Loop, Term] = {}
        self.tests: dict[Loop, Any] = {}
        #: Local memory as a loop finds it in its first round.
        self._found: dict[Loop, dict[int, Value]] = {}
        super().__init__(module, terms, specialization)

    def step(self, state: State, one: Instruction) -> None:
        self.terms.site, self.terms.path = one.result, state.own
        super().step(state, one)

    def arrive(self, state: State, phis: Sequence[Instruction]) -> bool:
        path: Path = state.own
        if any(state.label == loop.header for loop in path.loops):
            self._again(state, phis)
            return False
        if path.loops and state.label == path.loops[-1].merge:
            if state.previous != path.loops[-1].header:
                raise Unsupported(f"a loop (%{path.loops[-1].header}) that is left from its body")
            state.own = replace(path, loops=path.loops[:-1])
        elif any(state.label == loop.merge for loop in path.loops):
            raise Unsupported(f"a loop (%{path.loops[-1].header}) that is left from its body")
        super().arrive(state, phis)
        merge = next((one.word(0) for one in self.module.block(state.label) if one.name == "OpLoopMerge"), None)
        if merge is not None:
            self._enter(state, phis, merge)
        return True

    def leave(self, state: State, last: Instruction) -> Iterable[State]:
        path: Path = state.own
        if path.loops and path.loops[-1].header == state.label:
            if last.name != "OpBranchConditional" or path.loops[-1].merge not in last.words[1:3]:
                raise Unsupported(f"a loop (%{state.label}) that its header does not leave")
            test = self.value(state, last.word(0))
            if last.word(1) == path.loops[-1].merge:
                test = self.terms.logical("OpLogicalNot", (test,))
            known = self.tests.setdefault(path.loops[-1], test)
            if known is not test and not (z3.is_expr(test) and z3.is_expr(known) and z3.eq(known, test)):
                raise Unsupported(f"a loop (%{state.label}) whose test depends on the path to it")
        return super().leave(state, last)

    def _enter(self, state: State, phis: Sequence[Instruction], merge: int) -> None:
        if len(phis) != 1:
            raise Unsupported(f"a loop (%{state.label}) with {len(phis)} variables")
        start = state.values[phis[0].result]
        if not isinstance(start, int | Poly) or isinstance(start, bool):
            raise Unsupported(f"a loop (%{state.label}) whose variable is no integer")
        own = variable(f"round{phis[0].result}")
        loop = Loop(state.label, merge, own, start)
        path: Path = state.own
        state.values[phis[0].result] = own
        self._found[loop] = dict(state.local)
        # The steps are at least 1, which is an obligation of its own: claims._check_loops.
        conditions = (*path.conditions, z3.simplify(z(own) >= z(start)))
        state.own = replace(path, loops=(*path.loops, loop), conditions=conditions)

    def _again(self, state: State, phis: Sequence[Instruction]) -> None:
        """The end of a round: note the path, and by how much the variable has grown."""
        path: Path = state.own
        loop = path.loops[-1]
        if loop.header != state.label:
            raise Unsupported(f"a loop (%{loop.header}) that is left from its body")
        incoming = dict(zip(phis[0].words[1::2], phis[0].words[::2], strict=True))
        following = self.value(state, incoming.get(state.previous, 0))
        step = following - loop.variable if isinstance(following, int | Poly) else None
        inside = {key for one in (loop, *self.steps) for key, _value in monomials(one.variable)}
        if step is None or any(text in part for key, _ in monomials(step) for part in key for (text,) in inside):
            raise Unsupported(f"a loop (%{loop.header}) whose steps are not all the same")
        if self.steps.setdefault(loop, step) != step:
            raise Unsupported(f"a loop (%{loop.header}) whose steps depend on what happens in it")
        if any(state.local[number] is not value for number, value in self._found[loop].items()):
            raise Unsupported(f"a loop (%{loop.header}) that changes local memory")
        self._end(path)

    def returned(self, state: State) -> None:
        path: Path = state.own
        if path.loops:
            raise Unsupported(f"a loop (%{path.loops[-1].header}) that is left from its body")
        self._end(path)

    def _end(self, path: Path) -> None:
        if len(self.paths) >= _MOST_PATHS:
            raise Unsupported(f"more than {_MOST_PATHS} paths")
        self.paths.append(path)


def stores(path: Path) -> tuple[Access, ...]:
    """The writes of the round that a path ends with."""
    return tuple(access for access in path.accesses if access.write)
