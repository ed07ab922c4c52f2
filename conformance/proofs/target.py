"""What a proof is about: a subject's arithmetic and addressing, behind one small interface.

``conformance/subjects/_prove_*.py`` implement it: Vulkan devices (the player, or a shader given by path),
the wheel's eager operator, and the reference itself. Only they import torch or the player.

Source: docs/proofs.md.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

Array = np.ndarray[Any, Any]

_HOMES = {"impl": "device", "executorch": "host", "reference": "host"}
#: Every target has these facts, and a certificate has them all; "" where one means nothing for the subject.
FACTS = (
    "subject",
    "variant",
    "scale_dtype",
    "output_dtype",
    "arithmetic",
    "execution_modes",
    "precise",
    "io_storage",
    "shader",
    "glsl_sha256",
    "spirv_sha256",
    "device",
    "driver",
)


@dataclass(frozen=True)
class Products:
    """One chunk's results: bit patterns [n, 16], and what was damaged or left unwritten ("" for nothing)."""

    bits: Array
    damage: str


@dataclass(frozen=True)
class Looked:
    """One checked lookup: ``out`` indices.shape + [D], and what was damaged or left unwritten ("" for nothing)."""

    out: Array
    damage: str


class BeyondLimit(ValueError):  # noqa: N818 - names the condition, as the player's errors do
    """The subject refuses the sizes and names the limit of the device that they exceed (contract 7.5)."""


class Target(Protocol):
    """A subject in one variant on one device, opened."""

    #: See FACTS; all text.
    facts: Mapping[str, str]
    #: Seconds spent so far: "device" computing, "transfer" moving bytes.
    seconds: Mapping[str, float]

    def open_products(self, most: int, slots: int) -> int:
        """Make ready for chunks; returns how many scales one may have: a power of two, at most ``most``."""
        ...

    def products(self, slot: int, scales: Array) -> Products:
        """Every code (0 to 15) times each scale; the bits stay valid until the slot is used again."""
        ...

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Looked:
        """The operator on int8 values [V, D] and scales [V, D/G].

        Raises:
            BeyondLimit: the device cannot hold it.
        """
        ...

    def close(self) -> None:
        """Free everything."""
        ...


def open_target(subject: str, variant: str, *, device: str = "", shader: Path | None = None) -> Target:
    """Open a target.

    Raises:
        ValueError: no such subject or variant; names those that there are.
        EnvironmentProblem: no device, driver or compiler; names what to install.
    """
    module = _module(subject)
    target: Target = module.open_target(subject, variant, device, shader)
    return target


def variants(subject: str) -> tuple[str, ...]:
    """The names of the subject's variants.

    Raises:
        ValueError: no such subject.
    """
    names: tuple[str, ...] = _module(subject).variants(subject)
    return names


def derived(facts: Mapping[str, str]) -> dict[str, str]:
    """Those facts that follow from the others on any machine: of a shader also the hashes that it has today.

    Raises:
        ValueError: no such subject, variant or shader. EnvironmentProblem: the shader cannot be compiled here.
    """
    found: dict[str, str] = _module(facts["subject"]).derived(facts)
    return found


def _module(subject: str) -> Any:
    if subject not in _HOMES:
        raise ValueError(f"unknown subject {subject!r}: proofs know {', '.join(sorted(_HOMES))}")
    return importlib.import_module(f"conformance.proofs.targets.{_HOMES[subject]}")
