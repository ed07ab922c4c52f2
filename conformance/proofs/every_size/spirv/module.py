"""A SPIR-V module as the executors need it: types, constants, variables, decorations and the blocks of ``main``.

Everything in a file is data from a stranger: lengths, ids and counts are checked before they are used, and nothing
here recurses over what the file nests.

Source: SPIR-V specification 1.6, sections 2.3 (physical layout), 2.4 (logical layout) and 3.52 (instructions).
"""

import hashlib
import struct
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

from conformance.proofs.every_size.spirv.opcodes import NAMES, SHAPES

_MAGIC, _HEADER, _WORD = 0x07230203, 5, 4
_MOST_BYTES, _MOST_IDS, _MOST_LANES, _MOST_ELEMENTS = 4 << 20, 1 << 20, 16, 4096
_DECORATIONS = {1: "SpecId", 6: "ArrayStride", 11: "BuiltIn", 33: "Binding", 34: "DescriptorSet", 42: "NoContraction"}
_OFFSET, _COMPUTE = 35, 5
#: Decorations that change no result: of blocks and matrices, Restrict, Volatile, Coherent, NonWritable, NonReadable.
#: RelaxedPrecision, FPRoundingMode and whatever else there is do, or may.
_HARMLESS = {2, 3, 4, 5, 7, 19, 21, 23, 24, 25}
#: LocalSize, and the float modes of SPV_KHR_float_controls.
_MODES = {17, *range(4459, 4464)}


class BadModule(ValueError):  # noqa: N818 - says what the file is
    """Bytes that are no SPIR-V module of a compute shader, or a broken one; one line."""


class Unsupported(ValueError):  # noqa: N818 - says what the executor does not know
    """Something in a valid module that the executor has no semantics for; names it."""


@dataclass(frozen=True)
class Type:
    """A type: ``kind`` is its instruction without "OpType", ``of`` what it is made of, ``count`` lanes or elements.

    ``width`` and ``signed`` are of numbers; ``storage`` is a pointer's storage class; ``dim`` an image's dimensions,
    ``texels`` the number of its format; ``stride`` the bytes between elements of an array in memory.
    """

    kind: str
    width: int = 0
    signed: bool = False
    of: tuple["Type", ...] = ()
    count: int = 0
    storage: int = 0
    dim: int = 0
    texels: int = 0
    stride: int = 0

    @property
    def is_scalar(self) -> bool:
        """Whether it is a number or a truth value."""
        return self.kind in {"Int", "Float", "Bool"}

    @property
    def lanes(self) -> tuple["Type", ...]:
        """The parts of a composite, in order; of a scalar itself."""
        if self.kind in {"Vector", "Array"}:
            return self.of * self.count
        return self.of if self.kind == "Struct" else (self,)


@dataclass(frozen=True)
class Instruction:
    """One instruction: opcode, result type and id (0 where it has none), and its other words."""

    code: int
    type: int
    result: int
    words: tuple[int, ...]

    @property
    def name(self) -> str:
        """As the specification calls it."""
        return NAMES.get(self.code, f"opcode {self.code}")

    def word(self, at: int) -> int:
        """An operand; BadModule where there is none."""
        if not 0 <= at < len(self.words):
            raise BadModule(f"{self.name} %{self.result}: operand {at} is missing")
        return self.words[at]


@dataclass
class Module:
    """A whole module; ids are the file's."""

    sha256: str
    entry: int = 0
    first: int = 0
    types: dict[int, Type] = field(default_factory=dict)
    constants: dict[int, Instruction] = field(default_factory=dict)
    variables: dict[int, int] = field(default_factory=dict)
    decorations: dict[int, dict[str, int]] = field(default_factory=dict)
    blocks: dict[int, tuple[Instruction, ...]] = field(default_factory=dict)
    capabilities: set[int] = field(default_factory=set)

    def type(self, number: int) -> Type:
        """The type of that id."""
        if number not in self.types:
            raise BadModule(f"%{number} is used as a type and is none")
        return self.types[number]

    def block(self, label: int) -> tuple[Instruction, ...]:
        """The instructions of a block after its label."""
        if label not in self.blocks:
            raise BadModule(f"a branch goes to %{label}, which is no block of main")
        return self.blocks[label]

    def decoration(self, number: int, name: str) -> int | None:
        """What an id is decorated with: the first operand, 0 for a decoration without one, None for none."""
        return self.decorations.get(number, {}).get(name)

    def bound(self) -> Mapping[int, int]:
        """Variables by their binding in descriptor set 0."""
        return {
            own["Binding"]: number
            for number, own in self.decorations.items()
            if "Binding" in own and number in self.variables and own.get("DescriptorSet", 0) == 0
        }


def read(spirv: bytes) -> Module:
    """Read a module.

    Raises:
        BadModule: the bytes are no module, are cut off, or refer to what is not there.
        Unsupported: the module is of another kind than one compute shader; names what it has.
    """
    module, inside, label = Module(hashlib.sha256(spirv).hexdigest()), False, 0
    body: list[Instruction] = []
    for instruction in _instructions(spirv):
        if inside:
            label, inside = _function(module, instruction, label, body)
        elif instruction.name == "OpFunction":
            if module.first:
                raise Unsupported("a second function (OpFunction): the compiler has to inline it")
            if instruction.result != module.entry:
                raise BadModule("the function is not the entry point")
            inside = True
        else:
            _declare(module, instruction)
    if inside or not module.first:
        raise BadModule("the module has no whole function main")
    return module


def _instructions(spirv: bytes) -> Iterator[Instruction]:
    """Every instruction after the header."""
    if len(spirv) > _MOST_BYTES:
        raise BadModule(f"{len(spirv)} bytes are more than the {_MOST_BYTES} that are read")
    if len(spirv) % _WORD or len(spirv) < _WORD * _HEADER:
        raise BadModule(f"{len(spirv)} bytes are no SPIR-V module")
    words = struct.unpack(f"<{len(spirv) // _WORD}I", spirv)
    if words[0] != _MAGIC:
        raise BadModule(f"no little-endian SPIR-V module: it begins with {words[0]:#010x}")
    bound = words[3]
    if bound > _MOST_IDS:
        raise BadModule(f"the module has ids up to {bound}, more than {_MOST_IDS}")
    at = _HEADER
    while at < len(words):
        length, code = words[at] >> 16, words[at] & 0xFFFF
        if length == 0 or at + length > len(words):
            raise BadModule(f"the instruction at word {at} has length {length}: the module is cut off or broken")
        typed, resulting = SHAPES.get(code, (0, 0))
        if length < 1 + typed + resulting:
            raise BadModule(f"{NAMES.get(code, code)} at word {at} is too short")
        own = words[at + 1 : at + length]
        kind, result = own[0] if typed else 0, own[typed] if resulting else 0
        if result >= bound or kind >= bound:
            raise BadModule(f"{NAMES.get(code, code)} at word {at} has an id beyond the bound {bound}")
        yield Instruction(code, kind, result, own[typed + resulting :])
        at += length


def _declare(module: Module, instruction: Instruction) -> None:
    """Take in what stands before the function."""
    name = instruction.name
    if name == "OpCapability":
        module.capabilities.add(instruction.word(0))
    elif name in {"OpEntryPoint", "OpExecutionMode"}:
        _entry(module, instruction)
    elif name in {"OpDecorate", "OpMemberDecorate"}:
        _decorate(module, instruction)
    elif name.startswith("OpType"):
        _once(module.types, instruction.result)
        module.types[instruction.result] = _type(module, name.removeprefix("OpType"), instruction)
    elif name.startswith(("OpConstant", "OpSpecConstant", "OpUndef")):
        _once(module.constants, instruction.result)
        module.type(instruction.type)
        module.constants[instruction.result] = instruction
    elif name == "OpVariable":
        if module.type(instruction.type).kind != "Pointer":
            raise BadModule(f"%{instruction.result} is a variable whose type is no pointer")
        _once(module.variables, instruction.result)
        module.variables[instruction.result] = instruction.type
    elif name.startswith("opcode"):
        raise Unsupported(f"{name} outside a function")


def _entry(module: Module, instruction: Instruction) -> None:
    if instruction.name == "OpExecutionMode":
        if instruction.word(1) not in _MODES:
            raise Unsupported(f"execution mode {instruction.word(1)}")
        return
    if module.entry:
        raise Unsupported("a second entry point (OpEntryPoint)")
    if instruction.word(0) != _COMPUTE:
        raise Unsupported(f"an entry point of execution model {instruction.word(0)}, not GLCompute")
    module.entry = instruction.word(1)


def _decorate(module: Module, instruction: Instruction) -> None:
    target, member = instruction.word(0), instruction.name == "OpMemberDecorate"
    number, *operands = instruction.words[1 + member :] or (instruction.word(1 + member),)
    kind = _DECORATIONS.get(number) if not member else f"Offset {instruction.word(1)}" if number == _OFFSET else None
    if target in module.types:
        raise BadModule(f"%{target} is decorated after its definition")
    if kind is not None:
        module.decorations.setdefault(target, {})[kind] = operands[0] if operands else 0
    elif number not in _HARMLESS:
        raise Unsupported(f"decoration {number} of %{target}")


def _once(known: Mapping[int, object], number: int) -> None:
    if number in known:
        raise BadModule(f"%{number} is defined twice")


def _type(module: Module, kind: str, instruction: Instruction) -> Type:
    """The type that an OpType instruction makes; its parts come before it, so nothing is circular."""
    word = instruction.word
    if kind in {"Int", "Float"}:
        return Type(kind, width=word(0), signed=kind == "Int" and bool(word(1)))
    if kind == "Vector" and not 2 <= word(1) <= _MOST_LANES:  # noqa: PLR2004 - the least a vector has
        raise BadModule(f"a vector of {word(1)} lanes")
    makers: dict[str, Callable[[], Type]] = {
        "Vector": lambda: Type(kind, of=(module.type(word(0)),), count=word(1)),
        "Array": lambda: Type(kind, of=(module.type(word(0)),), count=_array_length(module, word(1))),
        "RuntimeArray": lambda: _packed(Type(kind, of=(module.type(word(0)),), stride=_stride(module, instruction))),
        "Struct": lambda: _struct(module, instruction),
        "Pointer": lambda: Type(kind, of=(module.type(word(1)),), storage=word(0)),
        "Image": lambda: _image(module, word),
        "SampledImage": lambda: Type(kind, of=(module.type(word(0)),)),
        **{plain: lambda: Type(kind) for plain in ("Void", "Bool", "Function")},
    }
    if kind not in makers:
        raise Unsupported(f"OpType{kind} (%{instruction.result})")
    return makers[kind]()


def _image(module: Module, word: Callable[[int], int]) -> Type:
    if word(3) or word(4):
        raise Unsupported("an image (OpTypeImage) of layers or of several samples")
    return Type("Image", of=(module.type(word(0)),), dim=word(1) + 1, texels=word(6))


def _stride(module: Module, instruction: Instruction) -> int:
    return module.decorations.get(instruction.result, {}).get("ArrayStride", 0)


def _packed(array: Type) -> Type:
    """An array in memory without gaps between its elements, which is what places are counted in."""
    if array.stride * 8 != sum(lane.width for lane in array.of[0].lanes):
        raise Unsupported(f"an array of {array.of[0].kind} with {array.stride} bytes an element")
    return array


def _struct(module: Module, instruction: Instruction) -> Type:
    """A structure whose members lie one behind the other."""
    parts, own, at = tuple(module.type(part) for part in instruction.words), module.decorations, 0
    for number, part in enumerate(parts):
        offset = own.get(instruction.result, {}).get(f"Offset {number}", at)
        if offset != at:
            raise Unsupported(
                f"a structure (%{instruction.result}) whose member {number} is at byte {offset}, not {at}"
            )
        at += sum(lane.width for lane in part.lanes) // 8 if part.kind != "RuntimeArray" else 0
    return Type("Struct", of=parts)


def _array_length(module: Module, number: int) -> int:
    length = module.constants.get(number)
    if length is None or length.name != "OpConstant" or not 1 <= length.word(0) <= _MOST_ELEMENTS:
        raise Unsupported(f"the length of an array type (%{number})")
    return length.word(0)


def _function(module: Module, instruction: Instruction, label: int, body: list[Instruction]) -> tuple[int, bool]:
    """Take in an instruction of main; returns the block that is open (0 for none), and whether main goes on."""
    name = instruction.name
    if name == "OpFunctionEnd":
        if label:
            raise BadModule(f"block %{label} has no end")
        return 0, False
    if name == "OpLabel":
        if label:
            raise BadModule(f"block %{label} has no end")
        _once(module.blocks, instruction.result)
        module.first = module.first or instruction.result
        return instruction.result, True
    if name in {"OpLine", "OpNoLine"}:
        return label, True
    if not label:
        raise BadModule(f"{name} outside a block")
    body.append(instruction)
    if name in {"OpBranch", "OpBranchConditional", "OpSwitch", "OpReturn", "OpUnreachable", "OpKill"}:
        module.blocks[label] = tuple(body)
        body.clear()
        return 0, True
    return label, True
