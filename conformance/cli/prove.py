"""``q4gsw prove``: arithmetic, layout, indexing, all of them; and whether certificates hold.

Needs numpy and tqdm only, for devices PyPI's vulkan too.
"""

import argparse
import fnmatch
import os
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

from conformance.cli import every_size
from conformance.cli.options import Parser, positive
from conformance.files import check_writable, say
from conformance.harness.errors import FeatureMissing
from conformance.harness.subject import resolved
from conformance.proofs import arithmetic, certificate, check, domain, indexing, layout, target
from conformance.proofs import journal as journals
from conformance.proofs.certificate import PROVEN, REFUSED, Certificate, IndexingClaim, LayoutClaim
from conformance.proofs.journal import Record

OUT = Path("report/certificates")


def add_prove(parser: Parser) -> None:
    """Add the ways and the options of ``q4gsw prove``."""
    what = "every scale bit pattern of a domain times every code"
    numbers = parser.way(
        "arithmetic", what, "prove arithmetic --variant 'block-buffer-*' --domain boundary", _arithmetic
    )
    which = numbers.add_mutually_exclusive_group()
    which.add_argument("--domain", default="all", help="all | boundary | START:STOP, bit patterns (default: all)")
    which.add_argument("--range", dest="domain", help="START:STOP, bit patterns of the scale's dtype")
    numbers.add_argument("--resume", action="store_true", help="continue the journal next to the certificate")
    numbers.add_argument("--threads", type=positive, help="threads of the oracle (default: cores, at most 6)")
    numbers.add_argument("--chunk", type=positive, default=arithmetic.MOST, help="scales a chunk at most")
    what = "which code, scale and index every output element reads"
    addresses = parser.way("indexing", what, "prove indexing --variant 'block-*'", _indexing)
    what = "the byte layouts are bijections, and a packer keeps to them"
    bytes_ = parser.way("layout", what, "prove layout --subject path.py:Class", _layout)
    sizes = every_size.add_every_size(parser)
    sizes.set_defaults(call=_every_size)
    what = "layout, indexing, every size and float16 of every variant, float32 at its boundaries"
    every = parser.way("all", what, "prove all --out docs/certificates/lavapipe", _all)
    every.set_defaults(resume=False, threads=None, chunk=arithmetic.MOST, shard=None, cluster="")
    numbers.shared("--shard", "--cluster", "--resource")
    parts = parser.way("merge", "one certificate of the journals of all shards", "prove merge report/*.journal", _merge)
    parts.add_argument("files", type=Path, nargs="+")
    parts.add_argument("--out", type=Path, default=OUT, help=f"directory for the certificate (default: {OUT})")
    parts.shared("--subject", default="", help="path.py:Class that the journals name")
    parts.add_argument("--shader", type=Path, help="GLSL file that the journals name")
    every.set_defaults(jobs=os.cpu_count() or 1, groups=(), any_group=False)
    for one in (numbers, addresses, every, sizes):
        one.add_argument("--variant", default="*", help="names or patterns, with commas (default: all)")
    for one in (numbers, addresses, every):
        one.add_argument("--shader", type=Path, help="another GLSL file of the same interface")
        one.shared("--device")
    sizes.shared("--subject", help="impl | executorch-src:PATH[@REVISION]")
    for one in (numbers, addresses, bytes_, every):
        one.shared(
            "--subject", help="impl | executorch | executorch-runtime:PATH | reference; layout: path.py:Class too"
        )
    for one in (numbers, addresses, bytes_, every, sizes):
        one.add_argument("--out", type=Path, default=OUT, help=f"directory for certificates (default: {OUT})")
    again = parser.way("check", "whether certificates hold", "prove check docs/certificates/lavapipe/*.json", _check)
    again.add_argument("files", type=Path, nargs="+")
    again.shared("--device", help="Vulkan device by name or index (default: the certificate's)")
    again.shared("--subject", default="", help="path.py:Class that a certificate names, to run it")
    again.add_argument("--shader", type=Path, help="GLSL file that a certificate names, to compile it")
    again.add_argument("--seed", type=int, default=secrets.randbits(32), help="of what is sampled (default: random)")
    again.add_argument("--jobs", type=positive, default=1, help="processes that prove every size again (default: 1)")
    again.add_argument("--no-rerun", action="store_true", help="do not run anything again on the device")


def _every_size(options: argparse.Namespace) -> int:
    from conformance.proofs.targets import modules  # noqa: PLC0415 - loads z3

    options.names = _variants(options, modules.names())
    return every_size.run(options)


def _variants(options: argparse.Namespace, names: Sequence[str] = ()) -> list[str]:
    check_writable(options.out)
    names = names or target.variants(options.subject)
    patterns = options.variant.split(",")
    chosen = [name for name in names if any(fnmatch.fnmatchcase(name, pattern) for pattern in patterns)]
    if not chosen:
        from conformance.case.catalogue import nearest  # noqa: PLC0415 - a right name needs no catalogue

        nearest(f"variant of {options.subject}", patterns[0], names)
    return chosen


def _each(options: argparse.Namespace, prove: Callable[[str], int]) -> int:
    """Prove every variant; where the device lacks a feature of one, say so, and go on unless it lacks them all."""
    worst, names, missing = 0, _variants(options), []
    for name in names:
        try:
            worst = max(worst, prove(name))
        except FeatureMissing as error:
            missing.append(str(error))
            say(f"unsupported: {error}")
    if len(missing) == len(names):
        raise FeatureMissing(f"nothing was proven: {missing[0]}")
    return worst


def _arithmetic(options: argparse.Namespace) -> int:
    return _each(options, lambda name: _arithmetic_of(options, name, options.domain))


def _arithmetic_of(options: argparse.Namespace, variant: str, domain_name: str) -> int:
    out = options.out / _name(variant, domain.parse(domain_name, "float32"))
    number, count = options.shard or (1, 1)
    path = out.with_suffix(f".{number}-of-{count}.journal" if options.shard else ".journal")
    if options.cluster:
        from conformance.proofs import cluster  # noqa: PLC0415 - needs Dask's distributed, which is not always there

        asked = cluster.Asked(options.subject, variant, domain_name, options.chunk, options.threads or 0)
        whole = cluster.prove(options.cluster, asked, path, options.resource, resume=options.resume)
        return _certify(out, whole.header, whole.records, whole)
    words = {"device": options.device, "shader": options.shader}
    with closing(target.open_target(options.subject, variant, **words)) as opened:
        scales, chunk, header = arithmetic.begin(opened, domain_name, options.chunk)
        journal = journals.Journal(path, header, resume=options.resume)
        chunks = [c for c in journal.missing(scales.size, chunk) if c[0] // chunk % count == number - 1]
        done = sum(record.stop - record.start for record in journal.records)
        arithmetic.prove(opened, scales, chunks, journal.add, done=done, threads=options.threads)
    if options.shard:
        say(f"shard {number} of {count}: {path}; q4gsw prove merge makes a certificate of all of them")
        journal.close()
        return 0
    return _certify(out, journal.header, journal.records, journal)


def _name(variant: str, scales: domain.Domain) -> str:
    return f"arithmetic-{variant}-{scales.name.replace(':', '-')}.json"


def _merge(options: argparse.Namespace) -> int:
    """Put the journals of all shards of one proof together."""
    check_writable(options.out)
    (_, header, records), *others = [(path, *journals.read(path)) for path in options.files]
    for path, other, more in others:
        journals.check_same(path, other, header)
        records += more
    facts, _ = arithmetic.subject_of(header)
    check.check_trusted(facts, options.subject, options.shader)
    numerics, _ = check.check_target(facts)
    scales = domain.parse(str(header.get("domain")), numerics.scale_dtype)
    return _certify(options.out / _name(facts.variant, scales), header, records)


def _certify(
    out: Path, header: Mapping[str, Any], records: Sequence[Record], journal: journals.Journal | None = None
) -> int:
    """Write the certificate that the records of a proof add up to, and report it; the journal goes then."""
    facts, versions = arithmetic.subject_of(header)
    numerics = arithmetic.numerics_of(header)
    scales = domain.parse(header["domain"], numerics.scale_dtype)
    claim, mismatches = arithmetic.findings(records, numerics, scales)
    proof = Certificate(claim, facts, mismatches, versions, arithmetic.timing(records))
    certificate.write(out, proof)
    if journal:
        journal.remove()
    free = sum(record.tally.unconstrained for record in records)
    counts = {"refused": claim.refused, "not_strict": claim.not_strict, "unconstrained": free, "damaged": claim.damaged}
    return _report(out, proof, "pairs", scales.pairs, counts)


def _indexing(options: argparse.Namespace) -> int:
    return _each(options, lambda name: _indexing_of(options, name))


def _indexing_of(options: argparse.Namespace, variant: str) -> int:
    with closing(target.open_target(options.subject, variant, device=options.device, shader=options.shader)) as asked:
        name, prove, elements = f"indexing-{variant}", partial(indexing.prove, asked), indexing.case_names()
        return _cases(options, name, prove, asked.facts, elements, asked.seconds)


def _layout(options: argparse.Namespace) -> int:
    check_writable(options.out)
    name, prove = f"layout-{Path(options.subject.partition(':')[0]).stem}", partial(layout.prove, options.subject)
    return _cases(options, name, prove, target.TargetFacts(resolved(options.subject)), layout.case_names(), {})


def _cases(
    options: argparse.Namespace,
    name: str,
    prove: Callable[[], tuple[IndexingClaim | LayoutClaim, tuple[str, ...]]],
    facts: target.TargetFacts,
    elements: Mapping[str, int],
    seconds: Mapping[str, float],
) -> int:
    """Prove case by case; ``seconds`` is what the target spends meanwhile, by stage."""
    began, started = time.time(), time.perf_counter()
    claim, mismatches = prove()
    spent = time.perf_counter() - started
    timing = certificate.timing(began, time.time(), spent, {**seconds, "oracle": spent - sum(seconds.values())})
    proof = Certificate(claim, facts, mismatches, certificate.versions(options.subject), timing)
    out = options.out / f"{name}.json"
    certificate.write(out, proof)
    judged = [case for case, outcome in claim.cases.items() if not outcome.startswith(REFUSED)]
    exceeded = len(claim.cases) - len(judged)
    counts = {"cases": len(claim.cases), "exceed a limit": exceeded, "wrong": len(mismatches)}
    return _report(out, proof, "elements", sum(elements[case] for case in judged), counts)


def _all(options: argparse.Namespace) -> int:
    def both(name: str) -> int:
        addresses = 0 if name.endswith("-nomodes") else _indexing_of(options, name)  # those of the one with modes
        return max(addresses, _arithmetic_of(options, name, "all" if "f16scale" in name else "boundary"))

    worst = _each(options, both)
    if options.subject == "impl":
        options.variant = options.variant if options.shader else f"{options.variant},prepack-*"
        worst = max(worst, _every_size(options))
    return worst if options.shader else max(worst, _layout(options))


def _check(options: argparse.Namespace) -> int:
    worst = 0
    if not options.no_rerun:
        say(f"sampled with --seed {options.seed}", file=sys.stderr)
    for path in options.files:
        try:
            named = {"own_subject": options.subject, "shader": options.shader, "jobs": options.jobs}
            found, lines = check.check(
                path, seed=options.seed, device=options.device, rerun=not options.no_rerun, **named
            )
            say(f"{path}: {found}; {'; '.join(lines)}")
        except certificate.Rejected as error:
            worst = max(worst, error.exit_code)
            say(f"{path}: {error}")
    return worst


def _report(path: Path, proof: Certificate, what: str, judged: int, counts: Mapping[str, int]) -> int:
    """One line for a certificate, one for its rates, one a mismatch."""
    say(f"{proof.result}: {path} ({', '.join(f'{name} {n}' for name, n in {what: judged, **counts}.items())})")
    stages = vars(proof.timing.stages)
    rates = ", ".join(f"{name} {_giga(judged, seconds)}" for name, seconds in stages.items())
    whole = _giga(judged, proof.timing.working_s)
    slowest = max(stages, key=stages.__getitem__)
    say(f"  {proof.timing.working_s:.2f} s, G {what}/s: {whole} in all; {rates}; {slowest} binds")
    for line in proof.mismatches:
        say(f"  {line}")
    sys.stdout.flush()
    return 0 if proof.result == PROVEN else 1


def _giga(judged: int, seconds: float) -> str:
    return f"{judged / seconds / 1e9:.3f}" if seconds else "-"
