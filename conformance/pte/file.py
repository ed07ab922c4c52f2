"""Reads a ``.pte`` with ExecuTorch's own deserializers, and each Vulkan delegate's graph and constants.

Nothing here trusts the file: sizes and offsets are checked before they are used, and whatever the
deserializers raise on hostile bytes becomes one ``BadFile``. Bounds on memory and time are the
caller's (``conformance.harness.limited`` runs a reader in a child process).

Source: docs/contract.md section 6.
"""

import hashlib
import importlib.resources
import json
import math
import re
import struct
import subprocess
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from executorch.backends.vulkan import serialization
from executorch.backends.vulkan.serialization.vulkan_graph_schema import ValueList, VkGraph, VkTensor
from executorch.backends.vulkan.serialization.vulkan_graph_serialize import VulkanDelegateHeader
from executorch.exir._serialize._dataclass import _json_to_dataclass
from executorch.exir._serialize._flatbuffer import _flatc_decompile
from executorch.exir._serialize._program import PTEFile, deserialize_pte_binary
from executorch.exir.schema import DelegateCall, KernelCall, Tensor
from executorch.exir.version import EXECUTORCH_SCHEMA_VERSION

from conformance.harness.errors import BadFile, one_line

VULKAN = "VulkanBackend"
#: numpy's and torch's name of a dtype by VkDataType's.
DTYPES = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "INT8": "int8",
    "INT32": "int32",
    "FLOAT16": "float16",
    "FLOAT32": "float32",
    "FLOAT64": "float64",
    "INT64": "int64",
}
#: File identifier at offset 4 that executorch 1.5.1 writes and reads.
PTE_IDENTIFIER = b"ET12"
_EXTENDED = b"eh00"
_SMALLEST = 48
_GRAPH_IDENTIFIER = b"VK00"
_GRAPH_VERSION = "0"
_IN_NAMED_DATA = 2**64 - 1
#: A string, or a number that flatc prints as a bare word where json.loads has another one.
_STRING_OR_WORD = re.compile(r'"(?:[^"\\]|\\.)*"|(?<![\w.])(?:inf|nan)(?![\w.])')
_JSON_WORDS = {"inf": "Infinity", "nan": "NaN"}
#: What ExecuTorch's readers raise on bytes that are no program; MemoryError is a limit that the caller set.
_READERS_RAISE = (
    ValueError,
    LookupError,
    TypeError,
    AttributeError,
    AssertionError,
    ArithmeticError,
    RecursionError,
    MemoryError,
    OSError,
    struct.error,
    subprocess.CalledProcessError,
)


@dataclass(frozen=True)
class VulkanDelegate:
    """One Vulkan delegate of a method.

    Attributes:
        method: the method's name.
        index: its position among the method's delegates.
        graph: the VkGraph.
        constants: the bytes of every constant, by constant id.
        keys: for every constant its key in the named data, "" where the delegate holds it inline.
        options: the compile specs, raw.
    """

    method: str
    index: int
    graph: VkGraph
    constants: tuple[bytes, ...]
    keys: tuple[str, ...]
    options: Mapping[str, bytes]

    @property
    def name(self) -> str:
        """How messages call it."""
        return f"method {self.method!r}, Vulkan delegate {self.index}"


@dataclass(frozen=True)
class Method:
    """One method: ExecuTorch's ExecutionPlan, and its Vulkan delegates by position."""

    name: str
    plan: Any
    delegates: Mapping[int, VulkanDelegate]

    def instructions(self) -> Iterator[Any]:
        """The arguments of every instruction, in order."""
        for chain in self.plan.chains:
            for instruction in chain.instructions:
                yield instruction.instr_args

    def operator(self, call: Any) -> str:
        """A kernel call's operator as the runtime registers it, such as "aten::add.out"."""
        op = self.plan.operators[call.op_index]
        return f"{op.name}.{op.overload}" if op.overload else str(op.name)


@dataclass(frozen=True)
class PteFile:
    """A parsed ``.pte``: its bytes and their digest, and ExecuTorch's own objects, by method."""

    data: bytes
    digest: str
    content: PTEFile
    methods: tuple[Method, ...]

    def method(self, name: str) -> Method:
        """The named method.

        Raises:
            KeyError: there is none; the message lists the names.
        """
        for method in self.methods:
            if method.name == name:
                return method
        raise KeyError(f"no method {name!r}; the program has {', '.join(m.name for m in self.methods)}")


def read_pte(source: Path | str | bytes) -> PteFile:
    """Parse a ``.pte``.

    Args:
        source: a path, or the bytes.

    Raises:
        BadFile: it cannot be read, is truncated, inconsistent, or of another ExecuTorch version; one line.
    """
    if isinstance(source, bytes):
        name, data = "the program", source
        check_pte_header(data[:64], len(data), name)
    else:
        name = str(source)
        try:
            with Path(source).open("rb") as stream:
                head = stream.read(64)
                check_pte_header(head, Path(source).stat().st_size, name)
                data = head + stream.read()
        except OSError as error:
            raise BadFile(f"{name}: cannot be read ({error.strerror})") from error
    try:
        content = deserialize_pte_binary(data)
        _check_version(content, name)
        named = _named(content)
        methods = tuple(_method(plan, content, named, name) for plan in content.program.execution_plan)
    except BadFile:
        raise
    except _READERS_RAISE as error:
        raise BadFile(f"{name}: not a readable .pte ({one_line(error)})") from error
    if not methods:
        raise BadFile(f"{name}: the program has no method")
    return PteFile(data, hashlib.sha256(data).hexdigest(), content, methods)


def check_pte_header(head: bytes, size: int, name: str) -> None:
    """Check the identifier and that the extended header's sizes lie inside the file.

    Args:
        head: the file's first 64 bytes, or fewer.
        size: the file's length in bytes.
        name: what messages call the file.
    """
    if head[:2] == b"PK":
        raise BadFile(f"{name}: a ZIP archive (a .pt2?), not a .pte")
    if size < _SMALLEST:
        raise BadFile(f"{name}: {size} bytes are too few for a .pte")
    if head[4:8] != PTE_IDENTIFIER:
        if head[4:6] == b"ET":
            raise BadFile(
                f"{name}: file identifier {head[4:8].decode('ascii', 'replace')!r} is another ExecuTorch version's; "
                f"executorch 1.5.1 reads {PTE_IDENTIFIER.decode()!r}"
            )
        raise BadFile(f"{name}: not a .pte (no ExecuTorch identifier at byte 4)")
    (root,) = struct.unpack_from("<I", head, 0)
    if root >= size:
        raise BadFile(f"{name}: truncated or damaged: the program's root is at byte {root} of {size}")
    if head[8:12] != _EXTENDED:
        return
    length, program, segments, segment_bytes = struct.unpack_from("<IQQQ", head, 12)
    if program > size:
        raise BadFile(f"{name}: truncated: the program has {program} bytes, the file {size}")
    if segments > size or (length >= 32 and segments + segment_bytes > size):  # noqa: PLR2004 - the header with segment size
        raise BadFile(f"{name}: truncated: segments end at byte {segments + segment_bytes}, the file at {size}")


def _check_version(content: PTEFile, name: str) -> None:
    version = content.program.version
    if version != EXECUTORCH_SCHEMA_VERSION:
        raise BadFile(f"{name}: program schema version {version}; executorch 1.5.1 reads {EXECUTORCH_SCHEMA_VERSION}")


def _named(content: PTEFile) -> dict[str, bytes]:
    if content.named_data is None:
        return {}
    return {k: content.named_data.buffers[e.buffer_index] for k, e in content.named_data.pte_data.items()}


def _method(plan: Any, content: PTEFile, named: Mapping[str, bytes], file: str) -> Method:
    where = f"{file}: method {plan.name!r}"
    _indices(f"{where}: inputs and outputs", [*plan.inputs, *plan.outputs], len(plan.values))
    for number, value in enumerate(v.val for v in plan.values):
        if isinstance(value, Tensor) and value.sizes is None:
            raise BadFile(f"{where}: tensor {number} has no sizes")
    delegates: dict[int, VulkanDelegate] = {}
    for index, delegate in enumerate(plan.delegates):
        if delegate.id == VULKAN:
            blob = content.program.backend_delegate_data[delegate.processed.index].data
            specs = {spec.key: bytes(spec.value) for spec in delegate.compile_specs}
            delegates[index] = _delegate(plan.name, index, bytes(blob), named, specs, file)
    method = Method(plan.name, plan, delegates)
    for call in method.instructions():
        if isinstance(call, KernelCall):
            _indices(f"{where}: operator", [call.op_index], len(plan.operators))
            _indices(f"{where}: {method.operator(call)}", call.args, len(plan.values))
        elif isinstance(call, DelegateCall):
            _indices(f"{where}: delegate call", [call.delegate_index], len(plan.delegates))
            _indices(f"{where}: delegate call", call.args, len(plan.values))
            called = delegates.get(call.delegate_index)
            expected = len(called.graph.input_ids) + len(called.graph.output_ids) if called else len(call.args)
            if len(call.args) != expected:
                raise BadFile(f"{where}: delegate {call.delegate_index} takes {expected} values, gets {len(call.args)}")
    return method


def _delegate(
    method: str, index: int, blob: bytes, named: Mapping[str, bytes], options: Mapping[str, bytes], file: str
) -> VulkanDelegate:
    where = f"{file}: method {method!r}, Vulkan delegate {index}"
    length = VulkanDelegateHeader.EXPECTED_LENGTH
    if len(blob) < length:
        raise BadFile(f"{where}: {len(blob)} bytes are no delegate; its header alone has {length}")
    header = VulkanDelegateHeader.from_bytes(blob[:length])
    graph_end = header.flatbuffer_offset + header.flatbuffer_size
    if not header.is_valid() or graph_end > len(blob) or header.bytes_offset + header.bytes_size > len(blob):
        raise BadFile(f"{where}: its header points past the delegate's {len(blob)} bytes")
    flatbuffer = blob[header.flatbuffer_offset : graph_end]
    if flatbuffer[4:8] != _GRAPH_IDENTIFIER:
        raise BadFile(f"{where}: graph identifier {flatbuffer[4:8]!r}, not {_GRAPH_IDENTIFIER!r}")
    graph = read_graph(flatbuffer)
    if graph.version != _GRAPH_VERSION:
        raise BadFile(f"{where}: graph version {graph.version!r}; executorch 1.5.1 reads {_GRAPH_VERSION!r}")
    inline = blob[header.bytes_offset : header.bytes_offset + header.bytes_size]
    constants = tuple(_constant(entry, inline, named, where) for entry in graph.constants)
    _check_graph(graph, constants, where)
    return VulkanDelegate(method, index, graph, constants, tuple(c.named_key or "" for c in graph.constants), options)


def read_graph(flatbuffer: bytes) -> VkGraph:
    """What executorch's flatbuffer_to_vk_graph reads, and graphs that hold an infinity or a NaN, which it cannot."""
    with tempfile.TemporaryDirectory() as folder:
        schema, binary = Path(folder, "schema.fbs"), Path(folder, "graph.bin")
        schema.write_bytes(importlib.resources.files(serialization).joinpath("schema.fbs").read_bytes())
        binary.write_bytes(flatbuffer)
        _flatc_decompile(folder, str(schema), str(binary), ["--raw-binary"])
        text = Path(folder, "graph.json").read_text(encoding="utf-8")
    text = _STRING_OR_WORD.sub(lambda match: _JSON_WORDS.get(match[0], match[0]), text)
    graph: VkGraph = _json_to_dataclass(json.loads(text), VkGraph)
    return graph


def _constant(entry: Any, inline: bytes, named: Mapping[str, bytes], where: str) -> bytes:
    if entry.named_key and entry.offset == _IN_NAMED_DATA:
        data = named.get(entry.named_key)
        if data is None:
            raise BadFile(f"{where}: constant {entry.named_key[:16]}... is not in the file (external data?)")
        if entry.length > len(data):
            raise BadFile(f"{where}: constant {entry.named_key[:16]}... has {len(data)} bytes, {entry.length} declared")
        return data[: entry.length]
    if entry.offset + entry.length > len(inline):
        raise BadFile(f"{where}: a constant ends at {entry.offset + entry.length} of {len(inline)} inline bytes")
    return inline[entry.offset : entry.offset + entry.length]


def _check_graph(graph: VkGraph, constants: tuple[bytes, ...], where: str) -> None:
    """Every id the graph uses must exist, and every constant must have the bytes of its shape."""
    count = len(graph.values)
    _indices(f"{where}: inputs and outputs", [*graph.input_ids, *graph.output_ids], count)
    for call in graph.chain:
        _indices(f"{where}: {call.name}", call.args, count)
        if not call.args:
            raise BadFile(f"{where}: {call.name} has no output")
    for number, value in enumerate(v.value for v in graph.values):
        if isinstance(value, ValueList):
            _indices(f"{where}: value list {number}", value.items, count)
        if isinstance(value, VkTensor) and value.constant_id >= 0:
            _indices(f"{where}: value {number}", [value.constant_id], len(constants))
            size = tensor_bytes(value)
            if size != len(constants[value.constant_id]):
                raise BadFile(
                    f"{where}: constant value {number} of {value.datatype.name}{value.dims} takes {size} bytes, "
                    f"has {len(constants[value.constant_id])}"
                )


def tensor_bytes(tensor: VkTensor) -> int:
    """The bytes that a tensor's dtype and dimensions take; KeyError for a data type that has no size."""
    return int(np.dtype(DTYPES[tensor.datatype.name]).itemsize * math.prod(tensor.dims))


def _indices(where: str, indices: Any, count: int) -> None:
    for index in indices:
        if not 0 <= index < count:
            raise BadFile(f"{where}: refers to value {index} of {count}")
