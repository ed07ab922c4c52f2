"""The quantized tables of a ``.pte``: where each lies, how often, who reads it, and copies in other forms.

Everything is found by content: two tables are one when their 4-bit values are equal, whatever the layout.

Source: docs/contract.md sections 1, 4 and 6.1.
"""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkTensor
from executorch.exir.schema import KernelCall, Tensor

from conformance.audit.report import TableRow
from conformance.harness.errors import CannotRun
from conformance.harness.observation import Problem
from conformance.pte.file import Method, PteFile, VulkanDelegate
from conformance.pte.lookup import LOOKUP, constant_array, lookup_call
from reference.table.layouts import unpack_flat, unpack_linear_weight

Array = np.ndarray[Any, Any]
LINEAR = "et_vk.linear_q4gsw.default"
#: The wheel's CPU lookups: layout and values in a byte.
_CPU = {
    "quantized_decomposed::embedding_4bit": ("flat", 2),
    "quantized_decomposed::embedding_2bit": ("flat, 2 bit", 4),
    "quantized_decomposed::embedding_byte": ("a byte each", 1),
}
_ROWS = 4096  # rows dequantized at a time


@dataclass(frozen=True)
class Use:
    """One operator's reading of a table."""

    reader: str
    layout: str
    weight: bytes
    rows: int
    columns: int
    group_size: int
    scales: bytes
    scale_dtype: str

    def values(self, start: int, stop: int) -> Array | None:
        """The int8 values of rows [start, stop); None for layouts other than the two 4-bit ones."""
        if self.layout not in {"flat", "linear_weight"}:
            return None
        packed = np.frombuffer(self.weight, np.uint8).reshape(self.rows, self.columns // 2)[start:stop]
        return unpack_flat(packed) if self.layout == "flat" else unpack_linear_weight(packed)

    def scale_rows(self, start: int, stop: int) -> Array:
        """The scales of rows [start, stop), a column each."""
        scales = np.frombuffer(self.scales, self.scale_dtype)
        if self.scales_transposed:
            scales = scales.reshape(-1, self.rows).T
        return np.repeat(scales.reshape(self.rows, -1)[start:stop], self.group_size, axis=1)

    @property
    def scales_transposed(self) -> bool:
        """Upstream's linear keeps its scales as [D/G, V]."""
        return LINEAR in self.reader


def table_uses(file: PteFile) -> list[Use]:
    """Every quantized lookup and 4-bit linear of the file, delegated or not, in order."""
    uses: list[Use] = []
    for method in file.methods:
        for delegate in method.delegates.values():
            uses += _delegate_uses(delegate)
        uses += _cpu_uses(file, method)
    return uses


def _delegate_uses(delegate: VulkanDelegate) -> Iterator[Use]:
    graph = delegate.graph
    for call in delegate.graph.chain:
        if call.name == LOOKUP:
            try:
                lookup = lookup_call(graph, call.args)
            except CannotRun:
                continue  # the operator check reports it
            weight, scales, group = lookup.weight, lookup.scales, lookup.group_size
            layout = "linear_weight" if lookup.linear else "flat"
        elif call.name == LINEAR:
            _x, weight, scales, group_value, *_rest = call.args
            group, layout = graph.values[group_value].value.int_val, "linear_weight"
        else:
            continue
        table, scale = constant_behind(delegate, weight), constant_behind(delegate, scales)
        if table is None or scale is None or len(table.dims) != 2:  # noqa: PLR2004 - rows and columns
            continue
        yield Use(
            f"{delegate.method}/vulkan{delegate.index} {call.name}",
            layout,
            constant_array(table, delegate.constants).tobytes(),
            table.dims[0],
            2 * table.dims[1],
            group,
            constant_array(scale, delegate.constants).tobytes(),
            str(constant_array(scale, delegate.constants).dtype),
        )


def constant_behind(delegate: VulkanDelegate, value: int) -> VkTensor | None:
    """The constant tensor that a value is, or is a prepacked copy of."""
    tensor = delegate.graph.values[value].value
    if isinstance(tensor, VkTensor) and tensor.constant_id >= 0:
        return tensor
    for call in delegate.graph.chain:
        if call.name == "et_vk.prepack.default" and call.args[-1] == value:
            return constant_behind(delegate, call.args[0])
    return None


def _cpu_uses(file: PteFile, method: Method) -> Iterator[Use]:
    buffers = file.content.program.constant_buffer
    for call in method.instructions():
        if not isinstance(call, KernelCall):
            continue
        operator = method.operator(call)
        layout, per_byte = _CPU.get(operator.partition(".")[0], ("", 0))
        weight, scales = (method.plan.values[v].val for v in call.args[:2]) if layout else (None, None)
        if not isinstance(weight, Tensor) or not isinstance(scales, Tensor) or not weight.data_buffer_idx:
            continue
        columns = weight.sizes[1] * per_byte
        groups = scales.sizes[1] if len(scales.sizes) > 1 else 1
        dtype = {"FLOAT": "float32", "HALF": "float16"}.get(scales.scalar_type.name, scales.scalar_type.name)
        yield Use(
            f"{method.name}/cpu {operator}",
            layout,
            bytes(buffers[weight.data_buffer_idx].storage)[: weight.sizes[0] * weight.sizes[1]],
            weight.sizes[0],
            columns,
            columns // max(1, groups),
            bytes(buffers[scales.data_buffer_idx].storage) if scales.data_buffer_idx else b"",
            dtype,
        )


def stores(file: PteFile) -> dict[str, bytes]:
    """Every block of constant bytes as the file holds it, by where: named data, inline constants, CPU buffers."""
    blocks: dict[str, bytes] = {}
    named = file.content.named_data
    for number, buffer in enumerate(named.buffers if named is not None else []):
        blocks[f"named data {number}"] = bytes(buffer)
    for method in file.methods:
        for delegate in method.delegates.values():
            for number, (data, key) in enumerate(zip(delegate.constants, delegate.keys, strict=True)):
                if not key:
                    blocks[f"{delegate.method}/vulkan{delegate.index} constant {number}"] = data
    for number, cpu_buffer in enumerate(file.content.program.constant_buffer):
        blocks[f"CPU constant {number}"] = bytes(cpu_buffer.storage)
    return blocks


def table_rows(file: PteFile) -> tuple[list[TableRow], list[Problem]]:
    """Rows for the audit's table of tables, and problems: the same table twice, or copies as int8 or float."""
    held = stores(file)
    grouped: dict[tuple[bytes, str], list[Use]] = {}
    for use in table_uses(file):
        grouped.setdefault((hashlib.sha256(use.weight).digest(), use.layout), []).append(use)
    rows: list[TableRow] = []
    problems: list[Problem] = []
    by_values: dict[bytes, str] = {}
    for number, uses in enumerate(grouped.values()):
        use, name = uses[0], f"table {number}"
        stored = sum(same_bytes(data, use.weight) for data in held.values())
        scale_bytes = sum(len(s) for s in {u.scales for u in uses})
        rows.append(
            TableRow(
                name,
                use.layout,
                use.rows,
                use.columns,
                use.group_size,
                use.scale_dtype,
                len(use.weight),
                scale_bytes,
                stored,
                tuple(dict.fromkeys(u.reader for u in uses)),
            )
        )
        if stored > 1:
            problems.append(Problem("waste", "duplicate_table", name, f"its bytes are in the file {stored} times"))
        digest = _values_digest(use)
        if digest and digest in by_values:
            detail = f"holds the values of {by_values[digest]} in another layout ({use.layout})"
            problems.append(Problem("waste", "duplicate_table", name, detail, "read both through one layout"))
        elif digest:
            by_values[digest] = name
        problems += _copies(name, uses, held)
    return rows, problems


def same_bytes(held: bytes, data: bytes) -> bool:
    """Equal but for padding that the file adds behind the last byte."""
    return len(data) <= len(held) < len(data) + 16 and held[: len(data)] == data and not any(held[len(data) :])


def _values_digest(use: Use) -> bytes:
    digest = hashlib.sha256(repr((use.rows, use.columns)).encode())
    for start in range(0, use.rows, _ROWS):
        values = use.values(start, start + _ROWS)
        if values is None:
            return b""
        digest.update(values.tobytes())
    return digest.digest()


def _copies(name: str, uses: list[Use], held: dict[str, bytes]) -> Iterator[Problem]:
    """The table once more as int8 values, or dequantized: bytes that a fused program has no use for."""
    elements = uses[0].rows * uses[0].columns
    for where, data in held.items():
        if elements <= len(data) < elements + 16 and _is_copy(uses[0], data, np.dtype("int8")):
            yield Problem("waste", "int8_original", name, f"{where} holds its values as int8, {len(data)} bytes")
        for dtype in (np.dtype("float32"), np.dtype("float16")):
            size = elements * dtype.itemsize
            if size <= len(data) < size + 16 and any(_is_copy(use, data, dtype) for use in uses):
                detail = f"{where} holds it dequantized to {dtype}, {len(data)} bytes"
                yield Problem("waste", "float_copy", name, detail, "fuse every lookup, or read the table quantized")


def _is_copy(use: Use, data: bytes, dtype: np.dtype[Any]) -> bool:
    count = use.rows * use.columns
    held = np.frombuffer(data, dtype, count=count).reshape(use.rows, use.columns)
    for start in range(0, use.rows, _ROWS):
        values = use.values(start, start + _ROWS)
        if values is None:
            return False
        expected: Array = values
        if dtype.kind == "f":
            with np.errstate(over="ignore", invalid="ignore"):
                expected = (values.astype(np.float32) * use.scale_rows(start, start + _ROWS)).astype(dtype)
        if not np.array_equal(held[start : start + _ROWS], expected, equal_nan=dtype.kind == "f"):
            return False
    return True
