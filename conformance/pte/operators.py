"""The operators that ExecuTorch's Vulkan runtime registers, as data with the revision they were read from.

A delegate that holds any other operator does not load on a device. The list is
``conformance/pte/vulkan_operators.toml``; ``q4gsw operators --executorch-src DIR`` reads it
from a checkout or clone of pytorch/executorch.

Source: docs/contract.md 6.2.
"""

import re
import tomllib
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import tomli_w

from conformance.sources.git import GitProblem, commit_of, files, read_blobs, text

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
    commit = commit_of(source, revision)
    try:
        version = text(source, "show", f"{commit}:version.txt")
    except GitProblem as error:
        raise ValueError(f"{source}: not a clone of pytorch/executorch ({error})") from error
    blobs = {path: blob for path, blob in files(source, commit).items() if path.startswith(f"{RUNTIME}/")}
    sources = [b for p, b in blobs.items() if p.endswith((".cpp", ".h")) and not p.endswith("OperatorRegistry.h")]
    names = {name for data in read_blobs(source, sources) for name in _REGISTERED.findall(data.decode())}
    if not names:
        raise ValueError(f"{source}: no operator is registered below {RUNTIME} at {revision}")
    return OperatorList(version, commit, tuple(sorted(names)))


def save(operators: OperatorList, path: Path = DATA) -> None:
    """Write the list where ``load`` finds it."""
    head = (
        "# Operators that ExecuTorch's Vulkan runtime registers. Written by\n"
        "# `q4gsw operators --executorch-src DIR [--revision REV]`; do not edit.\n"
    )
    body = tomli_w.dumps(
        {"version": operators.version, "revision": operators.revision, "operators": list(operators.operators)}
    )
    path.write_text(head + body, encoding="utf-8")
