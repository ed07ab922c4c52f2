"""The operators that ExecuTorch's Vulkan runtime registers, as data with the revision they were read from.

A delegate that holds any other operator does not load on a device. The list is
``conformance/pte/vulkan_operators.toml``; ``python -m conformance operators --executorch-src DIR`` reads it
anew from a checkout or clone of pytorch/executorch.

Source: docs/contract.md 6.2.
"""

import re
import subprocess
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomli_w

DATA = Path(__file__).parent / "vulkan_operators.toml"
RUNTIME = "backends/vulkan/runtime"
_REGISTERED = re.compile(r"\b(?:VK_)?REGISTER_OP\s*\(\s*([A-Za-z_][\w.]*)\s*,")


@dataclass(frozen=True)
class OperatorList:
    """Operator names, with the version, revision and folder of pytorch/executorch that they come from."""

    version: str
    revision: str
    operators: tuple[str, ...]


@cache
def load(path: Path = DATA) -> OperatorList:
    """Return the shipped list."""
    document = tomllib.loads(path.read_text(encoding="utf-8"))
    return OperatorList(document["version"], document["revision"], tuple(document["operators"]))


@cache
def registered_operators() -> frozenset[str]:
    """Return the names, such as "et_vk.embedding_q4gsw.default"."""
    return frozenset(load().operators)


def read_source(source: Path, revision: str = "HEAD") -> OperatorList:
    """Read the list from a git checkout or bare clone of pytorch/executorch at ``revision``.

    Raises:
        ValueError: not such a repository, or no operator is registered there.
    """
    commit = _git(source, "rev-parse", "--verify", f"{revision}^{{commit}}").strip()
    version = _git(source, "show", f"{commit}:version.txt").strip()
    files = _git(source, "ls-tree", "-r", "--name-only", commit, RUNTIME).splitlines()
    found: set[str] = set()
    for path in files:
        if path.endswith((".cpp", ".h")) and not path.endswith("OperatorRegistry.h"):
            found.update(_REGISTERED.findall(_git(source, "show", f"{commit}:{path}")))
    if not found:
        raise ValueError(f"{source}: no operator is registered below {RUNTIME} at {revision}")
    return OperatorList(version, commit, tuple(sorted(found)))


def save(operators: OperatorList, path: Path = DATA) -> None:
    """Write the list where ``load`` finds it."""
    head = (
        "# Operators that ExecuTorch's Vulkan runtime registers. Written by\n"
        "# `python -m conformance operators --executorch-src DIR [--revision REV]`; do not edit.\n"
    )
    body = tomli_w.dumps(
        {"version": operators.version, "revision": operators.revision, "operators": list(operators.operators)}
    )
    path.write_text(head + body, encoding="utf-8")


def _git(source: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(source), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError) as error:
        detail = getattr(error, "stderr", "") or str(error)
        raise ValueError(
            f"{source}: not a clone of pytorch/executorch with that revision ({detail.strip()})"
        ) from error
    return done.stdout
