"""Fuzz the readers of files from strangers: ``./dev fuzz [--seconds S] [--inputs N] [--readers A,B] [--state DIR]``.

Rounds of 500 inputs, a reader after the other, each round in a process of its own with limits on memory and on the time
of an input, until the time is over or every reader has had its inputs. A session goes on where the one before in the
same directory ended. A finding is an input that a reader answers with anything but a result or ValueError, that takes
too long, makes the process grow, or that is accepted although it was altered. Exit code 1: there is one.
"""

import argparse
import contextlib
import faulthandler
import hashlib
import json
import os
import resource
import signal
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import coverage
from hypothesis import HealthCheck, Phase, given, seed, settings

from conformance.case.catalogue import load
from conformance.files import append_line, make_folder
from tests.fuzz.mutations import BATCH, NUMBERS, Drawn, altered, batch
from tests.fuzz.readers import READERS, ROOT, accepted_before, kind

ROUND = 500
#: Limits of a process, beside what it has when it starts: bytes of address space, KiB that a round may leave behind.
_MEMORY, _GROWTH_KIB = 2 << 30, 128 << 10
#: Seconds of processor time that one input may take.
_SECONDS = 10


class TooLong(BaseException):
    """An input takes more than its time."""


def _too_long(*_: object) -> None:
    raise TooLong


def fuzz(name: str, number: int, folder: Path, state: Path) -> dict[str, Any]:
    """One round of a reader, in a process of its own that ends with it."""
    reader, files = READERS[name], kind(name)
    counts = {"inputs": 0, "accepted": 0}

    def check(number: int) -> None:
        for drawn in batch(number):
            read(drawn)

    def read(drawn: Drawn) -> None:
        raw = altered(files, drawn)
        counts["inputs"] += 1
        (folder / "current").write_bytes(raw)
        (folder / "count").write_text(str(counts["inputs"]))
        signal.setitimer(signal.ITIMER_VIRTUAL, _SECONDS)
        try:
            result = reader.read(folder, raw)
        except ValueError:
            return
        finally:
            signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        if result is None:
            return
        counts["accepted"] += 1
        if reader.sealed and not drawn[1]:
            assert accepted_before(name, folder, result, drawn), "an altered file is taken for whole"

    how = settings(
        max_examples=ROUND // BATCH,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    watch = coverage.Coverage(
        data_file=str(state / f"coverage-{name}"),
        data_suffix=str(number),
        branch=True,
        include=[str(ROOT / module) for module in reader.modules],
        config_file=False,
    )
    before = _high_water()
    watch.start()
    try:
        seed(number)(how(given(NUMBERS)(check)))()
    except BaseException:  # noqa: BLE001 - whatever it is, it is a finding
        counts["finding"] = traceback.format_exc()  # type: ignore[assignment]
    watch.stop()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a round may have met none of the modules
        watch.save()
    return {**counts, "grown_kib": _high_water() - before}


def _high_water() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


def round_of(name: str, number: int, state: Path) -> dict[str, Any]:
    """Run one round in a forked process and return its result; a process that dies is one, too."""
    kind(name)
    with tempfile.TemporaryDirectory(prefix="q4gsw-fuzz-") as scratch:
        folder = Path(scratch)
        started = time.perf_counter()
        child = os.fork()
        if not child:
            try:
                signal.signal(signal.SIGVTALRM, _too_long)
                size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize() + _MEMORY
                resource.setrlimit(resource.RLIMIT_AS, (size, size))
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                log = os.open(folder / "printed", os.O_CREAT | os.O_WRONLY | os.O_APPEND)
                os.dup2(log, 1), os.dup2(log, 2)
                (folder / "result").write_text(json.dumps(fuzz(name, number, folder, state)))
            finally:
                os._exit(0)
        _, status = os.waitpid(child, 0)
        result: dict[str, Any] = {"inputs": 0, "accepted": 0}
        with contextlib.suppress(FileNotFoundError):
            result["inputs"] = int((folder / "count").read_text() or 0)
        current = (folder / "current").read_bytes() if (folder / "current").is_file() else b""
        if (folder / "result").is_file():
            result = json.loads((folder / "result").read_text())
        elif os.WIFSIGNALED(status) and name == "pte":  # which is why it is read in the limited child
            result["ended"] = 1
        else:
            printed = (folder / "printed").read_text(errors="replace")
            result["finding"] = f"the process ended with status {status}\n{printed[-4000:]}"
        if result.get("grown_kib", 0) > _GROWTH_KIB:
            result["finding"] = f"the process grew by {result['grown_kib']} KiB"
        result |= {"reader": name, "number": number, "seconds": round(time.perf_counter() - started, 3)}
        if "finding" in result:
            beside = make_folder(state / "findings") / f"{name}-{hashlib.sha256(current).hexdigest()[:10]}"
            beside.with_suffix(".input").write_bytes(current)
            beside.with_suffix(".txt").write_text(result["finding"])
            result["finding"] = str(beside.with_suffix(".txt"))
        return result


def branches(name: str, state: Path) -> str:
    """Branches of a reader's modules that its inputs took, of those that there are."""
    data = coverage.Coverage(
        data_file=str(state / f"coverage-{name}"),
        branch=True,
        include=[str(ROOT / module) for module in READERS[name].modules],
        config_file=False,
    )
    try:
        data.load()
        data.combine([str(path) for path in state.glob(f"coverage-{name}.*")])
    except coverage.exceptions.NoDataError:
        pass
    data.save()
    try:
        data.json_report(outfile=str(state / f"coverage-{name}.report"))
    except coverage.exceptions.NoDataError:
        return "-"
    totals = json.loads((state / f"coverage-{name}.report").read_text())["totals"]
    (state / f"coverage-{name}.report").unlink()
    return f"{totals['covered_branches']}/{totals['num_branches']}"


def main() -> int:
    """Run the session."""
    parser = argparse.ArgumentParser(prog="nox -s fuzz --", description=__doc__)
    parser.add_argument("--seconds", type=float, default=600.0, help="of the whole session (default: 600)")
    parser.add_argument("--inputs", type=int, default=10_000, help="of each reader, in all sessions (default: 10,000)")
    parser.add_argument("--readers", default=",".join(READERS), help="of " + ", ".join(READERS))
    parser.add_argument("--state", type=Path, default=ROOT / "report" / "fuzz", help="what is kept between sessions")
    options = parser.parse_args()
    names = options.readers.split(",")
    if unknown := set(names) - set(READERS):
        parser.error(f"no reader {min(unknown)}")
    faulthandler.disable()
    load()
    settings(max_examples=1, database=None)(given(NUMBERS)(lambda _: None))()  # what Hypothesis loads, each process has
    journal = make_folder(options.state) / "rounds.jsonl"
    rounds = [json.loads(line) for line in journal.read_text().splitlines()] if journal.is_file() else []
    until = time.monotonic() + options.seconds
    while time.monotonic() < until:
        done = {name: sum(r["inputs"] for r in rounds if r["reader"] == name) for name in names}
        name = min(done, key=done.__getitem__)
        if done[name] >= options.inputs:
            break
        numbers = [r["number"] for r in rounds if r["reader"] == name]
        rounds.append(round_of(name, max(numbers, default=-1) + 1, options.state))
        append_line(journal, json.dumps(rounds[-1]))
        if "finding" in rounds[-1]:
            print(f"finding: {rounds[-1]['finding']}", flush=True)
    print(
        f"{'reader':13} {'inputs':>7} {'accepted':>8} {'died':>5} {'findings':>8} {'grown KiB':>9} {'s':>7}  branches"
    )
    for name in names:
        own = [r for r in rounds if r["reader"] == name]
        sums = {key: sum(r.get(key, 0) for r in own) for key in ("inputs", "accepted", "ended", "seconds")}
        findings, grown = sum("finding" in r for r in own), max((r.get("grown_kib", 0) for r in own), default=0)
        print(
            f"{name:13} {sums['inputs']:7} {sums['accepted']:8} {sums['ended']:5} {findings:8} {grown:9}"
            f" {sums['seconds']:7.1f}  {branches(name, options.state)}"
        )
    print(f"{sum(r['inputs'] for r in rounds)} inputs, {sum('finding' in r for r in rounds)} findings")
    return 1 if any("finding" in r for r in rounds) else 0


if __name__ == "__main__":
    sys.exit(main())
