"""Device memory: one growing arena of bytes that numpy writes and shaders read, and images that copies fill and read.

On a device whose own memory the host can map and cache (lavapipe, integrated GPUs) the arena is one
buffer. Elsewhere shaders work on DEVICE_LOCAL memory and the host on a HOST_CACHED twin, because
reading anything else back over the bus is many times slower.

Images are the width-packed 3D and the 2D weight textures of contract 7.1. An image is used in one direction
only, so its layouts are two: a copy fills it, and then shaders sample it (SHADER_READ_ONLY_OPTIMAL) or write
it (GENERAL) before a copy reads it back.
"""

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.errors import DeviceLacksFeature, DeviceLimitExceeded
from impl.gpu.device import Device
from impl.gpu.pipeline import ImageView

_MINIMUM_ARENA = 1 << 20
#: Texel formats by name -> (VkFormat's name, bytes a texel).
FORMATS = {
    "rgba32f": ("VK_FORMAT_R32G32B32A32_SFLOAT", 16),
    "rgba16f": ("VK_FORMAT_R16G16B16A16_SFLOAT", 8),
    "rgba32i": ("VK_FORMAT_R32G32B32A32_SINT", 16),
}


def _allocate(device: Device, needs: Any, *wishes: int) -> Any:
    """Memory of the first allowed type that has all the flags of the first wish that any of them satisfies."""
    vk, properties = device.vk, device.memory_properties
    types = [i for i in range(properties.memoryTypeCount) if needs.memoryTypeBits >> i & 1]
    fitting = (i for flags in wishes for i in types if properties.memoryTypes[i].propertyFlags & flags == flags)
    chosen = next(fitting, None)
    if chosen is None:
        raise DeviceLimitExceeded("memory", f"{device.info.name} has no memory type for this resource (of {types})")
    try:
        info = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=chosen)
        return vk.vkAllocateMemory(device.handle, info, None)
    except (vk.VkErrorOutOfDeviceMemory, vk.VkErrorOutOfHostMemory) as error:
        raise DeviceLimitExceeded("memory", f"{device.info.name} cannot allocate {needs.size} bytes") from error


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
            self._memory = _allocate(device, needs, *wishes)
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
        """Make it hold at least ``size`` bytes; returns the host's view of exactly those."""
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


class Sampler:
    """A nearest-texel sampler; texelFetch ignores it, but a combined image sampler has to have one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle = device.vk.vkCreateSampler(device.handle, device.vk.VkSamplerCreateInfo(), None)

    def close(self) -> None:
        """Free the sampler."""
        self._device.vk.vkDestroySampler(self._device.handle, self.handle, None)


class Image:
    """An image of ``extent`` (x, y, z) texels, 2D where ``flat``; shaders write it (``storage``) or sample it."""

    def __init__(
        self, device: Device, extent: tuple[int, int, int], texels: str, *, storage: bool, flat: bool = False
    ) -> None:
        vk = device.vk
        check_extent(device, extent, flat=flat)
        self._device, self.extent, self.storage = device, extent, storage
        name, self.texel_bytes = FORMATS[texels]
        image_format = getattr(vk, name)
        offered = vk.vkGetPhysicalDeviceFormatProperties(device.physical, image_format).optimalTilingFeatures
        feature = vk.VK_FORMAT_FEATURE_STORAGE_IMAGE_BIT if storage else vk.VK_FORMAT_FEATURE_SAMPLED_IMAGE_BIT
        if not offered & feature:
            use = "storage" if storage else "sampled"
            raise DeviceLacksFeature(f"{device.info.name} has no {use} images of {name}; use a buffer variant")
        kind = vk.VK_IMAGE_USAGE_STORAGE_BIT if storage else vk.VK_IMAGE_USAGE_SAMPLED_BIT
        size = vk.VkExtent3D(*extent)
        info = vk.VkImageCreateInfo(
            imageType=vk.VK_IMAGE_TYPE_2D if flat else vk.VK_IMAGE_TYPE_3D,
            format=image_format,
            extent=size,
            mipLevels=1,
            arrayLayers=1,
            samples=vk.VK_SAMPLE_COUNT_1_BIT,
            tiling=vk.VK_IMAGE_TILING_OPTIMAL,
            usage=kind | vk.VK_IMAGE_USAGE_TRANSFER_SRC_BIT | vk.VK_IMAGE_USAGE_TRANSFER_DST_BIT,
            initialLayout=vk.VK_IMAGE_LAYOUT_UNDEFINED,
        )
        self._image = vk.vkCreateImage(device.handle, info, None)
        needs = vk.vkGetImageMemoryRequirements(device.handle, self._image)
        try:
            self._memory = _allocate(device, needs, vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0)
        except BaseException:
            vk.vkDestroyImage(device.handle, self._image, None)
            raise
        vk.vkBindImageMemory(device.handle, self._image, self._memory, 0)
        self._layers = vk.VkImageSubresourceLayers(aspectMask=vk.VK_IMAGE_ASPECT_COLOR_BIT, layerCount=1)
        self._range = vk.VkImageSubresourceRange(aspectMask=vk.VK_IMAGE_ASPECT_COLOR_BIT, levelCount=1, layerCount=1)
        view_info = vk.VkImageViewCreateInfo(
            image=self._image,
            viewType=vk.VK_IMAGE_VIEW_TYPE_2D if flat else vk.VK_IMAGE_VIEW_TYPE_3D,
            format=image_format,
            subresourceRange=self._range,
        )
        self._view = vk.vkCreateImageView(device.handle, view_info, None)
        self._shader_layout = vk.VK_IMAGE_LAYOUT_GENERAL if storage else vk.VK_IMAGE_LAYOUT_SHADER_READ_ONLY_OPTIMAL

    @property
    def size(self) -> int:
        """Bytes of a tight copy of the whole image."""
        return math.prod(self.extent) * self.texel_bytes

    def resource(self) -> ImageView:
        """What a descriptor needs."""
        sampler = None if self.storage else self._device.keep("sampler", lambda: Sampler(self._device)).handle
        return ImageView(self._view, self._shader_layout, sampler)

    def fill(self, commands: Any, buffer: Any, offset: int) -> None:
        """Record: the whole image from ``buffer`` at byte ``offset``, then ready for compute shaders."""
        vk = self._device.vk
        transfer = (vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_ACCESS_TRANSFER_WRITE_BIT)
        access = vk.VK_ACCESS_SHADER_WRITE_BIT if self.storage else vk.VK_ACCESS_SHADER_READ_BIT
        layout = vk.VK_IMAGE_LAYOUT_TRANSFER_DST_OPTIMAL
        start = (vk.VK_PIPELINE_STAGE_TOP_OF_PIPE_BIT, 0)
        self._transition(commands, start, transfer, vk.VK_IMAGE_LAYOUT_UNDEFINED, layout)
        regions = self._regions(offset)
        vk.vkCmdCopyBufferToImage(commands, buffer, self._image, layout, len(regions), regions)
        shader = (vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, access)
        self._transition(commands, transfer, shader, layout, self._shader_layout)

    def read(self, commands: Any, buffer: Any, offset: int) -> None:
        """Record: after the shaders, the whole image into ``buffer`` at byte ``offset``."""
        vk = self._device.vk
        shader = (vk.VK_PIPELINE_STAGE_COMPUTE_SHADER_BIT, vk.VK_ACCESS_SHADER_WRITE_BIT)
        transfer = (vk.VK_PIPELINE_STAGE_TRANSFER_BIT, vk.VK_ACCESS_TRANSFER_READ_BIT)
        layout = vk.VK_IMAGE_LAYOUT_TRANSFER_SRC_OPTIMAL
        self._transition(commands, shader, transfer, self._shader_layout, layout)
        regions = self._regions(offset)
        vk.vkCmdCopyImageToBuffer(commands, self._image, layout, buffer, len(regions), regions)

    def _regions(self, offset: int) -> list[Any]:
        vk = self._device.vk
        extent = vk.VkExtent3D(*self.extent)
        return [vk.VkBufferImageCopy(bufferOffset=offset, imageSubresource=self._layers, imageExtent=extent)]

    def _transition(self, commands: Any, before: tuple[int, int], after: tuple[int, int], old: int, new: int) -> None:
        vk = self._device.vk
        barriers = [
            vk.VkImageMemoryBarrier(
                srcAccessMask=before[1],
                dstAccessMask=after[1],
                oldLayout=old,
                newLayout=new,
                srcQueueFamilyIndex=vk.VK_QUEUE_FAMILY_IGNORED,
                dstQueueFamilyIndex=vk.VK_QUEUE_FAMILY_IGNORED,
                image=self._image,
                subresourceRange=self._range,
            )
        ]
        vk.vkCmdPipelineBarrier(commands, before[0], after[0], 0, 0, None, 0, None, 1, barriers)

    def close(self) -> None:
        """Free view, image and memory."""
        vk, handle = self._device.vk, self._device.handle
        vk.vkDestroyImageView(handle, self._view, None)
        vk.vkDestroyImage(handle, self._image, None)
        vk.vkFreeMemory(handle, self._memory, None)


def check_extent(device: Device, extent: tuple[int, int, int], *, flat: bool) -> None:
    """Raise DeviceLimitExceeded where an image of that extent cannot be (contract 7.5)."""
    limit = "maxImageDimension2D" if flat else "maxImageDimension3D"
    device.info.check_limit(limit, max(extent), f"an image of {extent} texels", "use a buffer variant")
