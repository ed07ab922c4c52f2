"""An arithmetic proof over the workers of a Dask cluster; the certificate is that of one machine.

A task is a run of chunks. Workers whose target differs from that of the most of them are left out, and of each worker
one task is run again by another: sums that differ end the proof, whose journal is then worth nothing.
"""

import functools
import threading
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.harness import cluster
from conformance.harness.errors import EnvironmentProblem
from conformance.proofs import arithmetic, target
from conformance.proofs.certificate import canonical
from conformance.proofs.domain import parse
from conformance.proofs.journal import JOURNAL_VERSION, Journal, JournalRefused, Record, check_same

#: Chunks of a task: one is judged while the next is computed.
_CHUNKS = 16
#: A worker may run several tasks at once, and its device takes one thread at a time.
_TURN = threading.Lock()


@dataclass(frozen=True)
class Asked:
    """What is proven: the target, on whatever device a worker has, and the domain's name; sizes as of ``prove``."""

    subject: str
    variant: str
    domain: str
    most: int
    threads: int = 0


class Untrue(ValueError):  # noqa: N818 - names the answer
    """A worker's results are not those of another worker with the same target."""

    exit_code = 1


def prove(address: str, asked: Asked, path: Path, resource: str = "", *, resume: bool = False) -> Journal:
    """Compute and judge the domain on the cluster and return the journal with all of it.

    Raises:
        EnvironmentProblem: no cluster, or its workers have no common target.
        JournalRefused: there is a journal already, or it is another proof's.
        Untrue: a worker's results are not what another worker computes; the journal is deleted.
    """
    header = _common(cluster.everywhere(address, describe, asked))
    journal = Journal(path, header, resume=resume)
    scales, chunk = parse(asked.domain, arithmetic.numerics_of(header).scale_dtype), int(header["chunk"])
    missing = journal.missing(scales.size, chunk)
    pieces = [tuple(missing[at : at + _CHUNKS]) for at in range(0, len(missing), _CHUNKS)]
    tasks = {f"{piece[0][0]:#x}": piece for piece in pieces}
    work: dict[str, cluster.Call] = {key: (compute, (asked, piece)) for key, piece in tasks.items()}
    first: dict[str, tuple[str, list[Record]]] = {}
    for key, worker, (_header, records) in cluster.answers(address, work, resource=resource, doubt=_doubt(header)):
        for record in records:
            journal.add(record)
        first.setdefault(worker, (key, records))
    if len(first) > 1:
        again = {worker: (compute, (asked, tasks[key][:1])) for worker, (key, _) in first.items()}
        _compare(address, again, first, resource, journal)
    return journal


def _compare(
    address: str,
    again: Mapping[str, cluster.Call],
    first: Mapping[str, tuple[str, list[Record]]],
    resource: str,
    journal: Journal,
) -> None:
    """Let another worker run a chunk of each worker again."""
    apart = {worker: worker for worker in again}
    for worker, other, (_header, (record,)) in cluster.answers(address, again, resource=resource, apart=apart):
        there = first[worker][1][0]
        if (there.start, there.stop, there.tally, there.damage) != (
            record.start,
            record.stop,
            record.tally,
            record.damage,
        ):
            journal.remove()
            raise Untrue(
                f"scales {record.start:#x} to {record.stop:#x} add up to {there.tally.total:016x} on {worker}, to "
                f"{record.tally.total:016x} on {other}: one of them is not what it says; nothing is kept"
            )


def describe(asked: Asked) -> dict[str, Any]:
    """Run on a worker: the journal's header of its target."""
    return _target(asked)[3]


def compute(asked: Asked, chunks: tuple[tuple[int, int], ...]) -> tuple[dict[str, Any], list[Record]]:
    """Run on a worker: the header of its target, and the records of the chunks."""
    with _TURN:
        opened, scales, _, header = _target(asked)
        records: list[Record] = []
        arithmetic.prove(opened, scales, chunks, records.append, threads=asked.threads or None)
    return header, records


@functools.cache
def _target(asked: Asked) -> tuple[target.Target, Any, int, dict[str, Any]]:
    opened = target.open_target(asked.subject, asked.variant)
    scales, chunk, header = arithmetic.begin(opened, asked.domain, asked.most)
    return opened, scales, chunk, {"journal": JOURNAL_VERSION, **header}


def _common(headers: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """The header that most workers have."""
    by_text = {canonical(header): header for header in headers.values()}
    (most, votes), *others = Counter(map(canonical, headers.values())).most_common(2)
    if others and others[0][1] == votes:
        devices = ", ".join(f"{worker}: {header['target.device']}" for worker, header in sorted(headers.items()))
        raise EnvironmentProblem(
            f"the workers have no common target ({devices}); stop those that are another machine's"
        )
    return by_text[most]


def _doubt(header: dict[str, Any]) -> cluster.Doubt:
    def doubt(worker: str, answer: Any) -> str:
        try:
            check_same(worker, answer[0], header)
        except JournalRefused as error:
            return str(error)
        return ""

    return doubt
