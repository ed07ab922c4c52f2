"""What SPIR-V's instructions mean, once, for both executors: a domain says what a number is and what memory holds.

The concrete domain computes with arrays over many invocations at once, the symbolic one with terms of z3. Control
flow, composites, pointers and function-local memory are here, so that testing the one tests the other.

Source: SPIR-V specification 1.6, sections 2.16 and 3.52.
"""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Protocol

from conformance.proofs.every_size.spirv.module import BadModule, Instruction, Module, Type, Unsupported
from conformance.proofs.every_size.spirv.opcodes import LANES

#: A number or truth value of a domain; a composite is a tuple of values.
Scalar = Any
Value = Any
_UNIFORM_CONSTANT, _INPUT, _PRIVATE, _FUNCTION = 0, 1, 6, 7
_LOD = 2


class TooLong(Unsupported):
    """More instructions than a shader of this interface needs, by far."""


@dataclass(frozen=True)
class Pointer:
    """A variable, the indices into it, and the type of what is pointed at."""

    variable: int
    path: tuple[Scalar, ...]
    type: Type


@dataclass(frozen=True)
class Opaque:
    """An image or sampled image, by its variable."""

    variable: int


@dataclass
class State:
    """One path of execution: where it is, the values it has computed, its local memory, and the domain's own part."""

    label: int
    previous: int = 0
    values: dict[int, Value] = field(default_factory=dict)
    local: dict[int, Value] = field(default_factory=dict)
    own: Any = None

    def fork(self, label: int, own: Any) -> "State":
        """A copy that goes on at ``label``."""
        return State(label, self.label, dict(self.values), dict(self.local), own)


class Domain(Protocol):
    """What a number is."""

    def constant(self, pattern: int, kind: Type) -> Scalar:
        """The number of a bit pattern; of truth values 0 or 1."""

    def integer(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """An instruction on 32-bit integers."""

    def compare(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """A comparison of 32-bit integers."""

    def logical(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """An instruction on truth values."""

    def real(self, name: str, operands: Sequence[Scalar], width: int) -> Scalar:
        """An instruction on floats of ``width`` bits."""

    def convert(self, name: str, operand: Scalar, source: Type, target: Type) -> Scalar:
        """A conversion of numbers."""

    def select(self, condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
        """One of two scalars."""

    def recast(self, lanes: Sequence[Scalar], source: Type, target: Type) -> Sequence[Scalar]:
        """The same bits as scalars of another type."""

    def pick(self, lanes: Sequence[Scalar], at: Scalar) -> Scalar:
        """The lane of a vector with a computed number."""

    def branch(self, state: State, condition: Scalar, yes: int, no: int) -> Iterable[State]:
        """The states in which a branch goes on."""

    def load(self, state: State, at: Pointer) -> Value:
        """What memory or a built-in variable holds there."""

    def store(self, state: State, at: Pointer, value: Value) -> None:
        """Write to memory."""

    def length(self, state: State, variable: int, member: int) -> Scalar:
        """Elements of the runtime array that is a structure's member."""

    def fetch(self, state: State, image: int, at: tuple[Scalar, ...]) -> Value:
        """A texel of a sampled image."""

    def write(self, state: State, image: int, at: tuple[Scalar, ...], texel: Value) -> None:
        """Write a texel of a storage image."""

    def never(self, what: str) -> None:
        """Take note of what no shader may do."""


class Machine:
    """Executes ``main``; a subclass may stop paths where it has seen enough of them."""

    #: Instructions that are executed, on all paths together.
    most = 2_000_000
    #: What Python raises where a module's types contradict each other.
    strange: ClassVar[tuple[type[Exception], ...]] = (
        TypeError, ValueError, IndexError, KeyError, AttributeError, ArithmeticError, RecursionError,
    )  # fmt: skip

    def __init__(self, module: Module, domain: Domain, specialization: dict[int, Scalar]) -> None:
        self.module, self.domain = module, domain
        self._specialization = specialization
        self._constants: dict[int, Value] = {}
        self._steps = 0
        with self._consistent("the constants"):
            for number in module.constants:
                self._constants[number] = self._constant(module.constants[number])

    def run(self, own: Any) -> None:
        """Execute every path from the first block on; ``own`` is the domain's part of the first state."""
        work = [State(self.module.first, own=own)]
        while work:
            state = work.pop()
            with self._consistent(f"block %{state.label}"):
                work.extend(self.block(state))

    @contextmanager
    def _consistent(self, where: str) -> Iterator[None]:
        """Operands that are not of the types that instructions give them are the file's fault; never a proof."""
        try:
            yield
        except (BadModule, Unsupported):
            raise
        except self.strange as error:
            what = " ".join(f"{type(error).__name__} {error}".split())
            raise BadModule(f"{where}: an instruction and its operands do not fit ({what[:200]})") from error

    def block(self, state: State) -> Iterable[State]:
        """Execute one block; returns the states in which execution goes on."""
        instructions = self.module.block(state.label)
        self._steps += len(instructions)
        if self._steps > self.most:
            raise TooLong(f"more than {self.most} instructions on all paths together")
        phis = [one for one in instructions if one.name == "OpPhi"]
        if not self.arrive(state, phis):
            return []
        for instruction in instructions[len(phis) : -1]:
            self.step(state, instruction)
        return self.leave(state, instructions[-1])

    def arrive(self, state: State, phis: Sequence[Instruction]) -> bool:
        """Take the phis' values, all at once; False ends the path here."""
        found = {}
        for phi in phis:
            incoming = dict(zip(phi.words[1::2], phi.words[::2], strict=True))
            if state.previous not in incoming:
                raise BadModule(f"OpPhi %{phi.result} has no value for block %{state.previous}")
            found[phi.result] = self.value(state, incoming[state.previous])
        state.values.update(found)
        return True

    def returned(self, state: State) -> None:
        """Take note of a path that returns."""

    def value(self, state: State, number: int) -> Value:
        """What an id stands for."""
        if number in self._constants:
            return self._constants[number]
        if number in state.values:
            return state.values[number]
        if number in self.module.variables:
            return Pointer(number, (), self.module.type(self.module.variables[number]).of[0])
        raise BadModule(f"%{number} is used and not defined on this path")

    def leave(self, state: State, last: Instruction) -> Iterable[State]:
        """Execute the end of a block; returns the states in which execution goes on."""
        if last.name == "OpReturn":
            self.returned(state)
            return []
        if last.name == "OpBranch":
            return [self._goto(state, last.word(0))]
        if last.name == "OpBranchConditional":
            condition = self.value(state, last.word(0))
            return self.domain.branch(state, condition, last.word(1), last.word(2))
        if last.name == "OpSwitch":
            if len(last.words) > 2:  # noqa: PLR2004 - selector and default
                raise Unsupported("OpSwitch with cases")
            return [self._goto(state, last.word(1))]
        raise Unsupported(f"{last.name} as the end of block %{state.label}")

    @staticmethod
    def _goto(state: State, label: int) -> State:
        state.previous, state.label = state.label, label
        return state

    def step(self, state: State, one: Instruction) -> None:
        """Execute an instruction that is no phi and no end of a block."""
        if one.name in {"OpSelectionMerge", "OpLoopMerge", "OpNoLine", "OpLine"}:
            return
        if one.name == "OpStore":
            self._store(state, one)
        elif one.name == "OpImageWrite":
            if len(one.words) > 3:  # noqa: PLR2004 - image, coordinate, texel
                raise Unsupported("OpImageWrite with image operands")
            image, at, texel = (self.value(state, word) for word in (one.word(0), one.word(1), one.word(2)))
            self.domain.write(state, _image(one, image), _tuple(at), _tuple(texel))
        elif one.code in LANES:
            operands = [(self.value(state, word), self._type_of(state, word)) for word in one.words]
            state.values[one.result] = self._lanes(one, operands)
        else:
            handler = getattr(self, f"_{one.name}", None)
            if handler is None:
                raise Unsupported(f"{one.name} (%{one.result})")
            state.values[one.result] = handler(state, one)

    def _type_of(self, state: State, number: int) -> Type:
        """The type of a value's id; found with its definition."""
        del state
        if number not in self._types:
            raise BadModule(f"%{number} is used and not defined")
        return self.module.type(self._types[number])

    @property
    def _types(self) -> dict[int, int]:
        """Result types by id, of everything in the module."""
        if not hasattr(self, "_known_types"):
            every = [*self.module.constants.values(), *(i for b in self.module.blocks.values() for i in b)]
            self._known_types = {one.result: one.type for one in every if one.result}
        return self._known_types

    def _lanes(self, one: Instruction, operands: Sequence[tuple[Value, Type]]) -> Value:
        """A function of scalars on each lane; operands without lanes serve all of them."""
        target = self.module.type(one.type)
        count = max(len(target.lanes), 1) if target.kind == "Vector" else 1
        columns = [(_tuple(value) if kind.kind == "Vector" else (value,) * count) for value, kind in operands]
        if any(len(column) != count for column in columns):
            raise BadModule(f"{one.name} %{one.result}: operands and result differ in their lanes")
        source, scalar = (operands[-1][1].lanes or (target,))[0], target.lanes[0] if count > 1 else target
        result = tuple(self._scalar(one, lane, source, scalar) for lane in zip(*columns, strict=True))
        return result if target.kind == "Vector" else result[0]

    def _scalar(self, one: Instruction, operands: Sequence[Scalar], source: Type, target: Type) -> Scalar:
        _name, kind = LANES[one.code]
        for own in (source, target):
            widths = {"Int": {32}, "Float": {16, 32}, "Bool": {0}}.get(own.kind, set())
            if own.width not in widths:
                raise Unsupported(f"{one.name} (%{one.result}) on {own.kind} of {own.width} bits")
        if kind == "convert":
            return self.domain.convert(one.name, operands[0], source, target)
        if kind == "real":
            return self.domain.real(one.name, operands, target.width)
        if kind == "select":
            return self.domain.select(*operands)
        function = {"integer": self.domain.integer, "compare": self.domain.compare, "logical": self.domain.logical}
        return function[kind](one.name, operands)

    # Instructions by name.

    def _OpVariable(self, state: State, one: Instruction) -> Value:  # noqa: N802 - the instruction's name
        kind = self.module.type(one.type).of[0]
        if len(one.words) > 1:
            state.local[one.result] = self.value(state, one.word(1))
        return Pointer(one.result, (), kind)

    def _OpAccessChain(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        base = self._pointer(state, one)
        path, kind = base.path, base.type
        for word in one.words[1:]:
            at = self.value(state, word)
            if kind.kind == "Struct":
                number = self.constant_word(word)
                if not 0 <= number < len(kind.of):
                    raise BadModule(f"OpAccessChain %{one.result}: there is no member {number}")
                path, kind = (*path, number), kind.of[number]
            elif kind.kind in {"Vector", "Array", "RuntimeArray"}:
                path, kind = (*path, at), kind.of[0]
            else:
                raise BadModule(f"OpAccessChain %{one.result} goes into a {kind.kind}")
        return replace(base, path=path, type=kind)

    _OpInBoundsAccessChain = _OpAccessChain

    def _OpLoad(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        at = self._pointer(state, one)
        if at.type.kind in {"Image", "SampledImage"}:
            return Opaque(at.variable)
        if not self._is_local(at):
            return self.domain.load(state, at)
        if at.variable not in state.local:
            raise Unsupported(f"OpLoad (%{one.result}) of a local variable that nothing was stored in")
        value = state.local[at.variable]
        for step in at.path:
            value = self._lane(value, step)
        return value

    def _OpArrayLength(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self.domain.length(state, self._pointer(state, one).variable, one.word(1))

    def _OpImage(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self.value(state, one.word(0))

    def _OpImageFetch(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        extra = one.words[2:]
        if extra and extra[0] != _LOD:
            raise Unsupported(f"OpImageFetch (%{one.result}) with image operands other than Lod")
        if extra and (level := self.constant_word(one.word(3))) != 0:
            self.domain.never(f"a read of level {level} of an image that has one")
        image = _image(one, self.value(state, one.word(0)))
        return self.domain.fetch(state, image, _tuple(self.value(state, one.word(1))))

    def _OpBitcast(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        source, target = self._type_of(state, one.word(0)), self.module.type(one.type)
        value = self.value(state, one.word(0))
        lanes = self.domain.recast(
            _tuple(value) if source.kind == "Vector" else (value,),
            source.lanes[0] if source.kind == "Vector" else source,
            target.lanes[0] if target.kind == "Vector" else target,
        )
        return tuple(lanes) if target.kind == "Vector" else lanes[0]

    def _OpVectorTimesScalar(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        vector, factor = (self.value(state, one.word(at)) for at in (0, 1))
        width = self.module.type(one.type).lanes[0].width
        return tuple(self.domain.real("OpFMul", (lane, factor), width) for lane in _tuple(vector))

    def _OpVectorShuffle(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        lanes = (*_tuple(self.value(state, one.word(0))), *_tuple(self.value(state, one.word(1))))
        if any(at >= len(lanes) for at in one.words[2:]):
            raise Unsupported(f"OpVectorShuffle (%{one.result}) of a lane that is undefined")
        return tuple(lanes[at] for at in one.words[2:])

    def _OpCompositeConstruct(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        parts = [self.value(state, word) for word in one.words]
        if self.module.type(one.type).kind != "Vector":
            return tuple(parts)
        return tuple(lane for part in parts for lane in (part if isinstance(part, tuple) else (part,)))

    def _OpCompositeExtract(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        value = self.value(state, one.word(0))
        for at in one.words[1:]:
            value = _at(value, at)
        return value

    def _OpCompositeInsert(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        inserted, composite = self.value(state, one.word(0)), self.value(state, one.word(1))
        return self._with(composite, one.words[2:], inserted)

    def _OpVectorExtractDynamic(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self.domain.pick(_tuple(self.value(state, one.word(0))), self.value(state, one.word(1)))

    def _OpCopyObject(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self.value(state, one.word(0))

    def _OpAny(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self._folded(state, one, "OpLogicalOr")

    def _OpAll(self, state: State, one: Instruction) -> Value:  # noqa: N802 - as above
        return self._folded(state, one, "OpLogicalAnd")

    def _folded(self, state: State, one: Instruction, name: str) -> Value:
        first, *rest = _tuple(self.value(state, one.word(0)))
        for lane in rest:
            first = self.domain.logical(name, (first, lane))
        return first

    # Memory of the invocation, and constants.

    def _store(self, state: State, one: Instruction) -> None:
        at, value = self._pointer(state, one), self.value(state, one.word(1))
        if not self._is_local(at):
            self.domain.store(state, at, value)
        elif not at.path:
            state.local[at.variable] = value
        elif all(isinstance(step, int) for step in at.path) and at.variable in state.local:
            state.local[at.variable] = self._with(state.local[at.variable], at.path, value)
        else:
            raise Unsupported(f"OpStore to a computed part of local variable %{at.variable}")

    def _is_local(self, at: Pointer) -> bool:
        if at.variable not in self.module.variables:
            return True
        storage = self.module.type(self.module.variables[at.variable]).storage
        if storage == _PRIVATE:
            raise Unsupported(f"variable %{at.variable} of storage class Private")
        return storage == _FUNCTION

    def _pointer(self, state: State, one: Instruction) -> Pointer:
        base = self.value(state, one.word(0))
        if not isinstance(base, Pointer):
            raise BadModule(f"{one.name} %{one.result}: %{one.word(0)} is no pointer")
        return base

    def _lane(self, value: Value, at: Scalar) -> Value:
        return _at(value, at) if isinstance(at, int) else self.domain.pick(_tuple(value), at)

    def _with(self, composite: Value, path: Sequence[int], value: Value) -> Value:
        """The composite with one part replaced; paths are as deep as a type, which the reader bounds."""
        if not path:
            return value
        parts = list(_tuple(composite))
        parts[path[0]] = self._with(_at(composite, path[0]), path[1:], value)
        return tuple(parts)

    def constant_word(self, number: int) -> int:
        """The bit pattern of a constant that no pipeline can change."""
        one = self.module.constants.get(number)
        if one is None or one.name != "OpConstant":
            raise Unsupported(f"%{number} has to be a constant")
        return one.word(0)

    def _constant(self, one: Instruction) -> Value:
        kind, name = self.module.type(one.type), one.name.replace("OpSpec", "Op")
        special = self.module.decoration(one.result, "SpecId")
        if special is not None and special in self._specialization:
            return self._specialization[special]
        if name in {"OpConstantTrue", "OpConstantFalse"}:
            return self.domain.constant(int(name == "OpConstantTrue"), kind)
        if name == "OpConstant":
            if kind.width > 32:  # noqa: PLR2004 - a word
                raise Unsupported(f"a constant of {kind.width} bits (%{one.result})")
            return self.domain.constant(one.word(0) & (1 << kind.width) - 1, kind)
        if name == "OpConstantComposite":
            if any(word not in self._constants for word in one.words):
                raise BadModule(f"constant %{one.result} is made of what is no constant")
            return tuple(self._constants[word] for word in one.words)
        if name == "OpConstantNull" and all(lane.is_scalar for lane in kind.lanes):
            lanes = tuple(self.domain.constant(0, lane) for lane in kind.lanes)
            return lanes if kind.kind == "Vector" else lanes[0]
        if one.name == "OpSpecConstantOp":
            if one.word(0) not in LANES:
                raise Unsupported(f"OpSpecConstantOp of opcode {one.word(0)} (%{one.result})")
            inner = Instruction(one.word(0), one.type, one.result, one.words[1:])
            state = State(0)
            operands = [(self.value(state, word), self._type_of(state, word)) for word in inner.words]
            return self._lanes(inner, operands)
        raise Unsupported(f"{one.name} (%{one.result})")


def _image(one: Instruction, value: Value) -> int:
    if not isinstance(value, Opaque):
        raise BadModule(f"{one.name} %{one.result}: an operand is no image")
    return value.variable


def _tuple(value: Value) -> tuple[Value, ...]:
    if not isinstance(value, tuple):
        raise BadModule("a composite is expected where there is a single value")
    return value


def _at(value: Value, at: int) -> Value:
    parts = _tuple(value)
    if not 0 <= at < len(parts):
        raise BadModule(f"a composite of {len(parts)} parts has no part {at}")
    return parts[at]
