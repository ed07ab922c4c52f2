"""Decide how everything that fusing left behind reaches a runtime that has no torchao kernel.

No runtime registers ``torchao.dequantize_affine``, and upstream's partitioner claims it and
``embedding_4bit`` all the same. So each dequantized table that is still read, and each refused lookup,
is planned here, before partitioning:

- a lookup becomes ``embedding_byte`` (see ``impl.carry_table``), or, where no spelling of its table is
  exact, a lookup into the dequantized table;
- a matrix product on a table that contract 5.3 lets fuse keeps a dequantize of its own, from which
  upstream's pattern makes its 4-bit linear;
- every other reader gets the dequantized table as a constant.

Source: docs/contract.md 5.5, 6.1, 6.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch

from impl.carry_table import ByteForm, PlainTable, byte_form, float_table
from impl.graph_constants import Constant, Constants, read_constants
from impl.graph_lookups import Lookup, Table, find_lookups, find_lookups_in_branches, table_of
from impl.graph_ops import DEQUANTIZE, arguments, is_identity, op_name, torch_op
from impl.matcher_report import Limits
from impl.matcher_rules import Operands, TableJudge

if TYPE_CHECKING:
    from collections.abc import Collection, Iterator

    from torch.export import ExportedProgram

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
    """Everything that ``impl.lowering_rewrite`` does to a fused program."""

    lookups: list[CarriedLookup | RuntimeLookup] = field(default_factory=list)
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
        LoweringError: names every lookup and every dequantized table that cannot be carried exactly.
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
        self._forms: dict[tuple[str, ...], ByteForm | None] = {}

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
                self._carry(lookup, lookup.table)
            elif _through_identities(lookup.reads) is lookup.table.dequantize:
                by_table.setdefault(lookup.table.dequantize, []).append(lookup)
        for node in self.program.graph.nodes:
            if torch_op(node) == DEQUANTIZE:
                self._dequantize(node, by_table.get(node, []), is_table=node in looked_up)

    def _dequantize(self, node: torch.fx.Node, lookups: list[Lookup], *, is_table: bool) -> None:
        table = table_of(node)
        operands = self.judge.operands(table)
        constant = all(
            isinstance(operand, Constant) and not operand.written for operand in operands if operand is not None
        )
        if not constant and not is_table:
            return  # activations, say: upstream's patterns know what to do with them
        for lookup in lookups:
            self._carry(lookup, table)
        self._supports(table)
        carried = {lookup.node for lookup in lookups}
        others = []
        for reader, path in _readers(node):
            product = self._product(reader, path, table)
            if product is not None:
                self.plan.products.append(product)
            if product is not None or reader in carried:
                self.plan.support.extend(path)
            else:
                others.append(reader)
        if not others:
            return
        if constant:
            self.plan.folded.append(FoldedTable(node, _dequantized(table, operands)))
        else:
            why = f"the table is not constant, and {others[0].name} ({op_name(others[0])}) reads it dequantized"
            self.faults.append((node.name, f"{why}: no runtime of this wheel registers torchao.dequantize_affine"))

    def _product(self, reader: torch.fx.Node, path: tuple[torch.fx.Node, ...], table: Table) -> KeptProduct | None:
        """The reader as a product that upstream's patterns may have, else None."""
        names = _PRODUCTS.get(torch_op(reader))
        turn = path[1] if len(path) == 2 else None  # noqa: PLR2004 - dequantize, permute
        if names is None or reader.name in self.undelegated or path[-1] is not (turn or path[0]):
            return None
        given = arguments(reader)
        if given[names[1]] is not path[-1] or (turn is not None and torch_op(turn) not in _TURNS):
            return None
        weight, scales, zero_point = operands = self.judge.operands(table)
        if not isinstance(weight, Constant) or not isinstance(scales, Constant):
            return None
        if not _is_dequantized(given[names[0]]):  # a quantized input is a pattern of its own, not ours to judge
            violations = (*self.judge.violations(table, operands), *self.judge.limit_violations(table, operands))
            if violations or scales.data.dtype != table.output_dtype or weight.data.shape[0] % _LINEAR_ROWS:
                return None
        bias = given.get(names[2])
        if bias is not None and not isinstance(self.constants.resolve(bias), Constant):
            return None  # upstream's pattern asserts that the bias is constant
        kept_zero = zero_point if isinstance(zero_point, Constant) else None
        return KeptProduct(reader, turn, path[0], weight, scales, kept_zero)

    def _carry(self, lookup: Lookup, table: Table) -> None:
        self._supports(table)
        self.plan.support.extend(_identity_path(lookup.reads))
        plain = self._plain(table)
        if plain is None:
            self._carry_at_run_time(lookup, table)
            return
        names = (operand.name if isinstance(operand, Constant) else "" for operand in self.judge.operands(table))
        key = (*names, str(table.block_size), str(plain.output_dtype), str(table.is_flat))
        if key not in self._forms:
            self._forms[key] = byte_form(plain)
        form = self._forms[key]
        values = None if form is not None else float_table(plain)
        self.plan.lookups.append(CarriedLookup(lookup.node, lookup.indices, form, values))

    def _carry_at_run_time(self, lookup: Lookup, table: Table) -> None:
        """Operands that are not all constant: only embedding_byte's own dtypes and shapes are known to be exact."""
        why = _runtime_fault(table)
        if why:
            self.faults.append((lookup.node.name, f"the table is not constant and {why}"))
            return
        for operand in self.judge.operands(table):
            if isinstance(operand, Constant) and operand.written:
                self.plan.initialised.append(operand.placeholder)
        output = table.output_dtype
        assert output is not None  # noqa: S101 - _runtime_fault rejects flat tables, the only ones without
        zero_point = table.zero_point
        widen = zero_point is not None and zero_point.meta["val"].dtype != output
        self.plan.lookups.append(
            RuntimeLookup(lookup.node, lookup.indices, table.weight, table.scales, zero_point, widen, output)
        )

    def _plain(self, table: Table) -> PlainTable | None:
        """The table's real values in one scale a row and group, or None where they are not all constant."""
        found = self.judge.operands(table)
        weight, scales, zero_point = found
        wanted = found if table.zero_point is not None else found[:2]
        if not all(isinstance(operand, Constant) and not operand.written for operand in wanted):
            return None
        assert isinstance(weight, Constant)  # noqa: S101 - just checked
        assert isinstance(scales, Constant)  # noqa: S101 - just checked
        zeros = zero_point.data.detach() if isinstance(zero_point, Constant) else None
        if table.is_flat:
            return _plain_flat(weight.data.detach(), scales.data.detach(), zeros, table)
        return _plain_blocks(weight.data.detach(), scales.data.detach(), zeros, table)

    def _supports(self, table: Table) -> None:
        for operand in self.judge.operands(table):
            if isinstance(operand, Constant):
                self.plan.support.extend(operand.path)
        if table.dequantize is not None:
            self.plan.support.append(table.dequantize)


def _plain_flat(
    weight: torch.Tensor, scales: torch.Tensor, zero_point: torch.Tensor | None, table: Table
) -> PlainTable | None:
    """A flat table's values; its own arithmetic is the CPU kernel's (contract 4)."""
    if weight.dtype != torch.uint8 or weight.ndim != 2 or scales.ndim not in {1, 2}:  # noqa: PLR2004 - [V, D/2]
        return None
    unpacked = torch.stack([weight >> 4, weight & 15], dim=-1).reshape(weight.shape[0], -1).to(torch.int8) - 8
    output = table.output_dtype or scales.dtype
    rows = (
        scales.reshape(weight.shape[0], -1),
        None if zero_point is None else zero_point.reshape(weight.shape[0], -1),
    )

    def dequantize(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        group = q.shape[1] // s.shape[1]
        value = q.to(torch.float32)
        if z is not None:
            value = value - z.to(torch.float32).repeat_interleave(group, 1)
        return (value * s.to(torch.float32).repeat_interleave(group, 1)).to(output)

    return PlainTable(unpacked, *rows, dequantize, output)


def _plain_blocks(
    weight: torch.Tensor, scales: torch.Tensor, zero_point: torch.Tensor | None, table: Table
) -> PlainTable | None:
    """A dequantize_affine's values, one scale a row and group: scales that rows share are repeated."""
    block = table.block_size
    if weight.ndim != 2 or not all(type(size) is int and size > 0 for size in block):  # noqa: PLR2004 - [V, D]
        return None  # a lookup reads rows of a matrix: this one is not valid
    rows, group = block
    shape = (weight.shape[0] // rows, weight.shape[1] // group)

    def spread(parameter: torch.Tensor) -> torch.Tensor:
        return parameter.reshape(shape).repeat_interleave(rows, 0)

    operation, output = DEQUANTIZE, table.output_dtype or torch.float32

    def dequantize(q: torch.Tensor, s: torch.Tensor, z: torch.Tensor | None) -> torch.Tensor:
        given: tuple[Any, ...] = (q, [1, group], s, z, table.input_dtype, table.qmin, table.qmax, output)
        result: torch.Tensor = operation(*given)
        return result

    return PlainTable(weight, spread(scales), None if zero_point is None else spread(zero_point), dequantize, output)


def _dequantized(table: Table, operands: Operands) -> torch.Tensor:
    """What the dequantize itself computes of its constants."""
    weight, scales, zero_point = (
        operand.data.detach() if isinstance(operand, Constant) else None for operand in operands
    )
    given = (weight, table.block_size, scales, zero_point, table.input_dtype, table.qmin, table.qmax)
    values: torch.Tensor = DEQUANTIZE(*given, table.output_dtype)
    return values


def _is_dequantized(operand: Any) -> bool:
    """Whether a product's first operand comes from a dequantize, through at most one view."""
    for _ in range(2):
        if not isinstance(operand, torch.fx.Node):
            return False
        if "dequantize" in op_name(operand):
            return True
        operand = operand.args[0] if operand.args else None
    return False


def _runtime_fault(table: Table) -> str:
    """Why embedding_byte does not take operands that only run time knows, or ""."""
    if table.is_flat:
        return "only int8 tables can be carried without their values"
    weight, scales = table.weight.meta["val"], table.scales.meta["val"]
    if weight.ndim != 2 or weight.dtype not in {torch.int8, torch.uint8}:  # noqa: PLR2004 - [V, D]
        return f"embedding_byte takes int8 or uint8 [V, D], not {weight.dtype} of shape {tuple(weight.shape)}"
    block = table.block_size
    if len(block) != 2 or block[0] != 1 or block[1] < 2:  # noqa: PLR2004 - [1, G], and no groups of one
        return f"embedding_byte has one scale a row and group of at least 2 columns, block_size is {block}"
    if tuple(scales.shape) != (weight.shape[0], weight.shape[1] // block[1]):
        return f"its scales have shape {tuple(scales.shape)}, not [V, D/G]"
    if scales.dtype not in {torch.float32, torch.float16, torch.bfloat16}:
        return f"embedding_byte takes no scales of {scales.dtype}"
    if table.zero_point is None:
        return ""
    zero_point = table.zero_point.meta["val"]
    if scales.dtype != table.output_dtype:
        return f"its zero point needs scales of the output's {table.output_dtype}, they are {scales.dtype}"
    if tuple(zero_point.shape) != tuple(scales.shape):
        return f"its zero point has shape {tuple(zero_point.shape)}, its scales {tuple(scales.shape)}"
    exact = {torch.int8, torch.uint8} | ({torch.float32} if table.output_dtype == torch.float32 else set())
    return "" if zero_point.dtype in exact else f"a zero point of {zero_point.dtype} may round"


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


def _identity_path(node: torch.fx.Node) -> list[torch.fx.Node]:
    path = []
    while is_identity(node):
        path.append(node)
        node = node.args[0]
    return path


def _through_identities(node: torch.fx.Node) -> torch.fx.Node:
    while is_identity(node):
        node = node.args[0]
    return node
