"""Certificates: what was proven, about which shader on which device, and how that can be checked again.

Two hashes: ``evidence`` over what the proof found and about what (no times, so two runs agree), ``digest``
over the whole certificate. Everything else is there twice in some form: counts follow from the domain, rates
from seconds, the command from the fields, the SPIR-V's hash from shader, variant and execution modes.

Source: docs/proofs.md, "Certificates".
"""

import importlib.metadata
import json
import platform
import re
import shutil
import subprocess
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from conformance.proofs import domain as prove_domain
from conformance.proofs.journal import canonical, sha256, write_atomically
from conformance.proofs.target import FACTS

VERSION = 1
PROVEN, REFUTED = "proven", "refuted"
_COMMON = {
    "certificate": int,
    "kind": str,
    "result": str,
    "command": str,
    "target": dict,
    "counts": dict,
    "mismatches": list,
    "versions": dict,
    "timing": dict,
    "evidence": str,
    "digest": str,
}
_KINDS: dict[str, dict[str, type]] = {
    "arithmetic": {"domain": str, "segments": dict},
    "indexing": {"cases": dict},
    "layout": {"cases": dict},
}
_COUNTS = {
    "arithmetic": ("pairs", "refused", "not_strict", "lawless", "damaged"),
    "indexing": ("cases", "elements", "beyond_limits", "wrong"),
    "layout": ("cases", "elements", "beyond_limits", "wrong"),
}
STAGES = ("device", "transfer", "oracle")
_TIMING = ("started", "finished", "elapsed_s", "working_s", "pairs_per_s", "stages", "binds")


class Rejected(ValueError):  # noqa: N818 - says what happened to the certificate
    """A certificate that does not hold; the message says why in one line."""


def versions(subject: str) -> dict[str, str]:
    """The versions that a proof of the subject depends on."""
    packages = ["numpy", *{"impl": ["vulkan"], "executorch": ["torch", "executorch"]}.get(subject, [])]
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = "not installed"
    if subject == "impl":
        found["glslc"] = "not installed"
        if shutil.which("glslc"):
            said = subprocess.run(["glslc", "--version"], capture_output=True, text=True, check=True).stdout
            found["glslc"] = said.split("\n", 1)[0]
    return found


def command(kind: str, target: Mapping[str, str], domain: str = "") -> str:
    """The command that makes such a certificate again."""
    words = ["python -m conformance prove", kind, "--subject", target["subject"]]
    words += ["--variant", target["variant"]] if target["variant"] else []
    if target["shader"] and target["shader"] != "vulkan/glsl/embedding_q4gsw.comp":
        words += ["--shader", target["shader"]]
    if domain:
        words += ["--domain", domain]
    return " ".join(words)


def arithmetic(
    target: Mapping[str, str],
    domain: prove_domain.Domain,
    found: Mapping[str, Any],
    known_versions: Mapping[str, str],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    """A certificate of ``prove_arithmetic.findings``."""
    body = {"domain": domain.name, **found}
    return _seal("arithmetic", target, domain.name, body, known_versions, timing)


def of_cases(
    kind: str,
    target: Mapping[str, str],
    found: Mapping[str, Any],
    known_versions: Mapping[str, str],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    """A certificate of kind "indexing" or "layout"; ``found`` has counts, mismatches and cases."""
    return _seal(kind, target, "", dict(found), known_versions, timing)


def _seal(
    kind: str,
    target: Mapping[str, str],
    domain: str,
    body: dict[str, Any],
    known_versions: Mapping[str, str],
    timing: Mapping[str, Any],
) -> dict[str, Any]:
    made = {
        "certificate": VERSION,
        "kind": kind,
        "result": REFUTED if body["mismatches"] else PROVEN,
        "command": command(kind, target, domain),
        "target": dict(target),
        **body,
        "versions": dict(known_versions),
        "timing": dict(timing),
    }
    made["evidence"] = evidence(made)
    made["digest"] = digest(made)
    return made


def evidence(certificate: Mapping[str, Any]) -> str:
    """The hash of what was found and about what: all but the times and the hashes."""
    return sha256(canonical({k: v for k, v in certificate.items() if k not in {"timing", "evidence", "digest"}}))


def digest(certificate: Mapping[str, Any]) -> str:
    """The certificate's own hash: all but this field."""
    return sha256(canonical({k: v for k, v in certificate.items() if k != "digest"}))


def timing(began: float, ended: float, working_s: float, pairs: int, stages: Mapping[str, float]) -> dict[str, Any]:
    """Times in seconds and rates in pairs (or elements) a second; ``stages`` are seconds of each, which overlap."""
    started, finished = (datetime.fromtimestamp(t, UTC).isoformat(timespec="milliseconds") for t in (began, ended))
    seconds = {name: round(value, 6) for name, value in stages.items()}
    return {
        "started": started,
        "finished": finished,
        "elapsed_s": _elapsed(started, finished),
        "working_s": round(working_s, 6),
        "pairs_per_s": _rate(pairs, round(working_s, 6)),
        "stages": {name: {"seconds": s, "pairs_per_s": _rate(pairs, s)} for name, s in seconds.items()},
        "binds": max(seconds, key=seconds.__getitem__),
    }


def _elapsed(started: str, finished: str) -> float:
    return round((datetime.fromisoformat(finished) - datetime.fromisoformat(started)).total_seconds(), 3)


def _rate(pairs: int, seconds: float) -> int:
    return round(pairs / seconds) if seconds else 0


def write(path: Path, certificate: Mapping[str, Any]) -> None:
    """Write it, whole or not at all."""
    write_atomically(path, json.dumps(certificate, indent=1, sort_keys=True) + "\n")


def read(path: Path) -> dict[str, Any]:
    """A certificate whose form, hashes and arithmetic are right; the claim itself is ``prove_check``'s.

    Raises:
        Rejected: says in one line what is wrong.
    """
    try:
        made = json.loads(path.read_text(), parse_constant=_no_constant)
    except (OSError, UnicodeDecodeError) as error:
        raise Rejected(f"cannot be read: {error}") from error
    except ValueError as error:
        raise Rejected(f"is truncated or no JSON: {error}") from error
    if not isinstance(made, dict) or made.get("certificate") is None:
        raise Rejected("is no certificate")
    if type(made["certificate"]) is not int or made["certificate"] != VERSION:
        raise Rejected(f"has version {made['certificate']!r}; this project reads version {VERSION}")
    _check_form(made)
    if made["digest"] != digest(made):
        raise Rejected("was changed: its digest is not that of its content")
    if made["evidence"] != evidence(made):
        raise Rejected("was changed: its evidence is not that of what it says was found")
    _check_timing(made)
    return made


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")


def _check_form(made: dict[str, Any]) -> None:
    if made.get("kind") not in _KINDS:
        raise Rejected(f"has kind {made.get('kind')!r}; known are {', '.join(_KINDS)}")
    wanted = {**_COMMON, **_KINDS[made["kind"]]}
    _same_keys("certificate", made, wanted)
    for name, kind in wanted.items():
        if type(made[name]) is not kind:
            raise Rejected(f"field {name} is no {kind.__name__}")
    _same_keys("target", made["target"], FACTS)
    _same_keys("counts", made["counts"], _COUNTS[made["kind"]])
    _same_keys("timing", made["timing"], _TIMING)
    if not all(type(value) is str for value in (*made["target"].values(), *made["versions"].values())):
        raise Rejected("a field of target or versions is no text")
    if not all(type(value) is int and value >= 0 for value in made["counts"].values()):
        raise Rejected("a count is no number")
    if not all(type(value) is str for value in made["mismatches"]):
        raise Rejected("a mismatch is no text")
    if made["kind"] == "arithmetic":
        _same_keys("segments", made["segments"], ("scales", "sums"))
        sums = made["segments"]["sums"]
        if type(sums) is not list or not all(type(s) is str and re.fullmatch("[0-9a-f]{16}", s) for s in sums):
            raise Rejected("segments.sums are not hexadecimal numbers of 64 bits")
    elif not all(type(said) is str for said in made["cases"].values()):
        raise Rejected("what a case says is no text")


def _same_keys(where: str, table: Mapping[str, Any], wanted: Any) -> None:
    if odd := sorted(set(table) ^ set(wanted)):
        raise Rejected(f"{where}: field {odd[0]!r} is {'unknown' if odd[0] in table else 'missing'}")


def _check_timing(made: dict[str, Any]) -> None:
    told, pairs = made["timing"], made["counts"].get("pairs", made["counts"].get("elements"))
    try:
        _same_keys("timing.stages", told["stages"], STAGES)
        again = timing(
            datetime.fromisoformat(told["started"]).timestamp(),
            datetime.fromisoformat(told["finished"]).timestamp(),
            told["working_s"],
            pairs,
            {name: stage["seconds"] for name, stage in told["stages"].items()},
        )
    except Rejected:
        raise
    except (TypeError, ValueError, KeyError, AttributeError, OverflowError) as error:
        raise Rejected(f"timing is malformed: {error}") from error
    for name, value in again.items():
        if told[name] != value or type(told[name]) is not type(value):
            raise Rejected(f"timing.{name} is {told[name]!r}, but the other times give {value!r}")
