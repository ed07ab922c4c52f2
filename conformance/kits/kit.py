"""Kits: one directory a case, that any runtime in any language can play, and that is judged afterwards.

``case.json`` names every other file with its dtype, shape and SHA-256; tensors are raw little-endian row-major bytes.
A kit may come from a stranger: names cannot leave its directory, every size is checked before anything is read,
and whatever is malformed is named by its field.

Source: docs/kits.md.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from reference.arithmetic.bfloat16 import numpy_dtype

FORMAT = 1
DTYPES = ("float32", "float16", "bfloat16", "float64", "int64", "int32", "int16", "int8", "uint8")
#: How an output is judged: by accept sets (contract 3), bit for bit, inside contract 3.6's bound, or not at all.
JUDGED_BY = ("product", "bits", "dot", "nothing")
_NAME = re.compile(r"[A-Za-z0-9_]+\.(bin|pte)")
_STEP = re.compile(r"[A-Za-z0-9_.]{1,100}")
_MAX_JSON, _MAX_BYTES, _MAX_RANK, _MAX_TENSORS = 4 << 20, 4 << 30, 8, 256
#: What each way of judging is told, besides name, file, dtype and shape.
_PARTS = {
    "product": ("values", "scales", "product"),
    "bits": ("expected",),
    "dot": ("exact", "bound", "bound_any"),
    "nothing": (),
}

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Tensor:
    """A file of raw little-endian elements. ``sha256`` is "" for an output, which does not exist yet."""

    file: str
    dtype: str
    shape: tuple[int, ...]
    sha256: str = ""

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return math.prod(self.shape) * numpy_dtype(self.dtype).itemsize


@dataclass(frozen=True)
class Output:
    """One output and what is right for it: ``parts`` are the tensors that ``judged_by`` needs."""

    name: str
    tensor: Tensor
    judged_by: str
    parts: Mapping[str, Tensor]


@dataclass(frozen=True)
class Kit:
    """One case's directory, read and checked."""

    folder: Path
    case: str
    source: str
    shows: str
    model: str
    model_sha256: str
    inputs: tuple[Tensor, ...]
    outputs: tuple[Output, ...]
    lowered_with: str


def kits(folder: Path) -> tuple[Path, ...]:
    """Return the directories of ``folder`` that hold a case, or ``folder`` itself if it does.

    Raises:
        ValueError: there is none; says what was looked for.
    """
    if (folder / "case.json").is_file():
        return (folder,)
    found = tuple(sorted(p.parent for p in folder.glob("*/case.json"))) if folder.is_dir() else ()
    if not found:
        raise ValueError(f"{folder}: no kit there: neither case.json nor a directory with one")
    return found


def read_kit(folder: Path) -> Kit:
    """Return the kit in ``folder``; its tensors are not read yet.

    Raises:
        ValueError: names the file, the field, its value and what is allowed.
    """
    where = folder / "case.json"
    try:
        if where.stat().st_size > _MAX_JSON:
            raise ValueError(f"{where}: {where.stat().st_size} bytes; at most {_MAX_JSON}")
        data = json.loads(where.read_bytes())
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise ValueError(f"{where}: not a kit's case.json ({error})") from error
    if not isinstance(data, dict) or data.get("kit") != FORMAT:
        raise ValueError(f"{where}: kit must be {FORMAT}")
    model = _table(data, "model", where)
    name = _file(model.get("file"), "model.file", where)
    inputs = tuple(_tensor(t, f"inputs[{i}]", where) for i, t in enumerate(_list(data, "inputs", where)))
    outputs = tuple(_output(t, f"outputs[{i}]", where) for i, t in enumerate(_list(data, "outputs", where)))
    if not outputs:
        raise ValueError(f"{where}: outputs is empty; a kit has something to judge")
    text = {k: _text(data.get(k), k, where) for k in ("case", "source", "shows", "lowered_with")}
    digest = _text(model.get("sha256"), "model.sha256", where)
    return Kit(folder, text["case"], text["source"], text["shows"], name, digest, inputs, outputs, text["lowered_with"])


def read_tensor(folder: Path, tensor: Tensor) -> Array:
    """Return a tensor's array.

    Raises:
        ValueError: no such file, another size than dtype and shape say, or another digest; names the file.
    """
    path = folder / tensor.file
    if path.is_symlink() or not path.is_file():
        raise ValueError(f"{path}: no such file")
    if (size := path.stat().st_size) != tensor.size:
        raise ValueError(f"{path}: {size} bytes; {tensor.dtype}{list(tensor.shape)} has {tensor.size}")
    data = path.read_bytes()
    if tensor.sha256 and hashlib.sha256(data).hexdigest() != tensor.sha256:
        raise ValueError(f"{path}: its SHA-256 is not the one in case.json; the file was changed")
    return np.frombuffer(data, numpy_dtype(tensor.dtype).newbyteorder("<")).reshape(tensor.shape)


def check_model(kit: Kit) -> Path:
    """Return the path of the kit's model.

    Raises:
        ValueError: it is missing, or not the file that the kit was made with.
    """
    path = kit.folder / kit.model
    if path.is_symlink() or not path.is_file() or path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"{path}: no such file")
    if hashlib.sha256(path.read_bytes()).hexdigest() != kit.model_sha256:
        raise ValueError(f"{path}: its SHA-256 is not the one in case.json; the file was changed")
    return path


def _output(data: Any, field: str, where: Path) -> Output:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {field} must be a table")
    name = _text(data.get("name"), f"{field}.name", where)
    if not _STEP.fullmatch(name):
        raise ValueError(f"{where}: {field}.name {name!r} must be letters, digits, dots and underscores")
    way = data.get("judged_by")
    if way not in JUDGED_BY:
        raise ValueError(f"{where}: {field}.judged_by {way!r} is not one of {', '.join(JUDGED_BY)}")
    parts = {part: _tensor(data.get(part), f"{field}.{part}", where) for part in _PARTS[way]}
    tensor = _tensor(data, field, where, digest=False)
    for part, given in parts.items():
        if part != "scales" and given.shape != tensor.shape:
            raise ValueError(
                f"{where}: {field}.{part}.shape {list(given.shape)} is not the output's {list(tensor.shape)}"
            )
    if way == "product":
        _check_product(tensor, parts, field, where)
    if way == "dot" and (tensor.dtype != "float32" or {p.dtype for p in parts.values()} != {"float64"}):
        raise ValueError(f"{where}: {field} is judged by dot, so it is float32, exact, bound and bound_any are float64")
    if way == "bits" and parts["expected"].dtype != tensor.dtype:
        raise ValueError(
            f"{where}: {field}.expected.dtype {parts['expected'].dtype} is not the output's {tensor.dtype}"
        )
    return Output(name, tensor, way, parts)


def _check_product(tensor: Tensor, parts: Mapping[str, Tensor], field: str, where: Path) -> None:
    values, scales, product = parts["values"], parts["scales"], parts["product"]
    for name, given, allowed in (
        ("dtype", tensor, ("float32", "float16")),
        ("values.dtype", values, ("int8",)),
        ("scales.dtype", scales, ("float32", "float16")),
        ("product.dtype", product, ("float64",)),
    ):
        if given.dtype not in allowed:
            raise ValueError(f"{where}: {field}.{name} {given.dtype!r} is not one of {', '.join(allowed)}")
    columns, groups = (t.shape[-1] if t.shape else 0 for t in (values, scales))
    if values.shape[:-1] != scales.shape[:-1] or not groups or columns % groups:
        raise ValueError(
            f"{where}: {field}.scales.shape {list(scales.shape)} does not group values {list(values.shape)}"
        )


def _tensor(data: Any, field: str, where: Path, *, digest: bool = True) -> Tensor:
    if not isinstance(data, dict):
        raise ValueError(f"{where}: {field} must be a table with file, dtype and shape")
    dtype, shape = data.get("dtype"), data.get("shape")
    if dtype not in DTYPES:
        raise ValueError(f"{where}: {field}.dtype {dtype!r} is not one of {', '.join(DTYPES)}")
    right = isinstance(shape, list) and len(shape) <= _MAX_RANK
    if not right or not all(type(n) is int and 0 <= n <= _MAX_BYTES for n in shape or ()):
        raise ValueError(f"{where}: {field}.shape {shape!r} must be a list of at most {_MAX_RANK} sizes")
    sha256 = _text(data.get("sha256"), f"{field}.sha256", where) if digest else ""
    tensor = Tensor(_file(data.get("file"), f"{field}.file", where), dtype, tuple(shape or ()), sha256)
    if tensor.size > _MAX_BYTES:
        raise ValueError(f"{where}: {field}.shape {shape!r} takes {tensor.size} bytes; at most {_MAX_BYTES}")
    return tensor


def _file(name: Any, field: str, where: Path) -> str:
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ValueError(
            f"{where}: {field} {name!r} must be a plain file name, such as input_0.bin, in the kit's directory"
        )
    return name


def _text(value: Any, field: str, where: Path) -> str:
    if not isinstance(value, str) or len(value) > 1000 or not value.isprintable():  # noqa: PLR2004 - a line of text
        raise ValueError(f"{where}: {field} must be a line of text")
    return value


def _table(data: Mapping[str, Any], field: str, where: Path) -> Mapping[str, Any]:
    found = data.get(field)
    if not isinstance(found, dict):
        raise ValueError(f"{where}: {field} must be a table")
    return found


def _list(data: Mapping[str, Any], field: str, where: Path) -> list[Any]:
    found = data.get(field)
    if not isinstance(found, list) or len(found) > _MAX_TENSORS:
        raise ValueError(f"{where}: {field} must be a list of at most {_MAX_TENSORS} tensors")
    return found
