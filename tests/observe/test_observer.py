"""The observer: every way in which a rewriting can be wrong shows up under its own name."""

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from executorch.exir.dialects._ops import ops

from conformance.case.single_table import SingleTable, single_table
from conformance.harness.observation import Graph
from conformance.observe.execute import FUSED, op_name
from conformance.observe.match import InvalidRewrite, observe_match
from conformance.observe.snapshot import differences, program_snapshot, source_snapshot
from conformance.program.build import BuiltProgram, build
from conformance.subjects.impl import rewriting
from impl.matcher import fuse_q4_embeddings
from reference.program.evaluate import evaluate


def built_of(**parameters: Any) -> BuiltProgram:
    return build(single_table(SingleTable(**{"route": "synthetic", **parameters})))


def unchanged(program: Any) -> tuple[Any, None]:
    return program, None


def fused(program: Any) -> tuple[Any, Any]:
    return rewriting(fuse_q4_embeddings)(program)


def fused_nodes(program: Any) -> list[Any]:
    return [n for n in program.graph.nodes if op_name(n) == FUSED]


def after_fusing(edit: Callable[[Any], None]) -> Callable[[Any], tuple[Any, None]]:
    """The player's fusion with one bug on top, planted once: a program that is fused already is left alone."""

    def rewrite(program: Any) -> tuple[Any, None]:
        if fused_nodes(program):
            return program, None
        result, _ = fuse_q4_embeddings(program)
        edit(result)
        return result, None

    return rewrite


def test_a_program_left_alone() -> None:
    graph = observe_match(built_of(lookups=2, reads=("weight", "table")), unchanged)
    assert [d.fused for d in graph.decisions] == [False, False]
    assert (graph.changed, graph.unstable) == ((), ())
    for name, array in graph.source_outputs.items():
        assert graph.outputs[name].tobytes() == array.tobytes()


@pytest.mark.parametrize("route", ["synthetic", "torchao"])
def test_a_right_fusion(route: str) -> None:
    built = built_of(route=route, lookups=2, linear="after", dtype="float16", reads=("weight", "scale", "table"))
    graph = observe_match(built, fused)
    assert [(d.fused, d.reason) for d in graph.decisions] == [(True, ""), (True, "")]
    assert (graph.changed, graph.unstable) == ((), ())
    for name, array in evaluate(built.spec).items():
        assert graph.outputs[name].tobytes() == array.tobytes(), name
    assert graph.outputs["linear"].tobytes() == graph.source_outputs["linear"].tobytes()


def test_reasons_are_the_subject_s_and_decisions_are_not() -> None:
    built = built_of(zero_point="one_nonzero")
    graph = observe_match(built, fused)
    assert [(d.fused, d.reason) for d in graph.decisions] == [(False, "zero_point_nonzero")]
    boast = observe_match(built, lambda p: (p, {built.nodes["lookup0"]: (True, "", "")}))
    assert [d.fused for d in boast.decisions] == [False]
    modest = observe_match(
        built_of(), lambda p: (fuse_q4_embeddings(p)[0], {"aten_embedding_default": (False, "x", "")})
    )
    assert [(d.fused, d.reason) for d in modest.decisions] == [(True, "")]


def test_constants_that_were_packed_wrongly_are_what_is_computed_with() -> None:
    def swap_nibbles(program: Any) -> None:
        name = next(k for k, v in program.constants.items() if v.dtype == torch.uint8)
        packed = program.constants[name]
        program.constants[name] = (packed >> 4) | (packed << 4)

    built = built_of()
    graph = observe_match(built, after_fusing(swap_nibbles))
    assert graph.decisions[0].fused
    assert graph.outputs["lookup0"].tobytes() != evaluate(built.spec)["lookup0"].tobytes()


def test_the_layout_flag_is_read_off_the_node() -> None:
    def drop_flag(program: Any) -> None:
        (node,) = fused_nodes(program)
        node.args = node.args[:4]

    graph = observe_match(built_of(), after_fusing(drop_flag))
    assert graph.outputs["lookup0"].tobytes() != graph.source_outputs["lookup0"].tobytes()


def source_edits() -> dict[str, tuple[Callable[[Any], object], str]]:
    """What a rewriting may do to its source, and the name under which it is reported."""

    def rename(program: Any) -> None:
        next(n for n in program.graph.nodes if n.op == "call_function").meta["mark"] = 1

    def write(program: Any) -> None:
        program.state_dict["weight"].flatten()[3] += 1

    def replace(program: Any) -> None:
        program.state_dict["weight"] = program.state_dict["weight"].clone()

    return {
        "metadata": (rename, "program.graph"),
        "written": (write, "program.state_dict[weight]"),
        "replaced": (replace, "program.state_dict[weight]"),
        "removed": (lambda p: p.state_dict.pop("weight"), "program.state_dict[weight]"),
        "added": (lambda p: p.constants.update(new=torch.zeros(1)), "program.constants[new]"),
        "signature": (lambda p: p.graph_signature.input_specs.pop(), "program.signature"),
        "verifier": (lambda p: p.verifiers.append(p.verifiers[0]), "program.verifiers"),
        "constraints": (lambda p: p.range_constraints.update(x=1), "program.range_constraints"),
        "frozen": (lambda p: p.state_dict["scale_g32"].requires_grad_(), "program.state_dict[scale_g32]"),
    }


@pytest.mark.parametrize("edit", source_edits())
def test_whatever_is_done_to_the_source_shows(edit: str) -> None:
    change, name = source_edits()[edit]
    built = built_of()

    def rewrite(program: Any) -> tuple[Any, None]:
        result = copy.deepcopy(program)
        if program is built.program:
            change(program)
        return result, None

    assert observe_match(built, rewrite).changed == (name,)


def test_what_is_shared_with_the_caller_s_module_shows_there_too() -> None:
    built = built_of(route="torchao", linear="after")

    def rewrite(program: Any) -> tuple[Any, None]:
        result = copy.deepcopy(program)
        if program is built.program:
            next(iter(program.state_dict.values())).flatten()[0] ^= 1
        return result, None

    changed = observe_match(built, rewrite).changed
    assert any(n.startswith("module.emb.") for n in changed)
    assert any(n.startswith("program.state_dict") for n in changed)


def test_a_second_run_that_goes_on_rewriting() -> None:
    def appends(program: Any) -> tuple[Any, None]:
        result = copy.deepcopy(program)
        output = next(n for n in result.graph.nodes if n.op == "output")
        value = output.args[0][0]
        with result.graph.inserting_before(output):
            clone = result.graph.call_function(ops.edge.dim_order_ops._clone_dim_order.default, (value,), {})
        clone.meta["val"] = value.meta["val"]
        value.replace_all_uses_with(clone, delete_user_cb=lambda user: user is output)
        result.graph_signature.replace_all_uses(value.name, clone.name)
        return result, None

    graph = observe_match(built_of(), appends)
    assert set(graph.unstable) == {"graph", "signature"}


def test_a_second_run_that_writes_to_its_input() -> None:
    def rewrite(program: Any) -> tuple[Any, None]:
        if fused_nodes(program):
            next(iter(program.constants.values())).flatten()[0] += 1
        return program if fused_nodes(program) else fuse_q4_embeddings(program)[0], None

    unstable = observe_match(built_of(), rewrite).unstable
    assert [n.split("[")[0] for n in unstable] == ["input.constants", "constants"]


def test_programs_that_are_not_valid_are_named() -> None:
    def wrong_signature(program: Any) -> None:
        program.graph_signature.output_specs.clear()

    def wrong_dtype(program: Any) -> None:
        (node,) = fused_nodes(program)
        node.meta["val"] = node.meta["val"].to(torch.float16)

    def wrong_shape(program: Any) -> None:
        (node,) = fused_nodes(program)
        node.meta["val"] = node.meta["val"][:2]

    def no_value(program: Any) -> None:
        (node,) = fused_nodes(program)
        node.meta["val"] = None

    with pytest.raises(InvalidRewrite, match="verifier rejects"):
        observe_match(built_of(), after_fusing(wrong_signature))
    with pytest.raises(InvalidRewrite, match=r"announces float16\[5, 64\], but yields float32\[5, 64\]"):
        observe_match(built_of(), after_fusing(wrong_dtype))
    with pytest.raises(InvalidRewrite, match=r"announces float32\[2, 64\], but yields float32\[5, 64\]"):
        observe_match(built_of(), after_fusing(wrong_shape))
    with pytest.raises(InvalidRewrite, match=r"no tensor in meta|verifier rejects"):
        observe_match(built_of(), after_fusing(no_value))


def test_a_node_that_fails_costs_what_depends_on_it_only() -> None:
    def wrong_group(program: Any) -> None:
        (node,) = fused_nodes(program)
        node.args = (*node.args[:2], 5, *node.args[3:])

    graph = observe_match(built_of(reads=("weight",)), after_fusing(wrong_group))
    assert set(graph.outputs) == {"read_weight"}
    assert "group_size: 5 does not divide" in graph.failed["lookup0"]
    assert graph.decisions[0].fused


def test_a_source_that_cannot_run_is_not_the_subject_s_fault() -> None:
    spec = single_table(SingleTable(route="synthetic", scale_shape=(9, 3)))
    with pytest.raises(ValueError, match="source program does not compute step 'lookup0'"):
        observe_match(build(spec), unchanged)


def test_the_packed_dialect_is_computed_as_the_runtime_s_kernel_does() -> None:
    """Its eager form rounds float16 products; contract 4 takes the CPU kernel, which multiplies in float32."""
    parameters: dict[str, Any] = {"dialect": "embedding_4bit", "scale_dtype": "float16", "zero_point": "none"}
    built = built_of(**parameters, indices_shape=(4, 9))
    graph: Graph = observe_match(built, unchanged)
    expected = evaluate(built.spec)["lookup0"]
    assert graph.outputs["lookup0"].tobytes() == expected.tobytes()
    eager = torch.ops.quantized_decomposed.embedding_4bit.dtype(
        *(built.program.state_dict[n] for n in ("weight", "scale_g32")), None, -8, 7, *built.inputs, dtype=torch.float32
    )
    assert not np.array_equal(eager.numpy(), expected)


def test_snapshots_of_equal_programs_are_equal() -> None:
    one, other = built_of(linear="before"), built_of(linear="before")
    assert differences(program_snapshot(one.program), program_snapshot(other.program)) == ()
    named = differences(source_snapshot(one), source_snapshot(other))
    assert "program.state_dict[weight]" in named  # equal bytes, but other tensors


def test_addresses_are_not_content() -> None:
    built = built_of()
    edge = dataclasses.replace(built.edge(), program=copy.deepcopy(built.program))
    again = dataclasses.replace(built, edge=lambda: edge)
    assert differences(program_snapshot(built.program), program_snapshot(again.program)) == ()
