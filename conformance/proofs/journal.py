"""Files that survive a SIGKILL at any moment: whole files by rename, journals line by line.

A journal's first line is its header: what is being proven, with what. Each further line is one finished
chunk. A line that was cut off counts as not written.

Source: docs/proofs.md, "Journal".
"""

import contextlib
import hashlib
import json
import os
import tempfile
from pathlib import Path
from typing import Any, Self

JOURNAL_VERSION = 1


def canonical(value: Any) -> str:
    """JSON with one spelling: sorted keys, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


def sha256(text: str) -> str:
    """The SHA-256 of a text, in hexadecimal."""
    return hashlib.sha256(text.encode()).hexdigest()


def write_atomically(path: Path, text: str) -> None:
    """Put ``text`` in place of the file at once, or not at all: write beside it, fsync, rename, fsync the folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}-")
    try:
        with os.fdopen(descriptor, "w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(temporary).unlink()
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


class JournalRefused(ValueError):  # noqa: N818 - says what happened to the journal
    """A journal that cannot be gone on with; the message says why in one line."""


class Journal:
    """Finished chunks of one proof, each a dictionary with "start" and "stop". A context manager.

    Raises:
        JournalRefused: without ``resume`` a journal is there already; with it, what is there is no journal, or its
            header is not ``header``: another device, driver, shader, domain or chunk. Nothing is merged.
    """

    def __init__(self, path: Path, header: dict[str, Any], *, resume: bool) -> None:
        self.path = path
        self.header = {"journal": JOURNAL_VERSION, **header}
        self.records: list[dict[str, Any]] = []
        if path.exists():
            if not resume:
                raise JournalRefused(f"{path} is there already: --resume goes on with it, deleting it starts anew")
            self.records = self._read()
        # Also drops a line that was cut off.
        write_atomically(path, "".join(f"{canonical(line)}\n" for line in (self.header, *self.records)))
        self._file = path.open("a")

    def _read(self) -> list[dict[str, Any]]:
        lines = self.path.read_text().split("\n")[:-1]  # what follows the last line end was cut off
        try:
            header, *records = [json.loads(line) for line in lines] or [None]
        except ValueError as error:
            raise JournalRefused(f"{self.path} is no journal: {error}") from error
        if not isinstance(header, dict):
            raise JournalRefused(f"{self.path} is no journal: it has no header line")
        for name in sorted({*header, *self.header}):
            there, here = header.get(name), self.header.get(name)
            if there != here:
                raise JournalRefused(f"{self.path} is of another proof: {_difference(name, there, here)}")
        done: set[int] = set()
        for record in records:
            if not isinstance(record, dict) or not {"start", "stop"} <= set(record) or record["start"] in done:
                raise JournalRefused(f"{self.path} is damaged: {canonical(record)[:80]} is no chunk, or is there twice")
            done.add(record["start"])
        return records

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, record: dict[str, Any]) -> None:
        """Append one finished chunk; it is on the disk when this returns."""
        self._file.write(f"{canonical(record)}\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.records.append(record)

    def missing(self, size: int, chunk: int) -> list[tuple[int, int]]:
        """The chunks [start, stop) of a domain of ``size`` that have no record."""
        done = {record["start"] for record in self.records}
        return [(at, min(at + chunk, size)) for at in range(0, size, chunk) if at not in done]

    def remove(self) -> None:
        """Delete it, once the certificate is written."""
        self._file.close()
        self.path.unlink()


def _difference(name: str, there: Any, here: Any) -> str:
    """What differs; of two tables, the first field that does."""
    if isinstance(there, dict) and isinstance(here, dict):
        key = next(k for k in sorted({*there, *here}) if there.get(k) != here.get(k))
        return _difference(f"{name}.{key}", there.get(key), here.get(key))
    return f"{name} is {there!r} there, {here!r} here"
