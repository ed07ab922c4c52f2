"""Journals: what a proof over a domain has finished, line by line, so that it survives a SIGKILL at any moment.

The first line is the header: what is being proven, with what. Each further line is one finished chunk, with a digest
over it and the header. A line that was cut off counts as not written. One process at a time has it open, locked.
"""

import fcntl
import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from conformance.files import append_line, read_text
from conformance.proofs.certificate import Stages, canonical
from conformance.serialize import structure, unstructure
from reference.arithmetic.accept_many import Tally

JOURNAL_VERSION = 3


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
    header is not ``header``: another device, driver, shader, domain or chunk. Nothing is merged. Also where another
    process is at it.
    """

    def __init__(self, path: Path, header: Mapping[str, Any], *, resume: bool) -> None:
        self.path = path
        self.header = {"journal": JOURNAL_VERSION, **header}
        self.records: list[Record] = []
        begun = path.is_file() and path.stat().st_size > 0
        self._lock = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_NOFOLLOW, 0o666)
        try:
            self._begin(begun=begun, resume=resume)
        except BaseException:
            self.close()
            raise

    def _begin(self, *, begun: bool, resume: bool) -> None:
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            mine = self.path.samefile(f"/proc/self/fd/{self._lock}")
        except (BlockingIOError, FileNotFoundError):
            mine = False
        if not mine:
            raise JournalRefused(f"{self.path}: another process is at this proof; give --out another directory")
        if begun and not resume:
            raise JournalRefused(f"{self.path} is there already: --resume goes on with it, deleting it starts again")
        if begun:
            self.records = self._read()
            os.truncate(self.path, self.path.read_bytes().rindex(b"\n") + 1)  # drops a line that was cut off
            return
        try:
            append_line(self.path, canonical(self.header), sync=True)
        except ValueError:
            self.path.unlink()  # or the next run, with room enough, would find another run's journal
            raise

    def _read(self) -> list[Record]:
        header, records = read(self.path)
        check_same(self.path, header, self.header)
        return records

    def add(self, record: Record) -> None:
        """Append one finished chunk; it is on the disk when this returns."""
        body = unstructure(record)
        append_line(self.path, canonical({**body, "digest": _digest(self.header, body)}), sync=True)
        self.records.append(record)

    def missing(self, size: int, chunk: int) -> list[tuple[int, int]]:
        """The chunks [start, stop) of a domain of ``size`` that have no record."""
        done = {record.start for record in self.records}
        return [(at, min(at + chunk, size)) for at in range(0, size, chunk) if at not in done]

    def remove(self) -> None:
        """Delete it, once the certificate is written."""
        self.path.unlink()
        self.close()

    def close(self) -> None:
        """Let another process go on with it."""
        os.close(self._lock)


def _digest(header: Mapping[str, Any], body: Any) -> str:
    """The digest of a record, which binds it to the proof."""
    return hashlib.sha256(canonical([header, body]).encode()).hexdigest()


def read(path: Path) -> tuple[dict[str, Any], list[Record]]:
    """Return a journal's header and its finished chunks; JournalRefused where it is none, or damaged."""
    try:
        lines = read_text(path).split("\n")[:-1]  # what follows the last line end was cut off
        header, *chunks = [json.loads(line) for line in lines] or [None]
    except (ValueError, RecursionError) as error:
        raise JournalRefused(f"{path} is no journal: {error}") from error
    if not isinstance(header, dict) or not all(isinstance(chunk, dict) for chunk in chunks):
        raise JournalRefused(f"{path} is no journal: a line of it is no table")
    if header.get("journal") != JOURNAL_VERSION:
        raise JournalRefused(f"{path} has version {header.get('journal')!r}, this release reads {JOURNAL_VERSION}")
    for number, chunk in enumerate(chunks):
        if chunk.pop("digest", None) != _digest(header, chunk):
            raise JournalRefused(f"{path} is damaged: the digest of chunk {number} is not that of its content")
    try:
        records = [structure(Record, chunk, f"chunk {number}") for number, chunk in enumerate(chunks)]
    except ValueError as error:
        raise JournalRefused(f"{path} is damaged: {error}") from error
    if len({record.start for record in records}) < len(records):
        raise JournalRefused(f"{path} is damaged: a chunk is there twice")
    return header, records


def check_same(where: object, header: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    """Raise JournalRefused where a header is not the expected one; it names the first difference."""
    for name in sorted({*header, *expected}):
        there, here = header.get(name), expected.get(name)
        if there != here:
            raise JournalRefused(f"{where} is of another proof: {name} is {there!r} there, {here!r} here")
