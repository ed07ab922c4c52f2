"""The xdist controller's view of a run: what was asked, every verdict, and what came in between.

Every case that pytest collected ends with one verdict, also when the process that was at it is killed:
xdist replaces that process and goes on, and what was in flight is an ERROR here.

Source: docs/reading-a-report.md, "When a run is cut short".
"""

import contextlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from conformance.case.case import Case
from conformance.cli import report as cli_report
from conformance.files import Unwritable, q4gsw
from conformance.results import replay
from conformance.results.expectations import Expectations
from conformance.results.verdict import ERROR, UNEXPECTED, Verdict, Writer, exit_code
from conformance.runs import run, shards

#: Exit code of a run whose report cannot be written.
UNWRITTEN = 2
Asked = Case | shards.Shard


def error_verdict(asked: Asked, subject: str, kind: str, reason: str) -> Verdict:
    """Return the ERROR of a case, or of a shard, that nothing judged."""
    stage, source = (asked.stage, asked.contract) if isinstance(asked, Case) else (shards.STAGE, "5.3")
    command = q4gsw("run", "--subject", subject, "--case", asked.id) if isinstance(asked, Case) else ""
    signature = f"{stage}/raised/{kind}"
    return Verdict(asked.id, stage, subject, ERROR, signature, reason, replay=command, source=source)


#: Where pytest's configuration keeps a run (the controller's only), and what is expected of the subject.
RUN = pytest.StashKey["Run"]()
EXPECTED = pytest.StashKey[Expectations]()


@dataclass(frozen=True)
class End:
    """How a run ended: its last lines, and the exit code (None: pytest's own)."""

    lines: list[str]
    code: int | None


class Run:
    """A run: the report directory, and one verdict for each case that was collected.

    ``trouble``: why the report cannot be written, or "". The run stops there.

    Raises:
        ValueError: the report directory cannot be written, or holds another run's report.
    """

    def __init__(self, report: Path, header: Mapping[str, object], asked: Iterable[Asked]) -> None:
        self.report = report
        self.subject = str(header["subject"])
        self.verdicts: list[Verdict] = []
        self.trouble = ""
        self._asked = {one.id: one for one in asked}
        self._collected: dict[str, Asked] = {}
        self._judged: set[str] = set()
        self.writer = Writer(report / "verdicts.jsonl", header)

    def collected(self, node_ids: Iterable[str]) -> None:
        """Take note of what pytest is going to run, by its node ids."""
        for node_id in node_ids:
            name = node_id.partition("[")[2].removesuffix("]")
            if name in self._asked:
                self._collected[node_id] = self._asked[name]

    def add(self, verdict: Verdict) -> None:
        """Append a verdict to the stream; ``trouble`` says when that cannot be done."""
        if self.trouble:
            return
        try:
            self.writer.add(verdict)
        except Unwritable as error:
            self.trouble = str(error)
            return
        self.verdicts.append(verdict)
        self._judged.add(verdict.case)

    def died(self, node_id: str, process: str) -> tuple[str, Verdict | None] | None:
        """Return how a case that was in flight when its process died ends: the text for pytest, and the verdict.

        No verdict where its own had already come; None for what is no case of this run.
        """
        asked = self._collected.get(node_id)
        if asked is None:
            return None
        if asked.id in self._judged:
            return "", None
        reason = f"its test process, {process}, died (killed, or out of memory?) while it ran: it is not judged"
        if isinstance(asked, Case):
            verdict = error_verdict(asked, self.subject, "WorkerDied", reason)
            with contextlib.suppress(Unwritable):  # the stream will meet the same trouble, and stop the run
                path = replay.write(self.report / "replay", asked, verdict, run.versions())
                verdict = replace(verdict, replay=q4gsw("replay", path))
            return run.describe(asked, verdict), verdict
        journal = self.report / "journal" / f"shard-{asked.number}.toml"
        reason = f"{reason}; the program that it was at is in {journal}"
        verdict = error_verdict(asked, self.subject, "WorkerDied", reason)
        verdict = replace(verdict, replay=q4gsw("replay", journal))
        return f"{ERROR} {asked.id}: {reason}", verdict

    def failures(self) -> int:
        """The number of unexpected verdicts so far."""
        return sum(v.outcome in UNEXPECTED for v in self.verdicts)

    def end(self, expected: Expectations, *, most: int, interrupted: bool) -> End:
        """Close the stream, write what is made of it, and say how the run ended.

        Args:
            expected: the subject's known failures.
            most: unexpected verdicts after which the run was to stop, or 0.
            interrupted: whether something else stopped it: the stream then stays without its footer.
        """
        left = [asked for asked in self._collected.values() if asked.id not in self._judged]
        stopped = bool(most) and self.failures() >= most
        lines = []
        if left and stopped:
            lines.append(f"stopped after {self.failures()} failures; {len(left)} cases were not run")
        elif left and interrupted and not self.trouble:
            lines.append(f"interrupted: {len(left)} cases were not run, and the report says that it is truncated")
        elif left:
            for asked in left:
                reason = "not judged: the processes of this run had died before it was this case's turn"
                self.add(error_verdict(asked, self.subject, "NotRun", reason))
            lines.append(f"{len(left)} cases were not judged: too many test processes died; each is an ERROR")
        try:
            if not self.trouble and (stopped or not interrupted):
                self.writer.close()
            lines += cli_report.finish(self.report, expected)
        except ValueError as error:
            self.trouble = self.trouble or str(error)
        if self.trouble:
            return End([*lines, f"error: {self.trouble}"], UNWRITTEN)
        return End(lines, exit_code(self.verdicts) if stopped or not interrupted else None)
