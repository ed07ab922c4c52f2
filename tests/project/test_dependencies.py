"""The dependency rules of docs/architecture.md: who may import whom."""

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
HEAVY = {"torch", "torchao", "executorch", "impl", "vulkan"}
HEAVY_PACKAGES = {"program", "observe", "pte", "audit", "subjects", "kits", "targets", "explain"}
STANDARD = set(sys.stdlib_module_names)


def imports(path: Path) -> Iterator[str]:
    """Top-level names that a module imports anywhere in it, also inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            yield node.module.split(".")[0]


def may_be_heavy(path: Path) -> bool:
    """Whether a module of conformance/ is in one of the packages that may import torch and the implementations."""
    return bool(HEAVY_PACKAGES & set(path.relative_to(ROOT).parts[1:-1]))


def forbidden(path: Path) -> set[str]:
    """The names that ``path`` imports although it must not."""
    names = set(imports(path)) - STANDARD
    top = path.relative_to(ROOT).parts[0]
    if top == "reference":
        return names - {"numpy", "reference"}
    if top == "impl":
        return names & {"reference", "conformance", "tests"}
    if top == "conformance":
        return names & ({"tests"} if may_be_heavy(path) else {"tests"} | HEAVY)
    return names & {"tests"}


MODULES = sorted(p for top in ("reference", "impl", "conformance", "bench") for p in (ROOT / top).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_follow_the_rules(path: Path) -> None:
    assert not forbidden(path)


def test_the_rules_can_fail(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: an oracle that imports torch inside a function, a player that asks the oracle."""
    monkeypatch.setitem(forbidden.__globals__, "ROOT", tmp_path)
    for top, text, found in (
        ("reference", "def f():\n    import torch\n", {"torch"}),
        ("impl", "from reference.arithmetic.accept import HOST\n", {"reference"}),
        ("conformance", "import impl.packer\n", {"impl"}),
    ):
        path = tmp_path / top / "module.py"
        path.parent.mkdir()
        path.write_text(text)
        assert forbidden(path) == found


def test_vulkan_holds_shaders_only() -> None:
    assert not list((ROOT / "vulkan").rglob("*.py"))
