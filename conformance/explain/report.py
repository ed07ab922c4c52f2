"""What became of each embedding of a saved program and why, as plain data, as text, and as a unit test.

Source: docs/contract.md section 5.
"""

import dataclasses
import json
from dataclasses import dataclass

from conformance.audit.report import grid

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


@dataclass(frozen=True)
class Explanation:
    """Every embedding of the program, in graph order."""

    rows: tuple[Row, ...]


def to_json(found: Explanation) -> str:
    """The explanation as JSON; ``from_json`` reads it back."""
    rows = [dataclasses.asdict(r) | {"change": CHANGES.get(r.reason, "")} for r in found.rows]
    return json.dumps({"embeddings": rows}, indent=2)


def from_json(text: str) -> Explanation:
    """Read what ``to_json`` wrote.

    Raises:
        ValueError, KeyError, TypeError: it is something else.
    """
    rows = []
    for given in json.loads(text)["embeddings"]:
        row = {k: v for k, v in given.items() if k != "change"}
        if row["parameters"] is not None:
            tuples = {k: tuple(row["parameters"][k]) for k in ("block_size", "scale_shape", "indices_shape")}
            row["parameters"] = Parameters(**{**row["parameters"], **tuples})
        rows.append(Row(**row))
    return Explanation(tuple(rows))


def render(found: Explanation, name: str) -> str:
    """The explanation for a person."""
    if not found.rows:
        return f"{name}: no embedding"
    rows = []
    for r in found.rows:
        p = r.parameters
        shape = f"{p.rows} x {p.columns}" if p else ""
        rows.append((r.node, r.outcome, r.table, shape, str(p.block_size[-1]) if p and p.block_size else "", r.reason))
    lines = [
        f"{name}: {len(found.rows)} embeddings",
        "",
        *grid(("node", "outcome", "table", "V x D", "G", "reason"), rows),
    ]
    for r in found.rows:
        if r.outcome == "refused":
            lines += ["", f"{r.node} is refused: {r.detail}"]
            if r.line:
                lines.append(f"  in:     {r.line}")
            lines.append(f"  change: {CHANGES.get(r.reason, 'see the detail')}")
    counts = {o: sum(r.outcome == o for r in found.rows) for o in ("fused", "refused", "not 4-bit")}
    lines += ["", ", ".join(f"{n} {o}" for o, n in counts.items() if n)]
    return "\n".join(lines)


_TEST_HEAD = '''\
import unittest

import executorch.backends.vulkan.custom_ops_lib  # registers the et_vk operators
import torch
from executorch.backends.vulkan._passes.fuse_patterns import FusePatternsPass
from executorch.exir import EdgeCompileConfig, to_edge


def count(graph_module, name):
    return sum(
        node.op == "call_function" and node.target.__name__.endswith(name)
        for node in graph_module.graph.nodes
    )


def fused_lookups(module, indices):
    """Export the module, run the pattern pass, and return how many lookups it fused."""
    program = torch.export.export(module, (indices,), strict=True)
    edge = to_edge(program, compile_config=EdgeCompileConfig(_check_ir_validity=False))
    exported = edge.exported_program()
    fuse = FusePatternsPass()
    fuse._exported_program = exported
    return count(fuse.call(exported.graph_module).graph_module, "embedding_q4gsw.default")
'''

_TEST_MODULE = '''

class {name}(torch.nn.Module):
    """{shape}: {why}."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        values = torch.randint({low}, {high} + 1, ({rows}, {columns}), generator=generator)
        self.register_buffer("weight", {weight})
        self.register_buffer("scale", torch.rand({scale_shape}, generator=generator).to(torch.{scale_dtype}) + 0.5)
        self.register_buffer("zero_point", {zero_point})

    def forward(self, indices):
        {forward}
'''


def as_test(found: Explanation, stem: str) -> str:
    """A unittest file in the manner of upstream's test_vulkan_passes.py that shows each decision by itself.

    Tables are drawn anew, in the sizes, dtypes and quantization of the program's own.

    Raises:
        ValueError: no embedding has parameters that a test could be written from.
    """
    described = [r for r in found.rows if r.parameters is not None and r.outcome != "not 4-bit"]
    if not described:
        raise ValueError(f"{stem}: no quantized embedding to write a test for")
    modules, tests = [], []
    for number, row in enumerate(described):
        name = f"Embedding{number}"
        modules.append(_module(name, row))
        p = row.parameters
        assert p is not None  # noqa: S101 - selected just above
        high = max(p.rows - 1, 0)
        indices = f"torch.randint(0, {high} + 1, {_tuple(p.indices_shape)}, dtype=torch.{p.indices_dtype})"
        expected = int(row.outcome == "fused")
        verb = "fuses" if expected else f"is_not_fused_{row.reason}"
        tests.append(
            f"    def test_{row.node}_{verb}(self):\n"
            f"        indices = {indices}\n"
            f"        self.assertEqual(fused_lookups({name}(), indices), {expected})\n"
        )
    body = "\n".join(tests)
    main = 'if __name__ == "__main__":\n    unittest.main()\n'
    head = f'"""Lookups of {stem}, each by itself."""\n\n{_TEST_HEAD}{"".join(modules)}'
    return f"{head}\n\nclass TestQuantizedEmbeddings(unittest.TestCase):\n{body}\n\n{main}"


def _module(name: str, row: Row) -> str:
    p = row.parameters
    assert p is not None  # noqa: S101 - the caller selected it
    packed = p.dialect == "embedding_4bit"
    weight = "(values[:, ::2] << 4 | values[:, 1::2]).to(torch.uint8)" if packed else "values.to(torch.int8)"
    zero_point = {
        "none": "None",
        "zero": f"torch.zeros({_tuple(p.scale_shape)}, dtype=torch.int8)",
    }.get(p.zero_point, f"torch.ones({_tuple(p.scale_shape)}, dtype=torch.int8)")
    if packed:
        forward = (
            "return torch.ops.quantized_decomposed.embedding_4bit.dtype("
            f"self.weight, self.scale, self.zero_point, {p.qmin}, {p.qmax}, indices, dtype=torch.{p.output_dtype})"
        )
    else:
        forward = (
            "table = torch.ops.torchao.dequantize_affine("
            f"self.weight, {list(p.block_size)}, self.scale, self.zero_point, torch.int8, {p.qmin}, {p.qmax}, "
            f"output_dtype=torch.{p.output_dtype})\n        return torch.nn.functional.embedding(indices, table)"
        )
    return _TEST_MODULE.format(
        name=name,
        shape=f"{p.rows} x {p.columns}, blocks of {list(p.block_size)}",
        why=f"refused ({row.reason})" if row.outcome == "refused" else "fuses",
        low=0 if packed else max(p.qmin, -128),
        high=15 if packed else min(p.qmax, 127),
        rows=p.rows,
        columns=p.columns,
        weight=weight,
        scale_shape=_tuple(p.scale_shape),
        scale_dtype=p.scale_dtype,
        zero_point=zero_point,
        forward=forward,
    )


def _tuple(shape: tuple[int, ...]) -> str:
    return repr(tuple(shape))
