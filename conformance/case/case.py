"""Case: one question to a subject, complete in itself; and the stages and levels there are.

A question is one of several kinds, open to more: a program to take through a stage, a table to pack or to quantize, a
kernel dispatch, or a program whose fused lookup is dispatched. A case carries everything that its replay needs.

Source: docs/contract.md sections 1, 5 and 7.
"""

import re
from dataclasses import dataclass, field

from reference.program.spec import ProgramSpec, Values, validate

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


Question = Program | Table | Quantization | Dispatch | EndToEnd
#: The name of each kind of question in TOML.
QUESTIONS: dict[str, type[Question]] = {
    "program": Program,
    "table": Table,
    "quantize": Quantization,
    "dispatch": Dispatch,
    "end_to_end": EndToEnd,
}
#: The kinds of question that a stage answers; every other stage answers a program.
_OF_STAGE: dict[str, tuple[str, ...]] = {
    "QUANTIZE": ("quantize",),
    "PACK": ("table",),
    "PREPACK": ("table",),
    "KERNEL": ("dispatch", "end_to_end"),
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
    if not case.detects.strip():
        raise ValueError("detects must say which bug the case detects")
    kinds = _OF_STAGE.get(case.stage, ("program",))
    if not isinstance(case.question, tuple(QUESTIONS[kind] for kind in kinds)):
        raise ValueError(f"a {case.stage} case needs {' or '.join(f'[{kind}]' for kind in kinds)}")
    _check_question(case)
    return case


def _check_question(case: Case) -> None:
    if isinstance(case.question, Quantization):
        _one_of("quantize.method", case.question.method, METHODS)
    if isinstance(case.question, Table):
        _one_of("table.layout", case.question.layout, LAYOUTS)
        _one_of("table.storage", case.question.storage, STORAGES)
    if case.program is not None:
        validate(case.program)
    if isinstance(case.question, Program):
        if case.question.force_fp16 and case.stage != "LOWER":
            raise ValueError(f"program.force_fp16 is for stage LOWER, not {case.stage}")
        if case.stage == "EXPORT" and case.question.spec.route == "synthetic":
            raise ValueError(
                "an EXPORT case needs program.spec.route export or torchao: a synthetic program is not exported"
            )


def _one_of(field_name: str, value: str, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise ValueError(f"{field_name} {value!r} is not one of {', '.join(allowed)}")
