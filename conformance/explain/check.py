"""A saved program, from export to file: what became of each embedding and weight, and the file executed beside eager.

Lookups have to be eager's rows bit for bit. What else a delegate computes is reported with the size of its difference,
in the order of the program, so that the first line that departs is where to look.

Source: docs/contract.md 5.7, 6.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import to_edge

from conformance.audit.audit import audit
from conformance.audit.report import grid
from conformance.explain.explain import explain, load_pt2
from conformance.explain.report import render as render_explanation
from conformance.files import shown
from conformance.harness.errors import BadFile, CannotRun, one_line
from conformance.observe.execute import run_program, user_output_nodes
from conformance.program.tensors import to_numpy
from conformance.pte.file import read_pte
from conformance.pte.run import RunResult, run_pte
from impl.lowering import LoweringError, MethodReport, lower_with_report
from reference.arithmetic.rounding import ulps_apart

Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Compared:
    """A value of the file beside eager's: equal bits, or the largest difference in ulp and the SNR in decibels."""

    what: str
    node: str
    shape: tuple[int, ...]
    equal: bool
    ulp: int
    snr: float


@dataclass(frozen=True)
class Check:
    """Everything that ``q4gsw check`` says; ``refused`` where no file was made."""

    embeddings: str
    refused: str
    size: int
    lowering: tuple[str, ...]
    problems: tuple[str, ...]
    values: tuple[Compared, ...]

    def right(self) -> bool:
        """Whether a file was made that the audit finds right, and whose every lookup has eager's bits."""
        lookups = all(value.equal for value in self.values if value.what == "lookup")
        return not self.refused and lookups and not any(p.startswith(("fails", "wrong")) for p in self.problems)


def check_file(path: str, inputs: str, subject: str, form: str) -> str:
    """Whether it fails, as "1" or "0", then the report. Entry point of ``conformance.harness.limited``."""
    result = check_saved(path, inputs, subject)
    return (
        f"{int(not result.right())}{json.dumps(asdict(result), indent=2) if form == 'json' else render(result, path)}"
    )


def check_saved(path: str, inputs: str, subject: str) -> Check:
    """``check`` of a ``.pt2``, on an ``.npz`` or, where that is "", on its example inputs."""
    program = load_pt2(Path(path))
    return check(program, path, _inputs(program, path, inputs), subject)


def _inputs(program: Any, path: str, inputs: str) -> tuple[Any, ...]:
    """The example inputs of the file, or the arrays of an .npz in the order of their names."""
    if inputs:
        try:
            with np.load(inputs, allow_pickle=False) as arrays:
                return tuple(torch.from_numpy(arrays[name]) for name in sorted(arrays.files))
        except (OSError, ValueError) as error:
            raise BadFile(f"{inputs}: not an .npz of plain arrays ({one_line(error)})") from error
    if not program.example_inputs:
        raise BadFile(f"{path}: holds no example inputs; give some with --inputs FILE.npz, named in order")
    arguments, keywords = program.example_inputs
    return tuple(torch.utils._pytree.tree_leaves((arguments, keywords)))  # noqa: SLF001 - the order of the program's inputs


def check(program: Any, name: str, inputs: Sequence[Any], subject: str = "impl") -> Check:
    """Lower a program of torch.export with ``impl`` or stock ("executorch"), run the file, and compare with eager."""
    embeddings = render_explanation(explain(program, name), name)
    edge = to_edge(program)
    source = edge.exported_program()
    reports: Mapping[str, MethodReport] = {}
    try:
        if subject == "impl":
            lowered = lower_with_report(program)
            manager, reports = lowered.manager, lowered.reports
        else:
            manager = edge.to_backend(VulkanPartitioner()).to_executorch()
    except LoweringError as error:
        return Check(embeddings, str(error), 0, (), (), ())
    except Exception as error:  # noqa: BLE001 - whatever the stock lowering raises
        return Check(embeddings, f"{type(error).__name__}: {one_line(error)}", 0, (), (), ())
    data = bytes(manager.buffer)
    file = read_pte(data)
    problems = tuple(f"{p.severity} {p.where}: {p.detail} [{p.kind}]" for p in audit(file).problems)
    done = tuple(_done(reports))
    try:
        result = run_pte(file, inputs)
    except CannotRun as error:
        raise BadFile(f"{name}: the file that was made cannot be executed here ({one_line(error)})") from error
    eager = run_program(source, tuple(inputs))
    values = (*_lookups(reports, result, eager), *_delegated(manager, result, eager), *_outputs(source, result, eager))
    return Check(embeddings, "", len(data), done, problems, values)


def _done(reports: Mapping[str, MethodReport]) -> Iterator[str]:
    for method, report in reports.items():
        yield from (f"{method}/{f.node}: fused, {f.vocab_size} x {f.embed_dim}" for f in report.fusion.fused)
        yield from (f"{method}/{node}: on the CPU as {operator}" for node, operator in report.cpu_fallbacks.items())
        yield from (f"{method}/{product}: 4-bit linear" for product in report.products.values())
        yield from (f"{method}/{node}: {growth}" for node, growth in report.folded.items())
        yield from (f"{method}/{node}: outside the delegate, {why}" for node, why in report.outside.items())


def _lookups(reports: Mapping[str, MethodReport], result: RunResult, eager: Mapping[str, Any]) -> Iterator[Compared]:
    fused = [fusion.node for report in reports.values() for fusion in report.fusion.fused]
    if len(fused) == len(result.rows):
        for node, rows in zip(fused, result.rows, strict=True):
            wanted = to_numpy(eager[node])
            yield _compared("lookup", node, rows.astype(wanted.dtype).reshape(wanted.shape), wanted)


def _delegated(manager: Any, result: RunResult, eager: Mapping[str, Any]) -> Iterator[Compared]:
    """Outputs of delegates by the name of the edge program's node, where that node is still there."""
    module = manager.exported_program().graph_module
    for position, outputs in result.delegated:
        original = getattr(module, f"lowered_module_{position}").original_module
        for node, value in zip(original.graph.output_node().args[0], outputs, strict=True):
            if isinstance(value, np.ndarray) and isinstance(eager.get(node.name), torch.Tensor):
                yield _compared(f"delegate {position}", node.name, value, to_numpy(eager[node.name]))


def _outputs(source: Any, result: RunResult, eager: Mapping[str, Any]) -> Iterator[Compared]:
    for node, value in zip(user_output_nodes(source), result.outputs, strict=True):
        if isinstance(value, np.ndarray) and isinstance(node, torch.fx.Node):
            yield _compared("output", node.name, value, to_numpy(eager[node.name]))


def _compared(what: str, node: str, value: Array, wanted: Array) -> Compared:
    shape = tuple(wanted.shape)
    if value.shape != wanted.shape or value.dtype != wanted.dtype:
        return Compared(what, node, shape, equal=False, ulp=-1, snr=float("-inf"))
    if value.tobytes() == wanted.tobytes():
        return Compared(what, node, shape, equal=True, ulp=0, snr=float("inf"))
    if wanted.dtype.kind != "f":
        return Compared(what, node, shape, equal=False, ulp=-1, snr=float("-inf"))
    with np.errstate(invalid="ignore", over="ignore"):  # infinities, as attention has them
        error = np.where(value == wanted, 0, value.astype(np.float64) - wanted.astype(np.float64))
        power, noise = float(np.sum(wanted[np.isfinite(wanted)].astype(np.float64) ** 2)), float(np.sum(error**2))
    snr = 10 * float(np.log10(power / noise)) if noise and power else float("inf" if not noise else "-inf")
    return Compared(what, node, shape, equal=False, ulp=_ulp(value, wanted), snr=snr)


def _ulp(value: Array, wanted: Array) -> int:
    """The largest number of floats between two arrays; -1 where one is no number and the other is."""
    if (np.isnan(value) != np.isnan(wanted)).any():
        return -1
    return int(ulps_apart(value, wanted)[~np.isnan(wanted)].max(initial=0))


def render(result: Check, name: str) -> str:
    """The check for a person: embeddings, lowering, audit, values, and a last line with the verdict."""
    lines = [*result.embeddings.split("\n"), ""]
    if result.refused:
        return shown([*lines, f"no file: {result.refused}"])
    lines += [f"file: {result.size} bytes", *(f"  {line}" for line in result.lowering), ""]
    lines += [*result.problems, ""] if result.problems else []
    rows = [
        (
            v.what,
            v.node,
            str(list(v.shape)),
            "equal" if v.equal else f"{v.ulp} ulp",
            "" if v.equal else f"{v.snr:.1f} dB",
        )
        for v in result.values
    ]
    lines += grid(("what", "node", "shape", "difference", "SNR"), rows)
    first = next((v for v in result.values if not v.equal), None)
    departs = f"; first departure: {first.node} ({first.what})" if first else "; every value is eager's, bit for bit"
    return shown([*lines, "", f"{name}: {'right' if result.right() else 'WRONG'}{departs}"])
