"""The oracle of stage EXPORT: the graph's form, what its steps read, and what it computes.

Source: docs/contract.md section 4, 3.6.
"""

from conformance.harness.observation import Graph
from conformance.judging import compare
from conformance.judging.lowered import at_other_sizes, judge_linear, written_tensors
from conformance.results.mismatch import DecisionMismatch, DtypeShapeMismatch, Mismatch
from reference.arithmetic.accept import HOST
from reference.arithmetic.bfloat16 import dtype_name
from reference.program.evaluate import evaluate
from reference.program.export_form import export_dynamic, export_forms, export_operands, export_tables
from reference.program.spec import Linear, ProgramSpec
from reference.program.values import tensor_values


def judge_export(spec: ProgramSpec, graph: Graph) -> Mismatch | None:
    """Return the first mismatch: an operator of another form, an operand of other bits, an output of other bits."""
    return (
        _forms(spec, graph)
        or _operands(spec, graph)
        or _outputs(spec, graph)
        or written_tensors(spec, graph.written)
        or at_other_sizes(spec, graph, _outputs)
    )


def _forms(spec: ProgramSpec, graph: Graph) -> Mismatch | None:
    for step, form in export_forms(spec).items():
        got = graph.forms.get(step, "no such node")
        if got != form:
            return DecisionMismatch(step, form, got, "form")
    for lookup, form in export_tables(spec).items():
        got = graph.tables.get(lookup, "no such node")
        if got != form:
            return DecisionMismatch(lookup, f"to read {form}", f"to read {got}", "table")
    for name, dimensions in export_dynamic(spec).items():
        symbolic = graph.dynamic.get(name)
        if symbolic != tuple(dimensions):
            got = "no such input" if symbolic is None else f"symbolic in {list(symbolic)}"
            return DtypeShapeMismatch(name, f"symbolic in {list(dimensions)}", got, "dynamic")
    return None


def _operands(spec: ProgramSpec, graph: Graph) -> Mismatch | None:
    expected = export_operands(spec)
    for name in graph.source_outputs:
        if name not in expected:
            return DtypeShapeMismatch(name, "absent", dtype_name(graph.source_outputs[name]), "made_up")
    for name, right in expected.items():
        if name not in graph.source_outputs:
            return DtypeShapeMismatch(name, f"{dtype_name(right)}{list(right.shape)}", "missing", "missing")
        if wrong := compare.same_bits(name, graph.source_outputs[name], right):
            return wrong
    return None


def _outputs(spec: ProgramSpec, graph: Graph) -> Mismatch | None:
    expected = evaluate(spec)
    linear = {s.name: s for s in spec.steps if isinstance(s, Linear)}
    for name in spec.outputs():
        if name not in graph.outputs:
            why = graph.failed.get(name, "missing")
            return DtypeShapeMismatch(name, "an array", why, "missing")
        wrong: Mismatch | None = None
        if name in linear:
            wrong = _linear(spec, linear[name], graph)
        elif name in expected:
            wrong = compare.same_bits(name, graph.outputs[name], expected[name])
        if wrong is not None:
            return wrong
    return None


def _linear(spec: ProgramSpec, step: Linear, graph: Graph) -> Mismatch | None:
    """A linear's dtype and shape, and in float32 and float16 its values: no order of summing is the contract's."""
    tensors, table = {**tensor_values(spec), **evaluate(spec), **graph.outputs}, spec.dequantize(step.table)
    if table.output_dtype in {"float32", "float16"}:
        return judge_linear(spec, step, graph.outputs[step.name], tensors, HOST)
    shape = (*tensors[step.x].shape[:-1], tensors[table.weight].shape[0])
    return compare.dtype_shape(step.name, graph.outputs[step.name], table.output_dtype, shape)
