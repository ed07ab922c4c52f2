"""SPIR-V executed on numbers: all invocations of a dispatch at once, as numpy arrays that branches split.

The same ``machine`` as the symbolic executor's, so what is seen here (bit for bit against a device and the
reference) is evidence about that one. Arithmetic is IEEE to nearest even, and nothing is flushed.

Source: SPIR-V specification 1.6; docs/contract.md sections 3 and 7.
"""

import functools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from conformance.proofs.every_size.spirv.machine import Machine, Pointer, Scalar, State, Value
from conformance.proofs.every_size.spirv.module import Module, Type, Unsupported

Array = np.ndarray[Any, Any]
_WORD, _SIGN = 1 << 32, 1 << 31
_FLOATS: dict[int, Any] = {16: np.float16, 32: np.float32}
_INTS: dict[int, Any] = {16: np.uint16, 32: np.uint32}
_GLOBAL_ID, _GROUPS, _LOCAL_ID, _GROUP_ID, _LOCAL_INDEX = 28, 24, 27, 26, 29
_PUSH, _MOST_INVOCATIONS, _MOST_INSTRUCTIONS = 9, 1 << 22, 400_000
_SHIFTS = 31


@dataclass(frozen=True)
class Buffer:
    """A storage or uniform buffer: 16-bit or 32-bit words, and how many of them a write may reach (0: read only)."""

    words: Array


@dataclass(frozen=True)
class Image:
    """An image: texels [z, y, x, 4] of int32, or of float32."""

    texels: Array


@dataclass
class Dispatch:
    """What a shader is run on: resources by binding, push constants, specialization constants and the grid."""

    resources: Mapping[int, Buffer | Image]
    push: tuple[int, ...]
    specialization: Mapping[int, int]
    groups: tuple[int, int, int]
    #: Binding 0 is written; how often each word or texel was. Filled by a run.
    writes: Array = field(default_factory=lambda: np.zeros(0, np.int64))
    #: What no shader may do, a line each, first of its kind. Filled by a run.
    faults: list[str] = field(default_factory=list)


def run(module: Module, dispatch: Dispatch) -> None:
    """Execute the dispatch; binding 0 is written in place.

    Raises:
        Unsupported: names the instruction that has no semantics here, or what makes the run too long.
    """
    local = tuple(dispatch.specialization.get(axis, 1) for axis in range(3))
    extent = tuple(groups * size for groups, size in zip(dispatch.groups, local, strict=True))
    total = int(np.prod(extent, dtype=np.int64))
    if total > _MOST_INVOCATIONS:
        raise Unsupported(f"{total} invocations are more than {_MOST_INVOCATIONS}")
    out = dispatch.resources[0]
    size = out.words.size if isinstance(out, Buffer) else out.texels[..., 0].size
    dispatch.writes = np.zeros(size, np.int64)
    x, y, z = (axis.reshape(-1) for axis in np.meshgrid(*(np.arange(n) for n in extent), indexing="ij"))
    specialization = {number: _signed(value) for number, value in dispatch.specialization.items()}
    machine = Machine(module, Numbers(module, dispatch, local), specialization)
    machine.most = _MOST_INSTRUCTIONS
    with np.errstate(all="ignore"):
        machine.run((x, y, z))


def _signed(value: Any) -> Any:
    """The representative of a 32-bit word in [-2^31, 2^31)."""
    return (value + _SIGN) % _WORD - _SIGN


def _unsigned(value: Any) -> Any:
    return value % _WORD


class Numbers:
    """The concrete domain: integers are int or int64 arrays of signed words, floats arrays of their own type."""

    def __init__(self, module: Module, dispatch: Dispatch, local: Sequence[int]) -> None:
        self._module, self._dispatch, self._local = module, dispatch, local

    def constant(self, pattern: int, kind: Type) -> Scalar:
        """See ``machine.Domain``, as everything here."""
        if kind.kind == "Float":
            return np.array([pattern], _INTS[kind.width]).view(_FLOATS[kind.width])[0]
        return bool(pattern) if kind.kind == "Bool" else _signed(pattern)

    def integer(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """32-bit integers."""
        a, b = (*operands, 0)[:2]
        if name in {"OpSDiv", "OpUDiv", "OpSMod", "OpUMod", "OpSRem"}:
            return self._divide(name, a, b)
        if name.startswith("OpShift") and np.any((_unsigned(b)) > _SHIFTS):
            self.never(f"{name} by more than {_SHIFTS}")
            b = _unsigned(b) % (_SHIFTS + 1)
        results = {
            "OpIAdd": lambda: a + b,
            "OpISub": lambda: a - b,
            "OpIMul": lambda: a * b,
            "OpSNegate": lambda: -a,
            "OpNot": lambda: ~a,
            "OpBitwiseAnd": lambda: a & b,
            "OpBitwiseOr": lambda: a | b,
            "OpBitwiseXor": lambda: a ^ b,
            "OpShiftLeftLogical": lambda: a << b,
            "OpShiftRightLogical": lambda: _unsigned(a) >> b,
            "OpShiftRightArithmetic": lambda: a >> b,
        }
        return _signed(results[name]())

    def _divide(self, name: str, a: Scalar, b: Scalar) -> Scalar:
        if np.any(b == 0):
            self.never(f"{name} by zero")
            b = np.where(b == 0, 1, b)
        if name.startswith("OpU"):
            a, b = _unsigned(a), _unsigned(b)
            return _signed(a // b if name == "OpUDiv" else a % b)
        if name == "OpSMod":
            return a % b
        quotient = np.sign(a) * np.sign(b) * (np.abs(a) // np.abs(b))
        return _signed(quotient if name == "OpSDiv" else a - b * quotient)

    def compare(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """Comparisons of 32-bit integers."""
        a, b = operands
        if name.startswith("OpU"):
            a, b, name = _unsigned(a), _unsigned(b), name.replace("OpU", "OpS")
        return {
            "OpIEqual": np.equal,
            "OpINotEqual": np.not_equal,
            "OpSLessThan": np.less,
            "OpSLessThanEqual": np.less_equal,
            "OpSGreaterThan": np.greater,
            "OpSGreaterThanEqual": np.greater_equal,
        }[name](a, b)

    def logical(self, name: str, operands: Sequence[Scalar]) -> Scalar:
        """Truth values."""
        if name == "OpLogicalNot":
            return np.logical_not(operands[0])
        a, b = operands
        return {
            "OpLogicalAnd": np.logical_and,
            "OpLogicalOr": np.logical_or,
            "OpLogicalEqual": np.equal,
            "OpLogicalNotEqual": np.not_equal,
        }[name](a, b)

    def real(self, name: str, operands: Sequence[Scalar], width: int) -> Scalar:
        """Floats, to nearest even."""
        del width
        if name == "OpFNegate":
            return -operands[0]
        a, b = operands
        return {"OpFAdd": np.add, "OpFSub": np.subtract, "OpFMul": np.multiply, "OpFDiv": np.divide}[name](a, b)

    def convert(self, name: str, operand: Scalar, source: Type, target: Type) -> Scalar:
        """Conversions between numbers."""
        del source
        if name in {"OpConvertFToS", "OpConvertFToU"}:
            return _signed(np.trunc(operand).astype(np.int64))
        value = _unsigned(operand) if name == "OpConvertUToF" else operand
        return np.asarray(value).astype(_FLOATS[target.width])

    def select(self, condition: Scalar, yes: Scalar, no: Scalar) -> Scalar:
        """One of two scalars."""
        return np.where(condition, yes, no)

    def recast(self, lanes: Sequence[Scalar], source: Type, target: Type) -> Sequence[Scalar]:
        """The same bits."""
        if source.width == target.width:
            return [self._same_width(lane, source, target) for lane in lanes]
        if (source.width, target.width) == (16, 32):
            low, high = (self._same_width(lane, source, Type("Int", width=16)) for lane in lanes)
            return [self._same_width(_signed(low | high << 16), Type("Int", width=32), target)]
        raise Unsupported(f"OpBitcast from {source.width} to {target.width} bits")

    @staticmethod
    def _same_width(lane: Scalar, source: Type, target: Type) -> Scalar:
        if source.kind == target.kind:
            return lane
        if target.kind == "Float":
            return np.asarray(_unsigned(lane)).astype(_INTS[target.width]).view(_FLOATS[target.width])
        word = np.asarray(lane).view(_INTS[source.width]).astype(np.int64)
        return _signed(word) if target.width == 32 else word  # noqa: PLR2004 - a half is part of a word

    def pick(self, lanes: Sequence[Scalar], at: Scalar) -> Scalar:
        """The lane of a vector with a computed number."""
        if np.any((at < 0) | (at >= len(lanes))):
            self.never("a lane beyond its vector")
        rows = np.broadcast_arrays(*lanes, at)
        return np.choose(np.clip(rows[-1], 0, len(lanes) - 1), rows[:-1])

    def branch(self, state: State, condition: Scalar, yes: int, no: int) -> Iterable[State]:
        """Split the invocations."""
        if np.ndim(condition) == 0:
            return [state.fork(yes if condition else no, state.own)]
        states = []
        for label, mask in ((yes, condition), (no, ~condition)):
            if mask.all():
                return [state.fork(label, state.own)]
            if not mask.any():
                continue
            part = state.fork(label, _subset(state.own, mask))
            part.values = {number: _subset(value, mask) for number, value in state.values.items()}
            part.local = {number: _subset(value, mask) for number, value in state.local.items()}
            states.append(part)
        return states

    def load(self, state: State, at: Pointer) -> Value:
        """What memory or a built-in variable holds."""
        binding = self._module.decoration(at.variable, "Binding")
        builtin = self._module.decoration(at.variable, "BuiltIn")
        if builtin is not None:
            lanes = self._builtin(state, builtin)
            return lanes[at.path[0]] if at.path else lanes
        if binding is None:
            if self._module.type(self._module.variables[at.variable]).storage != _PUSH:
                raise Unsupported(f"variable %{at.variable}, which is bound to nothing")
            words: Array = np.array(self._dispatch.push, np.int64)
        else:
            words = self._buffer(binding).words
        start = self._word(at)
        parts = tuple(self._gather(words, start + lane, kind) for lane, kind in enumerate(at.type.lanes))
        return parts if at.type.kind == "Vector" else parts[0]

    def store(self, state: State, at: Pointer, value: Value) -> None:
        """Scatter to binding 0."""
        if self._module.decoration(at.variable, "Binding") != 0:
            raise Unsupported(f"OpStore to variable %{at.variable}, which is not the output")
        words, start = self._buffer(0).words, np.asarray(self._word(at))
        lanes = value if isinstance(value, tuple) else (value,)
        for lane, (part, kind) in enumerate(zip(lanes, at.type.lanes, strict=True)):
            bits = self._same_width(part, kind, Type("Int", width=kind.width))
            where, bits = np.broadcast_arrays(start + lane, bits, np.zeros(len(state.own[0]), np.int64))[:2]
            inside = (where >= 0) & (where < words.size)
            if not inside.all():
                self.never(f"a write to word {int(where[~inside][0])} of binding 0, which has {words.size}")
            words[where[inside]] = _unsigned(bits[inside]).astype(words.dtype)
            np.add.at(self._dispatch.writes, where[inside], 1)

    def length(self, state: State, variable: int, member: int) -> Scalar:
        """Elements of a buffer's runtime array."""
        del state, member
        binding = self._module.decoration(variable, "Binding")
        array = self._module.type(self._module.variables[variable]).of[0].of[0]
        return self._buffer(-1 if binding is None else binding).words.size // len(array.of[0].lanes)

    def fetch(self, state: State, image: int, at: tuple[Scalar, ...]) -> Value:
        """A texel of a sampled image; zeros outside, and a fault."""
        del state
        texels = self._image(image).texels
        places, inside = self._places(texels, at)
        if not np.all(inside):
            self.never(f"a read outside the image of variable %{image}")
        found = texels[tuple(np.where(inside, place, 0) for place in places)]
        return tuple(np.where(inside, found[..., lane], 0).astype(np.int64) for lane in range(4))

    def write(self, state: State, image: int, at: tuple[Scalar, ...], texel: Value) -> None:
        """Write a texel of binding 0."""
        texels = self._image(image).texels
        lanes = np.broadcast_arrays(*at, *texel, np.zeros(len(state.own[0]), np.int64))
        places, inside = self._places(texels, lanes[: len(at)])
        if not np.all(inside):
            self.never("a write outside the image of binding 0")
        where = tuple(np.asarray(place)[inside] for place in np.broadcast_arrays(*places))
        texels[where] = np.stack([np.asarray(lane)[inside] for lane in lanes[len(at) : -1]], -1)
        np.add.at(self._dispatch.writes, np.ravel_multi_index(where, texels.shape[:3]), 1)

    @staticmethod
    def _places(texels: Array, at: Sequence[Scalar]) -> tuple[tuple[Scalar, ...], Scalar]:
        """Coordinates as (z, y, x), and whether each is inside."""
        places = tuple(reversed((*at, *(0,) * (3 - len(at)))))
        inside = functools.reduce(
            np.logical_and, [(p >= 0) & (p < n) for p, n in zip(places, texels.shape[:3], strict=True)]
        )
        return places, inside

    def _builtin(self, state: State, builtin: int) -> tuple[Scalar, ...]:
        identity: tuple[Scalar, ...] = state.own
        if builtin == _GLOBAL_ID:
            return identity
        if builtin == _GROUPS:
            return self._dispatch.groups
        if builtin == _LOCAL_ID:
            return tuple(at % size for at, size in zip(identity, self._local, strict=True))
        if builtin == _GROUP_ID:
            return tuple(at // size for at, size in zip(identity, self._local, strict=True))
        raise Unsupported(f"built-in variable {builtin}")

    def _word(self, at: Pointer) -> Scalar:
        """Where a pointer's first scalar is, counted in scalars from the beginning of its buffer."""
        kind, word = self._module.type(self._module.variables[at.variable]).of[0], 0
        for step in at.path:
            if kind.kind == "Struct":
                word = word + sum(len(part.lanes) for part in kind.of[:step])
                kind = kind.of[step]
            else:
                word, kind = word + step * len(kind.of[0].lanes), kind.of[0]
        return word

    def _gather(self, words: Array, at: Scalar, kind: Type) -> Scalar:
        inside = (np.asarray(at) >= 0) & (np.asarray(at) < words.size)
        if not inside.all():
            self.never(f"a read of word {int(np.asarray(at)[~inside].reshape(-1)[0])} of a buffer of {words.size}")
        found = words[np.where(inside, at, 0)] if words.size else np.zeros_like(at)
        return self._same_width(_signed(found.astype(np.int64)), Type("Int", width=kind.width), kind)

    def _buffer(self, binding: int) -> Buffer:
        found = self._dispatch.resources.get(binding)
        if not isinstance(found, Buffer):
            raise Unsupported(f"binding {binding} as a buffer")
        return found

    def _image(self, variable: int) -> Image:
        found = self._dispatch.resources.get(self._module.decoration(variable, "Binding") or 0)
        if not isinstance(found, Image):
            raise Unsupported(f"variable %{variable} as an image")
        return found

    def never(self, what: str) -> None:
        """What no shader may do, each once."""
        if what not in self._dispatch.faults:
            self._dispatch.faults.append(what)


def _subset(value: Value, mask: Array) -> Value:
    """The part of a value that belongs to some of the invocations."""
    if isinstance(value, tuple):
        return tuple(_subset(part, mask) for part in value)
    if isinstance(value, Pointer):
        return replace(value, path=_subset(value.path, mask))
    return value[mask] if isinstance(value, np.ndarray) and value.ndim else value
