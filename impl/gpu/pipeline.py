"""Compute pipelines and their descriptor sets, made once a shader and specialization.

Source: docs/contract.md section 7.2.
"""

from collections import OrderedDict
from dataclasses import dataclass
from typing import Any

from impl.errors import VulkanError
from impl.gpu.device import Device
from impl.shader.compiler import Shader

#: How many pipelines a device keeps; the least recently used one goes first, so that memory stays bounded.
_KEPT = 128
_SETS = 2


@dataclass(frozen=True)
class BufferRange:
    """A descriptor's part of a buffer, in bytes."""

    buffer: Any
    offset: int
    size: int


@dataclass(frozen=True)
class ImageView:
    """A descriptor's image: its view, its layout while shaders run, and its sampler (None: storage image)."""

    view: Any
    layout: int
    sampler: Any


Resource = BufferRange | ImageView


class Pipeline:
    """A compute pipeline with ``_SETS`` descriptor sets.

    ``kinds`` holds one of "storage", "uniform", "sampled", "image" for each binding, in order.
    """

    def __init__(
        self, device: Device, shader: Shader, kinds: tuple[str, ...], push_ints: int, constants: dict[int, int]
    ) -> None:
        vk = device.vk
        self._device = device
        types = {
            "storage": vk.VK_DESCRIPTOR_TYPE_STORAGE_BUFFER,
            "uniform": vk.VK_DESCRIPTOR_TYPE_UNIFORM_BUFFER,
            "sampled": vk.VK_DESCRIPTOR_TYPE_COMBINED_IMAGE_SAMPLER,
            "image": vk.VK_DESCRIPTOR_TYPE_STORAGE_IMAGE,
        }
        self._types = [types[kind] for kind in kinds]
        stage = vk.VK_SHADER_STAGE_COMPUTE_BIT
        bindings = [
            vk.VkDescriptorSetLayoutBinding(binding=i, descriptorType=t, descriptorCount=1, stageFlags=stage)
            for i, t in enumerate(self._types)
        ]
        handle = device.handle
        self._set_layout = vk.vkCreateDescriptorSetLayout(
            handle, vk.VkDescriptorSetLayoutCreateInfo(pBindings=bindings), None
        )
        ranges = [vk.VkPushConstantRange(stageFlags=stage, size=4 * push_ints)] if push_ints else []
        self.layout = vk.vkCreatePipelineLayout(
            handle, vk.VkPipelineLayoutCreateInfo(pSetLayouts=[self._set_layout], pPushConstantRanges=ranges), None
        )
        module = vk.vkCreateShaderModule(
            handle, vk.VkShaderModuleCreateInfo(codeSize=len(shader.spirv), pCode=shader.spirv), None
        )
        entries = [
            vk.VkSpecializationMapEntry(constantID=number, offset=4 * i, size=4) for i, number in enumerate(constants)
        ]
        data = vk.ffi.new("int32_t[]", list(constants.values()))
        special = vk.VkSpecializationInfo(pMapEntries=entries, dataSize=4 * len(constants), pData=data)
        stage_info = vk.VkPipelineShaderStageCreateInfo(
            stage=stage, module=module, pName="main", pSpecializationInfo=special
        )
        create = [vk.VkComputePipelineCreateInfo(stage=stage_info, layout=self.layout)]
        try:
            self.handle = vk.vkCreateComputePipelines(handle, None, 1, create, None)[0]
        except vk.VkError as error:
            raise VulkanError(f"{device.info.name} cannot make a pipeline of {shader.name}: {error!r}") from error
        finally:
            vk.vkDestroyShaderModule(handle, module, None)
        sizes = [
            vk.VkDescriptorPoolSize(type=t, descriptorCount=_SETS * self._types.count(t)) for t in set(self._types)
        ]
        self._pool = vk.vkCreateDescriptorPool(
            handle, vk.VkDescriptorPoolCreateInfo(maxSets=_SETS, pPoolSizes=sizes), None
        )
        layouts = [self._set_layout] * _SETS
        self._sets = vk.vkAllocateDescriptorSets(
            handle, vk.VkDescriptorSetAllocateInfo(descriptorPool=self._pool, pSetLayouts=layouts)
        )

    def bind(self, which: int, resources: list[Resource]) -> None:
        """Point descriptor set ``which`` (0 or 1) at ``resources``, one a binding. Not while it is in use."""
        vk = self._device.vk
        keep, writes = [], []
        for binding, (kind, resource) in enumerate(zip(self._types, resources, strict=True)):
            target = {"dstSet": self._sets[which], "dstBinding": binding, "descriptorCount": 1, "descriptorType": kind}
            if isinstance(resource, BufferRange):
                infos = [vk.VkDescriptorBufferInfo(buffer=resource.buffer, offset=resource.offset, range=resource.size)]
                write = vk.VkWriteDescriptorSet(pBufferInfo=infos, **target)
            else:
                infos = [
                    vk.VkDescriptorImageInfo(
                        sampler=resource.sampler, imageView=resource.view, imageLayout=resource.layout
                    )
                ]
                write = vk.VkWriteDescriptorSet(pImageInfo=infos, **target)
            keep.append(infos)
            writes.append(write)
        vk.vkUpdateDescriptorSets(self._device.handle, len(writes), writes, 0, None)

    def dispatch(self, commands: Any, which: int, push: tuple[int, ...], groups: tuple[int, int, int]) -> None:
        """Record one dispatch of ``groups`` work groups with descriptor set ``which`` and int push constants."""
        vk = self._device.vk
        point = vk.VK_PIPELINE_BIND_POINT_COMPUTE
        vk.vkCmdBindPipeline(commands, point, self.handle)
        vk.vkCmdBindDescriptorSets(commands, point, self.layout, 0, 1, [self._sets[which]], 0, None)
        if push:
            values = vk.ffi.new("int32_t[]", list(push))
            vk.vkCmdPushConstants(
                commands, self.layout, vk.VK_SHADER_STAGE_COMPUTE_BIT, 0, 4 * len(push), vk.ffi.cast("void *", values)
            )
        vk.vkCmdDispatch(commands, *groups)

    def close(self) -> None:
        """Free everything that the constructor made."""
        vk, handle = self._device.vk, self._device.handle
        vk.vkDestroyDescriptorPool(handle, self._pool, None)
        vk.vkDestroyPipeline(handle, self.handle, None)
        vk.vkDestroyPipelineLayout(handle, self.layout, None)
        vk.vkDestroyDescriptorSetLayout(handle, self._set_layout, None)


class PipelineCache:
    """The pipelines of one device, least recently used last out."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._kept: OrderedDict[object, Pipeline] = OrderedDict()

    def get(self, shader: Shader, kinds: tuple[str, ...], push_ints: int, constants: dict[int, int]) -> Pipeline:
        """The pipeline of that shader, interface and specialization."""
        key = (shader.sha256, kinds, push_ints, tuple(constants.items()))
        if key in self._kept:
            self._kept.move_to_end(key)
        else:
            self._kept[key] = Pipeline(self._device, shader, kinds, push_ints, constants)
            if len(self._kept) > _KEPT:
                self._kept.popitem(last=False)[1].close()
        return self._kept[key]

    def close(self) -> None:
        """Free all of them."""
        for pipeline in self._kept.values():
            pipeline.close()
        self._kept.clear()
