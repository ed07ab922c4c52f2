"""Run et_vk.embedding_q4gsw on a Vulkan device, from numpy arrays to numpy arrays, and tell what can be trusted.

In checked mode every output is computed twice over two different poisons, so that an element nobody
wrote shows in both, and every byte around the outputs, inputs included, is compared afterwards.

Source: docs/contract.md sections 2, 3.4 and 7.
"""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from impl import kernel_geometry, shaders
from impl.kernel_checks import Request, check_request, rows_per_run
from impl.kernel_layout import POISONS, Layout
from impl.kernel_variants import VARIANTS, Variant, missing_features, variant_named
from impl.vulkan_device import Device, list_devices
from impl.vulkan_images import Image
from impl.vulkan_info import DeviceInfo
from impl.vulkan_memory import Arena
from impl.vulkan_pipeline import BufferRange, PipelineCache, Resource

if TYPE_CHECKING:
    from pathlib import Path

__all__ = [
    "VARIANTS",
    "Device",
    "DeviceInfo",
    "KernelResult",
    "Variant",
    "devices",
    "embedding_shader",
    "run_embedding",
    "variant_named",
]

_SHADER = shaders.GLSL / "embedding_q4gsw.comp"


@dataclass(frozen=True)
class KernelResult:
    """What one lookup gave and whether its surroundings survived.

    ``out`` has shape ``indices.shape + [D]``. ``unwritten`` is the first flat position that kept its
    poison in both runs, ``unstable`` the first whose two runs differ otherwise (half written, or a
    race); None where there is none. ``damage`` says which bytes outside the output changed, "" for none.
    ``float_modes`` are the execution modes that the SPIR-V declares. In unchecked mode nothing is
    looked for, and the three report nothing.
    """

    out: npt.NDArray[Any]
    unwritten: int | None
    unstable: int | None
    damage: str
    float_modes: tuple[str, ...]
    spirv_sha256: str
    device: str
    driver: str

    @property
    def guards_intact(self) -> bool:
        """Whether nothing outside the output changed."""
        return not self.damage


def devices() -> list[dict[str, Any]]:
    """Every device, what it can do, and the names of the variants that it runs, for a listing.

    Raises:
        VulkanUnavailable: no loader, no driver or no device.
    """
    rows = []
    for info in list_devices():
        runs = [v.name for v in VARIANTS if not missing_features(info, v)]
        rows.append({**vars(info), "variants": runs})
    return rows


def embedding_shader(info: DeviceInfo, variant: Variant, source: Path | None = None) -> shaders.Shader:
    """The compiled embedding shader of ``variant`` for that device; ``source`` replaces our GLSL.

    Raises:
        ShaderToolMissing, ShaderCompileError: see ``impl.shaders.compile_shader``.
    """
    modes = info.float_modes if variant.float_modes == "declared" else ()
    return shaders.compile_shader(source or _SHADER, variant.defines, modes)


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
    shader: shaders.Shader | None = None,
    grid: Literal["player", "executorch"] = "player",
) -> KernelResult:
    """Look ``indices`` up in a packed table on the device.

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
        grid: "player" for our shader's grid, "executorch" for 32 columns an invocation (contract 7.2).

    Raises:
        ValueError, IndexError, DeviceLacksFeature: the arguments, see ``impl.kernel_checks``.
        DeviceLimitExceeded: a size beyond a limit that splitting cannot help.
        ShaderToolMissing, ShaderCompileError: see ``impl.shaders``.
        DeviceHang, DeviceLost, ValidationFailed: see ``Device.submit``.
    """
    request = check_request(
        device,
        variant,
        weight,
        scales,
        group_size,
        indices,
        vocab_size=vocab_size,
        allow_out_of_range=allow_out_of_range,
    )
    shader = shader or embedding_shader(device.info, variant, shader_source)
    limit = rows_per_run(device, request, kernel_geometry.guard_bytes(request))
    rows = request.indices.size
    if rows <= limit:
        return _run(device, request, shader, checked=checked, specialize=specialize, grid=grid)
    flat = request.indices.reshape(-1)
    parts = [
        _run(
            device,
            replace(request, indices=flat[at : at + limit]),
            shader,
            checked=checked,
            specialize=specialize,
            grid=grid,
        )
        for at in range(0, rows, limit)
    ]
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


def _run(
    device: Device, request: Request, shader: shaders.Shader, *, checked: bool, specialize: bool, grid: str
) -> KernelResult:
    """One command buffer: fill, dispatch (twice over two poisons where checked), read back, judge."""
    shape = (*request.indices.shape, request.embed_dim)
    result = KernelResult(
        out=np.empty(shape, request.out_dtype),
        unwritten=None,
        unstable=None,
        damage="",
        float_modes=shader.float_modes,
        spirv_sha256=shader.sha256,
        device=device.info.name,
        driver=device.info.driver,
    )
    if result.out.size == 0:
        return result
    layout = Layout(device, request, runs=2 if checked else 1, guarded=checked)
    arena: Arena = device.keep("arena", lambda: Arena(device))
    view = arena.reserve(layout.size)
    layout.write(view, request)
    before = layout.protected_copy(view) if checked else []
    geometry = kernel_geometry.geometry(device, request, grid=grid, specialize=specialize)
    pipelines: PipelineCache = device.keep("pipelines", lambda: PipelineCache(device))
    pipeline = pipelines.get(shader, geometry.kinds, 2, geometry.constants)
    push = (request.group_size, int(request.variant.weight_layout == "block"))
    with ExitStack() as images:
        commands = device.begin()
        arena.upload(commands, layout.size)
        inputs = _inputs(device, layout, arena, commands, images)
        outputs: list[Image] = []
        for run, region in enumerate(layout.outputs):
            target: Resource = BufferRange(arena.buffer, region.inner, region.bound)
            if region.extent is not None:
                image = Image(device, region.extent, region.texels, storage=True)
                images.callback(image.close)
                image.fill(commands, arena.buffer, region.offset)
                outputs.append(image)
                target = image.resource()
            pipeline.bind(run, [target, *inputs])
            pipeline.dispatch(commands, run, push, geometry.groups)
        for image, region in zip(outputs, layout.outputs, strict=False):
            image.read(commands, arena.buffer, region.offset)
        arena.download(commands, layout.read_ranges(checked=checked))
        device.submit()
        found = [region.output(view, shape, request.out_dtype) for region in layout.outputs]
    if not checked:
        return replace(result, out=found[0].copy())
    unwritten, unstable = _judge(found[0], found[1])
    return replace(
        result, out=found[1].copy(), unwritten=unwritten, unstable=unstable, damage=layout.damage(view, before)
    )


def _inputs(device: Device, layout: Layout, arena: Arena, commands: Any, images: ExitStack) -> list[Resource]:
    """Resources of bindings 1 to 4: indices, weight, scales, out_sizes; images are filled on the way."""
    resources: list[Resource] = []
    for region in layout.inputs:
        if region.extent is None:
            resources.append(BufferRange(arena.buffer, region.offset, region.size))
            continue
        image = Image(device, region.extent, region.texels, storage=False, flat=region.flat)
        images.callback(image.close)
        image.fill(commands, arena.buffer, region.offset)
        resources.append(image.resource())
    return resources


def _judge(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[int | None, int | None]:
    """First flat position that kept both poisons, and first that differs without having kept them."""
    width = np.dtype(f"u{first.dtype.itemsize}")
    a, b = np.ascontiguousarray(first).view(width).reshape(-1), np.ascontiguousarray(second).view(width).reshape(-1)
    different = np.flatnonzero(a != b)
    if different.size == 0:
        return None, None
    kept = np.ones(different.size, bool)
    for values, poison in zip((a, b), POISONS, strict=True):
        kept &= values[different] == int.from_bytes(bytes([poison]) * width.itemsize, "little")
    unwritten, unstable = different[kept], different[~kept]
    return (int(unwritten[0]) if unwritten.size else None), (int(unstable[0]) if unstable.size else None)
