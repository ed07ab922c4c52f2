"""Run the prepack shader: linear-weight bytes to the block layout, in a buffer or a 2D texture.

Source: docs/contract.md sections 1 and 7.1.
"""

from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from impl.dispatch.grid import guard_bytes, work_groups
from impl.dispatch.job import Job, KernelResult, Operand, Output, Texture, run_job
from impl.gpu.device import Device
from impl.gpu.memory import check_extent
from impl.shader.compiler import GLSL, Shader, compile_shader

PREPACK_STORAGES = ("buffer", "texture2d")
_SHADER = GLSL / "pack_q4_linear_weight.comp"
_LOCAL = (16, 4, 1)


def prepack_shader(storage: str, source: Path | None = None) -> Shader:
    """The compiled prepack shader; ``source`` replaces our GLSL. It holds no floats, so it declares no float modes."""
    return compile_shader(source or _SHADER, ("TEXTURE",) if storage == "texture2d" else ())


def run_prepack(
    device: Device,
    packed: npt.NDArray[Any],
    storage: Literal["buffer", "texture2d"] = "buffer",
    *,
    checked: bool = True,
    shader_source: Path | None = None,
    shader: Shader | None = None,
) -> KernelResult:
    """Turn ``packed`` (uint8 [V, D/2], linear-weight layout) into blocks; ``out`` is int32 [ceil(V/8), D/4, 4].

    ``checked``, ``shader_source`` and ``shader`` are as for ``impl.kernel.run_embedding``.

    Raises:
        ValueError: ``packed`` or ``storage`` is not as above, or D is no multiple of 32.
        DeviceLimitExceeded: a buffer or image beyond a limit of the device.
        ShaderToolMissing, ShaderCompileError, DeviceHang, DeviceLost, ValidationFailed: as run_embedding.
    """
    if storage not in PREPACK_STORAGES:
        raise ValueError(f"storage is {storage!r}; it must be one of {', '.join(PREPACK_STORAGES)}")
    if packed.dtype != np.uint8 or packed.ndim != 2:  # noqa: PLR2004 (rows and columns)
        raise ValueError(f"packed is {packed.dtype} {packed.shape}; it must be uint8 [V, D/2]")
    rows, columns = packed.shape[0], 2 * packed.shape[1]
    if rows < 1 or columns < 1 or columns % 32:
        raise ValueError(
            f"packed has shape {packed.shape}; V must be at least 1 and D, here {columns}, a multiple of 32"
        )
    blocks, k4 = -(-rows // 8), columns // 4
    shape = (blocks, k4, 4)
    output = Output(np.dtype(np.int32), shape)
    guard = guard_bytes(k4 * 16)
    if storage == "texture2d":
        check_extent(device, (k4, blocks, 1), flat=True)
        output = Output(output.dtype, shape, Texture((k4, blocks, 1), "rgba32i", flat=True))
    else:
        size = output.size + (guard if checked else 0)
        device.info.check_limit("maxStorageBufferRange", size, f"blocks of {output.size} bytes")
    device.info.check_limit("maxStorageBufferRange", packed.nbytes, f"packed has {packed.nbytes} bytes")
    job = Job(
        shader=shader or prepack_shader(storage, shader_source),
        output=output,
        operands=(Operand("t_int4_weight", "storage", np.ascontiguousarray(packed)),),
        push=(columns, blocks, 1, 1, columns, rows),
        constants=dict(enumerate(_LOCAL)),
        groups=work_groups(device.info, (columns // 8, blocks, 1), _LOCAL),
        guard=guard,
    )
    return run_job(device, job, checked=checked)
