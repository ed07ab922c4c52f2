"""Find the 4-bit lookups of a program, and read both dialects into one shape (contract section 4)."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch

from impl.graph.ops import EMBEDDING, EMBEDDING_4BIT, TableSources, arguments, torch_op


@dataclass(frozen=True)
class Table:
    """The operands of a dequantized table, as the graph has them (not looked through, not checked).

    Attributes:
        dequantize: the torchao.dequantize_affine node; None where the lookup dequantizes by itself.
        is_flat: the weight is uint8 [V, D/2] in flat layout, else int8 [V, D].
        block_size: of the dequantize; None for a flat table, where the scales' shape implies it.
        input_dtype: what the weight is dequantized as.
        output_dtype: what comes out; None means the scales' dtype.
    """

    dequantize: torch.fx.Node | None
    is_flat: bool
    weight: Any
    scales: Any
    zero_point: Any
    qmin: Any
    qmax: Any
    block_size: Any
    input_dtype: Any
    output_dtype: torch.dtype | None


@dataclass(frozen=True)
class Lookup:
    """A node that looks rows of a 4-bit table up.

    Attributes:
        reads: what the lookup reads as its table: the dequantize, or something computed from it; for a
            flat table the lookup itself.
        renormed: an embedding_renorm lies between the dequantize and the lookup.
    """

    node: torch.fx.Node
    table: Table
    indices: Any
    reads: torch.fx.Node
    renormed: bool


def find_lookups(graph: torch.fx.Graph) -> Iterator[Lookup]:
    """Every 4-bit lookup of the graph itself, in order. Costs one walk of the graph."""
    sources = TableSources()
    for node in graph.nodes:
        operation = torch_op(node)
        if operation in EMBEDDING_4BIT:
            yield Lookup(node, _flat_table(node), arguments(node)["indices"], node, renormed=False)
        elif operation == EMBEDDING:
            operands = arguments(node)
            reads = operands["weight"]
            if isinstance(reads, torch.fx.Node):
                dequantize, renormed = sources.behind(reads)
                if dequantize is not None:
                    yield Lookup(node, table_of(dequantize), operands["indices"], reads, renormed)


def branches(module: torch.nn.Module, where: str = "") -> Iterator[tuple[str, torch.fx.Graph]]:
    """("branch/", graph) for every control-flow branch, however deep."""
    for name, branch in module.named_children():
        if isinstance(branch, torch.fx.GraphModule):
            yield f"{where}{name}/", branch.graph
            yield from branches(branch, f"{where}{name}/")


def table_of(dequantize: torch.fx.Node) -> Table:
    """The operands of a torchao.dequantize_affine."""
    operands = arguments(dequantize)
    # The schema spells the default as the integer that stands for float32.
    output_dtype = operands["output_dtype"] if isinstance(operands["output_dtype"], torch.dtype) else torch.float32
    return Table(
        dequantize=dequantize,
        is_flat=False,
        weight=operands["input"],
        scales=operands["scale"],
        zero_point=operands["zero_point"],
        qmin=operands["quant_min"],
        qmax=operands["quant_max"],
        block_size=operands["block_size"],
        input_dtype=operands["input_dtype"],
        output_dtype=output_dtype,
    )


def _flat_table(node: torch.fx.Node) -> Table:
    operands = arguments(node)
    return Table(
        dequantize=None,
        is_flat=True,
        weight=operands["weight"],
        scales=operands["weight_scales"],
        zero_point=operands["weight_zero_points"],
        qmin=operands["weight_quant_min"],
        qmax=operands["weight_quant_max"],
        block_size=None,
        input_dtype=torch.uint8,
        output_dtype=operands.get("dtype"),
    )
