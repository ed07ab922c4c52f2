"""Brings certificates to this release: ``python docs/certificates/reseal.py FILE...`` rewrites each in place.

One of version 2 gets the hash of today's GLSL where that still compiles to the very SPIR-V that was proven: comments
may change. One of version 1 becomes one of version 2: its seals are verified first, and every field that version 2
leaves out is computed from the fields that stay, by the suite's own code, and has to be what the file says. Nothing
is proven again; that is ``q4gsw prove check``'s.
"""

import hashlib
import json
import sys
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[2]))

from conformance.proofs import indexing, layout
from conformance.proofs import target as targets
from conformance.proofs.certificate import KINDS, REFUSED, VERSION, Certificate, read, write
from conformance.proofs.domain import Domain, boundary_bits, parse
from conformance.proofs.target import Numerics, TargetFacts
from conformance.serialize import structure
from reference.arithmetic.accept import accept_products


def sha256(value: Any) -> str:
    """The hash of a JSON value in one spelling, as version 1 took it."""
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()
    ).hexdigest()


def verify_seals(old: dict[str, Any]) -> None:
    """Raise ValueError where a seal is not that of the content."""
    if old["certificate"] != 1:
        raise ValueError(f"is of version {old['certificate']}, not 1")
    if old["digest"] != sha256({name: value for name, value in old.items() if name != "digest"}):
        raise ValueError("was changed: its digest is not that of its content")
    no_times = {name: value for name, value in old.items() if name not in {"timing", "evidence", "digest"}}
    if old["evidence"] != sha256(no_times):
        raise ValueError("was changed: its evidence is not that of what was observed")


def convert(old: dict[str, Any]) -> Certificate:
    """The certificate in the form of version 2."""
    counts, times = old["counts"], old["timing"]
    if old["kind"] == "arithmetic":
        claim = {"domain": old["domain"], "sums": old["segments"]["sums"]}
        claim |= {name: counts[name] for name in ("not_strict", "refused", "damaged")}
    else:
        claim = {"cases": old["cases"]}
    timing = {name: times[name] for name in ("started", "finished", "working_s")}
    new = {
        "claim": {"kind": old["kind"], **claim},
        "target": {name: old["target"][name] for name in vars(TargetFacts(""))},
        "mismatches": old["mismatches"],
        "versions": old["versions"],
        "timing": {**timing, "stages": {name: stage["seconds"] for name, stage in times["stages"].items()}},
    }
    return structure(Certificate, new)


def left_out(new: Certificate) -> dict[str, Any]:
    """Every field of version 1 that version 2 leaves out, computed from what stays, by its path."""
    kind = next(name for name, claim in KINDS.items() if type(new.claim) is claim)
    facts, claim, times = new.target, new.claim, new.timing
    words = ["python -m conformance prove", kind, "--subject", facts.subject]
    words += ["--variant", facts.variant] if facts.variant else []
    words += ["--domain", claim.domain] if kind == "arithmetic" else []
    derived: dict[str, Any] = {"kind": kind, "result": new.result}
    target = dict.fromkeys(("scale_dtype", "output_dtype", "precise", "io_storage"), "") | {"arithmetic": "host"}
    if facts.variant:
        _, numerics = targets.derived(facts)
        target |= {"scale_dtype": numerics.scale_dtype, "output_dtype": numerics.output_dtype}
    if facts.subject == "impl" and facts.variant:
        storage = facts.variant.removesuffix("-nomodes").rpartition("-")[2]
        target |= {"precise": str(int(numerics.modes.precise)), "io_storage": storage, "arithmetic": "device"}
    if kind == "arithmetic":
        domain = parse(claim.domain, numerics.scale_dtype)
        elements = domain.pairs
        derived |= {"counts.pairs": elements, "counts.lawless": unconstrained(domain, numerics)}
        derived["segments.scales"] = domain.segment
    else:
        known = (indexing if kind == "indexing" else layout).case_names()
        refused = [name for name, outcome in claim.cases.items() if outcome.startswith(REFUSED)]
        elements = sum(known[name] for name in claim.cases if name not in refused)
        derived |= {"counts.elements": elements, "counts.cases": len(known), "counts.beyond_limits": len(refused)}
        derived["counts.wrong"] = len(new.mismatches)
    derived |= {f"target.{name}": value for name, value in target.items()}
    stages = vars(times.stages)
    elapsed = datetime.fromisoformat(times.finished) - datetime.fromisoformat(times.started)
    derived |= {"command": " ".join(words), "timing.elapsed_s": round(elapsed.total_seconds(), 3)}
    derived["timing.binds"] = max(sorted(stages), key=stages.__getitem__)
    derived["timing.pairs_per_s"] = rate(elements, times.working_s)
    derived |= {f"timing.stages.{name}.pairs_per_s": rate(elements, seconds) for name, seconds in stages.items()}
    return derived


def unconstrained(domain: Domain, numerics: Numerics) -> int:
    """How many of the domain's results contract 3.5 leaves open: those of NaN and infinity that nothing preserves."""
    one, infinite = np.array([1], np.int8), np.array([np.inf], domain.dtype)
    if not accept_products(one, infinite, numerics.output_dtype, numerics.modes).unconstrained[0]:
        return 0
    sign, infinity = (0x8000, 0x7C00) if domain.dtype == "float16" else (1 << 31, 0x7F800000)
    if domain.name == "boundary":
        return 16 * int(np.count_nonzero((boundary_bits(domain.dtype) & (sign - 1)) >= infinity))
    spans = ((infinity, sign), (sign + infinity, 2 * sign))
    return 16 * sum(max(0, min(domain.stop, stop) - max(domain.start, start)) for start, stop in spans)


def rate(elements: int, seconds: float) -> int:
    """Elements a second, as version 1 rounded it."""
    return round(elements / seconds) if seconds else 0


def leaves(value: Any, path: str = "") -> dict[str, Any]:
    """Every field of nested tables by its path, such as timing.stages.device.seconds."""
    if not isinstance(value, dict):
        return {path: value}
    return {
        at: leaf for name, inner in value.items() for at, leaf in leaves(inner, f"{path}.{name}".strip(".")).items()
    }


def reseal_source(path: Path) -> None:
    """Give a certificate of this version the hash of today's GLSL."""
    stored = read(path)
    today = targets.derived(stored.target)[0] if stored.target.glsl_sha256 else stored.target
    if today != replace(stored.target, glsl_sha256=today.glsl_sha256):
        raise ValueError("its shader compiles to another SPIR-V today: prove it again")
    write(path, replace(stored, target=today))


def reseal(path: Path) -> None:
    """Rewrite one file.

    Raises:
        ValueError: it is of another version, was changed, holds a field that the others do not give, or its shader is
            another program today.
    """
    old = json.loads(path.read_text())
    if old["certificate"] == VERSION:
        reseal_source(path)
        return
    verify_seals(old)
    new = convert(old)
    kept = ("domain", "segments.sums", "counts.not_strict", "counts.refused", "counts.damaged", "mismatches")
    kept += ("certificate", "evidence", "digest", *(f"target.{name}" for name in vars(new.target)))
    kept += ("timing.started", "timing.finished", "timing.working_s")
    computed = left_out(new)
    for name, value in leaves({k: v for k, v in old.items() if k not in {"cases", "versions"}}).items():
        if name in kept or name.endswith(".seconds"):
            continue
        if name not in computed or computed.pop(name) != value:
            raise ValueError(f"{name} is {value!r}, which the other fields do not give")
    write(path, new)


if __name__ == "__main__":
    for argument in sys.argv[1:]:
        try:
            reseal(Path(argument))
            print(f"{argument}: resealed")
        except ValueError as error:
            sys.exit(f"{argument}: {error}")
