"""q4gsw check: a model of the user's own, from export to the file executed beside eager."""

import warnings
from pathlib import Path

import pytest
import torch

from conformance.cli.main import main
from conformance.explain import check as checking
from conformance.explain.check import check, check_file
from conformance.explain.explain import explain
from conformance.explain.page import page
from conformance.explain.report import render
from impl.matcher import Limits
from tests.impl.test_lowering_models import BATCH, IDS, Attention, int4, of_8_bit_inputs


def saved(model: torch.nn.Module, inputs: tuple[torch.Tensor, ...], path: Path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch about its own internals
        torch.export.save(torch.export.export(model, inputs), path)
    return str(path)


def test_a_right_model(tmp_path: Path) -> None:
    text = check_file(saved(int4(Attention(), torch.nn.Linear), (BATCH,), tmp_path / "m.pt2"), "", "impl", "text")
    assert text[0] == "0"
    assert "aten_logical_not_default: outside the delegate" in text
    assert " right" in text.splitlines()[-1]


def test_a_wrong_row_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A seeded fault: the kernel's result is off by one bit in its last element."""
    run = checking.run_pte

    def off_by_one(*arguments: object) -> object:
        result = run(*arguments)  # type: ignore[arg-type]
        result.rows[0].view("int32").reshape(-1)[-1] += 1
        return result

    monkeypatch.setattr(checking, "run_pte", off_by_one)
    program = torch.export.export(int4(torch.nn.Sequential(torch.nn.Embedding(8, 32))), (IDS,))
    result = check(program, "m", (IDS,))
    assert not result.right()
    (lookup,) = (value for value in result.values if value.what == "lookup")
    assert (lookup.node, lookup.ulp) == ("aten_embedding_default", 1)


def test_what_cannot_be_lowered_is_said() -> None:
    program = torch.export.export(of_8_bit_inputs(rows=6), (IDS,))
    result = check(program, "m", (IDS,))
    assert "has 6 rows" in result.refused
    assert not result.right()


def test_explain_says_whose_decision_it_is() -> None:
    """The wheel asks for no device's limits, and raises on a table that is not symmetric."""
    program, limits = torch.export.export(int4(torch.nn.Sequential(torch.nn.Embedding(8, 32))), (IDS,)), Limits(8, None)
    ours, theirs = (explain(program, "m", limits, subject) for subject in ("impl", "executorch"))
    assert [(row.outcome, row.reason) for row in ours.rows] == [("refused", "table_limit")]
    assert [(row.outcome, row.reason) for row in theirs.rows] == [("fused", "though table_limit")]
    assert render(ours, "m").startswith("m: 1 embedding, as impl.matcher decides\n")
    assert render(theirs, "m").startswith("m: 1 embedding, as the wheel's FusePatternsPass decides\n")


def test_a_page_says_where_it_departs_and_runs_nothing() -> None:
    """Names come from the file: none is markup."""
    values = (
        checking.Compared("lookup", "a", (1, 2), equal=True, ulp=0, snr=float("inf")),
        checking.Compared("output", "<script>b", (2,), equal=False, ulp=3, snr=80.0),
    )
    result = checking.Check("a: <b>fused\x1b", "", 9, ("x & y",), ("wrong here",), values)
    text = page(result, "m<i>.pt2")
    assert '<span class="WRONG">WRONG</span>' in text
    assert "departs from eager: &lt;script&gt;b (output)" in text
    assert '<tr class="first"><td>output</td>' in text
    assert "background-size: 50% 100%" in text
    assert not [tag for tag in ("<script", "<b>", "<i>", "\x1b", "x & y") if tag in text]
    refused = page(checking.Check("", "has 6 rows", 0, (), (), ()), "m")
    assert "No file: has 6 rows" in refused
    assert "<table>" not in refused


def test_a_page_that_cannot_be_written_is_said_before_the_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("conformance.harness.limited.run", lambda *_, **__: pytest.fail("lowered first"))
    (tmp_path / "file").touch()
    path = saved(torch.nn.Identity(), (BATCH,), tmp_path / "m.pt2")
    assert main(["check", path, "--html", str(tmp_path / "file" / "page.html")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {tmp_path}/file: cannot be written (File exists)")
