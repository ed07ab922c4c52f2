"""The three byte layouts of a 4-bit table, both ways.

Values q are signed integers in [-8, 7]; a nibble stores code = q + 8. The worked row of the
contract, q = [-8, 7, 0, -1], has codes [0, 15, 8, 7]:

>>> q = np.array([[-8, 7, 0, -1]], np.int8)
>>> pack_flat(q).tobytes().hex()  # high nibble first: 0 F, 8 7
'0f87'
>>> pack_linear_weight(q).tobytes().hex()  # low nibble first
'f078'
>>> pack_blocks(q)[0, 0].tobytes().hex(" ", 4)  # word n, byte k, low nibble: row n; high: row n + 4; absent rows: 8
'808f8887 88888888 88888888 88888888'

Each raises ValueError where an array has another dtype or shape, D does not fit or a value is outside [-8, 7].

Source: docs/contract.md section 1.
"""

import numpy as np

from reference import Array

BLOCK_ROWS = 8  # rows that one block holds: four words, two nibbles of a byte
BLOCK_COLUMNS = 4  # columns that one block holds: four bytes of a word


def pack_flat(values: Array) -> Array:
    """Pack int8 [V, D] into the flat layout, uint8 [V, D/2]: byte j = code[2j] << 4 | code[2j+1]."""
    codes = _codes(values, 2)
    return codes[:, 0::2] << 4 | codes[:, 1::2]


def unpack_flat(packed: Array) -> Array:
    """The inverse of pack_flat: uint8 [V, D/2] to int8 [V, D].

    >>> unpack_flat(np.array([[0x0F, 0x87]], np.uint8)).tolist()
    [[-8, 7, 0, -1]]
    """
    _check("packed", packed, np.uint8, 2)
    return _interleave(packed >> 4, packed & 0x0F)


def pack_linear_weight(values: Array) -> Array:
    """Pack int8 [V, D] into the linear-weight layout, uint8 [V, D/2]: byte j = code[2j+1] << 4 | code[2j]."""
    codes = _codes(values, 2)
    return codes[:, 1::2] << 4 | codes[:, 0::2]


def unpack_linear_weight(packed: Array) -> Array:
    """The inverse of pack_linear_weight: uint8 [V, D/2] to int8 [V, D].

    >>> unpack_linear_weight(np.array([[0xF0, 0x78]], np.uint8)).tolist()
    [[-8, 7, 0, -1]]
    """
    _check("packed", packed, np.uint8, 2)
    return _interleave(packed & 0x0F, packed >> 4)


def pack_blocks(values: Array) -> Array:
    """Pack int8 [V, D] into the block layout, int32 [ceil(V/8), D/4, 4].

    Word ``n & 3`` of block ``[n >> 3, k >> 2]`` holds row n's column k at bit
    ``(4 if n & 4 else 0) + 8*(k & 3)``. Rows past V hold code 8 (q = 0).
    """
    codes = _codes(values, BLOCK_COLUMNS)
    vocab_size, embed_dim = codes.shape
    blocks, columns = -(-vocab_size // BLOCK_ROWS), embed_dim // BLOCK_COLUMNS
    padded = np.full((blocks * BLOCK_ROWS, embed_dim), 8, np.uint8)
    padded[:vocab_size] = codes
    # n = 8*block + 4*half + word, k = 4*column + byte
    split = padded.reshape(blocks, 2, 4, columns, BLOCK_COLUMNS)
    bytes_ = split[:, 1] << 4 | split[:, 0]  # [block, word, column, byte]
    words = np.ascontiguousarray(bytes_.transpose(0, 2, 1, 3)).view("<i4")  # bytes of a word are little-endian
    return words.reshape(blocks, columns, 4).astype(np.int32)


def unpack_blocks(blocks: Array, vocab_size: int) -> Array:
    """The inverse of pack_blocks: int32 [ceil(V/8), D/4, 4] to int8 [V, D]; padding rows are dropped.

    >>> blocks = pack_blocks(np.array([[-8, 7, 0, -1]] * 9, np.int8))
    >>> blocks.shape, unpack_blocks(blocks, 9)[8].tolist()
    ((2, 1, 4), [-8, 7, 0, -1])
    """
    _check("blocks", blocks, np.int32, 3)
    if blocks.shape[2] != 4 or blocks.shape[0] != -(-vocab_size // BLOCK_ROWS):  # noqa: PLR2004 - four words a block
        raise ValueError(
            f"blocks: shape {blocks.shape} is not [{-(-vocab_size // BLOCK_ROWS)}, D/4, 4] for {vocab_size} rows"
        )
    rows, columns, _ = blocks.shape
    bytes_ = np.ascontiguousarray(blocks.astype("<i4")).view(np.uint8).reshape(rows, columns, 4, BLOCK_COLUMNS)
    by_word = bytes_.transpose(0, 2, 1, 3).reshape(rows, 4, columns * BLOCK_COLUMNS)
    codes = np.stack([by_word & 0x0F, by_word >> 4], axis=1).reshape(rows * BLOCK_ROWS, columns * BLOCK_COLUMNS)
    return codes[:vocab_size].astype(np.int8) - np.int8(8)


def linear_weight_to_blocks(packed: Array) -> Array:
    """What prepacking does: linear-weight uint8 [V, D/2] to blocks, int32 [ceil(V/8), D/4, 4]."""
    return pack_blocks(unpack_linear_weight(packed))


def _codes(values: Array, columns: int) -> Array:
    """Codes, uint8 [V, D], of checked values."""
    _check("values", values, np.int8, 2)
    if values.shape[1] % columns:
        raise ValueError(f"values: embed_dim {values.shape[1]} is not a multiple of {columns}")
    wrong = (values < -8) | (values > 7)  # noqa: PLR2004 - the 4-bit range
    if wrong.any():
        row, column = (int(i) for i in np.argwhere(wrong)[0])
        raise ValueError(f"values: {values[row, column]} at [{row}, {column}] is outside [-8, 7]")
    return (values + np.int8(8)).astype(np.uint8)


def _interleave(even: Array, odd: Array) -> Array:
    """Codes of even and of odd columns, uint8 [V, D/2] each, to values int8 [V, D]."""
    codes = np.stack([even, odd], axis=2).reshape(even.shape[0], 2 * even.shape[1])
    return codes.astype(np.int8) - np.int8(8)


def _check(name: str, array: Array, dtype: type[np.generic], rank: int) -> None:
    if array.dtype != dtype or array.ndim != rank:
        raise ValueError(f"{name}: {array.dtype} {array.shape} is not {np.dtype(dtype)} of rank {rank}")
