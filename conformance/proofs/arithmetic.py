"""Proving arithmetic: every scale bit pattern of a domain times every code, judged one by one.

One thread feeds the target; while it computes and moves a chunk, the others judge the chunk before. A chunk
counts once all of it is judged, and then it is in the journal.

Source: docs/contract.md section 3; docs/proofs.md.
"""

import os
import time
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from tqdm import tqdm

from conformance.judging.compare import float_modes
from conformance.proofs.domain import Domain
from conformance.proofs.journal import Journal
from conformance.proofs.target import Array, Target
from reference.arithmetic.accept import CODES, HOST, FloatModes, accept_products
from reference.arithmetic.accept_many import BLOCK, FIRST, Refused, Tally, judge_rows

#: Scales of a chunk at most; 256 MiB of float32 results.
MOST = 1 << 22
SLOTS = 2
#: Scales that one thread judges at a time; divides every segment.
_PART = 1 << 16
#: Threads of the oracle at most, and from how many on it takes larger blocks: numpy's calls take turns at
#: Python's lock, and on 16 cores six threads with blocks of 2**15 judge more than sixteen do (docs/proofs.md).
_THREADS, _MANY, _LARGE_BLOCK = 6, 3, 1 << 15
_MODULUS = 1 << 64


@dataclass
class _Chunk:
    """A chunk on its way: computed, and being judged in parts."""

    start: int
    stop: int
    slot: int
    damage: str
    began: float
    seconds: dict[str, float]
    parts: list[Future[tuple[Tally, float]]] = field(default_factory=list)


def modes_of(facts: Mapping[str, str]) -> FloatModes:
    """What the target keeps to: a host to everything, a shader to what it declares (contract 3.4, 3.5)."""
    return HOST if facts["arithmetic"] == "host" else float_modes(facts)


def header(target: Target, domain: Domain, chunk: int, versions: Mapping[str, str]) -> dict[str, Any]:
    """What a journal of this proof begins with."""
    return {
        "kind": "arithmetic",
        "target": dict(target.facts),
        "domain": domain.name,
        "chunk": chunk,
        "versions": dict(versions),
    }


def prove(target: Target, domain: Domain, chunk: int, journal: Journal, *, threads: int | None = None) -> None:
    """Compute and judge every chunk that the journal does not have, and write it there.

    ``chunk`` is what ``target.open_products`` returned, cut to the domain's segment; it divides the segment.

    Raises:
        What the target raises.
    """
    threads = threads or min(_THREADS, os.cpu_count() or 1)
    block = _LARGE_BLOCK if threads >= _MANY else BLOCK
    modes, output_dtype = modes_of(target.facts), target.facts["output_dtype"]
    done = 16 * sum(record["stop"] - record["start"] for record in journal.records)
    last = time.perf_counter()

    def finish(waiting: _Chunk) -> None:
        nonlocal last
        record = _record(waiting, [part.result() for part in waiting.parts], domain, threads)
        now = time.perf_counter()
        record["working_s"], last = now - last, now
        journal.add(record)
        bar.update(16 * (waiting.stop - waiting.start))

    bar = tqdm(total=domain.pairs, initial=done, unit=" pairs", unit_scale=True, disable=None, smoothing=0.1)
    queue: deque[_Chunk] = deque()
    with bar, ThreadPoolExecutor(threads) as pool:
        for number, (start, stop) in enumerate(journal.missing(domain.size, chunk)):
            if len(queue) == SLOTS:
                finish(queue.popleft())
            before, began = dict(target.seconds), time.time()
            scales = domain.scales(start, stop)
            got = target.products(number % SLOTS, scales)
            spent = {stage: target.seconds[stage] - before[stage] for stage in before}
            waiting = _Chunk(start, stop, number % SLOTS, got.damage, began, spent)
            waiting.parts = [
                pool.submit(_judge, scales[at : at + _PART], output_dtype, modes, got.bits[at : at + _PART], block)
                for at in range(0, stop - start, _PART)
            ]
            queue.append(waiting)
        while queue:
            finish(queue.popleft())


def _judge(scales: Array, output_dtype: str, modes: FloatModes, bits: Array, block: int) -> tuple[Tally, float]:
    started = time.thread_time()
    tally = judge_rows(scales, output_dtype, modes, bits, block=block)
    return tally, time.thread_time() - started


def _record(chunk: _Chunk, parts: list[tuple[Tally, float]], domain: Domain, threads: int) -> dict[str, Any]:
    tally = sum((part for part, _seconds in parts), Tally())
    oracle = sum(seconds for _part, seconds in parts) / threads
    return {
        "start": chunk.start,
        "stop": chunk.stop,
        "segment": chunk.start // domain.segment,
        "pairs": tally.pairs,
        "refused": tally.refused,
        "not_strict": tally.not_strict,
        "lawless": tally.lawless,
        "total": f"{tally.total:016x}",
        "first": [[r.scale_bits, r.code, r.got] for r in tally.first],
        "damage": chunk.damage,
        "began": chunk.began,
        "ended": time.time(),
        "seconds": {**chunk.seconds, "oracle": oracle},
    }


def findings(records: list[dict[str, Any]], facts: Mapping[str, str], domain: Domain) -> dict[str, Any]:
    """What the records say together: counts, mismatches and segments of the certificate.

    Raises:
        ValueError: the records do not cover the domain exactly once.
    """
    ordered = sorted(records, key=lambda record: int(record["start"]))
    edges = [0, *(record["stop"] for record in ordered)]
    if [record["start"] for record in ordered] != edges[:-1] or edges[-1] != domain.size:
        raise ValueError("the journal's chunks do not cover the domain exactly once")
    counts = {name: sum(record[name] for record in ordered) for name in ("pairs", "refused", "not_strict", "lawless")}
    damaged = [record for record in ordered if record["damage"]]
    sums = [0] * -(-domain.size // domain.segment)
    for record in ordered:
        sums[record["segment"]] = (sums[record["segment"]] + int(record["total"], 16)) % _MODULUS
    first = [Refused(*place) for record in ordered for place in record["first"]][:FIRST]
    return {
        "counts": {**counts, "damaged": len(damaged)},
        "mismatches": [name_refused(r, facts) for r in first] + [record["damage"] for record in damaged[:FIRST]],
        "segments": {"scales": domain.segment, "sums": [f"{total:016x}" for total in sums]},
    }


def name_refused(refused: Refused, facts: Mapping[str, str]) -> str:
    """One wrong product in one line, with what is allowed."""
    unsigned = np.uint16 if facts["scale_dtype"] == "float16" else np.uint32
    scale = np.array([refused.scale_bits], unsigned).view(facts["scale_dtype"])
    value = CODES[refused.code : refused.code + 1]
    accept = accept_products(value, scale, facts["output_dtype"], modes_of(facts))
    digits = accept.form.width // 4
    allowed = "any NaN" if accept.any_nan[0] else " or ".join(f"0x{bits:0{digits}X}" for bits in accept.allowed(0))
    return (
        f"scale 0x{refused.scale_bits:0{2 * scale.itemsize}X} ({scale[0]!s}) times q = {value[0]} "
        f"(code {refused.code}): got 0x{refused.got:0{digits}X}, allowed {allowed}"
    )
