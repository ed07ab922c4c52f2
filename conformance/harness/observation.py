"""What a subject did, as numpy and plain data, and its encoding between processes.

An Observation is all that ever leaves the child process in which a subject runs. The encoding is
a JSON header followed by raw array bytes: nothing in it can run code, and sizes are checked before
anything is allocated. bfloat16 arrays travel as the structured dtype ``reference.arithmetic.bfloat16`` uses.
"""

import hashlib
import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import numpy as np

from conformance.serialize import register_as_is, structure, unstructure
from reference.arithmetic.bfloat16 import BFLOAT16, dtype_name

T = TypeVar("T")
ArrayMap = Mapping[str, np.ndarray[Any, Any]]


@dataclass(frozen=True)
class Declared:
    """What the shaders declare of their arithmetic: SPIR-V's execution modes with their width, as "RoundingModeRTE 32".

    Nothing is assumed of what is None. ``precise``: every result is decorated NoContraction. ``io_storage``: of indices
    and output.
    """

    execution_modes: tuple[str, ...] | None = None
    precise: bool | None = None
    io_storage: str = "buffer"


@dataclass(frozen=True)
class Facts(Declared):
    """How an answer was made, and what the fences around it say. A subject may give a plain mapping of these names.

    ``arithmetic`` "host" asks for the strict set. ``damage``: what was written outside the output. ``unwritten`` and
    ``unstable``: the first element of the output that no invocation wrote, and that two runs wrote differently.
    ``binding``: the line of the host code that binds the shader. ``provenance``: what made the program, by the
    subject's or builder's own names. ``build_seconds``: what making it took, of which the subject is innocent.
    """

    arithmetic: str = ""
    device: str = ""
    driver: str = ""
    binding: str = ""
    spirv_sha256: str = ""
    damage: str = ""
    unwritten: int | None = None
    unstable: int | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)
    build_seconds: float = 0.0


@dataclass(frozen=True)
class Arrays:
    """Stages QUANTIZE, PACK, PREPACK and KERNEL: named arrays, and how they were made."""

    arrays: ArrayMap
    facts: Facts = Facts()


@dataclass(frozen=True)
class Decision:
    """What became of one lookup step of the spec.

    ``reason``: of a refusal, in any words; "" where the subject reports on lookups and gives none, None without report.
    """

    lookup: str
    fused: bool
    reason: str | None = ""
    detail: str = ""


@dataclass(frozen=True)
class Place:
    """What computes an output of a file: "vulkan", "cpu", "input" or "constant"; and the operator."""

    place: str
    operator: str


@dataclass(frozen=True)
class Problem:
    """One thing wrong with a file. ``kind`` is a stable name, ``where`` a method and delegate, ``fix`` may be "".

    ``severity``: the method "fails" to load or run, its values are "wrong", or bytes are a "waste".
    """

    severity: str
    kind: str
    where: str
    detail: str
    fix: str = ""


@dataclass(frozen=True)
class FileContent:
    """What a file holds: where each step is computed, copies of its tables, and what an audit says.

    ``copies``: by table and form ("original", "packed flat", ...), how many constants of the file are that.
    ``unread``: constants that nothing reads on the way to an output. ``dynamic``: as ``Graph`` has it at
    RUN.
    """

    size: int
    places: Mapping[str, Place]
    copies: Mapping[str, Mapping[str, int]]
    problems: tuple[Problem, ...] = ()
    notes: tuple[str, ...] = ()
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    unread: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """Stages EXPORT, MATCH and RUN: a program, observed.

    At EXPORT there are no decisions, and ``source_outputs`` is what the quantized steps read, by "STEP.operand".
    ``outputs``: what the rewritten program computes, by step name, fused nodes through the
    reference operator. ``source_outputs``: what the same runtime computes for the program that was
    not rewritten. ``changed``: names of what the subject touched in the source program (graph,
    signature, state dict entries, the caller's module). ``unstable``: what a second run changed.
    ``written``: what the rewritten program leaves in the tensors that it writes to, by the tensor's name in the spec.
    ``read``: whole tables, as ``File`` has them. ``unserved``: of a fused lookup, why no kernel can serve its operands.
    ``failed``: why a step could not be computed. ``places``, at RUN: what computes each step.
    A program with symbolic sizes is run at other sizes too: "STEP@SIZE" in ``outputs``, ``source_outputs``, ``failed``.
    At EXPORT, ``forms``: each quantized step's operator with its arguments that are no tensors; ``tables``: that of the
    dequantize behind a lookup; ``dynamic``: the symbolic dimensions of a user input. At RUN, ``dynamic``: the largest
    sizes of a user input that the file lets vary.
    """

    decisions: tuple[Decision, ...]
    outputs: ArrayMap
    source_outputs: ArrayMap
    changed: tuple[str, ...] = ()
    unstable: tuple[str, ...] = ()
    written: ArrayMap = field(default_factory=dict)
    read: ArrayMap = field(default_factory=dict)
    unserved: Mapping[str, str] = field(default_factory=dict)
    failed: Mapping[str, str] = field(default_factory=dict)
    places: Mapping[str, Place] = field(default_factory=dict)
    forms: Mapping[str, str] = field(default_factory=dict)
    tables: Mapping[str, str] = field(default_factory=dict)
    dynamic: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    facts: Facts = Facts()

    def at(self, size: str) -> "Graph":
        """Return what was observed at another size."""
        outputs, sources = _at(size, self.outputs), _at(size, self.source_outputs)
        return replace(self, outputs=outputs, source_outputs=sources, failed=_at(size, self.failed))


def _at(size: str, values: Mapping[str, T]) -> dict[str, T]:
    return {name.removesuffix(f"@{size}"): value for name, value in values.items() if name.endswith(f"@{size}")}


#: The "size" of what the second call of a program gives that writes to its buffers.
SECOND = "second call"


def named_at(size: str, values: Mapping[str, T]) -> dict[str, T]:
    """Return values by step with the size at which they were observed in their names."""
    return {f"{name}@{size}": value for name, value in values.items()}


@dataclass(frozen=True)
class File:
    """Stage LOWER: the SHA-256 of a file, and what it holds.

    ``read``: the whole table that a lookup reads: "STEP.values" and "STEP.scales" of a fused one, else "STEP.table".
    ``outputs`` and ``source_outputs``, as a Graph's, where a real runtime was there to execute it.
    """

    digest: str
    content: FileContent
    read: ArrayMap = field(default_factory=dict)
    facts: Facts = Facts()
    outputs: ArrayMap = field(default_factory=dict)
    source_outputs: ArrayMap = field(default_factory=dict)


@dataclass(frozen=True)
class Refused:
    """The subject declined the whole case, with its reason; ``limit`` names the device's limit that it exceeds."""

    reason: str
    detail: str = ""
    limit: str = ""


@dataclass(frozen=True)
class Raised:
    """The subject raised, died or hung.

    ``where``: module.function of the implementation under test that raised. ``signal``: what killed the process, if
    a signal did. ``trouble``: it is the machine's or the harness's, and no failure of the subject; ``loading``: the
    subject itself could not be loaded.
    """

    type: str
    message: str
    where: str = ""
    signal: str = ""
    trouble: bool = False
    loading: bool = False


@dataclass(frozen=True)
class Unsupported:
    """The subject cannot be asked this case; the reason is its own.

    ``of_device``: it is the device that lacks what the case needs, and no choice of the subject's.
    """

    reason: str
    of_device: bool = False


Observation = Arrays | Graph | File | Refused | Raised | Unsupported
_TYPES: dict[str, type[Observation]] = {t.__name__: t for t in (Arrays, Graph, File, Refused, Raised, Unsupported)}
_ARRAYS = ("arrays", "outputs", "source_outputs", "written", "read")
#: Bytes of an answer; a case has at most 2^26 elements (reference.program.spec.MOST_ELEMENTS).
LARGEST = 512 << 20
_MAX_HEADER = 4 << 20
_PLAIN = map(np.dtype, ("?", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "f2", "f4", "f8"))
#: What an array may hold, by what the header says of it: numpy's own reader of such texts takes much, and raises much.
_NUMBERS = {json.dumps(dtype.str): dtype for dtype in _PLAIN} | {json.dumps(BFLOAT16.descr): BFLOAT16}
register_as_is(np.ndarray[Any, Any])


def digest(observation: Arrays | Graph) -> str:
    """Return the SHA-256 of what was answered: names, types and bits of arrays, and decisions. Facts are no part."""
    hashed = hashlib.sha256()
    for kind in _ARRAYS:
        for name, array in sorted(getattr(observation, kind, {}).items()):
            hashed.update(f"{kind} {name} {dtype_name(array)} {array.shape}\n".encode())
            hashed.update(np.ascontiguousarray(array).tobytes())
    for decision in getattr(observation, "decisions", ()):
        hashed.update(f"{decision.lookup} {decision.fused} {decision.reason}\n".encode())
    return hashed.hexdigest()


def encode(observation: Observation) -> bytes:
    """Return ``observation`` as bytes: uint64 header length, JSON header, then the arrays' bytes."""
    blobs: list[bytes] = []
    body = {
        name: {key: _put_array(array, blobs) for key, array in value.items()} if name in _ARRAYS else unstructure(value)
        for name, value in vars(observation).items()
    }
    header = json.dumps({"kind": type(observation).__name__, "body": body}).encode()
    return b"".join([struct.pack("<Q", len(header)), header, *blobs])


def decode(data: bytes | bytearray) -> Observation:
    """Return the observation that ``encode`` wrote.

    Raises:
        ValueError: the bytes are truncated, carry an unknown kind, dtype or field, or sizes that do not fit.
    """
    if len(data) < 8 or (length := struct.unpack_from("<Q", data)[0]) > min(_MAX_HEADER, len(data) - 8):  # noqa: PLR2004 - 8 bytes of length
        raise ValueError("observation: truncated header")
    arrays = memoryview(data)[8 + length :]
    try:
        header = json.loads(data[8 : 8 + length])
        kind, body = _TYPES[header["kind"]], header["body"]
        for name in _ARRAYS:
            if name in body:
                body[name] = {key: _get_array(meta, arrays) for key, meta in body[name].items()}
    except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
        raise ValueError(f"observation: malformed ({error!r})") from error
    except ValueError as error:
        raise ValueError(f"observation: {error}") from error
    return structure(kind, body, "observation")


def _put_array(array: np.ndarray[Any, Any], blobs: list[bytes]) -> dict[str, Any]:
    raw = np.ascontiguousarray(array).tobytes()
    offset = sum(map(len, blobs))
    blobs.append(raw)
    descr = array.dtype.descr if array.dtype.names else array.dtype.str
    return {"dtype": descr, "shape": list(array.shape), "offset": offset, "bytes": len(raw)}


@dataclass(frozen=True)
class _Placed:
    """Where an array's bytes are."""

    dtype: Any
    shape: tuple[int, ...]
    offset: int
    bytes: int


def _get_array(meta: Any, data: memoryview) -> np.ndarray[Any, Any]:
    placed = structure(_Placed, meta)
    descr, shape = placed.dtype, placed.shape
    dtype = _NUMBERS.get(json.dumps(descr))
    if dtype is None:
        raise ValueError(f"an array of {descr!r} is not data")
    count = 1
    for size in shape:
        if size < 0 or (count := count * size) > LARGEST:
            raise ValueError(f"array shape {shape} is out of bounds")
    start, size = placed.offset, placed.bytes
    if size != count * dtype.itemsize or start < 0 or start + size > len(data):
        raise ValueError(f"array of shape {shape} and {size} bytes does not fit its data")
    return np.frombuffer(data[start : start + size], dtype=dtype).reshape(shape).copy()
