"""The Vulkan device of this process: the subjects' stages, whole files and proofs run on it.

$Q4GSW_DEVICE names it by index or part of its name. With Q4GSW_VALIDATE=1 (``--validate``) it is opened with Vulkan's
validation layer, and every message of the layer raises. Needs neither torch nor executorch.
"""

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from conformance.harness.errors import EnvironmentProblem
from impl.errors import VulkanUnavailable
from impl.gpu.device import list_devices, named_drivers
from impl.gpu.info import choose_device
from impl.kernel import Device, devices

_open: list[Device] = []


def open_device() -> Device:
    """Return the device, opened once and again only where it is broken.

    Raises:
        EnvironmentProblem: no loader, no driver or no such device.
    """
    if not _open or _open[0].broken:
        _open[:] = [new_device()]
    return _open[0]


def new_device(name: str = "") -> Device:
    """Open a device that the caller closes; ``name`` instead of $Q4GSW_DEVICE."""
    try:
        return Device(name or None, validate=os.environ.get("Q4GSW_VALIDATE") == "1")
    except VulkanUnavailable as error:
        raise EnvironmentProblem(str(error)) from error


def check_device(name: str) -> None:
    """Check that ``name``, an index or part of a name, is a Vulkan device of this machine.

    Raises:
        ValueError: it is not; names the devices there are.
        EnvironmentProblem: no Vulkan loader or driver; names the package to install.
    """
    try:
        present = list_devices(name)
    except VulkanUnavailable as error:
        raise EnvironmentProblem(str(error)) from error
    try:
        choose_device(present, name)
    except VulkanUnavailable as error:
        raise ValueError(str(error)) from error


def device_rows() -> list[tuple[int | str, Mapping[str, Any]]]:
    """What is known of each Vulkan device, by the word for --device; those of drivers that are named come last."""
    rows: list[tuple[int | str, Mapping[str, Any]]]
    try:
        rows = [(row["index"], row) for row in devices()]
    except VulkanUnavailable as error:
        raise EnvironmentProblem(str(error)) from error
    for word in named_drivers():
        with contextlib.suppress(VulkanUnavailable):
            rows += [(word, row) for row in devices(word) if word in row["name"].lower()]
    return rows


def device_lines() -> list[str]:
    """One line for each Vulkan device, for a listing."""
    return [
        f"{name}: {row['name']} ({row['kind']}), {row['driver']}; {len(row['variants'])} shader variants; "
        f"float modes {', '.join(row['float_modes']) or 'none'}"
        for name, row in device_rows()
    ]
