"""lower_to_vulkan: from torch.export's program to a .pte whose embeddings are right on every runtime involved.

    manager = lower_to_vulkan(torch.export.export(model, inputs), compile_options={...})
    Path("model.pte").write_bytes(manager.buffer)

Lookups that fuse are delegated to Vulkan; what does not fuse is rewritten, before any partitioner sees
it, into operators that the wheel's CPU runtime has kernels for. No state of upstream is patched.

Source: docs/contract.md section 6.
"""

import functools
import gc
import logging
import traceback
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers what embedding_byte becomes in a .pte
import torch
from executorch.exir import EdgeCompileConfig, EdgeProgramManager, ExecutorchBackendConfig, to_edge
from executorch.exir.program import ExecutorchProgramManager
from torch.export import ExportedProgram

from impl.graph.ops import DEQUANTIZE, EDGE_Q4GSW, op_name, source_line, torch_op
from impl.lower.outside import UNREGISTERED, VulkanWithout, keep_outside
from impl.lower.plan import LoweringError, plan_lowering
from impl.lower.rewrite import rewrite_for_runtimes
from impl.matcher import FusionReport, Limits, fuse_all_but

__all__ = [
    "ForceFloat16Error",
    "Lowered",
    "LoweringError",
    "MethodReport",
    "lower_to_vulkan",
    "lower_with_report",
    "prepare_for_vulkan",
]

_LOG = logging.getLogger(__name__)


class ForceFloat16Error(ValueError):
    """Compile option force_fp16 makes the scales of a fused lookup float16 (contract 3.7).

    Attributes:
        node: method and node name of the lookup.
    """

    def __init__(self, node: str) -> None:
        self.node = node
        super().__init__(
            f"compile option force_fp16 makes the scales of {node} float16, so that "
            "its values are not the model's: leave it out, or export the model in float16"
        )


@dataclass(frozen=True)
class MethodReport:
    """What became of one method.

    Attributes:
        fusion: fused and refused lookups.
        cpu_fallbacks: refused lookup -> the operator that it runs as on the CPU.
        products: dequantize node -> matrix product: these two become upstream's 4-bit linear.
        folded: dequantize nodes that became float constants -> how much larger that is, and why.
        outside: nodes that upstream's partitioner would take and the Vulkan runtime cannot do right -> why.
    """

    fusion: FusionReport
    cpu_fallbacks: Mapping[str, str]
    products: Mapping[str, str]
    folded: Mapping[str, str]
    outside: Mapping[str, str]


@dataclass(frozen=True)
class Lowered:
    """The ExecuTorch program, and what became of each method by name."""

    manager: ExecutorchProgramManager
    reports: Mapping[str, MethodReport]


def lower_to_vulkan(
    program: ExportedProgram | Mapping[str, ExportedProgram],
    *,
    compile_options: Mapping[str, Any] | None = None,
    partitioners: Sequence[Any] = (),
    limits: Limits | None = None,
    edge_compile_config: EdgeCompileConfig | None = None,
    backend_config: ExecutorchBackendConfig | None = None,
    constant_methods: Mapping[str, Any] | None = None,
) -> ExecutorchProgramManager:
    """``lower_with_report``, and only the manager of it; weights that grow are logged as warnings."""
    return lower_with_report(
        program,
        compile_options=compile_options,
        partitioners=partitioners,
        limits=limits,
        edge_compile_config=edge_compile_config,
        backend_config=backend_config,
        constant_methods=constant_methods,
    ).manager


@torch.no_grad()  # type: ignore[untyped-decorator] # or a buffer that is written is a leaf that needs a gradient
def lower_with_report(
    program: ExportedProgram | Mapping[str, ExportedProgram],
    *,
    compile_options: Mapping[str, Any] | None = None,
    partitioners: Sequence[Any] = (),
    limits: Limits | None = None,
    edge_compile_config: EdgeCompileConfig | None = None,
    backend_config: ExecutorchBackendConfig | None = None,
    constant_methods: Mapping[str, Any] | None = None,
) -> Lowered:
    """Lower one program, or several methods, to an ExecuTorch program with Vulkan delegates.

    Args:
        program: torch.export's program (ATen dialect), or method name -> program. Not changed.
        compile_options: the Vulkan partitioner's own.
        partitioners: further partitioners, tried in order on what Vulkan leaves.
        limits: refuse tables beyond these limits of a device; refused tables run on the CPU.
        edge_compile_config: for ``to_edge``.
        backend_config: for ``to_executorch``.
        constant_methods: for ``to_edge``.

    Returns:
        The manager, whose ``.buffer`` holds the bytes of the .pte, and a report for each method. Nothing is written.

    Raises:
        TypeError: ``program`` is not one ExportedProgram or a mapping of them.
        ForceFloat16Error: ``force_fp16`` is set for a program with fused lookups (contract 3.7: it makes
            their scales float16).
        LoweringError: a lookup or a dequantized table has no exact form on any runtime; names each.

    Source: contract 6.
    """
    programs = {"forward": program} if isinstance(program, ExportedProgram) else program
    if not isinstance(programs, Mapping) or not all(isinstance(p, ExportedProgram) for p in programs.values()):
        raise TypeError("program must be a torch.export.ExportedProgram or a mapping of method names to them")
    options = dict(compile_options or {})
    methods = dict(constant_methods or {}) or None
    to_edge_of = functools.partial(to_edge, constant_methods=methods, compile_config=edge_compile_config)
    edge = _named("to_edge", to_edge_of, dict(programs))
    undelegated: dict[str, set[str]] = {name: set() for name in programs}
    while True:
        lowered, reports = prepare_for_vulkan(edge, limits=limits, undelegated=undelegated)
        _refuse_force_fp16(options, reports)
        for partitioner in (VulkanWithout(options), *partitioners):
            lowered = _named("to_backend", lowered.to_backend, partitioner)
        gc.collect()  # upstream's copy of a delegate's program, tables and all, is held by a cycle
        _scan(lowered)
        left = {name: _left_over(lowered.exported_program(name), reports[name]) for name in programs}
        if not any(left.values()):
            return Lowered(_named("to_executorch", lowered.to_executorch, backend_config), reports)
        for name, nodes in left.items():
            if nodes <= undelegated[name] and nodes:
                raise LoweringError(
                    [(f"{name}/{node}", "Vulkan does not take it and no CPU kernel has it") for node in nodes]
                )
            undelegated[name] |= nodes


def prepare_for_vulkan(
    edge: EdgeProgramManager,
    *,
    limits: Limits | None = None,
    undelegated: Mapping[str, set[str]] | None = None,
) -> tuple[EdgeProgramManager, dict[str, MethodReport]]:
    """The part of lowering that is ours: fuse, and rewrite what does not fuse. ``edge`` is not changed.

    Args:
        edge: what ``to_edge`` returned.
        limits: as in ``lower_to_vulkan``.
        undelegated: method -> lookups and products that Vulkan would not take, by node name.

    Returns:
        A manager ready for ``to_backend(VulkanPartitioner(...))``, and a report for each method.

    Raises:
        LoweringError: a lookup or a dequantized table has no exact form on any runtime; names each.
    """
    programs: dict[str, ExportedProgram] = {}
    reports: dict[str, MethodReport] = {}
    faults: list[tuple[str, str]] = []
    for name in sorted(edge.methods):
        avoid = (undelegated or {}).get(name, set())
        fused, fusion = fuse_all_but(edge.exported_program(name), limits or Limits(), avoid)
        try:
            plan = plan_lowering(fused, limits or Limits(), avoid)
        except LoweringError as error:
            faults.extend((f"{name}/{node}", why) for node, why in error.nodes)
            continue
        programs[name], products = rewrite_for_runtimes(fused, plan)
        fallbacks = {
            lookup.node.name: "embedding_byte" if getattr(lookup, "values", None) is None else "embedding"
            for lookup in plan.lookups
        }
        folded = {table.dequantize.name: table.growth for table in plan.folded}
        for node, growth in folded.items():
            _LOG.warning("%s/%s %s", name, node, growth)
        outside = keep_outside(programs[name], products, fallbacks)
        reports[name] = MethodReport(fusion, fallbacks, products, folded, outside)
        _LOG.info("%s: %d lookups fused, %d on the CPU", name, len(fusion.fused), len(fallbacks))
    if faults:
        raise LoweringError(faults)
    constant_methods = {method: edge._config_methods[method] for method in edge.config_methods}  # noqa: SLF001 - no public accessor of the values
    return EdgeProgramManager(programs, constant_methods or None, edge.compile_config), reports


def _named(step: str, call: Callable[[Any], Any], argument: Any) -> Any:
    """Run a step of upstream's; what a pass raises becomes one line with its place, and the node that it was at."""
    try:
        return call(argument)
    except Exception as error:  # whatever a pass raises
        cause = error.__cause__ or error
        at = traceback.extract_tb(cause.__traceback__)[-1]
        text, _, executing = " ".join(str(cause).split()).partition(" While executing %")
        node = executing.partition(" ")[0]
        why = f"{type(cause).__name__} out of ExecuTorch ({Path(at.filename).name}:{at.lineno}): {text[:300]}"
        raise LoweringError([(f"{step}/{node}" if node else step, why)]) from error


def _scan(lowered: EdgeProgramManager) -> None:
    """Look for operators that no runtime registers in what is about to be written, inside delegates too."""
    faults: list[tuple[str, str]] = []
    for name in lowered.methods:
        module = lowered.exported_program(name).graph_module
        faults += [
            (f"{name}/{node.name}", f"no CPU kernel computes {op_name(node)}{source_line(node)}")
            for node in module.graph.nodes
            if op_name(node).startswith(UNREGISTERED)
        ]
        for place, delegate in module.named_children():
            if getattr(delegate, "backend_id", "") != "VulkanBackend":
                continue
            faults += [
                (f"{name}/{place}", f"a delegate holds {operator}, which no runtime registers")
                for operator in UNREGISTERED
                if operator.encode() in delegate.processed_bytes
            ]
    if faults:
        raise LoweringError(faults)


def _left_over(program: ExportedProgram, report: MethodReport) -> set[str]:
    """Fused lookups and kept products that no delegate took, by their names in the edge program."""
    lookups = {fusion.node for fusion in report.fusion.fused}
    left: set[str] = set()
    for node in program.graph.nodes:
        if node.target == EDGE_Q4GSW:
            name = node.name.removesuffix("_rows")
            left.add(name if name in lookups else name.removesuffix("_q4gsw"))
        elif torch_op(node) == DEQUANTIZE and node.name in report.products:
            left.add(report.products[node.name])
    return left


def _refuse_force_fp16(options: Mapping[str, Any], reports: Mapping[str, MethodReport]) -> None:
    if options.get("force_fp16"):
        for name, report in reports.items():
            for fusion in report.fusion.fused:
                raise ForceFloat16Error(f"{name}/{fusion.node}")
