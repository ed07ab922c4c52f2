"""What a proof runs: the operator of one subject in one variant, behind one small interface.

``conformance/proofs/targets`` implements it: Vulkan devices (our shader, or one given by path), the wheel's eager
operator, a real runtime, and the reference itself. Only they import torch, the Vulkan binding or ``impl``.
"""

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from conformance.harness.subject import peers
from reference.arithmetic.accept import FloatModes

Array = np.ndarray[Any, Any]

#: What is named after a subject and a colon.
_WHAT = {"executorch-runtime": "PATH"}
_HOMES = {"impl": "device", "executorch": "host", "reference": "host", "executorch-runtime": "runtime"}


@dataclass(frozen=True)
class TargetFacts:
    """What a certificate is about; "" where a fact means nothing for the subject."""

    subject: str
    variant: str = ""
    #: What the SPIR-V declares, as it names it, with commas: ``RoundingModeRTE 32``.
    execution_modes: str = ""
    #: Relative to the checkout where it lies inside.
    shader: str = ""
    glsl_sha256: str = ""
    spirv_sha256: str = ""
    device: str = ""
    driver: str = ""


@dataclass(frozen=True)
class Numerics:
    """What the facts settle about numbers: dtypes, and which results contract 3 allows."""

    scale_dtype: str
    output_dtype: str
    modes: FloatModes


@dataclass(frozen=True)
class Result:
    """What a run of the operator returned, and what was damaged or left unwritten ("" for nothing)."""

    out: Array
    damage: str = ""


class ExceedsLimit(ValueError):  # noqa: N818 - names the condition, as the kernel's errors do
    """The subject refuses the sizes and names the limit of the device that they exceed (contract 7.5)."""


class Target(Protocol):
    """A subject's operator in one variant on one device, opened."""

    facts: TargetFacts
    numerics: Numerics
    #: Seconds spent so far: "device" computing, "transfer" moving bytes.
    seconds: Mapping[str, float]

    def open_products(self, most: int, slots: int) -> int:
        """Make ready for chunks; returns how many scales one may have: a power of two, at most ``most``."""
        ...

    def products(self, slot: int, scales: Array) -> Result:
        """Every code (0 to 15) times each scale: bit patterns [n, 16], valid until the slot is used again."""
        ...

    def lookup(self, values: Array, scales: Array, group_size: int, indices: Array) -> Result:
        """The operator on int8 values [V, D] and scales [V, D/G]; ExceedsLimit where the device cannot hold it."""
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
    target: Target = _module(subject).open_target(subject, variant, device, shader)
    return target


def variants(subject: str) -> tuple[str, ...]:
    """The names of the subject's variants."""
    names: tuple[str, ...] = _module(subject).variants(subject)
    return names


def derived(facts: TargetFacts) -> tuple[TargetFacts, Numerics]:
    """The facts as any machine derives them, with the hashes that the shader has today, and what they settle.

    Errors are those of ``open_target``, but that no device is needed.
    """
    today: tuple[TargetFacts, Numerics] = _module(facts.subject).derived(facts)
    return today


def _module(subject: str) -> Any:
    homes = _HOMES | dict.fromkeys(peers(), "peers")
    name, _, what = subject.partition(":")
    if name not in homes or (name in _WHAT and not what):
        known = ", ".join(f"{home}:{_WHAT[home]}" if home in _WHAT else home for home in sorted(homes))
        raise ValueError(f"unknown subject {subject!r}: proofs know {known}")
    return importlib.import_module(f"conformance.proofs.targets.{homes[name]}")
