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
import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch.export import ExportedProgram

from impl.fusion.report import Limits
from impl.fusion.rules import Operands, TableJudge
from impl.graph.constants import Constant, Constants, read_constants
from impl.graph.lookups import Lookup, Table, branches, find_lookups, table_of
from impl.graph.ops import (
    CHOOSE_QPARAMS,
    DEQUANTIZE,
    QUANTIZERS,
    VIEWS,
    arguments,
    identity_path,
    is_identity,
    op_name,
    source_line,
    torch_op,
)
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
_HALVES = (torch.float16, torch.bfloat16)
#: Dtypes of a weight that upstream's 4-bit linear multiplies with: halves by way of float32.
_MULTIPLIED = (torch.float32, torch.float16)
_DQ8CA = "with int8 rows (asymmetric) and int4 weights (symmetric, groups of a multiple of 4)"
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
    ``activation`` quantizes and dequantizes its input; empty where nothing does.
    """

    node: torch.fx.Node
    turn: torch.fx.Node | None
    dequantize: torch.fx.Node
    weight: Constant
    scales: Constant
    zero_point: Constant | None
    activation: tuple[torch.fx.Node, ...] = ()


@dataclass(frozen=True)
class FoldedTable:
    """A dequantize that becomes a constant for whoever reads it."""

    dequantize: torch.fx.Node
    values: torch.Tensor
    why: str
    packed_bytes: int

    @property
    def growth(self) -> str:
        """One line for the caller: which weight, how much larger, and why."""
        size = self.values.numel() * self.values.element_size()
        kind = str(self.values.dtype).removeprefix("torch.")
        shape = tuple(self.values.shape)
        return f"{shape} becomes {kind}, {self.packed_bytes} bytes quantized, {size} in the file: {self.why}"


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
        self.judged: set[torch.fx.Node] = set()  # dequantizes of tables, and activations that are reported already
        self.why: dict[torch.fx.Node, str] = {}
        self._forms: dict[tuple[str, ...], TableTensors | None] = {}

    def run(self) -> None:
        self._branches()
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
        self._quantized_activations()

    def _branches(self) -> None:
        """A branch is no delegate's, its tables are inputs of it, and the CPU has no kernel that dequantizes."""
        nodes = self.program.graph.nodes
        call = {node.target: user for node in nodes if node.op == "get_attr" for user in node.users}
        for where, graph in branches(self.program.graph_module):
            outer = call[where.partition("/")[0]]  # of whose line torch keeps the record; it has none of the branch's
            lookups = {lookup.node: lookup.table.dequantize for lookup in find_lookups(graph)}
            kinds = dict.fromkeys(lookups, ("a 4-bit lookup", "look up", "rows"))
            for node in graph.nodes:
                if torch_op(node) in QUANTIZERS and node not in lookups.values():
                    kinds[node] = (op_name(node), "do it", "result")
            for node, (what, do, result) in kinds.items():
                why = f"{what} inside a control-flow branch; {do} outside the branch and pass the {result} in"
                self.faults.append((f"{where}{node.name}", why + (source_line(node) or source_line(outer))))

    def _quantized_activations(self) -> None:
        """What quantizes or dequantizes as the program runs, but for a kept product: no kernel has it."""
        kept = {node for product in self.plan.products for node in product.activation}
        for node in self.program.graph.nodes:
            if torch_op(node) in QUANTIZERS and node not in kept and node not in self.judged:
                why = f"{op_name(node)} of a computed value, which no runtime of this wheel registers"
                self._fault(node, f"{why}: dequantize only for a linear that has 8-bit inputs, {_DQ8CA}")

    def _dequantize(self, node: torch.fx.Node, lookups: list[Lookup], *, is_table: bool) -> None:
        table = table_of(node)
        operands = self.judge.operands(table)
        constant = all_constant(operands)
        if not constant and not is_table:
            return  # an activation
        self.judged.add(node)
        for lookup in lookups:
            self._fall_back(lookup)
        self._supports(table)
        fallbacks = {lookup.node for lookup in lookups}
        others = []
        for reader, path in _readers(node):
            product = self._product(reader, path, table)
            if product is not None:
                self.plan.products.append(product)
                self.plan.support.extend(_behind(product.activation))
            if product is not None or reader in fallbacks:
                self.plan.support.extend(path)
            else:
                others.append(reader)
        if not others:
            return
        if constant:
            why = self.why.get(node) or f"{others[0].name} ({op_name(others[0])}) reads it dequantized"
            bits = max(1, int(table.qmax) - int(table.qmin)).bit_length()
            scales = sum(o.data.numel() * o.data.element_size() for o in operands[1:2] if isinstance(o, Constant))
            packed = node.meta["val"].numel() * bits // 8 + scales
            self.plan.folded.append(FoldedTable(node, dequantized(table, operands), why + source_line(node), packed))
        else:
            why = f"the table is not constant, and {others[0].name} ({op_name(others[0])}) reads it dequantized"
            self.faults.append((node.name, f"{why}: no runtime of this wheel registers torchao.dequantize_affine"))

    def _product(self, reader: torch.fx.Node, path: tuple[torch.fx.Node, ...], table: Table) -> KeptProduct | None:
        """The reader as a product that upstream's patterns may have, else None."""
        names = _PRODUCTS.get(torch_op(reader))
        turn = path[1] if len(path) == 2 else None  # noqa: PLR2004 - dequantize, permute
        if names is None or path[-1] is not (turn or path[0]):
            return None
        operands = arguments(reader)
        if operands[names[1]] is not path[-1] or (turn is None) != (torch_op(reader) == torch.ops.aten.linear.default):
            return None  # upstream's pattern takes every weight as [N, K], turned or not
        if turn is not None and torch_op(turn) not in _TURNS:
            return None
        weight, scales, zero_point = constants = self._widened(table)
        activation = _activation(operands[names[0]])
        why = self._product_fault(reader, table, constants, operands.get(names[2]))
        if activation and not why:
            why = _activation_fault(activation)
        if why and activation:
            detail = f"its input is quantized as it runs and its weight {why}, so the runtime has no operator for it"
            self.judged.update(activation)
            self._fault(reader, f"{detail}: leave the activation unquantized (weight-only int4), or quantize {_DQ8CA}")
            return None
        self.why[path[0]] = f"as the weight of {reader.name} it {why}"
        if why or not isinstance(weight, Constant) or not isinstance(scales, Constant):
            return None
        kept_zero = zero_point if isinstance(zero_point, Constant) else None
        return KeptProduct(reader, turn, path[0], weight, scales, kept_zero, activation)

    def _widened(self, table: Table) -> Operands:
        """The operands, half scales as float32: upstream's linear declares that it returns float32."""
        weight, scales, zero_point = self.judge.operands(table)
        if isinstance(scales, Constant) and table.output_dtype in _MULTIPLIED and scales.data.dtype in _HALVES:
            scales = replace(scales, data=scales.data.detach().to(torch.float32))
        return weight, scales, zero_point

    def _product_fault(self, reader: torch.fx.Node, table: Table, constants: Operands, bias: Any) -> str:
        """Why upstream's 4-bit linear does not compute the product, or ""; what a weight has to be, as a clause."""
        weight, scales, _ = constants
        if not isinstance(weight, Constant) or not isinstance(scales, Constant) or not all_constant(constants):
            return "is not constant"
        if reader.name in self.undelegated:
            return "is of a kind that the partitioner does not take"
        for _, detail in itertools.chain(
            self.judge.violations(table, constants), self.judge.limit_violations(table, constants)
        ):
            return f"does not fit ({detail})"
        if reader.meta["val"].ndim != 2:  # noqa: PLR2004 - the runtime misreads a batch of matrices
            return "is multiplied with more than a matrix"
        if scales.data.dtype != torch.float32 or table.output_dtype not in _MULTIPLIED:
            return f"has {scales.data.dtype} scales for {table.output_dtype} values"
        if weight.data.shape[0] % _LINEAR_ROWS:
            return f"has {weight.data.shape[0]} rows, not a multiple of {_LINEAR_ROWS}"
        if bias is not None and not isinstance(self.constants.resolve(bias), Constant):
            return "has a bias that is not constant"  # upstream's pattern asserts that it is
        return ""

    def _fault(self, node: torch.fx.Node, why: str) -> None:
        self.faults.append((node.name, why + source_line(node)))

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


def _activation(operand: Any) -> tuple[torch.fx.Node, ...]:
    """The dequantize and the quantize that a product's first operand comes from, through at most one view."""
    if torch_op(operand) in VIEWS:
        operand = operand.args[0]
    if "dequantize" not in op_name(operand):
        return ()
    source = operand.args[0]
    return (operand, source) if "quantize" in op_name(source) else (operand,)


def _behind(activation: tuple[torch.fx.Node, ...]) -> Iterator[torch.fx.Node]:
    """The nodes that quantize an input, and a view of it, which nothing reads once the product has its own."""
    for node in activation:
        yield from (user for user in node.users if torch_op(user) in VIEWS)
        yield from (
            node,
            *node.all_input_nodes[1:],
            *(choose for get in node.all_input_nodes[1:] for choose in get.all_input_nodes),
        )


def _activation_fault(activation: tuple[torch.fx.Node, ...]) -> str:
    """Why upstream's linear with 8-bit inputs does not quantize its input as the program does, or "" (a clause)."""
    if not all(torch_op(node) in QUANTIZERS for node in activation) or len(activation) == 1:
        return "goes with an input that is not quantized by torchao"
    quantize = activation[1]
    scale = arguments(quantize)["scale"]
    choose = scale.args[0] if scale.target is operator.getitem else scale
    if torch_op(choose) != CHOOSE_QPARAMS:
        return "goes with an input whose scale is not chosen from the input itself"
    chosen, x = arguments(choose), quantize.args[0]
    shape = x.meta["val"].shape
    limits = (chosen["mapping_type"], chosen["target_dtype"], chosen["quant_min"], chosen["quant_max"])
    if limits[:2] != ("ASYMMETRIC", torch.int8) or limits[2:] not in {(None, None), (-128, 127)}:
        return f"goes with an input quantized otherwise ({', '.join(map(str, limits))})"
    if chosen["input"] is not x or list(chosen["block_size"]) != [*[1] * (len(shape) - 1), shape[-1]]:
        return f"goes with an input quantized in blocks of {chosen['block_size']}, not by row"
    if x.meta["val"].dtype != torch.float32:
        return f"goes with an input of {x.meta['val'].dtype}"
    return ""


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
