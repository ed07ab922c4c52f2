"""What of a saved program (``.pt2``) could run code while torch.export.load reads it, checked before it is read.

torch.export.load calls pickle for tensor subclasses, evaluates symbolic expressions as Python, resolves
operator names by attribute access and loads compiled packages; torch.fx writes names of parameters, arguments and
inputs into Python source, which it runs. This module refuses everything but data:
``check_pt2`` looks at the archive, ``check_model`` at a model's JSON; the pickles are checked by the caller
with torch's own weights_only reader (``conformance.explain.explain``).

>>> check_model({"expr_str": "FloorDiv(s60 + 7, 8)"}, "m")
>>> check_model({"expr_str": "open('x')"}, "m")
Traceback (most recent call last):
...
conformance.harness.errors.BadFile: m: the symbolic expression "open('x')" is more than arithmetic on sizes

Source: docs/contract.md section 6.
"""

import re
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from conformance.harness.errors import BadFile

#: Folders of the archive that hold data; every other one (compiled packages, custom objects) is refused.
_MEMBER = re.compile(
    r"(archive_format|archive_version|byteorder|\.data/(version|serialization_id)|models/[\w.\-]+\.json"
    r"|data/weights/(weight_\d+|[\w.\-]+\.json)|data/constants/(tensor_\d+|[\w.\-]+\.json)"
    r"|data/sample_inputs/[\w.\-]+\.pt|extra/[\w.\-]+)"
)
#: A registered operator, or arithmetic of Python's: no other attribute of torch, and nothing that calls or gets others.
_OPERATOR = re.compile(
    r"torch\.ops\.(?!_)\w+(\.(?!__)\w+|\.__(and|or|xor|lshift|rshift|iand|ior|ixor)__){1,2}|torch\._?sym_\w+"
    r"|_operator\.(?!call|attrgetter|itemgetter|methodcaller|__)\w+|math\.(?!__)\w+"
)
#: Numbers, symbols, names with a capital (sympy's and torch's functions), quoted names, keywords, arithmetic.
_EXPRESSION = re.compile(
    r"(?>\s|[A-Z]\w*|[a-z]{1,4}\d+|(int_)?oo\b|[a-z]+(?==)|\d+(\.\d+)?(e[+-]?\d+)?|'[A-Za-z_]\w*'|[-+*/%(),=<>!&|~])*+"
)
#: What a name may hold: in the source that torch.fx writes it stands bare, or between double quotes.
_BARE = {"name", "forward_arg_names"}
_NAME, _TEXT = re.compile(r"\w*"), re.compile(r"[\w.:/+\- ]*")
#: Texts that no source holds but as Python's own repr, or that are checked otherwise.
_OTHER_TEXTS = {"metadata", "guards_code", "as_string", "as_strings", "expr_str", "target", "in_spec", "out_spec"}
_LONGEST_EXPRESSION = 4096
_LARGEST = 64 << 30


def check_pt2(path: Path) -> None:
    """Check that ``path`` is a saved program whose archive holds nothing but data.

    Raises:
        BadFile: it does not exist, is no ZIP, is truncated, unpacks to far more than its size, comes from another
            torch version, or has a member that is not data.
    """
    if not path.is_file():
        raise BadFile(f"{path}: no such file")
    try:
        with zipfile.ZipFile(path) as archive:
            members = archive.infolist()
    except (OSError, zipfile.BadZipFile, ValueError, EOFError, NotImplementedError) as error:
        raise BadFile(f"{path}: not a .pt2, or truncated ({error})") from error
    size = path.stat().st_size
    if sum(m.file_size for m in members) > min(size + 4096, _LARGEST) or any(m.compress_type for m in members):
        raise BadFile(
            f"{path}: the archive unpacks to more than its {size} bytes; torch.export.save stores uncompressed"
        )
    names = [m.filename.partition("/")[2] for m in members]
    if len(set(names)) != len(names):
        raise BadFile(f"{path}: the archive has two members of one name")
    if "archive_version" not in names or not any(n.startswith("models/") for n in names):
        raise BadFile(f"{path}: not a program of torch.export.save in torch 2.13's format")
    check_members(names, str(path))


def check_members(names: Sequence[str], path: str) -> None:
    """Check that every member of an archive, named below its root folder, is plain data of an exported program."""
    for name in names:
        if not _MEMBER.fullmatch(name):
            raise BadFile(f"{path}: archive member {name!r} is not plain data of an exported program")


def check_model(model: Any, name: str) -> None:
    """Check JSON of a saved program: names, operators, symbolic expressions, and specifications of trees."""
    waiting: list[tuple[Any, re.Pattern[str] | None]] = [(model, _TEXT)]
    while waiting:
        item, names = waiting.pop()
        if isinstance(item, list):
            waiting += ((one, names) for one in item)
        elif isinstance(item, dict):
            for key, value in item.items():
                inside = None if key in _OTHER_TEXTS else _NAME if key in _BARE else _TEXT
                waiting += (key, names and _TEXT), (value, names and inside)
            target, text = item.get("target"), item.get("expr_str")
            if isinstance(target, str) and "inputs" in item and not _OPERATOR.fullmatch(target):
                raise BadFile(f"{name}: {target[:80]!r} is not an operator")
            if isinstance(handed := item.get("as_operator", ""), str) and handed and not _OPERATOR.fullmatch(handed):
                raise BadFile(f"{name}: {handed[:80]!r} is not an operator")
            if text is not None and not (
                isinstance(text, str) and len(text) < _LONGEST_EXPRESSION and _EXPRESSION.fullmatch(text)
            ):
                raise BadFile(f"{name}: the symbolic expression {str(text)[:80]!r} is more than arithmetic on sizes")
        elif isinstance(item, str) and ("__enum__" in item or "__reduce__" in item):
            raise BadFile(f"{name}: a tree specification that imports a module")
        elif isinstance(item, str) and names and not names.fullmatch(item):
            raise BadFile(f"{name}: the name {item[:80]!r} holds more than letters, digits and _")
