"""Shards of a proof, by hand and on a Dask cluster of two local workers, add up to what one machine computes."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from conformance.cli.main import main
from conformance.proofs import certificate

ROOT = Path(__file__).parents[2]
VARIANT = "flat-f32out-f32scale"
#: 64 chunks of 2**15 scales, on the host: no device is needed, and every task takes a moment.
PROOF = ("--subject", "reference", "--variant", VARIANT, "--range", "0x3F000000:0x3F200000", "--chunk", "32768")


def arithmetic(out: Path, *words: str) -> int:
    return main(["prove", "arithmetic", *PROOF, "--threads", "1", "--out", str(out), *words])


def evidence(folder: Path) -> str:
    (path,) = folder.glob("*.json")
    return certificate.read(path).evidence


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The evidence of one machine."""
    out = tmp_path_factory.mktemp("whole")
    assert arithmetic(out) == 0
    return evidence(out)


def test_shards_merge_to_the_certificate_of_one_machine(
    tmp_path: Path, whole: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for number in (1, 2, 3):
        assert arithmetic(tmp_path, "--shard", f"{number}/3") == 0
    journals = sorted(map(str, tmp_path.glob("*.journal")))
    assert len(journals) == 3
    merged = ["prove", "merge", "--out", str(tmp_path / "merged")]
    assert main([*merged, *journals]) == 0
    assert evidence(tmp_path / "merged") == whole

    def refused(*files: str) -> str:
        assert main([*merged, *files]) == 2
        return capsys.readouterr().err

    assert "a gap or an overlap" in refused(*journals[:2])
    assert "a gap or an overlap" in refused(*journals, journals[0])
    other = tmp_path / "other"
    assert arithmetic(other, "--shard", "3/3", "--variant", "linear-f32out-f32scale") == 0
    assert main([*merged, *journals[:2], *map(str, other.glob("*.journal"))]) == 1
    assert "is of another proof: target.variant is" in capsys.readouterr().err
    Path(journals[2]).write_text(Path(journals[2]).read_text().replace('"stop":', '"stop":1', 1))
    assert main([*merged, *journals]) == 1
    assert "is damaged: the digest of chunk 0" in capsys.readouterr().err


class Cluster:
    """A scheduler and workers, each a process of its own."""

    def __init__(self, stack: ExitStack, folder: Path) -> None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self.port = probe.getsockname()[1]
        self.address = f"tcp://127.0.0.1:{self.port}"
        self._stack, self._folder = stack, folder
        self.scheduler = self.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(self.port), "--no-show")

    def start(self, program: str, *words: str, **environment: str) -> "subprocess.Popen[bytes]":
        command = [sys.executable, "-m", f"distributed.cli.{program}", *words, "--no-dashboard"]
        path = os.pathsep.join(map(str, (ROOT, self._folder)))
        environ = {**os.environ, "PYTHONPATH": path, **environment}
        process = subprocess.Popen(
            command, cwd=self._folder, env=environ, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        self._stack.callback(process.wait)
        self._stack.callback(process.kill)
        return process

    def worker(self, **environment: str) -> "subprocess.Popen[bytes]":
        return self.start("dask_worker", self.address, "--nthreads", "1", "--no-nanny", **environment)

    def wait_for(self, workers: int) -> None:
        from distributed import Client

        with Client(self.address, timeout=60, set_as_default=False) as client:
            client.wait_for_workers(workers, timeout=60)


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    pytest.importorskip("distributed", reason="--cluster is optional; CI has it")
    with ExitStack() as stack:
        yield Cluster(stack, tmp_path)


def command(cluster: Cluster, out: Path, *words: str) -> "subprocess.Popen[str]":
    own = ["prove", "arithmetic", *PROOF, "--threads", "1", "--out", str(out), "--cluster", cluster.address, *words]
    return subprocess.Popen(
        [sys.executable, "-m", "conformance", *own],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def wait_for_chunks(out: Path, count: int) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        if sum(path.read_text().count("\n") for path in out.glob("*.journal")) > count:
            return
        time.sleep(0.01)
    raise AssertionError("the proof does not go on")


def test_a_killed_worker_a_late_one_and_a_new_scheduler_lose_nothing(
    cluster: Cluster, tmp_path: Path, whole: str
) -> None:
    out = tmp_path / "out"
    killed = cluster.worker()
    cluster.wait_for(1)
    running = command(cluster, out)
    wait_for_chunks(out, 1)
    killed.send_signal(signal.SIGKILL)
    cluster.worker()  # joins late, and is the only one
    wait_for_chunks(out, 20)
    cluster.scheduler.kill()
    cluster.scheduler.wait()
    cluster.scheduler = cluster.start("dask_scheduler", "--host", "127.0.0.1", "--port", str(cluster.port), "--no-show")
    cluster.worker()
    printed, _ = running.communicate(timeout=300)
    assert running.returncode == 0, printed
    assert evidence(out) == whole


LIAR = """
import os
from conformance.proofs.targets import host
if lie := os.environ.get("Q4GSW_TEST_LIE"):
    from dataclasses import replace
    true = host.open_target
    def open_target(*words):
        target = true(*words)
        if lie == "device":
            target.facts = replace(target.facts, device="NVIDIA H200")
        else:
            call = target._call
            target._call = lambda *arguments: call(*arguments).copy() * 1 + 0 * (-1.0)
            products = target.products
            def flushed(slot, scales):
                result = products(slot, scales)
                result.out[0, 0] ^= 1
                return result
            target.products = flushed
        return target
    host.open_target = open_target
"""


@pytest.mark.parametrize("lie", ["device", "result"])
def test_a_worker_that_lies_is_found(cluster: Cluster, tmp_path: Path, whole: str, lie: str) -> None:
    """``sitecustomize`` makes one worker another machine, or lets it return other bits than it computes."""
    (tmp_path / "sitecustomize.py").write_text(LIAR)
    out = tmp_path / "out"
    cluster.worker(Q4GSW_TEST_LIE=lie)
    cluster.worker()
    if lie == "device":
        cluster.worker()  # the most of them agree
    cluster.wait_for(3 if lie == "device" else 2)
    running = command(cluster, out)
    printed, _ = running.communicate(timeout=300)
    if lie == "device":
        assert running.returncode == 0, printed
        assert evidence(out) == whole
    else:
        assert running.returncode == 1, printed
        assert "one of them is not what it says; nothing is kept" in printed
        assert not list(out.glob("*"))


def test_a_cluster_that_is_not_there_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    pytest.importorskip("distributed", reason="--cluster is optional; CI has it")
    from conformance.harness import cluster as tasks

    monkeypatch.setattr(tasks, "PATIENCE_S", 1.0)
    assert arithmetic(tmp_path, "--cluster", "tcp://127.0.0.1:9") == 2
    assert "no Dask scheduler or worker at tcp://127.0.0.1:9" in capsys.readouterr().err
    assert json.dumps(sorted(p.name for p in tmp_path.iterdir())) == "[]"
