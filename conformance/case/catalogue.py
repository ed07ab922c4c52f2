"""The catalogue: conformance/cases/*.toml, where a row is a case.

A file has optional ``[defaults]`` and any number of ``[[case]]`` rows; a row is laid over the
defaults, table by table. A program is given whole as ``spec``, or as ``single_table``
(conformance/case/single_table.py). A row with a ``[case.each]`` table stands for the product of its lists;
``{name}`` in id and detects is filled in, and the values are put where ``name`` says (dotted).
"""

import copy
import difflib
import fnmatch
import functools
import itertools
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from conformance.case.case import LEVELS, STAGES, Case
from conformance.case.single_table import SingleTable, single_table
from conformance.case.toml import case_from_table
from conformance.serialize import structure

CASES = Path(__file__).parent.parent / "cases"


@functools.cache
def load(folder: Path = CASES) -> tuple[Case, ...]:
    """Return every case of the catalogue, in file order.

    Raises:
        ValueError: a malformed row; names the file, the case and what is wrong.
    """
    cases: dict[str, Case] = {}
    for path in sorted(folder.glob("*.toml")):
        for case in load_file(path):
            if case.id in cases:
                raise ValueError(f"{path}: case {case.id}: the id is used twice")
            cases[case.id] = case
    return tuple(cases.values())


def load_file(path: Path) -> tuple[Case, ...]:
    """Return the cases of one file.

    Raises:
        ValueError: names the file, the case and what is wrong.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: {error}") from error
    if unknown := sorted(set(document) - {"defaults", "case"}):
        raise ValueError(f"{path}: unknown table {unknown[0]!r}; a file has [defaults] and [[case]]")
    rows = document.get("case", [])
    if not isinstance(rows, list):
        raise ValueError(f"{path}: case is one table; write [[case]], a row for each")
    cases = []
    for number, row in enumerate(rows, 1):
        where = f"{path}: case {row.get('id', f'number {number}')}"
        for filled in _expand(row, where):
            try:
                cases.append(_case(_laid_over(document.get("defaults", {}), filled)))
            except (ValueError, KeyError) as error:
                raise ValueError(f"{path}: case {filled.get('id', f'number {number}')}: {error}") from error
    return tuple(cases)


class Selectable(Protocol):
    """What a run can be about: a case, or something else that has its own verdict."""

    @property
    def id(self) -> str: ...  # noqa: D102 - as a case's
    @property
    def stage(self) -> str: ...  # noqa: D102 - the same
    @property
    def level(self) -> str: ...  # noqa: D102 - the same


One = TypeVar("One", bound=Selectable)


def select(
    cases: Sequence[One], *, level: str = "deep", stages: Sequence[str] = (), ids: Sequence[str] = ()
) -> tuple[One, ...]:
    """Return the cases of ``level`` and those before it, or with ``ids`` (patterns), of ``stages`` (all if empty).

    Raises:
        ValueError: an unknown level, stage or id; names the nearest valid ones.
    """
    nearest("level", level, LEVELS)
    for stage in stages:
        nearest("stage", stage, STAGES)
    known = [c.id for c in cases]
    named: set[str] = set()
    for pattern in ids:
        matched = fnmatch.filter(known, pattern)
        if not matched:
            nearest("case", pattern, known)
        named.update(matched)
    levels = LEVELS[: LEVELS.index(level) + 1]
    return tuple(
        c for c in cases if (c.id in named if ids else c.level in levels) and (not stages or c.stage in stages)
    )


def by_contract(cases: Sequence[Case]) -> list[str]:
    """Return a line for each contract section: how many cases, and their stages."""
    lines = []
    for section in sorted({c.contract for c in cases}, key=lambda s: tuple(map(int, s.split(".")))):
        there = [c for c in cases if c.contract == section]
        stages = ", ".join(s for s in STAGES if any(c.stage == s for c in there))
        lines.append(f"{section:5} {len(there):5}  {stages}")
    return lines


def nearest(what: str, name: str, allowed: Sequence[str]) -> None:
    """Check that ``name`` is one of ``allowed``.

    Raises:
        ValueError: it is not; names the nearest ones.
    """
    if name not in allowed:
        near = difflib.get_close_matches(name, allowed, cutoff=0.3) or list(allowed[:3])
        raise ValueError(f"unknown {what} {name!r}; did you mean {' or '.join(near)}?")


def _case(row: dict[str, Any]) -> Case:
    for name in ("program", "end_to_end"):
        question = row.get(name)
        if isinstance(question, dict) and "single_table" in question:
            rest = {k: v for k, v in question.items() if k != "single_table"}
            parameters = structure(SingleTable, question["single_table"], at=f"{name}.single_table")
            row = {**row, name: {**rest, "spec": single_table(parameters)}}
    return case_from_table(row)


def _laid_over(base: Any, top: Any) -> Any:
    if isinstance(base, dict) and isinstance(top, dict):
        return {
            key: _laid_over(base.get(key), top[key]) if key in top else copy.deepcopy(base[key])
            for key in {**base, **top}
        }
    return copy.deepcopy(top)


def _named(value: Any) -> str:
    """How a value is written in an id: sizes as 2x3, names as a-b, truth in lower case."""
    if isinstance(value, list):
        return ("-" if value and isinstance(value[0], str) else "x").join(map(str, value))
    return str(value).lower() if isinstance(value, bool) else str(value)


def _expand(row: dict[str, Any], where: str) -> Iterator[dict[str, Any]]:
    """Yield the row, or one row for each combination of the lists in its ``each`` table."""
    each = row.get("each", {})
    if not isinstance(each, dict) or not all(isinstance(v, list) and v for v in each.values()):
        raise ValueError(f"{where}: each must be a table of non-empty lists")
    for combination in itertools.product(*each.values()):
        filled = copy.deepcopy({k: v for k, v in row.items() if k != "each"})
        names = {}
        for path, value in zip(each, combination, strict=True):
            *parents, leaf = path.split(".")
            table = filled
            for parent in parents:
                table = table.setdefault(parent, {})
            table[leaf] = value
            names[leaf] = _named(value)
        for text in ("id", "detects"):
            if text in filled and each:
                try:
                    filled[text] = filled[text].format(**names)
                except (KeyError, IndexError) as error:
                    raise ValueError(f"{where}: {text} refers to {error}, which is not in each") from error
        yield filled
