"""Audits a ``.pte``: what its delegates and its CPU part hold, and what would fail or be wrong on a device.

Source: docs/contract.md sections 6 and 7.
"""

import math
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

from executorch.backends.vulkan.serialization.vulkan_graph_schema import VkTensor
from executorch.exir.schema import DelegateCall, KernelCall, Tensor

from conformance.audit.report import Audit, Part, TableRow, render, to_json
from conformance.audit.runtime import runtime_problems
from conformance.audit.tables import LINEAR, table_rows
from conformance.harness.errors import CannotRun, UnservedGroupSize
from conformance.harness.observation import Problem
from conformance.program.tensors import dtype_name
from conformance.pte.cpu import registered
from conformance.pte.delegate import border_dtype
from conformance.pte.file import DTYPES, VULKAN, Method, PteFile, VulkanDelegate, read_pte
from conformance.pte.lookup import LOOKUP, check_servable, lookup_call, storage_of
from conformance.pte.memory import memory_faults
from conformance.pte.operators import load, registered_operators
from conformance.pte.run import scalar_dtype
from impl.matcher import Limits
from reference.table.layouts import BLOCK_COLUMNS, BLOCK_ROWS

#: Texels a side that the partitioner counts on.
TEXTURE_LIMIT = 16384
#: Vulkan's required minimum of maxStorageBufferRange.
BUFFER_RANGE = 1 << 27


def audit_file(path: str, form: str, *limits: str) -> str:
    """Audit a file: "1" or "0" for whether it fails, then the report as "json" or "text".

    ``limits``: of ``Limits`` in order, "" for none. Entry point of ``conformance.harness.limited``.
    """
    result = audit(read_pte(Path(path)), Limits(*(int(limit) if limit else None for limit in limits)))
    return f"{int(result.fails())}{to_json(result) if form == 'json' else render(result, path)}"


def audit(file: PteFile, limits: Limits | None = None) -> Audit:
    """Audit a parsed file, for a device of these ``limits``."""
    limits = limits or Limits()
    parts: list[Part] = []
    problems: list[Problem] = []
    notes: list[str] = []
    kernels = registered()
    for method in file.methods:
        for delegate in method.delegates.values():
            counts = Counter(call.name for call in delegate.graph.chain)
            size = sum(map(len, delegate.constants))
            parts.append(Part(method.name, f"vulkan{delegate.index}", dict(counts), size))
            problems += [*_delegate_problems(delegate), *runtime_problems(delegate)]
            where = f"{method.name}/vulkan{delegate.index}"
            problems += (Problem("wrong", kind, where, fault) for kind, fault in memory_faults(delegate))
            if delegate.options.get("force_fp16", b"\0").strip(b"\0"):
                notes.append(f"{delegate.name}: force_fp16 makes scales and outputs float16 (contract 3.7)")
        problems += _boundary_problems(method)
        cpu = Counter(method.operator(c) for c in method.instructions() if isinstance(c, KernelCall))
        others = Counter(d.id for d in method.plan.delegates if d.id != VULKAN)
        if cpu or others:
            operators = dict(cpu) | {f"{k} delegate": n for k, n in others.items()}
            parts.append(Part(method.name, "cpu", operators, _cpu_bytes(file, method)))
        problems += [
            Problem(
                "fails",
                "missing_kernel",
                f"{method.name}/cpu",
                f"the wheel's CPU runtime registers no {operator}",
            )
            for operator in cpu
            if operator not in kernels
        ]
    rows, waste = table_rows(file)
    notes += [
        f"{row.table}: {row.bytes} bytes need maxStorageBufferRange above Vulkan's minimum of 128 MiB"
        for row in rows
        if row.bytes > BUFFER_RANGE and limits.max_storage_buffer_range is None
    ]
    problems += [problem for row in rows for problem in _limit_problems(row, limits)]
    source = load()
    return Audit(
        len(file.data),
        file.digest,
        source.version,
        source.revision,
        tuple(parts),
        tuple(rows),
        (*problems, *waste),
        tuple(notes),
    )


def _limit_problems(row: TableRow, limits: Limits) -> Iterator[Problem]:
    """What of a delegate's table is beyond the device's limits (contract 7.5)."""
    if not any("/vulkan" in reader for reader in row.readers):
        return
    width, blocks = row.columns // BLOCK_COLUMNS, -(-row.rows // BLOCK_ROWS)
    packed = width * blocks * BLOCK_ROWS * BLOCK_COLUMNS // 2
    needs = {
        "packed table, in bytes": (packed, "max_storage_buffer_range"),
        "scales, in bytes": (row.scale_bytes, "max_storage_buffer_range"),
        "texture's larger side, in texels": (max(width, blocks), "max_image_dimension_2d"),
    }
    for what, (size, name) in needs.items():
        limit = getattr(limits, name)
        if limit is not None and size > limit:
            yield Problem("fails", "device_limit", row.table, f"its {what}: {size}, above {name} {limit}")


def _cpu_bytes(file: PteFile, method: Method) -> int:
    buffers = file.content.program.constant_buffer
    used = {v.val.data_buffer_idx for v in method.plan.values if isinstance(v.val, Tensor)} - {0}
    return sum(len(buffers[n].storage) for n in used if n < len(buffers))


def _delegate_problems(delegate: VulkanDelegate) -> Iterator[Problem]:
    where, graph = f"{delegate.method}/vulkan{delegate.index}", delegate.graph
    for name in dict.fromkeys(call.name for call in graph.chain):
        if name not in registered_operators():
            yield Problem(
                "fails",
                "unregistered_operator",
                where,
                f"the Vulkan runtime registers no operator {name}; the method does not load",
                "keep it out of the delegate, or rewrite it before partitioning",
            )
    for call in graph.chain:
        try:
            if call.name == LOOKUP:
                lookup = lookup_call(graph, call.args)
                check_servable(graph, lookup)
                _check_extents(delegate, graph.values[lookup.out].value)
            elif call.name == LINEAR:
                _check_linear(delegate, call.args)
        except CannotRun as error:
            wrong = isinstance(error, UnservedGroupSize)
            yield Problem("wrong" if wrong else "fails", "group_size" if wrong else "unservable", where, str(error))


def _check_extents(delegate: VulkanDelegate, out: VkTensor) -> None:
    if storage_of(delegate.graph, out) != "texture3d":
        return
    dims: list[int] = list(out.dims)
    columns, rows = dims[-1], dims[-2] if len(dims) > 1 else 1
    for axis, extent in (("x", -(-columns // 4)), ("y", rows), ("z", math.prod(dims[:-2]))):
        if extent > TEXTURE_LIMIT:
            raise CannotRun(f"{LOOKUP}: its output needs {extent} texels in {axis}, beyond {TEXTURE_LIMIT}")


def _check_linear(delegate: VulkanDelegate, args: list[int]) -> None:
    """What upstream's 4-bit linear takes for granted: one scale for every 4 columns, whole groups."""
    values = delegate.graph.values
    weight, group = values[args[1]].value, values[args[3]].value.int_val
    columns = 2 * weight.dims[-1]
    if group < 1 or group % 4:
        raise UnservedGroupSize(f"{LINEAR}: group_size {group} of {columns} columns; one scale is read per 4 columns")


def _boundary_problems(method: Method) -> Iterator[Problem]:
    """Dtypes (and static shapes) on both sides of every delegate call (contract 6.3)."""
    for call in method.instructions():
        if not isinstance(call, DelegateCall) or call.delegate_index not in method.delegates:
            continue
        delegate = method.delegates[call.delegate_index]
        inside = [*delegate.graph.input_ids, *delegate.graph.output_ids]
        for number, (value, outer) in enumerate(zip(inside, call.args, strict=True)):
            inner, spec = delegate.graph.values[value].value, method.plan.values[outer].val
            if not isinstance(inner, VkTensor) or not isinstance(spec, Tensor):
                continue
            inputs = len(delegate.graph.input_ids)
            what = f"input {number}" if number < inputs else f"output {number - inputs}"
            where = f"{delegate.method}/vulkan{delegate.index}"
            yield from _boundary(where, what, inner, spec)


def _boundary(where: str, what: str, inner: VkTensor, spec: Tensor) -> Iterator[Problem]:
    try:
        outside = scalar_dtype(spec)
    except CannotRun as error:
        yield Problem("fails", "dtype", where, f"{what}: {error}")
        return
    if border_dtype(inner, outside) is None:
        detail = f"{what} is {DTYPES[inner.datatype.name]} in the delegate, {dtype_name(outside)} in the program"
        yield Problem("fails", "dtype", where, detail, "cast inside the delegate; a runtime converts to half only")
    if spec.shape_dynamism == 0 and list(inner.dims) != list(spec.sizes):
        yield Problem("wrong", "shape", where, f"{what} is {inner.dims} in the delegate, {spec.sizes} in the program")
