"""Device memory: one growing arena of bytes that numpy writes and shaders read, and images beside it.

On a device whose own memory the host can map and cache (lavapipe, integrated GPUs) the arena is one
buffer. Elsewhere shaders work on DEVICE_LOCAL memory and the host on a HOST_CACHED twin, because
reading anything else back over the bus is many times slower.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from impl.errors import DeviceLimitExceeded
from impl.gpu.device import Device

_MINIMUM_ARENA = 1 << 20


def _memory_type(device: Device, allowed: int, *wishes: int) -> int:
    """The first memory type in ``allowed`` that has all the flags of the first wish that any type satisfies."""
    properties = device.memory_properties
    for flags in wishes:
        for index in range(properties.memoryTypeCount):
            if allowed >> index & 1 and properties.memoryTypes[index].propertyFlags & flags == flags:
                return index
    raise DeviceLimitExceeded(f"{device.info.name} has no memory type for this resource (allowed bits {allowed:#x})")


def _allocate(device: Device, size: int, memory_type: int) -> Any:
    vk = device.vk
    try:
        return vk.vkAllocateMemory(
            device.handle, vk.VkMemoryAllocateInfo(allocationSize=size, memoryTypeIndex=memory_type), None
        )
    except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory) as error:
        raise DeviceLimitExceeded(f"{device.info.name} cannot allocate {size} bytes of memory") from error


def shares_memory(device: Device) -> bool:
    """Whether the host can map, and read at speed, the memory that shaders work on."""
    vk, properties = device.vk, device.memory_properties
    all_flags = (
        vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
        | vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT
        | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        | vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
    )
    types = (properties.memoryTypes[i].propertyFlags for i in range(properties.memoryTypeCount))
    return any(flags & all_flags == all_flags for flags in types)


class Buffer:
    """A buffer with its own memory: mapped (``host=True``, ``bytes`` is a numpy view of it) or device-local."""

    def __init__(self, device: Device, size: int, *, host: bool) -> None:
        vk = device.vk
        self._device, self.size = device, size
        usage = (
            vk.VK_BUFFER_USAGE_STORAGE_BUFFER_BIT
            | vk.VK_BUFFER_USAGE_UNIFORM_BUFFER_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_SRC_BIT
            | vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT
        )
        self.handle = vk.vkCreateBuffer(device.handle, vk.VkBufferCreateInfo(size=size, usage=usage), None)
        needs = vk.vkGetBufferMemoryRequirements(device.handle, self.handle)
        coherent = vk.VK_MEMORY_PROPERTY_HOST_VISIBLE_BIT | vk.VK_MEMORY_PROPERTY_HOST_COHERENT_BIT
        cached = coherent | vk.VK_MEMORY_PROPERTY_HOST_CACHED_BIT
        local = vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT
        shared = (cached | local,) if shares_memory(device) else ()
        wishes = (*shared, cached, coherent) if host else (local, 0)
        try:
            memory_type = _memory_type(device, needs.memoryTypeBits, *wishes)
            self._memory = _allocate(device, needs.size, memory_type)
        except BaseException:
            vk.vkDestroyBuffer(device.handle, self.handle, None)
            raise
        vk.vkBindBufferMemory(device.handle, self.handle, self._memory, 0)
        self.bytes: npt.NDArray[np.uint8] | None = None
        if host:
            self.bytes = np.frombuffer(vk.vkMapMemory(device.handle, self._memory, 0, size, 0), np.uint8)

    def close(self) -> None:
        """Free the buffer and its memory; ``bytes`` must not be used afterwards."""
        vk, handle = self._device.vk, self._device.handle
        self.bytes = None
        vk.vkDestroyBuffer(handle, self.handle, None)
        vk.vkFreeMemory(handle, self._memory, None)


class Arena:
    """Bytes that both sides see: ``bytes`` for the host, ``buffer`` for the device.

    ``reserve`` grows it (never shrinks); ``upload`` and ``download`` record the copies and the barriers
    that the device needs, which is nothing but barriers where both are one buffer.
    """

    def __init__(self, device: Device) -> None:
        self._device = device
        self._shared = shares_memory(device)
        self._host: Buffer | None = None
        self._local: Buffer | None = None

    def reserve(self, size: int) -> npt.NDArray[np.uint8]:
        """Make it hold at least ``size`` bytes; returns the host's view of exactly those.

        Raises:
            DeviceLimitExceeded: the device has not that much memory.
        """
        if self._host is None or self._host.size < size:
            self.close()
            capacity = max(_MINIMUM_ARENA, 1 << (size - 1).bit_length() if size < 1 << 28 else size)
            self._host = Buffer(self._device, capacity, host=True)
            self._local = self._host if self._shared else Buffer(self._device, capacity, host=False)
        assert self._host.bytes is not None  # noqa: S101 (a host buffer is always mapped)
        return self._host.bytes[:size]

    @property
    def buffer(self) -> Any:
        """The VkBuffer that shaders and image copies use."""
        assert self._local is not None, "reserve() comes first"  # noqa: S101 (a mistake of ours, not of the caller's data)
        return self._local.handle

    def upload(self, commands: Any, size: int) -> None:
        """Record: the first ``size`` bytes go to the device, ready for shaders and transfers."""
        vk = self._device.vk
        if self._shared or size == 0:
            return  # vkQueueSubmit makes earlier host writes visible
        assert self._host is not None  # noqa: S101 (reserve() comes first)
        vk.vkCmdCopyBuffer(commands, self._host.handle, self.buffer, 1, [vk.VkBufferCopy(size=size)])
        memory_barrier(
            self._device,
            commands,
            (vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_ACCESS_TRANSFER_WRITE_BIT),
            (
                vk.VK_PIPELINE_STAGE_TRANSFER_BIT | vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT,
                vk.VK_ACCESS_TRANSFER_READ_BIT
                | vk.VK_ACCESS_TRANSFER_WRITE_BIT
                | vk.VK_ACCESS_SHADER_READ_BIT
                | vk.VK_ACCESS_SHADER_WRITE_BIT
                | vk.VK_ACCESS_UNIFORM_READ_BIT,
            ),
        )

    def download(self, commands: Any, ranges: list[tuple[int, int]]) -> None:
        """Record: once all work so far is done, the (offset, size) ``ranges`` are readable by the host."""
        vk = self._device.vk
        stages = vk.VK_PIPELINE_STAGE_TRANSFER_BIT | vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT
        writes = vk.VK_ACCESS_TRANSFER_WRITE_BIT | vk.VK_ACCESS_SHADER_WRITE_BIT
        if not self._shared:
            assert self._host is not None  # noqa: S101 (reserve() comes first)
            transfer = (vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_ACCESS_TRANSFER_READ_BIT)
            memory_barrier(self._device, commands, (stages, writes), transfer)
            copies = [vk.VkBufferCopy(srcOffset=at, dstOffset=at, size=size) for at, size in ranges]
            vk.vkCmdCopyBuffer(commands, self.buffer, self._host.handle, len(copies), copies)
        host = (vk.VK_PIPELINE_STAGE_HOST_BIT, vk.VK_ACCESS_HOST_READ_BIT)
        memory_barrier(self._device, commands, (stages, writes), host)

    def close(self) -> None:
        """Free both sides."""
        if self._host is not None:
            self._host.close()
        if self._local is not None and self._local is not self._host:
            self._local.close()
        self._host = self._local = None


def memory_barrier(device: Device, commands: Any, before: tuple[int, int], after: tuple[int, int]) -> None:
    """Record a global memory barrier; each side is (pipeline stages, accesses)."""
    vk = device.vk
    barriers = [vk.VkMemoryBarrier(srcAccessMask=before[1], dstAccessMask=after[1])]
    vk.vkCmdPipelineBarrier(commands, before[0], after[0], 0, 1, barriers, 0, None, 0, None)
