"""A subject may answer anything: it costs its own case, the report stays readable, and what it printed is kept."""

import json
import resource
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case
from conformance.case.catalogue import load, select
from conformance.cli.main import main
from conformance.harness.observation import Arrays, Facts, Graph, Raised, Unsupported, decode, encode
from conformance.harness.process import FIRST, LAST, Printed, Process
from conformance.harness.worker import Worker
from conformance.results import report
from conformance.results.causes import describe
from conformance.results.verdict import ERROR, FAIL, PASS, Verdict, Writer, read
from conformance.runs.run import timed
from tests.fakes import lying

LYING = Path(lying.__file__)
BEFORE, AT, AFTER = (select(load(), ids=[name])[0] for name in ("pack/flat/v7", lying.AT, "pack/flat/v9"))


def judged(name: str, *cases: Case, seconds: float = 30.0) -> list[Verdict]:
    with Worker(f"{LYING}:{name}", seconds) as worker:
        return [timed(worker, case) for case in cases]


@pytest.mark.parametrize(
    ("name", "outcome", "signature"),
    [
        ("SupportsFive", ERROR, "PACK/raised/BadSubject"),
        ("UnsupportedWithoutReason", ERROR, "PACK/raised/BadObservation"),
        ("NumbersForFacts", ERROR, "PACK/raised/BadObservation"),
        ("RaisedNumbers", ERROR, "PACK/raised/BadObservation"),
        ("HalfACharacter", FAIL, "PACK/raised/ValueError@subject_lying.HalfACharacter.answer"),
        ("HalfACharacterReturned", ERROR, "PACK/raised/BadObservation"),
        ("RaisesWithoutMessage", FAIL, "PACK/raised/Silent@subject_lying.RaisesWithoutMessage.answer"),
        ("OutsideItsArray", ERROR, "PACK/raised/Harness"),
        ("Huge", ERROR, "PACK/raised/BadObservation"),
        ("FullDisk", ERROR, "PACK/raised/EnvironmentProblem"),
        ("OutOfMemory", ERROR, "PACK/raised/EnvironmentProblem"),
        ("NotFound", FAIL, "PACK/raised/FileNotFoundError@subject_lying.NotFound.answer"),
        ("AnswersTwice", PASS, ""),
        ("Forks", PASS, ""),
    ],
)
def test_an_odd_answer_costs_its_own_case(tmp_path: Path, name: str, outcome: str, signature: str) -> None:
    verdicts = judged(name, BEFORE, AT, AFTER)
    assert [(v.outcome, v.signature) for v in verdicts] == [(PASS, ""), (outcome, signature), (PASS, "")]
    writer = Writer(tmp_path / "verdicts.jsonl", {"subject": name})
    for verdict in verdicts:
        writer.add(verdict)
    writer.close()
    stream = read(tmp_path)
    assert stream.verdicts == tuple(verdicts)
    report.write(tmp_path, [stream], load())
    assert all(line.isprintable() for line in describe(verdicts[1]).splitlines())


def test_a_frame_s_length_is_bounded_before_it_is_read() -> None:
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    judged("Huge", BEFORE, AT)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 64 << 10, "KiB"


def frame(body: Any, kind: str = "Arrays", data: bytes = b"") -> bytes:
    header = json.dumps({"kind": kind, "body": body}).encode() if not isinstance(body, bytes) else body
    return struct.pack("<Q", len(header)) + header + data


def array(**changes: Any) -> dict[str, Any]:
    return {"arrays": {"packed": {"dtype": "|u1", "shape": [1, 2], "offset": 0, "bytes": 2} | changes}}


@pytest.mark.parametrize(
    "data",
    [
        b"",
        bytes(7),
        struct.pack("<Q", 1 << 62) + b"{}",
        frame(b"[" * 100_000),
        frame(b"\xff"),
        frame([]),
        frame({}, "Arrays"),
        frame(array(), "Nonsense"),
        frame(array(), "Unsupported"),
        frame({"arrays": [1]}),
        frame(array(dtype="|O"), data=bytes(8)),
        frame(array(dtype=[["a", "|O"]]), data=bytes(8)),
        frame(array(dtype="<U1", bytes=8), data=bytes(8)),
        frame(array(dtype=">i4", bytes=8), data=bytes(8)),
        frame(array(dtype="<c16", bytes=32), data=bytes(32)),
        frame(array(dtype="<M8[ns]", bytes=16), data=bytes(16)),
        frame(array(dtype="nonsense"), data=bytes(2)),
        frame(array(dtype="003f"), data=bytes(2)),
        frame(array(dtype=["f4"]), data=bytes(2)),
        frame(array(shape=[1 << 40, 0], bytes=0), data=b""),
        frame(array(shape=[-1, -2]), data=bytes(2)),
        frame(array(shape="12"), data=bytes(2)),
        frame(array(shape=[1e400, 2]), data=bytes(2)),
        frame(array(shape=[1] * 100, bytes=1), data=bytes(2)),
        frame(array(offset=1), data=bytes(2)),
        frame(array(offset=-1), data=bytes(2)),
        frame(array() | {"facts": {"device": 5}}, data=bytes(2)),
        frame(array() | {"facts": {"nonsense": "5"}}, data=bytes(2)),
        frame(array() | {"facts": {"build_seconds": float("nan")}}, data=bytes(2)),
        frame(array() | {"more": 5}, data=bytes(2)),
        frame({"reason": "\ud800"}, "Unsupported"),
        frame({"type": "x", "message": "y", "trouble": 1}, "Raised"),
        frame({"decisions": [[1]], "outputs": {}, "source_outputs": {}}, "Graph"),
    ],
)
def test_bytes_that_are_no_observation_are_refused_in_one_line(data: bytes) -> None:
    with pytest.raises(ValueError, match=r"^observation") as raised:
        decode(data)
    assert "\n" not in str(raised.value)


def test_an_observation_travels() -> None:
    for one in (
        Raised("é", "\x1b[2J"),
        Unsupported(""),
        Arrays({"a": np.arange(6, dtype=np.int16).reshape(2, 3), "b": np.zeros((0, 4), np.float16)}, Facts(device="x")),
        Graph((), {"out": np.array(1.5)}, {}),
    ):
        assert str(decode(bytearray(encode(one)))) == str(one)


def running(number: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False


def test_nothing_that_a_subject_starts_outlives_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MARK", str(tmp_path / "number"))
    with Worker(f"{LYING}:LeavesAGrandchild") as worker:
        assert timed(worker, AT).outcome == PASS
        number = int((tmp_path / "number").read_text())
        assert running(number)
    assert not running(number)


def test_what_is_printed_is_bounded_and_shown(tmp_path: Path) -> None:
    verdict = judged("Floods", AT)[0]
    assert len(verdict.printed) < FIRST + LAST + 100
    lines = verdict.printed.splitlines()
    assert lines[0] == "the first line"
    assert lines[-1] == "KeyError: 'flooded'"
    assert f'File "{LYING}"' in verdict.printed
    assert any(line.startswith("... ") and line.endswith(" bytes ...") for line in lines)
    shown = describe(verdict)
    assert "  printed:   the first line" in shown
    assert shown.endswith("             KeyError: 'flooded'")
    page = report.page([report.Stream({}, (verdict,), truncated=False)])
    assert "KeyError: 'flooded'" in page


def test_first_and_last_lines_are_shown_and_the_others_counted() -> None:
    text = "\n".join(["\x1b[2J", *(f"line {n}" for n in range(1, 100)), "x" * 500])
    lines = describe(Verdict("a", "PACK", "s", FAIL, printed=text)).splitlines()
    at = next(n for n, line in enumerate(lines) if line.startswith("  printed:"))
    assert lines[at] == "  printed:   \\x1b[2J"
    assert lines[at + 3].strip() == "... 90 lines, all of them with q4gsw replay --show-output ..."
    assert len(lines[-1]) < 250


def test_replay_shows_all_that_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "talks.py").write_text(
        "class Talks:\n"
        "    def supports(self, case): return None\n"
        "    def run(self, case):\n"
        "        print('\\n'.join(f'line {n}' for n in range(4000)), '\\x1b[2J')\n"
        "        raise KeyError('mine')\n"
    )
    subject = f"{tmp_path}/talks.py:Talks"
    assert main(["run", "--subject", subject, "--case", lying.AT, "--report", str(tmp_path / "r"), "--quiet"]) == 1
    (file,) = (tmp_path / "r/replay").iterdir()
    capsys.readouterr()
    assert main(["replay", str(file), "--subject", subject, "--show-output"]) == 1
    printed = capsys.readouterr().out
    assert sum(line.startswith("line ") for line in printed.splitlines()) == 4000
    assert "line 3999 \\x1b[2J\n" in printed
    assert 'talks.py", line 5, in run' in printed
    (verdict,) = read(tmp_path / "r").verdicts
    assert verdict.printed.endswith("KeyError: 'mine'")


def test_a_process_that_closes_its_output_is_waited_for() -> None:
    process, printed = Process(["sh", "-c", "echo said; exec >&- 2>&-; sleep 0.3; exit 3"]), Printed()
    try:
        assert process.wait(20, printed) == 3
    finally:
        process.end()
    assert printed.text() == "said"


def test_a_worker_leaves_no_descriptor_open() -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for name in ("AnswersTwice", "Huge"):
        judged(name, AT)
    assert len(list(Path("/proc/self/fd").iterdir())) == before
