"""Model files that are not what they say: one line, exit code 2, and no code of the file runs."""

import contextlib
import io
import json
import math
import os
import struct
import warnings
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.backends.vulkan.serialization.vulkan_graph_schema import (
    Double,
    DoubleList,
    OperatorCall,
    String,
    VkGraph,
    VkValue,
)
from executorch.backends.vulkan.serialization.vulkan_graph_serialize import convert_to_flatbuffer
from executorch.exir import to_edge

from conformance.cli.main import main
from conformance.explain.explain import load_pt2
from conformance.explain.pt2 import check_model
from conformance.harness import limited
from conformance.harness.errors import BadFile
from conformance.pte.file import read_graph, read_pte


def header(program: int = 64, segments: int = 64, segment_bytes: int = 0, identifier: bytes = b"ET12") -> bytes:
    return struct.pack("<I4s4sIQQQ", 48, identifier, b"eh00", 32, program, segments, segment_bytes).ljust(64, b"\0")


BAD_PTE = {
    "empty": (b"", "too few"),
    "text": (b"not a model at all, only some words of text, long enough to be one", "not a .pte"),
    "zip": (b"PK\x03\x04" + bytes(60), "ZIP archive"),
    "older": (header(identifier=b"ET11"), "another ExecuTorch version"),
    "truncated program": (header(program=1 << 40), "truncated"),
    "truncated segments": (header(segments=32, segment_bytes=1 << 50), "truncated"),
    "root past the end": (struct.pack("<I4s", 1 << 31, b"ET12") + bytes(56), "root"),
    "zeros": (header(), "not a readable .pte"),
    "huge counts": (header(program=256) + b"\xff\xff\xff\x7f" * 48, "not a readable .pte"),
}


@pytest.mark.parametrize("name", BAD_PTE)
def test_a_bad_pte_is_one_line(name: str, tmp_path: Path) -> None:
    data, says = BAD_PTE[name]
    path = tmp_path / "model.pte"
    path.write_bytes(data)
    with pytest.raises(BadFile, match=says) as caught:
        read_pte(path)
    assert "\n" not in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_graph_with_infinities_and_nan_is_read_and_strings_stay_as_they_are() -> None:
    """Every causal attention holds -inf, which flatc prints as a bare word that json.loads does not know."""
    values = [
        Double(math.inf),
        DoubleList([1.5, -math.inf, math.inf]),
        String('[inf, -inf] "nan" \\'),
        Double(math.nan),
    ]
    graph = VkGraph("0", [OperatorCall(0, "a.inf", [0])], [VkValue(v) for v in values], [], [0], [], [])
    *read, last = (v.value for v in read_graph(convert_to_flatbuffer(graph)).values)
    assert read == values[:-1]
    assert math.isnan(last.double_val)


@pytest.mark.parametrize("name", ["text", "older", "truncated program"])
def test_audit_exits_2_with_one_line(name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(BAD_PTE[name][0])
    assert main(["audit", str(path)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("error: ")
    assert captured.err.count("\n") == 1


def test_a_missing_file_and_a_folder(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path in (tmp_path / "none.pte", tmp_path):
        for command in ("audit", "explain"):
            assert main([command, str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 4


def test_a_hostile_file_is_read_in_a_bounded_child(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "model.pte"
    path.write_bytes(BAD_PTE["huge counts"][0])
    assert main(["audit", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


READERS = """
def greedy(path):
    return str(len(bytearray(1 << 30)))

def spinning(path):
    while True:
        pass
"""


@pytest.mark.parametrize(("reader", "says"), [("greedy", "more than 512 MiB"), ("spinning", "processor time")])
def test_the_bounds_are_enforced(reader: str, says: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Planted: a reader that takes a gigabyte where it may take half of one, and one that does not end."""
    (tmp_path / "planted_readers.py").write_text(READERS)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(BadFile, match=says):
        limited.run(f"planted_readers:{reader}", tmp_path / "planted_readers.py", memory=512 << 20, seconds=1)


class Embedding(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.emb = torch.nn.Embedding(8, 32)

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        return self.emb(indices)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good .pt2 with a dynamic dimension."""
    path = tmp_path_factory.mktemp("pt2") / "model.pt2"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch about its own internals
        shapes = {"indices": {0: torch.export.Dim.DYNAMIC}}
        torch.export.save(torch.export.export(Embedding(), (torch.tensor([1, 2, 3]),), dynamic_shapes=shapes), path)
    return path


def remade(source: Path, target: Path, change: Any) -> Path:
    """A copy of an archive; ``change`` maps a member's name and bytes to its new bytes, or None to leave it out."""
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            data = change(member.filename.partition("/")[2], old.read(member))
            if data is not None:
                new.writestr(member.filename, data)
    return target


def test_a_good_pt2_loads(saved: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch about its own internals
        assert load_pt2(saved).graph_signature.user_inputs == ("indices",)


class Payload:
    """A pickle of this writes a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[Any, ...]]:
        return os.system, (f"touch {self.path}",)


def test_a_pickle_in_a_pt2_does_not_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"
    buffer = io.BytesIO()
    torch.save(Payload(marker), buffer)

    def change(name: str, data: bytes) -> bytes:
        if name.startswith("data/weights/weight_"):
            return buffer.getvalue()
        return data.replace(b'"use_pickle": false', b'"use_pickle": true') if name.endswith("config.json") else data

    path = remade(saved, tmp_path / "model.pt2", change)
    with pytest.raises(BadFile, match="needs more than data to load"):
        load_pt2(path)
    assert not marker.exists()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own warnings about such files
        try:
            torch.export.load(path)
        except Exception as error:  # noqa: BLE001 - whatever torch says of it, the point is what ran
            print(error)
    assert marker.exists(), "torch.export.load no longer runs such a pickle: the check may be dropped"


def model_with(saved: Path, target: Path, edit: Any) -> Path:
    def change(name: str, data: bytes) -> bytes:
        if not name.startswith("models/"):
            return data
        model = json.loads(data)
        edit(model)
        return json.dumps(model).encode()

    return remade(saved, target, change)


def test_an_expression_that_is_code_does_not_run(saved: Path, tmp_path: Path) -> None:
    marker = tmp_path / "it-ran"

    def edit(model: Any) -> None:
        size = model["graph_module"]["graph"]["tensor_values"]["indices"]["sizes"][0]
        size["as_expr"]["expr_str"] = f"__import__('os').system('touch {marker}')"

    with pytest.raises(BadFile, match="more than arithmetic"):
        load_pt2(model_with(saved, tmp_path / "model.pt2", edit))
    assert not marker.exists()


def test_a_name_that_is_code_does_not_run(tmp_path: Path) -> None:
    """torch.fx writes the name of an input into the head of a function, and the name of a parameter between quotes."""
    good, marker = tmp_path / "good.pt2", tmp_path / "it-ran"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch about its own internals
        model = torch.nn.Sequential(torch.nn.Embedding(8, 32))  # forward(input), and a parameter 0.weight
        torch.export.save(torch.export.export(model, (torch.tensor([1, 2, 3]),)), good)
    call = f'getattr(__import__("os"),"system")("touch {marker}")'
    for old, new in (("input", f"i={call}"), ("0.weight", f'x",None) or {call} or ("weight')):

        def change(_name: str, data: bytes, old: str = old, new: str = new) -> bytes:
            return data.replace(json.dumps(old).encode(), json.dumps(new).encode())

        path = remade(good, tmp_path / "model.pt2", change)
        with pytest.raises(BadFile, match=r"the name .* holds more"):
            load_pt2(path)
        with contextlib.suppress(Exception), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # torch's own warnings about such files
            to_edge(torch.export.load(path))
    assert marker.exists(), "torch no longer runs such a name: the check may be dropped"


@pytest.mark.parametrize(
    "target", ["torch.os.system", "torch.load", "math.__class__", "torch.ops.load_library", "_operator.call"]
)
def test_a_target_that_is_no_operator(target: str) -> None:
    with pytest.raises(BadFile, match="is not an operator"):
        check_model({"nodes": [{"target": target, "inputs": []}]}, "m")
    with pytest.raises(BadFile, match="is not an operator"):
        check_model({"arg": {"as_operator": target}}, "m")


@pytest.mark.parametrize(
    "text",
    [
        "s0.__class__",
        "eval('1')",
        "[1]",
        "lambda: 0",
        "s0; s1",
        "'x' 'y z'",
        "`",
        "s" * 5000,
        7,
        "Max.real(1)",
        "open('x')",
    ],
)
def test_expressions_that_are_refused(text: Any) -> None:
    with pytest.raises(BadFile, match="arithmetic"):
        check_model({"expr_str": text}, "m")


@pytest.mark.parametrize("text", ["s60", "Symbol('s60', positive=True, integer=True)", "Max(1, u0) + 2*s1//3", "-oo"])
def test_expressions_that_torch_writes(text: str) -> None:
    check_model({"expr_str": text}, "m")


def test_archives_that_are_refused(saved: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    compiled, bomb, cut = (tmp_path / n for n in ("compiled.pt2", "bomb.pt2", "cut.pt2"))
    remade(saved, compiled, lambda _n, d: d)
    with zipfile.ZipFile(compiled, "a") as archive:
        archive.writestr("model/data/aotinductor/model/lib.so", b"\x7fELF")
    with zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("model/models/model.json", bytes(50 << 20))
    cut.write_bytes(saved.read_bytes()[:-100])
    for path, says in ((compiled, "not plain data"), (bomb, "unpacks to more"), (cut, "not a ")):
        assert main(["explain", str(path)]) == 2
        error = capsys.readouterr().err
        assert says in error
        assert error.count("\n") == 1
