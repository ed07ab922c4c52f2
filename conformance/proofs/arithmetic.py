"""Proving arithmetic: every scale bit pattern of a domain times every code, judged one by one.

One thread feeds the target; while it computes and moves a chunk, the others judge the chunk before. A chunk
counts once all of it is judged, and then it is in the journal.
"""

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
from tqdm import tqdm

from conformance.proofs import certificate
from conformance.proofs.certificate import ArithmeticClaim, Stages, Timing
from conformance.proofs.domain import Domain, parse
from conformance.proofs.journal import Record
from conformance.proofs.target import Array, Numerics, Target, TargetFacts, derived
from conformance.serialize import structure
from reference.arithmetic.accept import CODES, accept_products
from reference.arithmetic.accept_many import BLOCK, FIRST, Refused, Tally, judge_rows

#: Scales of a chunk at most; 256 MiB of float32 results.
MOST = 1 << 22
SLOTS = 2
#: What a journal's header says of a proof beside domain and chunk.
_PARTS = ("target", "versions")
#: Scales that one thread judges at a time; divides every segment.
_PART = 1 << 16
#: Threads of the oracle at most, and from how many on it takes larger blocks: numpy's calls take turns at
#: Python's lock, and on 16 cores six threads with blocks of 2**15 judge more than sixteen do (docs/proofs.md).
_THREADS, _MANY, _LARGE_BLOCK = 6, 3, 1 << 15


def header(target: Target, domain: Domain, chunk: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """What a journal of this proof begins with."""
    facts = {f"target.{name}": fact for name, fact in vars(target.facts).items()}
    known = {f"versions.{name}": version for name, version in versions.items()}
    return {"domain": domain.name, "chunk": chunk, **facts, **known}


def begin(target: Target, domain_name: str, most: int) -> tuple[Domain, int, dict[str, Any]]:
    """Make the target ready: the domain of its scales, how many of them a chunk has, and the journal's header."""
    scales = parse(domain_name, target.numerics.scale_dtype)
    chunk = min(target.open_products(min(most, scales.segment, scales.size), SLOTS), scales.segment)
    return scales, chunk, header(target, scales, chunk, certificate.versions(target.facts.subject))


def numerics_of(header: Mapping[str, Any]) -> Numerics:
    """What the facts of a journal's header settle about numbers."""
    return derived(subject_of(header)[0])[1]


def subject_of(header: Mapping[str, Any]) -> tuple[TargetFacts, dict[str, str]]:
    """The facts and the versions that a journal's header names.

    Raises:
        ValueError: a fact is missing, unknown or no text.
    """
    found = [{k.removeprefix(f"{part}."): v for k, v in header.items() if k.startswith(f"{part}.")} for part in _PARTS]
    return structure(TargetFacts, found[0], "target"), structure(dict[str, str], found[1], "versions")


def prove(
    target: Target,
    domain: Domain,
    chunks: Sequence[tuple[int, int]],
    add: Callable[[Record], None],
    *,
    done: int = 0,
    threads: int | None = None,
) -> None:
    """Compute and judge ``chunks`` (start, stop) of the domain, and ``add`` each of them once it is judged.

    A chunk is not longer than ``target.open_products`` returned, and lies in one segment. ``done`` scales were before.
    """
    threads = threads or min(_THREADS, os.cpu_count() or 1)
    block = _LARGE_BLOCK if threads >= _MANY else BLOCK
    last = time.perf_counter()

    def finish(record: Record, parts: list[Future[tuple[Tally, float]]]) -> None:
        nonlocal last
        tallies, seconds = zip(*(part.result() for part in parts), strict=True)
        now = time.perf_counter()
        stages = replace(record.seconds, oracle=sum(seconds) / threads)
        tally = sum(tallies, Tally())
        add(replace(record, tally=tally, ended=time.time(), working_s=now - last, seconds=stages))
        last = now
        bar.update(16 * (record.stop - record.start))

    pairs = 16 * (done + sum(stop - start for start, stop in chunks))
    bar = tqdm(total=pairs, initial=16 * done, unit=" pairs", unit_scale=True, disable=None, smoothing=0.1)
    queue: deque[tuple[Record, list[Future[tuple[Tally, float]]]]] = deque()
    with bar, ThreadPoolExecutor(threads) as pool:
        for number, (start, stop) in enumerate(chunks):
            if len(queue) == SLOTS:
                finish(*queue.popleft())
            before, began = dict(target.seconds), time.time()
            scales = domain.scales(start, stop)
            result = target.products(number % SLOTS, scales)
            spent = Stages(**{stage: target.seconds[stage] - before[stage] for stage in before})
            parts = [
                pool.submit(_judge, scales[at : at + _PART], target.numerics, result.out[at : at + _PART], block)
                for at in range(0, stop - start, _PART)
            ]
            queue.append((Record(start, stop, damage=result.damage, began=began, seconds=spent), parts))
        while queue:
            finish(*queue.popleft())


def _judge(scales: Array, numerics: Numerics, bits: Array, block: int) -> tuple[Tally, float]:
    started = time.thread_time()
    tally = judge_rows(scales, numerics.output_dtype, numerics.modes, bits, block=block)
    return tally, time.thread_time() - started


def findings(records: Sequence[Record], numerics: Numerics, domain: Domain) -> tuple[ArithmeticClaim, tuple[str, ...]]:
    """What the records add up to: the certificate's claim and its mismatches."""
    ordered = sorted(records, key=lambda record: record.start)
    edges = [0, *(record.stop for record in ordered)]
    if [record.start for record in ordered] != edges[:-1] or edges[-1] != domain.size:
        at = next((edge for edge, record in zip(edges, ordered, strict=False) if edge != record.start), edges[-1])
        raise ValueError(f"the chunks do not cover the domain exactly once: there is a gap or an overlap at scale {at}")
    segments = [Tally()] * domain.segments
    for record in ordered:
        segments[record.start // domain.segment] += record.tally
    whole = sum(segments, Tally())
    damage = [record.damage for record in ordered if record.damage]
    mismatches = (*(name_refused(place, numerics) for place in whole.first), *damage[:FIRST])
    sums = tuple(f"{segment.total:016x}" for segment in segments)
    return ArithmeticClaim(domain.name, sums, whole.not_strict, whole.refused, len(damage)), mismatches


def timing(records: Sequence[Record]) -> Timing:
    """The times of a certificate."""
    stages = {name: sum(getattr(record.seconds, name) for record in records) for name in vars(Stages())}
    ends = min(record.began for record in records), max(record.ended for record in records)
    return certificate.timing(*ends, sum(record.working_s for record in records), stages)


def name_refused(refused: Refused, numerics: Numerics) -> str:
    """One wrong product in one line, with what is allowed."""
    unsigned = np.uint16 if numerics.scale_dtype == "float16" else np.uint32
    scale = np.array([refused.scale_bits], unsigned).view(numerics.scale_dtype)
    value = CODES[refused.code : refused.code + 1]
    accept = accept_products(value, scale, numerics.output_dtype, numerics.modes)
    digits = accept.form.width // 4
    allowed = "any NaN" if accept.any_nan[0] else " or ".join(f"0x{bits:0{digits}X}" for bits in accept.allowed(0))
    return (
        f"scale 0x{refused.scale_bits:0{2 * scale.itemsize}X} ({scale[0]!s}) times q = {value[0]} "
        f"(code {refused.code}): got 0x{refused.got:0{digits}X}, allowed {allowed}"
    )
