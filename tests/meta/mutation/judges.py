"""Who judges a mutant, question by question: the suite alone, or the project's own tests.

A zygote has loaded torch once; each mutant is judged in a fork of it that imports the project out of a copy with one
file changed. What a question runs is measured once and kept for as long as neither it nor what is mutated changes.
"""

import bisect
import contextlib
import ctypes
import hashlib
import importlib
import itertools
import json
import os
import select
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import coverage
import pytest
from coverage.numbits import num_in_numbits, nums_to_numbits

from conformance.case import catalogue
from conformance.case.case import STAGES
from conformance.case.toml import case_to_toml
from conformance.files import write_whole
from tests.meta.mutation.mutants import ROOT, Draft

_OWN = ("conformance", "impl", "reference", "tests", "bench")
#: Who compiles a shader, by its name.
_SHADERS = {"embedding_q4gsw": "KERNEL", "pack_q4_linear_weight": "PREPACK", "copy": "PREPACK"}
#: Where fewer questions run a line, it may be one that runs once a process: whoever runs the file is asked.
_FEW = 5
_PR_SET_PDEATHSIG = 1
_CODE = {".py", ".comp"}


@contextlib.contextmanager
def copied() -> Iterator[Path]:
    """A copy of the project's files as they are in the working tree, compiled so that no change is overlooked."""
    listed = subprocess.run(
        ["git", "ls-files", "-zco", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True
    ).stdout
    with tempfile.TemporaryDirectory(prefix="q4gsw-mutants-") as folder:
        for name in filter(None, listed.decode().split("\0")):
            target = Path(folder) / "tree" / name
            target.parent.mkdir(parents=True, exist_ok=True)
            if (ROOT / name).is_file():
                shutil.copyfile(ROOT / name, target)
        compiling = ("-m", "compileall", "-q", "--invalidation-mode", "checked-hash", *_OWN[:3])
        subprocess.run([sys.executable, *compiling], cwd=Path(folder) / "tree", check=True)
        yield Path(folder) / "tree"


def preload() -> None:
    """Load what is not the project's own, once."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in ("hypothesis", "impl.lowering", "conformance.observe.lowered", "conformance.program.torchao"):
            importlib.import_module(name)


def in_fork(tree: Path, work: Callable[[], Any], seconds: float, *, cold: bool = False) -> Any:
    """Call ``work`` in a fork of this process that sees ``tree``, and return what it returns, which is JSON.

    ``cold``: no shader is compiled yet.

    Raises:
        TimeoutError: it takes longer than ``seconds``.
        EOFError: the process dies, or the project cannot be imported.
    """
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        _answer(tree, work, writing, "cold" if cold else "spirv")
    os.close(writing)
    data, until = b"", time.monotonic() + seconds
    try:
        while select.select([reading], [], [], max(0.0, until - time.monotonic()))[0]:
            if chunk := os.read(reading, 1 << 20):
                data += chunk
            elif data:
                return json.loads(data)
            else:
                raise EOFError
        raise TimeoutError
    finally:
        os.close(reading)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _answer(tree: Path, work: Callable[[], Any], writing: int, shaders: str) -> None:
    try:
        shutil.rmtree(tree.parent / "cold", ignore_errors=True)
        os.setsid()
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        null = os.open(os.devnull, os.O_RDWR)
        log = os.open(tree.parent / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(null, 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        os.chdir(tree)
        sys.dont_write_bytecode = True
        for name in [name for name in sys.modules if name.partition(".")[0] in _OWN]:
            del sys.modules[name]
        sys.path[:] = [str(tree), *(p for p in sys.path if Path(p or ".").resolve() != ROOT)]
        os.environ |= {"PYTHONPATH": str(tree), "PYTHONDONTWRITEBYTECODE": "1", "OMP_NUM_THREADS": "1"}
        os.environ |= {"Q4GSW_SPIRV_CACHE": str(tree.parent / shaders), "TMPDIR": str(tree.parent), "CI": "true"}
        tempfile.tempdir = None
        importlib.invalidate_caches()
        data = json.dumps(work()).encode()
        while data:
            data = data[os.write(writing, data) :]
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(0)


@dataclass(frozen=True)
class Measured:
    """What a question costs, and which lines of which file it runs (coverage.py's bits)."""

    seconds: float
    lines: dict[str, str]

    def runs(self, file: str, first: int, last: int) -> bool:
        """Whether it runs one of these lines; of the lines (0, 0) whether it runs the file."""
        bits = bytes.fromhex(self.lines.get(file, ""))
        return bool(bits) and (not last or any(num_in_numbits(n, bits) for n in range(first, last + 1)))


class Plan(NamedTuple):
    """Questions of a mutant, by batch; the seconds that they take without it; how many more run it."""

    asked: dict[str, list[str]]
    seconds: float
    unasked: int


class Judge:
    """What the suite and the tests have in common. A batch of questions is measured in one process."""

    #: The folders whose lines are measured: what is mutated, and nothing else.
    source: tuple[str, ...] = ()
    #: Folders besides whose change makes a measurement old.
    around: tuple[str, ...] = ()

    def batches(self) -> dict[str, str]:
        """Names of the batches with the text that decides what they ask."""
        raise NotImplementedError

    def ask(self, batch: str, ids: Iterable[str] | None, begin: Callable[[str], object]) -> Iterator[tuple[str, str]]:
        """Ask questions of a batch (None: all): each with what is wrong, "" where nothing is."""
        raise NotImplementedError

    def state(self, batch: str) -> str:
        """What a measurement of a batch depends on."""
        files = sorted(p for f in (*self.source, *self.around) for p in (ROOT / f).rglob("*") if p.suffix in _CODE)
        data = [self.batches()[batch], *(f"{p.relative_to(ROOT)}\0{p.read_text()}" for p in files)]
        return hashlib.sha256("\0".join(data).encode()).hexdigest()[:16]

    def measured(self, batch: str, tree: Path, folder: Path) -> dict[str, Measured]:
        """What the questions of a batch run, measured or kept from an earlier time."""
        kept = folder / f"{batch.replace('/', '.')}-{self.state(batch)}.json"
        if not kept.is_file():
            try:
                data = in_fork(tree, lambda: self._measure(batch), 3600)
            except EOFError:
                raise SystemExit((tree.parent / "log").read_text()[-2000:]) from None
            for old in folder.glob(f"{batch.replace('/', '.')}-*.json"):
                old.unlink()
            write_whole({kept: json.dumps(data)})
        return {name: Measured(*one) for name, one in json.loads(kept.read_text()).items()}

    def _measure(self, batch: str) -> dict[str, tuple[float, dict[str, str]]]:
        watch = coverage.Coverage(data_file=None, include=[f"{s}/*" for s in self.source], config_file=False)
        seconds: dict[str, float] = {}
        watch.start()
        at = time.perf_counter()
        for name, wrong in self.ask(batch, None, watch.switch_context):
            if wrong:
                print(f"{name} does not pass without any mutant: {wrong}")
                raise SystemExit
            seconds[name], at = time.perf_counter() - at, time.perf_counter()
        watch.stop()
        data, here = watch.get_data(), Path.cwd()
        found: dict[str, tuple[float, dict[str, str]]] = {name: (round(s, 4), {}) for name, s in seconds.items()}
        for file in data.measured_files():
            lines: dict[str, list[int]] = {}
            for line, names in data.contexts_by_lineno(file).items():
                for name in names:
                    lines.setdefault(name, []).append(line)
            for name in lines.keys() & found.keys():
                found[name][1][str(Path(file).relative_to(here))] = nums_to_numbits(lines[name]).hex()
        return found

    def plan(self, draft: Draft, measured: dict[str, dict[str, Measured]], most: float) -> "Plan":
        """Whom to ask, for at most ``most`` seconds: the cheapest first."""
        every = {(batch, name): one for batch, ones in measured.items() for name, one in ones.items()}
        if draft.file.endswith(".comp"):
            chosen = {key: one for key, one in every.items() if key[0] == _SHADERS[Path(draft.file).stem]}
        else:
            chosen = {key: one for key, one in every.items() if one.runs(draft.file, *draft.lines)}
            if len(chosen) < _FEW:
                chosen = {key: one for key, one in every.items() if one.runs(draft.file, 0, 0)}
        cheapest = sorted(chosen.items(), key=lambda item: item[1].seconds)
        ends = list(itertools.accumulate(one.seconds for _, one in cheapest))
        count = bisect.bisect_left(ends, most) + 1
        asked: dict[str, list[str]] = {}
        cost: Counter[str] = Counter()
        for (batch, name), one in cheapest[:count]:
            asked.setdefault(batch, []).append(name)
            cost[batch] += one.seconds
        in_turn = {batch: asked[batch] for batch in sorted(asked, key=lambda b: cost[b])}
        return Plan(in_turn, sum(cost.values()), len(cheapest[count:]))

    def wrong(self, asked: dict[str, list[str]]) -> str:
        """The first question whose answer is wrong, with what is wrong; "" where none is."""
        for batch, ids in asked.items():
            for name, wrong in self.ask(batch, ids, lambda _: None):
                if wrong:
                    return f"{name}: {wrong}"
        return ""


class Suite(Judge):
    """The catalogue at level gate and its generated programs, asked of the optimized implementation."""

    source = ("impl",)
    around = ("vulkan/glsl", "conformance/subjects")

    def __init__(self) -> None:
        cases = catalogue.select(catalogue.load(), level="gate")
        self._tomls = {s: {c.id: case_to_toml(c) for c in cases if c.stage == s} for s in STAGES}

    def batches(self) -> dict[str, str]:
        """A batch a stage, and one of generated programs."""
        return {stage: json.dumps(tomls) for stage, tomls in self._tomls.items() if tomls} | {"generated": ""}

    def ask(self, batch: str, ids: Iterable[str] | None, begin: Callable[[str], object]) -> Iterator[tuple[str, str]]:
        """Ask cases as a child process would."""
        names = ("subjects.impl", "harness.child", "judging.judge", "case.toml", "runs.shards", "generate.search")
        own, child, judging, case_toml, shards, search = (importlib.import_module(f"conformance.{n}") for n in names)
        subject = own.SubjectUnderTest()

        def wrong(toml: str) -> str:
            case = case_toml.case_from_toml(toml)
            verdict = judging.judge(case, child.answer(subject, toml), "impl")
            return "" if verdict.outcome == "PASS" else f"{verdict.outcome} {verdict.signature}"

        if batch == "generated":
            for shard in shards.shards("gate", (), 0):
                if ids is None or shard.id in ids:
                    begin(shard.id)
                    found: list[str] = []

                    def check(case: Any, found: list[str] = found) -> str:
                        if not found and (one := wrong(case_toml.case_to_toml(case))):
                            found.append(one)
                        return ""  # no time for shrinking

                    search.search(check, seed=f"{shard.seed}/{shard.number}", count=shard.programs)
                    yield shard.id, "".join(found)
            return
        for name in self._tomls[batch] if ids is None else ids:
            begin(name)
            yield name, wrong(self._tomls[batch][name])


class Tests(Judge):
    """The project's own tests of its oracles and its judges; a batch is a file of tests."""

    source = ("reference", "conformance/judging")
    FOLDERS = ("reference", "judging", "results", "observe", "cases", "kits", "planted")

    def batches(self) -> dict[str, str]:
        """A batch a file of tests."""
        files = [p for f in self.FOLDERS for p in sorted((ROOT / "tests" / f).glob("test_*.py"))]
        return {str(p.relative_to(ROOT)): p.read_text() for p in files}

    def ask(self, batch: str, ids: Iterable[str] | None, begin: Callable[[str], object]) -> Iterator[tuple[str, str]]:
        """Run tests until one fails."""
        heard = _Reports(begin)
        words = ["-x", "-q", "--disable-plugin-autoload", "--assert=plain", "-p", "no:cacheprovider"]
        status = pytest.main([*words, "--basetemp=../pytest", *(ids or [batch])], plugins=[heard])
        yield from heard.ended.items()
        if status not in {0, 1}:
            yield batch, f"pytest ends with {status}"


class _Reports:
    """A plugin that hears of tests."""

    def __init__(self, begin: Callable[[str], object]) -> None:
        self.begin = begin
        self.ended: dict[str, str] = {}

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        self.begin(nodeid)
        self.ended[nodeid] = ""

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.failed:
            self.ended[report.nodeid] = f"fails in {report.when}"
