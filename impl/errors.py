"""The errors of the Vulkan host, one class for each thing that a user has to do about it."""

# ruff: noqa: N818 (each name says the condition that a user meets and can act on; "Error" would add nothing)


class VulkanError(RuntimeError):
    """Anything that goes wrong between numpy arrays and the device."""


class VulkanUnavailable(VulkanError):
    """No Vulkan loader, no driver, or no device of the requested name: says which package to install."""


class ShaderToolMissing(VulkanError):
    """glslc or spirv-val is not installed: says which package to install."""


class ShaderCompileError(VulkanError):
    """glslc or spirv-val refuses a shader: carries its message."""


class DeviceLacksFeature(VulkanError):
    """The device misses a feature that the variant needs: names the feature."""


class DeviceLimitExceeded(ValueError):
    """A size exceeds a limit of the device (contract 7.5).

    Attributes:
        limit: the limit's name in VkPhysicalDeviceLimits, or "memory".
    """

    def __init__(self, limit: str, message: str) -> None:
        self.limit = limit
        super().__init__(message)


class DeviceHang(VulkanError):
    """Submitted work does not end in time. The device object is unusable from then on."""


class DeviceLost(VulkanError):
    """The driver reports VK_ERROR_DEVICE_LOST. The device object is unusable from then on."""


class ValidationFailed(VulkanError):
    """The validation layer reports something; the messages are the text."""
