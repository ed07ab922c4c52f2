"""Laying a source tree's Python over the installed executorch, in this process only.

Three packages are taken from the tree's copy as a whole: exir, backends/vulkan and backends/transforms.
Everything else, compiled parts and flatc included, stays the wheel's.

Source: docs/executorch-src.md.
"""

import importlib
import importlib.util
import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

from conformance.harness.errors import Untestable
from conformance.sources.tree import ROOTS

_GENERATED = "exir/_serialize/generated"


class Overlay(MetaPathFinder):
    """Finds the overlaid packages in ``folder``; what is inside them is found through them."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.places = {
            "executorch." + root.replace("/", "."): folder / root
            for root in ROOTS
            if (folder / root / "__init__.py").is_file()
        }

    def find_spec(
        self, fullname: str, _path: Sequence[str] | None, _target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """Return where an overlaid package is; None for everything else."""
        if fullname not in self.places:
            return None
        place = self.places[fullname]
        return importlib.util.spec_from_file_location(
            fullname, place / "__init__.py", submodule_search_locations=[str(place)]
        )


def install(folder: Path) -> None:
    """Take the packages of ``folder`` from now on."""
    wheel = importlib.util.find_spec("executorch")
    if wheel is None or not wheel.submodule_search_locations:
        raise Untestable("the executorch wheel is not installed; a source tree is laid over it: pip install executorch")
    overlay = Overlay(folder)
    early = sorted(name for name in overlay.places if name in sys.modules)
    if early:
        raise Untestable(f"{early[0]} was imported before the tree was laid over it")
    if (folder / "exir/_serialize/_flatbuffer_program.py").is_file() and not (folder / _GENERATED).exists():
        # Made while the wheel is built, from the schema; some trees do not carry it.
        for place in wheel.submodule_search_locations:
            if (Path(place) / _GENERATED).is_dir() and not (folder / _GENERATED).exists():
                (folder / _GENERATED).symlink_to(Path(place) / _GENERATED)
    sys.meta_path.insert(0, overlay)


def load(name: str) -> ModuleType:
    """Import a module of the overlaid executorch."""
    try:
        return importlib.import_module(name)
    except Exception as error:
        text = str(error).strip().partition("\n")[0] or "no message"
        raise Untestable(
            f"the tree cannot be imported over the wheel: {name}: {type(error).__name__}: {text}"
        ) from error
