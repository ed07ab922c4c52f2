"""Vulkan devices: what there is, and one opened for compute, with VK_LAYER_KHRONOS_validation where requested.

The PyPI ``vulkan`` binding is imported on first use, so that importing this module needs neither a
loader nor a driver. The binding copies structs by value and forgets what their pointers point to;
every nested struct here therefore stays in a local variable until the call that reads it returns.

Source: docs/contract.md sections 3.4, 7.4 and 7.5.
"""

import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any, Self, cast

from impl.errors import DeviceHang, DeviceLost, ValidationFailed, VulkanUnavailable
from impl.gpu.info import DeviceInfo, choose_device, describe, feature_chain

#: Enabled where the device lists them; each is core in a later Vulkan version, where asking for it does no harm.
_EXTENSIONS = (
    "VK_KHR_16bit_storage",
    "VK_KHR_8bit_storage",
    "VK_KHR_shader_float16_int8",
    "VK_KHR_shader_float_controls",
    "VK_KHR_storage_buffer_storage_class",
)
_API_VERSION = (1 << 22) | (1 << 12)  # Vulkan 1.1, what phones have
_INSTALL = "install a driver and the loader (Debian: apt-get install mesa-vulkan-drivers libvulkan1)"
_LAYER = "VK_LAYER_KHRONOS_validation"
#: Drivers that the loader does not find by itself, by the word that names their device: their manifest and package.
_DRIVERS = {"swiftshader": (Path("/usr/lib/chromium/vk_swiftshader_icd.json"), "chromium")}
#: How long one submission may run before it counts as hung; the suite's own time limit is shorter.
SUBMIT_TIMEOUT_S = 120.0


@functools.cache
def binding() -> ModuleType:
    """The PyPI ``vulkan`` module."""
    try:
        import vulkan  # noqa: PLC0415 (loads libvulkan.so.1, which `import impl.kernel` must not need)
    except OSError as error:
        raise VulkanUnavailable(f"no Vulkan loader (libvulkan.so.1): {_INSTALL}") from error
    except ImportError as error:
        raise VulkanUnavailable("the Python package `vulkan` is missing: pip install vulkan") from error
    return cast("ModuleType", vulkan)


def list_devices(name: str | int | None = None) -> list[DeviceInfo]:
    """Every device of this machine, in the loader's order; those of a driver of its own where ``name`` names one."""
    vk = binding()
    with driver_of(name):
        instance = _create_instance(vk, validate=False)
    try:
        return [describe(vk, index, handle) for index, handle in enumerate(_physical_devices(vk, instance))]
    finally:
        vk.vkDestroyInstance(instance, None)


def named_drivers() -> list[str]:
    """The words that name a device whose driver is installed and which the loader does not find by itself."""
    own = {"VK_DRIVER_FILES", "VK_ICD_FILENAMES"} & set(os.environ)
    return [] if own else [word for word, (manifest, _package) in _DRIVERS.items() if manifest.is_file()]


@contextmanager
def driver_of(name: str | int | None) -> Iterator[None]:
    """Let the loader take the driver that ``name``, or $Q4GSW_DEVICE, names; the user's own variables come first."""
    text = os.environ.get("Q4GSW_DEVICE", "") if name is None else str(name)
    manifest, package = next((_DRIVERS[word] for word in _DRIVERS if word in text.lower()), (None, ""))
    if manifest is None or {"VK_DRIVER_FILES", "VK_ICD_FILENAMES"} & set(os.environ):
        yield
        return
    if not manifest.is_file():
        raise VulkanUnavailable(f"no driver of device {text!r} in {manifest} (Debian: apt-get install {package})")
    os.environ["VK_ICD_FILENAMES"] = str(manifest)
    try:
        yield
    finally:
        del os.environ["VK_ICD_FILENAMES"]


class Device:
    """One opened device: logical device, queue, command buffer, fence. A context manager; closing frees everything.

    One thread at a time. ``validate=True`` loads VK_LAYER_KHRONOS_validation with synchronization
    validation, proves on a deliberate hazard that it speaks (``hazard_seen``), and raises ValidationFailed
    in ``submit`` and ``close`` for every message. ``timeout_s`` is how long one submission may take.
    """

    def __init__(
        self, name: str | int | None = None, *, validate: bool = False, timeout_s: float = SUBMIT_TIMEOUT_S
    ) -> None:
        self.vk = vk = binding()
        self.messages: list[str] = []
        self.broken = False
        self.timeout_s = timeout_s
        self._children: dict[object, Any] = {}
        with driver_of(name):
            self._instance = _create_instance(vk, validate=validate)
        self._messenger = _listen(vk, self._instance, self.messages) if validate else None
        self.validate = validate
        handles = _physical_devices(vk, self._instance)
        self.info = choose_device([describe(vk, i, h) for i, h in enumerate(handles)], name)
        self.physical = handles[self.info.index]
        self.memory_properties = vk.vkGetPhysicalDeviceMemoryProperties(self.physical)
        self.handle, family = _create_device(vk, self.physical, self.info)
        self.queue = vk.vkGetDeviceQueue(self.handle, family, 0)
        pool_info = vk.VkCommandPoolCreateInfo(
            flags=vk.VK_COMMAND_POOL_CREATE_RESET_COMMAND_BUFFER_BIT, queueFamilyIndex=family
        )
        self._pool = vk.vkCreateCommandPool(self.handle, pool_info, None)
        self._fence = vk.vkCreateFence(self.handle, vk.VkFenceCreateInfo(), None)
        allocate = vk.VkCommandBufferAllocateInfo(
            commandPool=self._pool, level=vk.VK_COMMAND_BUFFER_LEVEL_PRIMARY, commandBufferCount=1
        )
        self.commands = vk.vkAllocateCommandBuffers(self.handle, allocate)[0]
        #: What the validation layer says about a deliberate hazard; "" where nothing validates.
        self.hazard_seen = _hazard_message(self) if validate else ""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def keep(self, key: object, make: Any) -> Any:
        """``make()`` on first use of ``key``; the result's ``close()`` is called when the device closes."""
        if key not in self._children:
            self._children[key] = make()
        return self._children[key]

    def begin(self) -> Any:
        """Start recording the device's one command buffer and return it."""
        vk = self.vk
        vk.vkBeginCommandBuffer(
            self.commands, vk.VkCommandBufferBeginInfo(flags=vk.VK_COMMAND_BUFFER_USAGE_ONE_TIME_SUBMIT_BIT)
        )
        return self.commands

    def submit(self) -> None:
        """End recording, run it and wait for it.

        Raises:
            DeviceHang: not done after ``timeout_s`` seconds.
            DeviceLost: the driver gives up.
            ValidationFailed: the validation layer reports something.
        """
        vk = self.vk
        vk.vkEndCommandBuffer(self.commands)
        buffers = [self.commands]
        submit = vk.VkSubmitInfo(pCommandBuffers=buffers)
        try:
            vk.vkQueueSubmit(self.queue, 1, submit, self._fence)
            vk.vkWaitForFences(self.handle, 1, [self._fence], True, int(self.timeout_s * 1e9))  # noqa: FBT003 (Vulkan's own signature)
        except vk.VkTimeout as error:
            self.broken = True
            raise DeviceHang(f"{self.info.name}: a dispatch did not end within {self.timeout_s} s") from error
        except vk.VkErrorDeviceLost as error:
            self.broken = True
            raise DeviceLost(f"{self.info.name}: VK_ERROR_DEVICE_LOST") from error
        except KeyboardInterrupt:
            vk.vkQueueWaitIdle(self.queue)  # whoever frees memory now must not take it from a running shader
            raise
        vk.vkResetFences(self.handle, 1, [self._fence])
        self.check_messages()

    def check_messages(self) -> None:
        """Raise ValidationFailed if the validation layer reported anything, and forget it."""
        if self.messages:
            text = "\n".join(dict.fromkeys(self.messages))
            self.messages.clear()
            raise ValidationFailed(text)

    def close(self) -> None:
        """Free everything. After a hang the driver would wait for ever, so nothing is freed then."""
        if self.broken or self._instance is None:
            return
        vk = self.vk
        vk.vkDeviceWaitIdle(self.handle)
        for child in reversed(self._children.values()):
            child.close()
        self._children.clear()
        vk.vkDestroyFence(self.handle, self._fence, None)
        vk.vkDestroyCommandPool(self.handle, self._pool, None)
        vk.vkDestroyDevice(self.handle, None)
        if self._messenger is not None:
            destroy = vk.vkGetInstanceProcAddr(self._instance, "vkDestroyDebugUtilsMessengerEXT")
            destroy(self._instance, self._messenger, None)
        vk.vkDestroyInstance(self._instance, None)
        self._instance = None
        self.check_messages()


def _create_instance(vk: ModuleType, *, validate: bool) -> Any:
    application = vk.VkApplicationInfo(pApplicationName="q4gsw", apiVersion=_API_VERSION)
    checks = [vk.VK_VALIDATION_FEATURE_ENABLE_SYNCHRONIZATION_VALIDATION_EXT]
    chain = vk.VkValidationFeaturesEXT(pEnabledValidationFeatures=checks) if validate else None
    layers, extensions = ([_LAYER], ["VK_EXT_debug_utils"]) if validate else ([], [])
    info = vk.VkInstanceCreateInfo(
        pNext=chain, pApplicationInfo=application, ppEnabledLayerNames=layers, ppEnabledExtensionNames=extensions
    )
    try:
        return vk.vkCreateInstance(info, None)
    except vk.VkErrorIncompatibleDriver as error:
        raise VulkanUnavailable(f"no Vulkan driver: {_INSTALL}") from error
    except vk.VkErrorLayerNotPresent as error:
        install = f"{_LAYER} is missing: install it (Debian: apt-get install vulkan-validationlayers)"
        raise VulkanUnavailable(install) from error


def _physical_devices(vk: ModuleType, instance: Any) -> Any:
    try:
        handles = vk.vkEnumeratePhysicalDevices(instance)
    except (vk.VkErrorInitializationFailed, vk.VkErrorIncompatibleDriver) as error:
        raise VulkanUnavailable(f"the Vulkan driver does not start: {_INSTALL}") from error
    if len(handles) == 0:
        raise VulkanUnavailable(f"no Vulkan device: {_INSTALL}")
    return handles


def _create_device(vk: ModuleType, physical: Any, info: DeviceInfo) -> tuple[Any, int]:
    families = vk.vkGetPhysicalDeviceQueueFamilyProperties(physical)
    compute = [i for i, f in enumerate(families) if f.queueFlags & vk.VK_QUEUE_COMPUTE_BIT]
    if not compute:
        raise VulkanUnavailable(f"{info.name} has no compute queue; choose another device with Q4GSW_DEVICE")
    priorities = [1.0]
    queues = [vk.VkDeviceQueueCreateInfo(queueFamilyIndex=compute[0], pQueuePriorities=priorities)]
    chain, _features = feature_chain(vk, physical)
    chain[0].features.robustBufferAccess = 0  # would hide a shader's out-of-bounds write from the guard bands
    available = {e.extensionName for e in vk.vkEnumerateDeviceExtensionProperties(physical, None)}
    extensions = [name for name in _EXTENSIONS if name in available]
    create = vk.VkDeviceCreateInfo(pNext=chain[0], pQueueCreateInfos=queues, ppEnabledExtensionNames=extensions)
    return vk.vkCreateDevice(physical, create, None), compute[0]


def _listen(vk: ModuleType, instance: Any, messages: list[str]) -> Any:
    """Append every warning and error of the layer to ``messages``; returns the messenger.

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


def _hazard_message(device: Device) -> str:
    """Record a deliberate write-after-write hazard (never submitted) and return what the layer says about it.

    Silence raises ValidationFailed: it would mean nothing elsewhere either.
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
    messages = device.messages[before:]
    del device.messages[before:]
    hazards = [message for message in messages if "SYNC-HAZARD-WRITE-AFTER-WRITE" in message]
    if not hazards or len(hazards) != len(messages):
        raise ValidationFailed(
            f"a deliberate write-after-write hazard drew these messages: {messages or 'none'}; "
            f"update {_LAYER}, or run without --validate"
        )
    return hazards[0]
