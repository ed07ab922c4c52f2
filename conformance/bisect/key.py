"""What a verdict that is kept depends on, beside what was asked: it is kept under the hash of all of that.

Not in it, because nothing says that they were read: files that a command opens by itself, what a subject imports
from PYTHONPATH, and environment variables of other names. ``bisect ... --fresh`` is for when those have changed.

Source: docs/bisecting.md, "Kept verdicts".
"""

import functools
import hashlib
import importlib.metadata
import json
import os
import re
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from conformance.runs import run
from conformance.sources.tree import cache_directory

_ROOT = Path(__file__).parent.parent.parent
#: Stages whose answer a Vulkan driver and a shader compiler take part in.
_ON_DEVICE = ("PREPACK", "KERNEL", "RUN")
#: Packages whose very files count: another wheel can carry the same version.
_WHEELS = ("torch", "torchao", "executorch")
_WORD_ENDS = re.compile(r"[\s;|&<>()`\"'=:,]+")
#: Where the Vulkan loader looks for drivers, beside what these variables name.
_DRIVER_VARIABLES = ("VK_DRIVER_FILES", "VK_ADD_DRIVER_FILES", "VK_ICD_FILENAMES")
_DATA = "/usr/local/share:/usr/share:/usr/local/etc:/etc"


def verdict_file(asked: Sequence[object]) -> Path:
    """Return where the verdict on ``asked`` (data that JSON can carry) is kept."""
    return cache_directory() / "verdicts" / f"{hashlib.sha256(json.dumps(asked).encode()).hexdigest()}.json"


def kept(file: Path, since: float) -> dict[str, str]:
    """Return the verdict in ``file``; {} where there is none, or an older one than ``since``, which is removed."""
    if not file.is_file():
        return {}
    if file.stat().st_mtime < since:
        file.unlink(missing_ok=True)
        return {}
    found: dict[str, str] = json.loads(file.read_text(encoding="utf-8"))
    return found


def surroundings(stage: str, *, packages: Path | None = None, python_path: str = "") -> list[object]:
    """Return what a verdict on a case of ``stage`` ("": of a command) depends on, whatever it is asked of.

    Args:
        stage: of the case.
        packages: the site-packages that is judged; None for this process's own.
        python_path: the PYTHONPATH that the subject or command gets.
    """
    found: list[object] = [suite_hash(_ROOT), run.versions(), wheels(packages), settings(), python_path]
    return [*found, device_files()] if stage in {"", *_ON_DEVICE} else found


@functools.cache
def suite_hash(root: Path) -> str:
    """Return the hash of the suite's own code and shaders: a verdict of another suite is another verdict."""
    code = (p for top in ("conformance", "reference", "impl") for p in (root / top).rglob("*.py"))
    digest = hashlib.sha256()
    for path in sorted([*code, *(root / "vulkan" / "glsl").glob("*"), *(root / "conformance" / "data").glob("*")]):
        if path.is_file():
            digest.update(f"{path.relative_to(root)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def wheels(packages: Path | None = None) -> list[str]:
    """Return a hash of the list of files, with their hashes, of each installed package under judgement."""
    path = sys.path if packages is None else [str(packages)]
    found = []
    for name in _WHEELS:
        installed = list(importlib.metadata.distributions(name=name, path=path))
        record = (installed[0].read_text("RECORD") or "") if installed else ""
        found.append(f"{name} {hashlib.sha256(record.encode()).hexdigest()}")
    return found


def settings() -> dict[str, str]:
    """Return the environment variables by which the suite, its player or the Vulkan loader are steered."""
    named = {k: v for k, v in os.environ.items() if k.startswith(("Q4GSW_", "VK_")) and k != "Q4GSW_CACHE"}
    return dict(sorted(named.items()))


def device_files() -> list[list[object]]:
    """Return path, size and time of the Vulkan drivers' files and of the shader compiler."""
    paths: list[Path] = []
    for manifest in sorted(_driver_manifests()):
        paths.append(manifest)
        try:
            library = str(json.loads(manifest.read_text(encoding="utf-8"))["ICD"]["library_path"])
        except (OSError, ValueError, KeyError, TypeError):
            continue  # the loader passes over it as well
        if "/" in library:
            paths.append(manifest.parent / library)
    if compiler := shutil.which("glslc"):
        paths.append(Path(compiler))
    return [_stamp(path) for path in paths]


def _driver_manifests() -> Iterator[Path]:
    for name in _DRIVER_VARIABLES:
        for word in filter(None, os.environ.get(name, "").split(os.pathsep)):
            yield from [Path(word)] if word.endswith(".json") else Path(word).glob("*.json")
    bases = [os.environ.get("XDG_DATA_DIRS", ""), os.environ.get("XDG_DATA_HOME", ""), _DATA]
    for base in [str(Path.home() / ".local/share"), *filter(None, os.pathsep.join(bases).split(os.pathsep))]:
        yield from Path(base, "vulkan", "icd.d").glob("*.json")


def _stamp(path: Path) -> list[object]:
    try:
        found = path.stat()
    except OSError:
        return [str(path), "missing"]
    return [str(path), found.st_size, found.st_mtime_ns]


def named_files(words: Sequence[str], files: Path) -> Mapping[str, str]:
    """Return the SHA-256 of every file outside ``files``, where the command runs, that its words name.

    A word, or a part of it as a shell would take it apart, names a file by an absolute path, by one that leads out of
    ``files``, or as a program on the PATH.
    """
    found: dict[str, str] = {}
    for part in dict.fromkeys(p for word in words for p in (word, *_WORD_ENDS.split(word)) if p):
        plain = os.path.expandvars(os.path.expanduser(part))  # noqa: PTH111 - as a shell does: "~" may not be known
        path = Path(os.path.normpath(files / plain))
        if "/" not in plain:
            on_path = shutil.which(plain)
            path = Path(on_path) if on_path else path
        if "\0" in plain or path.is_relative_to(files):
            continue
        try:
            if path.is_file():
                with path.open("rb") as stream:
                    found[part] = hashlib.file_digest(stream, "sha256").hexdigest()
        except OSError:  # a text too long to be a name, or a file that is not ours to read
            continue
    return found
