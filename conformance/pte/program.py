"""The first bytes of a model file, checked before anything parses the rest.

>>> check_pte_header(b"PK" + bytes(62), 4096, "model.pte")
Traceback (most recent call last):
...
conformance.harness.errors.BadFile: model.pte: a ZIP archive (a .pt2?), not a .pte

Source: docs/contract.md section 6.
"""

import os
import struct
from pathlib import Path

from conformance.harness.errors import BadFile

#: File identifier at offset 4 that executorch 1.5.1 writes and reads.
PTE_IDENTIFIER = b"ET12"
_EXTENDED = b"eh00"
_SMALLEST = 48
ZIP = b"PK"


def check_pte(path: Path) -> None:
    """Check a file's first bytes without reading the rest.

    Raises:
        BadFile: it does not exist or cannot be read, and as ``check_pte_header``.
    """
    try:
        with path.open("rb") as file:
            head = file.read(64)
            size = file.seek(0, os.SEEK_END)
    except OSError as error:
        raise BadFile(f"{path}: cannot be read ({error.strerror})") from error
    check_pte_header(head, size, str(path))


def check_pte_header(head: bytes, size: int, name: str) -> None:
    """Check the identifier and that the extended header's sizes lie inside the file.

    Args:
        head: the file's first 64 bytes, or fewer.
        size: the file's length in bytes.
        name: what messages call the file.

    Raises:
        BadFile: names what the file is instead, or which size does not fit.
    """
    if head[:2] == ZIP:
        raise BadFile(f"{name}: a ZIP archive (a .pt2?), not a .pte")
    if size < _SMALLEST:
        raise BadFile(f"{name}: {size} bytes are too few for a .pte")
    if head[4:8] != PTE_IDENTIFIER:
        if head[4:6] == b"ET":
            raise BadFile(
                f"{name}: file identifier {head[4:8].decode('ascii', 'replace')!r} is another ExecuTorch version's; "
                f"executorch 1.5.1 reads {PTE_IDENTIFIER.decode()!r}"
            )
        raise BadFile(f"{name}: not a .pte (no ExecuTorch identifier at byte 4)")
    (root,) = struct.unpack_from("<I", head, 0)
    if root >= size:
        raise BadFile(f"{name}: truncated or damaged: the program's root is at byte {root} of {size}")
    if head[8:12] != _EXTENDED:
        return
    length, program, segments, segment_bytes = struct.unpack_from("<IQQQ", head, 12)
    if program > size:
        raise BadFile(f"{name}: truncated: the program has {program} bytes, the file {size}")
    if segments > size or (length >= 32 and segments + segment_bytes > size):  # noqa: PLR2004 - the header with segment size
        raise BadFile(f"{name}: truncated: segments end at byte {segments + segment_bytes}, the file at {size}")
