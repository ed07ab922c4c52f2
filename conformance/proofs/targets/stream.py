"""Chunk after chunk of scales through one unmodified kernel, for proofs over whole domains.

Table and indices stay on the device, scales go in, products come out into memory that the host reads while
the next chunk runs.

The table has 512 columns in groups of 16 that hold the codes 0 to 15, and the indices are 0, 1, 2, ...: the
output is 16 products a scale, in the order of the scales. Every output is filled with poison before the
dispatch and has guard bands on both sides (contract 7.4).
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from conformance.proofs.target import Array, Result
from impl.dispatch.grid import guard_bytes
from impl.dispatch.job import Operand
from impl.dispatch.request import check_request
from impl.gpu.memory import Buffer, Image, memory_barrier, shares_memory
from impl.gpu.pipeline import BufferRange, PipelineCache, Resource
from impl.kernel import Device, Variant, embedding_job
from impl.shader.compiler import Shader
from reference.table.layouts import pack_blocks, pack_flat

COLUMNS, GROUP = 512, 16
PER_ROW = COLUMNS // GROUP  # scales of a row
SMALLEST = 1 << 10
#: A NaN that no shader makes, and a finite number; 32 bits, or 16 bits twice.
_POISON = {"float32": (0xFFA5A5A5, 0xA5A5A5A5), "float16": (0xFDA5FDA5, 0xA5A5A5A5)}


def table(variant: Variant, scales: int) -> tuple[Array, Array]:
    """The packed table for a chunk of ``scales`` scales, and the indices that look every row up once."""
    rows = scales // PER_ROW
    eight = np.tile(np.arange(-8, 8, dtype=np.int8), (8, PER_ROW))  # all rows are the same, so one block stands for all
    if variant.weight_layout == "flat":
        packed = np.broadcast_to(pack_flat(eight)[0], (rows, COLUMNS // 2))
    else:
        packed = np.broadcast_to(pack_blocks(eight)[0], (rows // 8, COLUMNS // 4, 4))
    return packed, np.arange(rows, dtype=np.int32)


class Stream:
    """A variant with buffers for output and indices, opened for chunks of ``chunk`` scales in ``slots`` slots.

    Raises DeviceLimitExceeded where the device cannot hold such a chunk.
    """

    def __init__(
        self, device: Device, variant: Variant, shader: Shader, chunk: int, slots: int, seconds: dict[str, float]
    ) -> None:
        self._device, self._variant, self._seconds, self.chunk = device, variant, seconds, chunk
        self._shared = shares_memory(device)
        row_bytes = COLUMNS * np.dtype(variant.output_dtype).itemsize
        self._guard = guard_bytes(row_bytes)
        self._bytes = row_bytes * (chunk // PER_ROW)
        size = self._bytes + self._guard
        device.info.check_limit("maxStorageBufferRange", size, f"a chunk of {size} bytes")
        packed, indices = table(variant, chunk)
        scales = np.zeros((chunk // PER_ROW, PER_ROW), variant.scale_dtype)
        request = check_request(device.info, variant, packed, scales, GROUP, indices, indices.size)
        self._job = embedding_job(device.info, request, shader)
        cache: PipelineCache = device.keep("pipelines", lambda: PipelineCache(device))
        self._pipeline = cache.get(shader, self._job.kinds, len(self._job.push), self._job.constants)
        self._resources: list[Buffer | Image] = []
        try:
            self._inputs = [self._input(operand) for operand in self._job.operands]
            whole = self._bytes + 2 * self._guard
            self._hosts = [self._buffer(whole, host=True) for _ in range(slots + 1)]  # one more to compare with
            self._local = None if self._shared else self._buffer(whole, host=False)
        except BaseException:
            self.close()
            raise

    def _buffer(self, size: int, *, host: bool) -> Buffer:
        buffer = Buffer(self._device, size, host=host)
        self._resources.append(buffer)
        return buffer

    def _input(self, operand: Operand) -> Resource:
        """Put an input on the device, for good but for the scales."""
        staging = self._buffer(operand.data.nbytes, host=True)
        assert staging.bytes is not None  # noqa: S101 - a host buffer is always mapped
        staging.bytes[:] = operand.data.reshape(-1).view(np.uint8)
        if operand.texture is not None:
            image = Image(self._device, operand.texture.extent, operand.texture.texels, storage=False, flat=True)
            self._resources.append(image)
            with self._commands("transfer") as commands:
                image.fill(commands, staging.handle, 0)
            return image.resource()
        used = staging if self._shared else self._buffer(operand.data.nbytes, host=False)
        if operand.name == "t_scales":
            self._scales, self._scales_used = staging, used
        if used is not staging:
            with self._commands("transfer") as commands:
                self._copy(commands, staging, used, operand.data.nbytes)
        return BufferRange(used.handle, 0, operand.data.nbytes)

    @contextmanager
    def _commands(self, kind: str) -> Iterator[Any]:
        """Commands that are recorded, run and waited for; the time counts as ``kind``."""
        started = time.perf_counter()
        commands = self._device.begin()
        self._barrier(commands)
        yield commands
        self._barrier(commands)
        self._device.submit()
        self._seconds[kind] += time.perf_counter() - started

    def _barrier(self, commands: Any) -> None:
        """Everything before is visible to everything after, the host included."""
        vk = self._device.vk
        stages = vk.VK_PIPELINE_STAGE_ALL_COMMANDS_BIT | vk.VK_PIPELINE_STAGE_HOST_BIT
        access = vk.VK_ACCESS_MEMORY_READ_BIT | vk.VK_ACCESS_MEMORY_WRITE_BIT
        memory_barrier(self._device, commands, (stages, access), (stages, access))

    def _copy(self, commands: Any, source: Buffer, target: Buffer, size: int) -> None:
        vk = self._device.vk
        vk.vkCmdCopyBuffer(commands, source.handle, target.handle, 1, [vk.VkBufferCopy(size=size)])

    def products(self, slot: int, scales: Array) -> Result:
        """See ``conformance.proofs.target.Target``."""
        nan, finite = _POISON[self._variant.output_dtype]
        bits, damage = self._run(self._hosts[slot], scales, nan)
        if not damage and not np.isfinite(scales).all():
            # A NaN left over would pass for a NaN computed: once more over another poison.
            again, damage = self._run(self._hosts[-1], scales, finite)
            if not damage and not np.array_equal(bits, again):
                at = int(np.flatnonzero((bits != again).reshape(-1))[0])
                unsigned = scales.view(f"u{scales.itemsize}")
                damage = f"scale {unsigned[at // 16]:#x}, code {at % 16}: not written, or two runs differ"
        return Result(bits, damage)

    def _run(self, host: Buffer, scales: Array, poison: int) -> tuple[Array, str]:
        vk, whole = self._device.vk, self._bytes + 2 * self._guard
        used = self._local or host
        assert self._scales.bytes is not None  # noqa: S101 - a host buffer is always mapped
        assert host.bytes is not None  # noqa: S101 - the same
        self._scales.bytes[: scales.nbytes] = scales.view(np.uint8)
        with self._commands("transfer") as commands:
            if self._scales_used is not self._scales:
                self._copy(commands, self._scales, self._scales_used, scales.nbytes)
            vk.vkCmdFillBuffer(commands, used.handle, 0, whole, poison)
        self._pipeline.bind(0, [BufferRange(used.handle, self._guard, self._bytes + self._guard), *self._inputs])
        with self._commands("device") as commands:
            self._pipeline.dispatch(commands, 0, self._job.push, self._job.groups)
        if used is not host:
            with self._commands("transfer") as commands:
                self._copy(commands, used, host, whole)
        bits = host.bytes[self._guard : self._guard + self._bytes].view(f"u{self._job.output.dtype.itemsize}")
        return bits[: 16 * scales.size].reshape(-1, 16), self._damage(host.bytes[:whole], poison)

    def _damage(self, view: Array, poison: int) -> str:
        fences = {"before": view[: self._guard], "behind": view[self._guard + self._bytes :]}
        touched = [where for where, fence in fences.items() if (fence.view(np.uint32) != poison).any()]
        return f"bytes {' and '.join(touched)} the output were written" if touched else ""

    def close(self) -> None:
        """Free all buffers and images; the device stays open."""
        for resource in reversed(self._resources):
            resource.close()
        self._resources.clear()
