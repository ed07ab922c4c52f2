"""``q4gsw prove``: arithmetic, layout, indexing, all of them; and whether certificates hold.

Exit codes: 0 proven (or the certificate holds), 1 refuted, rejected, or a journal that cannot be continued, 2 usage
or a machine that lacks something. Needs numpy and tqdm only, for devices PyPI's vulkan.

Source: docs/proofs.md.
"""

import argparse
import fnmatch
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from conformance.cli.options import Parser, positive, way
from conformance.files import check_writable
from conformance.proofs import arithmetic as prove_arithmetic
from conformance.proofs import certificate
from conformance.proofs import check as prove_check
from conformance.proofs import domain as prove_domain
from conformance.proofs import indexing as prove_indexing
from conformance.proofs import layout as prove_layout
from conformance.proofs import target as prove_target
from conformance.proofs.certificate import PROVEN, REFUSED, CasesClaim, Certificate
from conformance.proofs.journal import Journal

OUT = Path("report/certificates")


def add_prove(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw prove``."""
    ways = parser.ways()
    what = "every scale bit pattern of a domain times every code"
    arithmetic = way(ways, "arithmetic", what, "prove arithmetic --variant 'block-buffer-*' --domain boundary")
    arithmetic.set_defaults(call=_arithmetic)
    which = arithmetic.add_mutually_exclusive_group()
    which.add_argument("--domain", default="all", help="all | boundary | START:STOP, bit patterns (default: all)")
    which.add_argument("--range", dest="domain", help="START:STOP, bit patterns of the scale's dtype")
    arithmetic.add_argument("--resume", action="store_true", help="go on with the journal next to the certificate")
    arithmetic.add_argument("--threads", type=positive, help="threads of the oracle (default: cores, at most 6)")
    arithmetic.add_argument("--chunk", type=positive, default=prove_arithmetic.MOST, help="scales a chunk at most")
    what = "which code, scale and index every output element reads"
    indexing = way(ways, "indexing", what, "prove indexing --variant 'block-*'")
    indexing.set_defaults(call=_indexing)
    what = "the byte layouts are bijections, and a packer keeps to them"
    layout = way(ways, "layout", what, "prove layout --subject path.py:Class")
    layout.set_defaults(call=_layout)
    what = "layout, indexing and float16 of every variant, float32 at its boundaries"
    every = way(ways, "all", what, "prove all --out docs/certificates/lavapipe")
    every.set_defaults(call=_all)
    for one in (arithmetic, indexing, every):
        one.add_argument("--variant", default="*", help="names or patterns, with commas (default: all)")
        one.add_argument("--shader", type=Path, help="another GLSL file of the same interface")
        one.shared("--device")
    for one in (arithmetic, indexing, layout, every):
        one.shared("--subject", help="impl | executorch | reference; layout: path.py:Class too")
        one.add_argument("--out", type=Path, default=OUT, help=f"directory for certificates (default: {OUT})")
    check = way(ways, "check", "whether certificates hold", "prove check docs/certificates/lavapipe/*.json")
    check.set_defaults(call=_check)
    check.add_argument("files", type=Path, nargs="+")
    check.shared("--device", help="Vulkan device by name or index (default: the certificate's)")
    check.add_argument("--no-rerun", action="store_true", help="do not run anything again on the device")


def _variants(given: argparse.Namespace) -> list[str]:
    check_writable(given.out)
    names = prove_target.variants(given.subject)
    patterns = given.variant.split(",")
    found = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not found:
        raise ValueError(f"no variant {given.variant!r} of {given.subject}; there are {', '.join(names)}")
    return found


def _arithmetic(given: argparse.Namespace) -> int:
    names = _variants(given)
    return max(_arithmetic_of(given, name, given.domain) for name in names)


def _arithmetic_of(given: argparse.Namespace, variant: str, domain_name: str) -> int:
    target = prove_target.open_target(given.subject, variant, device=given.device, shader=given.shader)
    try:
        domain = prove_domain.parse(domain_name, target.numerics.scale_dtype)
        out = given.out / f"arithmetic-{variant}-{domain.name.replace(':', '-')}.json"
        chunk = min(
            target.open_products(min(given.chunk, domain.segment, domain.size), prove_arithmetic.SLOTS), domain.segment
        )
        versions = certificate.versions(given.subject)
        header = prove_arithmetic.header(target, domain, chunk, versions)
        journal = Journal(out.with_suffix(".journal"), header, resume=given.resume)
        prove_arithmetic.prove(target, domain, chunk, journal, threads=given.threads)
        claim, mismatches = prove_arithmetic.findings(journal.records, target.numerics, domain)
        timing = prove_arithmetic.timing(journal.records)
        proof = Certificate(claim, target.facts, mismatches, versions, timing)
        certificate.write(out, proof)
        journal.remove()
    finally:
        target.close()
    free = sum(record.tally.unconstrained for record in journal.records)
    counts = {"refused": claim.refused, "not_strict": claim.not_strict, "unconstrained": free, "damaged": claim.damaged}
    return _report(out, proof, "pairs", domain.pairs, counts)


def _indexing(given: argparse.Namespace) -> int:
    return max(_indexing_of(given, name) for name in _variants(given))


def _indexing_of(given: argparse.Namespace, variant: str) -> int:
    target = prove_target.open_target(given.subject, variant, device=given.device, shader=given.shader)
    try:
        began, started = time.time(), time.perf_counter()
        claim, mismatches = prove_indexing.prove(target)
        spent = time.perf_counter() - started
        stages = {**target.seconds, "oracle": spent - sum(target.seconds.values())}
    finally:
        target.close()
    timing = certificate.timing(began, time.time(), spent, stages)
    proof = Certificate(claim, target.facts, mismatches, certificate.versions(given.subject), timing)
    return _report_cases(given.out / f"indexing-{variant}.json", proof, claim, prove_indexing.case_names())


def _layout(given: argparse.Namespace) -> int:
    check_writable(given.out)
    began, started = time.time(), time.perf_counter()
    claim, mismatches = prove_layout.prove(given.subject)
    spent = time.perf_counter() - started
    timing = certificate.timing(began, time.time(), spent, {"oracle": spent})
    facts = prove_target.TargetFacts(given.subject)
    proof = Certificate(claim, facts, mismatches, certificate.versions(given.subject), timing)
    out = given.out / f"layout-{Path(given.subject.partition(':')[0]).stem}.json"
    return _report_cases(out, proof, claim, prove_layout.case_names())


def _all(given: argparse.Namespace) -> int:
    worst = 0
    given.resume, given.threads, given.chunk = False, None, prove_arithmetic.MOST
    for name in _variants(given):
        if not name.endswith("-nomodes"):  # the same addresses as with modes declared
            worst = max(worst, _indexing_of(given, name))
        worst = max(worst, _arithmetic_of(given, name, "all" if "f16scale" in name else "boundary"))
    return worst if given.shader else max(worst, _layout(given))


def _check(given: argparse.Namespace) -> int:
    worst = 0
    for path in given.files:
        try:
            lines = prove_check.check(path, device=given.device, rerun=not given.no_rerun)
            print(f"{path}: holds; {'; '.join(lines)}", flush=True)
        except certificate.Rejected as error:
            worst = 1
            print(f"{path}: {error}", flush=True)
    return worst


def _report_cases(out: Path, proof: Certificate, claim: CasesClaim, elements: Mapping[str, int]) -> int:
    certificate.write(out, proof)
    outcomes = list(claim.cases.values())
    exceeded = sum(outcome.startswith(REFUSED) for outcome in outcomes)
    judged = sum(elements[name] for name, outcome in claim.cases.items() if not outcome.startswith(REFUSED))
    counts = {"cases": len(outcomes), "exceed a limit": exceeded, "wrong": len(proof.mismatches)}
    return _report(out, proof, "elements", judged, counts)


def _report(path: Path, proof: Certificate, what: str, judged: int, counts: Mapping[str, int]) -> int:
    """One line for a certificate, one for its rates, one a mismatch."""
    print(
        f"{proof.result}: {path} ({', '.join(f'{name} {count}' for name, count in {what: judged, **counts}.items())})"
    )
    stages = vars(proof.timing.stages)
    rates = ", ".join(f"{name} {_giga(judged, seconds)}" for name, seconds in stages.items())
    whole = _giga(judged, proof.timing.working_s)
    slowest = max(stages, key=stages.__getitem__)
    print(f"  {proof.timing.working_s:.2f} s, G {what}/s: {whole} in all; {rates}; {slowest} binds")
    for line in proof.mismatches:
        print(f"  {line}")
    sys.stdout.flush()
    return 0 if proof.result == PROVEN else 1


def _giga(judged: int, seconds: float) -> str:
    return f"{judged / seconds / 1e9:.3f}" if seconds else "-"
