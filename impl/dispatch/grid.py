"""Work groups and specialization constants of a dispatch.

Source: docs/contract.md sections 7.2 and 7.5.
"""

from impl.dispatch.request import Request
from impl.gpu.info import DeviceInfo

_GROUP_INVOCATIONS = 64
#: Columns and invocations of a group that writes an image, which lies in memory in blocks of rows (docs/kernel.md).
_IMAGE_GROUP, _LARGE_IMAGE_GROUP = (16, 64), (8, 128)
_GUARD_FLOOR = 4096
#: Rows an invocation serves where sizes are constants and there are rows enough to fill any device.
_ROWS_PER_INVOCATION, _MANY_ROWS = 4, 4096

Three = tuple[int, int, int]


def guard_bytes(row_bytes: int) -> int:
    """Bytes of a guard band: two output rows, at least 4 KiB, in whole 256-byte lines."""
    return -(-max(_GUARD_FLOOR, 2 * row_bytes) // 256) * 256


def impl_grid(info: DeviceInfo, request: Request, *, specialize: bool) -> tuple[dict[int, int], Three]:
    """Specialization constants and work groups of our shader: x chunks of a row, y rows, z planes of textures.

    Where a device allows fewer work groups the shader strides over what is left.
    """
    textured = request.variant.io_storage == "texture3d"
    width, height, channels, batch = request.out_sizes()
    planes = channels * batch
    columns = 8 if request.variant.output_dtype == "float16" and not textured else 4
    chunks = width // columns
    most_x, invocations = _GROUP_INVOCATIONS, _GROUP_INVOCATIONS
    if textured and height > 1:
        most_x, invocations = _IMAGE_GROUP if height < _MANY_ROWS else _LARGE_IMAGE_GROUP
    local_x = min(most_x, 1 << (chunks - 1).bit_length())
    local = (local_x, invocations // local_x, 1)
    constants = dict(enumerate(local))
    rows = height if textured else height * planes
    if specialize:
        each = _ROWS_PER_INVOCATION if rows >= _MANY_ROWS and not textured else 1
        constants |= {3: request.embed_dim, 4: request.group_size, 5: each}
        rows = -(-rows // each)
    return constants, work_groups(info, (chunks, rows, planes if textured else 1), local)


def executorch_grid(info: DeviceInfo, request: Request) -> tuple[dict[int, int], Three]:
    """The same for ExecuTorch's shader, which does not stride: an invocation for 32 columns, the default local size."""
    width, height, channels, batch = request.out_sizes()
    invocations = (width // 32, height, channels * batch)
    local = executorch_local_size(invocations)
    for axis, (size, step) in enumerate(zip(invocations, local, strict=True)):
        groups = -(-size // step)
        what = f"{size} invocations in {'xyz'[axis]} need {groups} groups of {step}"
        info.check_limit(f"maxComputeWorkGroupCount[{axis}]", groups, what)
    return dict(enumerate(local)), work_groups(info, invocations, local)


def executorch_local_size(size: Three) -> Three:
    """The local size that ExecuTorch's runtime picks by default for a global size: 64 invocations, shaped to fit.

    The axes are taken by size, largest first (ComputeGraph.cpp, create_local_wg_size, at v1.5.1).

    >>> executorch_local_size((64, 2047, 1))
    (4, 16, 1)
    >>> executorch_local_size((64, 1, 1))
    (64, 1, 1)
    """
    order = [0, 1, 2]
    for a, b in ((0, 1), (1, 2), (0, 1)):
        if size[order[a]] < size[order[b]]:
            order[a], order[b] = order[b], order[a]
    middle, least = size[order[1]], size[order[2]]
    if least > 1:
        locals_ = (8, min(4, middle), min(2, least))
    elif middle == 1:
        locals_ = (64, 1, 1)
    else:
        locals_ = (16, 4, 1) if middle % 4 == 0 else (32, 2, 1)
    x, y, z = (max(1, locals_[order.index(axis)]) for axis in range(3))
    return x, y, z


def work_groups(info: DeviceInfo, invocations: Three, local: Three) -> Three:
    """Work groups that cover the invocations, cut to the device's counts."""
    x, y, z = (
        min(-(-size // step), info.limits[f"maxComputeWorkGroupCount[{axis}]"])
        for axis, (size, step) in enumerate(zip(invocations, local, strict=True))
    )
    return x, y, z
