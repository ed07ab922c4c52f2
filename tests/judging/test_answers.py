"""Right answers to the catalogue's cases pass, and whatever is altered in one of them is seen, as what it is."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from conformance.case.case import Case, Program
from conformance.case.catalogue import load
from conformance.case.model import Model
from conformance.harness.observation import Arrays, Facts, File, Graph, Observation, Place, Problem, Raised, Refused
from conformance.judging.judge import judge
from reference.arithmetic.bfloat16 import BFLOAT16, to_float
from reference.program.fusibility import REASONS, violations
from reference.program.spec import Linear
from tests.judging.answers import outputs, right

CASES = [c for c in load() if (c.level != "deep" or c.stage in {"LOWER", "RUN"}) and not isinstance(c.question, Model)]
MOST = 1 << 16
#: What is altered in an answer, and how that has to show.
Altered = Iterator[tuple[Observation, str]]


def plain(case: Case) -> bool:
    """Whether the oracles have every value of the case's program, and it is small."""
    spec: Any = case.program
    small = sum(int(np.prod(t.shape)) for t in spec.tensors) < MOST
    return small and set(spec.outputs()) <= set(outputs(spec)) and not getattr(case.question, "force_fp16", False)


def of(stage: str) -> list[Case]:
    """Some cases of a stage, each of which is altered in every way."""
    chosen = [c for c in CASES if c.stage == stage]
    every = {"KERNEL": 13, "MATCH": 7, "RUN": 3, "EXPORT": 2}.get(stage, 1)
    return [c for c in chosen if not isinstance(c.question, Program) or plain(c)][::every]


def changed(array: np.ndarray, place: int) -> np.ndarray:
    """The lowest bit of one element changed; infinity and NaN become zero."""
    bits = array["bits"].copy() if array.dtype == BFLOAT16 else array.copy()
    words = bits.reshape(-1).view(f"u{bits.itemsize}")
    finite = np.isfinite(to_float(array)).reshape(-1)[place]
    words[place] = words[place] ^ 1 if finite else 0
    return words.view(bits.dtype).reshape(array.shape).view(array.dtype)


def without(values: Any, name: str) -> dict[str, Any]:
    return {key: value for key, value in values.items() if key != name}


def of_graph(case: Case, answer: Graph) -> Altered:
    """What may be wrong with a rewritten program."""
    yield from of_decisions(case, answer)
    yield from of_outputs(case, answer)
    yield from of_tables(answer, "read")
    if case.stage == "MATCH":
        yield from of_written(answer)
        yield replace(answer, unserved={"lookup0": "a view"}), "decision/unservable"
        yield replace(answer, changed=("state dict",)), "mutated/source"
        yield replace(answer, unstable=("graph",)), "mutated/second_run"
        return
    for name, largest in answer.dynamic.items():
        for sizes in ((), tuple(max(n - 1, 0) for n in largest)):
            yield replace(answer, dynamic={**answer.dynamic, name: sizes}), "dtype_shape/dynamic"
        yield replace(answer, dynamic=without(answer.dynamic, name)), "dtype_shape/dynamic"


def of_decisions(case: Case, answer: Graph) -> Altered:
    reasons = violations(case.program)  # type: ignore[arg-type]
    for n, decision in enumerate(answer.decisions):
        why = reasons[decision.lookup]
        rest = (*answer.decisions[:n], *answer.decisions[n + 1 :])
        shows = f"undue_fusion:{min(why)}" if why else "missed_fusion:own_words"
        if case.stage == "RUN":
            shows = f"undue_delegation:{min(why)}" if why else "missed_delegation"
        opposite = replace(decision, fused=not decision.fused, reason="" if why else "too hard")
        others = {"undecided": None, shows: opposite}
        if case.stage == "MATCH" and why:
            others["wrong_reason"] = replace(decision, reason=next(r for r in REASONS if r not in why))
            others["no_reason"] = replace(decision, reason=" ")
        elif case.stage == "MATCH":
            others["missed_fusion:no_reason"] = replace(decision, fused=False, reason=None)
            others["missed_fusion:empty_table"] = replace(decision, fused=False, reason="empty_table")
        for shown, other in others.items():
            yield replace(answer, decisions=(*rest, other) if other else rest), f"decision/{shown}"


def of_outputs(case: Case, answer: Graph) -> Altered:
    """Every output that is one of the program: missing, of another type, shape or value; linears have bounds."""
    linears = {s.name for s in case.program.steps if isinstance(s, Linear)}  # type: ignore[union-attr]
    for name, array in answer.outputs.items():
        step = name.partition("@")[0]
        if step not in case.program.hidden:  # type: ignore[union-attr]
            yield replace(answer, outputs=without(answer.outputs, name)), "dtype_shape/missing"
            for wrong, shown in wrongs(array, linear=step in linears):
                yield replace(answer, outputs={**answer.outputs, name: wrong}), shown


def wrongs(array: np.ndarray, *, linear: bool = False) -> Altered:
    """Wrong arrays in place of a right one, each with its signature; those of a linear are far off."""
    yield array.reshape((*array.shape, 1)), "dtype_shape/shape"  # type: ignore[misc]
    other = np.float64 if array.dtype != np.float64 else np.float32
    yield np.zeros(array.shape, other), "dtype_shape/dtype"  # type: ignore[misc]
    for place in {0, array.size - 1} if array.size else ():
        far = (1000 * (np.arange(array.size) == place)).reshape(array.shape).astype(array.dtype) if linear else None
        yield changed(array, place) if far is None else array + far, "array/"  # type: ignore[misc]


def of_tables(answer: Any, field: str) -> Altered:
    """What may be wrong with whole tables; only those of fused lookups have to be there."""
    arrays = getattr(answer, field)
    for name, array in arrays.items():
        if not name.endswith(".table"):
            yield replace(answer, **{field: without(arrays, name)}), "dtype_shape/missing"
        if array.size:
            yield replace(answer, **{field: {**arrays, name: changed(array, array.size - 1)}}), "array/"


def of_written(answer: Graph) -> Altered:
    for name, array in answer.written.items():
        yield replace(answer, written=without(answer.written, name)), "dtype_shape/not_written"
        if array.size:
            yield replace(answer, written={**answer.written, name: changed(array, array.size - 1)}), "array/"
    yield replace(answer, written={**answer.written, "nothing": np.zeros(1)}), "dtype_shape/made_up"


def of_export(case: Case, answer: Graph) -> Altered:
    for name in answer.forms:
        yield replace(answer, forms=without(answer.forms, name)), "decision/form"
        yield replace(answer, forms={**answer.forms, name: "aten.embedding"}), "decision/form"
    for name in answer.tables:
        yield replace(answer, tables=without(answer.tables, name)), "decision/table"
    for name in answer.dynamic:
        yield replace(answer, dynamic=without(answer.dynamic, name)), "dtype_shape/dynamic"
        yield replace(answer, dynamic={**answer.dynamic, name: (7,)}), "dtype_shape/dynamic"
    for name, array in answer.source_outputs.items():
        yield replace(answer, source_outputs=without(answer.source_outputs, name)), "dtype_shape/missing"
        for wrong, shown in wrongs(array):
            yield replace(answer, source_outputs={**answer.source_outputs, name: wrong}), shown
    yield replace(answer, source_outputs={**answer.source_outputs, "w": np.zeros(1)}), "dtype_shape/made_up"
    yield from of_outputs(case, answer)
    yield from of_written(answer)


def of_file(case: Case, answer: File) -> Altered:
    reasons = violations(case.program)  # type: ignore[arg-type]
    content = answer.content

    def holding(**other: Any) -> File:
        return replace(answer, content=replace(content, **other))

    for name, why in reasons.items():
        yield holding(places=without(content.places, name)), "decision/undecided"
        other = Place("vulkan", "et_vk.embedding_q4gsw.default") if why else Place("vulkan", "aten.embedding")
        shown = f"undue_delegation:{min(why)}" if why else "missed_delegation"
        yield holding(places={**content.places, name: other}), f"decision/{shown}"
    for severity in ("fails", "wrong"):
        yield holding(problems=(Problem(severity, "batch", "vulkan0", "reads other rows"),)), "decision/batch"
    yield holding(unread=("named data 3",)), "decision/unread_constant"
    yield from of_tables(answer, "read")
    if content.dynamic:
        yield holding(dynamic={}), "dtype_shape/dynamic"
    if any(reasons.values()):  # how such a lookup carries its table is the lowering's choice
        return
    for table, counts in content.copies.items():
        packed = "packed linear_weight"
        for more, shown in (({packed: 0}, "table_missing"), ({packed: 2}, "table_duplicated")):
            yield holding(copies={**content.copies, table: counts | more}), f"decision/{shown}"
        if "packed flat" not in counts or case.id.endswith(("tied-before", "tied-after", "unwrapped", "read-table")):
            continue
        yield holding(copies={**content.copies, table: counts | {"dequantized float32": 1}}), "decision/float_copy"
        if "read-weight" not in case.id:
            yield holding(copies={**content.copies, table: counts | {"original": 1}}), "decision/original"


def of_arrays(case: Case, answer: Arrays) -> Altered:
    ((name, array),) = answer.arrays.items()
    yield replace(answer, arrays={}), "dtype_shape/missing"
    for wrong, shown in wrongs(array):
        yield (
            replace(answer, arrays={name: wrong}),
            "layout/" if shown == "array/" and case.stage != "KERNEL" else shown,
        )
    fences = (
        ({"damage": "3 bytes"}, "mutated/guard_band"),
        ({"unwritten": 0}, "array/unwritten"),
        ({"unstable": 0}, "array/unwritten"),
    )
    for fact, shown in fences if array.size else ():
        yield replace(answer, facts=replace(answer.facts, **fact)), shown  # type: ignore[arg-type]
    if case.stage == "KERNEL":
        for facts in (Facts(), Facts(execution_modes=()), Facts(precise=True)):
            yield replace(answer, facts=facts), "raised/BadObservation"


OF: dict[str, Callable[[Case, Any], Altered]] = {
    "PACK": of_arrays, "PREPACK": of_arrays, "KERNEL": of_arrays, "MATCH": of_graph, "RUN": of_graph,
    "EXPORT": of_export, "LOWER": of_file,
}  # fmt: skip


@pytest.mark.parametrize("stage", OF)
def test_right_answers_pass_and_altered_ones_do_not(stage: str) -> None:
    cases = of(stage)
    assert len(cases) >= 10
    count = 0
    for case in cases:
        answer = right(case)
        verdict = judge(case, answer, "oracle")
        assert verdict.outcome == "PASS", (case.id, verdict.reason)
        for wrong, shows in OF[stage](case, answer):
            verdict = judge(case, wrong, "oracle")
            assert verdict.outcome in {"FAIL", "ERROR"}, (case.id, shows)
            assert verdict.signature.startswith(f"{stage}/{shows}"), (case.id, shows, verdict.reason)
            count += 1
    print(stage, len(cases), count)


@pytest.mark.parametrize("stage", OF)
def test_raising_and_refusing_are_no_answers(stage: str) -> None:
    case = of(stage)[0]
    for answer, outcome, shows in (
        (Raised("ValueError", "no", "mine.pack"), "FAIL", "raised/ValueError@mine.pack"),
        (Raised("Died", "SIGSEGV", trouble=True), "ERROR", "raised/Died"),
        (Refused("device_limit", "", "maxStorageBufferRange"), "FAIL", "raised/device_limit"),
        (Refused("index_outside"), "FAIL", "raised/index_outside"),
        (Refused("force_fp16"), "FAIL", "raised/force_fp16"),
        (Refused("not_carried", "max_norm"), "FAIL", "raised/not_carried"),
        (Refused(""), "FAIL", "raised/no_reason"),
    ):
        verdict = judge(case, answer, "oracle")
        assert (verdict.outcome, verdict.signature) == (outcome, f"{stage}/{shows}")
    other: Observation = Arrays({}) if stage in {"MATCH", "RUN", "EXPORT", "LOWER"} else Graph((), {}, {})
    assert judge(case, other, "oracle").signature == f"{stage}/raised/BadObservation"
