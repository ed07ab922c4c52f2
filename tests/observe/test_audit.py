"""Audit and explain from the command line, on what a user has: a small Llama-shaped model with tied embeddings."""

import dataclasses
import json
import logging
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import to_edge
from torchao.quantization import IntxWeightOnlyConfig, quantize_
from torchao.quantization.granularity import PerGroup

from conformance.audit import report
from conformance.audit.audit import audit
from conformance.audit.report import Audit, Part, TableRow
from conformance.cli.main import main
from conformance.explain.explain import explain
from conformance.explain.report import CHANGES, change, to_json
from conformance.harness.observation import Problem
from conformance.pte import operators
from conformance.pte.file import read_pte
from conformance.sources.git import git
from impl.lowering import lower_to_vulkan
from impl.matcher import Limits, RefusalReason

INDICES = torch.tensor([[1, 2, 3, 60]])


class Llama(torch.nn.Module):
    """Embedding, one block of RMSNorm, attention and a gated MLP, and an output layer tied to the embedding."""

    def __init__(self, columns: int = 64, rows: int = 64) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(rows, columns)
        self.norm, self.out_norm = torch.nn.RMSNorm(columns), torch.nn.RMSNorm(columns)
        self.q, self.k, self.v, self.o = (torch.nn.Linear(columns, columns, bias=False) for _ in range(4))
        self.gate, self.up = (torch.nn.Linear(columns, 2 * columns, bias=False) for _ in range(2))
        self.down = torch.nn.Linear(2 * columns, columns, bias=False)
        self.lm_head = torch.nn.Linear(columns, rows, bias=False)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        x = self.embed(tokens)
        h = self.norm(x)
        scores = torch.softmax(self.q(h) @ self.k(h).transpose(-1, -2) * 0.125, -1)
        x = x + self.o(scores @ self.v(h))
        x = x + self.down(torch.nn.functional.silu(self.gate(x)) * self.up(x))
        return self.lm_head(self.out_norm(x))


def quantized(group: int = 32, columns: int = 64) -> Any:
    torch.manual_seed(3)
    model = Llama(columns).eval()
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(group))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao about its own versions
        quantize_(model, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
        model.lm_head.weight = model.embed.weight
        return torch.export.export(model, (INDICES,))


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("llama") / "tied.pte"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        path.write_bytes(lower_to_vulkan(quantized()).buffer)
    return path


def test_our_tied_llama_is_clean(tied: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["audit", str(tied)]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[-1].endswith("clean")
    found = audit(read_pte(tied))
    assert [(t.rows, t.columns, t.stored, len(t.readers)) for t in found.tables] == [(64, 64, 1, 2)]
    assert {r.split()[-1] for r in found.tables[0].readers} == {
        "et_vk.embedding_q4gsw.default",
        "et_vk.linear_q4gsw.default",
    }


def test_upstreams_file_of_an_odd_group_is_wrong(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The wheel's own lowering delegates groups of 6, which no shader reads; exit 1, and the JSON says so."""

    class Odd(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = torch.nn.Embedding(16, 96)

        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            return self.embed(tokens)

    model = Odd()
    path = tmp_path / "odd.pte"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(6))
        quantize_(model, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
        edge = to_edge(torch.export.export(model, (torch.tensor([1, 2]),)))
        level = logging.getLogger().level
        path.write_bytes(edge.to_backend(VulkanPartitioner()).to_executorch().buffer)
        logging.getLogger().setLevel(level)
    assert main(["audit", "--json", str(path)]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert [(p["severity"], p["kind"]) for p in problems] == [("wrong", "group_size")]


def test_an_audit_is_written_as_json_and_renders_what_it_holds() -> None:
    row = TableRow("table 0", "flat", 8, 32, 8, "float16", 128, 64, 2, ("a", "b"))
    problem = Problem("waste", "duplicate_table", "table 0", "twice", "once")
    whole = Audit(9, "d" * 64, "1", "r" * 40, (Part("m", "cpu", {"op": 2}, 3),), (row,), (problem,), ("a note",))
    assert json.loads(report.to_json(whole))["tables"][0]["readers"] == ["a", "b"]
    assert not whole.fails()
    text = report.render(whole, "x.pte")
    for word in ("0.7500", "2 times", "op x2", "WASTE table 0: twice [duplicate_table]", "fix: once", "note  a note"):
        assert word in text


def test_explain_of_a_tied_and_of_a_refused_model() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        good, odd = explain(quantized(), "good"), explain(quantized(6, 96), "odd")
    assert [(r.outcome, r.parameters.block_size if r.parameters else ()) for r in good.rows] == [("fused", (1, 32))]
    (row,) = odd.rows
    assert (row.outcome, row.reason) == ("refused", "group_size_not_multiple_of_4")
    assert "test_audit.py" in row.line
    assert "self.embed(tokens)" in row.line
    (written,) = json.loads(to_json(odd))["embeddings"]
    assert (written["reason"], written["change"]) == (row.reason, CHANGES[row.reason])


def test_every_reason_has_an_advice() -> None:
    assert set(CHANGES) == {str(reason) for reason in RefusalReason}


def test_the_operator_list_is_readable_and_has_what_we_lower_to(capsys: pytest.CaptureFixture[str]) -> None:
    assert {"et_vk.embedding_q4gsw.default", "et_vk.linear_q4gsw.default", "et_vk.prepack.default"} <= (
        operators.registered_operators()
    )
    assert not {o for o in operators.registered_operators() if "dequantize_affine" in o}
    assert main(["operators"]) == 0
    assert "157 operators of executorch 1.5.0" in capsys.readouterr().out


def test_the_operator_list_is_read_from_a_clone(tmp_path: Path) -> None:
    source = tmp_path / "executorch"
    runtime = source / operators.RUNTIME / "graph" / "ops" / "impl"
    runtime.mkdir(parents=True)
    (runtime / "A.cpp").write_text(
        "REGISTER_OPERATORS {\n  VK_REGISTER_OP(aten.add.Tensor, add);\n  VK_REGISTER_OP(\n      a.b.c, d);\n}\n"
    )
    (source / "version.txt").write_text("9.9.9\n")
    for command in (["init", "-q"], ["add", "."], ["-c", "user.name=n", "-c", "user.email=e", "commit", "-qm", "m"]):
        git(source, *command)
    found = operators.read_source(source)
    assert (found.version, found.operators) == ("9.9.9", ("a.b.c", "aten.add.Tensor"))
    operators.save(found, tmp_path / "list.toml")
    assert operators.load(tmp_path / "list.toml") == found
    assert main(["operators", "--executorch-src", str(tmp_path)]) == 2


class Copied(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = torch.nn.Embedding(8, 32)
        self.register_buffer("b", torch.arange(4.0))

    def forward(self, indices: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return self.embed(indices), self.b.clone()


class Scores(torch.nn.Module):
    def forward(self, q: torch.Tensor, k: torch.Tensor) -> torch.Tensor:
        return torch.relu(q) @ torch.relu(k).T


WRONG_ON_A_DEVICE: dict[str, tuple[Any, tuple[torch.Tensor, ...], set[tuple[str, str]]]] = {
    "a batch of indices": (torch.nn.Embedding(8, 32), (torch.tensor([[1, 2], [3, 4]]),), {("wrong", "batch")}),
    "one row of indices": (torch.nn.Embedding(8, 32), (torch.tensor([[1, 2]]),), set()),
    "a constant": (Copied(), (torch.tensor([1]),), {("wrong", "constant_output")}),
    "the error function": (
        torch.nn.Sequential(torch.nn.ReLU(), torch.nn.GELU()),
        (torch.rand(3, 8),),
        {("wrong", "gelu")},
    ),
    "a computed weight": (Scores(), (torch.rand(3, 8), torch.rand(5, 8)), {("fails", "computed_weight")}),
}


@pytest.mark.parametrize("name", WRONG_ON_A_DEVICE)
def test_what_the_runtime_gets_wrong_is_found_in_stock_files_and_not_in_ours(name: str) -> None:
    model, inputs, expected = WRONG_ON_A_DEVICE[name]
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao and torch about their own internals
        model = torch.nn.Sequential(model) if isinstance(model, torch.nn.Embedding) else model
        quantize_(model.eval(), config, lambda module, _name: isinstance(module, torch.nn.Embedding))
        program = torch.export.export(model, inputs)
        stock = to_edge(program).to_backend(VulkanPartitioner()).to_executorch().buffer
        ours = lower_to_vulkan(program).buffer
    assert {(p.severity, p.kind) for p in audit(read_pte(bytes(stock))).problems} == expected
    assert audit(read_pte(bytes(ours))).problems == ()


def test_explain_says_what_lowering_with_the_same_limits_does() -> None:
    model = torch.nn.Sequential(torch.nn.Embedding(64, 64)).eval()
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao and torch about their own internals
        quantize_(model, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
        program = torch.export.export(model, (INDICES,))
    limits = Limits(max_storage_buffer_range=64 * 32 - 1)
    assert [(row.outcome, row.reason) for row in explain(program, "m", limits).rows] == [("refused", "table_limit")]
    assert [row.outcome for row in explain(program, "m", Limits(max_storage_buffer_range=64 * 32)).rows] == ["fused"]


def test_audit_says_what_a_device_of_these_limits_refuses(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A table of 60 x 64 has 8 blocks of rows, padded to 64: 2,048 bytes, a texture of 16 x 8; scales of 480 bytes."""
    model = torch.nn.Sequential(torch.nn.Embedding(60, 64)).eval()
    config = IntxWeightOnlyConfig(weight_dtype=torch.int4, granularity=PerGroup(32))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torchao and torch about their own internals
        quantize_(model, config, lambda module, _name: isinstance(module, torch.nn.Embedding))
        ours = bytes(lower_to_vulkan(torch.export.export(model, (torch.tensor([1, 2]),))).buffer)
    file = read_pte(ours)
    assert audit(file, Limits(2048, 16)).problems == ()
    found = [(p.kind, p.detail) for p in audit(file, Limits(479, 15)).problems]
    assert found == [
        ("device_limit", "its packed table, in bytes: 2048, above max_storage_buffer_range 479"),
        ("device_limit", "its scales, in bytes: 480, above max_storage_buffer_range 479"),
        ("device_limit", "its texture's larger side, in texels: 16, above max_image_dimension_2d 15"),
    ]
    (tmp_path / "m.pte").write_bytes(ours)
    assert main(["audit", str(tmp_path / "m.pte"), "--max-storage-buffer-range", "2047"]) == 1
    assert "2048, above max_storage_buffer_range 2047 [device_limit]" in capsys.readouterr().out


def test_advice_fits_the_program() -> None:
    (row,) = explain(torch.export.export(Unsigned().eval(), (INDICES,)), "m").rows
    assert row.reason == "qmin_qmax"
    assert "less 8" in change(row)
    inside = dataclasses.replace(row, node="true_graph_0/embedding", reason="weight_not_constant")
    assert "outside the branch" in change(inside)


class Unsigned(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("w", torch.randint(0, 8, (64, 64), dtype=torch.int8))
        self.register_buffer("s", torch.rand(64, 2))

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        table = torch.ops.torchao.dequantize_affine.default(self.w, [1, 32], self.s, None, torch.int8, 0, 15)
        return torch.nn.functional.embedding(indices, table)
