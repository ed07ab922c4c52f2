"""ProgramSpec: what a program with quantized embeddings is, described without a graph.

A spec is the one thing that the program builder, the fusibility oracle and the value oracle
share. The builder turns it into a torch program, the oracles judge from the spec alone and never
read facts back from a graph. Everything here is frozen plain data; ``conformance.case.toml``
writes it to TOML and reads it back.

Order of execution is the order of ``steps``. A tensor is referred to by name; a quantized table
``emb`` provides the three tensors ``emb.qdata``, ``emb.scale`` and ``emb.zero_point``.

Source: docs/contract.md sections 1, 4 and 5.
"""

import dataclasses
import itertools
import keyword
import math
import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

SPEC_VERSION = 1

#: Where a tensor comes from in the program (contract 5.3, 5.4).
SOURCES = (
    "parameter",
    "buffer",
    "non_persistent",
    "lifted",  # a constant that torch.export lifts out of the forward method
    "input",  # the caller passes it at run time
    "computed",  # the program computes it from an input (input + 0)
    "mutated",  # a buffer that the program writes to
    "mutated_input",  # the caller passes it, and the program writes to it
)
#: Element types by their torch (and numpy) names; bfloat16 has no numpy type of its own.
DTYPES = ("int8", "uint8", "int16", "int32", "int64", "float16", "bfloat16", "float32", "float64")
#: The sources that are passed at run time.
PASSED = ("input", "computed", "mutated_input")
#: Operations that keep every value; ``weight_ops`` and friends hold a chain of them.
#: "add_zero" and "transpose_twice" keep values too, but are not identities the contract looks through.
IDENTITY_OPS = ("clone", "view")
OPAQUE_OPS = ("add_zero", "transpose_twice")
#: How the builder makes the torch program: a graph by hand, torch.export of a module that calls
#: the ops, or torchao's quantize_ on a real nn.Embedding followed by torch.export.
ROUTES = ("synthetic", "export", "torchao")
#: What an Apply step computes.
FUNCTIONS = ("mul", "add", "norm", "linear")
#: A program may come from a file: more elements, dimensions, or tensors, tables and steps are refused before anything
#: is allocated. The largest generated programs have about 2**25 elements.
MOST_ELEMENTS, MOST_DIMENSIONS, MOST_PARTS = 1 << 26, 8, 1000
Names = Collection[str]
_NAME = re.compile(r"(?!.*__)[A-Za-z][A-Za-z0-9_]{0,99}")


@dataclass(frozen=True)
class Values:
    """A tensor's content: a named pattern drawn from a seed, or literal bytes.

    ``pattern`` is a key of ``reference.program.values.PATTERNS``. ``low`` and ``high`` bound integer
    patterns, ``position`` and ``value`` serve "one_hot" (all ``low`` except one place), ``data``
    holds the hex of the little-endian row-major bytes of "literal".
    """

    pattern: str
    seed: int = 0
    low: int = 0
    high: int = 0
    position: int = 0
    value: float = 0.0
    data: str = ""


@dataclass(frozen=True)
class TensorSpec:
    """One tensor of the program. ``dynamic`` dimensions are exported as symbolic sizes, up to ``bound`` (0: any)."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    values: Values
    source: str = "buffer"
    dynamic: tuple[int, ...] = ()
    bound: int = 0


@dataclass(frozen=True)
class QuantizedTable:
    """A float table that torchao's weight-only int4 configuration quantizes (symmetric, int8 carrier).

    ``group_size`` 0 means per-axis (PerAxis(0)): one scale a row. ``dtype`` is the float table's
    type, and so the type of the scales and of what is dequantized.
    """

    name: str
    vocab_size: int
    embed_dim: int
    group_size: int
    values: Values
    dtype: str = "float32"


@dataclass(frozen=True)
class Dequantize:
    """torchao.dequantize_affine. ``zero_point`` "" means None."""

    name: str
    weight: str
    scale: str
    block_size: tuple[int, ...]
    zero_point: str = ""
    qmin: int = -8
    qmax: int = 7
    input_dtype: str = "int8"
    output_dtype: str = "float32"
    weight_ops: tuple[str, ...] = ()
    scale_ops: tuple[str, ...] = ()
    zero_point_ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Lookup:
    """aten.embedding on a dequantized table. ``max_norm`` 0 means none (no embedding_renorm_)."""

    name: str
    table: str
    indices: str
    table_ops: tuple[str, ...] = ()
    padding_idx: int = -1
    scale_grad_by_freq: bool = False
    sparse: bool = False
    max_norm: float = 0.0


@dataclass(frozen=True)
class PackedLookup:
    """quantized_decomposed.embedding_4bit.dtype: flat uint8 table, scales, zero point or ""."""

    name: str
    weight: str
    scale: str
    indices: str
    zero_point: str = ""
    qmin: int = -8
    qmax: int = 7
    output_dtype: str = "float32"
    weight_ops: tuple[str, ...] = ()
    scale_ops: tuple[str, ...] = ()


@dataclass(frozen=True)
class Linear:
    """aten.linear(x, table, bias): a tied ``lm_head`` when ``table`` is also looked up. ``bias`` "" is none.

    ``x`` is a tensor, or an earlier step.
    """

    name: str
    table: str
    x: str
    bias: str = ""


@dataclass(frozen=True)
class Apply:
    """What a model does with rows that it looked up, or with indices before it does.

    ``of`` is a tensor, a lookup or an earlier Apply. ``function``: "mul" by ``number``; "add" of ``other`` (a tensor or
    such a step, whose shape broadcasts to that of ``of``); "norm", a layer norm over the last axis with the weight
    ``other``; "linear" with the weight ``other`` [N, K]. The last two may have a ``bias``.
    """

    name: str
    of: str
    function: str
    number: float = 0.0
    other: str = ""
    bias: str = ""


@dataclass(frozen=True)
class Read:
    """Another consumer: returns ``of`` (a tensor or a dequantized table) cloned, as an output."""

    name: str
    of: str


Step = Dequantize | Lookup | PackedLookup | Linear | Apply | Read
#: The ``op`` that names each step in TOML.
STEP_TYPES: dict[str, type[Step]] = {
    "dequantize": Dequantize,
    "lookup": Lookup,
    "packed_lookup": PackedLookup,
    "linear": Linear,
    "apply": Apply,
    "read": Read,
}


@dataclass(frozen=True)
class ProgramSpec:
    """A whole program: its tensors, its quantized tables and the steps over them, in order.

    Every step but a Dequantize is an output of the program, in step order, unless it is ``hidden``: a lookup or an
    Apply that only other steps read. ``unwrap`` applies torchao's unwrap_tensor_subclass before export (route
    "torchao" only). ``strict`` is torch.export's own switch.
    """

    steps: tuple[Step, ...]
    tensors: tuple[TensorSpec, ...] = ()
    tables: tuple[QuantizedTable, ...] = ()
    route: str = "synthetic"
    unwrap: bool = False
    strict: bool = False
    hidden: tuple[str, ...] = ()
    version: int = SPEC_VERSION

    def outputs(self) -> tuple[str, ...]:
        """Names of the steps whose value the program returns, in order."""
        return tuple(s.name for s in self.steps if not isinstance(s, Dequantize) and s.name not in self.hidden)

    def lookups(self) -> tuple[Lookup | PackedLookup, ...]:
        """The steps that a matcher has to decide on, in order."""
        return tuple(s for s in self.steps if isinstance(s, Lookup | PackedLookup))

    def lookups_behind(self, name: str) -> tuple[str, ...]:
        """Names of the lookups that a step's value is made of, itself included, in the order of its operands."""
        step = next((s for s in self.steps if s.name == name), None)
        if isinstance(step, Lookup | PackedLookup):
            return (name,)
        operands = [getattr(step, field, "") for field in ("x", "of", "other")]
        return tuple(dict.fromkeys(itertools.chain.from_iterable(self.lookups_behind(o) for o in operands if o)))

    def tensor(self, name: str) -> TensorSpec:
        """The named tensor; a quantized table's parts are derived here. Of an Apply on indices: that which it is on.

        Raises:
            KeyError: there is none.
        """
        for tensor in itertools.chain(self.tensors, *map(table_parts, self.tables)):
            if tensor.name == name:
                return tensor
        for step in self.steps:
            if isinstance(step, Apply) and step.name == name:
                return self.tensor(step.of)
        raise KeyError(f"the spec has no tensor {name!r}")

    def dequantize(self, name: str) -> Dequantize:
        """The named Dequantize step. KeyError where there is none."""
        for step in self.steps:
            if isinstance(step, Dequantize) and step.name == name:
                return step
        raise KeyError(f"the spec has no dequantize step {name!r}")


def table_parts(table: QuantizedTable) -> tuple[TensorSpec, TensorSpec, TensorSpec]:
    """The three tensors that quantizing ``table`` yields: int8 qdata, scales, int8 zero point.

    Their values carry the pattern "quantized"; ``reference.program.values`` computes them from the float
    table with torchao's arithmetic.
    """
    groups = table.embed_dim // (table.group_size or table.embed_dim)
    derived = Values("quantized")
    shape = (table.vocab_size, groups)
    return (
        TensorSpec(f"{table.name}.qdata", "int8", (table.vocab_size, table.embed_dim), derived, "parameter"),
        TensorSpec(f"{table.name}.scale", table.dtype, shape, derived, "parameter"),
        TensorSpec(f"{table.name}.zero_point", "int8", shape, derived, "parameter"),
    )


def validate(spec: ProgramSpec) -> None:
    """Check that a spec is well formed: names, references, dtypes, sources, ops, and sizes that fit into memory.

    Raises:
        ValueError: names the first offending tensor or step, what is wrong and what is allowed.
    """
    if spec.version != SPEC_VERSION:
        raise ValueError(f"spec version {spec.version} is not {SPEC_VERSION}")
    _one_of("program", "route", spec.route, ROUTES)
    if (parts := len(spec.tensors) + len(spec.tables) + len(spec.steps)) > MOST_PARTS:
        raise ValueError(f"program: {parts} tensors, tables and steps; at most {MOST_PARTS} are allowed")
    known: set[str] = set()
    for tensor in spec.tensors:
        where = f"tensor {tensor.name!r}"
        _unique(where, tensor.name, known)
        _one_of(where, "dtype", tensor.dtype, DTYPES)
        _one_of(where, "source", tensor.source, SOURCES)
        check_sizes(where, tensor.shape)
        if any(d not in range(len(tensor.shape)) for d in tensor.dynamic):
            raise ValueError(f"{where}: shape {tensor.shape} with dynamic dimensions {tensor.dynamic} cannot be")
        if tensor.bound and not tensor.bound >= max(
            (tensor.shape[d] for d in tensor.dynamic), default=tensor.bound + 1
        ):
            raise ValueError(f"{where}: bound {tensor.bound} is not of symbolic sizes that are at most that")
        check_sizes(where, tuple(max(n, tensor.bound) for n in tensor.shape))
    for table in spec.tables:
        where = f"table {table.name!r}"
        _unique(where, table.name, known)
        _one_of(where, "dtype", table.dtype, DTYPES)
        check_sizes(where, (table.vocab_size, table.embed_dim))
        if table.group_size < 0 or (table.group_size and table.embed_dim % table.group_size):
            raise ValueError(f"{where}: group_size {table.group_size} does not divide embed_dim {table.embed_dim}")
    every = (*spec.tensors, *itertools.chain(*map(table_parts, spec.tables)))
    tensors = {tensor.name: tensor.shape for tensor in every}
    _check_steps(spec, tensors, known)


def _check_steps(spec: ProgramSpec, tensors: Mapping[str, tuple[int, ...]], known: set[str]) -> None:
    """Each step may refer to what stands before it; ``known`` are the names that are taken."""
    elements, dequantized = sum(map(math.prod, tensors.values())), dict[str, tuple[int, ...]]()
    computed = dict[str, tuple[int, ...]]()
    for step in spec.steps:
        where = f"step {step.name!r}"
        _unique(where, step.name, known)
        _check_step(where, step, tensors, dequantized, computed)
        shapes = {**tensors, **dequantized, **computed}
        elements += _elements(step, shapes)
        if isinstance(step, Dequantize):
            dequantized[step.name] = tensors[step.weight]
        elif not isinstance(step, Linear | Read):
            computed[step.name] = _shape(step, shapes)
            check_sizes(where, computed[step.name])
    check_elements("program", elements)
    read = {getattr(step, field, "") for step in spec.steps for field in ("x", "of", "other", "indices")}
    for name in spec.hidden:
        _one_of("program", "hidden", name, read & set(computed))


def check_sizes(where: str, shape: tuple[int, ...]) -> None:
    """Check that sizes are not negative and that memory holds an array of them; ValueError names ``where``."""
    if min(shape, default=0) < 0 or len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{where}: shape {shape} is not of at most {MOST_DIMENSIONS} sizes from 0 on")
    check_elements(where, math.prod(max(size, 1) for size in shape))


def check_elements(where: str, elements: int) -> None:
    """Check that memory holds so many elements; ValueError names ``where``."""
    if elements > MOST_ELEMENTS:
        raise ValueError(f"{where}: {elements} elements; at most {MOST_ELEMENTS} are allowed")


def _shape(step: Lookup | PackedLookup | Apply, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    """What a step yields."""
    if not isinstance(step, Apply):
        table = shapes[step.table] if isinstance(step, Lookup) else (*shapes[step.weight], 0, 0)
        return (*shapes[step.indices], *(table[1:2] if isinstance(step, Lookup) else (2 * table[1],)))
    return (*shapes[step.of][:-1], *shapes[step.other][:1]) if step.function == "linear" else shapes[step.of]


def _elements(step: Step, shapes: Mapping[str, tuple[int, ...]]) -> int:
    """At least as many elements as a step yields, its chains of ops included."""
    if isinstance(step, Apply):
        return math.prod(shapes[step.of]) + math.prod(_shape(step, shapes))
    if isinstance(step, Read):
        return math.prod(shapes[step.of])
    table = shapes[step.weight if isinstance(step, Dequantize | PackedLookup) else step.table]
    chains = sum(len(getattr(step, field.name)) for field in dataclasses.fields(step) if field.name.endswith("_ops"))
    elements = math.prod(table) * (1 + chains)
    if isinstance(step, Linear):
        return elements + math.prod(shapes[step.x]) + math.prod(shapes[step.x][:-1]) * max(table, default=1)
    return elements if isinstance(step, Dequantize) else elements + math.prod(_shape(step, shapes))


def _check_step(where: str, step: Step, tensors: Names, dequantized: Names, computed: Names) -> None:
    """Every name that a step refers to must exist before it, every other text be a word of its vocabulary."""
    values = {*tensors, *computed}
    words: dict[str, Collection[str]] = {
        **dict.fromkeys(("weight", "scale", "zero_point", "bias"), tensors),
        **dict.fromkeys(("indices", "x", "other"), values),
        "of": values if isinstance(step, Apply) else {*tensors, *dequantized},
        "table": dequantized,
        "function": FUNCTIONS,
    }
    optional = {"zero_point", "bias"} | ({"other"} if isinstance(step, Apply) and step.function == "mul" else set())
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if field.name in words and (value or field.name not in optional):
            _one_of(where, field.name, value, words[field.name])
        elif field.name.endswith("_ops"):
            for op in value:
                _one_of(where, field.name, op, IDENTITY_OPS + OPAQUE_OPS)
        elif field.name.endswith("_dtype"):
            _one_of(where, field.name, value, DTYPES)


def _unique(where: str, name: str, known: set[str]) -> None:
    if not _NAME.fullmatch(name) or keyword.iskeyword(name):
        raise ValueError(f"{where}: the name is no identifier: letters, digits and single underscores, no keyword")
    if name in known:
        raise ValueError(f"{where}: the name is used twice")
    known.add(name)


def _one_of(where: str, field: str, value: str, allowed: Collection[str]) -> None:
    if value not in allowed:
        raise ValueError(f"{where}: {field} {value!r} is not one of {', '.join(sorted(allowed))}")
