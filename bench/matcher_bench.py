"""Time of impl.matcher on graphs of growing size: it has to grow linearly.

    python -m bench.matcher_bench [--nodes 20000] [--lookups 200] [--json FILE]

Fuses synthetic edge programs of 1/8, 1/4, 1/2 and all of the size, prints microseconds a node, and
exits 1 when the largest takes more than twice as long a node as the 1/4 size (a quadratic step
would take four times as long).
"""

import sys
import time
from typing import Any

import executorch.backends.vulkan.custom_ops_lib  # noqa: F401 - registers what the fused node calls
import torch
from executorch.exir import EdgeCompileConfig
from executorch.exir.dialects._ops import ops as exir_ops
from executorch.exir.verification.verifier import EXIREdgeDialectVerifier
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.export import ExportedProgram
from torch.export.graph_signature import (
    ExportGraphSignature,
    InputKind,
    InputSpec,
    OutputKind,
    OutputSpec,
    TensorArgument,
)

from bench.common import parser, write_json
from impl.matcher import fuse_q4_embeddings

SHARES = (8, 4, 2, 1)
ALLOWED_GROWTH = 2.0


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write JSON; 0 when the time grows linearly."""
    command = parser("matcher_bench", __doc__)
    command.add_argument("--nodes", type=int, default=20_000)
    command.add_argument("--lookups", type=int, default=200)
    options = command.parse_args(argv)
    rows = []
    fuse_q4_embeddings(program(100, 2))  # imports and caches
    print(f"{'nodes':>8} {'lookups':>8} {'seconds':>9} {'us/node':>9}")
    for share in SHARES:
        built = program(options.nodes // share, options.lookups // share)
        seconds = []
        for _ in range(3):
            start = time.process_time()  # not the clock on the wall: the machine may be shared
            _, report = fuse_q4_embeddings(built)
            seconds.append(time.process_time() - start)
        nodes = len(built.graph.nodes)
        rows.append({"nodes": nodes, "lookups": len(report.fused), "seconds": min(seconds)})
        print(f"{nodes:8} {len(report.fused):8} {min(seconds):9.3f} {min(seconds) / nodes * 1e6:9.1f}")
    growth = (rows[-1]["seconds"] / rows[-1]["nodes"]) / (rows[1]["seconds"] / rows[1]["nodes"])
    print(f"four times the nodes, {growth:.2f} times the time a node (allowed: {ALLOWED_GROWTH})")
    write_json(options.json, {"growth": growth, "rows": rows})
    return 1 if growth > ALLOWED_GROWTH else 0


def program(nodes: int, lookups: int) -> ExportedProgram:
    """An edge program of about ``nodes`` nodes with ``lookups`` lookups, each into a table of its own."""
    mode, graph = FakeTensorMode(), torch.fx.Graph()
    specs: list[InputSpec] = []
    state: dict[str, torch.Tensor] = {}

    def placeholder(name: str, data: torch.Tensor) -> torch.fx.Node:
        node = graph.placeholder(name)
        node.meta["val"] = mode.from_tensor(data)
        return node

    def buffer(name: str, data: torch.Tensor) -> torch.fx.Node:
        specs.append(InputSpec(InputKind.BUFFER, TensorArgument(name), name, persistent=True))
        state[name] = data
        return placeholder(name, data)

    generator = torch.Generator().manual_seed(0)
    tables = [
        (
            buffer(f"w{k}", torch.randint(-8, 8, (8, 64), generator=generator, dtype=torch.int8)),
            buffer(f"s{k}", torch.rand(8, 2, generator=generator)),
        )
        for k in range(lookups)
    ]
    indices = placeholder("indices", torch.tensor([1, 2]))
    specs.append(InputSpec(InputKind.USER_INPUT, TensorArgument("indices"), None))
    with mode:
        table_val, row_val = torch.empty(8, 64), torch.empty(2, 64)

    def call(target: Any, val: torch.Tensor, *args: Any) -> torch.fx.Node:
        node = graph.call_function(target, args)
        node.meta["val"] = val
        return node

    outputs = []
    for weight, scale in tables:
        block = (weight, [1, 32], scale, None, torch.int8, -8, 7)
        dequantized = call(exir_ops.edge.torchao.dequantize_affine.default, table_val, *block)
        row = call(exir_ops.edge.aten.embedding.default, row_val, dequantized, indices)
        for _ in range(nodes // lookups - 4):
            row = call(exir_ops.edge.aten.relu.default, row_val, row)
        outputs.append(row)
    graph.output(tuple(outputs))
    ends = [OutputSpec(OutputKind.USER_OUTPUT, TensorArgument(node.name), None) for node in outputs]
    config = EdgeCompileConfig(_check_ir_validity=False)
    return ExportedProgram(
        root=torch.nn.Module(),
        graph=graph,
        graph_signature=ExportGraphSignature(specs, ends),
        state_dict=state,
        range_constraints={},
        module_call_graph=[],
        verifiers=[EXIREdgeDialectVerifier(edge_compile_config=config, class_only=True)],
    )


if __name__ == "__main__":
    sys.exit(main())
