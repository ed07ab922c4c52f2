"""Models as cases: what they mean exactly, what is judged of a file, and seeded faults in what a file computes."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case
from conformance.case.catalogue import load
from conformance.case.model import Model, Shape, check_model
from conformance.case.toml import case_from_toml, case_to_toml
from conformance.harness.observation import Graph, Place, Refused, named_at
from conformance.judging.judge import judge
from conformance.judging.models import distance
from conformance.models import recipes, zoo
from conformance.models.observe import model_outputs
from conformance.program.tensors import to_numpy
from conformance.results.implementations import models
from conformance.results.verdict import FAIL, PASS, Stream, Verdict
from reference.arithmetic.bfloat16 import to_float

MODELS = {case.id: case for case in load() if isinstance(case.question, Model)}
LLAMA = Model(linears=1)


def quantized(question: Model) -> Any:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torchao about itself
        return recipes.quantize(zoo.build(question), question)


def answered(question: Model, outputs: Mapping[str, Any], linears: int = 1) -> str:
    places = {"lookup0": Place("vulkan", "x")} | {f"linear{n}": Place("vulkan", "x") for n in range(linears)}
    graph = Graph((), outputs, model_outputs(question, quantized(question)), places=places)
    verdict = judge(Case("run/model/x", "RUN", "6.4", "a test", question, "deep"), graph, "test")
    return verdict.signature or verdict.outcome


def called(question: Model, model: Any, *, forget: bool = False) -> dict[str, Any]:
    """What a file would answer that computes what ``model`` does."""
    found: dict[str, Any] = {}
    for call, given in enumerate(zoo.inputs(question)):
        if forget:
            zoo.forget(model)
        found |= named_at(str(call), {"output0": to_numpy(model(*given).detach())})
    return found


@pytest.mark.parametrize("name", [name for name in MODELS if name != "run/model/gemma"])
def test_calls_one_after_the_other_are_one_call_on_everything(name: str) -> None:
    """``exact`` is of one call where the model is causal; the model itself is called as the file is."""
    question = MODELS[name].question
    sources = model_outputs(question, quantized(question))
    for call in range(len(question.calls)):
        own, exact = sources[f"output0@{call}"], sources[f"exact0@{call}"]
        assert own.shape == exact.shape
        near = {"float32": 1e-6, "float16": 2e-3, "bfloat16": 2e-2}[question.dtype]
        assert 0 < distance(own, exact) < near * distance(exact, 0 * exact)


def test_a_right_answer_passes_and_each_fault_is_named() -> None:
    right = called(LLAMA, quantized(LLAMA))
    assert answered(LLAMA, right) == PASS
    assert answered(LLAMA, right, linears=0) == "RUN/decision/missed_linears"
    assert answered(replace(LLAMA, lookups=2), right) == "RUN/decision/missed_lookups"
    assert answered(LLAMA, called(LLAMA, quantized(LLAMA), forget=True)) == "RUN/array/distance"
    assert (
        answered(LLAMA, {k: v.astype(np.float16).astype(np.float32) for k, v in right.items()}) == "RUN/array/distance"
    )
    assert answered(LLAMA, right | {"output0@1": right["output0@1"] * np.nan}) == "RUN/array/distance"
    assert answered(LLAMA, {"output0@0": right["output0@0"]}) == "RUN/dtype_shape/missing"
    assert answered(LLAMA, right | {"output0@0": right["output0@0"].astype(np.float16)}) == "RUN/dtype_shape/dtype"
    rows = model_outputs(LLAMA, quantized(LLAMA))["rows0@0"]
    assert answered(LLAMA, right | {"rows0@0": rows}) == PASS
    assert answered(LLAMA, right | {"rows0@0": np.nextafter(rows, np.float32(9))}).startswith("RUN/array/")
    assert answered(LLAMA, right | {"rows0@0": rows[:, 1:]}) == "RUN/dtype_shape/unknown"


def test_rows_that_are_cast_outside_a_delegate_are_float32_in_it() -> None:
    question = replace(LLAMA, dtype="bfloat16")
    right = called(question, quantized(question))
    rows = to_float(model_outputs(question, quantized(question))["rows0@0"])
    assert answered(question, right | {"rows0@0": rows}) == PASS
    assert answered(question, right | {"rows0@0": rows * 2}) == "RUN/array/values"


def test_inputs_that_are_not_quantized_any_more_are_wrong() -> None:
    question = replace(LLAMA, recipe="8da4w", lookups=0)
    model = quantized(question)
    assert answered(question, called(question, model)) == PASS
    assert answered(question, called(question, recipes.exact(model).float())) == PASS
    assert answered(question, called(question, recipes.exact(model, rounded=False).float())) == "RUN/array/distance"


def test_a_refusal_is_right_where_its_words_are_expected() -> None:
    case = Case("run/model/x", "RUN", "6.4", "a test", replace(LLAMA, refused="not int4"), "deep")
    assert judge(case, Refused("not_carried", "forward/linear is not int4"), "test").outcome == PASS
    assert judge(case, Refused("not_carried", "something else"), "test").outcome == FAIL
    assert judge(replace(case, question=LLAMA), Refused("not_carried", "not int4"), "test").outcome == FAIL


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"calls": (9, 9)}, "calls"),
        ({"calls": ()}, "calls"),
        ({"dynamic": False}, "one number of rows"),
        ({"shape": Shape(heads=3)}, "divide"),
        ({"shape": Shape(vocab=0)}, "vocab is 0"),
        ({"shape": Shape(norm="none")}, "norm 'none' is not one of rms"),
    ],
)
def test_a_model_that_there_cannot_be_is_one_line(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        check_model(Model(**fields))
    assert "\n" not in str(raised.value)


def test_the_table_of_models_says_what_became_of_each() -> None:
    made = {"lookups": "1", "linears": "15", "file_bytes": "9", "lower_seconds": "2.5", "lower_megabytes": "7"}
    facts = {"provenance": made}
    verdicts = (
        Verdict("run/model/llama", "RUN", "impl", PASS, facts=facts),
        Verdict("run/model/llama", "RUN", "executorch:x", FAIL, "RUN/array/distance", "far | off", facts=facts),
        Verdict("run/model/bert", "RUN", "impl", PASS, reason="refused: forward/x"),
        Verdict("run/model/bert", "RUN", "executorch", FAIL, "RUN/raised/KeyError", "KeyError"),
        Verdict("run/other", "RUN", "impl", PASS),
    )
    lines = models([Stream({}, verdicts, truncated=False)], ["run/model/llama", "run/model/bert"]).split("\n")
    assert lines[2:] == [
        "| llama | impl | right | 1, 15 | 9 | 2.5 | 7 |",
        "| llama | executorch | wrong: far / off | 1, 15 | 9 | 2.5 | 7 |",
        "| bert | impl | refused: forward/x |  |  |  |  |",
        "| bert | executorch | no answer: KeyError |  |  |  |  |",
    ]


def test_a_model_is_a_case_with_a_file_of_its_own() -> None:
    case = MODELS["run/model/phi-8da4w"]
    assert case_from_toml(case_to_toml(case)) == case
    with pytest.raises(ValueError, match="recipe '8da5w' is not one of float, int4"):
        case_from_toml(case_to_toml(case).replace('"8da4w"', '"8da5w"'))
