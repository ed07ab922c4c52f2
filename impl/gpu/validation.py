"""VK_LAYER_KHRONOS_validation with synchronization validation: switched on, listened to, raised.

Source: docs/contract.md section 7.4.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from impl.errors import ValidationFailed

if TYPE_CHECKING:
    from types import ModuleType

    from impl.gpu.device import Device

_LAYER = "VK_LAYER_KHRONOS_validation"
_UPDATE = f"update {_LAYER}, or run without --validate"
INSTALL = f"{_LAYER} is missing: install it (Debian: apt-get install vulkan-validationlayers)"


def instance_parts(vk: ModuleType) -> tuple[list[str], list[str], Any]:
    """Layers, extensions and the pNext chain of an instance that validates."""
    enabled = [vk.VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT]
    chain = vk.VkValidationFeaturesEXT(pEnabledValidationFeatures=enabled)
    return [_LAYER], ["VK_EXT_debug_utils"], chain


def listen(vk: ModuleType, instance: Any, messages: list[str]) -> Any:
    """Append every warning and error of the layer to ``messages``; returns the messenger for ``stop``.

    The binding has one callback slot for the whole process, so one validating device at a time.
    """

    def callback(_severity: int, _kind: int, data: Any, _user: Any) -> int:
        messages.append(vk.ffi.string(data.pMessage).decode(errors="replace"))
        return 0

    info = vk.VkDebugUtilsMessengerCreateInfoEXT(
        messageSeverity=vk.VK_DEBUG_UTILS_MESSAGE_SEVERITY_WARNING_BIT_EXT
        | vk.VK_DEBUG_UTILS_MESSAGE_SEVERITY_ERROR_BIT_EXT,
        messageType=vk.VK_DEBUG_UTILS_MESSAGE_TYPE_VALIDATION_BIT_EXT,
        pfnUserCallback=callback,
    )
    create = vk.vkGetInstanceProcAddr(instance, "vkCreateDebugUtilsMessengerEXT")
    return create(instance, info, None)


def stop(vk: ModuleType, instance: Any, messenger: Any) -> None:
    """Destroy the messenger."""
    vk.vkGetInstanceProcAddr(instance, "vkDestroyDebugUtilsMessengerEXT")(instance, messenger, None)


def raise_any(messages: list[str]) -> None:
    """Raise ValidationFailed with everything collected so far, and forget it."""
    if messages:
        text = "\n".join(dict.fromkeys(messages))
        messages.clear()
        raise ValidationFailed(text)


def self_test(device: Device) -> str:
    """Record a deliberate write-after-write hazard (never submitted) and return what the layer says about it.

    Raises:
        ValidationFailed: the layer said nothing, so its silence elsewhere would mean nothing either.
    """
    vk, size = device.vk, 64
    buffer = vk.vkCreateBuffer(
        device.handle, vk.VkBufferCreateInfo(size=size, usage=vk.VK_BUFFER_USAGE_TRANSFER_DST_BIT), None
    )
    needs = vk.vkGetBufferMemoryRequirements(device.handle, buffer)
    first_allowed = (needs.memoryTypeBits & -needs.memoryTypeBits).bit_length() - 1
    allocate = vk.VkMemoryAllocateInfo(allocationSize=needs.size, memoryTypeIndex=first_allowed)
    memory = vk.vkAllocateMemory(device.handle, allocate, None)
    vk.vkBindBufferMemory(device.handle, buffer, memory, 0)
    before = len(device.messages)
    commands = device.begin()
    vk.vkCmdFillBuffer(commands, buffer, 0, size, 1)
    vk.vkCmdFillBuffer(commands, buffer, 0, size, 2)  # no barrier in between
    vk.vkEndCommandBuffer(commands)
    vk.vkResetCommandBuffer(commands, 0)
    vk.vkDestroyBuffer(device.handle, buffer, None)
    vk.vkFreeMemory(device.handle, memory, None)
    said = device.messages[before:]
    del device.messages[before:]
    hazards = [message for message in said if "SYNC-HAZARD-WRITE-AFTER-WRITE" in message]
    if not hazards or len(hazards) != len(said):
        raise ValidationFailed(
            f"a deliberate write-after-write hazard drew these messages: {said or 'none'}; {_UPDATE}"
        )
    return hazards[0]
