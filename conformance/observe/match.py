"""The observer of stage MATCH: runs a rewriting and reports what it did, from the programs alone.

It does not rely on the rewriting's report of what it fused: it finds the fused lookups on the rewritten graph, computes
both programs, and compares snapshots. Only the reasons for refusals are the subject's own words.

Source: docs/contract.md 5.1, 5.2, 5.6, 5.7.
"""

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch.export.graph_signature import InputKind

from conformance.harness.observation import Decision, Graph, named_at
from conformance.observe.execute import FUSED, Failure, run_program, user_output_nodes
from conformance.observe.reads import read_by_node
from conformance.observe.snapshot import differences, program_snapshot, source_snapshot
from conformance.program.build import BuiltProgram, other_inputs
from conformance.program.lookups import hidden_lookup, lookups_behind, op_name
from conformance.program.tensors import PASSING, Array, dtype_name, to_numpy

#: What a matcher answers for a lookup: (fused, reason, detail).
MatcherAnswer = tuple[bool, str, str]
#: A rewriting: the program in; out the rewritten one and, by the source's node name, what the matcher answers.
Rewrite = Callable[[Any], tuple[Any, Mapping[str, MatcherAnswer] | None]]


class InvalidRewrite(Exception):  # noqa: N818 - it names what the subject returned
    """The rewritten program is not valid: its verifier rejects it, or a node's metadata is untrue."""


def observe_match(built: BuiltProgram, rewrite: Rewrite) -> Graph:
    """Run ``rewrite`` on a built program and observe what came of it.

    Returns:
        Decisions for every lookup of the spec; outputs of the rewritten and of the source program by step
        name (one that could not be computed is left out, and ``failed`` says why); what was
        changed of the source; what a second run on the result changed; the builder's facts.

    Raises:
        ValueError: the source program itself cannot be computed: the spec or the builder is at fault.
        InvalidRewrite: the result is not a valid program.
        Exception: whatever ``rewrite`` raises.
    """
    before = source_snapshot(built)
    source_values = run_program(built.program, built.inputs)
    source_outputs, failed = outputs_by_step(built, built.program, source_values)
    if failed:
        step, why = next(iter(failed.items()))
        raise ValueError(f"the source program does not compute step {step!r}: {why}")
    sizes, others = _input_sizes(built.program), other_inputs(built)
    for size, inputs in others.items():
        there, _ = outputs_by_step(built, built.program, run_program(built.program, inputs))
        source_outputs |= named_at(size, there)
    rewritten, answers = rewrite(built.program)  # which may change the source, or destroy it
    changed = differences(before, source_snapshot(built))
    _check_valid(rewritten)
    _check_ranges(sizes, rewritten)
    values = run_program(rewritten, built.inputs)
    _check_metadata(rewritten, values)
    outputs, failed = outputs_by_step(built, rewritten, values)
    read, unserved = _read(built, rewritten, values)
    written = written_by_tensor(built, rewritten, values)
    for size, inputs in others.items():
        values = run_program(rewritten, inputs)
        _check_metadata(rewritten, values)
        there, trouble = outputs_by_step(built, rewritten, values)
        outputs |= named_at(size, there)
        failed |= named_at(size, trouble)
    return Graph(
        decisions=decisions(built, rewritten, answers),
        outputs=outputs,
        source_outputs=source_outputs,
        changed=changed,
        unstable=_second_run(rewritten, rewrite),
        written=written,
        read=read,
        unserved=unserved,
        failed=failed,
        facts=built.facts,
    )


def decisions(built: BuiltProgram, rewritten: Any, answers: Mapping[str, MatcherAnswer] | None) -> tuple[Decision, ...]:
    """What became of each lookup of the spec: fused where its output comes from a fused node."""
    decided = []
    for lookup in built.spec.lookups():
        fused = fused_node(built, rewritten, lookup.name) is not None
        _, reason, detail = (answers or {}).get(built.nodes[lookup.name], (fused, "", ""))
        silent = None if answers is None else reason
        decided.append(Decision(lookup.name, fused, "" if fused else silent, "" if fused else detail))
    return tuple(decided)


def _read(built: BuiltProgram, rewritten: Any, values: Mapping[str, Any]) -> tuple[dict[str, Array], dict[str, str]]:
    """What each lookup reads, and why the kernel could not serve one that is fused."""
    read, unserved = dict[str, Array](), dict[str, str]()
    for lookup in built.spec.lookups():
        node = lookup_node(built, rewritten, lookup.name)
        if isinstance(node, torch.fx.Node) and not isinstance(values.get(node.name), Failure):
            arrays, why = read_by_node(rewritten, lookup.name, node, values)
            read |= arrays
            unserved |= {lookup.name: why} if why else {}
    return read, unserved


def fused_node(built: BuiltProgram, program: Any, lookup: str) -> Any:
    """The et_vk.embedding_q4gsw node that a lookup of the spec has become in a program; None without."""
    node = lookup_node(built, program, lookup)
    return node if isinstance(node, torch.fx.Node) and op_name(node) == FUSED else None


def lookup_node(built: BuiltProgram, program: Any, lookup: str) -> Any:
    """What computes a lookup of the spec in a program: a node, or None.

    It stands behind the lookup's output, through operators that only hand it on; behind the output of a step that is
    made of the lookup where the lookup is no output.
    """
    results = user_output_nodes(program)
    if lookup in built.outputs:
        node = results[built.outputs[lookup]]
        while isinstance(node, torch.fx.Node) and op_name(node) in PASSING:
            node = node.args[0]
    else:
        node = hidden_lookup(built.spec, lookup, lambda step: lookups_behind(results[built.outputs[step]]))
    return node


def outputs_by_step(
    built: BuiltProgram, program: Any, values: Mapping[str, Any]
) -> tuple[dict[str, Array], dict[str, str]]:
    """The user outputs by step name, and for those that could not be computed the reason."""
    results = user_output_nodes(program)
    outputs: dict[str, Array] = {}
    failed: dict[str, str] = {}
    for step, position in built.outputs.items():
        node = results[position] if position < len(results) else None
        value = values.get(node.name) if isinstance(node, torch.fx.Node) else node
        if isinstance(value, Failure):
            failed[step] = f"node {value.node}: {value.error}"
        elif isinstance(value, torch.Tensor):
            outputs[step] = to_numpy(value)
        else:
            failed[step] = f"output {position} is {value!r}, not a tensor"
    return outputs, failed


def written_by_tensor(built: BuiltProgram, program: Any, values: Mapping[str, Any]) -> dict[str, Array]:
    """What the program writes back to its buffers and inputs, by the spec's tensor; by target where there is none."""
    tensors = {node: tensor for tensor, nodes in built.placeholders.items() for node in nodes}
    sources = [(s.target, tensors.get(s.arg.name, "")) for s in built.program.graph_signature.input_specs]
    names = {target: name for target, name in sources if target is not None and name}
    passed = (s.arg.name for s in program.graph_signature.input_specs if s.kind == InputKind.USER_INPUT)
    names |= dict(zip(passed, (name for target, name in sources if target is None), strict=False))
    found: dict[str, Array] = {}
    for entry in program.graph_signature.output_specs:
        value = values.get(entry.arg.name)
        if entry.target is not None and isinstance(value, torch.Tensor):
            found[names.get(entry.target, entry.target)] = to_numpy(value)
    return found


def _second_run(rewritten: Any, rewrite: Rewrite) -> tuple[str, ...]:
    """What a second run makes different, and what it writes to in its input (contract 5.6)."""
    first = program_snapshot(rewritten)
    again, _ = rewrite(rewritten)
    written = differences(first, program_snapshot(rewritten))
    return tuple(f"input.{name}" for name in written) + differences(first, program_snapshot(again))


def _check_valid(program: Any) -> None:
    try:
        program.validate()
    except Exception as error:
        raise InvalidRewrite(f"its verifier rejects the rewritten program: {error}") from error


def _check_ranges(before: list[list[tuple[int, int]]], program: Any) -> None:
    """Sizes that the caller may choose stay the caller's choice: symbolic, and in no smaller range."""
    after = _input_sizes(program)
    if list(map(len, before)) != list(map(len, after)):
        raise InvalidRewrite(f"its inputs have sizes {after}, but the source's had {before}")
    for old, new in zip(before, after, strict=True):
        if not all(_holds(one, other) for one, other in zip(old, new, strict=True)):
            raise InvalidRewrite(f"an input has sizes {new}, but the source had {old}")


def _input_sizes(program: Any) -> list[list[tuple[int, int]]]:
    """The smallest and largest value of every size of every user input."""
    values = {n.name: n.meta["val"] for n in program.graph.nodes if n.op == "placeholder"}
    names = [spec.arg.name for spec in program.graph_signature.input_specs if spec.target is None]
    return [[_range(program, size) for size in getattr(values[name], "shape", ())] for name in names]


def _range(program: Any, size: Any) -> tuple[int, int]:
    if isinstance(size, int):
        return size, size
    known = program.range_constraints.get(size.node.expr)
    return (known.lower, known.upper) if known is not None else (0, sys.maxsize)


def _holds(one: tuple[int, int], other: tuple[int, int]) -> bool:
    """Whether a range holds no more than another one; torch itself exports no symbolic size below 2 as such."""
    return bool(other[0] <= max(one[0], 2) and one[1] <= other[1])


def _check_metadata(program: Any, values: Mapping[str, Any]) -> None:
    """Dtype and sizes that the new nodes announce must be those of what they compute."""
    for node in program.graph.nodes:
        value, announced = values.get(node.name), node.meta.get("val")
        if not isinstance(value, torch.Tensor):
            continue
        if not isinstance(announced, torch.Tensor):
            raise InvalidRewrite(f"node {node.name} has no tensor in meta['val'], but yields one")
        same = len(announced.shape) == value.dim() and all(
            size == real for size, real in zip(announced.shape, value.shape, strict=True) if isinstance(size, int)
        )
        if announced.dtype != value.dtype or not same:
            raise InvalidRewrite(
                f"node {node.name} announces {dtype_name(announced.dtype)}{list(announced.shape)}, "
                f"but yields {dtype_name(value.dtype)}{list(value.shape)}"
            )
