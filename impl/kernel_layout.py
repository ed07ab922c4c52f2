"""Where everything of one run lies in the arena: inputs, outputs, poison and guard bands.

    inputs, each behind a gap | guard | output of run 1 | guard | output of run 2 | guard

All bytes that are no output are protected: they are copied before the dispatch and compared after it.

Source: docs/contract.md sections 7.3 and 7.4.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from impl import kernel_geometry

if TYPE_CHECKING:
    from impl.kernel_checks import Request
    from impl.vulkan_device import Device

_LINE = 256  # no device asks for more of a buffer offset
_GUARD = 0xC3
#: What an output holds before run 1 and before run 2.
POISONS = (0xA5, 0x5A)


@dataclass(frozen=True)
class Region:
    """Bytes of the arena that one binding uses, or that fill an image of ``extent`` texels.

    For outputs ``inner`` is where the output starts and ``bound`` how many bytes the descriptor spans:
    the output and the guard behind it, because a device may clamp what lies outside the descriptor,
    and a clamped write would leave no trace.
    """

    name: str
    offset: int
    size: int
    inner: int = 0
    bound: int = 0
    extent: tuple[int, int, int] | None = None
    texels: str = ""
    flat: bool = False
    used: tuple[int, int, int] = (0, 0, 0)

    def output(self, view: npt.NDArray[np.uint8], shape: tuple[int, ...], dtype: np.dtype[Any]) -> npt.NDArray[Any]:
        """The output, as the host reads it from this region (a copy for images, a view for buffers)."""
        if self.extent is None:
            count = math.prod(shape) * dtype.itemsize
            return view[self.inner : self.inner + count].view(dtype).reshape(shape)
        x, y, z = self.used
        return np.ascontiguousarray(self._texels(view, dtype)[:z, :y, :x]).reshape(shape)

    def guard_texel_changed(self, view: npt.NDArray[np.uint8], poison: int) -> str:
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
    """The arena of one run: ``inputs`` are bindings 1 to 4 in order, ``outputs`` binding 0 of each run."""

    def __init__(self, device: Device, request: Request, *, runs: int, guarded: bool) -> None:
        self._cursor = _LINE if guarded else 0
        self._gap = _LINE if guarded else 0
        guard = kernel_geometry.guard_bytes(request) if guarded else 0
        width, height, channels, batch = request.out_sizes()
        textured = request.variant.io_storage == "texture3d"
        inputs = [
            self._input("t_indices", _index_extent(request) if textured else None, request.indices.nbytes),
            self._weight(request),
            self._input("t_scales", None, request.scales.nbytes),
            self._input("out_sizes", None, 16),
        ]
        self.inputs = tuple(inputs)
        outputs = []
        for run in range(runs):
            if textured:
                used = (width // 4, height, channels * batch)
                bound = device.info.limits["maxImageDimension3D"]
                extent = _grown(used, bound) if guarded else used
                texels, texel = ("rgba16f", 8) if request.variant.output_dtype == "float16" else ("rgba32f", 16)
                size = math.prod(extent) * texel
                offset = self._take(size)
                outputs.append(Region(f"t_out of run {run + 1}", offset, size, extent=extent, texels=texels, used=used))
            else:
                size = request.indices.size * request.row_bytes
                offset = self._take(guard + size + guard)
                inner = offset + guard
                outputs.append(Region(f"t_out of run {run + 1}", inner, size, inner=inner, bound=size + guard))
        self.outputs = tuple(outputs)
        self.size = self._cursor

    def _take(self, size: int) -> int:
        at = self._cursor
        self._cursor = -(-(at + size) // _LINE) * _LINE + self._gap
        return at

    def _input(self, name: str, extent: tuple[int, int, int] | None, size: int, *, flat: bool = False) -> Region:
        if extent is not None:
            size = math.prod(extent) * 16
        return Region(name, self._take(size), size, extent=extent, texels="rgba32i" if extent else "", flat=flat)

    def _weight(self, request: Request) -> Region:
        if request.variant.weight_storage == "buffer":
            return self._input("t_weight", None, request.weight.nbytes)
        blocks, k4, _four = request.weight.shape
        return self._input("t_weight", (k4, blocks, 1), request.weight.nbytes, flat=True)

    def write(self, view: npt.NDArray[np.uint8], request: Request) -> None:
        """Put inputs, guards and poison in place."""
        if self._gap:
            self._fill_guards(view)
        indices, weight, scales, sizes = self.inputs
        if indices.extent is None:
            _put(view, indices, request.indices)
        else:
            x, y, z = indices.extent
            packed = np.zeros((z, y, 4 * x), np.int32)
            _w, h, c, n = request.out_sizes()
            packed[:, :, :h] = request.indices.reshape(n, c, h)
            _put(view, indices, packed)
        _put(view, weight, request.weight)
        _put(view, scales, request.scales)
        _put(view, sizes, np.array(request.out_sizes(), np.int32))
        for region, poison in zip(self.outputs, POISONS, strict=False):
            view[region.offset : region.offset + region.size] = poison

    def _fill_guards(self, view: npt.NDArray[np.uint8]) -> None:
        at = 0
        for region in (*self.inputs, *self.outputs):
            view[at : region.offset] = _GUARD
            at = region.offset + region.size
        view[at : self.size] = _GUARD

    def _protected(self) -> list[tuple[int, int]]:
        spans, at = [], 0
        for region in self.outputs:
            spans.append((at, region.offset))
            at = region.offset + region.size
        return [*spans, (at, self.size)]

    def protected_copy(self, view: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """A copy of every byte that the dispatch must leave alone."""
        return [view[start:end].copy() for start, end in self._protected()]

    def read_ranges(self, *, checked: bool) -> list[tuple[int, int]]:
        """The (offset, size) ranges that the host wants back."""
        if checked:
            return [(0, self.size)]
        return [(region.offset, region.size) for region in self.outputs]

    def damage(self, view: npt.NDArray[np.uint8], before: list[npt.NDArray[np.uint8]]) -> str:
        """What changed that no output covers: the first changed byte and what it belonged to, or ""."""
        for (start, end), old in zip(self._protected(), before, strict=True):
            if not np.array_equal(view[start:end], old):
                changed = np.flatnonzero(view[start:end] != old)
                return (
                    f"{changed.size} bytes changed outside the output, the first {self._place(start + int(changed[0]))}"
                )
        said = (r.guard_texel_changed(view, p) for r, p in zip(self.outputs, POISONS, strict=False))
        return "; ".join(text for text in said if text)

    def _place(self, at: int) -> str:
        for region in (*self.inputs, *self.outputs):
            if region.offset <= at < region.offset + region.size:
                return f"in {region.name} at byte {at - region.offset}"
            if at < region.offset:
                return f"{region.offset - at} bytes before {region.name}"
        last = self.outputs[-1]
        return f"{at - last.offset - last.size} bytes behind {last.name}"


def _grown(used: tuple[int, int, int], bound: int) -> tuple[int, int, int]:
    """One texel larger in each direction, except where the device has no larger image."""
    x, y, z = (min(size + 1, bound) for size in used)
    return x, y, z


def _index_extent(request: Request) -> tuple[int, int, int]:
    """Texels of the width-packed index tensor: x = 4 indices each, y = the tensor's H, z = its C."""
    _w, h, c, n = request.out_sizes()
    return -(-h // 4), c, n


def _put(view: npt.NDArray[np.uint8], region: Region, values: npt.NDArray[Any]) -> None:
    view[region.offset : region.offset + values.nbytes] = values.reshape(-1).view(np.uint8)
