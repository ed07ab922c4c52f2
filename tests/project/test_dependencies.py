"""The contracts of ``[tool.importlinter]`` hold and can fail; and what import-linter does not see."""

import ast
import re
import shutil
import subprocess
import sys
import tomllib
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("reference", "impl", "conformance", "bench")
MOST_MODULES = 12
#: Modules that something loads by a name put together at run time, or that a command names.
LOADED_BY_NAME = re.compile(
    r"conformance\.(__main__|suite\.(test_\w+|conftest)|subjects\.(peers\.)?\w+|proofs\.targets\.\w+)|bench\.\w+_bench"
)

#: Where a line is planted, the line, and the contracts that it breaks.
PLANTED = (
    (
        "reference/arithmetic/accept.py",
        "def f():\n    import torch\n",
        {"The oracles import numpy and themselves", "What judges runs without torch, also indirectly"},
    ),
    ("reference/table/layouts.py", "import cattrs\n", {"The oracles import numpy and themselves"}),
    (
        "reference/table/layouts.py",
        "import reference.program.evaluate\n",
        {"The reference's floors", "No import cycle"},
    ),
    (
        "impl/packer.py",
        "from reference.arithmetic.accept import HOST\n",
        {"The implementation knows neither the oracles nor the suite"},
    ),
    ("impl/matcher.py", "import impl.lowering\n", {"The implementation's floors", "No import cycle"}),
    ("impl/packer.py", "import impl.gpu.info\n", {"The implementation's two halves do not meet"}),
    (
        "conformance/results/verdict.py",
        "import impl.packer\n",
        {
            "Only program, observe, pte, audit, subjects, kits, models, proofs.targets and explain use torch or impl",
            "What judges runs without torch, also indirectly",
        },
    ),
    (
        "conformance/proofs/certificate.py",
        "def f():\n    import torch\n",
        {"Only program, observe, pte, audit, subjects, kits, models, proofs.targets and explain use torch or impl"},
    ),
    (
        "conformance/judging/judge.py",
        "def f():\n    import conformance.pte.file\n",
        {"What judges runs without torch, also indirectly"},
    ),
    ("conformance/case/case.py", "import conformance.judging.judge\n", {"The suite's floors", "No import cycle"}),
    ("conformance/program/tensors.py", "import conformance.program.build\n", {"No import cycle"}),
    ("conformance/attic/__init__.py", '"""A package without a floor."""\n', {"The suite's floors"}),
    ("conformance/files.py", "import tests.support\n", {"Nothing imports the tests"}),
)


def broken_contracts(folder: Path) -> set[str]:
    """Run import-linter in a checkout and return the contracts that it reports broken."""
    command = "import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports(no_cache=True))"
    environment = {"COLUMNS": "300", "PATH": "", "PYTHONPATH": "."}
    done = subprocess.run(
        [sys.executable, "-c", command], cwd=folder, capture_output=True, text=True, check=False, env=environment
    )
    broken = set(re.findall(r"^(.+) BROKEN\b", done.stdout, re.MULTILINE))
    assert "Contracts: " in done.stdout, done.stdout + done.stderr
    assert done.returncode == bool(broken), done.stdout + done.stderr
    return broken


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what the contracts are about."""
    folder = tmp_path_factory.mktemp("checkout")
    for package in (*PACKAGES, "tests/support"):
        shutil.copytree(
            ROOT / package, folder / package, ignore=lambda _, names: [n for n in names if n == "__pycache__"]
        )
    (folder / "tests/__init__.py").touch()
    shutil.copy(ROOT / "pyproject.toml", folder)
    return folder


def test_the_contracts_hold(checkout: Path) -> None:
    assert broken_contracts(checkout) == set()


@pytest.mark.parametrize(("place", "line", "contracts"), PLANTED, ids=[f"{p}:{min(c)}" for p, _, c in PLANTED])
def test_a_planted_import_breaks_its_contract(checkout: Path, place: str, line: str, contracts: set[str]) -> None:
    path = checkout / place
    before = path.read_text() if path.exists() else None
    path.parent.mkdir(exist_ok=True)
    path.write_text((before or "") + "\n" + line)
    try:
        assert broken_contracts(checkout) == contracts
    finally:
        if before is None:
            shutil.rmtree(path.parent)
        else:
            path.write_text(before)


def test_the_architecture_shows_the_floors() -> None:
    """The picture of docs/architecture.md has the floors of the contract, in their order."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["importlinter"]["contracts"]
    (floors,) = (c["layers"] for c in contracts if c["name"] == "The suite's floors")
    text = (ROOT / "docs/architecture.md").read_text()
    picture = text.partition("From top to bottom:\n```text\n")[2].partition("```")[0]
    assert picture.replace("(+ peers)", "").split() == [floor for floor in floors if floor != "__main__"]


def modules(root: Path, *tops: str) -> dict[str, Path]:
    return {
        ".".join(p.relative_to(root).with_suffix("").parts): p
        for top in tops
        for p in sorted((root / top).rglob("*.py"))
    }


def crowded(root: Path) -> dict[str, int]:
    """Folders with more modules than a reader takes in."""
    counts = Counter(p.parent for p in modules(root, *PACKAGES, "tests").values() if p.name != "__init__.py")
    return {str(folder.relative_to(root)): n for folder, n in counts.items() if n > MOST_MODULES}


def private_imports(root: Path) -> list[str]:
    """Names that begin with an underscore, imported from another module of the project."""
    return [
        f"{module}: {node.module}.{alias.name}"
        for module, path in modules(root, *PACKAGES, "tests").items()
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in {*PACKAGES, "tests"}
        for alias in node.names
        if alias.name.startswith("_")
    ]


def unused(root: Path) -> set[str]:
    """Modules that no other module of the product imports or names: only tests could use them."""
    product = modules(root, *PACKAGES)
    used: set[str] = set()
    for module, path in {**product, **{p.stem: p for p in root.glob("*.py")}}.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.module:
                names |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
            elif isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value.partition(":")[0])  # a module to run, or module:function
        used |= names - {module}
    return {m for m in product if m not in used and not m.endswith("__init__") and not LOADED_BY_NAME.fullmatch(m)}


def test_no_folder_is_crowded() -> None:
    assert crowded(ROOT) == {}


def test_no_private_name_is_imported_across_modules() -> None:
    assert private_imports(ROOT) == []


def test_no_module_is_there_for_tests_only() -> None:
    assert unused(ROOT) == set()


def test_vulkan_holds_shaders_only() -> None:
    assert not list((ROOT / "vulkan").rglob("*.py"))


def test_the_checks_can_fail(tmp_path: Path) -> None:
    """Planted: a folder of 13 modules, a private import, and a module that only a test imports."""
    for number in range(13):
        place = tmp_path / "impl" / f"part{number}.py"
        place.parent.mkdir(exist_ok=True)
        place.write_text("" if number == 12 else f"import impl.part{number + 1}\n")
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_part.py").write_text("from impl.part0 import _inner\n")
    assert crowded(tmp_path) == {"impl": 13}
    assert private_imports(tmp_path) == ["tests.test_part: impl.part0._inner"]
    assert unused(tmp_path) == {"impl.part0"}
