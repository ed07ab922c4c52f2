"""The observer of stages LOWER and RUN: facts about the file that a lowering wrote, and what it computes.

Tables are looked for by their bytes in the file, so nothing here depends on where a lowering put them.

Source: docs/contract.md 5.7, 6.1 to 6.3.
"""

import functools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from executorch.backends.transforms.utils import create_constant_placeholder
from executorch.exir import EdgeProgramManager, to_edge
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.passes.constant_prop_pass import constant_prop_pass
from torch.export.graph_signature import InputKind

from conformance.audit.audit import audit
from conformance.audit.constants import unread_constants
from conformance.harness.errors import CannotRun
from conformance.harness.observation import SECOND, Decision, FileContent, Graph, Place, named_at
from conformance.observe.execute import run_program
from conformance.observe.tables import copies, read_in_file
from conformance.program.build import BuiltProgram, build, other_inputs, small_programs
from conformance.program.lookups import hidden_lookup
from conformance.program.tensors import Array, to_numpy, to_torch, user_inputs
from conformance.pte.file import PteFile
from conformance.pte.lookup import LOOKUP
from conformance.pte.producer import Producer, lookups_behind, producer
from conformance.pte.run import RunResult, run_in_turn, run_pte
from reference.program.apply import INEXACT
from reference.program.evaluate import packed_lookup, second_call
from reference.program.spec import Apply, Linear, Lookup

#: Types in which contract 3.6 bounds a product, and 5.7 a norm of a delegate.
_WITH_A_BOUND = (torch.float32, torch.float16)
_LOOKUP, _PACKED = exir_ops.edge.aten.embedding.default, exir_ops.edge.quantized_decomposed.embedding_4bit.dtype
#: What runs a file call by call, each with its inputs, without a Vulkan runtime (``run_in_turn``) or on one.
Execute = Callable[[PteFile, Sequence[Sequence[Any]]], list[RunResult]]


def observe_file(built: BuiltProgram, file: PteFile) -> FileContent:
    """What the file holds, for ``conformance.judging.lowered.judge_lower``."""
    report = audit(file)
    return FileContent(
        len(file.data),
        places(built, file),
        copies(built.spec, file),
        report.problems,
        report.notes,
        dynamic(built, file),
        tuple(unread_constants(file)),
    )


def observe_run(built: BuiltProgram, file: PteFile, execute: Execute = run_in_turn) -> Graph:
    """What the file computes, for ``conformance.judging.lowered.judge_run``.

    Args:
        built: what the file was lowered from.
        file: the file.
        execute: runs it.

    Returns:
        Decisions (fused: a delegate computes the lookup); outputs by step name; ``source_outputs``, for every linear,
        the program that was not rewritten on the same inputs; facts of what the lookups' shaders declared.
    """
    following = second_call(built.spec)
    result, *again = execute(file, [built.inputs] * (2 if following else 1))
    computed_by = places(built, file)
    outputs = {step: result.outputs[position] for step, position in built.outputs.items()}
    source = functools.cache(lambda: build(built.spec, edge=False))  # not the one that the lowering was handed
    sources, failed = _source_outputs(source, built, computed_by), dict[str, str]()
    for size, inputs in other_inputs(built, lowered=True).items():
        try:
            there = execute(file, [inputs])[0].outputs
        except CannotRun as error:
            failed |= named_at(size, dict.fromkeys(built.outputs, str(error)))
            continue
        outputs |= named_at(size, {step: there[position] for step, position in built.outputs.items()})
        sources |= named_at(size, _source_outputs(source, replace(built, inputs=inputs), computed_by))
    if following:  # what the first call wrote
        there = again[0].outputs
        outputs |= named_at(SECOND, {step: there[position] for step, position in built.outputs.items()})
        source = functools.cache(lambda: build(following, edge=False))
        sources |= named_at(SECOND, _source_outputs(source, built, computed_by))
    decisions = tuple(
        Decision(step.name, computed_by[step.name] == Place("vulkan", LOOKUP)) for step in built.spec.lookups()
    )
    facts = built.facts
    for shader in result.lookups[:1]:
        declared = [set(other.execution_modes or ()) for other in result.lookups]
        modes = sorted(set.intersection(*declared))
        facts = replace(
            facts,
            execution_modes=tuple(modes),
            precise=all(bool(other.precise) for other in result.lookups),
            io_storage=max(other.io_storage for other in result.lookups),  # "texture3d" allows more than "buffer"
            device=shader.device,
            driver=shader.driver,
        )
    sizes = dynamic(built, file)
    read = whole_tables(built, file)
    return Graph(decisions, outputs, sources, read=read, failed=failed, facts=facts, places=computed_by, dynamic=sizes)


def dynamic(built: BuiltProgram, file: PteFile) -> dict[str, tuple[int, ...]]:
    """The largest sizes of each user input that the file lets vary, by the tensor's name."""
    plan = file.method("forward").plan
    specs = zip(user_inputs(built.spec), (plan.values[number].val for number in plan.inputs), strict=True)
    return {tensor.name: tuple(spec.sizes) for tensor, spec in specs if spec.shape_dynamism}


def places(built: BuiltProgram, file: PteFile) -> dict[str, Place]:
    """What computes each step's output, by step name."""
    return {step: Place(p.place, p.operator) for step, p in _producers(built, file).items()}


def _producers(built: BuiltProgram, file: PteFile) -> dict[str, Producer]:
    method = file.method("forward")
    producers = {step: producer(method, method.plan.outputs[position]) for step, position in built.outputs.items()}
    for lookup in built.spec.lookups():
        if lookup.name not in producers:
            there = hidden_lookup(
                built.spec, lookup.name, lambda step: lookups_behind(method, method.plan.outputs[built.outputs[step]])
            )
            producers[lookup.name] = there or Producer("cpu", "")
    return producers


def whole_tables(built: BuiltProgram, file: PteFile) -> dict[str, Array]:
    """What each lookup reads, by step and operand (``conformance.observe.tables``)."""
    method, by = file.method("forward"), _producers(built, file)
    read: dict[str, Array] = {}
    for lookup in built.spec.lookups():
        read |= read_in_file(file, method, lookup.name, by[lookup.name])
    return read


def _source_outputs(
    source: Callable[[], BuiltProgram], called: BuiltProgram, places: Mapping[str, Place]
) -> dict[str, Any]:
    """What ``source``, on the inputs of ``called``, computes where the contract gives neither a number nor a bound.

    Each on the runtime that the file has it on: a delegate's operators run eagerly here. For the CPU runtime the tables
    are folded into float constants first: no runtime has torchao's dequantize.
    """
    returned = [step for step in called.spec.steps if step.name in called.outputs]
    inexact = [s for s in returned if isinstance(s, Linear) or (isinstance(s, Apply) and s.function in INEXACT)]
    renormed = [s.name for s in returned if isinstance(s, Lookup) and s.max_norm]  # which no runtime has
    if not inexact and not renormed:
        return {}
    built = source()
    results = built.exported.graph.output_node().args[0][-len(built.outputs) :]
    types = {name: results[position].meta["val"].dtype for name, position in built.outputs.items()}
    in_vulkan = {s.name for s in called.spec.steps if s.name in places and places[s.name].place == "vulkan"}
    eager, on_the_cpu = list(renormed), list[str]()
    for step in inexact:
        anywhere = isinstance(step, Apply) and step.function == "linear"  # its bound holds on the CPU as well
        if types[step.name] not in _WITH_A_BOUND or not (anywhere or step.name in in_vulkan):
            (eager if step.name in in_vulkan else on_the_cpu).append(step.name)
    found: dict[str, Any] = {}
    if eager:
        values = run_program(built.program, called.inputs)
        found = {name: to_numpy(values[built.nodes[name]]) for name in eager}
    if on_the_cpu:
        outputs = run_pte(_on_the_cpu(built.exported), called.inputs).outputs
        found |= {name: outputs[built.outputs[name]] for name in on_the_cpu}
    return found


@functools.lru_cache(maxsize=1)  # asked at several sizes in turn
def _on_the_cpu(exported: Any) -> bytes:
    """The file of a program without a delegate."""
    with small_programs():
        edge = to_edge(exported)
    folded = constant_prop_pass(
        edge.exported_program(), custom_skip_targets={_LOOKUP, _PACKED}
    )  # whose indices may be constants
    _unpack(folded)
    for node in folded.graph.find_nodes(op="placeholder"):
        node.meta["et_init_buffer"] = True  # state starts as the program has it, not as zeros
    config = replace(edge.compile_config, _check_ir_validity=False)  # folding leaves clones of another dialect
    return bytes(EdgeProgramManager({"forward": folded}, None, config).to_executorch().buffer)


def _unpack(program: Any) -> None:
    """Let packed lookups read float tables where the kernel refuses their zero points: another type than rows have."""
    signature = program.graph_signature
    targets = {spec.arg.name: spec.target for spec in signature.input_specs}
    for node in program.graph.find_nodes(op="call_function", target=_PACKED):
        parts = [None if part is None else targets.get(part.name) for part in node.args[:3]]
        dtype = node.meta["val"].dtype
        if parts[2] is None or node.args[2].meta["val"].dtype == dtype:
            continue
        weight, scales, zero = (to_numpy(program.state_dict.get(p, program.constants.get(p))) for p in parts)
        table = packed_lookup(weight, scales, zero, np.arange(len(weight)), str(dtype).removeprefix("torch."))
        with program.graph.inserting_before(next(iter(program.graph.nodes))):
            name, kind = f"{node.name}_table", InputKind.BUFFER
            new = create_constant_placeholder(
                program, program.graph, name, kind, to_torch(table), persistent_buffer=True
            )
        node.target, node.args, node.kwargs = _LOOKUP, (new, node.args[5]), {}
    program.graph.eliminate_dead_code()
