"""The report of a run: verdicts as they come; at the end summary, page, and the run's last lines."""

from collections.abc import Mapping
from pathlib import Path

from conformance.case.catalogue import load
from conformance.files import cache_directory, kept_folder
from conformance.results import report
from conformance.results.expectations import Expectations, grouped
from conformance.results.verdict import UNEXPECTED, UNSUPPORTED, Stream, Verdict, Writer, counts, last_line, read
from conformance.runs.shards import summed


class Report:
    """A report directory, which no other run writes to.

    Raises:
        ValueError: ``folder`` cannot be written, or holds another run's report.
    """

    def __init__(self, folder: str, header: Mapping[str, object], expected: Expectations) -> None:
        self.folder = Path(folder).resolve() if folder else kept_folder(cache_directory() / "reports")
        self.expected = expected
        self.verdicts: list[Verdict] = []
        self._header = header
        self._stream = self.folder / "verdicts.jsonl"
        self._writer = Writer(self._stream, header)

    @property
    def failures(self) -> int:
        """How many verdicts are unexpected so far."""
        return sum(v.outcome in UNEXPECTED for v in self.verdicts)

    def add(self, verdict: Verdict) -> None:
        """Append a verdict."""
        self._writer.add(verdict)
        self.verdicts.append(verdict)

    def reread(self) -> list[Verdict]:
        """Return the verdicts that the stream holds, which are this report's from here on."""
        self.verdicts = list(read(self._stream).verdicts)
        return self.verdicts

    def discard(self) -> None:
        """Leave the directory to the next run: nothing was judged."""
        self._stream.unlink()

    def finish(self, *, truncated: bool = False) -> list[str]:
        """Close the stream, unless it is ``truncated``; write the files beside it; return the last lines."""
        if not truncated:
            self._writer.close()
        verdicts = self.verdicts
        report.write(self.folder, [Stream(self._header, tuple(verdicts), truncated)], load())
        lines = grouped(verdicts, self.expected) + summed(verdicts)
        lines += [f"report: {(self.folder / 'report.html').as_uri()} (with summary.md and verdicts.jsonl)"]
        lines += report.strict_lines(verdicts)
        if counts(verdicts)[UNSUPPORTED] == len(verdicts):
            lines.append("nothing was judged: every case is unsupported, or none matched")
        return [*lines, last_line(verdicts)]
