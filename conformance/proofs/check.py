"""``prove check``: does a certificate still hold, here and now?

Its form and seals first (``certificate.read``), then what it claims: that the parts belong together, that the shader
is still the one, that the fast oracle agrees with exact fractions on a seeded sample, and, where the device is there,
that running again gives what the certificate says. What is run again is drawn from a seed that the file cannot choose.
"""

import secrets
from collections.abc import Iterable, Mapping
from contextlib import closing
from pathlib import Path

import numpy as np

from conformance.harness import subject
from conformance.harness.errors import EnvironmentProblem
from conformance.proofs import arithmetic, certificate, indexing, layout, target
from conformance.proofs.certificate import (
    PROVEN,
    REFUSED,
    ArithmeticClaim,
    CasesClaim,
    EverySizeClaim,
    IndexingClaim,
    Rejected,
    Untrusted,
)
from conformance.proofs.domain import Domain, parse
from conformance.proofs.target import Array, Numerics, Target, TargetFacts
from reference.arithmetic.accept import CODES, HOST, accept_products
from reference.arithmetic.accept_many import Tally, judge_rows
from reference.arithmetic.exact import Allowed, allowed_bits
from reference.arithmetic.rounding import FORMATS, is_nan

ROOT = Path(__file__).resolve().parents[2]
#: The shaders that certificates of subject "impl" are about.
GLSL = tuple(ROOT / "vulkan" / "glsl" / f"{name}.comp" for name in ("embedding_q4gsw", "pack_q4_linear_weight"))
#: Scales of the seeded sample; each with all 16 codes.
SAMPLE = 64
#: Cases of an indexing certificate that are run again, beside those that the device refused.
_CASES = 4
#: Scales of an arithmetic certificate that are run again: all segments, or as many as there are in so many.
_AGAIN = 1 << 20
_CHUNK = 1 << 18
HOLDS, PARTLY, NOT_AGAIN = "holds", "holds as far as it was run again", "is consistent, but was not run again"


#: How far a certificate holds, and what was found, a line each.
Finding = tuple[str, list[str]]


def check(
    path: Path,
    *,
    seed: int | None = None,
    device: str = "",
    rerun: bool = True,
    own_subject: str = "",
    shader: Path | None = None,
    jobs: int = 1,
) -> Finding:
    """How far it holds, and what does, a line each; Rejected where something does not.

    A certificate may come from anyone: the code and the shader that it names are ours, or those that the caller names,
    and what is sampled or run again follows from the caller's ``seed``, or from one that nobody knew before.
    """
    stored = certificate.read(path)
    check_trusted(stored.target, own_subject, shader)
    if stored.result != PROVEN:
        reason = next(iter(stored.mismatches), "its counts are not 0")
        raise Rejected(f"says itself that the proof failed: {reason}")
    solver = isinstance(stored.claim, EverySizeClaim)
    if set(stored.versions) != set(certificate.versions(stored.target.subject, solver=solver)):
        raise Rejected("versions are not those that such a proof depends on")
    random = np.random.Generator(np.random.PCG64(secrets.randbits(64) if seed is None else seed))
    try:
        if isinstance(stored.claim, ArithmeticClaim):
            return _check_arithmetic(stored.target, stored.claim, device if rerun else None, random)
        if isinstance(stored.claim, IndexingClaim):
            return _check_indexing(stored.target, stored.claim, device if rerun else None, random)
        if isinstance(stored.claim, EverySizeClaim):
            return _check_every_size(stored.target, stored.claim, jobs if rerun else 0)
        return _check_layout(stored.target, stored.claim, rerun=rerun)
    except Rejected:
        raise
    except (ValueError, ImportError, EnvironmentProblem) as error:
        raise Rejected(f"cannot be checked here: {error}") from error


def check_trusted(facts: TargetFacts, own_subject: str, shader: Path | None) -> None:
    """No subject's code is imported and no shader read but ours, and what the command line names."""
    known = {"reference", *subject.names(), *filter(None, [own_subject and subject.resolved(own_subject)])}
    if facts.subject not in known:
        raise Untrusted(f"its subject {facts.subject!r} is code of its own, which runs only if --subject names it")
    if facts.shader and (ROOT / facts.shader).resolve() not in {*GLSL, shader and shader.resolve()}:
        raise Untrusted(f"its shader {facts.shader!r} is not ours: it is read only if --shader names it")


def check_target(facts: TargetFacts) -> tuple[Numerics, str]:
    """The facts that any machine can derive; of a shader its hashes."""
    today, numerics = target.derived(facts)
    for name, value in vars(facts).items():
        if value != (here := getattr(today, name)):
            what = f"shader {facts.shader} is another now: " if name.endswith("sha256") else ""
            raise Rejected(f"{what}target.{name} is {value!r}, but here it is {here!r}")
    return numerics, f"shader {facts.shader} is the same" if facts.shader else "the subject runs on the host"


def _check_arithmetic(
    facts: TargetFacts, claim: ArithmeticClaim, device: str | None, random: np.random.Generator
) -> Finding:
    numerics, line = check_target(facts)
    domain = parse(claim.domain, numerics.scale_dtype)
    _check_claim(claim, domain, numerics)
    picked = np.unique(random.integers(0, domain.size, SAMPLE))
    scales = np.concatenate([domain.scales(int(at), int(at) + 1) for at in picked])
    exact = _against_fractions(scales, numerics)
    lines = [line, f"{scales.size * 16} sampled pairs: exact fractions and the fast oracle agree"]
    opened = _reopen(facts, device, lines)
    if opened is None:
        return NOT_AGAIN, lines
    count = min(domain.segments, max(1, _AGAIN // domain.segment))
    pieces = sorted(random.choice(domain.segments, count, replace=False).tolist())
    with closing(opened):
        _rerun_sample(opened, scales, exact)
        tallies = [_rerun_segment(opened, domain, piece) for piece in pieces]
    for piece, tally in zip(pieces, tallies, strict=True):
        if tally.refused:
            raise Rejected(f"run again: {arithmetic.name_refused(tally.first[0], numerics)}")
        if f"{tally.total:016x}" != claim.sums[piece]:
            raise Rejected(f"run again: segment {piece} adds up to {tally.total:016x}, not {claim.sums[piece]}")
    again = sum(tallies, Tally())
    most = again.not_strict + domain.pairs - again.pairs  # what was not run again may be anything
    if not again.not_strict <= claim.not_strict <= most:
        raise Rejected(f"run again: {again.not_strict} results are not strict, not {claim.not_strict}")
    what = f"run again: the sample, and {count} of {domain.segments} segments ({again.pairs} pairs), agree"
    return HOLDS if count == domain.segments else PARTLY, [*lines, what]


def _check_claim(claim: ArithmeticClaim, domain: Domain, numerics: Numerics) -> None:
    """What follows from the domain and the modes; not ``not_strict`` and the sums themselves."""
    if domain.name != claim.domain:
        raise Rejected(f"domain is {claim.domain!r}, whose name is {domain.name!r}")
    if claim.not_strict > (0 if numerics.modes == HOST else domain.pairs):
        raise Rejected(f"counts {claim.not_strict} results that are not strict")
    if len(claim.sums) != domain.segments:
        raise Rejected(f"sums are of {len(claim.sums)} segments; domain {domain.name} has {domain.segments}")


def _against_fractions(scales: Array, numerics: Numerics) -> list[list[Allowed]]:
    """What exact fractions allow for every scale and code, once the fast oracle agrees."""
    modes, scale_dtype, output_dtype = numerics.modes, numerics.scale_dtype, numerics.output_dtype
    fast = accept_products(CODES[None, :], scales[:, None], output_dtype, modes)
    exact = []
    for row, pattern in enumerate(scales.view(f"u{scales.itemsize}").tolist()):
        exact.append([allowed_bits(q, pattern, scale_dtype, output_dtype, modes.names) for q in range(-8, 8)])
        for code, allowed in enumerate(exact[-1]):
            at = (row, code)
            quick = _key(bool(fast.unconstrained[at]), bool(fast.any_nan[at]), fast.allowed(at))
            if quick != _key(allowed.unconstrained, allowed.any_nan, allowed.patterns):
                raise Rejected(
                    f"the fast oracle is wrong for scale {pattern:#x}, code {code}: see reference/arithmetic/accept.py"
                )
    return exact


def _key(unconstrained: bool, any_nan: bool, patterns: Iterable[int]) -> str | frozenset[int]:
    return "unconstrained" if unconstrained else "any NaN" if any_nan else frozenset(patterns)


def _reopen(facts: TargetFacts, device: str | None, lines: list[str]) -> Target | None:
    """The certificate's target, opened again; None where nothing is to run or, with a line why, it is not there."""
    if device is None:
        return None
    shader = ROOT / facts.shader if facts.shader else None
    try:
        opened = target.open_target(facts.subject, facts.variant, device=device or facts.device, shader=shader)
    except (ValueError, EnvironmentProblem) as error:
        lines.append(f"not run again: {error}")
        return None
    for name, value in vars(opened.facts).items():
        if value != (there := getattr(facts, name)):
            lines.append(f"not run again: {name} is {value!r} here, not {there!r}")
            opened.close()
            return None
    return opened


def _rerun_sample(opened: Target, scales: Array, exact: list[list[Allowed]]) -> None:
    opened.open_products(_CHUNK, 1)
    result = opened.products(0, scales)
    if result.damage:
        raise Rejected(f"run again: {result.damage}")
    nans = is_nan(result.out, FORMATS[opened.numerics.output_dtype])
    for (row, code), bits in np.ndenumerate(result.out):
        allowed = exact[row][code]
        if not (allowed.unconstrained or int(bits) in allowed.patterns or (allowed.any_nan and nans[row, code])):
            pattern = scales.view(f"u{scales.itemsize}")[row]
            raise Rejected(
                f"run again: scale {pattern:#x}, code {code} gave {bits:#x}, which exact fractions do not allow"
            )


def _rerun_segment(opened: Target, domain: Domain, piece: int) -> Tally:
    tally = Tally()
    chunk = opened.open_products(_CHUNK, 1)
    stop = min((piece + 1) * domain.segment, domain.size)
    for start in range(piece * domain.segment, stop, chunk):
        scales = domain.scales(start, min(start + chunk, stop))
        result = opened.products(0, scales)
        if result.damage:
            raise Rejected(f"run again: {result.damage}")
        tally += judge_rows(scales, opened.numerics.output_dtype, opened.numerics.modes, result.out)
    return tally


def _check_indexing(
    facts: TargetFacts, claim: IndexingClaim, device: str | None, random: np.random.Generator
) -> Finding:
    lines = [check_target(facts)[1]]
    shapes = {shape.name: shape for shape in indexing.SHAPES}
    _check_cases(claim, shapes)
    refused = [name for name, outcome in claim.cases.items() if outcome != PROVEN]
    for name in refused:
        if why := indexing.undue_refusal(shapes[name], facts, claim.cases[name]):
            raise Rejected(f"cases: {name} is refused, but {why}")
    opened = _reopen(facts, device, lines)
    if opened is None:
        return NOT_AGAIN, lines
    names = sorted({*refused, *random.choice(sorted(shapes), _CASES, replace=False).tolist()})
    with closing(opened):
        _same_cases(claim, *indexing.prove(opened, tuple(shapes[name] for name in names)))
    return PARTLY, [*lines, f"run again: {', '.join(names)} agree ({len(names)} of {len(shapes)} cases)"]


def _check_layout(facts: TargetFacts, claim: CasesClaim, *, rerun: bool) -> Finding:
    if facts != TargetFacts(facts.subject):
        raise Rejected("target has facts that a layout does not depend on")
    _check_cases(claim, layout.case_names())
    if facts.subject != "reference":
        subject.check_name(facts.subject)
    if not rerun:
        return NOT_AGAIN, ["no shader is involved"]
    _same_cases(claim, *layout.prove(facts.subject))
    return HOLDS, ["no shader is involved", "run again: every case agrees"]


def _check_every_size(facts: TargetFacts, claim: EverySizeClaim, jobs: int) -> Finding:
    """The module again, and every obligation proven again by so many processes; without one the module only."""
    from conformance.proofs.every_size import prove  # noqa: PLC0415 - loads z3
    from conformance.proofs.targets import modules  # noqa: PLC0415 - the same

    today = modules.source(facts.subject, facts.variant, ROOT / facts.shader if facts.shader else None)
    for name, value in vars(facts).items():
        if value != (here := getattr(today.facts, name)):
            raise Rejected(f"target.{name} is {value!r}, but here it is {here!r}")
    if set(claim.obligations) != {setting.name for setting in today.settings}:
        raise Rejected("obligations are not of the settings that such a shader has to be right in")
    if set(claim.cases.values()) != {PROVEN}:
        raise Rejected("cases: one is not proven")
    if not jobs:
        return NOT_AGAIN, ["the module is the same"]
    wanted = {facts.variant: (today.spirv, today.form, today.settings)}
    ((_name, decided),) = prove.decisions(wanted, jobs)
    again = prove.claim(decided)
    if again != claim:
        changed = next((name for name, one in again.cases.items() if claim.cases.get(name) != one), "the obligations")
        raise Rejected(f"proven again: {changed} differ")
    total = sum(one.obligations for one in decided)
    return HOLDS, ["the module is the same", f"proven again: {total} obligations hold"]


def _check_cases(claim: CasesClaim, names: Mapping[str, object]) -> None:
    if odd := sorted(set(claim.cases) ^ set(names)):
        raise Rejected(f"cases: {odd[0]!r} is {'unknown' if odd[0] in claim.cases else 'missing'}")
    if any(outcome != PROVEN and not outcome.startswith(REFUSED) for outcome in claim.cases.values()):
        raise Rejected("cases: one is neither proven nor refused")
    if PROVEN not in claim.cases.values():
        raise Rejected("cases: none is proven")


def _same_cases(claim: CasesClaim, again: CasesClaim, mismatches: tuple[str, ...]) -> None:
    for name, outcome in again.cases.items():
        if claim.cases[name] != outcome:
            more = f": {mismatches[0]}" if mismatches else ""
            raise Rejected(f"run again: {name} is {outcome}, not {claim.cases[name]}{more}")
