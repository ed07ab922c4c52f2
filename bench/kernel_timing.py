"""Device time of one dispatch, by timestamps, warm, over rotating inputs.

The table lies in device memory once. Every timed dispatch reads another set of random indices and
writes another output, in turn, so that no run finds its rows in a cache because the last one did.
"""

import itertools
import statistics
from collections.abc import Callable
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.dispatch.job import Job
from impl.dispatch.request import Request
from impl.gpu.memory import Buffer, memory_barrier
from impl.gpu.pipeline import BufferRange, Pipeline
from impl.kernel import Device
from impl.shader.compiler import GLSL, Shader, compile_shader

SETS = 4
#: Work groups of the copying shader: a few waves of a large GPU, and many.
_COPY_GROUPS = (4096, 65535)
_COPIES = 20
_HEAD_ROWS = 64
_ALIGN = 256


@dataclass(frozen=True)
class Timing:
    """Nanoseconds of the timed dispatches, and the rows of the first index set as the device wrote them."""

    samples_ns: tuple[float, ...]
    output: npt.NDArray[Any]

    @property
    def median_ns(self) -> float:
        """Median of the samples."""
        return statistics.median(self.samples_ns)


class Resident:
    """Arrays in device memory: uploaded once, bound many times."""

    def __init__(self, device: Device, arrays: list[npt.NDArray[Any]]) -> None:
        *offsets, size = itertools.accumulate((-(-a.nbytes // _ALIGN) * _ALIGN for a in arrays), initial=0)
        self._buffer = Buffer(device, size, host=False)
        with closing(Buffer(device, size, host=True)) as staging:
            assert staging.bytes is not None  # noqa: S101 (a host buffer is mapped)
            for array, offset in zip(arrays, offsets, strict=True):
                staging.bytes[offset : offset + array.nbytes] = array.reshape(-1).view(np.uint8)
            _copy(device, staging, self._buffer, size)
        self.ranges = [
            BufferRange(self._buffer.handle, offset, array.nbytes)
            for array, offset in zip(arrays, offsets, strict=True)
        ]

    def close(self) -> None:
        """Free the memory."""
        self._buffer.close()


def _copy(device: Device, source: Buffer, target: Buffer, size: int) -> None:
    """Copy the first bytes of one buffer to another, and wait."""
    region = [device.vk.VkBufferCopy(size=size)]
    device.vk.vkCmdCopyBuffer(device.begin(), source.handle, target.handle, 1, region)
    device.submit()


def _time(device: Device, record: Callable[[Any, int], None], warm: int, repeats: int) -> list[float]:
    """Nanoseconds of what ``record`` records, ``repeats`` times after ``warm`` runs; it takes commands and a number.

    Each run waits for the one before: they are timed one by one.
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
        for timed in (False, True):
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
        data = vk.ffi.new("uint64_t[]", count)
        flags = vk.VK_QUERY_RESULT_64_BIT | vk.VK_QUERY_RESULT_WAIT_BIT
        vk.vkGetQueryPoolResults(device.handle, pool, 0, count, 8 * count, vk.ffi.cast("void *", data), 8, flags)
        return [(data[i + 1] - data[i]) * period for i in range(0, count, 2)]
    finally:
        vk.vkDestroyQueryPool(device.handle, pool, None)


def time_job(
    device: Device, job: Job, request: Request, table: Resident, index_sets: list[npt.NDArray[np.int32]], repeats: int
) -> Timing:
    """Median device time of ``job`` (a buffer variant): warm, inputs and outputs rotated.

    ``table`` holds weight, scales and out_sizes; every index set has as many indices as the request.
    """
    out_size = -(-job.output.size // _ALIGN) * _ALIGN
    sets = min(SETS, max(1, (4 << 30) // out_size))
    with ExitStack() as stack:
        outputs = [stack.enter_context(closing(Buffer(device, out_size, host=False))) for _ in range(sets)]
        indices = stack.enter_context(closing(Resident(device, list(index_sets[:sets]))))
        pipelines = []
        for output, index_range in zip(outputs, indices.ranges, strict=True):
            pipeline = Pipeline(device, job.shader, job.kinds, len(job.push), job.constants)
            pipelines.append(stack.enter_context(closing(pipeline)))
            pipeline.bind(0, [BufferRange(output.handle, 0, job.output.size), index_range, *table.ranges])

        def dispatch(commands: Any, number: int) -> None:
            pipelines[number % sets].dispatch(commands, 0, job.push, job.groups)

        samples = _time(device, dispatch, sets, repeats)
        return Timing(tuple(samples), _head(device, outputs[0], request))


def _head(device: Device, buffer: Buffer, request: Request) -> npt.NDArray[Any]:
    """The first rows of an output, for checking."""
    size = min(_HEAD_ROWS, request.indices.size) * request.row_bytes
    with closing(Buffer(device, size, host=True)) as staging:
        _copy(device, buffer, staging, size)
        assert staging.bytes is not None  # noqa: S101 (a host buffer is mapped)
        return staging.bytes[:size].copy().view(request.out_dtype).reshape(-1, request.embed_dim)


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
