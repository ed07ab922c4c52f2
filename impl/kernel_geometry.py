"""Work groups, specialization constants and binding kinds of one embedding dispatch.

Source: docs/contract.md sections 7.2 and 7.5.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from impl.kernel_checks import Request
    from impl.vulkan_device import Device

_GROUP_INVOCATIONS = 64
_GUARD_FLOOR = 4096
#: Rows an invocation serves where sizes are constants and there are rows enough to fill any device.
_ROWS_PER_INVOCATION, _MANY_ROWS = 4, 4096


@dataclass(frozen=True)
class Geometry:
    """How to dispatch: binding kinds, specialization constants by id, and work groups."""

    kinds: tuple[str, ...]
    constants: dict[int, int]
    groups: tuple[int, int, int]


def guard_bytes(request: Request) -> int:
    """Bytes of a guard band: two output rows, at least 4 KiB, in whole 256-byte lines."""
    return -(-max(_GUARD_FLOOR, 2 * request.row_bytes) // 256) * 256


def geometry(device: Device, request: Request, *, grid: str, specialize: bool) -> Geometry:
    """The dispatch of ``request``; see ``impl.kernel.run_embedding`` for ``grid`` and ``specialize``."""
    textured = request.variant.io_storage == "texture3d"
    kinds = (
        "image" if textured else "storage",
        "sampled" if textured else "storage",
        "sampled" if request.variant.weight_storage == "texture2d" else "storage",
        "storage",
        "uniform",
    )
    width, height, channels, batch = request.out_sizes()
    planes = channels * batch
    if grid == "executorch":
        wanted = (width // 32, height, planes)
        local = executorch_local_size(wanted)
        return Geometry(kinds, dict(enumerate(local)), _groups(device, wanted, local))
    columns = 8 if request.variant.output_dtype == "float16" and not textured else 4
    chunks = width // columns
    local_x = min(_GROUP_INVOCATIONS, 1 << (chunks - 1).bit_length())
    local = (local_x, _GROUP_INVOCATIONS // local_x, 1)
    constants = dict(enumerate(local))
    rows = height if textured else height * planes
    if specialize:
        each = _ROWS_PER_INVOCATION if rows >= _MANY_ROWS and not textured else 1
        constants |= {3: request.embed_dim, 4: request.group_size, 5: each}
        rows = -(-rows // each)
    return Geometry(kinds, constants, _groups(device, (chunks, rows, planes if textured else 1), local))


def executorch_local_size(wanted: tuple[int, int, int]) -> tuple[int, int, int]:
    """The local size that ExecuTorch's runtime picks for a global size by default: 64 invocations, shaped to fit.

    A dimension of one element gets one invocation and its share goes to the others.
    """
    x, y, z = wanted
    if y == 1 and z == 1:
        return (64, 1, 1)
    if z == 1:
        return (8, 8, 1) if x >= 8 else (4, 16, 1)  # noqa: PLR2004 (the shapes themselves are the rule)
    return (4, 4, 4)


def _groups(device: Device, wanted: tuple[int, int, int], local: tuple[int, int, int]) -> tuple[int, int, int]:
    """Work groups, cut to the device's counts: our shader strides over what is left."""
    limits = device.info.limits
    counts = [
        min(-(-size // step), limits[f"maxComputeWorkGroupCount[{axis}]"])
        for axis, (size, step) in enumerate(zip(wanted, local, strict=True))
    ]
    return counts[0], counts[1], counts[2]
