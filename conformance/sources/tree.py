"""An ExecuTorch source tree to judge without building it: a working tree, or a revision read from git.

What counts of it are the Vulkan backend's Python, the Python it stands on (exir, backends/transforms), the
schemas, the shader generator and the embedding's shaders. A copy of those, under the hash of their contents,
is what is imported; the tree itself is only read.

Source: docs/executorch-src.md.
"""

import hashlib
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from conformance.files import cache_directory
from conformance.sources.git import commit_of, files, is_repository, read_blobs

#: Without this file nothing can be laid over the wheel.
NEEDED = "backends/vulkan/__init__.py"
#: Packages that are taken from the tree as a whole, where it has them.
ROOTS = ("backends/vulkan", "backends/transforms", "exir")
GENERATOR = "backends/vulkan/runtime/gen_vulkan_spv.py"
GLSL = "backends/vulkan/runtime/graph/ops/glsl"
#: The host code whose bindings a tree's shaders are dispatched with.
HOST = "backends/vulkan/runtime/graph/ops/impl/EmbeddingQ4gsw.cpp"
_COUNTS = re.compile(
    r"(backends/vulkan|backends/transforms|exir)/(?!(.*/)?(tests?|third-party|tools|runtime)/).*\.(py|pyi|fbs|yaml|json)"
    rf"|{GENERATOR}"
    r"|schema/[a-z_]+\.fbs"
    rf"|{HOST}"
    rf"|{GLSL}/((embedding_q4gsw|pack_q4_linear_weight)\.(glsl|yaml)|[a-z0-9_]+\.glslh)"
)
_KEPT = 24


@dataclass(frozen=True)
class SourceTree:
    """``path`` is a working tree, or with a ``commit`` a git repository."""

    path: Path
    commit: str = ""

    def __str__(self) -> str:
        """Return the argument that names this tree, path absolute, revision whole."""
        return f"{self.path}@{self.commit}" if self.commit else str(self.path)


def source_tree(argument: str) -> SourceTree:
    """Return the tree that ``PATH`` or ``PATH@REVISION`` means.

    Raises:
        ValueError: no such directory, revision, or file of the Vulkan backend in it; says what to give.
    """
    path, at, revision = argument.rpartition("@")
    if not at or Path(argument).is_dir():
        path, revision = argument, ""
    place = Path(path).expanduser().resolve()
    if not argument or not place.is_dir():
        raise ValueError(f"executorch-src: no directory {path!r}; give an ExecuTorch tree, PATH or PATH@REVISION")
    tree = SourceTree(place, commit_of(place, revision) if revision else "")
    if not revision and not (place / NEEDED).is_file():
        hint = "; it is a git directory, so name a revision: PATH@REVISION" if is_repository(place) else ""
        raise ValueError(f"executorch-src: {place}: {NEEDED} is missing: this is no ExecuTorch working tree{hint}")
    return tree


def listing(tree: SourceTree) -> dict[str, str]:
    """Return the git blob name of every file that counts, by path.

    Raises:
        ValueError: the tree has no Vulkan backend; names the file that is missing.
    """
    if tree.commit:
        blobs = {path: blob for path, blob in files(tree.path, tree.commit).items() if _COUNTS.fullmatch(path)}
    else:
        blobs = {path: _blob((tree.path / path).read_bytes()) for path in _working_files(tree.path)}
    if NEEDED not in blobs:
        raise ValueError(f"{tree}: {NEEDED} is missing: nothing to lay over the wheel")
    return blobs


def tree_hash(blobs: Mapping[str, str]) -> str:
    """Return the hash of what ``listing`` gave: equal for equal contents, wherever they were read."""
    return hashlib.sha256("".join(f"{p}\0{b}\n" for p, b in sorted(blobs.items())).encode()).hexdigest()[:32]


def copy_of(tree: SourceTree) -> Path:
    """Return a directory with a copy of what counts of ``tree``, made unless it is in the cache."""
    blobs = listing(tree)
    folder = cache_directory() / "trees"
    copy = folder / tree_hash(blobs)
    if copy.is_dir():
        os.utime(copy)
        return copy
    folder.mkdir(parents=True, exist_ok=True)
    copies = sorted(folder.iterdir(), key=lambda p: p.stat().st_mtime, reverse=True)
    for old in copies[_KEPT:]:  # those not used for longest, and what a killed process left half written
        shutil.rmtree(old, ignore_errors=True)
    scratch = Path(tempfile.mkdtemp(prefix=".new-", dir=folder))
    try:
        _copy(tree, blobs, scratch)
        scratch.rename(copy)
    except OSError:
        if not copy.is_dir():  # else another process was faster
            raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return copy


def _copy(tree: SourceTree, blobs: Mapping[str, str], folder: Path) -> None:
    paths = sorted(blobs)
    contents = read_blobs(tree.path, (blobs[p] for p in paths)) if tree.commit else None
    for path in paths:
        data = next(contents) if contents else (tree.path / path).read_bytes()
        if contents is None and _blob(data) != blobs[path]:
            raise ValueError(f"{tree}: {path} was changed while the tree was read; run it again")
        target = folder / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(data)
    for schema in folder.glob("schema/*.fbs"):  # the wheel's build puts them where exir looks for them
        if (folder / "exir/_serialize").is_dir():
            shutil.copy(schema, folder / "exir/_serialize")


def _working_files(top: Path) -> list[str]:
    paths = []
    for root in (*ROOTS, "schema"):
        for folder, _, names in os.walk(top / root):
            relative = Path(folder).relative_to(top).as_posix()
            paths += [p for name in names if _COUNTS.fullmatch(p := f"{relative}/{name}") and (top / p).is_file()]
    return paths


def _blob(data: bytes) -> str:
    """Return the name that git gives a file's contents."""
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
