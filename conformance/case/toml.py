"""Cases and specs as TOML, read by the strict converter.

A case's table holds its question under the name of the question's kind: ``[program]``, ``[table]``, ``[quantize]``,
``[dispatch]`` or ``[end_to_end]``.
"""

import tomllib
from typing import Any

import tomli_w

from conformance.case.case import CASE_VERSION, QUESTIONS, Case, Question, check
from conformance.serialize import check_version, register_as_is, register_tagged, structure, unstructure
from reference.program.spec import STEP_TYPES, ProgramSpec, Step

_NAMES = {kind: name for name, kind in QUESTIONS.items()}
register_tagged(Step, STEP_TYPES, "op")
register_as_is(Question)


def case_to_table(case: Case) -> dict[str, Any]:
    """Return ``case`` as a TOML table."""
    table: dict[str, Any] = unstructure(case)
    question = table.pop("question")
    return {**table, _NAMES[type(case.question)]: question}


def case_from_table(table: Any, where: str = "") -> Case:
    """Return the case that a TOML table holds, checked.

    Raises:
        ValueError: not a well-formed case; names ``where``, the field and what is allowed.
    """
    prefix = f"{where}: " if where else ""
    if not isinstance(table, dict):
        raise ValueError(f"{prefix}a case is a table")
    # A file has had its version from the start; a row of the catalogue has none.
    check_version(where or str(table.get("id", "case")), "case", table.get("version", CASE_VERSION), CASE_VERSION)
    names = [name for name in QUESTIONS if name in table]
    if len(names) > 1:
        raise ValueError(f"{prefix}a case holds one question, not {' and '.join(names)}")
    questions = [structure(QUESTIONS[name], table[name], where, name) for name in names]
    rest = {k: v for k, v in table.items() if k not in names}
    try:
        return check(structure(Case, {**rest, "question": questions[0] if questions else None}))
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def case_to_toml(case: Case) -> str:
    """Return the one file from which ``case`` replays."""
    return tomli_w.dumps(case_to_table(case))


def case_from_toml(text: str, where: str = "") -> Case:
    """Return the case that ``text`` holds, checked.

    Raises:
        ValueError: not TOML, or not a well-formed case; names ``where``, the field and what is allowed.
    """
    try:
        table = tomllib.loads(text)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{where}: not TOML: {error}" if where else f"not TOML: {error}") from error
    return case_from_table(table, where)


def spec_to_toml(spec: ProgramSpec) -> str:
    """Return ``spec`` as TOML."""
    return tomli_w.dumps(unstructure(spec))
