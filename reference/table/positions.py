"""Where each code of a table lies, in plain integers: the second oracle of the three packed layouts.

Written from the contract's section 1 alone, without numpy; it judges ``reference.table.layouts``.
A position is (byte, shift): the code of row n, column k is ``data[byte] >> shift & 15``.
"""

from collections.abc import Callable, Sequence
from fractions import Fraction

Place = tuple[int, int]


def flat_place(n: int, k: int, embed_dim: int) -> Place:
    """Flat: byte j of a row is code[2j] << 4 | code[2j+1].

    >>> [flat_place(0, k, 4) for k in range(4)]  # bytes 0x0F 0x87 hold codes 0, 15, 8, 7
    [(0, 4), (0, 0), (1, 4), (1, 0)]
    """
    return n * (embed_dim // 2) + k // 2, 0 if k % 2 else 4


def linear_weight_place(n: int, k: int, embed_dim: int) -> Place:
    """Linear-weight: byte j of a row is code[2j+1] << 4 | code[2j].

    >>> [linear_weight_place(0, k, 4) for k in range(4)]  # bytes 0xF0 0x78 hold codes 0, 15, 8, 7
    [(0, 0), (0, 4), (1, 0), (1, 4)]
    """
    return n * (embed_dim // 2) + k // 2, 4 if k % 2 else 0


def block_place(n: int, k: int, embed_dim: int) -> Place:
    """Block: word n & 3 of block [n >> 3, k >> 2], at bit (4 if n & 4 else 0) + 8 * (k & 3).

    The byte counts from the start of the little-endian int32 words.

    >>> block_place(0, 0, 32), block_place(4, 0, 32), block_place(1, 0, 32), block_place(0, 3, 32)
    ((0, 0), (0, 4), (4, 0), (3, 0))
    >>> block_place(0, 4, 32), block_place(8, 0, 32)  # the next block; the next row of 8 blocks of 16 bytes
    ((16, 0), (128, 0))
    """
    block = (n >> 3) * (embed_dim // 4) + (k >> 2)
    bit = (4 if n & 4 else 0) + 8 * (k & 3)
    return (block * 4 + (n & 3)) * 4 + bit // 8, bit % 8


def block_bytes(vocab_size: int, embed_dim: int) -> int:
    """Bytes of the block layout, whose rows are padded to a multiple of 8.

    >>> block_bytes(1, 32), block_bytes(8, 32), block_bytes(9, 32)
    (128, 128, 256)
    """
    return -(-vocab_size // 8) * (embed_dim // 4) * 16


def code_at(data: Sequence[int], place: Place) -> int:
    """Read the code at a place.

    >>> [code_at(bytes([0x0F, 0x87]), flat_place(0, k, 4)) for k in range(4)]
    [0, 15, 8, 7]
    """
    byte, shift = place
    return data[byte] >> shift & 15


def pack(table: Sequence[Sequence[int]], place: Callable[[int, int, int], Place], size: int, rows: int) -> bytes:
    """Lay a table of values q out; rows past the table hold code 8 (q = 0), which only blocks have.

    Raises:
        ValueError: two codes share a place, so the layout is no bijection.

    >>> pack([[-8, 7, 0, -1]], flat_place, 2, 1).hex(), pack([[-8, 7, 0, -1]], linear_weight_place, 2, 1).hex()
    ('0f87', 'f078')
    """
    data, taken = bytearray(size), set()
    embed_dim = len(table[0])
    for n in range(rows):
        for k in range(embed_dim):
            byte, shift = place(n, k, embed_dim)
            if (byte, shift) in taken:
                raise ValueError(f"row {n} column {k} shares byte {byte} shift {shift}")
            taken.add((byte, shift))
            data[byte] |= (table[n][k] + 8 if n < len(table) else 8) << shift
    return bytes(data)


def embed(
    table: Sequence[Sequence[int]], scales: Sequence[Sequence[Fraction]], group_size: int, index: int
) -> list[Fraction]:
    """One row of contract section 2's operator, exactly: q[index, d] * scales[index, d // group_size].

    >>> embed([[-8, 7, 0, -1]], [[Fraction(1, 2), Fraction(3)]], 2, 0)
    [Fraction(-4, 1), Fraction(7, 2), Fraction(0, 1), Fraction(-3, 1)]
    """
    return [q * scales[index][d // group_size] for d, q in enumerate(table[index])]
