"""The errors of the Vulkan host, one class per thing that a user has to do about it."""

# ruff: noqa: N818 (each name says the condition that a user meets and can act on; "Error" would add nothing)


class VulkanError(RuntimeError):
    """Anything that goes wrong between numpy arrays and the device."""


class VulkanUnavailable(VulkanError):
    """No Vulkan loader, no driver, or no device of the wanted name: names the package to install."""


class ShaderToolMissing(VulkanError):
    """glslc or spirv-val is not installed: names the package."""


class ShaderCompileError(VulkanError):
    """glslc or spirv-val refused a shader: carries its message."""


class DeviceLacksFeature(VulkanError):
    """The device misses a feature that the variant needs: names the feature."""


class DeviceLimitExceeded(ValueError):
    """A size is beyond a limit of the device (contract 7.5): names the limit, its value and the size."""


class DeviceHang(VulkanError):
    """Submitted work did not end in time. The device object is unusable from then on."""


class DeviceLost(VulkanError):
    """The driver reported VK_ERROR_DEVICE_LOST. The device object is unusable from then on."""


class ValidationFailed(VulkanError):
    """The validation layer reported something; the messages are the text."""
