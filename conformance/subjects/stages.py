"""What all subjects share: QUANTIZE, EXPORT, LOWER and RUN around a lowering, and what a fused lookup reads.

Source: docs/contract.md sections 4, 6 and 7.
"""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from conformance.case.case import Case, Dispatch, EndToEnd, Program, Quantization, Table
from conformance.case.model import Model
from conformance.case.operands import operands
from conformance.harness.observation import Arrays, Facts, File, Graph, Observation, Refused
from reference.program.spec import ProgramSpec

if TYPE_CHECKING:  # loading it loads torch
    from conformance.observe.lowered import Execute
    from conformance.observe.match import Rewrite
    from conformance.program.build import BuiltProgram

Array = np.ndarray[Any, Any]
#: A lowering: a program of torch.export and the Vulkan partitioner's compile options in, the bytes of a ``.pte`` out.
Lower = Callable[[Any, Mapping[str, Any]], bytes]


class LoweringRefused(Exception):  # noqa: N818 - it names what the lowering did
    """A lowering declines a program: ``reason`` is what to name, such as a compile option; ``detail`` says why.

    "not_carried": no runtime executes what ``detail`` names (contract 6.2).
    """

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}")
        self.reason, self.detail = reason, detail


@dataclass(frozen=True)
class FusedTable:
    """What a fused lookup reads: packed bytes uint8 [V, D/2] and their layout, scales, group size, indices.

    ``facts`` are the builder's.
    """

    packed: Array
    linear_weight: bool
    scales: Array
    group_size: int
    indices: Array
    facts: Facts


def answer(
    case: Case,
    match: Callable[[ProgramSpec], Observation],
    pack: Callable[[Table], Observation],
    kernel: Callable[[Dispatch | EndToEnd], Observation],
    lower: Lower,
) -> Observation:
    """Answer a case by the function for its stage; QUANTIZE and EXPORT need none."""
    question = case.question
    if isinstance(question, Quantization):
        return run_quantize(question)
    if isinstance(question, Table):
        return pack(question)
    if isinstance(question, Dispatch | EndToEnd):
        return kernel(question)
    if case.stage in {"LOWER", "RUN"} or isinstance(question, Model):
        return observe_lowering(case, lower)
    return run_export(question.spec) if case.stage == "EXPORT" else match(question.spec)


def run_quantize(question: Quantization) -> Arrays:
    """Quantize the question's float table by torchao and report the tensor's three parts."""
    from conformance.program.tensors import to_numpy  # noqa: PLC0415 - torch takes seconds to load
    from conformance.program.torchao import quantize_embedding  # noqa: PLC0415 - the same

    weight = quantize_embedding(question)
    parts = {name: to_numpy(getattr(weight, name)) for name in ("qdata", "scale", "zero_point")}
    made_by = {"tensor_type": type(weight).__name__, "quantized_by": "torchao.quantization.quantize_"}
    return Arrays(parts, Facts(provenance=made_by))


def run_export(spec: ProgramSpec) -> Graph:
    """Take the program to the edge dialect and report how it is spelled and what it computes."""
    from conformance.observe.export import observe_export  # noqa: PLC0415 - torch takes seconds to load
    from conformance.program.build import build  # noqa: PLC0415 - the same

    return observe_export(build(spec))


def observe_rewriting(spec: ProgramSpec, rewrite: "Rewrite") -> Graph:
    """Build the program, rewrite it and report what came of it."""
    from conformance.observe.match import observe_match  # noqa: PLC0415 - torch takes seconds to load
    from conformance.program.build import build  # noqa: PLC0415 - the same

    return observe_match(build(spec), rewrite)


def unlowerable(case: Case) -> str | None:
    """Why a case cannot be lowered: only programs of torch.export can."""
    if case.program is not None and case.program.route == "synthetic":
        return "a synthetic program is in the edge dialect already; lowering starts from torch.export"
    return None


def _lowered(question: Program, lower: Lower) -> tuple["BuiltProgram", bytes]:
    from conformance.program.build import build  # noqa: PLC0415 - torch takes seconds to load

    built = build(question.spec, edge=False)
    return built, lower(built.exported, {"force_fp16": True} if question.force_fp16 else {})


@functools.lru_cache(maxsize=1)  # it is asked at LOWER, and then at RUN
def _generated_lowered(_: str, question: Program, lower: Lower) -> tuple["BuiltProgram", bytes]:
    """The same with torch spared what takes half of its time; the catalogue's programs meet torch as it is.

    By the case's id: 0.0 == -0.0, and programs of either are others.
    """
    from conformance.program.build import small_programs  # noqa: PLC0415 - as above

    with small_programs():
        return _lowered(question, lower)


def observe_lowering(case: Case, lower: Lower, execute: "Execute | None" = None) -> File | Graph | Refused:
    """Answer a LOWER or a RUN case with a lowering of your own.

    Builds the case's program and lowers it. At LOWER what the file holds is reported; at RUN it is executed, and what
    it computes is reported.

    Args:
        case: of stage LOWER or RUN.
        lower: takes the program of torch.export and compile options, returns the bytes of a ``.pte``. It may raise
            ``LoweringRefused``, which a case with ``force_fp16`` allows (contract 3.7).
        execute: a real runtime, which then executes LOWER's files too; by default RUN's, without a Vulkan runtime.

    Raises:
        CannotRun: the file asks for something that cannot be executed; names it.
        EnvironmentProblem: no Vulkan device or shader compiler.
        Exception: whatever ``lower`` raises.
    """
    from conformance.observe.lowered import observe_file, observe_run, whole_tables  # noqa: PLC0415 - torch takes seconds to load
    from conformance.pte.file import read_pte  # noqa: PLC0415 - the same
    from conformance.pte.run import run_in_turn  # noqa: PLC0415 - the same

    question = case.question
    try:
        if isinstance(question, Model):
            from conformance.models.observe import observe_model  # noqa: PLC0415 - the same

            return observe_model(question, lower, execute or run_in_turn)
        assert isinstance(question, Program)  # noqa: S101 - conformance.case.case.check saw to it
        generated = functools.partial(_generated_lowered, case.id)
        built, data = (generated if case.id.startswith("gen/") else _lowered)(question, lower)
    except LoweringRefused as refusal:
        return Refused(refusal.reason, refusal.detail)
    file = read_pte(data)
    if case.stage == "RUN":
        return observe_run(built, file, execute or run_in_turn)
    observed = File(file.digest, observe_file(built, file), whole_tables(built, file), built.facts)
    if execute is None or question.force_fp16:
        return observed
    ran = observe_run(built, file, execute)
    return replace(observed, facts=ran.facts, outputs=ran.outputs, source_outputs=ran.source_outputs)


def fused_table(question: EndToEnd, rewrite: "Rewrite") -> FusedTable | Refused:
    """Build the question's program, fuse it, and read the first lookup's operands off the fused graph."""
    from conformance.observe.execute import fused_arguments  # noqa: PLC0415 - torch takes seconds to load
    from conformance.observe.match import fused_node  # noqa: PLC0415 - the same
    from conformance.program.build import build  # noqa: PLC0415 - the same
    from conformance.program.tensors import to_numpy  # noqa: PLC0415 - the same

    built = build(question.spec)
    program, answers = rewrite(built.program)
    lookup = built.spec.lookups()[0]
    node = fused_node(built, program, lookup.name)
    if node is None:
        unexplained = (False, "not_fused", "the matcher left the program's first lookup as it was")
        _, reason, detail = (answers or {}).get(built.nodes[lookup.name], unexplained)
        return Refused(reason, detail)
    arguments = fused_arguments(node)
    constants = {**program.constants, **program.state_dict}
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs}
    packed, scales = (to_numpy(constants[targets[arguments[name].name]]) for name in ("weight", "weight_scales"))
    linear_weight, group_size = arguments["is_linear_weight"], arguments["group_size"]
    return FusedTable(packed, linear_weight, scales, group_size, operands(question).indices, built.facts)
