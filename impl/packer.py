"""Pack 4-bit tables: values -> flat or linear-weight bytes -> the int32 blocks that the GPU reads.

All three work through the table in row chunks that fit a core's cache, so that apart from the output
they never hold more than a few hundred KiB, and they move two or four columns a step by treating
the bytes as 16-bit words.

Source: docs/contract.md section 1 (layouts) and 5.3 (the range of values).
"""

from collections.abc import Iterator
from typing import Any, TypeVar, cast

import numpy as np
import torch
from numpy.typing import NDArray

QMIN, QMAX = -8, 7
#: Rows of a block, columns of a word (contract 1, block layout).
BLOCK_ROWS, WORD_COLUMNS = 8, 4
#: Code 8 (q = 0) in both nibbles: what rows past V hold.
ZERO_BYTE = 0x88
#: Bytes of input a step: input, scratch and output of a step stay in a core's L2 cache.
CHUNK_BYTES = 1 << 18

Table = TypeVar("Table", torch.Tensor, np.ndarray)


def pack_flat(values: Table) -> Table:
    """Pack signed values two a byte, even column in the high nibble (flat layout).

    Args:
        values: int8 [V, D], D even, every value in [-8, 7]; a torch.Tensor on the CPU or a numpy array.

    Returns:
        uint8 [V, D/2] of the same kind, contiguous; byte j of a row is ``code[2j] << 4 | code[2j+1]``.

    Raises:
        TypeError: ``values`` is neither a torch.Tensor nor a numpy array.
        ValueError: dtype, shape or device is wrong, or a value is out of range; it names the first
            offending position, the value and the bound.

    Source: contract 1.
    """
    return _pack(values, linear=False)


def pack_linear_weight(values: Table) -> Table:
    """Pack signed values two a byte, even column in the low nibble (linear-weight layout).

    As ``pack_flat``, but byte j of a row is ``code[2j+1] << 4 | code[2j]``.
    """
    return _pack(values, linear=True)


def flat_to_linear_weight(packed: Table) -> Table:
    """Swap the nibbles of every byte: flat layout to linear-weight layout (and back).

    Args:
        packed: uint8 [V, D/2].

    Returns:
        uint8 [V, D/2] of the same kind, contiguous.

    Raises:
        TypeError: ``packed`` is neither a torch.Tensor nor a numpy array.
        ValueError: dtype, shape or device is wrong.

    Source: contract 1.
    """
    source = _as_numpy(packed, "packed", np.uint8)
    out = np.empty(source.shape, np.uint8)
    for start, stop in _chunks(source):
        chunk = source[start:stop]
        np.left_shift(chunk, 4, out=out[start:stop])
        out[start:stop] |= chunk >> 4
    return _like(packed, out)


def pack_blocks(packed: Table) -> Table:
    """Turn linear-weight bytes into the int32 blocks that the GPU reads.

    Args:
        packed: uint8 [V, D/2] in linear-weight layout, D a multiple of 4.

    Returns:
        int32 [ceil(V/8), D/4, 4] of the same kind, contiguous: word ``n & 3`` of block
        ``[n >> 3, k >> 2]`` holds row n's column k at bit ``(4 if n & 4 else 0) + 8*(k & 3)``; rows
        past V hold code 8 (q = 0).

    Raises:
        TypeError: ``packed`` is neither a torch.Tensor nor a numpy array.
        ValueError: dtype, shape or device is wrong, or D is not a multiple of 4.

    Source: contract 1.
    """
    source = _as_numpy(packed, "packed", np.uint8)
    rows, row_bytes = source.shape
    if row_bytes % 2:
        raise ValueError(f"packed: embed_dim {2 * row_bytes} (axis 1 is {row_bytes} bytes) is not a multiple of 4")
    blocks, words = -(-rows // BLOCK_ROWS), row_bytes // 2
    out = np.empty((blocks, words, WORD_COLUMNS), np.uint32)
    step = max(1, CHUNK_BYTES // max(1, BLOCK_ROWS * row_bytes))
    for first in range(0, blocks, step):
        last = min(blocks, first + step)
        chunk = source[first * BLOCK_ROWS : last * BLOCK_ROWS]
        missing = (last - first) * BLOCK_ROWS - len(chunk)
        if missing:
            chunk = np.concatenate([chunk, np.full((missing, row_bytes), ZERO_BYTE, np.uint8)])
        spread = _spread_nibbles(np.ascontiguousarray(chunk).view("<u2"))
        halves = spread.reshape(last - first, 2, BLOCK_ROWS // 2, words)
        # Rows n and n + 4 of a block share a word: the first in the low nibbles, the second in the high ones.
        word = halves[:, 1] << np.uint32(4)
        word |= halves[:, 0]
        out[first:last] = word.transpose(0, 2, 1)
    return _like(packed, out.view(np.int32))


def first_out_of_range(values: torch.Tensor | NDArray[Any]) -> tuple[int, int, int] | None:
    """Find the first value of an int8 table that 4 bits cannot hold.

    Args:
        values: int8 [V, D].

    Returns:
        (row, column, value) of the first value outside [-8, 7] in row-major order, or None.

    Raises:
        TypeError: ``values`` is neither a torch.Tensor nor a numpy array.
        ValueError: dtype, shape or device is wrong.

    Source: contract 5.3.
    """
    source = _as_numpy(values, "values", np.int8)
    for start, stop in _chunks(source):
        offender = _offender(source[start:stop], start)
        if offender is not None:
            return offender
    return None


def _pack(values: Table, *, linear: bool) -> Table:
    source = _as_numpy(values, "values", np.int8)
    rows, columns = source.shape
    if columns % 2:
        raise ValueError(f"values: embed_dim (axis 1) is {columns}, it must be even: two values share a byte")
    out = np.empty((rows, columns // 2), np.uint8)
    for start, stop in _chunks(source):
        chunk = np.ascontiguousarray(source[start:stop])
        offender = _offender(chunk, start)
        if offender is not None:
            row, column, value = offender
            raise ValueError(f"values[{row}, {column}] is {value}, outside [{QMIN}, {QMAX}]")
        # A little-endian word holds the even column in its low byte and the odd one in its high byte.
        word = chunk.view("<u2") & np.uint16(0x0F0F)
        word ^= np.uint16(0x0808)  # the low nibble of q + 8
        if linear:
            word |= word >> np.uint16(4)
        else:
            word = (word << np.uint16(4)) | (word >> np.uint16(8))
        np.copyto(out[start:stop], word, casting="unsafe")  # keeps the low byte
    return _like(values, out)


def _offender(chunk: NDArray[np.int8], first_row: int) -> tuple[int, int, int] | None:
    """(row, column, value) of the chunk's first value outside [-8, 7]; rows count from ``first_row``."""
    if not chunk.size or (chunk.min() >= QMIN and chunk.max() <= QMAX):
        return None
    row, column = np.argwhere((chunk < QMIN) | (chunk > QMAX))[0]
    return first_row + int(row), int(column), int(chunk[row, column])


def _spread_nibbles(word: NDArray[np.uint16]) -> NDArray[np.uint32]:
    """Give each of a word's four nibbles the low half of a byte of its own, in order."""
    spread = word.astype(np.uint32)
    spread |= spread << np.uint32(8)
    spread &= np.uint32(0x00FF00FF)
    spread |= spread << np.uint32(4)
    spread &= np.uint32(0x0F0F0F0F)
    return spread


def _chunks(source: NDArray[Any]) -> Iterator[tuple[int, int]]:
    """Row ranges of about CHUNK_BYTES each."""
    rows, columns = source.shape
    step = max(1, CHUNK_BYTES // max(1, columns))
    for start in range(0, rows, step):
        yield start, min(rows, start + step)


def _as_numpy(table: torch.Tensor | NDArray[Any], name: str, dtype: type) -> NDArray[Any]:
    """View the table as a numpy array without copying it, after checking what it is."""
    if not isinstance(table, (torch.Tensor, np.ndarray)):
        raise TypeError(f"{name} is a {type(table).__name__}, it must be a torch.Tensor or a numpy array")
    actual, expected = str(table.dtype).removeprefix("torch."), np.dtype(dtype).name
    if actual != expected:
        raise ValueError(f"{name}: dtype is {actual}, it must be {expected}")
    if table.ndim != 2:  # noqa: PLR2004 - a table has rows and columns
        raise ValueError(f"{name}: shape is {tuple(table.shape)}, it must have 2 axes (rows, columns)")
    if isinstance(table, np.ndarray):
        return table
    if type(table) not in {torch.Tensor, torch.nn.Parameter} or table.device.type != "cpu":
        raise ValueError(
            f"{name}: a {type(table).__name__} on {table.device} holds no bytes that the CPU can read, "
            "pass a plain tensor: tensor.detach().cpu()"
        )
    return cast("NDArray[Any]", table.detach().numpy())


def _like(table: Table, out: NDArray[Any]) -> Table:
    """Give the result the kind of the argument (the memory is shared, never copied)."""
    return cast("Table", torch.from_numpy(out) if isinstance(table, torch.Tensor) else out)
