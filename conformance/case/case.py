"""Case: one question to a subject, complete in itself; and the stages and levels there are.

A case carries everything its replay needs: a ProgramSpec (EXPORT, MATCH, LOWER, RUN), a table to
quantize (QUANTIZE) or to pack (PACK, PREPACK) or a dispatch (KERNEL). A KERNEL case with a program takes table,
scales and indices from the program after matching and packing: the whole journey but the file.

Source: docs/contract.md sections 1, 5 and 7.
"""

import re
from dataclasses import dataclass

from reference.program.spec import ProgramSpec, Values, validate

CASE_VERSION = 1
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
class Dispatch:
    """Stage KERNEL: a shader variant (contract 7.1) and what it is given.

    ``index_values`` draws indices in [0, vocab_size) unless its bounds say otherwise. ``beyond`` names a
    limit of the device that the dispatch may lie beyond: refusing it by that name is right too (7.5).
    With a program on the case, only the variant's fields are read.
    """

    output_dtype: str = "float32"
    scale_dtype: str = "float32"
    weight_layout: str = "block"
    weight_storage: str = "buffer"
    io_storage: str = "buffer"
    float_modes: str = "declared"
    vocab_size: int = 16
    embed_dim: int = 64
    group_size: int = 32
    indices_shape: tuple[int, ...] = (5,)
    indices_dtype: str = "int32"
    values: Values = Values("uniform", 1, -8, 7)
    scales: Values = Values("scales", 2)
    index_values: Values = Values("uniform", 3)
    beyond: str = ""


@dataclass(frozen=True)
class Case:
    """One case. ``source`` is a section of docs/contract.md, ``shows`` the bug it would show.

    ``force_fp16`` gives a LOWER case's lowering the compile option of that name (contract 3.7).
    """

    id: str
    stage: str
    source: str
    shows: str
    level: str = "gate"
    program: ProgramSpec | None = None
    table: Table | None = None
    dispatch: Dispatch | None = None
    quantize: Quantization | None = None
    force_fp16: bool = False
    version: int = CASE_VERSION


def check(case: Case) -> Case:
    """Return ``case`` if it is well formed.

    Raises:
        ValueError: names the field, its value and what is allowed.
    """
    if case.version != CASE_VERSION:
        raise ValueError(f"case version {case.version} is not {CASE_VERSION}")
    if not _ID.fullmatch(case.id):
        raise ValueError(f"id {case.id!r} must look like stage/what/parameters, in lower case")
    if case.stage not in STAGES:
        raise ValueError(f"stage {case.stage!r} is not one of {', '.join(STAGES)}")
    if case.level not in LEVELS:
        raise ValueError(f"level {case.level!r} is not one of {', '.join(LEVELS)}")
    if not _SECTION.fullmatch(case.source):
        raise ValueError(f"source {case.source!r} must be a section of docs/contract.md, such as 5.3")
    if not case.shows.strip():
        raise ValueError("shows must say which bug the case would show")
    _check_inputs(case)
    return case


def _check_inputs(case: Case) -> None:
    """The stage's own input is there, and what there is is well formed."""
    fields = {"QUANTIZE": "quantize", "PACK": "table", "PREPACK": "table", "KERNEL": "dispatch"}
    field = fields.get(case.stage, "program")
    if getattr(case, field) is None:
        raise ValueError(f"a {case.stage} case needs [{field}]")
    if case.force_fp16 and case.stage != "LOWER":
        raise ValueError(f"force_fp16 is for stage LOWER, not {case.stage}")
    if case.quantize is not None and case.quantize.method not in METHODS:
        raise ValueError(f"quantize.method {case.quantize.method!r} is not one of {', '.join(METHODS)}")
    if case.table is not None:
        _check_table(case.table)
    if case.program is not None:
        validate(case.program)
        if case.stage == "EXPORT" and case.program.route == "synthetic":
            raise ValueError(
                "an EXPORT case needs program.route export or torchao: a synthetic program is not exported"
            )


def _check_table(table: Table) -> None:
    if table.layout not in LAYOUTS:
        raise ValueError(f"table.layout {table.layout!r} is not one of {', '.join(LAYOUTS)}")
    if table.storage not in STORAGES:
        raise ValueError(f"table.storage {table.storage!r} is not one of {', '.join(STORAGES)}")
