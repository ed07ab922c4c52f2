"""The readers of files from strangers: real files of each kind, how they are sealed, and what must hold of a reading.

A reader refuses with ValueError; whatever else it raises is a finding. ``read`` returns None for what was refused.
"""

import contextlib
import functools
import hashlib
import io
import json
import struct
import tempfile
import tomllib
import warnings
import zipfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tomli_w

from conformance.case.catalogue import load, select
from conformance.case.toml import case_from_toml, case_to_table, case_to_toml
from conformance.cli.main import main
from conformance.explain.pt2 import check_model, check_pt2
from conformance.harness.observation import Arrays, Decision, Facts, Graph, Place, Raised, Unsupported, decode, encode
from conformance.kits.judge import read_profile
from conformance.kits.kit import read_file, read_kit, read_tensor
from conformance.proofs import certificate
from conformance.proofs.journal import Journal, Record
from conformance.results import expectations, replay, verdict
from conformance.serialize import structure
from reference.program.spec import MOST_ELEMENTS
from tests.fuzz.mutations import Drawn, Kind
from tests.kits.written import by_hand

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Reader:
    """A reader: its kind of file (made when it is first needed), its modules, and one reading of some bytes."""

    kind: Callable[[], Kind]
    modules: Sequence[str]
    read: Callable[[Path, bytes], object]
    #: Whether an input that reads, and was altered without its seals being made right, has to say what it said before.
    sealed: bool = False


def toml(data: Any, _seal: bool) -> bytes:
    return tomli_w.dumps(data).encode(errors="surrogatepass")


def dumped(data: Any, _seal: bool) -> bytes:
    return json.dumps(data).encode()


# Cases and replay files.


def cases() -> list[dict[str, Any]]:
    by_kind: dict[object, Any] = {}
    for one in load():
        by_kind.setdefault(
            (one.stage, type(one.question), one.program and tuple(type(s) for s in one.program.steps)), one
        )
    return [case_to_table(one) for one in by_kind.values()]


def read_case(_folder: Path, raw: bytes) -> object:
    one = case_from_toml(raw.decode(), "case.toml")
    assert case_from_toml(case_to_toml(one)) == one
    if one.program:
        assert sum(int(np.prod(t.shape, dtype=object)) for t in one.program.tensors) <= MOST_ELEMENTS
    return one


def replays() -> Kind:
    head = {"version": replay.FORMAT, "subject": "impl", "signature": "PACK/layout/codes", "versions": {"torch": "2"}}
    return Kind([{"replay": head, "case": case} for case in cases()], toml)


def read_replay(folder: Path, raw: bytes) -> object:
    (folder / "x.toml").write_bytes(raw)
    return replay.read(folder / "x.toml")


# Verdict streams.


def streams() -> Kind:
    picture = {"rows": 2, "columns": 4, "height": 2, "width": 4, "group": 2, "cells": "rrwwrrww"}
    lines = [
        verdict.Verdict("pack/flat/v1", "PACK", "impl", verdict.PASS, digest="ab", seconds=0.5, contract="1"),
        verdict.Verdict(
            "pack/flat/v7", "PACK", "impl", verdict.FAIL, "PACK/layout/codes", "wrong", {"picture": picture}
        ),
        verdict.Verdict(
            "kernel/x", "KERNEL", "impl", verdict.ERROR, "KERNEL/raised/Died", facts={"device": "llvmpipe"}
        ),
        verdict.Verdict("match/x", "MATCH", "impl", verdict.XFAIL, "MATCH/decision/x", defect="x", printed="a\nb\n"),
        verdict.Verdict("gen/seed-0/shard-3/50-programs", "MATCH", "impl", verdict.UNSUPPORTED, facts={"programs": 50}),
    ]
    files = []
    for count in range(len(lines) + 1):
        with tempfile.TemporaryDirectory() as folder:
            header = {"subject": "impl", "level": "gate", "versions": {"torch": "2.13.0"}, "workers": 2, "seed": 0}
            writer = verdict.Writer(Path(folder) / "v.jsonl", header)
            for line in lines[:count]:
                writer.add(line)
            writer.close()
            files.append([json.loads(line) for line in (Path(folder) / "v.jsonl").read_text().splitlines()])
    return Kind(files, write_stream)


def write_stream(data: Any, seal: bool) -> bytes:
    lines = [json.dumps(line) for line in data]
    if seal:
        body = [line for line in data if "footer" not in line]
        verdicts = [structure(verdict.Verdict, line) for line in body[1:]]
        before = "".join(f"{json.dumps(line)}\n" for line in body)
        footer = verdict._footer(verdicts, hashlib.sha256(before.encode()).hexdigest())
        lines = [*map(json.dumps, body), json.dumps({"footer": footer})]
    return "".join(f"{line}\n" for line in lines).encode()


def command(*words: str | Path) -> str | None:
    """What a command prints, or None where it refuses its file: one line, and exit code 2."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        code = main([str(word) for word in words])
    printed = out.getvalue() + err.getvalue()
    assert code in {0, 1, 2}, code
    assert "Traceback" not in printed, printed
    assert all(line.isprintable() for line in printed.splitlines()), printed
    assert code != 2 or printed.count("\n") == 1, printed
    return None if code == 2 else printed


def read_stream(folder: Path, raw: bytes) -> object:
    path = folder / "verdicts.jsonl"
    path.write_bytes(raw)
    stream = verdict.read(path)
    if len(raw) % 4 == 0:
        command("report", path, "--html", "--timing")
        command("diff", path, path)
    return stream.verdicts, dict(stream.header), stream.truncated


# Known failures, profiles.


def known() -> Kind:
    return Kind([tomllib.loads(path.read_text()) for path in sorted(expectations.FOLDER.glob("*.toml"))], toml)


def read_known(folder: Path, raw: bytes) -> object:
    (folder / "x.toml").write_bytes(raw)
    (folder / "executorch.toml").write_text("")
    return expectations.load(folder / "x.toml", load(), {"executorch": "1.5.1"})


def profiles() -> Kind:
    full = {
        "execution_modes": ["RoundingModeRTE 32"],
        "precise": True,
        "io_storage": "texture3d",
        "device": "d",
        "driver": "e",
    }
    return Kind([full, {"execution_modes": []}, {"precise": False, "execution_modes": ["DenormPreserve 16"]}], toml)


def read_a_profile(folder: Path, raw: bytes) -> object:
    path = folder / ("x.json" if raw[:1] == b"{" else "x.toml")
    path.write_bytes(raw)
    return read_profile(path)


# Certificates and journals.


def certificates() -> Kind:
    paths = sorted((ROOT / "docs/certificates").rglob("*.json"), key=lambda p: p.stat().st_size)
    kinds = {p.name.partition("-")[0]: p for p in reversed(paths)}
    return Kind([json.loads(path.read_text()) for path in kinds.values()], write_certificate)


def write_certificate(data: Any, seal: bool) -> bytes:
    if seal:
        body = {k: v for k, v in data.items() if k not in {"certificate", "timing", "evidence", "digest"}}
        data = {**data, "evidence": certificate._sha256(body)}
        del data["digest"]
        data["digest"] = certificate._sha256(data)
    return json.dumps(data).encode()


def read_certificate(folder: Path, raw: bytes) -> object:
    path = folder / "x.json"
    path.write_bytes(raw)
    read = None
    with contextlib.suppress(certificate.Rejected):
        read = certificate.read(path)
    printed = command("prove", "check", path, "--no-rerun") if len(raw) % 8 == 0 else None
    assert printed is None or read is not None or "holds" not in printed
    return read


HEADER = {"domain": "all", "chunk": 4, "target.device": "d"}


def journals() -> Kind:
    with tempfile.TemporaryDirectory() as folder:
        journal = Journal(Path(folder) / "x.journal", HEADER, resume=False)
        for start in (0, 8, 4):
            journal.add(Record(start, start + 4, began=1.5, ended=2.5, damage="x" if start == 4 else ""))
        journal.close()
        lines = [json.loads(line) for line in journal.path.read_text().splitlines()]
    return Kind([lines, lines[:2], lines[:1]], write_journal)


def write_journal(data: Any, seal: bool) -> bytes:
    if seal:
        bodies = [{k: v for k, v in line.items() if k != "digest"} for line in data[1:]]
        data = [
            data[0],
            *(
                {**b, "digest": hashlib.sha256(certificate.canonical([data[0], b]).encode()).hexdigest()}
                for b in bodies
            ),
        ]
    return "".join(f"{certificate.canonical(line)}\n" for line in data).encode()


def read_journal(folder: Path, raw: bytes) -> object:
    path = folder / "x.journal"
    path.write_bytes(raw)
    journal = Journal(path, HEADER, resume=True)
    journal.close()
    return tuple(sorted(map(str, journal.records)))


# Kits.


@functools.cache
def kit_files() -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        return {path.name: path.read_bytes() for path in by_hand(Path(folder)).iterdir()}


def kits() -> Kind:
    about, case = json.loads(kit_files()["case.json"]), tomllib.loads(kit_files()["case.toml"].decode())
    return Kind([{"case.json": about, "case.toml": case}], write_kit)


def write_kit(data: Any, _seal: bool) -> bytes:
    case = tomli_w.dumps(data["case.toml"]).encode(errors="surrogatepass")
    return json.dumps(data["case.json"]).encode() + b"\0" + case


def read_a_kit(folder: Path, raw: bytes) -> object:
    about, _, case = raw.partition(b"\0")
    for name, data in {**kit_files(), "case.json": about, "case.toml": case}.items():
        (folder / name).write_bytes(data)
    kit = read_kit(folder)
    read_file(folder, kit.description.model)
    calls = kit.description.calls
    return kit.case, calls, [read_tensor(folder, tensor).tobytes() for call in calls for tensor in call.inputs]


# What crosses the process border.


def observations() -> Kind:
    place = {"lookup0": Place("vulkan", "embedding_q4gsw")}
    answers = [
        Arrays({"packed": np.arange(8, dtype=np.uint8).reshape(2, 4)}, Facts(device="d", unwritten=3)),
        Arrays({"out": np.ones((2, 3), np.float16), "more": np.zeros((0, 4), np.int64)}),
        Graph((Decision("lookup0", fused=True, reason="r"),), {"o": np.zeros(3)}, {"o": np.zeros(3)}, places=place),
        Raised("KeyError", "'x'", "a.b"),
        Unsupported("no"),
    ]
    files = []
    for answer in answers:
        raw = encode(answer)
        (length,) = struct.unpack_from("<Q", raw)
        files.append({"header": json.loads(raw[8 : 8 + length]), "data": raw[8 + length :].hex()})
    return Kind(files, write_observation)


def write_observation(data: Any, _seal: bool) -> bytes:
    header = json.dumps(data["header"]).encode()
    return struct.pack("<Q", len(header)) + header + bytes.fromhex(data["data"])


def read_observation(_folder: Path, raw: bytes) -> object:
    answer = decode(raw)
    assert str(decode(encode(answer))) == str(answer)
    return answer


# Models. What reads a .pte runs in the limited child; here too a reader may end the process that it is in.


def raw_bytes(data: Any, _seal: bool) -> bytes:
    return bytes.fromhex(data["hex"])


def programs() -> Kind:
    from conformance.program.build import build
    from impl.lowering import lower_to_vulkan

    (control,) = select(load(), ids=["run/control"])
    assert control.program
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        program = bytes(lower_to_vulkan(build(control.program).exported).buffer)
    return Kind([{"hex": program.hex()}], raw_bytes)


def read_program(_folder: Path, raw: bytes) -> object:
    from conformance.pte.file import read_pte

    return read_pte(raw).digest


def archives() -> Kind:
    out = io.BytesIO()
    model = {
        "graph_module": {"graph": {"nodes": [{"target": "torch.ops.aten.add.Tensor", "inputs": []}]}},
        "e": {"expr_str": "2*s0"},
    }
    with zipfile.ZipFile(out, "w") as archive:
        for name, text in (
            ("archive_version", "0"),
            ("byteorder", "little"),
            ("models/model.json", json.dumps(model)),
            ("data/weights/weight_0", "x" * 64),
        ):
            archive.writestr(f"m/{name}", text)
    return Kind([{"hex": out.getvalue().hex()}], raw_bytes)


def read_archive(folder: Path, raw: bytes) -> object:
    path = folder / "x.pt2"
    path.write_bytes(raw)
    check_pt2(path)
    return True


def models() -> Kind:
    nodes = [
        {"target": "torch.ops.aten.embedding.default", "inputs": [{"name": "w", "arg": {"as_tensor": {"name": "w"}}}]}
    ]
    model = {"graph": {"nodes": nodes, "sym": [{"expr_str": "FloorDiv(s60 + 7, 8)"}]}, "in_spec": '[1, {"type": null}]'}
    return Kind([model], dumped)


def read_model(_folder: Path, raw: bytes) -> object:
    try:
        model = json.loads(raw)
    except RecursionError as error:
        raise ValueError("deep") from error
    check_model(model, "m")
    return True


CASE = ["conformance/case/toml.py", "conformance/case/case.py", "conformance/serialize.py", "reference/program/spec.py"]
READERS: dict[str, Reader] = {
    "case": Reader(lambda: Kind(cases(), toml), CASE, read_case),
    "replay": Reader(replays, ["conformance/results/replay.py", *CASE], read_replay),
    "stream": Reader(
        streams,
        [f"conformance/results/{name}.py" for name in ("verdict", "report", "diff", "causes", "timing", "picture")],
        read_stream,
        sealed=True,
    ),
    "expectations": Reader(known, ["conformance/results/expectations.py"], read_known),
    "profile": Reader(profiles, ["conformance/kits/judge.py"], read_a_profile),
    "certificate": Reader(
        certificates,
        ["conformance/proofs/certificate.py", "conformance/proofs/check.py"],
        read_certificate,
        sealed=True,
    ),
    "journal": Reader(journals, ["conformance/proofs/journal.py"], read_journal, sealed=True),
    "kit": Reader(kits, ["conformance/kits/kit.py"], read_a_kit, sealed=True),
    "observation": Reader(observations, ["conformance/harness/observation.py"], read_observation),
    "pte": Reader(programs, ["conformance/pte/file.py"], read_program),
    "pt2": Reader(archives, ["conformance/explain/pt2.py"], read_archive),
    "model": Reader(models, ["conformance/explain/pt2.py"], read_model),
}


@functools.cache
def kind(name: str) -> Kind:
    return READERS[name].kind()


def accepted_before(name: str, folder: Path, result: object, drawn: Drawn) -> bool:
    """Whether a reading says nothing that the unaltered file does not say."""
    original = kind(name).files[drawn[0] % len(kind(name).files)]
    reader = READERS[name]
    right = reader.read(folder, kind(name).write(json.loads(json.dumps(original)), False))  # noqa: FBT003
    if name == "stream":
        (verdicts, header, truncated), (all_of_them, right_header, _) = result, right  # type: ignore[misc]
        return truncated or (verdicts, header) == (all_of_them, right_header)
    if name == "journal":
        return set(result) <= set(right)  # type: ignore[call-overload]
    return result == right
