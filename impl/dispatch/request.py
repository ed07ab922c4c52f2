"""What the host refuses before anything reaches the device, and the checked request it hands on.

Source: docs/contract.md sections 1, 7.1, 7.3 and 7.5.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from impl.dispatch.variants import Variant, check_features
from impl.gpu.info import DeviceInfo

_MAX_RANK = 3


@dataclass(frozen=True)
class Request:
    """A lookup whose arguments are right: contiguous arrays, int32 indices, and the sizes they imply."""

    variant: Variant
    weight: npt.NDArray[Any]
    scales: npt.NDArray[Any]
    indices: npt.NDArray[np.int32]
    group_size: int
    vocab_size: int
    embed_dim: int

    @property
    def out_dtype(self) -> np.dtype[Any]:
        """The numpy type of the output."""
        return np.dtype(self.variant.output_dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of one output row."""
        return self.embed_dim * self.out_dtype.itemsize

    def out_sizes(self) -> tuple[int, int, int, int]:
        """The output's (W, H, C, N), as the uniform ``out_sizes`` has it."""
        n, c, h = (1,) * (_MAX_RANK - self.indices.ndim) + self.indices.shape
        return self.embed_dim, h, c, n


def check_request(
    info: DeviceInfo,
    variant: Variant,
    weight: npt.NDArray[Any],
    scales: npt.NDArray[Any],
    group_size: int,
    indices: npt.NDArray[Any],
    vocab_size: int,
    allow_out_of_range: bool = False,
) -> Request:
    """Check every argument of ``impl.kernel.run_embedding``, which lists the errors, and put them together."""
    check_features(info, variant)
    if vocab_size < 1:
        raise ValueError(f"vocab_size is {vocab_size}; it must be at least 1")
    embed_dim = _check_weight(variant, weight, vocab_size)
    if group_size < 1 or group_size % 4 or embed_dim % group_size:
        raise ValueError(
            f"group_size is {group_size}; it must be a multiple of 4 that divides embed_dim {embed_dim} "
            "(the kernel reads one scale per 4 columns)"
        )
    expect = (vocab_size, embed_dim // group_size)
    if scales.dtype != np.dtype(variant.scale_dtype):
        raise ValueError(f"scales is {scales.dtype}; {variant.name} takes {variant.scale_dtype}")
    if scales.shape != expect:
        raise ValueError(
            f"scales has shape {scales.shape}; vocab_size {vocab_size} and group_size {group_size} take {expect}"
        )
    _check_limits(info, variant, weight, scales)
    return Request(
        variant=variant,
        weight=np.ascontiguousarray(weight),
        scales=np.ascontiguousarray(scales),
        indices=_check_indices(indices, vocab_size, allow_out_of_range=allow_out_of_range),
        group_size=group_size,
        vocab_size=vocab_size,
        embed_dim=embed_dim,
    )


def _check_weight(variant: Variant, weight: npt.NDArray[Any], vocab_size: int) -> int:
    """The table's embed_dim, once dtype and shape fit the variant's layout."""
    layout, blocks = variant.weight_layout, -(-vocab_size // 8)
    dtype, rows, ends, per_element = (np.uint8, vocab_size, (), 2) if layout == "flat" else (np.int32, blocks, (4,), 4)
    if weight.dtype != dtype:
        raise ValueError(f"weight is {weight.dtype}; the {layout} layout is {np.dtype(dtype)}")
    if weight.ndim != 2 + len(ends) or weight.shape[0] != rows or weight.shape[2:] != ends:
        shape = f"[{rows}, D/2]" if layout == "flat" else f"[{rows}, D/4, 4]"
        raise ValueError(f"weight has shape {weight.shape}; the {layout} layout of {vocab_size} rows is {shape}")
    columns: int = weight.shape[1] * per_element
    if columns == 0 or columns % 32:
        raise ValueError(f"embed_dim is {columns} (from weight's shape {weight.shape}); it must be a multiple of 32")
    return columns


def _check_limits(info: DeviceInfo, variant: Variant, weight: npt.NDArray[Any], scales: npt.NDArray[Any]) -> None:
    buffers = {"scales": scales.nbytes}
    if variant.weight_storage == "buffer":
        buffers["weight"] = weight.nbytes
    for name, size in buffers.items():
        info.check_limit("maxStorageBufferRange", size, f"{name} has {size} bytes")


def _check_indices(indices: npt.NDArray[Any], vocab_size: int, *, allow_out_of_range: bool) -> npt.NDArray[np.int32]:
    if indices.dtype not in (np.int32, np.int64):
        raise ValueError(f"indices is {indices.dtype}; it must be int32 or int64")
    if indices.ndim > _MAX_RANK:
        raise ValueError(f"indices has rank {indices.ndim} (shape {indices.shape}); at most {_MAX_RANK} is served")
    if indices.size:
        low, high = (0, vocab_size - 1) if not allow_out_of_range else (-(2**31), 2**31 - 1)
        if indices.min() < low or indices.max() > high:
            at = int(np.flatnonzero((indices < low) | (indices > high))[0])
            place = tuple(int(i) for i in np.unravel_index(at, indices.shape))
            raise IndexError(
                f"indices{list(place)} is {indices[place]}; it must be in [{low}, {high}] (vocab_size {vocab_size})"
            )
    return np.ascontiguousarray(indices, dtype=np.int32).reshape(indices.shape)


def rows_per_run(info: DeviceInfo, request: Request, guard: int) -> int:
    """How many output rows one dispatch may produce; more are split (contract 7.5)."""
    if request.variant.io_storage == "buffer":
        limit, row = "maxStorageBufferRange", request.row_bytes
        info.check_limit(limit, row + guard, f"an output row of {row} bytes with its guard band")
        return (info.limits[limit] - guard) // row
    bound, texels = info.limits["maxImageDimension3D"], request.embed_dim // 4
    what = f"embed_dim {request.embed_dim} needs {texels} texels in x"
    info.check_limit("maxImageDimension3D", texels, what, "use a buffer variant")
    _w, h, c, n = request.out_sizes()
    fits = h <= bound and c * n <= bound
    return math.prod(request.indices.shape) if fits else bound - 1
