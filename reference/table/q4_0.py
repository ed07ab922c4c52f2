"""ggml's Q4_0 blocks: 32 columns that share a float16 scale, 18 bytes; a table of ours with G = 32, without loss.

A block is the scale, little-endian, and 16 bytes: byte j has column j's code in its low nibble and column j + 16's in
its high nibble. The scale may be negative: whoever quantizes lets the value of largest magnitude be -8 * scale.

>>> blocks = pack_q4_0(np.tile(np.int8([[-8, 7, 0, -1]]), 8), np.float16([[-0.5]]))
>>> blocks[0, 0].tobytes()[:6].hex(" ")  # 0xB800 is -0.5; columns 0 and 16 are -8, 1 and 17 are 7, ...
'00 b8 00 ff 88 77'

Source: docs/contract.md section 1.
"""

import numpy as np

from reference import Array

_BLOCK, _BYTES = 32, 18


def pack_q4_0(values: Array, scales: Array) -> Array:
    """Blocks uint8 [V, D/32, 18] of values int8 [V, D] and scales float16 [V, D/32].

    Raises:
        ValueError: a shape, dtype or value that Q4_0 does not have.
    """
    rows, columns = values.shape
    if columns % _BLOCK or scales.shape != (rows, columns // _BLOCK) or scales.dtype != np.float16:
        raise ValueError(
            f"Q4_0 has float16 scales [V, D/32]: values {values.shape}, scales {scales.dtype}{scales.shape}"
        )
    if values.size and not -8 <= int(values.min()) <= int(values.max()) <= 7:  # noqa: PLR2004 - four bits
        raise ValueError("values are not in [-8, 7]")
    codes = (values + np.int8(8)).astype(np.uint8).reshape(rows, columns // _BLOCK, 2, _BLOCK // 2)
    head = np.ascontiguousarray(scales).astype("<f2").view(np.uint8).reshape(rows, columns // _BLOCK, 2)
    return np.concatenate([head, codes[:, :, 0] | codes[:, :, 1] << 4], axis=2)


def unpack_q4_0(blocks: Array) -> tuple[Array, Array]:
    """Values int8 [V, D] and scales float16 [V, D/32] of blocks uint8 [V, D/32, 18].

    Raises:
        ValueError: not bytes of that shape.
    """
    if blocks.dtype != np.uint8 or blocks.ndim != 3 or blocks.shape[2] != _BYTES:  # noqa: PLR2004 - V, D/32, bytes
        raise ValueError(f"Q4_0 blocks are uint8 [V, D/32, 18], not {blocks.dtype}{blocks.shape}")
    scales = np.ascontiguousarray(blocks[:, :, :2]).view("<f2")[..., 0].astype(np.float16)
    codes = np.stack([blocks[:, :, 2:] & 15, blocks[:, :, 2:] >> 4], axis=2)
    return (codes.astype(np.int8) - np.int8(8)).reshape(blocks.shape[0], -1), scales
