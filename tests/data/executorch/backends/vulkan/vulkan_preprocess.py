"""Applies passes one after the other."""

from typing import Any


def apply_passes(program: Any, passes: Any) -> Any:
    """Return what ``passes`` make of ``program``."""
    for one in passes:
        program = one(program)
    return program
