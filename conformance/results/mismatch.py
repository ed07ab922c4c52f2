"""Mismatch: what is wrong with an observation, tagged; and the signature derived from it.

The signature ``STAGE/tag/reason`` is what expectations, diff, bisection and shrinking compare: a
different failure is a different failure. Positions and values are detail, not identity. ``str`` of a mismatch is one
line that a stranger can act on.

Source: docs/adr/0003.
"""

from dataclasses import dataclass
from typing import Any, ClassVar

from conformance.results.picture import Picture
from conformance.serialize import unstructure


@dataclass(frozen=True)
class ArrayMismatch:
    """Elements outside their accept set; the first one with index, bits and what was allowed."""

    tag: ClassVar[str] = "array"
    name: str
    index: tuple[int, ...]
    got: str
    allowed: tuple[str, ...]
    wrong: int
    of: int
    reason: str
    picture: Picture | None = None

    def __str__(self) -> str:
        allowed = " or ".join(self.allowed)
        where = f"{self.name}[{', '.join(map(str, self.index))}]"
        return f"{where} is {self.got}, allowed is {allowed}; {self.wrong} of {self.of} elements wrong ({self.reason})"


@dataclass(frozen=True)
class DecisionMismatch:
    """A lookup that was fused or refused against contract 5.3, or refused for a reason that does not hold."""

    tag: ClassVar[str] = "decision"
    node: str
    expected: str
    got: str
    reason: str

    def __str__(self) -> str:
        return f"lookup {self.node}: expected {self.expected}, got {self.got}"


@dataclass(frozen=True)
class DtypeShapeMismatch:
    """An output of another type or shape than the contract gives."""

    tag: ClassVar[str] = "dtype_shape"
    name: str
    expected: str
    got: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} is {self.got}, expected {self.expected}"


@dataclass(frozen=True)
class Mutated:
    """Something was written that must stay as it is: the source program, guard bands, a fused program."""

    tag: ClassVar[str] = "mutated"
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} was changed ({self.reason})"


@dataclass(frozen=True)
class LayoutMismatch:
    """Packed codes that stand in other places than the layout's; ``reason`` names the recognised pattern."""

    tag: ClassVar[str] = "layout"
    name: str
    position: tuple[int, ...]
    got: str
    allowed: str
    wrong: int
    of: int
    reason: str
    read_from: str = ""
    picture: Picture | None = None

    def __str__(self) -> str:
        where = f"{self.name}[{', '.join(map(str, self.position))}]"
        recognised = f"; {self.read_from}" if self.read_from else ""
        return f"{where} is {self.got}, must be {self.allowed}; {self.wrong} of {self.of} wrong{recognised}"


@dataclass(frozen=True)
class RaisedMismatch:
    """The subject raised, refused, died or hung where the contract asks for a result."""

    tag: ClassVar[str] = "raised"
    type: str
    message: str
    reason: str
    signal: str = ""

    def __str__(self) -> str:
        killed = f" (killed by {self.signal})" if self.signal else ""
        return f"{self.type}{killed}: {(self.message.strip().splitlines() or ['no message'])[0]}"


@dataclass(frozen=True)
class Nondeterministic:
    """Answers to one question that differ: where the first different element is, how many, and in which tiles.

    A tile is 32 columns of a row, what one invocation of ExecuTorch's shader writes. ``reason`` is "in_process", or
    "across_loads" where only answers of different loads differ.
    """

    tag: ClassVar[str] = "nondeterministic"
    name: str
    index: tuple[int, ...]
    answers: tuple[str, ...]
    changed: int
    of: int
    tiles: tuple[tuple[int, ...], ...]
    reason: str

    def __str__(self) -> str:
        where = f"{self.name}[{', '.join(map(str, self.index))}]"
        tiles = ", ".join(str(list(tile)) for tile in self.tiles)
        return (
            f"{where} is {' or '.join(self.answers)}; {self.changed} of {self.of} elements differ between equal "
            f"calls ({self.reason}), in tiles (row, columns / 32) {tiles}"
        )


Mismatch = (
    Nondeterministic | ArrayMismatch | DecisionMismatch | DtypeShapeMismatch | Mutated | LayoutMismatch | RaisedMismatch
)


def signature(stage: str, mismatch: Mismatch) -> str:
    """Return the failure's identity: ``STAGE/tag/reason``."""
    return f"{stage}/{mismatch.tag}/{mismatch.reason}"


def as_data(mismatch: Mismatch) -> dict[str, Any]:
    """Return the mismatch as a JSON object."""
    return {"tag": mismatch.tag, **unstructure(mismatch)}
