"""SPIR-V executed on terms: 32-bit integers as mathematical ones with an obligation that nothing overflows.

An integer is an int, a polynomial (``terms``) for what it is as a signed number, or a bit vector of z3 where it is a
word of the table. A float is the tree of what was computed. Memory answers with uninterpreted functions, and every
access is noted with the path on which it happens.

Source: SPIR-V specification 1.6; docs/contract.md section 7.2.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import z3

from conformance.proofs.every_size.spirv.concrete import Dispatch, Numbers
from conformance.proofs.every_size.spirv.machine import Pointer, Scalar, State, Value
from conformance.proofs.every_size.spirv.module import Module, Type, Unsupported
from conformance.proofs.every_size.spirv.terms import Poly, Term, atom, quotient, remainder, z

_SIGN, _WORD, _BITS = 1 << 31, 1 << 32, 32
_HALF = 16
_GLOBAL_ID, _GROUPS = 28, 24
_UNIFORM, _PUSH, _SIZES = 2, 9, 4


@dataclass(frozen=True)
class Real:
    """A float: how it was computed, from what, and its width. "load" is a read, "constant" a bit pattern."""

    name: str
    operands: tuple[Any, ...]
    width: int


@dataclass(frozen=True)
class Bits:
    """A 32-bit word that is the bits of a float32, or of two float16, the low half first."""

    parts: tuple[Real, ...]


@dataclass(frozen=True)
class Loop:
    """A loop being walked: its header, its variable, and how that starts."""

    header: int
    merge: int
    variable: Poly
    start: Term


@dataclass(frozen=True)
class Access:
    """A read or a write: of which binding, where (a scalar's number, or texel coordinates), and on which path."""

    write: bool
    binding: int
    at: tuple[Term, ...]
    value: tuple[Scalar, ...]
    path: tuple[Any, ...] = ()
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Path:
    """The domain's part of a state: conditions taken, accesses so far, loops that are open."""

    conditions: tuple[Any, ...] = ()
    accesses: tuple[Access, ...] = ()
    loops: tuple[Loop, ...] = ()


@dataclass(frozen=True)
class Obligation:
    """A formula that has to hold under a path's conditions; ``what`` names it, ``site`` the instruction."""

    what: str
    holds: Any
    path: tuple[Any, ...]
    site: int = 0


@dataclass(frozen=True)
class Environment:
    """What the shader finds: built-in variables, constants in memory, functions for what is read.

    ``reads`` answers for a binding: a function of the place (scalar number or texel and lane).
    """

    identity: tuple[Term, ...]
    groups: tuple[Term, ...]
    uniform: tuple[Term, ...]
    push: tuple[Term, ...]
    lengths: Mapping[int, Term]
    reads: Mapping[int, Callable[..., Scalar]]


class Terms:
    """The symbolic domain; see ``machine.Domain``."""

    def __init__(self, module: Module, environment: Environment, possible: Callable[[Sequence[Any]], bool]) -> None:
        self.module, self._environment, self._possible = module, environment, possible
        self._numbers = Numbers(module, Dispatch({}, (), {}, (1, 1, 1)), (1, 1, 1))
        self.obligations: list[Obligation] = []
        self.facts: list[Any] = []
        #: Lanes that were taken of a texel, by the texel's coordinates.
        self.lanes: dict[tuple[str, ...], list[Term]] = {}
        #: The instruction that is executed and the path that it is on; set by the explorer.
        self.site, self.path = 0, Path()

    def constant(self, pattern: int, kind: Type) -> Scalar:
        """Integers and truth values as Python's, floats as patterns."""
        if kind.kind == "Float":
            return Real("constant", (pattern,), kind.width)
        return self._numbers.constant(pattern, kind)

    # Integers.

    def integer(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """As numbers where all are known, as bits where one is a word of the table, else as terms."""
        if all(isinstance(one, int) for one in operands):
            if name in {"OpSDiv", "OpSMod", "OpSRem", "OpUDiv", "OpUMod"} and operands[1] == 0:
                self._oblige("division by zero", z3.BoolVal(val=False))
                return 0
            return int(self._numbers.integer(name, operands))
        if any(isinstance(one, Real | Bits) for one in operands):
            raise Unsupported(f"{name} (%{self.site}) on the bits of a float")
        if any(z3.is_bv(one) for one in operands):
            return self._vector(name, *(self._word(one) for one in operands))
        return self._term(name, *operands)

    def _term(self, name: str, a: Term, b: Term = 0) -> Scalar:
        if name in {"OpIAdd", "OpISub", "OpIMul", "OpSNegate"}:
            result = {"OpIAdd": a + b, "OpISub": a - b, "OpIMul": a * b, "OpSNegate": 0 - a}[name]
            return self._in_range(name, result)
        if name in {"OpSDiv", "OpSMod", "OpSRem", "OpUDiv", "OpUMod"}:
            self._oblige(f"{name} of a negative number, or by none above 0", z3.And(z(a) >= 0, z(b) > 0))
            return quotient(a, b) if name.endswith("Div") else remainder(a, b)
        if name == "OpNot":
            return -1 - a
        if name.startswith("OpShift"):
            return self._shift(name, a, b)
        mask = next((one for one in (b, a) if isinstance(one, int)), None)
        if mask is None:
            raise Unsupported(f"{name} (%{self.site}) of two integers that are not constant")
        other = a if mask is b else b
        both = _masked(other, mask % _WORD)
        return {"OpBitwiseAnd": both, "OpBitwiseOr": other + mask - both, "OpBitwiseXor": other + mask - 2 * both}[name]

    def _shift(self, name: str, a: Term, b: Term) -> Scalar:
        if not isinstance(b, int):
            raise Unsupported(f"{name} (%{self.site}) of an integer by one that is not constant")
        if not 0 <= b < _BITS:
            self._oblige(f"{name} by {b}", z3.BoolVal(val=False))
            return 0
        if name == "OpShiftLeftLogical":
            return self._in_range(name, a * (1 << b))
        if name == "OpShiftRightLogical":
            self._oblige(f"{name} of a negative number", z(a) >= 0)
        return quotient(a, 1 << b)

    def _vector(self, name: str, a: Any, b: Any = None) -> Any:
        functions = {
            "OpIAdd": lambda: a + b,
            "OpISub": lambda: a - b,
            "OpIMul": lambda: a * b,
            "OpSNegate": lambda: -a,
            "OpNot": lambda: ~a,
            "OpSDiv": lambda: a / b,
            "OpUDiv": lambda: z3.UDiv(a, b),
            "OpUMod": lambda: z3.URem(a, b),
            "OpSMod": lambda: a % b,
            "OpSRem": lambda: z3.SRem(a, b),
            "OpBitwiseAnd": lambda: a & b,
            "OpBitwiseOr": lambda: a | b,
            "OpBitwiseXor": lambda: a ^ b,
            "OpShiftLeftLogical": lambda: a << b,
            "OpShiftRightLogical": lambda: z3.LShR(a, b),
            "OpShiftRightArithmetic": lambda: a >> b,
        }
        if name.startswith("OpShift"):
            self._oblige(f"{name} by more than 31", z3.ULT(b, _BITS))
        elif "Div" in name or "Mod" in name or "Rem" in name:
            self._oblige("division by zero", b != 0)
        return z3.simplify(functions[name]())

    def _word(self, one: Scalar) -> Any:
        """An integer as bits."""
        if z3.is_bv(one):
            return one
        return z3.BitVecVal(one, _BITS) if isinstance(one, int) else z3.Int2BV(z(one), _BITS)

    def _in_range(self, name: str, result: Term) -> Term:
        self._oblige(f"{name} overflows", z3.And(z(result) >= -_SIGN, z(result) < _SIGN))
        return result

    def _oblige(self, what: str, holds: Any) -> None:
        holds = z3.simplify(holds)
        if not z3.is_true(holds):
            self.obligations.append(Obligation(what, holds, self.path.conditions, self.site))

    def compare(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """Comparisons; of unsigned numbers as what they are as unsigned."""
        if all(isinstance(one, int) for one in operands):
            return bool(self._numbers.compare(name, operands))
        if any(isinstance(one, Real | Bits) for one in operands):
            raise Unsupported(f"{name} (%{self.site}) on the bits of a float")
        if any(z3.is_bv(one) for one in operands):
            a, b = (self._word(one) for one in operands)
        else:
            a, b = (z(one) for one in operands)
            if name.startswith("OpU"):
                a, b = (z3.If(one < 0, one + _WORD, one) for one in (a, b))
        unsigned = name.startswith("OpU") and z3.is_bv(a)
        tests = {
            "IEqual": lambda: a == b,
            "INotEqual": lambda: a != b,
            "LessThan": lambda: z3.ULT(a, b) if unsigned else a < b,
            "LessThanEqual": lambda: z3.ULE(a, b) if unsigned else a <= b,
            "GreaterThan": lambda: z3.UGT(a, b) if unsigned else a > b,
            "GreaterThanEqual": lambda: z3.UGE(a, b) if unsigned else a >= b,
        }
        return _known(tests[name.removeprefix("OpS").removeprefix("OpU").removeprefix("Op")]())

    def logical(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """Truth values."""
        if all(isinstance(one, bool) for one in operands):
            return bool(self._numbers.logical(name, operands))
        tests: dict[str, Callable[..., Any]] = {
            "OpLogicalNot": z3.Not,
            "OpLogicalAnd": z3.And,
            "OpLogicalOr": z3.Or,
            "OpLogicalEqual": lambda a, b: a == b,
            "OpLogicalNotEqual": z3.Xor,
        }
        return _known(tests[name](*(z3.BoolVal(val=one) if isinstance(one, bool) else one for one in operands)))

    # Floats: trees.

    def real(self, name: str, operands: Sequence[Scalar], width: int) -> Scalar:
        """What is computed, by its instruction's name."""
        return Real(name, tuple(operands), width)

    def convert(self, name: str, operand: Scalar, source: Type, target: Type) -> Scalar:
        """The same."""
        if target.kind != "Float":
            raise Unsupported(f"{name} (%{self.site})")
        return (
            operand if source.width == target.width and name == "OpFConvert" else Real(name, (operand,), target.width)
        )

    def select(self, condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
        """One of two integers or truth values."""
        if isinstance(condition, bool):
            return yes if condition else no
        if any(isinstance(one, Real | Bits) for one in (yes, no)):
            raise Unsupported(f"OpSelect (%{self.site}) of floats")
        if any(z3.is_bv(one) for one in (yes, no)):
            return z3.If(condition, self._word(yes), self._word(no))
        if any(isinstance(one, bool) or z3.is_bool(one) for one in (yes, no)):
            return _known(z3.If(condition, yes, no))
        return yes if yes == no else atom(z3.If(condition, z(yes), z(no)))

    def recast(self, lanes: Sequence[Scalar], source: Type, target: Type) -> Sequence[Scalar]:
        """The same bits."""
        if source.kind == target.kind:
            return lanes
        if target.kind == "Int" and len(lanes) * source.width == _BITS * max(1, len(lanes) * source.width // _BITS):
            each = _BITS // source.width
            words = [tuple(lanes[at : at + each]) for at in range(0, len(lanes), each)]
            return [_pattern(word) if all(r.name == "constant" for r in word) else Bits(word) for word in words]
        if target.width != _BITS or source.width != _BITS:
            raise Unsupported(f"OpBitcast (%{self.site}) from {source.width} to {target.width} bits")
        return [_float(lane) for lane in lanes]

    def pick(self, lanes: Sequence[Scalar], at: Scalar) -> Scalar:
        """A lane: of a texel the function itself, of others a choice."""
        if isinstance(at, int):
            return lanes[at]
        if z3.is_bv(at):
            raise Unsupported(f"a lane (%{self.site}) numbered by bits of the table")
        self._oblige("a lane beyond its vector", z3.And(z(at) >= 0, z(at) < len(lanes)))
        texel = _texel(lanes)
        if texel is not None:
            read = texel.decl()(*texel.children()[:-1], z(at))
            taken = self.lanes.setdefault(tuple(one.sexpr() for one in texel.children()[:-1]), [])
            taken.extend([at] if at not in taken else [])
            self._fact(read)
            return read if z3.is_bv(read) else atom(read)
        result = lanes[-1]
        for number in range(len(lanes) - 2, -1, -1):
            result = self.select(z(at) == number, lanes[number], result)
        return result

    # Paths.

    def branch(self, state: State, condition: Scalar, yes: int, no: int) -> Iterable[State]:
        """Both ways, unless the path's conditions decide."""
        if isinstance(condition, bool):
            return [state.fork(yes if condition else no, state.own)]
        condition = z3.simplify(condition)
        against = z3.simplify(z3.Not(condition))
        path: Path = state.own
        known = {one.get_id() for one in path.conditions}
        if condition.get_id() in known or z3.is_true(condition):
            return [state.fork(yes, path)]
        if against.get_id() in known or z3.is_false(condition):
            return [state.fork(no, path)]
        return [
            state.fork(label, replace(path, conditions=(*path.conditions, test)))
            for label, test in ((yes, condition), (no, against))
            if self._possible((*path.conditions, test))
        ]

    # Memory.

    def load(self, state: State, at: Pointer) -> Value:
        """Built-in variables, constants in memory, and reads of storage buffers."""
        binding, environment = self._binding(at.variable), self._environment
        builtin = self.module.decoration(at.variable, "BuiltIn")
        known: tuple[Term, ...] | None = {_GLOBAL_ID: environment.identity, _GROUPS: environment.groups}.get(
            -1 if builtin is None else builtin
        )
        if builtin is not None and known is None:
            raise Unsupported(f"built-in variable {builtin} (%{at.variable})")
        if known is None:
            storage = self.module.type(self.module.variables[at.variable]).storage
            if binding in environment.reads:
                return self._read(state, binding, at)
            known = {(_UNIFORM, _SIZES): environment.uniform, (_PUSH, -1): environment.push}.get((storage, binding), ())
            start = self._place(at)
        else:
            start = at.path[0] if at.path else 0
        if not isinstance(start, int) or not 0 <= start <= len(known) - len(at.type.lanes):
            raise Unsupported(f"a computed or unknown part of variable %{at.variable}")
        lanes = known[start : start + len(at.type.lanes)]
        return lanes if at.type.kind == "Vector" else lanes[0]

    def _binding(self, variable: int) -> int:
        """A variable's binding in descriptor set 0; -1 for none."""
        if self.module.decoration(variable, "DescriptorSet") not in {None, 0}:
            raise Unsupported(f"variable %{variable} in another descriptor set than 0")
        binding = self.module.decoration(variable, "Binding")
        return -1 if binding is None else binding

    def _answer(self, binding: int, *at: Term) -> Scalar:
        """What a read gives; a buffer where the interface has an image takes other numbers."""
        try:
            return self._environment.reads[binding](*at)
        except TypeError as error:
            raise Unsupported(
                f"binding {binding} (%{self.site}), which the interface has as another resource"
            ) from error

    def _read(self, state: State, binding: int, at: Pointer) -> Value:
        start, lanes = self._place(at), []
        for lane in range(len(at.type.lanes)):
            value = self._answer(binding, start + lane)
            kind = at.type.lanes[0]
            wanted = ("Float", value.width) if isinstance(value, Real) else ("Int", _BITS)
            if (kind.kind, kind.width) != wanted:
                raise Unsupported(f"binding {binding} as {kind.kind} of {kind.width} bits")
            self._fact(value)
            lanes.append(value)
            self._note(state, Access(write=False, binding=binding, at=(start + lane,), value=(value,)))
        return tuple(lanes) if at.type.kind == "Vector" else lanes[0]

    def store(self, state: State, at: Pointer, value: Value) -> None:
        """Note a write of a storage buffer."""
        binding = self._binding(at.variable)
        values = value if isinstance(value, tuple) else (value,)
        self._note(state, Access(write=True, binding=binding, at=(self._place(at),), value=values))

    def length(self, state: State, variable: int, member: int) -> Scalar:
        """As the environment says."""
        del state, member
        binding = self._binding(variable)
        if binding not in self._environment.lengths:
            raise Unsupported(f"the length of variable %{variable}")
        return self._environment.lengths[binding]

    def fetch(self, state: State, image: int, at: tuple[Scalar, ...]) -> Value:
        """Four lanes of a texel."""
        binding = self._binding(image)
        if binding not in self._environment.reads or any(z3.is_bv(one) for one in at):
            raise Unsupported(f"OpImageFetch (%{self.site}) of variable %{image}")
        texel = tuple(self._answer(binding, *at, lane) for lane in range(4))
        for lane in texel:
            self._fact(lane)
        self._note(state, Access(write=False, binding=binding, at=at, value=texel))
        return texel

    def write(self, state: State, image: int, at: tuple[Scalar, ...], texel: Value) -> None:
        """Note a write of a texel."""
        binding = self._binding(image)
        self._note(state, Access(write=True, binding=binding, at=at, value=texel))

    def never(self, what: str) -> None:
        """An obligation that fails wherever it is met."""
        self._oblige(what, z3.BoolVal(val=False))

    def _note(self, state: State, access: Access) -> None:
        if any(z3.is_bv(one) for one in access.at):
            raise Unsupported(f"an address (%{self.site}) that is made of bits of the table")
        path: Path = state.own
        noted = replace(access, path=path.conditions, loops=path.loops)
        state.own = replace(path, accesses=(*path.accesses, noted))

    def _fact(self, value: Scalar) -> None:
        """Whatever is read as an integer is one of 32 bits."""
        if isinstance(value, Poly) or z3.is_int(value):
            read = z(value) if isinstance(value, Poly) else value
            self.facts.append(z3.And(read >= -_SIGN, read < _SIGN))

    def _place(self, at: Pointer) -> Term:
        """The number of a pointer's first scalar in its buffer."""
        kind = self.module.type(self.module.variables[at.variable]).of[0]
        place: Term = 0
        for step in at.path:
            if kind.kind == "Struct":
                place, kind = place + sum(len(part.lanes) for part in kind.of[:step]), kind.of[step]
            else:
                if z3.is_bv(step):
                    raise Unsupported(f"an address (%{self.site}) that is made of bits of the table")
                place, kind = place + step * len(kind.of[0].lanes), kind.of[0]
        return place


def _masked(term: Term, mask: int) -> Term:
    """The bits of a signed word that a mask leaves, as a number: run by run of ones."""
    result: Term = 0
    start = 0
    while mask >> start:
        if not mask >> start & 1:
            start += 1
            continue
        stop = start
        while mask >> stop & 1:
            stop += 1
        part = quotient(term, 1 << start)
        # The topmost run keeps the sign, as two's complement does.
        result = result + (1 << start) * (part if stop == _BITS else remainder(part, 1 << (stop - start)))
        start = stop
    return result


def _known(test: Any) -> Any:
    test = z3.simplify(test)
    return True if z3.is_true(test) else False if z3.is_false(test) else test


def _pattern(word: Sequence[Real]) -> int:
    """The bits of constants, as a signed word."""
    pattern = sum(int(part.operands[0]) << at * part.width for at, part in enumerate(word))
    return (pattern + _SIGN) % _WORD - _SIGN


def _float(lane: Scalar) -> Scalar:
    if isinstance(lane, Bits) and len(lane.parts) == 1:
        return lane.parts[0]
    return Real("constant", (lane % _WORD,), _BITS) if isinstance(lane, int) else Real("bits", (lane,), _BITS)


def _texel(lanes: Sequence[Scalar]) -> Any:
    """The first lane's expression where all are lanes 0, 1, ... of one texel, else None."""
    found = [z(one) if isinstance(one, Poly) else one for one in lanes]
    if not all(z3.is_app(one) and one.num_args() > 1 for one in found if not isinstance(one, int)):
        return None
    if any(isinstance(one, int) for one in found):
        return None
    first = found[0]
    for number, one in enumerate(found):
        same = one.decl().eq(first.decl()) and all(
            a.eq(b) for a, b in zip(one.children()[:-1], first.children()[:-1], strict=True)
        )
        if not same or not one.children()[-1].eq(z3.IntVal(number)):
            return None
    return first
