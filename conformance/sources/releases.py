"""Environments that differ from this one in a released version of executorch or torchao only.

An environment is a virtual one whose packages are links to this environment's, but for the package that is asked
for and what that release itself asks to be changed (executorch's torchao). So it takes megabytes and seconds. It is
kept in the cache, and made anew when what it was made of has changed.

Source: docs/bisecting.md, "Versions"; docs/versions.md.
"""

import fcntl
import json
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from conformance.files import write_whole
from conformance.sources.tree import cache_directory

#: The file of an environment that says what it was made of; without it the environment is not whole.
COMPLETE = "complete"
PACKAGES = ("executorch", "torchao")
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
        found = {m[1] for p in wheels.glob("*.whl") if (m := re.match(rf"{package}-([^-]+)-", p.name))}
    else:
        command = [sys.executable, "-m", "pip", "index", "versions", package]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        listed = re.search(r"^Available versions: (.*)$", said, re.MULTILINE)
        found = set(listed[1].split(", ")) if listed else set()
    if not found:
        raise ValueError(f"no version of {package} in {wheels or 'the package index'}; give --wheels DIR, or go online")
    return sorted(found, key=order)


def order(version: str) -> Version:
    """Return what versions are compared by.

    Raises:
        ValueError: not a version.
    """
    try:
        return Version(version)
    except InvalidVersion as error:
        raise ValueError(f"version {version!r} is not one") from error


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
    complete = folder / COMPLETE
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
    """Check that what every subject needs can be imported in an environment.

    Raises:
        Unsatisfiable: it cannot; says what Python says.
    """
    run = [str(python), "-c", "import torchao, executorch.exir"]
    tried = subprocess.run(run, capture_output=True, text=True, check=False, cwd=ROOT)
    if tried.returncode:
        said = tried.stderr.strip().rpartition("\n")[2][-200:]
        raise Unsatisfiable(f"does not import beside this environment: {said}")


def in_environment(python: Path, words: Sequence[str]) -> subprocess.CompletedProcess[str]:
    """Run ``python -m WORDS`` of this suite in an environment."""
    return subprocess.run([str(python), "-m", *words], capture_output=True, text=True, check=False, cwd=ROOT)


def _made_of(package: str, version: str, wheels: Path | None) -> str:
    """This environment's Python and packages, and the wheels that count: what an environment stands and falls with."""
    counts = (f"{package}-{version}-", *(f"{other}-" for other in PACKAGES if other != package))
    taken = [p for p in sorted(wheels.glob("*.whl")) if p.name.startswith(counts)] if wheels else []
    files = [[str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns] for p in taken]
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
    for need in _needs(target, package):
        have = _version_in(target, need.name)
        if have and not need.specifier.contains(have, prereleases=True):
            if need.name not in PACKAGES:
                raise Unsatisfiable(f"{package} {version} needs {need}, and {need.name} {have} is here")
            for entry in target.glob(f"{need.name}[-.]*"):
                entry.unlink()
            (target / need.name).unlink(missing_ok=True)
            _install(target, str(need), wheels)


def _install(target: Path, wanted: str, wheels: Path | None) -> None:
    offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *offline]
    into = ["--target", str(target), wanted]
    try:
        done = subprocess.run([*command, *into], capture_output=True, text=True, check=False, timeout=_SECONDS)
    except subprocess.TimeoutExpired as error:
        raise Unsatisfiable(f"pip did not install {wanted} within {_SECONDS:g} s") from error
    if done.returncode:
        errors = [line for line in done.stderr.splitlines() if line.startswith("ERROR")] or [done.stderr.strip()[-200:]]
        raise Unsatisfiable(f"pip cannot install {wanted}: {errors[-1]}")


def _needs(target: Path, package: str) -> list[Requirement]:
    """What the installed release asks of torch, torchao, numpy and executorch on this machine."""
    (metadata,) = target.glob(f"{package}-*.dist-info/METADATA")
    found = [
        Requirement(m) for m in re.findall(r"^Requires-Dist: (.*)$", metadata.read_text(encoding="utf-8"), re.MULTILINE)
    ]
    known = {"torch", "torchao", "numpy", "executorch"}
    return [r for r in found if r.name in known and (r.marker is None or r.marker.evaluate({"extra": ""}))]


def _version_in(target: Path, package: str) -> str:
    found = [p.name.split("-")[1].removesuffix(".dist") for p in target.glob(f"{package}-*.dist-info")]
    return found[0].removesuffix(".dist") if found else ""
