"""What lowering does to a fused program, as data: ``lowering_plan`` decides it, ``lowering_rewrite`` carries it out.

Source: docs/contract.md 6.1, 6.2.
"""

from collections.abc import Collection
from dataclasses import dataclass, field

import torch

from impl.graph.constants import Constant
from impl.lower.carry import ByteForm


class LoweringError(ValueError):
    """Something in the program cannot be carried to a runtime exactly; nothing was written.

    Attributes:
        nodes: (node, why) for each.
    """

    def __init__(self, nodes: Collection[tuple[str, str]]) -> None:
        """Say all of it in one line."""
        self.nodes = tuple(nodes)
        super().__init__("cannot be lowered: " + "; ".join(f"{node}: {why}" for node, why in nodes))


@dataclass(frozen=True)
class CarriedLookup:
    """A refused lookup with its CPU form; ``values`` where no byte form is exact."""

    node: torch.fx.Node
    indices: torch.fx.Node
    form: ByteForm | None
    values: torch.Tensor | None


@dataclass(frozen=True)
class RuntimeLookup:
    """A refused lookup whose operands the program computes, receives or writes to; embedding_byte reads them.

    ``zero_point`` is widened to ``output_dtype`` where ``widen`` says so.
    """

    node: torch.fx.Node
    indices: torch.fx.Node
    weight: torch.fx.Node
    scales: torch.fx.Node
    zero_point: torch.fx.Node | None
    widen: bool
    output_dtype: torch.dtype


@dataclass(frozen=True)
class KeptProduct:
    """A matrix product that upstream's pattern turns into its 4-bit linear.

    Attributes:
        node: the product.
        turn: the permute between it and the dequantize, or None.
        dequantize: what it reads, directly or through ``turn``.
        weight, scales, zero_point: the operands' constants; upstream insists on a zero point.
    """

    node: torch.fx.Node
    turn: torch.fx.Node | None
    dequantize: torch.fx.Node
    weight: Constant
    scales: Constant
    zero_point: Constant | None


@dataclass(frozen=True)
class FoldedTable:
    """A dequantize that becomes a constant for whoever reads it."""

    dequantize: torch.fx.Node
    values: torch.Tensor


@dataclass
class LoweringPlan:
    """Everything that ``impl.lower.rewrite`` does to a fused program."""

    lookups: list[CarriedLookup | RuntimeLookup] = field(default_factory=list)
    products: list[KeptProduct] = field(default_factory=list)
    folded: list[FoldedTable] = field(default_factory=list)
    support: list[torch.fx.Node] = field(default_factory=list)
    initialised: list[torch.fx.Node] = field(default_factory=list)  # buffers whose first values a lookup reads
