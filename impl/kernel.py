"""Run et_vk.embedding_q4gsw on a Vulkan device, from numpy arrays to numpy arrays.

>>> from impl.kernel import Device, run_embedding, variant_named  # doctest: +SKIP (needs a device)
>>> with Device() as device:
...     result = run_embedding(device, variant_named("flat-buffer-f32out-f32scale-buffer"), ...)

Source: docs/contract.md sections 2, 3.4 and 7.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from impl.dispatch.grid import executorch_grid, guard_bytes, impl_grid
from impl.dispatch.job import Job, KernelResult, Operand, Output, Texture, run_job
from impl.dispatch.prepack import run_prepack
from impl.dispatch.request import Request, check_request, rows_per_run
from impl.dispatch.variants import VARIANTS, Variant, missing_features, variant_named
from impl.gpu.device import Device, list_devices
from impl.gpu.info import DeviceInfo
from impl.shader.compiler import GLSL, Shader, compile_shader

__all__ = [
    "VARIANTS",
    "Device",
    "KernelResult",
    "Variant",
    "devices",
    "embedding_job",
    "embedding_shader",
    "run_embedding",
    "run_prepack",
    "variant_named",
]

_SHADER = GLSL / "embedding_q4gsw.comp"
Grid = Literal["impl", "executorch"]


def devices(name: str | None = None) -> list[dict[str, Any]]:
    """Every device, what it can do, and the names of the variants that it runs; ``name`` as ``list_devices`` takes it.

    Raises:
        VulkanUnavailable: no loader, no driver or no device.
    """
    return [
        {**vars(info), "variants": [v.name for v in VARIANTS if not missing_features(info, v)]}
        for info in list_devices(name)
    ]


def embedding_shader(info: DeviceInfo, variant: Variant, source: Path | None = None) -> Shader:
    """The compiled embedding shader of ``variant`` for that device; ``source`` replaces our GLSL.

    Errors as ``impl.shader.compiler.compile_shader``.
    """
    modes = info.float_modes if variant.float_modes == "declared" else ()
    return compile_shader(source or _SHADER, variant.defines, modes)


def run_embedding(
    device: Device,
    variant: Variant,
    weight: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    group_size: int,
    indices: npt.NDArray[Any],
    *,
    vocab_size: int,
    checked: bool = True,
    allow_out_of_range: bool = False,
    specialize: bool = False,
    shader_source: Path | None = None,
    shader: Shader | None = None,
    grid: Grid = "impl",
) -> KernelResult:
    """Look ``indices`` up in a packed table on the device; the result's ``out`` is ``indices.shape + [D]``.

    Args:
        device: an open device.
        variant: which form of the shader.
        weight: uint8 [V, D/2] in the flat layout, or int32 [ceil(V/8), D/4, 4] in the block layout.
        scales: float16 or float32 [V, D/G], as the variant says.
        group_size: G, a multiple of 4 that divides D.
        indices: int32 or int64, rank 0 to 3.
        vocab_size: V, the table's rows.
        checked: poison, guard bands, two runs. False: one plain run.
        allow_out_of_range: let indices outside [0, V) reach the shader (contract 7.3).
        specialize: give the pipeline D, G and the rows an invocation as constants (faster; a pipeline each).
        shader_source: another GLSL file of the same interface and defines, instead of ours.
        shader: a compiled module of the same interface instead (wins over ``shader_source``).
        grid: "impl" for our shader's grid, "executorch" for 32 columns an invocation (contract 7.2).

    More rows than one buffer range or image holds are split over several runs.

    Raises:
        ValueError: an argument's dtype, shape or value is wrong; names it, its value and the bound.
        IndexError: an index is outside [0, V); names its position, its value and the bound.
        DeviceLacksFeature: the device misses what the variant needs.
        DeviceLimitExceeded: (a ValueError) a size exceeds a limit, and splitting cannot help; names the limit.
        ShaderToolMissing, ShaderCompileError: see ``impl.shader.compiler``.
        DeviceHang, DeviceLost, ValidationFailed: see ``Device.submit``.
    """
    request = check_request(device.info, variant, weight, scales, group_size, indices, vocab_size, allow_out_of_range)
    module = shader or embedding_shader(device.info, variant, shader_source)
    limit = rows_per_run(device.info, request, guard_bytes(request.row_bytes))

    def run(indices: npt.NDArray[np.int32]) -> KernelResult:
        job = embedding_job(device.info, replace(request, indices=indices), module, specialize=specialize, grid=grid)
        return run_job(device, job, checked=checked)

    if request.indices.size <= limit:
        return run(request.indices)
    flat = request.indices.reshape(-1)
    parts = [run(flat[at : at + limit]) for at in range(0, flat.size, limit)]
    out = np.concatenate([part.out for part in parts]).reshape((*request.indices.shape, request.embed_dim))
    step = limit * request.embed_dim
    return replace(
        parts[0],
        out=out,
        unwritten=_first([part.unwritten for part in parts], step),
        unstable=_first([part.unstable for part in parts], step),
        damage="; ".join(part.damage for part in parts if part.damage),
    )


def _first(positions: list[int | None], step: int) -> int | None:
    return next((i * step + at for i, at in enumerate(positions) if at is not None), None)


def embedding_job(
    info: DeviceInfo, request: Request, shader: Shader, *, specialize: bool = False, grid: Grid = "impl"
) -> Job:
    """What one dispatch of a checked request binds, pushes and launches (contract 7.1, 7.2)."""
    width, height, channels, batch = sizes = request.out_sizes()
    if grid == "impl":
        constants, groups = impl_grid(info, request, specialize=specialize)
    else:
        constants, groups = executorch_grid(info, request)
    indices = Operand("t_indices", "storage", request.indices)
    out_texture = None
    if request.variant.io_storage == "texture3d":
        texels = "rgba16f" if request.variant.output_dtype == "float16" else "rgba32f"
        out_texture = Texture((width // 4, height, channels * batch), texels)
        indices = _width_packed(request)
    weight = Operand("t_weight", "storage", request.weight)
    if request.variant.weight_storage == "texture2d":
        rows, columns, _four = request.weight.shape
        weight = Operand("t_weight", "sampled", request.weight, Texture((columns, rows, 1), "rgba32i", flat=True))
    return Job(
        shader=shader,
        output=Output(request.out_dtype, (*request.indices.shape, request.embed_dim), out_texture),
        operands=(
            indices,
            weight,
            Operand("t_scales", "storage", request.scales),
            Operand("out_sizes", "uniform", np.array(sizes, np.int32)),
        ),
        push=(request.group_size, int(request.variant.weight_layout == "block")),
        constants=constants,
        groups=groups,
        guard=guard_bytes(request.row_bytes),
    )


def _width_packed(request: Request) -> Operand:
    """The indices as a texture: x holds four of the last dimension, y and z are the dimensions before it."""
    _width, last, middle, first = request.out_sizes()
    texels = -(-last // 4)
    data = np.zeros((first, middle, 4 * texels), np.int32)
    data[:, :, :last] = request.indices.reshape(first, middle, last)
    return Operand("t_indices", "sampled", data, Texture((texels, middle, first), "rgba32i"))
