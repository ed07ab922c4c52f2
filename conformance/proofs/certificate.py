"""Certificates: what was proven, about which operator on which device.

A certificate stores what a proof observed and nothing that follows from it: whether it is proven, how many pairs a
domain has, rates and the command are computed. Two seals detect damage: ``evidence`` is a SHA-256 over all but the
times, so that two runs agree, ``digest`` one over everything.

Source: docs/formats.md, "Certificates".
"""

import contextlib
import hashlib
import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conformance.files import read_text, write_whole
from conformance.proofs.target import TargetFacts
from conformance.serialize import register_tagged, structure, unstructure

VERSION = 2
PROVEN, REFUTED, UNDECIDED = "proven", "refuted", "undecided"
_ABSENT = "not installed"
#: How a case's outcome begins where the device cannot hold it; what follows names the limit.
REFUSED = "refused: "


class Rejected(ValueError):  # noqa: N818 - says what happened to the certificate
    """A certificate that does not hold; the message says why in one line."""

    exit_code = 1


class Untrusted(Rejected):
    """A certificate about a file that the command line does not name: nothing of it was imported or read."""

    exit_code = 2


@dataclass(frozen=True)
class ArithmeticClaim:
    """Every product of a domain of scales and the 16 codes was judged.

    ``sums`` are the results' 64-bit words added up modulo 2^64, in hexadecimal, over each segment of the domain;
    ``refused`` results are outside the accept set, ``not_strict`` ones outside the strict set; ``damaged`` chunks
    have a broken fence or an element that was not written.
    """

    domain: str
    sums: tuple[str, ...]
    not_strict: int
    refused: int
    damaged: int


@dataclass(frozen=True)
class CasesClaim:
    """Every case was tried: its name -> "proven", "refuted" or "refused: LIMIT"."""

    cases: Mapping[str, str]


class IndexingClaim(CasesClaim):
    """Output elements read the right code, scale and index; a case is a shape."""


class LayoutClaim(CasesClaim):
    """Packed bytes hold every code once, in its place; a case is a layout and a table's size."""


@dataclass(frozen=True)
class EverySizeClaim(CasesClaim):
    """A module was proven for all sizes; a case is a setting and a group of obligations, which may be "undecided".

    ``obligations`` are the SHA-256 of what was asked in each setting, ``arithmetic`` the sequences of float
    instructions that make an element.
    """

    obligations: Mapping[str, str]
    arithmetic: tuple[str, ...]


Claim = ArithmeticClaim | IndexingClaim | LayoutClaim | EverySizeClaim
KINDS: dict[str, type[Claim]] = {
    "arithmetic": ArithmeticClaim,
    "indexing": IndexingClaim,
    "layout": LayoutClaim,
    "every-size": EverySizeClaim,
}
register_tagged(Claim, KINDS, "kind")


@dataclass(frozen=True)
class Stages:
    """Seconds that each stage of a proof took; they overlap."""

    device: float = 0.0
    transfer: float = 0.0
    oracle: float = 0.0


@dataclass(frozen=True)
class Timing:
    """``started`` and ``finished`` are ISO 8601; ``working_s`` leaves out the time between a kill and ``--resume``."""

    started: str
    finished: str
    working_s: float
    stages: Stages


@dataclass(frozen=True)
class Certificate:
    """One proof. ``mismatches`` are its first ones, a line each; none in a proof that succeeded."""

    claim: Claim
    target: TargetFacts
    mismatches: tuple[str, ...]
    versions: Mapping[str, str]
    timing: Timing

    @property
    def result(self) -> str:
        """PROVEN or REFUTED; of every size also UNDECIDED, where nothing was refuted and not everything proven."""
        claim = self.claim
        if isinstance(claim, EverySizeClaim) and REFUTED not in claim.cases.values():
            whole = set(claim.cases.values()) == {PROVEN} and not self.mismatches
            return PROVEN if whole else UNDECIDED
        bad = REFUTED in claim.cases.values() if isinstance(claim, CasesClaim) else claim.refused or claim.damaged
        return REFUTED if self.mismatches or bad else PROVEN

    @property
    def evidence(self) -> str:
        """The hash of what was observed and about what: no times."""
        return _sha256({name: value for name, value in unstructure(self).items() if name != "timing"})


def timing(began: float, ended: float, working_s: float, stages: Mapping[str, float]) -> Timing:
    """Times since the epoch and seconds as a certificate stores them; a clock may have been set back meanwhile."""
    ends = (began, max(began, ended))
    started, finished = (datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds") for t in ends)
    rounded = {name: round(seconds, 6) for name, seconds in stages.items()}
    return Timing(started, finished, round(working_s, 6), Stages(**rounded))


_PACKAGES = {name: ["torch", "executorch"] for name in ("executorch", "executorch-runtime")} | {"impl": ["vulkan"]}


def versions(subject: str, *, solver: bool = False) -> dict[str, str]:
    """The versions that a proof of the subject depends on; ``solver``: by z3 and without a device."""
    packages = ["z3-solver"] if solver else ["numpy", *_PACKAGES.get(subject.partition(":")[0], [])]
    known = {"python": platform.python_version(), **dict.fromkeys(packages, _ABSENT)}
    for name in packages:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            known[name] = importlib.metadata.version(name)
    if subject == "impl":
        printed = ""
        if shutil.which("glslc"):
            printed = subprocess.run(["glslc", "--version"], capture_output=True, text=True, check=True).stdout
        known["glslc"] = printed.partition("\n")[0] or _ABSENT
    return known


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sealed(certificate: Certificate) -> dict[str, Any]:
    """The certificate as the JSON object of its file."""
    body = {"certificate": VERSION, **unstructure(certificate), "evidence": certificate.evidence}
    return {**body, "digest": _sha256(body)}


def _sha256(value: Any) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()


def write(path: Path, certificate: Certificate) -> None:
    """Write it, whole or not at all."""
    write_whole({path: json.dumps(sealed(certificate), indent=1, sort_keys=True) + "\n"})


def read(path: Path) -> Certificate:
    """A certificate whose form and seals are right, or Rejected; the claim itself is ``conformance.proofs.check``'s."""
    try:
        data = json.loads(read_text(path))
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"cannot be read: {error}") from error
    except (ValueError, RecursionError) as error:
        raise Rejected(f"is truncated or no JSON: {error}") from error
    version = data.pop("certificate", None) if isinstance(data, dict) else None
    if type(version) is not int:
        raise Rejected("is no certificate")
    if version != VERSION:
        raise Rejected(
            f"has version {version}, this release reads version {VERSION}: prove it again, or bring version 1 over "
            "with docs/certificates/reseal.py"
        )
    seals = {name: data.pop(name, None) for name in ("digest", "evidence")}
    try:
        certificate = structure(Certificate, data)
        _check_form(certificate)
    except (ValueError, TypeError) as error:
        raise Rejected(str(error)) from error
    again = sealed(certificate)
    for name, seal in seals.items():
        if seal != again[name]:
            raise Rejected(f"was changed: its {name} is not that of its content")
    return certificate


def _check_form(certificate: Certificate) -> None:
    """What the types leave open; of times also that they are times."""
    claim, times = certificate.claim, certificate.timing
    elapsed = datetime.fromisoformat(times.finished) - datetime.fromisoformat(times.started)
    if min(elapsed.total_seconds(), times.working_s, *vars(times.stages).values()) < 0:
        raise ValueError("timing: a time is below zero")
    if isinstance(claim, ArithmeticClaim):
        if not all(re.fullmatch("[0-9a-f]{16}", total) for total in claim.sums):
            raise ValueError("claim.sums are not hexadecimal numbers of 64 bits")
        if min(claim.not_strict, claim.refused, claim.damaged) < 0:
            raise ValueError("claim: a count is below zero")
