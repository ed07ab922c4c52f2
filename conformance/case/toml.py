"""Cases and specs as TOML: a generic mapping between frozen dataclasses and TOML tables.

Fields that hold their default are left out, so that a file shows what matters. Unknown fields,
missing ones and wrong types are errors that name the place.
"""

import dataclasses
import functools
import math
import tomllib
import types
import typing
from typing import Any, TypeVar, cast

import tomli_w

from conformance.case.case import Case, check
from reference.program.spec import STEP_TYPES, ProgramSpec, Step

T = TypeVar("T")
_STEP_NAMES: dict[Any, str] = {t: name for name, t in STEP_TYPES.items()}


def to_table(value: Any) -> Any:
    """Return a dataclass as a TOML table (dict), leaving out fields that hold their default."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        table: dict[str, Any] = {"op": _STEP_NAMES[type(value)]} if type(value) in _STEP_NAMES else {}
        for field in dataclasses.fields(value):
            item = getattr(value, field.name)
            if item is None or (_same(item, field.default) and field.name != "version"):
                continue
            table[field.name] = to_table(item)
        return table
    if isinstance(value, tuple):
        return [to_table(v) for v in value]
    return value


def _same(item: Any, default: Any) -> bool:
    """Whether a field may be left out; -0.0 equals 0.0, and is another value."""
    return bool(item == default) and not (
        isinstance(item, float) and math.copysign(1, item) != math.copysign(1, default)
    )


def from_table(kind: type[T], table: Any, where: str = "") -> T:
    """Return the dataclass ``kind`` that ``table`` describes.

    Raises:
        ValueError: names the place (``where`` plus the path of fields), what is wrong and what is allowed.
    """
    if not isinstance(table, dict):
        raise ValueError(f"{where or kind.__name__}: expected a table, got {table!r}")
    hints = _hints(cast("Any", kind))
    fields = {f.name: f for f in dataclasses.fields(cast("Any", kind))}
    if unknown := sorted(set(table) - set(fields)):
        raise ValueError(f"{where or kind.__name__}: unknown field {unknown[0]!r}; known: {', '.join(fields)}")
    arguments: dict[str, Any] = {}
    for name, field in fields.items():
        path = f"{where}.{name}" if where else name
        if name in table:
            arguments[name] = _convert(hints[name], table[name], path)
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise ValueError(f"{where or kind.__name__}: field {name!r} is missing")
    return kind(**arguments)


@functools.cache
def _hints(kind: type[Any]) -> dict[str, Any]:
    return typing.get_type_hints(kind)


def _convert(hint: Any, value: Any, path: str) -> Any:
    if hint == Step:
        return _step(value, path)
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is types.UnionType or origin is typing.Union:
        return _convert(next(a for a in arguments if a is not types.NoneType), value, path)
    if origin is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{path}: expected a list, got {value!r}")
        return tuple(_convert(arguments[0], item, f"{path}[{i}]") for i, item in enumerate(value))
    if dataclasses.is_dataclass(hint):
        return from_table(cast("type[Any]", hint), value, path)
    if hint is float and type(value) is int:
        return float(value)
    if type(value) is not hint:
        raise ValueError(f"{path}: expected {hint.__name__}, got {value!r}")
    if hint is float and not math.isfinite(value):
        raise ValueError(f"{path}: {value!r} is not finite; use literal bytes")
    return value


def _step(value: Any, path: str) -> Step:
    if not isinstance(value, dict) or value.get("op") not in STEP_TYPES:
        op = value.get("op") if isinstance(value, dict) else value
        raise ValueError(f"{path}: op {op!r} is not one of {', '.join(STEP_TYPES)}")
    rest = {k: v for k, v in value.items() if k != "op"}
    return from_table(STEP_TYPES[value["op"]], rest, path)


def case_to_toml(case: Case) -> str:
    """Return the one file from which ``case`` replays."""
    return tomli_w.dumps(to_table(case))


def case_from_toml(text: str, where: str = "") -> Case:
    """Return the case that ``text`` holds, checked.

    Raises:
        ValueError: not TOML, or not a well-formed case; names ``where``, the field and what is allowed.
    """
    prefix = f"{where}: " if where else ""
    try:
        return check(from_table(Case, tomllib.loads(text)))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{prefix}not TOML: {error}") from error
    except ValueError as error:
        raise ValueError(f"{prefix}{error}") from error


def spec_to_toml(spec: ProgramSpec) -> str:
    """Return ``spec`` as TOML."""
    return tomli_w.dumps(to_table(spec))


def spec_from_toml(text: str) -> ProgramSpec:
    """Return the spec that ``text`` holds (``reference.program.spec.validate`` is the caller's).

    Raises:
        ValueError: not TOML, or not a spec.
    """
    try:
        return from_table(ProgramSpec, tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"not TOML: {error}") from error
