"""Size of a .pte with one embedding: unfused, as the wheel's own lowering writes it, and as impl.lowering does.

    python -m bench.size_bench [--json FILE] [--small]

Prints bytes, bytes an element and the formula 1/2 + (bytes of a scale)/G for each table, besides seconds and the most
memory beyond the program's own while it is lowered; --small leaves out the one of Llama 3.2 1B (about 10 GB of
memory). Exits 1 when a fused file is more than 8 KiB above the formula: a copy, or something unused, is in it.

A .pte that went from 418 to 348 MiB when its one embedding stopped being a float constant has lost
4 - 1/2 - 4/32 bytes an element, so its table has 70 * 2**20 / 3.375 = 21.7 million elements: 42480 x 512.

Source: docs/contract.md 6.1; docs/lowering.md has the table of results.
"""

import gc
import logging
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from executorch.backends.vulkan.partitioner.vulkan_partitioner import VulkanPartitioner
from executorch.exir import EdgeProgramManager, to_edge, to_edge_transform_and_lower
from executorch.exir.passes.constant_prop_pass import constant_prop_pass
from torch.export import ExportedProgram

from bench.common import parser, write_json
from conformance.models.observe import peak_memory
from impl.lowering import lower_to_vulkan

OVERHEAD = 8192


@dataclass(frozen=True)
class Shape:
    """A table: rows, columns, group size, dtype of the scales."""

    name: str
    rows: int
    columns: int
    group: int
    scales: torch.dtype

    @property
    def formula(self) -> int:
        """Bytes of the packed table and its scales."""
        return self.rows * (self.columns // 2 + self.columns // self.group * self.scales.itemsize)


SHAPES = (
    Shape("32000 x 512", 32000, 512, 32, torch.float32),
    Shape("32000 x 512, float16 scales", 32000, 512, 32, torch.float16),
    Shape("42480 x 512 (418 -> 348 MiB)", 42480, 512, 32, torch.float32),
)
LLAMA = Shape("128256 x 2048 (Llama 3.2 1B)", 128256, 2048, 32, torch.float32)


class Table(torch.nn.Module):
    """A symmetric int4 table with int8 values, as torchao leaves it, and its lookup."""

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        size = (shape.rows, shape.columns)
        groups = (shape.rows, shape.columns // shape.group)
        self.register_buffer("weight", torch.randint(-8, 8, size, generator=generator, dtype=torch.int8))
        self.register_buffer("scale", torch.rand(groups, generator=generator).to(shape.scales))
        self.register_buffer("zero_point", torch.zeros(groups, dtype=torch.int8))
        self.block = [1, shape.group]

    def forward(self, indices: torch.Tensor) -> torch.Tensor:
        """Dequantize and look up."""
        arguments = (self.weight, self.block, self.scale, self.zero_point, torch.int8, -8, 7)
        table = torch.ops.torchao.dequantize_affine.default(*arguments, output_dtype=torch.float32)
        return torch.nn.functional.embedding(indices, table)


def unfused(program: ExportedProgram) -> int:
    """The table folded into a float constant, on the CPU."""
    edge = to_edge(program)
    folded = constant_prop_pass(edge.exported_program(), custom_skip_targets=set())
    return len(EdgeProgramManager({"forward": folded}, None, edge.compile_config).to_executorch().buffer)


def upstream(program: ExportedProgram) -> int:
    """The wheel's own lowering with its Vulkan partitioner."""
    return len(to_edge_transform_and_lower(program, partitioner=[VulkanPartitioner()]).to_executorch().buffer)


def ours(program: ExportedProgram) -> int:
    """impl.lowering."""
    return len(lower_to_vulkan(program).buffer)


WAYS: dict[str, Callable[[ExportedProgram], int]] = {"unfused": unfused, "upstream": upstream, "ours": ours}


def main(argv: list[str] | None = None) -> int:
    """Measure, print, write JSON; 0 when every fused file is as small as the formula says."""
    command = parser("size_bench", __doc__)
    command.add_argument("--small", action="store_true", help="without the table of Llama 3.2 1B")
    options = command.parse_args(argv)
    warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
    logging.disable(logging.INFO)
    print(f"{'table':30} {'way':9} {'bytes':>13} {'MB':>9} {'B/element':>9} {'formula':>9} {'s':>6} {'MB beyond':>9}")
    rows: list[dict[str, Any]] = []
    for shape in SHAPES if options.small else (*SHAPES, LLAMA):
        elements = shape.rows * shape.columns
        for way, measure in WAYS.items():
            program = torch.export.export(Table(shape), (torch.tensor([0, 1]),))
            before, started = peak_memory(reset=True), time.monotonic()
            size = measure(program)
            seconds, beyond = time.monotonic() - started, peak_memory() - before
            gc.collect()
            formula = 4 * elements if way == "unfused" else shape.formula
            rows.append({"table": shape.name, "way": way, "bytes": size, "formula": formula, "elements": elements})
            rows[-1] |= {"seconds": seconds, "bytes_beyond": beyond}
            columns = f"{size:13} {size / 1e6:9.2f} {size / elements:9.4f} {formula / elements:9.4f}"
            columns += f" {seconds:6.1f} {beyond / 1e6:9.0f}"
            print(f"{shape.name:30} {way:9} {columns}", flush=True)
    write_json(options.json, rows)
    too_large = [r for r in rows if r["way"] == "ours" and r["bytes"] > r["formula"] + OVERHEAD]
    for row in too_large:
        print(f"{row['table']}: {row['bytes'] - row['formula']} bytes above the formula", file=sys.stderr)
    return 1 if too_large else 0


if __name__ == "__main__":
    sys.exit(main())
