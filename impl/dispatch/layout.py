"""Where everything of one run lies in the arena: inputs, outputs, poison and guard bands.

    inputs, each behind a gap | guard | output of run 1 | guard | output of run 2 | guard

All bytes that are no output are protected: they are copied before the dispatch and compared after it.
An output image is one texel larger than the output, and what is beyond the output has to keep its poison.

Source: docs/contract.md sections 7.3 and 7.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from impl.gpu.images import FORMATS

if TYPE_CHECKING:
    from impl.dispatch.job import Job, Output
    from impl.gpu.info import DeviceInfo

_LINE = 256  # no device asks for more of a buffer offset
_GUARD = 0xC3
#: What an output holds before run 1 and before run 2.
POISONS = (0xA5, 0x5A)


@dataclass(frozen=True)
class Region:
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


class Layout:
    """The arena of one run: ``inputs`` are the bindings from 1 on, ``outputs`` binding 0 of each run."""

    def __init__(self, info: DeviceInfo, job: Job, *, checked: bool) -> None:
        self._gap = _LINE if checked else 0
        self._cursor = self._gap
        self.inputs = tuple(self._take(operand.name, operand.data.nbytes) for operand in job.operands)
        self.outputs = tuple(
            self._output(info, job, f"t_out of run {run + 1}", checked=checked) for run in range(2 if checked else 1)
        )
        self.size = self._cursor

    def _take(self, name: str, size: int, guard: int = 0) -> Region:
        at = self._cursor + guard
        self._cursor = -(-(at + size + guard) // _LINE) * _LINE + self._gap
        return Region(name, at, size, size + guard)

    def _output(self, info: DeviceInfo, job: Job, name: str, *, checked: bool) -> Region:
        texture = job.output.texture
        if texture is None:
            return self._take(name, job.output.size, job.guard if checked else 0)
        used, extent = texture.extent, texture.extent
        if checked:
            bound = info.limits["maxImageDimension2D" if texture.flat else "maxImageDimension3D"]
            x, y, z = (min(size + 1, bound) for size in used)
            extent = (x, y, 1 if texture.flat else z)
        taken = self._take(name, math.prod(extent) * FORMATS[texture.texels][1])
        return Region(name, taken.offset, taken.size, taken.size, extent, used)

    def write(self, view: npt.NDArray[np.uint8], job: Job) -> None:
        """Put inputs, guards and poison in place."""
        at = 0
        for region in (*self.inputs, *self.outputs):
            view[at : region.offset] = _GUARD
            at = region.offset + region.size
        view[at : self.size] = _GUARD
        for region, operand in zip(self.inputs, job.operands, strict=True):
            view[region.offset : region.offset + region.size] = operand.data.reshape(-1).view(np.uint8)
        for region, poison in zip(self.outputs, POISONS, strict=False):
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
        said = (r.changed_texel(view, p) for r, p in zip(self.outputs, POISONS, strict=False))
        return "; ".join(text for text in said if text)

    def _place(self, at: int) -> str:
        regions = (*self.inputs, *self.outputs)
        behind = [r for r in regions if r.offset <= at]
        if not behind:
            return f"{regions[0].offset - at} bytes before {regions[0].name}"
        last = behind[-1]
        past = at - last.offset - last.size
        return f"in {last.name} at byte {at - last.offset}" if past < 0 else f"{past} bytes behind {last.name}"
