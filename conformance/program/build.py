"""The program builder: a ProgramSpec becomes a torch program in the edge dialect.

Source: docs/contract.md section 4.
"""

import contextlib
import functools
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch

from conformance.harness.observation import Facts
from conformance.program.lookups import hidden_lookup, lookups_behind
from conformance.program.tensors import Array, all_tensors, identifiers, to_torch, user_inputs
from reference.program.sizes import other_sizes
from reference.program.spec import Dequantize, Lookup, ProgramSpec
from reference.program.values import tensor_values


@dataclass(frozen=True)
class EdgeForm:
    """A program in the edge dialect: ``program``, nodes by step and placeholders by tensor, as in BuiltProgram."""

    program: Any
    nodes: Mapping[str, str]
    placeholders: Mapping[str, tuple[str, ...]]


@dataclass(frozen=True)
class BuiltProgram:
    """A spec as a program.

    Attributes:
        spec: what it was built from.
        edge: the program in the edge dialect, made once.
        inputs: the user inputs, in order, as plain tensors.
        outputs: step name -> position among the user outputs.
        module: the caller's module (None on route "synthetic").
        exported: what torch.export made, in the ATen dialect (None on route "synthetic").
        facts: provenance: "route", and "tensor_type", "quantized_by", "exported_by", "edge_by" where they apply; and
            how long building took.
    """

    spec: ProgramSpec
    edge: Callable[[], EdgeForm]
    inputs: tuple[Any, ...]
    outputs: Mapping[str, int]
    module: Any = None
    exported: Any = None
    facts: Facts = field(default_factory=Facts)

    @property
    def program(self) -> Any:
        """The ExportedProgram in the edge dialect."""
        return self.edge().program

    @property
    def nodes(self) -> Mapping[str, str]:
        """Step name -> name of the graph node that yields its value."""
        return self.edge().nodes

    @property
    def placeholders(self) -> Mapping[str, tuple[str, ...]]:
        """Tensor name -> names of the placeholders that bring it in (none where nothing reads it)."""
        return self.edge().placeholders


def build(spec: ProgramSpec, *, edge: bool = True) -> BuiltProgram:
    """Build a valid spec by its own route; its edge form, which is most of the time, later where it may wait.

    Raises:
        ValueError: the route cannot express the spec; says why.
    """
    started = time.perf_counter()
    built = _build(spec)
    if edge:
        built.edge()
    return replace(built, facts=replace(built.facts, build_seconds=round(time.perf_counter() - started, 4)))


def _build(spec: ProgramSpec) -> BuiltProgram:
    values = tensor_values(spec)
    inputs = tuple(to_torch(values[t.name]) for t in user_inputs(spec))
    outputs = {name: position for position, name in enumerate(spec.outputs())}
    if spec.route == "synthetic":
        from conformance.program.synthetic import synthetic_program  # noqa: PLC0415 - loads executorch, which takes seconds

        synthetic = synthetic_program(spec, values)
        facts = Facts(provenance={"route": "synthetic"})
        form = EdgeForm(synthetic.program, synthetic.nodes, synthetic.placeholders)
        return BuiltProgram(spec, lambda: form, inputs, outputs, facts=facts)
    return _through_export(spec, values, inputs, outputs)


def _through_export(
    spec: ProgramSpec, values: dict[str, Array], inputs: tuple[Any, ...], outputs: dict[str, int]
) -> BuiltProgram:
    from executorch.exir import EdgeCompileConfig, to_edge  # noqa: PLC0415 - takes seconds

    from conformance.program.module import make_module  # noqa: PLC0415 - with it

    embeddings: dict[str, Any] | None = None
    provenance = {"route": spec.route}
    if spec.route == "torchao":
        from conformance.program.torchao import provenance_of, quantized_embeddings, unwrap_all  # noqa: PLC0415 - takes seconds

        embeddings = quantized_embeddings(spec)
        provenance |= provenance_of(embeddings)
    parts = _part_pointers(embeddings or {})
    module = make_module(spec, values, embeddings)
    if spec.unwrap and embeddings:
        unwrap_all(module)
        provenance["unwrapped_by"] = "torchao.utils.unwrap_tensor_subclass"
    # torch.export does not accept a renorm of its own making as a core operator: the caller has to name it.
    renorm = [torch.ops.aten.embedding_renorm.default]
    with warnings.catch_warnings(), small_programs():
        warnings.simplefilter("ignore")  # notes of torch and executorch about their own internals
        exported = torch.export.export(
            module, _example(spec, inputs), dynamic_shapes=_dynamic_shapes(spec), strict=spec.strict
        )
    provenance |= {
        "exported_by": f"torch.export.export(strict={spec.strict})",
        "edge_by": "executorch.exir.to_edge",
    }

    @functools.cache
    def edge() -> EdgeForm:
        with warnings.catch_warnings(), small_programs():
            warnings.simplefilter("ignore")  # as above
            form = to_edge(exported, compile_config=EdgeCompileConfig(_core_aten_ops_exception_list=renorm))
        program = form.exported_program()
        return EdgeForm(program, step_nodes(spec, program), _placeholders(spec, program, parts))

    return BuiltProgram(spec, edge, inputs, outputs, module, exported, Facts(provenance=provenance))


_listed: dict[frozenset[str], Any] = {}


@contextlib.contextmanager
def small_programs() -> Iterator[None]:
    """While open, torch spares two things that take half of the time of exporting such small programs.

    It lists its composite operators once for each set of registrations, not on every use; and a kernel for a dispatch
    key is registered without evaluating annotations, thousands of times. Only the suite's own exports run while this
    is open: a subject's own code meets torch as it is. With a torch that is built otherwise the first does nothing.

    Source: torch/_export/utils.py, ``_collect_all_valid_cia_ops``; torch/_ops.py, ``OperatorBase.py_impl``, 2.13.0.
    """
    from torch._C import DispatchKey  # noqa: PLC0415 - with torch.export
    from torch._export import utils  # noqa: PLC0415 - the same
    from torch._ops import OperatorBase  # noqa: PLC0415 - the same
    from torch.export import decomp_utils, exported_program  # noqa: PLC0415 - the same

    name, register = "_collect_all_valid_cia_ops", OperatorBase.py_impl
    collect = getattr(utils, name, None)

    def remembered() -> Any:
        key = frozenset(torch._C._dispatch_get_registrations_for_dispatch_key("CompositeImplicitAutograd"))  # noqa: SLF001 - as torch asks
        if key not in _listed:
            _listed[key] = collect()  # type: ignore[misc]  # not None: there are no users then
        return _listed[key]

    def plainly(self: Any, key: Any) -> Any:
        if type(key) is not DispatchKey or key == DispatchKey.Python or key in self.py_kernels:
            return register(self, key)

        def keep(kernel):  # type: ignore[no-untyped-def]  # noqa: ANN001, ANN202 - annotations are what it spares
            self.py_kernels[key] = kernel
            self._dispatch_cache.clear()
            return kernel

        return keep

    with contextlib.ExitStack() as stack:
        stack.callback(setattr, OperatorBase, "py_impl", register)
        OperatorBase.py_impl = plainly
        for module in (decomp_utils, exported_program):
            if collect is not None and getattr(module, name, None) is collect:
                stack.callback(setattr, module, name, collect)
                setattr(module, name, remembered)
        yield


def _example(spec: ProgramSpec, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    """What to trace with: the inputs, but sizes 0 and 1 of dynamic dimensions, which export would fix, become 3."""
    examples = []
    for tensor, value in zip(user_inputs(spec), inputs, strict=True):
        shape = [3 if d in tensor.dynamic and n < 2 else n for d, n in enumerate(tensor.shape)]  # noqa: PLR2004 - sizes 0, 1
        examples.append(value if tuple(shape) == tensor.shape else torch.zeros(shape, dtype=value.dtype))
    return tuple(examples)


def _dynamic_shapes(spec: ProgramSpec) -> tuple[Any, ...] | None:
    inputs = user_inputs(spec)
    if not any(t.dynamic for t in inputs):
        return None
    free = torch.export.Dim.DYNAMIC
    return tuple(dict.fromkeys(t.dynamic, free(max=t.bound) if t.bound else free) or None for t in inputs)


def other_inputs(built: BuiltProgram, *, lowered: bool = False) -> dict[str, tuple[Any, ...]]:
    """Return the user inputs at other sizes of the symbolic dimensions (``reference.program.sizes``), by size."""
    return {size: _inputs(spec) for size, spec in other_sizes(built.spec, lowered=lowered).items()}


def _inputs(spec: ProgramSpec) -> tuple[Any, ...]:
    values = tensor_values(spec)
    return tuple(to_torch(values[t.name]) for t in user_inputs(spec))


def _part_pointers(embeddings: dict[str, Any]) -> dict[int, str]:
    """Which table part lives at which address; torchao's tensors keep theirs through export."""
    return {
        getattr(embedding.weight, part).data_ptr(): f"{table}.{part}"
        for table, embedding in embeddings.items()
        for part in ("qdata", "scale", "zero_point")
    }


def _placeholders(spec: ProgramSpec, program: Any, parts: dict[int, str]) -> dict[str, tuple[str, ...]]:
    identifier = {v: k for k, v in identifiers(spec).items()}
    placeholders: dict[str, list[str]] = {t.name: [] for t in all_tensors(spec)}
    inputs = iter(user_inputs(spec))
    constants = {**program.constants, **program.state_dict}
    for entry in program.graph_signature.input_specs:
        if entry.target is None:
            placeholders[next(inputs).name].append(entry.arg.name)
            continue
        name = identifier.get(entry.target) or parts.get(constants[entry.target].data_ptr())
        if name in placeholders:
            placeholders[name].append(entry.arg.name)
    return {name: tuple(nodes) for name, nodes in placeholders.items()}


def step_nodes(spec: ProgramSpec, program: Any) -> dict[str, str]:
    """Find each step's node: an output's own, and for a Dequantize what its first reader reads."""
    by_name = {n.name: n for n in program.graph.nodes}
    user_outputs = list(program.graph_signature.user_outputs)
    nodes = dict(zip(spec.outputs(), user_outputs, strict=True))
    for lookup in spec.lookups():
        if lookup.name not in nodes:
            behind = hidden_lookup(spec, lookup.name, lambda step: lookups_behind(by_name[nodes[step]]))
            if behind is None:
                raise ValueError(f"lookup {lookup.name!r}: the export folded it, or lost it")
            nodes[lookup.name] = behind.name
    for step in spec.steps:
        if isinstance(step, Dequantize):
            readers = [s for s in spec.steps if step.name in {getattr(s, "table", None), getattr(s, "of", None)}]
            if readers:
                node = by_name[nodes[readers[0].name]]
                nodes[step.name] = _back_to_dequantize(node, linear=not isinstance(readers[0], Lookup))
    return nodes


def _back_to_dequantize(node: Any, *, linear: bool) -> str:
    """Follow the table operand back: the last one of a linear's mm, the first one of everything else."""
    while "dequantize_affine" not in str(node.target):
        tensors = node.all_input_nodes
        if not tensors:
            raise ValueError(f"no dequantize_affine stands before {node.name}: the export folded it, or lost it")
        node = tensors[-1] if linear and "mm" in str(node.target) else tensors[0]
    return str(node.name)
