"""Routes "export" and "torchao": a spec as an nn.Module whose forward is straight-line Python.

The forward method is generated as source text, so that torch.export sees what a person would have
written, in strict mode too, and so that a defect can be shown by a script of its own.

A spec may come from a file. Its texts are checked where it is read (``reference.program.spec.validate``); here a name
becomes an identifier and a dtype is torch's own, and ``compiled`` takes nothing but calls on ``torch`` and ``self``.

Source: docs/contract.md section 4; docs/security.md.
"""

import ast
import linecache
from types import CodeType
from typing import Any

import torch

from conformance.program.tensors import Array, all_tensors, identifiers, to_torch, torch_dtype, user_inputs
from reference.program.spec import (
    PASSED,
    Apply,
    Dequantize,
    Linear,
    Lookup,
    PackedLookup,
    ProgramSpec,
    QuantizedTable,
    Step,
)


class SpecModule(torch.nn.Module):  # type: ignore[misc] # torch ships no types that strict mode can follow
    """Holds a spec's constants under their identifiers; ``forward`` is set by ``make_module``."""


def make_module(spec: ProgramSpec, values: dict[str, Array], quantized: dict[str, Any] | None = None) -> SpecModule:
    """Return the module that ``spec`` describes, in eval mode.

    Args:
        spec: a valid spec.
        values: every tensor by name (``reference.program.values.tensor_values``).
        quantized: for route "torchao", each table's nn.Embedding after quantize_; None makes plain
            parameters of the tables' parts.

    Raises:
        ValueError: the spec has something the route cannot express; names the step.
    """
    module, names = SpecModule(), identifiers(spec)
    for tensor in all_tensors(spec):
        if quantized is not None and "." in tensor.name and tensor.name.rpartition(".")[0] in quantized:
            continue
        _register(module, names[tensor.name], to_torch(values[tensor.name]), tensor.source)
    for name, embedding in (quantized or {}).items():
        module.add_module(names[name], embedding)
    tables = {t.name: t for t in spec.tables} if quantized is not None else {}
    source = forward_source(spec, tables)
    for step in tied_linears(spec, tables):
        table = tables[spec.dequantize(step.table).weight.rpartition(".")[0]]
        linear = torch.nn.Linear(table.embed_dim, table.vocab_size, bias=False, dtype=torch_dtype(table.dtype))
        linear.weight = quantized[table.name].weight if quantized else None
        module.add_module(names[step.name], linear)
    filename = f"<forward of spec {id(module)}>"
    linecache.cache[filename] = (len(source), None, source.splitlines(keepends=True), filename)
    scope: dict[str, Any] = {"torch": torch}
    exec(compiled(source, filename), scope)  # noqa: S102 - generated above from a validated spec, and checked once more
    module.__class__ = type("SpecModule", (SpecModule,), {"forward": scope["forward"]})
    module.eval()
    return module


_NODES = (
    *(ast.Module, ast.FunctionDef, ast.arguments, ast.arg, ast.Assign, ast.Expr, ast.Return, ast.Call, ast.keyword),
    *(ast.Attribute, ast.Name, ast.Load, ast.Store, ast.Constant, ast.List, ast.Tuple, ast.UnaryOp, ast.USub),
)
#: All of torch that a ``forward`` may name, next to dtypes, and all that it may take of a tensor or a module.
_OF_TORCH = {
    *(f"torch.{name}" for name in ("add", "clone", "mul", "permute")),
    *(f"torch.nn.functional.{name}" for name in ("embedding", "layer_norm", "linear")),
    *(f"torch.ops.aten.{name}.default" for name in ("embedding", "embedding_renorm")),
    "torch.ops.quantized_decomposed.embedding_4bit.dtype",
    "torch.ops.torchao.dequantize_affine.default",
}
_OF_TENSORS = {"dequantize", "detach", "neg_", "qdata", "scale", "shape", "view", "weight", "zero_point"}


def compiled(source: str, filename: str) -> CodeType:
    """The code of a ``forward``: calls with numbers, on ``torch``, ``self`` and what was assigned before.

    Raises:
        ValueError: it has anything else: another statement, a text, a name of Python's own, a name with _ in front, or
            anything of torch that ``_Writer`` does not write.
    """
    tree = ast.parse(source, filename)
    nodes = list(ast.walk(tree))
    inner = {id(n.value) for n in nodes if isinstance(n, ast.Attribute)}
    own = {"self", "torch"} | {n.arg for n in nodes if isinstance(n, ast.arg)}
    own |= {n.id for n in nodes if isinstance(n, ast.Name) and isinstance(n.ctx, ast.Store)}
    for node in nodes:
        name = getattr(node, "attr", getattr(node, "id", ""))
        foreign = isinstance(node, ast.Name) and node.id not in own
        text = isinstance(node, ast.Constant) and not isinstance(node.value, int | float | None)
        unknown = isinstance(node, ast.Attribute) and id(node) not in inner and not _known(node)
        if not isinstance(node, _NODES) or foreign or text or unknown or name.startswith("_"):
            raise ValueError(f"line {getattr(node, 'lineno', 1)} of the forward of a spec is no call on tensors")
    return compile(tree, filename, "exec")


def _known(node: ast.Attribute) -> bool:
    """Whether an attribute, with those before it, is of ``_OF_TORCH``, of ``_OF_TENSORS``, or a name on ``self``."""
    path = ast.unparse(node)
    if path.startswith("torch."):
        return path in _OF_TORCH or isinstance(getattr(torch, path.removeprefix("torch."), None), torch.dtype)
    at: ast.expr = node
    while isinstance(at, ast.Attribute):
        if at.attr not in _OF_TENSORS:
            return ast.unparse(at.value) == "self"
        at = at.value
    return not isinstance(at, ast.Name) or at.id != "torch"


def _register(module: Any, name: str, tensor: Any, source: str) -> None:
    if source == "parameter":
        module.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    elif source in {"buffer", "mutated"}:
        module.register_buffer(name, tensor)
    elif source == "non_persistent":
        module.register_buffer(name, tensor, persistent=False)
    elif source == "lifted":
        setattr(module, name, tensor)


def natural(step: Dequantize, tables: dict[str, QuantizedTable]) -> QuantizedTable | None:
    """The table whose own dequantize() this step is, or None."""
    table = tables.get(step.weight.rpartition(".")[0])
    if table is None:
        return None
    block = (1, table.group_size or table.embed_dim)
    own = Dequantize(
        step.name,
        f"{table.name}.qdata",
        f"{table.name}.scale",
        block,
        f"{table.name}.zero_point",
        output_dtype=table.dtype,
    )
    return table if own == step else None


def _consumers(spec: ProgramSpec, name: str) -> list[Step]:
    return [s for s in spec.steps if name in {getattr(s, "table", None), getattr(s, "of", None)}]


def _only_consumer(spec: ProgramSpec, step: Dequantize, kind: type[Step]) -> bool:
    users = _consumers(spec, step.name)
    return len(users) == 1 and isinstance(users[0], kind)


def tied_linears(spec: ProgramSpec, tables: dict[str, QuantizedTable]) -> tuple[Linear, ...]:
    """The linear steps that become an nn.Linear sharing the nn.Embedding's quantized weight."""
    return tuple(
        s
        for s in spec.steps
        if isinstance(s, Linear)
        and natural(spec.dequantize(s.table), tables)
        and _only_consumer(spec, spec.dequantize(s.table), Linear)
    )


def module_calls(spec: ProgramSpec, tables: dict[str, QuantizedTable]) -> tuple[Lookup, ...]:
    """The lookups that become a plain call of the nn.Embedding: its own dequantized table, used for nothing else."""
    return tuple(
        s
        for s in spec.steps
        if isinstance(s, Lookup)
        and not s.table_ops
        and not s.max_norm
        and natural(spec.dequantize(s.table), tables)
        and _only_consumer(spec, spec.dequantize(s.table), Lookup)
    )


def forward_source(spec: ProgramSpec, tables: dict[str, QuantizedTable]) -> str:
    """The text of ``forward``. ``tables`` are those that torchao has quantized."""
    names = identifiers(spec)
    writer = _Writer(spec, names, tables)
    for step in spec.steps:
        writer.step(step)
    for tensor in spec.tensors:
        if tensor.source in {"mutated", "mutated_input"}:
            owner = "self." if tensor.source == "mutated" else ""
            writer.lines.append(f"{owner}{names[tensor.name]}.neg_()")
    outputs = "".join(f"{names[n]}, " for n in spec.outputs())
    arguments = "".join(f", {names[t.name]}" for t in user_inputs(spec))
    body = "\n".join(f"    {line}" for line in [*writer.lines, f"return ({outputs})"])
    return f"def forward(self{arguments}):\n{body}\n"


class _Writer:
    """Writes the lines of forward, step by step."""

    def __init__(self, spec: ProgramSpec, names: dict[str, str], tables: dict[str, QuantizedTable]) -> None:
        self.spec, self.names, self.tables = spec, names, tables
        self.lines: list[str] = []
        self.computed: set[str] = set()
        self.linears = {s.name for s in tied_linears(spec, tables)}
        self.calls = {s.name for s in module_calls(spec, tables)}
        self.inside_modules = {
            s.table for s in spec.steps if isinstance(s, Lookup | Linear) and s.name in self.linears | self.calls
        }

    def step(self, step: Step) -> None:
        text = self.expression(step)
        if text:
            self.lines.append(f"{self.names[step.name]} = {text}")

    def expression(self, step: Step) -> str:
        if isinstance(step, Dequantize):
            return self.dequantize(step)
        if isinstance(step, Lookup):
            return self.lookup(step)
        if isinstance(step, PackedLookup):
            return self.packed_lookup(step)
        if isinstance(step, Linear):
            x, own = self.tensor(step.x), f"self.{self.names[step.name]}"
            if step.name in self.linears and not step.bias:
                return f"{own}({x})"
            table = f"{own}.weight" if step.name in self.linears else self.names[step.table]
            return f"torch.nn.functional.linear({x}, {table}{self.after(step.bias)})"
        if isinstance(step, Apply):
            return self.apply(step)
        return f"torch.clone({self.tensor(step.of)})"

    def after(self, name: str) -> str:
        """One more argument, where there is a name."""
        return f", {self.tensor(name)}" if name else ""

    def apply(self, step: Apply) -> str:
        of, other, bias = self.tensor(step.of), self.after(step.other), self.after(step.bias)
        if step.function == "norm":
            shape = list(self.spec.tensor(step.other).shape)
            return f"torch.nn.functional.layer_norm({of}, {shape}{other}{bias})"
        if step.function == "linear":
            return f"torch.nn.functional.linear({of}{other}{bias})"
        return f"torch.{step.function}({of}{other or f', {step.number!r}'})"

    def tensor(self, name: str) -> str:
        """The expression for a step or one of the spec's tensors; a computed one is computed at its first use."""
        if any(step.name == name for step in self.spec.steps):
            return self.names[name]
        table, _, part = name.rpartition(".")
        if table in self.tables:
            return f"self.{self.names[table]}.weight.{part}"
        tensor, identifier = self.spec.tensor(name), self.names[name]
        if tensor.source == "computed":
            result = f"{identifier}_computed"
            if name not in self.computed:
                self.computed.add(name)
                self.lines.append(f"{result} = {add_zero(identifier)}")
            return result
        return identifier if tensor.source in PASSED else f"self.{identifier}"

    def dequantize(self, step: Dequantize) -> str:
        table = natural(step, self.tables)
        if step.name in self.inside_modules:
            return ""
        if table is not None:
            return f"self.{self.names[table.name]}.weight.dequantize()"
        weight = self.chain(self.tensor(step.weight), step.weight_ops, step.weight)
        scale = self.chain(self.tensor(step.scale), step.scale_ops, step.scale)
        zero_point = "None"
        if step.zero_point:
            zero_point = self.chain(self.tensor(step.zero_point), step.zero_point_ops, step.zero_point)
        return (
            f"torch.ops.torchao.dequantize_affine.default({weight}, {list(step.block_size)}, {scale}, {zero_point}, "
            f"{torch_dtype(step.input_dtype)}, {step.qmin}, {step.qmax}, output_dtype={torch_dtype(step.output_dtype)})"
        )

    def lookup(self, step: Lookup) -> str:
        indices = self.tensor(step.indices)
        if step.name in self.calls:
            table = natural(self.spec.dequantize(step.table), self.tables)
            name = self.names[table.name] if table else ""
            first = next(s for s in module_calls(self.spec, self.tables) if _same_table(self.spec, s, step))
            if _arguments(first) == _arguments(step):
                return f"self.{name}({indices})"
            padding = None if step.padding_idx == -1 else step.padding_idx
            return (
                f"torch.nn.functional.embedding({indices}, self.{name}.weight, padding_idx={padding}, "
                f"scale_grad_by_freq={step.scale_grad_by_freq}, sparse={step.sparse})"
            )
        table_text = self.chain(self.names[step.table], step.table_ops, self.spec.dequantize(step.table).weight)
        if step.max_norm:
            # What torch.export makes of F.embedding(max_norm=...), but on an alias, so that no other reader of the
            # table sees the renormed rows.
            table_text = (
                f"torch.ops.aten.embedding_renorm.default({table_text}.detach(), {indices}, {step.max_norm}, 2.0)"
            )
        arguments = f"{step.padding_idx}, {step.scale_grad_by_freq}, {step.sparse}"
        return f"torch.ops.aten.embedding.default({table_text}, {indices}, {arguments})"

    def packed_lookup(self, step: PackedLookup) -> str:
        weight = self.chain(self.tensor(step.weight), step.weight_ops, step.weight)
        scale = self.chain(self.tensor(step.scale), step.scale_ops, step.scale)
        zero_point = self.tensor(step.zero_point) if step.zero_point else "None"
        return (
            f"torch.ops.quantized_decomposed.embedding_4bit.dtype({weight}, {scale}, {zero_point}, {step.qmin}, "
            f"{step.qmax}, {self.tensor(step.indices)}, dtype={torch_dtype(step.output_dtype)})"
        )

    def chain(self, text: str, ops: tuple[str, ...], tensor: str) -> str:
        """``text`` with the value-preserving ops applied; each gets a line, so that none is written twice."""
        for op in ops:
            if op == "clone":
                result = f"torch.clone({text})"
            elif op == "view":
                result = f"{text}.view({text}.shape)"
            elif op == "add_zero":
                result = add_zero(text)
            else:
                order = list(reversed(range(len(self.spec.tensor(tensor).shape))))
                result = f"torch.permute(torch.permute({text}, {order}), {order})"
            text = f"v{len(self.lines)}"
            while text in self.names.values():
                text += "_"
            self.lines.append(f"{text} = {result}")
        return text


def add_zero(text: str) -> str:
    """The addition of ``reference.program.evaluate``: keeps every value but -0.0, and no matcher looks through it."""
    return f"torch.add({text}, 0)"


def _arguments(step: Lookup) -> tuple[int, bool, bool]:
    return step.padding_idx, step.scale_grad_by_freq, step.sparse


def _same_table(spec: ProgramSpec, one: Lookup, other: Lookup) -> bool:
    return spec.dequantize(one.table).weight == spec.dequantize(other.table).weight
