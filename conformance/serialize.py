"""Plain data (TOML, JSON) to frozen dataclasses and back, strictly: one converter for every file of the suite.

Nothing is taken for another type: a bool or 3.0 is no int, a text is no list. Unknown and missing fields are errors,
and an error is one line that names the place. Fields that hold their default are left out, so that a file shows what
matters; -0.0 is not the default 0.0.
"""

import dataclasses
import math
import reprlib
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_origin

import cattrs
from cattrs.cols import homogenous_tuple_structure_factory, is_mapping, mapping_structure_factory
from cattrs.errors import (
    AttributeValidationNote,
    BaseValidationError,
    ForbiddenExtraKeysError,
    IterableValidationNote,
)
from cattrs.gen import make_dict_structure_fn, make_dict_unstructure_fn

T = TypeVar("T")
_CONVERTER = cattrs.Converter(unstruct_collection_overrides={tuple: list})
#: Fields that are written even where they hold their default.
_ALWAYS = frozenset({"version"})


def structure(kind: type[T], data: Any, where: str = "", at: str = "") -> T:
    """Return the ``kind`` that ``data`` describes.

    Raises:
        ValueError: names ``where`` (a file), the path of fields from ``at`` on, what is wrong and what is allowed.
    """
    try:
        return _CONVERTER.structure(data, kind)
    except (ValueError, TypeError, KeyError, BaseValidationError) as error:
        raise ValueError(_line(error, where, at, kind.__name__)) from error


def unstructure(value: Any) -> Any:
    """Return a dataclass as plain data: dicts, lists, texts, numbers."""
    return _CONVERTER.unstructure(value)


def check_version(where: str, what: str, version: object, readable: int) -> None:
    """Raise the one line that says which version a file has, and what to do, where it is not ``readable``."""
    if version != readable:
        raise ValueError(
            f"{where}: a {what} of version {version}; this suite reads version {readable}: "
            "make it again, or use the suite that made it (docs/formats.md)"
        )


def register_tagged(union: Any, kinds: Mapping[str, type], tag: str) -> None:
    """Tell the members of ``union`` apart by a field ``tag`` that holds a key of ``kinds``."""
    names = {kind: name for name, kind in kinds.items()}

    def read(data: Any, _: Any) -> Any:
        rest = dict(_table(data))
        name = rest.pop(tag, None)
        if name not in kinds:
            raise ValueError(f"{tag} {name!r} is not one of {', '.join(kinds)}")
        return _CONVERTER.structure(rest, kinds[name])

    _CONVERTER.register_structure_hook(union, read)
    _CONVERTER.register_unstructure_hook(union, lambda v: {tag: names[type(v)], **_CONVERTER.unstructure(v)})


def register_as_is(kind: Any) -> None:
    """Take values of ``kind`` as they are: something else has structured them."""
    _CONVERTER.register_structure_hook_func(lambda other: bool(other == kind), lambda value, _: value)


def _exactly(kind: type) -> None:
    def read(data: Any, target: Any) -> Any:
        if kind is float and type(data) is int:
            return float(data)
        if type(data) is not kind:
            raise ValueError(f"expected {kind.__name__}, got {reprlib.repr(data)}")
        if target is not kind:  # an enumeration of texts, which cattrs hands to the hook of its base class
            return target(data)
        if isinstance(data, float) and not math.isfinite(data):
            raise ValueError(f"{data!r} is not finite")
        if isinstance(data, str) and not data.isascii():
            _check_text(data)
        return data

    _CONVERTER.register_structure_hook(kind, read)


def _check_text(text: str) -> None:
    """Half a character is no text: JSON can spell it, but nothing can write it."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{reprlib.repr(text)} is no text: half a character") from error


for _kind in (bool, int, float, str):
    _exactly(_kind)


def _table(data: Any) -> dict[str, Any]:
    if not isinstance(data, dict):
        raise ValueError(f"expected a table, got {reprlib.repr(data)}")
    return data


@_CONVERTER.register_structure_hook_factory(dataclasses.is_dataclass)
def _dataclass_reader(kind: Any) -> Callable[[Any, Any], Any]:
    read = make_dict_structure_fn(kind, _CONVERTER, _cattrs_forbid_extra_keys=True)
    return lambda data, _: data if isinstance(data, kind) else read(_table(data), kind)


@_CONVERTER.register_structure_hook_factory(is_mapping)
def _mapping_reader(kind: Any) -> Callable[[Any, Any], Any]:
    read = mapping_structure_factory(kind, _CONVERTER)
    return lambda data, _: read(_table(data), kind)


def _is_tuple(kind: Any) -> bool:
    return get_origin(kind) is tuple


@_CONVERTER.register_structure_hook_factory(_is_tuple)
def _tuple_reader(kind: Any) -> Callable[[Any, Any], Any]:
    read = homogenous_tuple_structure_factory(kind, _CONVERTER)

    def strictly(data: Any, _: Any) -> Any:
        if not isinstance(data, list | tuple):
            raise ValueError(f"expected a list, got {reprlib.repr(data)}")
        return read(data, kind)

    return strictly


@_CONVERTER.register_unstructure_hook_factory(dataclasses.is_dataclass)
def _dataclass_writer(kind: Any) -> Callable[[Any], dict[str, Any]]:
    write = make_dict_unstructure_fn(kind, _CONVERTER)
    defaults = {}
    for field in dataclasses.fields(kind):
        made = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        defaults[field.name] = None if field.name in _ALWAYS else repr(made)  # repr tells -0.0 from 0.0
    return lambda value: {k: v for k, v in write(value).items() if repr(getattr(value, k)) != defaults[k]}


def _line(error: BaseException, where: str, path: str, kind: str) -> str:
    """The first thing that is wrong, with its place; what is unknown before what is missing for it."""
    while isinstance(error, BaseValidationError):
        error = next((e for e in error.exceptions if isinstance(e, ForbiddenExtraKeysError)), error.exceptions[0])
        for note in getattr(error, "__notes__", ()):
            if isinstance(note, AttributeValidationNote) and not isinstance(error, KeyError):
                path += f".{note.name}"
            elif isinstance(note, IterableValidationNote):
                path += f"[{note.index}]"
    if isinstance(error, ForbiddenExtraKeysError):
        known = ", ".join(f.name for f in dataclasses.fields(error.cl))
        text = f"unknown field {min(error.extra_fields)!r}; known: {known}"
    elif isinstance(error, KeyError):
        text = f"field {error.args[0]!r} is missing"
    else:
        text = str(error)
    return ": ".join(filter(None, (where, path.removeprefix(".") or ("" if where else kind), text)))
