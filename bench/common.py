"""What the benches share: how their command line begins, and the JSON file with their measurements."""

import argparse
import json
from pathlib import Path
from typing import Any


def parser(name: str, document: str | None) -> argparse.ArgumentParser:
    """The command line of ``bench.NAME``, described by the first line of its docstring, with --json."""
    options = argparse.ArgumentParser(prog=f"python -m bench.{name}", description=(document or "").split("\n", 1)[0])
    options.add_argument("--json", type=Path, help="write the measurements here as well")
    return options


def write_json(path: Path | None, measurements: Any) -> None:
    """Write the measurements where --json is set."""
    if path is not None:
        path.write_text(json.dumps(measurements, indent=2) + "\n", encoding="utf-8")
