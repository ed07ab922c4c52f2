"""One shader run on one device, from numpy arrays to a numpy array, with what can be trusted about it.

In checked mode the output is computed twice over two different poisons, so that an element nobody
writes shows in both, and every byte around the outputs, inputs included, is compared afterwards. The arena holds

    inputs, each behind a gap | guard | output of run 1 | guard | output of run 2 | guard

All bytes that are no output are protected: they are copied before the dispatch and compared after it.
An output image is one texel larger than the output, and what is beyond the output has to keep its poison.

Source: docs/contract.md sections 7.3 and 7.4.
"""

import math
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.gpu.device import Device
from impl.gpu.memory import FORMATS, Arena, Image
from impl.gpu.pipeline import BufferRange, PipelineCache, Resource
from impl.shader.compiler import Shader

_LINE = 256  # no device asks for more of a buffer offset
_GUARD = 0xC3
#: What an output holds before run 1 and before run 2.
_POISONS = (0xA5, 0x5A)


@dataclass(frozen=True)
class Texture:
    """An image in place of a buffer: extent in texels (x, y, z), a key of ``memory.FORMATS``, 2D where flat."""

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


@dataclass(frozen=True)
class _Region:
    """Bytes of the arena that one binding uses, or that fill its image.

    ``bound`` is how many bytes a buffer descriptor spans: of an output also the guard behind it, because
    a device may clamp what lies outside the descriptor, and a clamped write would leave no trace.
    ``extent`` is the image's size in texels, ``used`` the part of it that is the output.
    """

    name: str
    offset: int
    size: int
    bound: int
    extent: tuple[int, int, int] | None = None
    used: tuple[int, int, int] = (0, 0, 0)

    def output(self, view: npt.NDArray[np.uint8], spec: Output) -> npt.NDArray[Any]:
        """The output, as the host reads it from this region (a copy for images, a view for buffers)."""
        if self.extent is None:
            return view[self.offset : self.offset + self.size].view(spec.dtype).reshape(spec.shape)
        x, y, z = self.used
        return np.ascontiguousarray(self._texels(view, spec.dtype)[:z, :y, :x]).reshape(spec.shape)

    def changed_texel(self, view: npt.NDArray[np.uint8], poison: int) -> str:
        """Where a texel outside the output lost its poison, or ""."""
        if self.extent is None:
            return ""
        changed = (self._texels(view, np.dtype(np.uint8)) != poison).any(axis=3)
        x, y, z = self.used
        changed[:z, :y, :x] = False
        if not changed.any():
            return ""
        place = np.unravel_index(int(np.flatnonzero(changed)[0]), changed.shape)
        at = tuple(int(i) for i in place[::-1])
        return f"{self.name}: texel {at} outside the output's {self.used} was written"

    def _texels(self, view: npt.NDArray[np.uint8], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        assert self.extent is not None  # noqa: S101 (asked of images only)
        x, y, z = self.extent
        return view[self.offset : self.offset + self.size].view(dtype).reshape(z, y, x, -1)


class _Layout:
    """The arena of one run: ``inputs`` are the bindings from 1 on, ``outputs`` binding 0 of each run."""

    def __init__(self, device: Device, job: Job, *, checked: bool) -> None:
        self._gap = _LINE if checked else 0
        self._cursor = self._gap
        self.inputs = tuple(self._take(operand.name, operand.data.nbytes) for operand in job.operands)
        self.outputs = tuple(
            self._output(device, job, f"t_out of run {run + 1}", checked=checked) for run in range(2 if checked else 1)
        )
        self.size = self._cursor

    def _take(self, name: str, size: int, guard: int = 0) -> _Region:
        at = self._cursor + guard
        self._cursor = -(-(at + size + guard) // _LINE) * _LINE + self._gap
        return _Region(name, at, size, size + guard)

    def _output(self, device: Device, job: Job, name: str, *, checked: bool) -> _Region:
        texture = job.output.texture
        if texture is None:
            return self._take(name, job.output.size, job.guard if checked else 0)
        used, extent = texture.extent, texture.extent
        if checked:
            bound = device.info.limits["maxImageDimension2D" if texture.flat else "maxImageDimension3D"]
            x, y, z = (min(size + 1, bound) for size in used)
            extent = (x, y, 1 if texture.flat else z)
        taken = self._take(name, math.prod(extent) * FORMATS[texture.texels][1])
        return _Region(name, taken.offset, taken.size, taken.size, extent, used)

    def write(self, view: npt.NDArray[np.uint8], job: Job) -> None:
        """Put inputs, guards and poison in place."""
        at = 0
        for region in (*self.inputs, *self.outputs):
            view[at : region.offset] = _GUARD
            at = region.offset + region.size
        view[at : self.size] = _GUARD
        for region, operand in zip(self.inputs, job.operands, strict=True):
            view[region.offset : region.offset + region.size] = operand.data.reshape(-1).view(np.uint8)
        for region, poison in zip(self.outputs, _POISONS, strict=False):
            view[region.offset : region.offset + region.size] = poison

    def protected(self, view: npt.NDArray[np.uint8]) -> list[tuple[int, npt.NDArray[np.uint8]]]:
        """(offset, copy) of every stretch of bytes that the dispatch must leave alone."""
        spans, at = [], 0
        for region in self.outputs:
            spans.append((at, view[at : region.offset].copy()))
            at = region.offset + region.size
        return [*spans, (at, view[at : self.size].copy())]

    def read_ranges(self) -> list[tuple[int, int]]:
        """The (offset, size) ranges that the host wants back: everything where it is judged, else the output."""
        if self._gap:
            return [(0, self.size)]
        return [(region.offset, region.size) for region in self.outputs]

    def damage(self, view: npt.NDArray[np.uint8], before: list[tuple[int, npt.NDArray[np.uint8]]]) -> str:
        """What changed that no output covers: the first changed byte and what it belonged to, or ""."""
        for start, old in before:
            now = view[start : start + old.size]
            if not np.array_equal(now, old):
                changed = np.flatnonzero(now != old)
                place = self._place(start + int(changed[0]))
                return f"{changed.size} bytes changed outside the output, the first {place}"
        texels = (r.changed_texel(view, p) for r, p in zip(self.outputs, _POISONS, strict=False))
        return "; ".join(text for text in texels if text)

    def _place(self, at: int) -> str:
        regions = (*self.inputs, *self.outputs)
        behind = [r for r in regions if r.offset <= at]
        if not behind:
            return f"{regions[0].offset - at} bytes before {regions[0].name}"
        last = behind[-1]
        past = at - last.offset - last.size
        return f"in {last.name} at byte {at - last.offset}" if past < 0 else f"{past} bytes behind {last.name}"


def run_job(device: Device, job: Job, *, checked: bool) -> KernelResult:
    """Run it in one command buffer: fill, dispatch (checked: twice over two poisons), read back, judge."""
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
    layout = _Layout(device, job, checked=checked)
    arena: Arena = device.keep("arena", lambda: Arena(device))
    view = arena.reserve(layout.size)
    layout.write(view, job)
    before = layout.protected(view) if checked else []
    _submit(device, job, layout, arena)
    outputs = [region.output(view, job.output) for region in layout.outputs]
    if not checked:
        return replace(result, out=outputs[0].copy())
    unwritten, unstable = _judge(outputs[0], outputs[1])
    damage = layout.damage(view, before)
    return replace(result, out=outputs[1].copy(), unwritten=unwritten, unstable=unstable, damage=damage)


def _submit(device: Device, job: Job, layout: _Layout, arena: Arena) -> None:
    pipelines: PipelineCache = device.keep("pipelines", lambda: PipelineCache(device))
    pipeline = pipelines.get(job.shader, job.kinds, len(job.push), job.constants)
    with ExitStack() as images:

        def image(texture: Texture, extent: tuple[int, int, int], *, storage: bool) -> Image:
            new = Image(device, extent, texture.texels, storage=storage, flat=texture.flat)
            images.callback(new.close)
            return new

        filled: list[tuple[Image, int]] = []
        inputs: list[Resource] = []
        for region, operand in zip(layout.inputs, job.operands, strict=True):
            if operand.texture is None:
                inputs.append(BufferRange(arena.buffer, region.offset, region.size))
            else:
                sampled = image(operand.texture, operand.texture.extent, storage=False)
                filled.append((sampled, region.offset))
                inputs.append(sampled.resource())
        written: list[tuple[Image, int]] = []
        for run, region in enumerate(layout.outputs):
            target: Resource = BufferRange(arena.buffer, region.offset, region.bound)
            if job.output.texture is not None and region.extent is not None:
                output = image(job.output.texture, region.extent, storage=True)
                written.append((output, region.offset))
                target = output.resource()
            pipeline.bind(run, [target, *inputs])
        commands = device.begin()
        arena.upload(commands, layout.size)
        for filling, offset in (*filled, *written):
            filling.fill(commands, arena.buffer, offset)
        for run in range(len(layout.outputs)):
            pipeline.dispatch(commands, run, job.push, job.groups)
        for output, offset in written:
            output.read(commands, arena.buffer, offset)
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
    for values, poison in zip((a, b), _POISONS, strict=True):
        kept &= values[different] == int.from_bytes(bytes([poison]) * width.itemsize, "little")
    unwritten, unstable = different[kept], different[~kept]
    return (int(unwritten[0]) if unwritten.size else None), (int(unstable[0]) if unstable.size else None)
