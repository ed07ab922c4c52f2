"""Device time of one dispatch, by timestamps, warm, over rotating inputs.

The table lies in device memory once. Every timed dispatch reads another set of random indices and
writes another output, in turn, so that no run finds its rows in a cache because the last one did.
"""

import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.dispatch.job import Job, Operand
from impl.dispatch.request import Request
from impl.gpu.memory import Buffer, Image, memory_barrier
from impl.gpu.pipeline import BufferRange, Pipeline, Resource
from impl.kernel import Device
from impl.shader.compiler import GLSL, Shader, compile_shader

SETS = 4
#: Work groups of the copying shader: a few waves of a large GPU, and many.
_COPY_GROUPS = (4096, 65535)
_COPIES = 20
_CHECKED_ROWS = 64
_WARM_S = 0.15
_ALIGN = 256


@dataclass(frozen=True)
class Timing:
    """Nanoseconds of the timed dispatches, and some rows of the first index set as the device wrote them."""

    samples_ns: tuple[float, ...]
    rows: npt.NDArray[np.int64]
    output: npt.NDArray[Any]

    @property
    def median_ns(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples_ns)


class Resident:
    """Operands in device memory, as buffers or images: uploaded once, bound many times."""

    def __init__(self, device: Device, operands: Sequence[Operand]) -> None:
        plain = [operand.data for operand in operands if operand.texture is None]
        *offsets, size = itertools.accumulate((-(-a.nbytes // _ALIGN) * _ALIGN for a in plain), initial=0)
        self._kept: list[Buffer | Image] = []
        self.resources: list[Resource] = []
        if plain:
            buffer = Buffer(device, size, host=False)
            self._kept.append(buffer)
            _upload(
                device, size, zip(plain, offsets, strict=True), lambda staging: _copy(device, staging, buffer, size)
            )
        places = iter(offsets)
        for operand in operands:
            if operand.texture is None:
                self.resources.append(BufferRange(buffer.handle, next(places), operand.data.nbytes))
                continue
            shape = operand.texture
            image = Image(device, shape.extent, shape.texels, storage=False, flat=shape.flat)
            self._kept.append(image)
            _upload(device, image.size, [(operand.data, 0)], partial(_fill, device, image))
            self.resources.append(image.resource())

    def close(self) -> None:
        """Free the memory."""
        for one in self._kept:
            one.close()


def _upload(
    device: Device,
    size: int,
    arrays: Iterable[tuple[npt.NDArray[Any], int]],
    move: Callable[[Buffer], None],
) -> None:
    """Put arrays at their offsets into a host buffer, and ``move`` it."""
    with closing(Buffer(device, size, host=True)) as staging:
        assert staging.bytes is not None  # noqa: S101 (a host buffer is mapped)
        for array, offset in arrays:
            staging.bytes[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
        move(staging)


def _fill(device: Device, image: Image, buffer: Buffer) -> None:
    """The whole image from a buffer, ready for shaders, and wait."""
    image.fill(device.begin(), buffer.handle, 0)
    device.submit()


def _copy(device: Device, source: Buffer, target: Buffer, size: int) -> None:
    """Copy the first bytes of one buffer to another, and wait."""
    region = [device.vk.VkBufferCopy(size=size)]
    device.vk.vkCmdCopyBuffer(device.begin(), source.handle, target.handle, 1, region)
    device.submit()


def _time(device: Device, record: Callable[[Any, int], None], warm: int, repeats: int) -> list[float]:
    """Nanoseconds of what ``record`` records, ``repeats`` times after ``warm`` runs; it takes commands and a number.

    Each run waits for the one before: they are timed one by one. A GPU that idled runs at a sixth of its clock for a
    while, so it works for _WARM_S first.
    """
    vk, period, count = device.vk, device.info.timestamp_period_ns, 2 * repeats
    if not period:
        raise RuntimeError(f"{device.info.name} has no timestamps on its compute queue (timestampComputeAndGraphics)")
    stages = vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT | vk.VK_PIPELINE_STAGE_TRANSFER_BIT
    access = vk.VK_ACCESS_SHADER_WRITE_BIT | vk.VK_ACCESS_TRANSFER_WRITE_BIT
    done = vk.VK_PIPELINE_STAGE_BOTTOM_OF_PIPE_BIT
    pool_info = vk.VkQueryPoolCreateInfo(queryType=vk.VK_QUERY_TYPE_TIMESTAMP, queryCount=count)
    pool = vk.vkCreateQueryPool(device.handle, pool_info, None)
    try:
        until = time.monotonic() + (0 if device.info.kind == "cpu" else _WARM_S)
        timed, rounds = False, 0
        while not timed:
            timed = time.monotonic() >= until and rounds > 0
            commands = device.begin()
            vk.vkCmdResetQueryPool(commands, pool, 0, count)
            for i in range(repeats if timed else warm):
                memory_barrier(device, commands, (stages, access), (stages, access | vk.VK_ACCESS_SHADER_READ_BIT))
                if timed:
                    vk.vkCmdWriteTimestamp(commands, done, pool, 2 * i)
                record(commands, i)
                if timed:
                    vk.vkCmdWriteTimestamp(commands, done, pool, 2 * i + 1)
            device.submit()
            rounds += 1
        data = vk.ffi.new("uint64_t[]", count)
        flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
        vk.vkGetQueryPoolResults(device.handle, pool, 0, count, 8 * count, vk.ffi.cast("void *", data), 8, flags)
        return [(data[i + 1] - data[i]) * period for i in range(0, count, 2)]
    finally:
        vk.vkDestroyQueryPool(device.handle, pool, None)


def time_job(
    device: Device, job: Job, request: Request, table: Resident, index_sets: Sequence[Operand], repeats: int
) -> Timing:
    """Median device time of ``job``: warm, inputs and outputs rotated.

    ``table`` holds weight, scales and out_sizes; every index set has as many indices as the request.
    """
    out_size = -(-job.output.size // _ALIGN) * _ALIGN
    sets = min(SETS, max(1, (4 << 30) // out_size))
    with ExitStack() as stack:
        outputs = [_output(device, job, out_size, stack) for _ in range(sets)]
        pipelines = []
        for output, indices in zip(outputs, index_sets[:sets], strict=True):
            pipeline = Pipeline(device, job.shader, job.kinds, len(job.push), job.constants)
            pipelines.append(stack.enter_context(closing(pipeline)))
            where = stack.enter_context(closing(Resident(device, [indices])))
            whole = output.resource() if isinstance(output, Image) else BufferRange(output.handle, 0, job.output.size)
            pipeline.bind(0, [whole, *where.resources, *table.resources])

        def dispatch(commands: Any, number: int) -> None:
            pipelines[number % sets].dispatch(commands, 0, job.push, job.groups)

        samples = _time(device, dispatch, sets, repeats)
        rows = np.unique(np.linspace(0, request.indices.size - 1, _CHECKED_ROWS).astype(np.int64))
        return Timing(tuple(samples), rows, _rows(device, outputs[0], request, rows))


def _output(device: Device, job: Job, size: int, stack: ExitStack) -> Buffer | Image:
    """What a dispatch writes: a buffer, or an image that shaders may write."""
    buffer = stack.enter_context(closing(Buffer(device, size, host=False)))
    if (shape := job.output.texture) is None:
        return buffer
    image = stack.enter_context(closing(Image(device, shape.extent, shape.texels, storage=True, flat=shape.flat)))
    _fill(device, image, buffer)
    return image


def _rows(device: Device, output: Buffer | Image, request: Request, rows: npt.NDArray[np.int64]) -> npt.NDArray[Any]:
    """Those rows of an output, from its first to its last."""
    vk, size = device.vk, request.row_bytes
    with ExitStack() as stack:
        staging = stack.enter_context(closing(Buffer(device, rows.size * size, host=True)))
        if isinstance(output, Image):
            whole = stack.enter_context(closing(Buffer(device, output.size, host=False)))
            output.read(device.begin(), whole.handle, 0)
            device.submit()
            output = whole
        regions = [vk.VkBufferCopy(srcOffset=row * size, dstOffset=i * size, size=size) for i, row in enumerate(rows)]
        vk.vkCmdCopyBuffer(device.begin(), output.handle, staging.handle, len(regions), regions)
        device.submit()
        assert staging.bytes is not None  # noqa: S101 (a host buffer is mapped)
        return staging.bytes.copy().view(request.out_dtype).reshape(-1, request.embed_dim)


def copy_bandwidth(device: Device, size: int) -> float:
    """Bytes read plus bytes written a nanosecond (GB/s) by the device's best copy of ``size`` bytes: the roof.

    vkCmdCopyBuffer may go through a copy engine that is slower than the cores, so a shader copies too.
    """
    with ExitStack() as stack:
        source, target = (stack.enter_context(closing(Buffer(device, size, host=False))) for _ in range(2))
        pipeline = Pipeline(device, copy_shader(), ("storage", "storage"), 0, {0: 256})
        stack.enter_context(closing(pipeline))
        pipeline.bind(0, [BufferRange(target.handle, 0, size), BufferRange(source.handle, 0, size)])
        region = [device.vk.VkBufferCopy(size=size)]

        def command(commands: Any, _number: int) -> None:
            device.vk.vkCmdCopyBuffer(commands, source.handle, target.handle, 1, region)

        def shader(commands: Any, _number: int, groups: int) -> None:
            pipeline.dispatch(commands, 0, (), (groups, 1, 1))

        most = min(device.info.limits["maxComputeWorkGroupCount[0]"], -(-size // (16 * 256)))
        copies: list[Callable[[Any, int], None]] = [
            command,
            *(partial(shader, groups=min(groups, most)) for groups in _COPY_GROUPS),
        ]
        return max(2 * size / statistics.median(_time(device, copy, 1, _COPIES)) for copy in copies)


def copy_shader() -> Shader:
    """The copy as a module, compiled or from the cache."""
    return compile_shader(GLSL / "copy.comp")
