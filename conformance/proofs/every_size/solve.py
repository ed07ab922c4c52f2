"""Obligations discharged: by normal form where both sides are the same term, else by z3 under a limit.

The limit is z3's own count of what it does, not seconds, so that a busy machine proves no less than an idle one. A
limit that is met is "undecided" and never a proof.
"""

import hashlib
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import z3

HELD, FAILED, UNDECIDED = "held", "failed", "undecided"
#: Units of z3's work, about a million a second: for what is linear and quick, and for an obligation, two attempts.
_POSSIBLE, _QUICK, _WHOLE = 300_000, 3_000_000, 40_000_000


@dataclass
class Solver:
    """Answers under the facts about sizes; remembers what it was asked."""

    facts: list[Any]
    #: Small sizes, as pairs of a variable and its value.
    instances: Sequence[Sequence[tuple[Any, Any]]] = ()
    effort: int = _WHOLE
    asked: int = 0
    by_form: int = 0
    slowest: tuple[float, str] = (0.0, "")
    texts: list[str] = field(default_factory=list)
    _known: dict[str, tuple[str, Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._linear = [one for one in self.facts if is_linear(one)]

    def possible(self, conditions: Sequence[Any]) -> bool:
        """Whether conditions may hold together; fewer facts are known, and yes where the limit is met."""
        key = "possible " + " ".join(sorted(one.sexpr() for one in conditions))
        if key not in self._known:
            linear = [one for one in conditions if is_linear(one)]
            result, _model = _check([*self._linear, *linear], _POSSIBLE)
            self._known[key] = (FAILED if result == z3.unsat else HELD), None
        return self._known[key][0] == HELD

    def prove(self, what: str, conditions: Sequence[Any], holds: Any) -> tuple[str, Any]:
        """HELD, FAILED or UNDECIDED: whether ``holds`` follows from facts and conditions; a model if it fails."""
        self.asked += 1
        holds = z3.simplify(holds) if z3.is_expr(holds) else z3.BoolVal(bool(holds))
        text = " ".join([*sorted(one.sexpr() for one in conditions), "=>", holds.sexpr()])
        self.texts.append(f"{what}: {text}")
        if z3.is_true(holds):
            self.by_form += 1
            return HELD, None
        if text not in self._known:
            started = time.perf_counter()
            self._known[text] = self._prove([*conditions, z3.Not(holds)])
            self.slowest = max(self.slowest, (time.perf_counter() - started, what))
        return self._known[text]

    def _prove(self, formulas: Sequence[Any]) -> tuple[str, Any]:
        # Fewer facts are enough for most; only a model of all of them is one.
        if _check([*self._linear, *formulas], _QUICK)[0] == z3.unsat:
            return HELD, None
        if (small := self.model(formulas)) is not None:
            return FAILED, small
        result, model = _check([*self.facts, *formulas], self.effort)
        status = HELD if result == z3.unsat else FAILED if result == z3.sat else UNDECIDED
        return status, model

    def model(self, formulas: Sequence[Any]) -> Any:
        """A model of formulas and facts for one of the instances, where everything is linear, or None."""
        for instance in self.instances:
            given = [z3.simplify(z3.substitute(one, *instance)) for one in (*self.facts, *formulas)]
            fixed = [variable == value for variable, value in instance]
            result, model = _check([*given, *fixed], _POSSIBLE)
            if result == z3.sat:
                return model
        return None

    @property
    def sha256(self) -> str:
        """The hash of everything that was asked, facts included."""
        lines = [*(one.sexpr() for one in self.facts), *sorted(self.texts)]
        return hashlib.sha256("\n".join(lines).encode()).hexdigest()


def is_linear(formula: Any) -> bool:
    """Whether a formula multiplies no two variables and divides by none."""
    work, seen = [formula], set()
    while work:
        one = work.pop()
        if one.get_id() in seen:
            continue
        seen.add(one.get_id())
        kind, children = one.decl().kind() if z3.is_app(one) else 0, one.children()
        if kind == z3.Z3_OP_MUL and sum(not z3.is_int_value(child) for child in children) > 1:
            return False
        if kind in {z3.Z3_OP_IDIV, z3.Z3_OP_MOD} and not z3.is_int_value(children[1]):
            return False
        work.extend(children)
    return True


def _check(formulas: Sequence[Any], limit: int) -> tuple[Any, Any]:
    solver = z3.Solver()
    solver.set("rlimit", limit)
    solver.add(*formulas)
    result = solver.check()
    return result, solver.model() if result == z3.sat else None
