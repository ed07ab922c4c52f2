"""Reads a saved program (``.pt2``) without running code of it, and reports the matcher's decision on each embedding.

Runs in a bounded child process (``conformance.harness.limited``).

Source: docs/contract.md section 5.
"""

import io
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import executorch.kernels.quantized  # noqa: F401 - registers quantized_decomposed's embeddings
import torch
import torchao  # noqa: F401 - registers its tensor subclasses for torch's weights_only reader
from executorch.exir import EdgeCompileConfig, to_edge
from torch.export.pt2_archive._package import PT2ArchiveReader

from conformance.explain.pt2 import check_members, check_model, check_pt2
from conformance.explain.report import Explanation, Parameters, Row, render, to_json
from conformance.harness.errors import BadFile, one_line
from conformance.program.lookups import op_name
from conformance.program.tensors import dtype_name
from conformance.subjects.executorch import fuse_patterns
from impl.matcher import Limits, fuse_q4_embeddings

_EMBEDDINGS = ("aten.embedding", "quantized_decomposed.embedding_")
_DEQUANTIZE = "dequantize_affine"


def explain_file(path: str, form: str, subject: str, *limits: str) -> str:
    """Explain a file, as "json" or "text", within ``Limits``. Entry point of ``conformance.harness.limited``."""
    within = Limits(*(int(limit) if limit else None for limit in limits))
    explanation = explain(load_pt2(Path(path)), path, within, subject)
    return to_json(explanation) if form == "json" else render(explanation, path)


def load_pt2(path: Path) -> Any:
    """torch.export.load, after everything in the file that it would hand to pickle or eval has been checked."""
    check_pt2(path)
    try:
        with PT2ArchiveReader(str(path)) as archive:
            names = archive.get_file_names()
            check_members(names, str(path))  # as torch's own reader finds them, which zipfile need not
            for member in names:
                if member.endswith(".json"):
                    check_model(json.loads(archive.read_bytes(member)), str(path))
                elif member.startswith("data/"):
                    _check_weights(archive.read_bytes(member), member, path)
        program = torch.export.load(path)
    except BadFile:
        raise
    except Exception as error:  # whatever torch's reader raises is about the file
        raise BadFile(f"{path}: torch.export.load cannot read it ({one_line(error)})") from error
    program._guards_code = []  # noqa: SLF001 - text that torch would run as Python; no decision needs it
    return program


def _check_weights(data: bytes, member: str, path: Path) -> None:
    """A ZIP is a pickle for torch.load: it must be one that the weights_only reader takes. Other bytes are raw."""
    if data[:2] != b"PK":
        if data[:1] == b"\x80" and b"torch" in data[:256]:
            raise BadFile(f"{path}: {member} is a bare pickle")
        return
    try:
        torch.load(io.BytesIO(data), weights_only=True)
    except Exception as error:  # torch raises UnpicklingError and whatever the bytes provoke
        raise BadFile(f"{path}: {member} needs more than data to load ({one_line(error)})") from error


def explain(program: Any, name: str, limits: Limits | None = None, subject: str = "impl") -> Explanation:
    """The decision on every embedding of a program of torch.export: ``impl.matcher``'s, or of "executorch" the wheel's.

    ``limits``: a device's, which the wheel does not ask for.
    """
    try:
        renorm = [torch.ops.aten.embedding_renorm.default]
        config = EdgeCompileConfig(_core_aten_ops_exception_list=renorm)
        edge = to_edge(program, compile_config=config).exported_program()
    except Exception as error:  # whatever a pass raises
        raise BadFile(f"{name}: to_edge does not take it ({one_line(error)})") from error
    _, report = fuse_q4_embeddings(edge, limits=limits)
    fused = {f.node: f for f in report.fused}
    refused = {r.node: r for r in report.refused}
    rows = []
    for node in edge.graph.nodes:
        if not op_name(node).startswith(_EMBEDDINGS):
            continue
        outcome, reason, detail, table = "not 4-bit", "", "", ""
        if node.name in fused:
            outcome, table = "fused", fused[node.name].table
        elif node.name in refused:
            outcome, reason, detail = "refused", str(refused[node.name].reason), refused[node.name].detail
        rows.append(
            Row(node.name, outcome, reason, detail, table or _target(edge, node), _line(node), _parameters(edge, node))
        )
    graph_nodes = {r.node for r in rows}
    rows += [
        Row(r.node, "refused", str(r.reason), r.detail, "", "", None)
        for r in report.refused
        if r.node not in graph_nodes  # inside a branch of control flow
    ]
    if subject == "executorch":
        rows = _by_wheel(edge, rows)
    return Explanation(tuple(rows), subject)


def _by_wheel(edge: Any, rows: list[Row]) -> list[Row]:
    """What the wheel's pattern pass makes of the same lookups; a reason is ``impl.matcher``'s, who would refuse."""
    try:
        left = {node.name for node in fuse_patterns(edge).graph.nodes}
    except Exception as error:  # noqa: BLE001 - whatever the wheel raises, no lookup of the program is fused
        why = f"the pass raises {one_line(error)}"
        lookups = (row for row in rows if row.outcome != "not 4-bit")
        refused = {row.node: replace(row, outcome="refused", reason="raises", detail=why) for row in lookups}
        return [refused.get(row.node, row) for row in rows]
    decided = []
    for row in rows:
        outcome = row.outcome if row.outcome == "not 4-bit" or row.node in left else "fused"
        if outcome == "fused" and row.outcome == "refused":
            row = replace(row, outcome=outcome, reason=f"though {row.reason}")  # noqa: PLW2901
        elif outcome != "not 4-bit" and row.node in left:
            row = replace(row, outcome="refused", detail=row.detail or "the pass leaves it")  # noqa: PLW2901
        decided.append(row)
    return decided


def _behind(node: Any, stop: str = "") -> Any:
    """What stands behind operators by their first operands: no operator, or the first with ``stop`` in its name."""
    while isinstance(node, torch.fx.Node) and node.op == "call_function" and not (stop and stop in op_name(node)):
        node = node.args[0] if node.args else None
    return node


def _dequantize(node: Any) -> Any | None:
    """The dequantize behind a lookup's table; None without."""
    at = _behind(node.args[0], _DEQUANTIZE)
    return at if isinstance(at, torch.fx.Node) and at.op == "call_function" else None


def _target(program: Any, node: Any) -> str:
    """The name of the constant behind a node; "" where there is none."""
    targets = {s.arg.name: s.target for s in program.graph_signature.input_specs}
    return str(targets.get(getattr(_behind(node), "name", "")) or "")


def _line(node: Any) -> str:
    """The last line of the user's own source in the node's stack trace."""
    lines = str(node.meta.get("stack_trace") or "").splitlines()
    own = [i for i, text in enumerate(lines) if text.strip().startswith("File") and "site-packages" not in text]
    return " ".join(text.strip() for text in lines[own[-1] : own[-1] + 2]) if own else ""


def _parameters(program: Any, node: Any) -> Parameters | None:
    """What the graph says of the table: by torchao's dequantize, or by the packed operator itself."""
    dequantize = _dequantize(node)
    if dequantize is not None:
        arguments = _by_name(dequantize)
        indices, weight, scale = node.args[1], dequantize.meta["val"], arguments["scale"].meta["val"]
        block = tuple(int(n) for n in arguments["block_size"])
        output = dtype_name(weight.dtype)
        dialect, columns, zero = "torchao", int(weight.shape[-1]), arguments.get("zero_point")
        low, high = arguments.get("quant_min"), arguments.get("quant_max")
    elif op_name(node) == "quantized_decomposed.embedding_4bit":
        arguments = _by_name(node)
        indices, weight = arguments["indices"], arguments["weight"].meta["val"]
        scale, zero = arguments["weight_scales"].meta["val"], arguments.get("weight_zero_points")
        columns = 2 * int(weight.shape[-1])
        block = (1, columns // max(1, int(scale.shape[-1]) if scale.dim() > 1 else 1))
        output, dialect = dtype_name(node.meta["val"].dtype), "embedding_4bit"
        low, high = arguments.get("weight_quant_min"), arguments.get("weight_quant_max")
    else:
        return None
    value = indices.meta["val"]
    return Parameters(
        dialect,
        int(weight.shape[0]),
        columns,
        block,
        tuple(int(n) for n in scale.shape),
        dtype_name(scale.dtype),
        _zero_point(program, zero),
        int(low) if low is not None else -8,
        int(high) if high is not None else 7,
        output,
        tuple(int(n) if isinstance(n, int) else 3 for n in value.shape),
        dtype_name(value.dtype),
    )


def _by_name(node: Any) -> dict[str, Any]:
    schema = node.target._schema  # noqa: SLF001 - torch's way to a schema
    return {**{a.name: v for a, v in zip(schema.arguments, node.args, strict=False)}, **node.kwargs}


def _zero_point(program: Any, node: Any) -> str:
    if node is None:
        return "none"
    tensor = {**program.constants, **program.state_dict}.get(_target(program, node))
    if tensor is None:
        return "unknown"
    return "nonzero" if bool((tensor != 0).any()) else "zero"
