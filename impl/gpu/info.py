"""What a Vulkan device is and can do, read once and kept as plain data; and which one to take.

Source: docs/contract.md sections 3.4 and 7.5.
"""

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from impl.errors import DeviceLimitExceeded, VulkanUnavailable


@dataclass(frozen=True)
class DeviceInfo:
    """What one device is and can do.

    ``limits`` are the VkPhysicalDeviceLimits that the kernels depend on, in bytes, texels or work
    groups. ``features`` names what is there ("shaderFloat16", "storageBuffer16BitAccess", ...),
    ``float_modes`` the SPIR-V execution modes that a shader may declare, as "RoundingModeRTE 32".
    """

    index: int
    name: str
    kind: str
    driver: str
    api_version: str
    limits: dict[str, int]
    features: tuple[str, ...]
    float_modes: tuple[str, ...]
    timestamp_period_ns: float

    def check_limit(self, limit: str, size: int, what: str, advice: str = "") -> None:
        """Raise DeviceLimitExceeded where ``size`` exceeds the named limit; ``what`` says whose size it is."""
        bound = self.limits[limit]
        if size > bound:
            message = f"{what}, beyond {limit} = {bound} of {self.name}" + (f"; {advice}" if advice else "")
            raise DeviceLimitExceeded(limit, message)


def choose_device(devices: list[DeviceInfo], name: str | int | None = None) -> DeviceInfo:
    """Pick by index or by part of the name; else $Q4GSW_DEVICE; else the first discrete GPU, lavapipe, or the first."""
    text = os.environ.get("Q4GSW_DEVICE", "") if name is None else str(name)
    if not text:
        preferred = [d for d in devices if d.kind == "discrete"] or [d for d in devices if d.kind == "cpu"]
        return (preferred or devices)[0]
    for device in devices:
        if text == str(device.index) or (not text.isdigit() and text.lower() in device.name.lower()):
            return device
    listed = ", ".join(f"{d.index}: {d.name}" for d in devices)
    raise VulkanUnavailable(f"no Vulkan device {text!r}; there is {listed}")


_LIMITS = (
    "maxStorageBufferRange",
    "minStorageBufferOffsetAlignment",
    "minUniformBufferOffsetAlignment",
    "nonCoherentAtomSize",
    "maxImageDimension2D",
    "maxImageDimension3D",
    "maxComputeWorkGroupInvocations",
    "maxComputeSharedMemorySize",
)


def describe(vk: ModuleType, index: int, handle: Any) -> DeviceInfo:
    """Ask the driver for everything in a DeviceInfo."""
    float_controls = vk.VkPhysicalDeviceFloatControlsProperties()
    driver = vk.VkPhysicalDeviceDriverProperties(pNext=float_controls)
    properties = vk.VkPhysicalDeviceProperties2(pNext=driver)
    vk.vkGetPhysicalDeviceProperties2(handle, properties)
    base = properties.properties
    limits = {name: int(getattr(base.limits, name)) for name in _LIMITS}
    for axis in range(3):
        limits[f"maxComputeWorkGroupCount[{axis}]"] = int(base.limits.maxComputeWorkGroupCount[axis])
        limits[f"maxComputeWorkGroupSize[{axis}]"] = int(base.limits.maxComputeWorkGroupSize[axis])
    version = int(base.apiVersion)
    kinds = {
        vk.VK_PHYSICAL_DEVICE_TYPE_DISCRETE_GPU: "discrete",
        vk.VK_PHYSICAL_DEVICE_TYPE_INTEGRATED_GPU: "integrated",
        vk.VK_PHYSICAL_DEVICE_TYPE_VIRTUAL_GPU: "virtual",
        vk.VK_PHYSICAL_DEVICE_TYPE_CPU: "cpu",
    }
    return DeviceInfo(
        index=index,
        name=_text(vk, base.deviceName),
        kind=kinds.get(base.deviceType, "other"),
        driver=f"{_text(vk, driver.driverName)} {_text(vk, driver.driverInfo)}".strip(),
        api_version=f"{version >> 22}.{version >> 12 & 0x3FF}.{version & 0xFFF}",
        limits=limits,
        features=feature_chain(vk, handle)[1],
        float_modes=_float_modes(vk, float_controls),
        timestamp_period_ns=float(base.limits.timestampPeriod) if base.limits.timestampComputeAndGraphics else 0.0,
    )


def _text(vk: ModuleType, chars: Any) -> str:
    return chars if isinstance(chars, str) else vk.ffi.string(chars).decode()


def feature_chain(vk: ModuleType, handle: Any) -> tuple[list[Any], tuple[str, ...]]:
    """The filled feature structs as a chain (first one first), and the names of the features that the device has."""
    int8 = vk.VkPhysicalDeviceShaderFloat16Int8Features()
    byte = vk.VkPhysicalDevice8BitStorageFeatures(pNext=int8)
    half = vk.VkPhysicalDevice16BitStorageFeatures(pNext=byte)
    chain = vk.VkPhysicalDeviceFeatures2(pNext=half)
    vk.vkGetPhysicalDeviceFeatures2(handle, chain)
    features = {
        "shaderFloat16": int8.shaderFloat16,
        "shaderInt8": int8.shaderInt8,
        "storageBuffer8BitAccess": byte.storageBuffer8BitAccess,
        "storageBuffer16BitAccess": half.storageBuffer16BitAccess,
        "shaderInt16": chain.features.shaderInt16,
        "shaderInt64": chain.features.shaderInt64,
        "robustBufferAccess": chain.features.robustBufferAccess,
    }
    return [chain, half, byte, int8], tuple(name for name, available in features.items() if available)


def _float_modes(vk: ModuleType, controls: Any) -> tuple[str, ...]:
    """The modes a shader may declare (contract 3.4), given how far the widths are independent.

    Where 16 and 64 bit have to be set alike, 16 is left alone, because the shaders hold no 64-bit
    float; where all have to be alike nothing is declared, for the same reason.
    """

    def widths(independence: int) -> tuple[int, ...]:
        if independence == vk.VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_ALL:
            return (16, 32)
        return (32,) if independence == vk.VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_32_BIT_ONLY else ()

    modes = []
    for mode, independence in (
        ("DenormPreserve", controls.denormBehaviorIndependence),
        ("RoundingModeRTE", controls.roundingModeIndependence),
        ("SignedZeroInfNanPreserve", vk.VK_SHADER_FLOAT_CONTROLS_INDEPENDENCE_ALL),
    ):
        modes += [f"{mode} {w}" for w in widths(independence) if getattr(controls, f"shader{mode}Float{w}")]
    return tuple(modes)
