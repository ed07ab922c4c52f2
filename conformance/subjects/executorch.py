"""Subject "executorch": the installed wheel's own pattern pass, packing function and eager operator.

Source programs are handed over the way the wheel's own lowering does it: a new ExportedProgram with a
graph and dictionaries of its own that share the caller's tensors. The pass is designed to edit the program
object that it receives, so that is no fault; writing into tensors that the caller's module still
holds is (contract 5.2), and the observer sees it in the source program and the module.

Source: docs/contract.md 5.2.
"""

import copy
import functools
import traceback
import warnings
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, EndToEnd, Table
from conformance.case.operands import operands, table_values
from conformance.harness.observation import Arrays, Facts, Graph, Observation, Refused
from conformance.subjects.stages import FusedTable, answer, fused_table, observe_rewriting, unlowerable
from reference.program.spec import ProgramSpec
from reference.table.layouts import pack_flat, pack_linear_weight


class SubjectUnderTest:
    """ExecuTorch's Vulkan backend as far as its wheel can run it: everything but the GPU."""

    def supports(self, case: Case) -> str | None:
        """Return why the case does not apply to the wheel, or None."""
        if case.stage in {"QUANTIZE", "EXPORT", "MATCH"}:
            return None
        if case.stage in {"LOWER", "RUN"}:
            return unlowerable(case)
        if case.stage == "PACK" and isinstance(case.question, Table):
            return "the wheel has no function that packs flat bytes" if case.question.layout == "flat" else None
        if isinstance(case.question, Dispatch | EndToEnd):
            return _kernel_reason(case.question)
        return f"the wheel has no Vulkan runtime to run stage {case.stage} on"

    def run(self, case: Case) -> Observation:
        """Answer the case; assertions of the wheel come out as they are."""
        return answer(case, run_match, run_pack, run_kernel, lower)


def lower(program: Any, options: Mapping[str, Any]) -> bytes:
    """Lower a program of torch.export as the wheel's users do: by its partitioner."""
    import executorch.kernels.quantized  # noqa: F401, PLC0415 - registers the CPU's quantized embeddings
    from executorch.backends.vulkan.partitioner.vulkan_partitioner import (  # noqa: PLC0415 - takes seconds to load
        VulkanPartitioner,
    )
    from executorch.exir import to_edge_transform_and_lower  # noqa: PLC0415 - the same

    remember_pattern_graphs()
    try:
        manager = to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner(dict(options))])
        return bytes(manager.to_executorch().buffer)
    except Exception as error:
        raise plain_error(error) from error


def run_match(spec: ProgramSpec) -> Graph:
    """Build the program, apply the wheel's FusePatternsPass and observe."""
    return observe_rewriting(spec, lambda program: (fuse_patterns(program), None))


def run_pack(table: Table) -> Arrays:
    """Pack the table with pack_4bit_weight_tensor, without its default padding of the columns to 8."""
    import torch  # noqa: PLC0415 - takes seconds to load
    from executorch.backends.vulkan.patterns.weight_packing_utils import (  # noqa: PLC0415 - the same
        pack_4bit_weight_tensor,
    )

    values = torch.from_numpy(table_values(table))
    return Arrays({"packed": pack_4bit_weight_tensor(values, inner_dim_padding=None).numpy()})


def run_kernel(question: Dispatch | EndToEnd) -> Arrays | Refused:
    """Run et_vk.embedding_q4gsw's eager implementation on the CPU.

    Without a program its weights are the reference's bytes, so that only the operator is judged; with one
    they are what the pattern pass left in the graph.
    """
    import torch  # noqa: PLC0415 - takes seconds to load
    from executorch.backends.vulkan import custom_ops_lib  # noqa: F401, PLC0415 - registers the operator

    table: FusedTable | Refused
    if isinstance(question, Dispatch):
        own, linear = operands(question), question.weight_layout != "flat"
        packed = (pack_linear_weight if linear else pack_flat)(own.values)
        table = FusedTable(packed, linear, own.scales, own.group_size, own.indices, Facts())
    else:
        table = fused_table(question, lambda program: (fuse_patterns(program), None))
    if isinstance(table, Refused):
        return table
    packed, scales, indices = (torch.from_numpy(a) for a in (table.packed, table.scales, table.indices))
    result = torch.ops.et_vk.embedding_q4gsw(packed, scales, table.group_size, indices, table.linear_weight)
    facts = replace(table.facts, arithmetic="host", device="CPU", driver=f"torch {torch.__version__}")
    return Arrays({"out": result.numpy()}, facts)


def fuse_patterns(program: Any) -> Any:
    """Return what the wheel's FusePatternsPass makes of a copy of ``program`` that shares its tensors."""
    from executorch.backends.vulkan._passes.fuse_patterns import FusePatternsPass  # noqa: PLC0415 - takes seconds
    from executorch.backends.vulkan.vulkan_preprocess import apply_passes  # noqa: PLC0415 - the same

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        remember_pattern_graphs()
        try:
            return apply_passes(shallow_copy(program), [FusePatternsPass()])
        except Exception as error:
            raise plain_error(error) from error


def plain_error(error: Exception) -> Exception:
    """What a pass raised, by type, with its message in one line and its place.

    The pass manager wraps it in a bare Exception; what it was is what the verdict names.
    """
    cause = error.__cause__ if isinstance(error.__cause__, Exception) else error
    at = traceback.extract_tb(cause.__traceback__)[-1]
    text = str(cause).strip().partition("\n")[0] or "no message"
    message = f"{text} ({Path(at.filename).name}:{at.lineno}: {at.line})"
    plain = type(cause) if type(cause) in {AssertionError, RuntimeError, ValueError, KeyError} else RuntimeError
    return plain(message)


def shallow_copy(program: Any) -> Any:
    """A program with its own graph, signature and dictionaries, and the same tensors."""
    from torch.export import ExportedProgram  # noqa: PLC0415 - takes seconds to load

    graph_module = copy.deepcopy(program.graph_module)
    return ExportedProgram(
        root=graph_module,
        graph=graph_module.graph,
        graph_signature=copy.deepcopy(program.graph_signature),
        state_dict=dict(program.state_dict),
        range_constraints=dict(program.range_constraints),
        module_call_graph=copy.deepcopy(program.module_call_graph),
        example_inputs=program.example_inputs,
        constants=dict(program.constants),
        verifiers=list(program.verifiers),
    )


@functools.cache
def remember_pattern_graphs() -> None:
    """Keep the wheel's pattern graphs, which it otherwise exports on every call (1.6 s); they never differ."""
    from executorch.backends.vulkan.patterns.pattern_registry import fusable_patterns  # noqa: PLC0415 - takes seconds

    for entry in fusable_patterns.values():
        if entry.get_graphs_fn is not None:
            entry.get_graphs_fn = functools.cache(entry.get_graphs_fn)


def _kernel_reason(question: Dispatch | EndToEnd) -> str | None:
    if question.output_dtype != "float32":
        return f"the wheel's operator returns float32, not {question.output_dtype}"
    if "buffer" not in {question.weight_storage} & {question.io_storage}:
        return "the wheel's operator runs on the CPU, where there are no textures"
    own = operands(question)
    if own.indices.size and not (np.min(own.indices) >= 0 and np.max(own.indices) < own.values.shape[0]):
        return "the wheel's operator runs on the CPU, where an index outside the table raises"
    return None
