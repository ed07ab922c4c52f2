"""Images: the width-packed 3D and the 2D weight textures of contract 7.1, filled from and read into an arena.

An image is used in one direction only, so its layouts are two: it is filled by a copy, and then
shaders sample it (SHADER_READ_ONLY_OPTIMAL) or write it (GENERAL) before a copy reads it back.
"""

import math
from typing import Any

from impl.errors import DeviceLacksFeature, DeviceLimitExceeded
from impl.gpu.device import Device
from impl.gpu.memory import _allocate, _memory_type
from impl.gpu.pipeline import ImageView

#: Texel formats by name -> (VkFormat's name, bytes a texel).
FORMATS = {
    "rgba32f": ("VK_FORMAT_R32G32B32A32_SFLOAT", 16),
    "rgba16f": ("VK_FORMAT_R16G16B16A16_SFLOAT", 8),
    "rgba32i": ("VK_FORMAT_R32G32B32A32_SINT", 16),
}


class Sampler:
    """A nearest-texel sampler; texelFetch ignores it, but a combined image sampler has to have one."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self.handle = device.vk.vkCreateSampler(device.handle, device.vk.VkSamplerCreateInfo(), None)

    def close(self) -> None:
        """Free it."""
        self._device.vk.vkDestroySampler(self._device.handle, self.handle, None)


class Image:
    """An image of ``extent`` (x, y, z) texels, 2D where ``flat``; written by shaders where ``storage``, else sampled.

    Raises:
        DeviceLimitExceeded: an extent is beyond maxImageDimension2D or maxImageDimension3D.
        DeviceLacksFeature: the device cannot use the format in that way.
    """

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
            wanted = _memory_type(device, needs.memoryTypeBits, vk.VK_MEMORY_PROPERTY_DEVICE_LOCAL_BIT, 0)
            self._memory = _allocate(device, needs.size, wanted)
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
    bound = device.info.limits[limit]
    for axis, size in zip("xyz", extent, strict=True):
        if size > bound:
            raise DeviceLimitExceeded(
                f"an image of {extent} texels is beyond {limit} = {bound} of {device.info.name} in {axis}; "
                "use a buffer variant"
            )
