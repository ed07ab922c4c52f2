"""The editable install brings the command and three packages, and leaves PyPI's vulkan importable."""

import importlib.metadata
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from setuptools import find_packages

from conformance.cli.main import version

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())


def test_exactly_three_packages_are_installed() -> None:
    found = find_packages(str(ROOT), include=PROJECT["tool"]["setuptools"]["packages"]["find"]["include"])
    assert {name.partition(".")[0] for name in found} == {"conformance", "impl", "reference"}
    assert set(found) == {
        ".".join(path.parent.relative_to(ROOT).parts)
        for top in ("conformance", "impl", "reference")
        for path in (ROOT / top).rglob("__init__.py")
    }


@pytest.fixture
def installed() -> Path:
    try:
        distribution = importlib.metadata.distribution("q4gsw-conformance")
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("this environment is not ./dev's, which installs the project")
    assert distribution.version == PROJECT["project"]["version"]
    return Path(sys.executable).parent / "q4gsw"


def test_the_command_runs_from_anywhere(installed: Path, tmp_path: Path) -> None:
    done = subprocess.run([installed, "--version"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == f"{version()}\n"
    case = ("--case", "pack/flat/v1", "--subject", f"{ROOT}/tests/fakes/misbehaving.py:Good")
    done = subprocess.run([installed, "run", *case], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert not list(tmp_path.iterdir())


@pytest.mark.usefixtures("installed")
def test_vulkan_is_pypi_s_and_the_rest_of_the_checkout_stays_out(tmp_path: Path) -> None:
    code = """
import importlib.util, vulkan, conformance, impl, reference
print(vulkan.__file__, *(importlib.util.find_spec(name) for name in ("bench", "tests")))
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    file, *others = done.stdout.split()
    assert "site-packages" in file
    assert others == ["None", "None"]
