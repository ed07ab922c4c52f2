"""What became of each embedding of a saved program and why, as plain data and as text.

Source: docs/contract.md section 5.
"""

import dataclasses
import json
from dataclasses import dataclass

from conformance.audit.report import counted, grid
from conformance.files import shown

#: For each reason of a refusal, what would have to change for the lookup to fuse.
CHANGES = {
    "weight_not_constant": "make the table a parameter, buffer or constant of the module",
    "weight_written": "do not write to the table inside the program",
    "weight_dtype": "keep the table as int8 values",
    "weight_shape": "a table has two dimensions, [vocab_size, embed_dim]",
    "weight_values": "quantize to 4 bits: every value in [-8, 7]",
    "qmin_qmax": "quantize to int4: quant_min -8, quant_max 7",
    "block_size": "quantize in groups of a row: block_size [1, G], PerGroup(G) or PerAxis(0)",
    "embed_dim_not_divisible_by_group": "choose a group size that divides embed_dim",
    "group_size_not_multiple_of_4": "choose a group size that is a multiple of 4, such as PerGroup(32)",
    "embed_dim_not_multiple_of_32": "choose an embed_dim that is a multiple of 32",
    "empty_table": "a table needs a row",
    "scale_not_constant": "make the scales constants of the module",
    "scale_written": "do not write to the scales inside the program",
    "scale_dtype": "quantize a float32 or float16 table; bfloat16 scales have no shader",
    "scale_shape": "scales have the shape [vocab_size, embed_dim / G]",
    "zero_point_not_constant": "make the zero point a constant, or quantize symmetrically",
    "zero_point_written": "do not write to the zero point, or quantize symmetrically",
    "zero_point_nonzero": "quantize symmetrically: every zero point 0",
    "output_dtype": "dequantize to float32 or float16",
    "indices_dtype": "look up with int32 or int64 indices",
    "indices_rank": "look up with indices of rank 0 to 3, flattened if need be",
    "max_norm": "drop max_norm: it rewrites rows of the table at every lookup",
    "table_ops": "nothing but identities may stand between dequantize and embedding",
    "table_limit": "split the table, or keep it on the CPU",
}


@dataclass(frozen=True)
class Parameters:
    """What a dequantize or a packed lookup says of its table; -1 and "" where the graph does not tell."""

    dialect: str
    rows: int
    columns: int
    block_size: tuple[int, ...]
    scale_shape: tuple[int, ...]
    scale_dtype: str
    zero_point: str
    qmin: int
    qmax: int
    output_dtype: str
    indices_shape: tuple[int, ...]
    indices_dtype: str


@dataclass(frozen=True)
class Row:
    """One embedding. ``outcome`` is "fused", "refused" or "not 4-bit"; ``line`` the user's source line, if known."""

    node: str
    outcome: str
    reason: str
    detail: str
    table: str
    line: str
    parameters: Parameters | None


def change(row: Row) -> str:
    """What would have to change for a refused lookup to fuse."""
    if row.reason == "weight_not_constant" and "/" in row.node:
        return "look up outside the branch, and pass the rows in"
    if (
        row.reason == "qmin_qmax"
        and row.parameters is not None
        and (row.parameters.qmin, row.parameters.qmax) == (0, 15)
    ):
        return "store each value and zero point less 8: quant_min -8, quant_max 7 are then the same table"
    return CHANGES.get(row.reason, "")


@dataclass(frozen=True)
class Explanation:
    """Every embedding of the program, in graph order, and who decided: "impl" or "executorch"."""

    rows: tuple[Row, ...]
    subject: str = "impl"


def to_json(explanation: Explanation) -> str:
    """The explanation as JSON."""
    rows = [dataclasses.asdict(r) | {"change": change(r)} for r in explanation.rows]
    return json.dumps({"subject": explanation.subject, "embeddings": rows}, indent=2)


_DECIDES = {"impl": "impl.matcher", "executorch": "the wheel's FusePatternsPass"}


def render(explanation: Explanation, name: str) -> str:
    """The explanation for a person."""
    if not explanation.rows:
        return shown([f"{name}: no embedding"])
    rows = []
    for r in explanation.rows:
        p = r.parameters
        shape = f"{p.rows} x {p.columns}" if p else ""
        rows.append((r.node, r.outcome, r.table, shape, str(p.block_size[-1]) if p and p.block_size else "", r.reason))
    lines = [
        f"{name}: {counted(len(rows), 'embedding')}, as {_DECIDES[explanation.subject]} decides",
        "",
        *grid(("node", "outcome", "table", "V x D", "G", "reason"), rows),
    ]
    for r in explanation.rows:
        if r.outcome == "refused":
            lines += ["", f"{r.node} is refused: {r.detail}"]
            if r.line:
                lines.append(f"  in:     {r.line}")
            lines.append(f"  change: {change(r) or 'see the detail'}")
    counts = {o: sum(r.outcome == o for r in explanation.rows) for o in ("fused", "refused", "not 4-bit")}
    lines += ["", ", ".join(f"{n} {o}" for o, n in counts.items() if n)]
    return shown(lines)
