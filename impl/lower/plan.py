"""Decide how everything that fusing left behind reaches a runtime that has no torchao kernel.

No runtime registers ``torchao.dequantize_affine``, and upstream's partitioner claims it and
``embedding_4bit`` all the same. So each dequantized table that is still read, and each refused lookup,
is planned here, before partitioning:

- a lookup becomes ``embedding_byte`` (see ``impl.lower.cpu_fallback``), or, where no spelling of its table is
  exact, a lookup into the dequantized table;
- a matrix product on a table that contract 5.3 lets fuse keeps a dequantize of its own, from which
  upstream's pattern makes its 4-bit linear;
- every other reader gets the dequantized table as a constant.

Source: docs/contract.md 5.5, 6.1, 6.2.
"""

import itertools
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.export import ExportedProgram

from impl.fusion.report import Limits
from impl.fusion.rules import TableJudge
from impl.graph.constants import Constant, Constants, read_constants
from impl.graph.lookups import Lookup, Table, find_lookups, find_lookups_in_branches, table_of
from impl.graph.ops import DEQUANTIZE, arguments, identity_path, is_identity, op_name, torch_op
from impl.lower.cpu_fallback import (
    TableTensors,
    all_constant,
    byte_form,
    dequantized,
    float_table,
    plain_table,
    runtime_fault,
)

#: Matrix products: what they call their first operand, their weight and their bias.
_PRODUCTS: dict[Any, tuple[str, str, str]] = {
    torch.ops.aten.linear.default: ("input", "weight", "bias"),
    torch.ops.aten.mm.default: ("self", "mat2", ""),
    torch.ops.aten.addmm.default: ("mat1", "mat2", "self"),
}
_TURNS = (torch.ops.aten.permute_copy.default, torch.ops.aten.permute.default, torch.ops.aten.t_copy.default)
#: Rows that upstream's 4-bit linear shader works on at a time.
_LINEAR_ROWS = 4


class LoweringError(ValueError):
    """Something in the program has no exact form that a runtime executes; nothing was written.

    Attributes:
        nodes: (node, why) for each.
    """

    def __init__(self, nodes: Collection[tuple[str, str]]) -> None:
        self.nodes = tuple(nodes)
        super().__init__("cannot be lowered: " + "; ".join(f"{node}: {why}" for node, why in nodes))


@dataclass(frozen=True)
class CpuLookup:
    """A refused lookup with its CPU form; ``values`` where no byte form is exact."""

    node: torch.fx.Node
    indices: torch.fx.Node
    form: TableTensors | None
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

    It reads ``dequantize`` directly or through the permute ``turn``; upstream insists on a zero point.
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
    """Everything that ``impl.lower.rewrite`` does to a fused program; ``support`` goes where nothing else reads it."""

    lookups: list[CpuLookup | RuntimeLookup] = field(default_factory=list)
    products: list[KeptProduct] = field(default_factory=list)
    folded: list[FoldedTable] = field(default_factory=list)
    support: list[torch.fx.Node] = field(default_factory=list)
    initialised: list[torch.fx.Node] = field(default_factory=list)  # buffers whose first values a lookup reads


def plan_lowering(program: ExportedProgram, limits: Limits, undelegated: Collection[str]) -> LoweringPlan:
    """Plan the rest of a fused program.

    Args:
        program: what ``fuse_q4_embeddings`` returned.
        limits: of the device, as for fusing.
        undelegated: products that Vulkan would not take, by name: they read the dequantized table.

    Raises:
        LoweringError: names every lookup and every dequantized table that has no exact form on any runtime.
    """
    planner = _Planner(program, limits, undelegated)
    planner.run()
    if planner.faults:
        raise LoweringError(planner.faults)
    return planner.plan


class _Planner:
    def __init__(self, program: ExportedProgram, limits: Limits, undelegated: Collection[str]) -> None:
        self.program = program
        self.constants: Constants = read_constants(program)
        self.judge = TableJudge(self.constants, limits)
        self.undelegated = undelegated
        self.plan = LoweringPlan()
        self.faults: list[tuple[str, str]] = []
        self._forms: dict[tuple[str, ...], TableTensors | None] = {}

    def run(self) -> None:
        for where, lookup in find_lookups_in_branches(self.program.graph_module):
            why = "a 4-bit lookup inside a control-flow branch; look up outside the branch and pass the rows in"
            self.faults.append((f"{where}{lookup.node.name}", why))
        by_table: dict[torch.fx.Node, list[Lookup]] = {}
        looked_up: set[torch.fx.Node | None] = set()
        for lookup in find_lookups(self.program.graph):
            looked_up.add(lookup.table.dequantize)
            if lookup.renormed:
                why = "embedding_renorm (max_norm) has no kernel on any runtime of this wheel"
                self.faults.append((lookup.node.name, why))
            elif lookup.table.dequantize is None:
                self._fall_back(lookup)
            elif identity_path(lookup.reads)[-1] is lookup.table.dequantize:
                by_table.setdefault(lookup.table.dequantize, []).append(lookup)
        for node in self.program.graph.nodes:
            if torch_op(node) == DEQUANTIZE:
                self._dequantize(node, by_table.get(node, []), is_table=node in looked_up)

    def _dequantize(self, node: torch.fx.Node, lookups: list[Lookup], *, is_table: bool) -> None:
        table = table_of(node)
        operands = self.judge.operands(table)
        constant = all_constant(operands)
        if not constant and not is_table:
            return  # activations, say: upstream's patterns know what to do with them
        for lookup in lookups:
            self._fall_back(lookup)
        self._supports(table)
        fallbacks = {lookup.node for lookup in lookups}
        others = []
        for reader, path in _readers(node):
            product = self._product(reader, path, table)
            if product is not None:
                self.plan.products.append(product)
            if product is not None or reader in fallbacks:
                self.plan.support.extend(path)
            else:
                others.append(reader)
        if not others:
            return
        if constant:
            self.plan.folded.append(FoldedTable(node, dequantized(table, operands)))
        else:
            why = f"the table is not constant, and {others[0].name} ({op_name(others[0])}) reads it dequantized"
            self.faults.append((node.name, f"{why}: no runtime of this wheel registers torchao.dequantize_affine"))

    def _product(self, reader: torch.fx.Node, path: tuple[torch.fx.Node, ...], table: Table) -> KeptProduct | None:
        """The reader as a product that upstream's patterns may have, else None."""
        names = _PRODUCTS.get(torch_op(reader))
        turn = path[1] if len(path) == 2 else None  # noqa: PLR2004 - dequantize, permute
        if names is None or reader.name in self.undelegated or path[-1] is not (turn or path[0]):
            return None
        operands = arguments(reader)
        if operands[names[1]] is not path[-1] or (turn is not None and torch_op(turn) not in _TURNS):
            return None
        weight, scales, zero_point = constants = self.judge.operands(table)
        if not isinstance(weight, Constant) or not isinstance(scales, Constant) or not all_constant(constants):
            return None
        if not _is_dequantized(operands[names[0]]):  # a quantized input is a pattern of its own, not ours to judge
            checks = itertools.chain(
                self.judge.violations(table, constants), self.judge.limit_violations(table, constants)
            )
            if next(checks, None) or scales.data.dtype != table.output_dtype or weight.data.shape[0] % _LINEAR_ROWS:
                return None
        bias = operands.get(names[2])
        if bias is not None and not isinstance(self.constants.resolve(bias), Constant):
            return None  # upstream's pattern asserts that the bias is constant
        kept_zero = zero_point if isinstance(zero_point, Constant) else None
        return KeptProduct(reader, turn, path[0], weight, scales, kept_zero)

    def _fall_back(self, lookup: Lookup) -> None:
        table = lookup.table
        self._supports(table)
        self.plan.support.extend(identity_path(lookup.reads)[:-1])
        plain = plain_table(table, self.judge.operands(table))
        if plain is None:
            self._fall_back_at_run_time(lookup)
            return
        names = (operand.name if isinstance(operand, Constant) else "" for operand in self.judge.operands(table))
        key = (*names, str(table.block_size), str(plain.output_dtype), str(table.is_flat))
        if key not in self._forms:
            self._forms[key] = byte_form(plain)
        form = self._forms[key]
        values = None if form is not None else float_table(plain)
        self.plan.lookups.append(CpuLookup(lookup.node, lookup.indices, form, values))

    def _fall_back_at_run_time(self, lookup: Lookup) -> None:
        """Operands that are not all constant: only embedding_byte's own dtypes and shapes are known to be exact."""
        table = lookup.table
        why = runtime_fault(table)
        if why:
            self.faults.append((lookup.node.name, f"the table is not constant and {why}"))
            return
        for operand in self.judge.operands(table):
            if isinstance(operand, Constant) and operand.written:
                self.plan.initialised.append(operand.placeholder)
        output = table.output_dtype
        assert output is not None  # noqa: S101 - runtime_fault rejects flat tables, the only ones without
        zero_point = table.zero_point
        widen = zero_point is not None and zero_point.meta["val"].dtype != output
        self.plan.lookups.append(
            RuntimeLookup(lookup.node, lookup.indices, table.weight, table.scales, zero_point, widen, output)
        )

    def _supports(self, table: Table) -> None:
        for operand in self.judge.operands(table):
            if isinstance(operand, Constant):
                self.plan.support.extend(operand.path)


def _is_dequantized(operand: Any) -> bool:
    """Whether a product's first operand comes from a dequantize, through at most one view."""
    for _ in range(2):
        if not isinstance(operand, torch.fx.Node):
            return False
        if "dequantize" in op_name(operand):
            return True
        operand = operand.args[0] if operand.args else None
    return False


def _readers(node: torch.fx.Node) -> Iterator[tuple[torch.fx.Node, tuple[torch.fx.Node, ...]]]:
    """Who reads a dequantized table, through identities and one permute: (reader, path from the dequantize)."""
    pending: list[tuple[torch.fx.Node, tuple[torch.fx.Node, ...]]] = [(user, (node,)) for user in node.users]
    while pending:
        user, path = pending.pop(0)
        turned = torch_op(user) in _TURNS and all(torch_op(step) not in _TURNS for step in path)
        if user.users and (is_identity(user) or turned):
            pending.extend((following, (*path, user)) for following in user.users)
        else:
            yield user, path
