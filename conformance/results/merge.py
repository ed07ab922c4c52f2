"""One report of the shards of a run, each made on a machine of its own.

Source: docs/reading-a-report.md, "Many machines".
"""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from conformance.case.case import Case
from conformance.results import report
from conformance.results.verdict import Stream, Writer

#: What may differ between the shards of a run.
_OWN = ("shard", "started", "workers", "device")


def shard_header(shard: tuple[int, int], ids: Sequence[str]) -> dict[str, Any]:
    """Return what the header of a shard says beside a run's: which it is, and of what."""
    number, count = shard
    digest = hashlib.sha256("\n".join(ids).encode()).hexdigest()
    return {"shard": f"{number}/{count}", "selected": digest}


def merged(shards: Sequence[tuple[Path, Stream]]) -> Stream:
    """Return the verdicts of all shards of one run as one stream; each shard with the name of where it was read.

    Raises:
        ValueError: a stream is no shard, or was cut off; they are of different runs; one is missing or there twice.
    """
    found: dict[int, Path] = {}
    (name, first), total = shards[0], 0
    for where, stream in shards:
        number, _, count = str(stream.header.get("shard", "")).partition("/")
        if not (number.isdigit() and count.isdigit() and 1 <= int(number) <= int(count)):
            raise ValueError(f"{where}: no shard: make it by q4gsw run --shard I/N")
        if stream.truncated:
            raise ValueError(f"{where}: the run did not finish; run shard {number} of {count} again")
        if int(number) in found:
            raise ValueError(f"{where}: shard {number} of {count} is {found[int(number)]} too; leave one out")
        one, other = _shared(first), _shared(stream)
        for field in sorted(one.keys() | other.keys()):
            if one.get(field) != other.get(field):
                said = f"{field} {other.get(field)!r}, but {name} has {one.get(field)!r}"
                raise ValueError(f"{where}: another run's shard: {said}")
        found[int(number)], total = where, int(count)
    if missing := sorted(set(range(1, total + 1)) - found.keys()):
        raise ValueError(f"shard {missing[0]} of {total} is missing ({len(missing)} in all)")
    verdicts = tuple(v for _, stream in shards for v in stream.verdicts)
    if len({v.case for v in verdicts}) < len(verdicts):
        raise ValueError("a case is in two shards: they are not of one selection")
    workers = [stream.header.get("workers", 1) for _, stream in shards]
    header = {k: v for k, v in first.header.items() if k not in {*_OWN, "format", "selected"}}
    header |= {n: ", ".join(sorted({str(s.header.get(n, "?")) for _, s in shards})) for n in ("device", "started")}
    return Stream({**header, "workers": sum(n for n in workers if type(n) is int)}, verdicts, truncated=False)


def _shared(stream: Stream) -> Mapping[str, Any]:
    """What the shards of one run have in common."""
    shards = str(stream.header.get("shard", "")).partition("/")[2]
    return {"shards": shards, **{name: value for name, value in stream.header.items() if name not in _OWN}}


def write(folder: Path, shards: Sequence[tuple[Path, Stream]], cases: Sequence[Case]) -> None:
    """Write the report of all shards into ``folder``, which holds none yet.

    Raises:
        ValueError: as ``merged``; another run's report is there, or it cannot be written.
    """
    stream = merged(shards)
    writer = Writer(folder / "verdicts.jsonl", stream.header)
    for verdict in stream.verdicts:
        writer.add(verdict)
    writer.close()
    report.write(folder, [stream], cases)
