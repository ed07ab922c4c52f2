"""Bisection over released versions: environments that differ from this one in executorch or torchao only.

An environment is a virtual one whose packages are links to this environment's, but for the package under search and
what that release itself asks to be changed (executorch's torchao). So it takes megabytes and seconds. A version
whose companions cannot be satisfied beside this environment's torch is listed as such and skipped.

Source: docs/bisecting.md.
"""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.requirements import Requirement
from packaging.version import InvalidVersion, Version

from conformance.bisect_commit import SearchEnded
from conformance.bisect_search import BAD, GOOD, SKIP, STOP, state_of, write_whole
from conformance.case import Case
from conformance.judge import judge
from conformance.source_tree import cache_directory
from conformance.toml_io import case_from_toml, case_to_toml
from conformance.worker import Worker

PACKAGES = ("executorch", "torchao")
_ROOT = Path(__file__).parent.parent
_MINUTES = 1800


class Unsatisfiable(ValueError):  # noqa: N818 - it is the release that cannot be had
    """The version cannot be installed beside what is here; one line with the reason."""


@dataclass(frozen=True)
class Asked:
    """What one version was found to be."""

    version: str
    state: str
    signature: str
    reason: str

    def line(self) -> str:
        """Return it in one line."""
        return " ".join(f"{self.version:8} {self.state:4}  {self.signature}  {self.reason}".split())


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
    return sorted(found, key=_order)


def _order(version: str) -> Version:
    try:
        return Version(version)
    except InvalidVersion as error:
        raise ValueError(f"version {version!r} is not one") from error


def environment(package: str, version: str, wheels: Path | None) -> Path:
    """Return the Python of an environment with that version, made unless it is in the cache.

    Raises:
        Unsatisfiable: pip finds no such release, or its companions contradict what is here.
    """
    folder = cache_directory() / "versions" / f"{package}-{version}"
    python = folder / "bin" / "python"
    if (folder / "complete").is_file():
        return python
    shutil.rmtree(folder, ignore_errors=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    target = Path(sysconfig.get_path("purelib", vars={"base": str(folder), "platbase": str(folder)}))
    for entry in Path(sysconfig.get_path("purelib")).iterdir():
        if not re.match(rf"{package}([-.]|$)", entry.name) and entry.name not in {"__pycache__", "pip"}:
            (target / entry.name).symlink_to(entry)
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
    (folder / "complete").touch()
    return python


def _install(target: Path, wanted: str, wheels: Path | None) -> None:
    offline = ["--no-index", "--find-links", str(wheels)] if wheels else []
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--only-binary=:all:", *offline]
    done = subprocess.run(
        [*command, "--target", str(target), wanted], capture_output=True, text=True, check=False, timeout=_MINUTES
    )
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


def ask(case: Case, package: str, version: str, wheels: Path | None, sought: str, seconds: float) -> Asked:
    """Judge ``case`` on subject "executorch" in the environment of ``version``."""
    try:
        python = environment(package, version, wheels)
    except Unsatisfiable as error:
        return Asked(version, SKIP, "", str(error))
    run = [str(python), "-c", "import torchao, executorch.exir"]
    tried = subprocess.run(run, capture_output=True, text=True, check=False, cwd=_ROOT)
    if tried.returncode:
        said = tried.stderr.strip().rpartition("\n")[2][-200:]
        return Asked(version, SKIP, "", f"does not import beside this environment: {said}")
    done = subprocess.run(
        [str(python), "-m", "conformance.bisect_version", str(seconds)],
        input=case_to_toml(case),
        capture_output=True,
        text=True,
        check=False,
        cwd=_ROOT,
    )
    if done.returncode:
        said = done.stderr.strip().rpartition("\n")[2]
        return Asked(version, STOP, "", said)
    found = json.loads(done.stdout.splitlines()[-1])
    reason = found["reason"] if found["outcome"] != "PASS" else ""
    return Asked(version, state_of(found["outcome"], found["signature"], sought), found["signature"], reason)


def search(versions: Sequence[str], answer: dict[str, Asked]) -> str | None:
    """Return the version to ask next between the last good and the first bad one known, or None at the end."""
    good = max((i for i, v in enumerate(versions) if v in answer and answer[v].state == GOOD), default=0)
    bad = min((i for i, v in enumerate(versions) if v in answer and answer[v].state == BAD and i > good), default=0)
    open_ones = [i for i in range(good + 1, bad) if versions[i] not in answer]
    return versions[open_ones[len(open_ones) // 2]] if open_ones else None


def show(
    case: Case, package: str, ends: tuple[str, str], wheels: Path | None, sought: str = "", seconds: float = 60.0
) -> int:
    """Print the first bad version; 1 where versions that cannot be tested stand between the candidates.

    Raises:
        SearchEnded: an end is not what it is said to be, or the harness is broken.
        ValueError: no such version.
    """
    everything = releases(package, wheels)
    good, bad = ends
    for version in ends:
        if version not in everything:
            raise ValueError(f"{package} has no version {version!r}; there are {', '.join(everything)}")
    low, high = everything.index(good), everything.index(bad)
    path = everything[low : high + 1] if low < high else everything[high : low + 1][::-1]
    answers: dict[str, Asked] = {}

    def put(version: str) -> Asked:
        nonlocal sought
        started = time.monotonic()
        found = answers[version] = ask(case, package, version, wheels, sought, seconds)
        print(f"  {package} {found.line()}  ({time.monotonic() - started:.1f} s)", flush=True)
        if found.state == STOP:
            raise SearchEnded(f"{package} {version}: {found.signature} {found.reason}")
        if found.state == BAD:
            sought = sought or found.signature
        return found

    if put(bad).state != BAD:
        raise SearchEnded(f"{package} {bad} (the bad end) does not fail as sought: {answers[bad].line()}; give another")
    if put(good).state != GOOD:
        raise SearchEnded(f"{package} {good} (the good end) is not good: {answers[good].line()}; give another")
    while (following := search(path, answers)) is not None:
        put(following)
    _tell(case, package, path, answers)
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    return 0 if path[last + 1] in answers and answers[path[last + 1]].state == BAD else 1


def _tell(case: Case, package: str, path: Sequence[str], answers: dict[str, Asked]) -> None:
    last = max(i for i, v in enumerate(path) if v in answers and answers[v].state == GOOD)
    first = min(i for i, v in enumerate(path) if v in answers and answers[v].state == BAD and i > last)
    untested = [answers[v] for v in path[last + 1 : first]]
    for one in untested:
        print(f"  cannot be tested: {one.line()}")
    name = path[first] if not untested else f"one of {', '.join(path[last + 1 : first + 1])}"
    print(f"first bad: {package} {name} ({answers[path[first]].signature}); {path[last]} is right")
    print(f"  what:      {answers[path[first]].reason}")
    file = cache_directory() / "versions" / f"{case.id.replace('/', '__')}.case.toml"
    write_whole(file, case_to_toml(case))
    for what, version in (("good", path[last]), ("bad", path[first])):
        python = cache_directory() / "versions" / f"{package}-{version}" / "bin" / "python"
        print(
            f"  {what} by hand: {shlex.quote(str(python))} -m conformance.bisect_version 60 < {shlex.quote(str(file))}"
        )


def main() -> int:
    """Judge the case on stdin in this environment and print the verdict as JSON."""
    case = case_from_toml(sys.stdin.read())
    with Worker("executorch", float(sys.argv[1])) as worker:
        verdict = judge(case, worker.run(case), "executorch")
    print(json.dumps({"outcome": verdict.outcome, "signature": verdict.signature, "reason": verdict.reason}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
