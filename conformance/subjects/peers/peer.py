"""What the subjects of other projects share: which of KERNEL's questions they take, and how an answer is given.

A peer answers KERNEL's question (values, scales, G and indices in; rows out) without our shader, so layouts and
storages mean nothing to it: it is asked each table once, in the words of flat weights and buffers.

Source: docs/contract.md sections 2, 3 and 7.3.
"""

import importlib.metadata
import platform
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import numpy as np

from conformance.case.case import Case, Dispatch
from conformance.case.operands import operands
from conformance.harness.observation import Arrays, Facts, Observation, Refused

Array = np.ndarray[Any, Any]
_FLOAT32 = ("RoundingModeRTE 16", "RoundingModeRTE 32")
#: One correctly rounded product, as on a host.
EXACT = Facts(arithmetic="host")
#: code * scale + bias where the sum is exact: one rounded product, but zeros lose their sign and scales are finite.
AFFINE = Facts((*_FLOAT32, "DenormPreserve 16", "DenormPreserve 32"), precise=True)
#: One rounded product; subnormal scales and results may be zero.
FLUSHES = Facts((*_FLOAT32, "SignedZeroInfNanPreserve 16", "SignedZeroInfNanPreserve 32"), precise=True)


@dataclass(frozen=True)
class Dialect:
    """Which questions an implementation takes, and by which arithmetic it answers.

    ``package`` is the distribution that holds it. ``dtypes`` are pairs of scale and output. ``groups`` are the group
    sizes that it knows, empty: any; ``a_row``: one scale a row only. ``multiple`` divides the columns of its tables.
    ``highest`` bounds a scale's magnitude (its 8-fold is a finite bias); ``outside`` says why it is not asked for
    an index outside the table, "" where it is. ``group`` columns share a scale in proofs.
    """

    package: str
    dtypes: tuple[tuple[str, str], ...]
    facts: Facts = EXACT
    groups: tuple[int, ...] = ()
    a_row: bool = False
    multiple: int = 2
    highest: float | None = None
    outside: str = ""
    group: int = 16

    def declines(self, question: Dispatch) -> str | None:
        """Return why a question is not one of the dialect, or None."""
        if (question.scale_dtype, question.output_dtype) not in self.dtypes:
            return f"{question.scale_dtype} scales and {question.output_dtype} output are not in its dialect"
        if self.a_row and question.group_size != question.embed_dim:
            return "its dialect has one scale a row"
        if self.groups and question.group_size not in self.groups:
            return f"its dialect has groups of {', '.join(map(str, self.groups))}, not {question.group_size}"
        if question.embed_dim % self.multiple:
            return f"its dialect has rows of a multiple of {self.multiple} columns"
        read = operands(question)
        if self.highest is not None and not (np.abs(read.scales) <= self.highest).all():
            return f"its dialect has scales up to {self.highest:g}"
        if self.outside and ((read.indices < 0) | (read.indices >= question.vocab_size)).any():
            return self.outside
        return None


class Peer:
    """An implementation of another project. Its subject sets ``dialect`` and defines ``lookup``."""

    dialect: ClassVar[Dialect]

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array, output_dtype: str) -> Array:
        """Return rows [N, D] of the table int8 [V, D] with scales [V, D/G] at int32|int64 indices [N].

        Raises:
            IndexError: the implementation refuses an index outside [0, V).
        """
        raise NotImplementedError

    def supports(self, case: Case) -> str | None:
        """Return why the case is not in the dialect, or None."""
        question = case.question
        if not isinstance(question, Dispatch):
            return "answers dispatches of stage KERNEL only"
        own = question.weight_layout, question.io_storage, question.float_modes
        if own != ("flat", "buffer", "declared") or question.exceeds_limit:
            return "a layout, storage or limit of Vulkan; the same lookup is asked as flat weights in buffers"
        return self.dialect.declines(question)

    def run(self, case: Case) -> Observation:
        """Answer the case."""
        question = case.question
        assert isinstance(question, Dispatch)  # noqa: S101 - supports() declines the others
        read = operands(question)
        flat = read.indices.reshape(-1)
        try:
            out = self.lookup(read.values, read.scales, read.group_size, flat, question.output_dtype)
        except IndexError as error:
            return Refused("index_outside", str(error))
        return Arrays({"out": out.reshape(*read.indices.shape, read.values.shape[1])}, self.facts())

    def facts(self) -> Facts:
        """Return the arithmetic that the dialect declares, and where and by which version it ran."""
        return replace(self.dialect.facts, device=f"CPU {platform.machine()}", driver=self.version())

    def version(self) -> str:
        """Return the distribution's name and version."""
        return f"{self.dialect.package} {importlib.metadata.version(self.dialect.package)}"


def nibbles(values: Array, *, offset: int = 0) -> Array:
    """Pack int8 [V, D] into uint8, the even column in the low nibble; ``offset`` 8 stores codes, 0 two's complement.

    >>> nibbles(np.int8([[-8, 7, 0, -1]]), offset=8).tobytes().hex(" "), nibbles(np.int8([[-8, 7]])).tobytes().hex()
    ('f0 78', '78')
    """
    codes = (values.astype(np.int16) + offset).astype(np.uint8) & 15
    return np.ascontiguousarray(codes[..., 1::2] << 4 | codes[..., 0::2])
