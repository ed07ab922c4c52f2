"""Rows of the zoo have the operators of the published models: sets of both, every difference with its reason."""

import tomllib
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from conformance.case.catalogue import load
from conformance.case.model import Model
from conformance.models import zoo

KNOWN = tomllib.loads(Path(__file__).with_name("published.toml").read_text(encoding="utf-8"))
MODELS = {case.id.removeprefix("run/model/"): case.question for case in load() if isinstance(case.question, Model)}


def operators(question: Model) -> set[str]:
    """Names of what the row computes with, in float32, without overloads and without the namespace aten."""
    shape = replace(question.shape, vocab=64, layers=2 if question.shape.convolution else 1)  # which add no operator
    small = replace(question, shape=shape)
    program = torch.export.export(zoo.build(small), zoo.inputs(small)[0], strict=False).run_decompositions()
    graphs = [part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule)]
    names = {str(node.target) for graph in graphs for node in graph.nodes if node.op == "call_function"}
    return {name.removeprefix("aten.").rpartition(".")[0] for name in names if "getitem" not in name}


@pytest.mark.parametrize("row", KNOWN["row"])
def test_a_row_has_the_operators_of_the_published_model(row: str) -> None:
    published = set(KNOWN["published"][KNOWN["row"][row]["of"]]["operators"])
    apart = KNOWN["row"][row]["apart"]
    assert operators(MODELS[row]) ^ published == {name for names in apart.values() for name in names}
    assert set(apart) <= set(KNOWN["reasons"])


def test_every_architecture_is_compared_and_every_reason_is_used() -> None:
    compared = {(MODELS[row].kind, MODELS[row].shape) for row in KNOWN["row"]}
    assert compared == {(question.kind, question.shape) for question in MODELS.values()}
    assert {reason for row in KNOWN["row"].values() for reason in row["apart"]} == set(KNOWN["reasons"])
