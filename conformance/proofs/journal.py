"""Journals: what a proof over a domain has finished, line by line, so that it survives a SIGKILL at any moment.

The first line is the header: what is being proven, with what. Each further line is one finished chunk. A line that
was cut off counts as not written.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.files import append_line, read_text, write_whole
from conformance.proofs.certificate import Stages, canonical
from conformance.serialize import structure, unstructure
from reference.arithmetic.accept_many import Tally

JOURNAL_VERSION = 2


class JournalRefused(ValueError):  # noqa: N818 - says what happened to the journal
    """A journal that cannot be resumed; the message says why in one line."""

    exit_code = 1


@dataclass(frozen=True)
class Record:
    """A finished chunk: scales [start, stop) of the domain, what judging its results counted, and times."""

    start: int
    stop: int
    tally: Tally = Tally()  # noqa: RUF009 - frozen
    damage: str = ""
    began: float = 0.0
    ended: float = 0.0
    working_s: float = 0.0
    seconds: Stages = Stages()  # noqa: RUF009 - frozen


class Journal:
    """Finished chunks of one proof.

    JournalRefused where one is there already, without ``resume``; with it, where what is there is no journal or its
    header is not ``header``: another device, driver, shader, domain or chunk. Nothing is merged.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.header = {"journal": JOURNAL_VERSION, **header}
        self.records: list[Record] = []
        if path.exists():
            if not resume:
                raise JournalRefused(f"{path} is there already: --resume goes on with it, deleting it starts again")
            self.records = self._read()
        lines = (self.header, *map(unstructure, self.records))
        write_whole({path: "".join(f"{canonical(line)}\n" for line in lines)})  # also drops a line that was cut off

    def _read(self) -> list[Record]:
        try:
            lines = read_text(self.path).split("\n")[:-1]  # what follows the last line end was cut off
            header, *chunks = [json.loads(line) for line in lines] or [None]
        except (ValueError, RecursionError) as error:
            raise JournalRefused(f"{self.path} is no journal: {error}") from error
        if not isinstance(header, dict):
            raise JournalRefused(f"{self.path} is no journal: it has no header line")
        for name in sorted({*header, *self.header}):
            there, here = header.get(name), self.header.get(name)
            if there != here:
                raise JournalRefused(f"{self.path} is of another proof: {name} is {there!r} there, {here!r} here")
        try:
            records = [structure(Record, chunk, f"chunk {number}") for number, chunk in enumerate(chunks)]
        except ValueError as error:
            raise JournalRefused(f"{self.path} is damaged: {error}") from error
        if len({record.start for record in records}) < len(records):
            raise JournalRefused(f"{self.path} is damaged: a chunk is there twice")
        return records

    def add(self, record: Record) -> None:
        """Append one finished chunk; it is on the disk when this returns."""
        append_line(self.path, canonical(unstructure(record)), sync=True)
        self.records.append(record)

    def missing(self, size: int, chunk: int) -> list[tuple[int, int]]:
        """The chunks [start, stop) of a domain of ``size`` that have no record."""
        done = {record.start for record in self.records}
        return [(at, min(at + chunk, size)) for at in range(0, size, chunk) if at not in done]

    def remove(self) -> None:
        """Delete it, once the certificate is written."""
        self.path.unlink()
