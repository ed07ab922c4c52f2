"""``[tool.q4gsw]`` in the pyproject.toml of the repository that a command runs in: defaults of its options.

That repository is trusted, as pytest trusts it: a subject is code (docs/security.md).
"""

import functools
import tomllib
from dataclasses import dataclass
from pathlib import Path

from conformance.files import read_text
from conformance.serialize import structure


@dataclass(frozen=True)
class Config:
    """The table; "" where it says nothing. Paths are relative to the file; ``report`` keeps the newest reports."""

    subject: str = ""
    level: str = ""
    device: str = ""
    expectations: str = ""
    report: str = ""


@functools.cache
def config(folder: Path) -> dict[str, str]:
    """Return what the nearest pyproject.toml with the table, in ``folder`` or above it, says, by option.

    Raises:
        ValueError: that file is no TOML, or its table holds another name or type.
    """
    for home in (folder, *folder.parents):
        file = home / "pyproject.toml"
        if not file.is_file():
            continue
        try:
            table = tomllib.loads(read_text(file)).get("tool", {}).get("q4gsw")
        except (tomllib.TOMLDecodeError, AttributeError) as error:
            raise ValueError(f"{file}: {error}") from error
        if table is not None:
            said = {
                name: value for name, value in vars(structure(Config, table, str(file), "tool.q4gsw")).items() if value
            }
            paths = [name for name, value in said.items() if name in {"expectations", "report"} or ".py:" in value]
            return said | {name: str(home / said[name]) for name in paths}
    return {}
