"""Environments that differ from this one in a released version of executorch or torchao only.

An environment is a virtual one whose packages are links to this environment's, but for the package in question and
what that release itself needs changed (executorch's torchao). So it takes megabytes and seconds. It is kept in the
cache, and replaced when what it was made of has changed.

Source: docs/versions.md.
"""

import fcntl
import importlib.metadata
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path
from subprocess import CompletedProcess

from packaging.requirements import Requirement
from packaging.version import Version

from conformance.files import cache_directory, write_whole

#: The file of an environment that says what it was made of; without it the environment is not whole.
_COMPLETE = "complete"
PACKAGES = ("executorch", "torchao")
#: What a release's own requirements are checked for, of what is here.
_CHECKED = (*PACKAGES, "torch", "numpy")
#: Where the suite is imported from.
ROOT = Path(__file__).parent.parent.parent
_SECONDS = 1800.0


class Unsatisfiable(ValueError):  # noqa: N818 - it is the release that cannot be had
    """The version cannot be installed beside what is here, or not imported; one line with the reason."""


def releases(package: str, wheels: Path | None) -> list[str]:
    """Return the versions there are, oldest first: of the wheels in a directory, or of the package index.

    Raises:
        ValueError: none are found; says where.
    """
    if wheels is not None:
        versions = {m[1] for p in wheels.glob("*.whl") if (m := re.match(rf"{package}-([^-]+)-", p.name))}
    else:
        index = in_environment(Path(sys.executable), ["-m", "pip", "index", "versions", package]).stdout
        listed = re.search(r"^Available versions: (.*)$", index, re.MULTILINE)
        versions = set(listed[1].split(", ")) if listed else set()
    if not versions:
        raise ValueError(f"no version of {package} in {wheels or 'the package index'}; give --wheels DIR, or go online")
    return sorted(versions, key=Version)


def folder_of(package: str, version: str) -> Path:
    """Return where the environment with that version is, or would be."""
    return cache_directory() / "versions" / f"{package}-{version}"


def environment(package: str, version: str, wheels: Path | None) -> Path:
    """Return the Python of an environment with that version, made unless it is in the cache.

    Its last file is ``complete``, which says what it was made of: an environment without it, or one that was made of
    something else, is not used. Two processes that want the same one wait for each other.

    Raises:
        Unsatisfiable: pip finds no such release, or its companions contradict what is here.
    """
    folder = folder_of(package, version)
    complete = folder / _COMPLETE
    made_of = _made_of(package, version, wheels)
    folder.parent.mkdir(parents=True, exist_ok=True)
    with folder.with_name(f".{folder.name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not complete.is_file() or complete.read_text(encoding="utf-8") != made_of:
            shutil.rmtree(folder, ignore_errors=True)
            _make(folder, package, version, wheels)
            write_whole({complete: made_of})
    return folder / "bin" / "python"


def importing(python: Path) -> None:
    """Raise Unsatisfiable, with Python's last line, unless an environment imports what every subject needs."""
    done = in_environment(python, ["-c", "import torchao, executorch.exir"])
    if done.returncode:
        last = done.stderr.strip().rpartition("\n")[2][-200:]
        raise Unsatisfiable(f"does not import beside this environment: {last}")


def in_environment(python: Path, words: Sequence[str], seconds: float | None = None) -> CompletedProcess[str]:
    """Run ``python WORDS`` where this suite can be imported."""
    command = [str(python), *words]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, timeout=seconds)


def _made_of(package: str, version: str, wheels: Path | None) -> str:
    """What an environment depends on: this environment's Python and packages, and the wheels that count."""
    counts = (f"{package}-{version}-", *(f"{other}-" for other in PACKAGES if other != package))
    used = [p for p in sorted(wheels.glob("*.whl")) if p.name.startswith(counts)] if wheels else []
    files = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in used]
    return json.dumps({"python": [sys.prefix, sys.version], "packages": _linked(package), "wheels": files}, indent=1)


def _linked(package: str) -> list[str]:
    """The names in this environment's site-packages that an environment for ``package`` links to."""
    names = sorted(entry.name for entry in Path(sysconfig.get_path("purelib")).iterdir())
    return [n for n in names if not re.match(rf"{package}([-.]|$)", n) and n not in {"__pycache__", "pip"}]


def _make(folder: Path, package: str, version: str, wheels: Path | None) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for name in _linked(package):
        (target / name).symlink_to(Path(sysconfig.get_path("purelib")) / name)
    _install(target, f"{package}=={version}", wheels)
    own = _installed(target, package)
    for need in map(Requirement, (own.requires if own else None) or ()):
        have = _installed(target, need.name) if need.name in _CHECKED else None
        applies = need.marker is None or need.marker.evaluate({"extra": ""})
        if have is None or not applies or need.specifier.contains(have.version, prereleases=True):
            continue
        if need.name not in PACKAGES:
            raise Unsatisfiable(f"{package} {version} needs {need}, and {need.name} {have.version} is here")
        for entry in (target / need.name, *target.glob(f"{need.name}[-.]*")):
            entry.unlink(missing_ok=True)
        _install(target, str(need), wheels)


def _installed(target: Path, package: str) -> importlib.metadata.Distribution | None:
    return next(iter(importlib.metadata.distributions(name=package, path=[str(target)])), None)


def _install(target: Path, requirement: str, wheels: Path | None) -> None:
    offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
    words = ["-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *offline]
    try:
        done = in_environment(Path(sys.executable), [*words, "--target", str(target), requirement], _SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Unsatisfiable(f"pip did not install {requirement} within {_SECONDS:g} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-200:]]
        raise Unsatisfiable(f"pip cannot install {requirement}: {errors[-1]}")
