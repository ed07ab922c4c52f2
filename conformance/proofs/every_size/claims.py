"""What has to hold of a lookup, path by path, and whether it does.

Every element, once: an invocation (x, y, z) of a shader that strides serves columns W*x to W*x + W - 1 of rows y,
y + reach, y + 2*reach, ... Each row is one of these for exactly one y below reach (division with remainder), so what
has to be shown of the shader is that its loops take these steps and no others, that every address is that of its row
and column, and that whatever row and column there are, some path serves them. docs/proofs.md has the argument.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import z3

from conformance.proofs.every_size.contract import Lookup, Prepack
from conformance.proofs.every_size.solve import FAILED, HELD, Solver
from conformance.proofs.every_size.spirv.explore import Walk, stores
from conformance.proofs.every_size.spirv.symbolic import Loop, Path
from conformance.proofs.every_size.spirv.terms import Term, z

LAYOUT = "every nibble of the layout is one code's, whatever V and D"
#: What is proven, in the order of a report.
GROUPS = ("writes", "once", "index", "code", "scale", "arithmetic", "bounds", "outside", "overflow")


@dataclass(frozen=True)
class Failure:
    """An obligation that did not hold: its group, what it says, whether the limit was met, and a model."""

    group: str
    what: str
    status: str
    model: Any = None


class Claims:
    """The obligations of one walk of a shader, asked one by one."""

    def __init__(self, sizes: Lookup | Prepack, walked: Walk, solver: Solver) -> None:
        self.sizes, self.walk, self.solver = sizes, walked, solver
        self.failures: list[Failure] = []
        self.counts = dict.fromkeys(GROUPS, 0)
        self.sequences: set[str] = set()
        a, b, factor = z3.Ints("a b s")
        self.ask("bounds", "lemma: products are monotone", [], _monotone(a, b, factor))

    def ask(self, group: str, what: str, conditions: Sequence[Any], holds: Any) -> bool:
        """Prove one obligation; a failure is kept."""
        self.counts[group] += 1
        if any((one.group, one.what) == (group, what) and one.model is not None for one in self.failures):
            return False  # one model is enough
        known = [*conditions, *self.walk.domain.facts]
        status, model = self.solver.prove(f"{group}: {what}", known, holds)
        if status != HELD:
            self.failures.append(Failure(group, what, status, model))
        return status == HELD

    def given(self, group: str, what: str, holds: bool) -> None:
        """An obligation on the contract's own terms, which was decided without a solver."""
        self.ask(group, what, [], z3.BoolVal(val=holds))

    def fail(self, group: str, what: str) -> None:
        """An obligation that does not hold, whatever the sizes."""
        self.counts[group] += 1
        self.failures.append(Failure(group, what, FAILED))

    def same(self, group: str, what: str, conditions: Sequence[Any], left: Term, right: Term) -> bool:
        """Prove that two terms are equal; by form where they are the same polynomial."""
        return self.ask(group, what, conditions, z3.BoolVal(val=True) if left == right else z(left) == z(right))

    def domain(self, given: Sequence[Any] = ()) -> None:
        """What the executor assumed of every instruction: nothing overflows, no divisor is 0, and every loop ends."""
        for loop, step in self.walk.steps.items():
            # Its variable grows and, as nothing overflows, stays below 2^31.
            self.ask("writes", f"a loop (%{loop.header}) ends", [], z(step) >= 1)
        for one in self.walk.domain.obligations:
            self.ask("overflow", f"{one.what} (%{one.site})", [*one.path, *given, *self.hints()], one.holds)

    def hints(self) -> list[Any]:
        """Instances of the lemma that an obligation may need."""
        return []

    def loop(self, loop: Loop, start: Term, step: Term, what: str) -> None:
        """The loop's variable is start, start + step, ... for as long as its test holds, and no longer."""
        own = self.walk.steps.get(loop)
        before: list[Any] = []
        self.same("writes", f"the loop over {what} starts at its own", before, loop.start, start)
        if own is None:
            self.fail("writes", f"the loop over {what} takes no second round")
        else:
            self.same("writes", f"the loop over {what} takes steps of its reach", before, own, step)
        test, earlier = self.walk.tests[loop], z3.Int("earlier")
        if isinstance(test, bool):
            self.fail("writes", f"the loop over {what} has a test that nothing changes")
            return
        sooner = z3.substitute(test, (z(loop.variable), earlier))
        order = [z(loop.start) <= earlier, earlier <= z(loop.variable), test, *self.hints()]
        self.ask("writes", f"the loop over {what} has reached every earlier row", order, sooner)


def monotone(low: Term, high: Term, factors: Sequence[Term]) -> list[Any]:
    """Instances of the lemma for low < high."""
    return [_monotone(z(low), z(high), z(factor)) for factor in factors]


def _monotone(low: Any, high: Any, factor: Any) -> Any:
    return z3.Implies(z3.And(low < high, factor >= 0), (low + 1) * factor <= high * factor)


def rounds(path: Path) -> tuple[Loop, ...]:
    """The loops that a path's writes are in."""
    written = stores(path)
    return written[-1].loops if written else ()
