"""``prove --check``: does a certificate still hold, here and now?

Its form and hashes first (prove_certificate.read), then what it claims: that the fields belong together, that
the shader is still the one, that the fast oracle agrees with exact fractions on a seeded sample, and, where
the device is there, that running again gives what the certificate says.

Source: docs/proofs.md, "Checking".
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from conformance.harness.observation import EnvironmentProblem
from conformance.proofs import arithmetic, certificate, indexing, layout
from conformance.proofs import domain as prove_domain
from conformance.proofs import target as prove_target
from conformance.proofs.certificate import PROVEN, REFUTED, Rejected
from conformance.proofs.target import Array, Target
from reference.arithmetic.accept import CODES, FloatModes, accept_products
from reference.arithmetic.accept_many import Tally, judge_rows
from reference.arithmetic.exact import allowed_bits
from reference.arithmetic.rounding import FORMATS, is_nan

ROOT = Path(__file__).resolve().parent.parent.parent
#: Scales of the seeded sample; each with all 16 codes.
SAMPLE = 64
#: Cases of an indexing certificate that are run again.
_CASES = 4
_CHUNK = 1 << 18


def check(path: Path, *, device: str = "", rerun: bool = True) -> list[str]:
    """What was made sure of, a line each.

    Raises:
        Rejected: the certificate does not hold; says why in one line.
    """
    made = certificate.read(path)
    _check_fields(made)
    done = [_check_shader(made["target"])]
    if made["kind"] == "arithmetic":
        return [*done, *_check_arithmetic(made, device, rerun=rerun)]
    if made["kind"] == "indexing":
        return [*done, *_check_indexing(made, device, rerun=rerun)]
    return [*done, *_check_layout(made, rerun=rerun)]


def _check_fields(made: dict[str, Any]) -> None:
    """The fields that follow from others, whatever the kind."""
    domain = made["domain"] if made["kind"] == "arithmetic" else ""
    if made["command"] != (command := certificate.command(made["kind"], made["target"], domain)):
        raise Rejected(f"command is not {command!r}, which its other fields give")
    counts = made["counts"]
    bad = sum(counts.get(name, 0) for name in ("refused", "damaged", "wrong"))
    if made["result"] not in {PROVEN, REFUTED}:
        raise Rejected(f"result is {made['result']!r}")
    if (made["result"] == PROVEN) != (not made["mismatches"]) or bool(made["mismatches"]) != bool(bad):
        raise Rejected("result, counts and mismatches contradict each other")
    if made["result"] == REFUTED:
        raise Rejected(f"says itself that the proof failed: {made['mismatches'][0]}")
    if set(made["versions"]) != set(certificate.versions(made["target"]["subject"])):
        raise Rejected("versions are not those that such a proof depends on")


def _check_shader(facts: dict[str, str]) -> str:
    """The facts that any machine can settle; of a shader its hashes."""
    if not facts["variant"]:
        return "no shader is involved"
    try:
        settled = prove_target.derived(facts)
    except (ValueError, EnvironmentProblem) as error:
        raise Rejected(f"cannot be matched with a shader: {error}") from error
    for name in ("glsl_sha256", *settled):
        if name in settled and settled[name] != facts[name]:
            what = f"shader {facts['shader']} is another now: " if name.endswith("sha256") else ""
            raise Rejected(f"{what}target.{name} is {facts[name]!r}, but here it is {settled[name]!r}")
    return f"shader {facts['shader']} is the same" if facts["shader"] else "the subject runs on the host"


def _check_arithmetic(made: dict[str, Any], device: str, *, rerun: bool) -> list[str]:
    facts = made["target"]
    try:
        domain = prove_domain.parse(made["domain"], facts["scale_dtype"])
        modes = arithmetic.modes_of(facts)
    except ValueError as error:
        raise Rejected(str(error)) from error
    _check_counts(made, domain, modes)
    random = np.random.Generator(np.random.PCG64(int(made["evidence"][:16], 16)))
    picked = np.unique(random.integers(0, domain.size, SAMPLE))
    scales = np.concatenate([domain.scales(int(at), int(at) + 1) for at in picked])
    exact = _against_fractions(scales, facts, modes)
    lines = [f"{scales.size * 16} sampled pairs: exact fractions and the fast oracle agree"]
    target = _reopen(facts, device, lines) if rerun else None
    if target is None:
        return lines
    pieces = len(made["segments"]["sums"])
    piece = int(random.integers(pieces))
    try:
        _rerun_sample(target, scales, exact, facts)
        tally = _rerun_segment(target, domain, piece, modes)
    finally:
        target.close()
    if tally.refused:
        raise Rejected(f"run again: {arithmetic.name_refused(tally.first[0], facts)}")
    if f"{tally.total:016x}" != (there := made["segments"]["sums"][piece]):
        raise Rejected(f"run again: segment {piece} adds up to {tally.total:016x}, not {there}")
    if pieces == 1 and tally.not_strict != (told := made["counts"]["not_strict"]):
        raise Rejected(f"run again: {tally.not_strict} results are not strict, not {told}")
    return [*lines, f"run again: the sample, and segment {piece} of {pieces} ({tally.pairs} pairs), gave the same"]


def _check_counts(made: dict[str, Any], domain: prove_domain.Domain, modes: FloatModes) -> None:
    """Counts and segments follow from the domain and the modes, but for ``not_strict`` and the sums."""
    facts, counts = made["target"], made["counts"]
    if domain.name != made["domain"]:
        raise Rejected(f"domain is {made['domain']!r}, whose name is {domain.name!r}")
    if counts["pairs"] != domain.pairs:
        raise Rejected(f"counts {counts['pairs']} pairs; domain {domain.name} has {domain.pairs}")
    lawless = 0 if _lawful(facts, modes) else 16 * domain.not_finite
    if counts["lawless"] != lawless:
        raise Rejected(f"counts {counts['lawless']} lawless results; the domain has {lawless}")
    if facts["arithmetic"] == "host" and counts["not_strict"]:
        raise Rejected(f"counts {counts['not_strict']} results that are not strict, on a host")
    pieces = -(-domain.size // domain.segment)
    if made["segments"]["scales"] != domain.segment or len(made["segments"]["sums"]) != pieces:
        raise Rejected(f"segments are not {pieces} of {domain.segment} scales")


def _lawful(facts: Mapping[str, str], modes: FloatModes) -> bool:
    """Whether contract 3.5 holds the target to NaN and infinity."""
    infinite = np.array([np.inf], facts["scale_dtype"])
    return not accept_products(CODES[-1:], infinite, facts["output_dtype"], modes).anything[0]


def _against_fractions(scales: Array, facts: Mapping[str, str], modes: FloatModes) -> list[list[Any]]:
    """What exact fractions allow for every scale and code, once the fast oracle has said the same."""
    fast = accept_products(CODES[None, :], scales[:, None], facts["output_dtype"], modes)
    exact = []
    for row, pattern in enumerate(scales.view(f"u{scales.itemsize}").tolist()):
        exact.append(
            [allowed_bits(q, pattern, facts["scale_dtype"], facts["output_dtype"], modes) for q in range(-8, 8)]
        )
        for code, allowed in enumerate(exact[-1]):
            at = (row, code)
            if allowed.anything or fast.anything[at]:
                same = allowed.anything == bool(fast.anything[at])
            elif allowed.any_nan or fast.any_nan[at]:
                same = allowed.any_nan == bool(fast.any_nan[at])
            else:
                same = set(fast.allowed(at)) == set(allowed.patterns)
            if not same:
                raise Rejected(
                    f"the fast oracle is wrong for scale {pattern:#x}, code {code}: see reference/arithmetic/accept.py"
                )
    return exact


def _reopen(facts: dict[str, str], device: str, lines: list[str]) -> Target | None:
    """The certificate's target, opened again; None, and a line why, where it is not there."""
    shader = ROOT / facts["shader"] if facts["shader"] else None
    try:
        target = prove_target.open_target(
            facts["subject"], facts["variant"], device=device or facts["device"], shader=shader
        )
    except (ValueError, EnvironmentProblem) as error:
        lines.append(f"not run again: {error}")
        return None
    for name, value in target.facts.items():
        if facts[name] != value:
            lines.append(f"not run again: {name} is {value!r} here, not {facts[name]!r}")
            target.close()
            return None
    return target


def _rerun_sample(target: Target, scales: Array, exact: list[list[Any]], facts: Mapping[str, str]) -> None:
    target.open_products(_CHUNK, 1)
    got = target.products(0, scales)
    if got.damage:
        raise Rejected(f"run again: {got.damage}")
    form = FORMATS[facts["output_dtype"]]
    for column, row in enumerate(exact):
        nans = is_nan(got.bits[column], form)
        for code, allowed in enumerate(row):
            bits = int(got.bits[column, code])
            if not (allowed.anything or bits in allowed.patterns or (allowed.any_nan and nans[code])):
                raise Rejected(
                    f"run again: scale {scales[column : column + 1].view(f'u{scales.itemsize}')[0]:#x}, code {code} "
                    f"gave {bits:#x}, which exact fractions do not allow"
                )


def _rerun_segment(target: Target, domain: prove_domain.Domain, piece: int, modes: FloatModes) -> Tally:
    tally = Tally()
    chunk = target.open_products(_CHUNK, 1)
    stop = min((piece + 1) * domain.segment, domain.size)
    for start in range(piece * domain.segment, stop, chunk):
        scales = domain.scales(start, min(start + chunk, stop))
        got = target.products(0, scales)
        if got.damage:
            raise Rejected(f"run again: {got.damage}")
        tally += judge_rows(scales, target.facts["output_dtype"], modes, got.bits)
    return tally


def _check_indexing(made: dict[str, Any], device: str, *, rerun: bool) -> list[str]:
    shapes = {shape.name: shape for shape in indexing.SHAPES}
    _check_cases(made, shapes, sum(s.elements for s in shapes.values() if made["cases"].get(s.name) == PROVEN))
    lines: list[str] = []
    target = _reopen(made["target"], device, lines) if rerun else None
    if target is None:
        return lines
    random = np.random.Generator(np.random.PCG64(int(made["evidence"][:16], 16)))
    names = sorted(random.choice(sorted(shapes), _CASES, replace=False).tolist())
    try:
        found = indexing.prove(target, tuple(shapes[name] for name in names))
    finally:
        target.close()
    _same_cases(made, found)
    return [f"run again: {', '.join(names)} gave the same"]


def _check_layout(made: dict[str, Any], *, rerun: bool) -> list[str]:
    facts = made["target"]
    if facts != layout.facts(facts["subject"]):
        raise Rejected("target has facts that a layout does not depend on")
    try:
        names = layout.case_names()
        _check_cases(made, names, sum(names[name] for name, said in made["cases"].items() if said == PROVEN))
        found = layout.prove(facts["subject"]) if rerun else None
    except (KeyError, ValueError, ImportError, EnvironmentProblem) as error:
        raise Rejected(f"cannot be made again: {error}") from error
    if found is None:
        return []
    _same_cases(made, found)
    return ["run again: every case gave the same"]


def _check_cases(made: dict[str, Any], names: Mapping[str, Any], elements: int) -> None:
    counts, cases = made["counts"], made["cases"]
    if odd := sorted(set(cases) ^ set(names)):
        raise Rejected(f"cases: {odd[0]!r} is {'unknown' if odd[0] in cases else 'missing'}")
    beyond = sum(1 for said in cases.values() if isinstance(said, str) and said.startswith("refused: "))
    if any(said != PROVEN and not str(said).startswith("refused: ") for said in cases.values()):
        raise Rejected("cases: one is neither proven nor refused")
    if (counts["cases"], counts["elements"], counts["beyond_limits"]) != (len(names), elements, beyond):
        raise Rejected(f"counts are not {len(names)} cases, {elements} elements, {beyond} beyond limits")


def _same_cases(made: dict[str, Any], found: dict[str, Any]) -> None:
    for name, said in found["cases"].items():
        if made["cases"][name] != said:
            more = f": {found['mismatches'][0]}" if found["mismatches"] else ""
            raise Rejected(f"run again: {name} is {said}, not {made['cases'][name]}{more}")
