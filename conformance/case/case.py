"""Case: one question to a subject, complete in itself; and the stages and levels there are.

A question is one of several kinds, open to more: a program to take through a stage, a table to pack or to quantize, a
kernel dispatch, or a program whose fused lookup is dispatched. A case carries everything that its replay needs.

Source: docs/contract.md sections 1, 5 and 7.
"""

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from conformance.case.model import KINDS, RECIPES, Model, check_model
from reference.arithmetic.bfloat16 import FLOAT_DTYPES
from reference.program.spec import ProgramSpec, Values, check_elements, check_sizes, validate
from reference.program.values import PATTERNS

CASE_VERSION = 2
#: Hand-over order.
STAGES = ("QUANTIZE", "EXPORT", "MATCH", "PACK", "LOWER", "PREPACK", "KERNEL", "RUN")
#: Each level includes the ones before it.
LEVELS = ("smoke", "gate", "deep")
STORAGES = ("buffer", "device_buffer", "texture2d")
METHODS = ("symmetric", "no_clipping", "hqq", "qat")
LAYOUTS = ("flat", "linear_weight", "blocks")

_ID = re.compile(r"[a-z0-9][a-z0-9_.\-]*(/[a-z0-9][a-z0-9_.\-]*)+")
_SECTION = re.compile(r"[1-7](\.\d+)?")
_LIMIT, _HEX = re.compile(r"[A-Za-z0-9]*"), re.compile(r"[0-9a-fA-F]*")
_PATTERNS = tuple(sorted(set(PATTERNS) - {"quantized"}))
_FLOATS = ("float32", "float16")
#: The words of every text of a question but names, which a program's own check reads.
_WORDS: dict[str, tuple[str, ...]] = {
    "method": METHODS,
    "layout": LAYOUTS,
    "storage": STORAGES,
    "dtype": FLOAT_DTYPES,
    "output_dtype": _FLOATS,
    "scale_dtype": _FLOATS,
    "indices_dtype": ("int32", "int64"),
    "weight_layout": ("flat", "block"),
    "weight_storage": ("buffer", "texture2d"),
    "io_storage": ("buffer", "texture3d"),
    "float_modes": ("declared", "none"),
    "kind": KINDS,
    "recipe": RECIPES,
}


@dataclass(frozen=True)
class Program:
    """Stages EXPORT, MATCH, LOWER and RUN: a program to build and take through the stage.

    ``force_fp16`` gives a LOWER case's lowering the compile option of that name (contract 3.7).
    """

    spec: ProgramSpec
    force_fp16: bool = False


@dataclass(frozen=True)
class Table:
    """Stages PACK and PREPACK: an int8 [vocab_size, embed_dim] table and the layout it is asked in.

    PACK goes from values to uint8 bytes ("flat", "linear_weight"); PREPACK from linear-weight bytes
    to "blocks": on the host ("buffer"), or by the device into a "device_buffer" or a "texture2d".
    """

    vocab_size: int
    embed_dim: int
    values: Values
    layout: str = "linear_weight"
    storage: str = "buffer"


@dataclass(frozen=True)
class Quantization:
    """Stage QUANTIZE: a float [vocab_size, embed_dim] table and torchao's way of quantizing it to int4.

    ``method``: "symmetric", "no_clipping" (its mapping without clipping), "hqq" (scales only) or "qat"
    (prepared, converted back and then quantized). ``group_size`` 0 is one scale a row.
    """

    method: str = "symmetric"
    vocab_size: int = 9
    embed_dim: int = 64
    group_size: int = 32
    dtype: str = "float32"
    values: Values = Values("weights", 21)


@dataclass(frozen=True)
class Variant:
    """A shader variant (contract 7.1)."""

    output_dtype: str = "float32"
    scale_dtype: str = "float32"
    weight_layout: str = "block"
    weight_storage: str = "buffer"
    io_storage: str = "buffer"
    float_modes: str = "declared"


@dataclass(frozen=True)
class Dispatch(Variant):
    """Stage KERNEL: a shader variant and the arrays that it is given.

    ``index_values`` draws indices in [0, vocab_size) unless its bounds say otherwise. ``exceeds_limit`` names a
    limit of the device that the dispatch may exceed: refusing it by that name is right too (7.5).
    """

    vocab_size: int = 16
    embed_dim: int = 64
    group_size: int = 32
    indices_shape: tuple[int, ...] = (5,)
    indices_dtype: str = "int32"
    values: Values = Values("uniform", 1, -8, 7)
    scales: Values = Values("scales", 2)
    index_values: Values = Values("uniform", 3)
    exceeds_limit: str = ""


@dataclass(frozen=True)
class EndToEnd(Variant):
    """Stage KERNEL: a variant given the operands of a program's first lookup, after matching and packing."""

    spec: ProgramSpec = field(kw_only=True)


Question = Program | Table | Quantization | Dispatch | EndToEnd | Model
#: The name of each kind of question in TOML.
QUESTIONS: dict[str, type[Question]] = {
    "program": Program,
    "table": Table,
    "quantize": Quantization,
    "dispatch": Dispatch,
    "end_to_end": EndToEnd,
    "model": Model,
}
#: The kinds of question that a stage answers; every other stage answers a program.
_OF_STAGE: dict[str, tuple[str, ...]] = {
    "QUANTIZE": ("quantize",),
    "PACK": ("table",),
    "PREPACK": ("table",),
    "KERNEL": ("dispatch", "end_to_end"),
    "RUN": ("program", "model"),
}


@dataclass(frozen=True)
class Case:
    """One case. ``contract`` is a section of docs/contract.md, ``detects`` the bug that it detects."""

    id: str
    stage: str
    contract: str
    detects: str
    question: Question
    level: str = "gate"
    version: int = CASE_VERSION

    @property
    def program(self) -> ProgramSpec | None:
        """The program that the question is about, where its kind has one."""
        return self.question.spec if isinstance(self.question, Program | EndToEnd) else None


def check(case: Case) -> Case:
    """Return ``case`` if it is well formed.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    if not _ID.fullmatch(case.id):
        raise ValueError(f"id {case.id!r} must look like stage/what/parameters, in lower case")
    _one_of("stage", case.stage, STAGES)
    _one_of("level", case.level, LEVELS)
    if not _SECTION.fullmatch(case.contract):
        raise ValueError(f"contract {case.contract!r} must be a section of docs/contract.md, such as 5.3")
    if not case.detects.strip() or not case.detects.isprintable():
        raise ValueError("detects must say in one line which bug the case detects")
    kinds = _OF_STAGE.get(case.stage, ("program",))
    if not isinstance(case.question, tuple(QUESTIONS[kind] for kind in kinds)):
        raise ValueError(f"a {case.stage} case needs {' or '.join(f'[{kind}]' for kind in kinds)}")
    _check_question(case)
    return case


def _check_question(case: Case) -> None:
    kind = next(name for name, other in QUESTIONS.items() if type(case.question) is other)
    _check_words(kind, case.question)
    if isinstance(case.question, Table | Quantization | Dispatch):
        _check_sizes(kind, case.question)
    if isinstance(case.question, Model):
        check_model(case.question)
    if case.program is not None:
        validate(case.program)
    if isinstance(case.question, Program):
        if case.question.force_fp16 and case.stage != "LOWER":
            raise ValueError(f"program.force_fp16 is for stage LOWER, not {case.stage}")
        if case.stage == "EXPORT" and case.question.spec.route == "synthetic":
            raise ValueError(
                "an EXPORT case needs program.spec.route export or torchao: a synthetic program is not exported"
            )


def _check_words(kind: str, question: Question) -> None:
    """Every text is one of its vocabulary, every whole number one of 64 bits."""
    for name, words in _WORDS.items():
        if hasattr(question, name):
            _one_of(f"{kind}.{name}", getattr(question, name), words)
    if isinstance(question, Dispatch) and not _LIMIT.fullmatch(question.exceeds_limit):
        raise ValueError(f"{kind}.exceeds_limit must be the name of a limit, such as maxImageDimension3D")
    for value in _parts(question):
        if isinstance(value, Values):
            _one_of(f"{kind}: pattern", value.pattern, _PATTERNS)
            if not _HEX.fullmatch(value.data):
                raise ValueError(f"{kind}: literal data is not hex")
        if isinstance(value, int) and abs(value) >= 1 << 63:
            raise ValueError(f"{kind}: a number does not fit into 64 bits")


def _check_sizes(kind: str, question: Table | Quantization | Dispatch) -> None:
    """Memory holds the arrays."""
    check_sizes(kind, (question.vocab_size, question.embed_dim))
    least = 1 if isinstance(question, Dispatch) else 0
    if not isinstance(question, Table) and question.group_size < least:
        raise ValueError(f"{kind}.group_size {question.group_size} is not from {least} on")
    if isinstance(question, Dispatch):
        check_sizes(f"{kind}.indices_shape", question.indices_shape)
        rows = question.vocab_size + math.prod(question.indices_shape)
        check_elements(kind, rows * max(question.embed_dim, 1))


def _parts(value: Any) -> Iterator[Any]:
    """A value and everything in it."""
    yield value
    if dataclasses.is_dataclass(value):
        value = tuple(getattr(value, own.name) for own in dataclasses.fields(value))
    for one in value if isinstance(value, tuple) else ():
        yield from _parts(one)


def _one_of(field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field_name} {value!r} is not one of {', '.join(allowed)}")
