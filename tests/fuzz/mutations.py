"""Real files, altered: parts of what they say, and bytes, as Hypothesis draws them."""

import copy
import json
import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from hypothesis import strategies as st

#: An alteration: which kind, where and with what, as numbers that every file has a meaning for.
Alteration = tuple[int, int, int]
#: What is drawn for one input: which file, whether its seals are made right again, and up to four alterations.
Drawn = tuple[int, bool, list[Alteration]]
#: Hypothesis draws a number, which stands for so many inputs: drawing each takes longer than reading it.
BATCH = 25
NUMBERS = st.integers(0, (1 << 64) - 1)


def batch(number: int) -> Iterator[Drawn]:
    """The inputs that a number stands for."""
    draw = random.Random(number)  # noqa: S311 - inputs, not secrets
    for _ in range(BATCH):
        words = [tuple(draw.getrandbits(32) for _ in range(3)) for _ in range(draw.randint(1, 4))]
        yield draw.getrandbits(32), bool(draw.getrandbits(1)), words  # type: ignore[misc]


def nested(depth: int) -> list[Any]:
    """A list in a list, and so on."""
    value: list[Any] = []
    for _ in range(depth):
        value = [value]
    return value


ODD: tuple[Any, ...] = (
    None,
    True,
    False,
    0,
    -1,
    1 << 31,
    1 << 63,
    -(1 << 63),
    1 << 200,
    0.5,
    -0.0,
    1e308,
    float("inf"),
    float("nan"),
    "",
    " ",
    "\x1b[2J\x07",
    "one\ntwo\r\u2028three",
    "\u202eevil",
    "\ud800",
    "\0",
    "../../etc/passwd",
    "/dev/zero",
    "x" * 5000,
    "__import__('os')",
    "<img src=x onerror=alert(1)>",
    "| `code` ![i](http://x) @all",
    [],
    [[]],
    {},
    {"": {}},
    [0] * 200,
    nested(60),
    {"op": "lookup"},
    "int8",
    "PASS",
    1,
    8,
    32,
)
_BYTES = (
    *(b"\0", b"\xff", b"\n", b'"', b"[", b"{", b"]]", b"}}", b"\x1b[2J", b"= ", b"1e999", b"-", b"\r"),
    b"[" * 3000,
    b"\xed\xa0\x80",
)


@dataclass(frozen=True)
class Kind:
    """A kind of file: real ones as plain data, and how they are written, ``sealed`` or with the seals they have."""

    files: Sequence[Any]
    write: Callable[[Any, bool], bytes]


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in plain data."""
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            yield value, key
            yield from places(value[key])


def altered(kind: Kind, drawn: Drawn) -> bytes:
    """The bytes of one of the kind's files, with the alterations that were drawn."""
    number, seal, alterations = drawn
    data = copy.deepcopy(kind.files[number % len(kind.files)])
    for what, where, value in alterations:
        if what % 4:
            data = _in_data(data, what, where, value)
    try:
        raw = kind.write(data, seal)
    except (TypeError, ValueError, KeyError, AttributeError, IndexError, OverflowError):  # it cannot be written so
        raw = json.dumps(data, default=str).encode()
    for what, where, value in alterations:
        if not what % 4:
            raw = _in_bytes(raw, what // 4, where, value)
    return raw


def _in_data(data: Any, what: int, where: int, value: int) -> Any:
    there = list(places(data))
    if not there:
        return data
    container, key = there[where % len(there)]
    way = what // 4 % 5
    if way == 0:
        del container[key]
    elif way == 1:
        other, its = there[value % len(there)]
        container[key] = copy.deepcopy(other[its]) if its in other or isinstance(other, list) else None
    elif way == 2 and isinstance(container, list):
        container.insert(key, copy.deepcopy(container[key]))
    elif way == 3 and isinstance(container, dict):
        container[str(ODD[value % len(ODD)])[:100]] = container[key]
    else:
        container[key] = copy.deepcopy(ODD[value % len(ODD)])
    return data


def _in_bytes(raw: bytes, what: int, where: int, value: int) -> bytes:
    at = where % (len(raw) + 1)
    length = 1 + value % 16 if value & 1 else value % (len(raw) + 1)
    way = what % 6
    if way == 0 and at < len(raw):
        return raw[:at] + bytes([raw[at] ^ 1 << value % 8]) + raw[at + 1 :]
    if way == 1:
        return raw[:at]
    if way == 2:
        return raw[:at] + raw[at + length :]
    if way == 3:
        return raw[:at] + raw[at : at + min(length, 4096)] + raw[at:]
    if way == 4:
        return raw[:at] + bytes([value % 256]) * min(length, 64) + raw[at + min(length, 64) :]
    return raw[:at] + _BYTES[value % len(_BYTES)] + raw[at:]
