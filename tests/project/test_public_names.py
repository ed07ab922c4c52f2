"""``import conformance`` is enough to write a subject, and loads torch only with the names that need it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import conformance

ROOT = Path(__file__).parents[2]
WITH_TORCH = {"BuiltProgram", "build", "observe_export", "observe_match"}
HEAVY = ("torch", "torchao", "executorch", "vulkan", "impl")


def loaded_by(names: str) -> set[str]:
    """The heavy packages that a fresh process has loaded after importing ``names``."""
    program = f"from conformance import {names}\nimport sys\nprint(*(n for n in {HEAVY} if n in sys.modules))"
    command = [sys.executable, "-W", "ignore", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_light_names_load_no_torch() -> None:
    assert loaded_by(", ".join(sorted(set(conformance.__all__) - WITH_TORCH))) == set()


def test_a_name_that_needs_torch_loads_it() -> None:
    assert "torch" in loaded_by("build")


@pytest.mark.parametrize("name", conformance.__all__)
def test_every_name_is_there_and_described(name: str) -> None:
    described = getattr(conformance, name)
    assert name == "Observation" or (described.__doc__ or "").strip()


def test_no_other_name_is_there() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = conformance.nothing


def test_nobody_imports_from_deeper_to_write_a_subject() -> None:
    """Fakes and the documents' recipes; a subject that varies a built-in one imports that one.

    lying.py is no subject as one writes it: it attacks the border between the processes.
    """
    fakes = set((ROOT / "tests/fakes").glob("*.py")) - {ROOT / "tests/fakes/lying.py"}
    texts = [*fakes, *ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    deeper = re.compile(r"^\s*from conformance\.(?!subjects\.)[\w.]+ import", re.MULTILINE)
    assert [f"{path.name}: {line}" for path in texts for line in deeper.findall(path.read_text())] == []
