"""One shader run on one device, from numpy arrays to a numpy array, with what can be trusted about it.

In checked mode the output is computed twice over two different poisons, so that an element nobody
wrote shows in both, and every byte around the outputs, inputs included, is compared afterwards.

Source: docs/contract.md section 7.4.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.dispatch.layout import POISONS, Layout
from impl.gpu.device import Device
from impl.gpu.images import Image
from impl.gpu.memory import Arena
from impl.gpu.pipeline import BufferRange, PipelineCache, Resource
from impl.shader.compiler import Shader


@dataclass(frozen=True)
class Texture:
    """An image in place of a buffer: extent in texels (x, y, z), a key of ``vulkan_images.FORMATS``, 2D where flat."""

    extent: tuple[int, int, int]
    texels: str
    flat: bool = False


@dataclass(frozen=True)
class Operand:
    """An input: ``kind`` is "storage", "uniform" or "sampled"; ``data`` holds the bytes, of textures texel by texel."""

    name: str
    kind: str
    data: npt.NDArray[Any]
    texture: Texture | None = None


@dataclass(frozen=True)
class Output:
    """Binding 0: a storage buffer of that dtype and shape, or a storage image whose texels make it up."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    texture: Texture | None = None

    @property
    def size(self) -> int:
        """Bytes of the output."""
        return math.prod(self.shape) * self.dtype.itemsize


@dataclass(frozen=True)
class Job:
    """A dispatch: shader, binding 0, bindings 1 and on, int push constants, specialization constants, work groups.

    ``guard`` is how many bytes before and behind an output buffer have to stay untouched.
    """

    shader: Shader
    output: Output
    operands: tuple[Operand, ...]
    push: tuple[int, ...]
    constants: dict[int, int]
    groups: tuple[int, int, int]
    guard: int

    @property
    def kinds(self) -> tuple[str, ...]:
        """The kind of every binding, in order."""
        return ("image" if self.output.texture else "storage", *(operand.kind for operand in self.operands))


@dataclass(frozen=True)
class KernelResult:
    """What a shader gave and whether its surroundings survived.

    ``unwritten`` is the first flat position of ``out`` that kept its poison in both runs, ``unstable``
    the first whose two runs differ otherwise (half written, or a race); None where there is none.
    ``damage`` says which bytes outside the output changed, "" for none. In unchecked mode nothing is
    looked for, and the three report nothing. ``float_modes`` are what the SPIR-V declares.
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


def run_job(device: Device, job: Job, *, checked: bool) -> KernelResult:
    """Run it in one command buffer: fill, dispatch (checked: twice over two poisons), read back, judge.

    Raises:
        DeviceLimitExceeded: not enough memory, or an image too large.
        DeviceHang, DeviceLost, ValidationFailed: see ``Device.submit``.
    """
    result = KernelResult(
        out=np.empty(job.output.shape, job.output.dtype),
        unwritten=None,
        unstable=None,
        damage="",
        float_modes=job.shader.float_modes,
        spirv_sha256=job.shader.sha256,
        device=device.info.name,
        driver=device.info.driver,
    )
    if result.out.size == 0:
        return result  # there is nothing to write, and Vulkan has no empty buffers
    layout = Layout(device.info, job, checked=checked)
    arena: Arena = device.keep("arena", lambda: Arena(device))
    view = arena.reserve(layout.size)
    layout.write(view, job)
    before = layout.protected(view) if checked else []
    _submit(device, job, layout, arena)
    found = [region.output(view, job.output) for region in layout.outputs]
    if not checked:
        return replace(result, out=found[0].copy())
    unwritten, unstable = _judge(found[0], found[1])
    damage = layout.damage(view, before)
    return replace(result, out=found[1].copy(), unwritten=unwritten, unstable=unstable, damage=damage)


def _submit(device: Device, job: Job, layout: Layout, arena: Arena) -> None:
    pipelines: PipelineCache = device.keep("pipelines", lambda: PipelineCache(device))
    pipeline = pipelines.get(job.shader, job.kinds, len(job.push), job.constants)
    with ExitStack() as images:

        def image(texture: Texture, extent: tuple[int, int, int], *, storage: bool) -> Image:
            made = Image(device, extent, texture.texels, storage=storage, flat=texture.flat)
            images.callback(made.close)
            return made

        filled: list[tuple[Image, int]] = []
        inputs: list[Resource] = []
        for region, operand in zip(layout.inputs, job.operands, strict=True):
            if operand.texture is None:
                inputs.append(BufferRange(arena.buffer, region.offset, region.size))
            else:
                made = image(operand.texture, operand.texture.extent, storage=False)
                filled.append((made, region.offset))
                inputs.append(made.resource())
        written: list[tuple[Image, int]] = []
        for run, region in enumerate(layout.outputs):
            target: Resource = BufferRange(arena.buffer, region.offset, region.bound)
            if job.output.texture is not None and region.extent is not None:
                made = image(job.output.texture, region.extent, storage=True)
                written.append((made, region.offset))
                target = made.resource()
            pipeline.bind(run, [target, *inputs])
        commands = device.begin()
        arena.upload(commands, layout.size)
        for made, offset in (*filled, *written):
            made.fill(commands, arena.buffer, offset)
        for run in range(len(layout.outputs)):
            pipeline.dispatch(commands, run, job.push, job.groups)
        for made, offset in written:
            made.read(commands, arena.buffer, offset)
        arena.download(commands, layout.read_ranges())
        device.submit()


def _judge(first: npt.NDArray[Any], second: npt.NDArray[Any]) -> tuple[int | None, int | None]:
    """First flat position that kept both poisons, and first that differs without having kept them."""
    width = np.dtype(f"u{first.dtype.itemsize}")
    a, b = (np.ascontiguousarray(x).reshape(-1).view(width) for x in (first, second))
    different = np.flatnonzero(a != b)
    if different.size == 0:
        return None, None
    kept = np.ones(different.size, bool)
    for values, poison in zip((a, b), POISONS, strict=True):
        kept &= values[different] == int.from_bytes(bytes([poison]) * width.itemsize, "little")
    unwritten, unstable = different[kept], different[~kept]
    return (int(unwritten[0]) if unwritten.size else None), (int(unstable[0]) if unstable.size else None)
