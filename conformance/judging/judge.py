"""The judge: one oracle a stage, and the verdict on what a subject did.

Source: docs/contract.md; each oracle names its section.
"""

import functools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from conformance.case.case import Case, Dispatch, EndToEnd, Program, Quantization, Question, Table
from conformance.case.model import Model
from conformance.case.operands import Operands, operands, table_values
from conformance.harness.observation import (
    Arrays,
    Facts,
    File,
    Graph,
    Observation,
    Raised,
    Refused,
    Unsupported,
    digest,
)
from conformance.judging import compare, export, lowered, models, tables
from conformance.results.mismatch import (
    ArrayMismatch,
    DecisionMismatch,
    DtypeShapeMismatch,
    Mismatch,
    Mutated,
    RaisedMismatch,
    as_data,
    signature,
)
from conformance.results.verdict import ERROR, FAIL, PASS, UNSUPPORTED, Outcome, Verdict
from conformance.serialize import unstructure
from reference.arithmetic.accept import HOST, AcceptSet, FloatModes, accept_products
from reference.arithmetic.bfloat16 import dtype_name
from reference.program.evaluate import evaluate
from reference.program.fusibility import REASONS, violations
from reference.program.spec import Dequantize, Linear, Lookup, ProgramSpec
from reference.program.values import tensor_values, values_array
from reference.table import layouts
from reference.table.quantize import quantize_hqq, quantize_no_clipping, quantize_symmetric

#: The reason in the signature of a refusal for which the subject gives none.
NO_REASON = "no_reason"
#: Characters of a reason, which may be a subject's own.
_LONGEST = 2000
_PACKERS = {"flat": layouts.pack_flat, "linear_weight": layouts.pack_linear_weight, "blocks": layouts.pack_blocks}
_QUANTIZERS = {
    "symmetric": quantize_symmetric,
    "no_clipping": quantize_no_clipping,
    "hqq": quantize_hqq,
    "qat": quantize_symmetric,  # what is trained is the float table; converting quantizes it as ever
}


#: What an oracle returns: the first mismatch (None: right), and whether the strict set holds (None: there is none).
Judgement = tuple[Mismatch | None, bool | None]


def verdict_on(
    case: Case,
    subject: str,
    outcome: Outcome,
    mismatch: Mismatch | None = None,
    *,
    reason: str = "",
    strict: bool | None = None,
    digest: str = "",
    facts: Facts | None = None,
) -> Verdict:
    """Return a verdict on ``subject``'s answer to ``case``; a mismatch gives its signature and reason."""
    return Verdict(
        case=case.id,
        stage=case.stage,
        subject=subject,
        outcome=outcome,
        signature=signature(case.stage, mismatch) if mismatch else "",
        reason=(str(mismatch) if mismatch else reason)[:_LONGEST],
        mismatch=as_data(mismatch) if mismatch else None,
        strict=strict,
        digest=digest,
        facts=unstructure(facts) if facts else {},
        contract=case.contract,
    )


def judge(case: Case, observation: Observation, subject: str) -> Verdict:
    """Return the verdict on ``observation``, an answer of ``subject`` to ``case``."""
    facts = observation.facts if isinstance(observation, Arrays | Graph | File) else None
    answer = digest(observation) if isinstance(observation, Arrays | Graph) else ""
    verdict = functools.partial(verdict_on, case, subject, digest=answer, facts=facts)
    if isinstance(observation, Unsupported):
        declined = verdict(UNSUPPORTED, reason=observation.reason)
        return replace(declined, facts={"of_device": True}) if observation.of_device else declined
    if isinstance(observation, Raised):
        reason = f"{observation.type}@{observation.where}" if observation.where else observation.type
        raised = RaisedMismatch(observation.type, observation.message, reason, observation.signal)
        return verdict(ERROR if observation.trouble else FAIL, raised)
    if isinstance(observation, Refused):
        if _may_refuse(case.question, observation):
            return verdict(PASS, reason=f"refused: {observation.detail}")
        message = f"{observation.reason}: {observation.detail}"
        refused = RaisedMismatch("Refused", message, observation.reason or NO_REASON)
        return verdict(FAIL, refused)
    oracle, kind = _ORACLES[case.stage]
    bad = f"{case.stage} answers with {kind.__name__}" if not isinstance(observation, kind) else ""
    if isinstance(case.question, Dispatch | EndToEnd) and isinstance(observation, Arrays):
        bad = bad or _silence(observation.facts)
    if bad:
        return verdict(ERROR, RaisedMismatch("BadObservation", bad, "BadObservation"))
    mismatch, strict = oracle(case.question, observation)
    return verdict(FAIL if mismatch else PASS, mismatch, strict=strict)


def _silence(facts: Facts) -> str:
    """What a KERNEL answer has to say of its arithmetic, and does not (contract 3.4)."""
    if facts.arithmetic == "host" or (facts.execution_modes is not None and facts.precise is not None):
        return ""
    return (
        'a KERNEL answer says how it was computed: facts {"arithmetic": "host"}, or what its shader declares, '
        '{"execution_modes": (...), "precise": ...}, () and False where that is nothing'
    )


def _may_refuse(question: Question, refused: Refused) -> bool:
    """Whether refusing is right: an index outside (7.3), a limit by name (7.5), force_fp16 (3.7), max_norm (6.2)."""
    if isinstance(question, Dispatch) and refused.reason == "index_outside":
        indices = operands(question).indices
        return bool(((indices < 0) | (indices >= question.vocab_size)).any())
    if isinstance(question, Dispatch):
        return refused.reason == "device_limit" and refused.limit == question.exceeds_limit != ""
    if isinstance(question, Model):
        return question.refused != "" and refused.reason == "not_carried" and question.refused in refused.detail
    if isinstance(question, Program) and refused.reason == "not_carried":
        return bool(refused.detail.strip()) and any(getattr(s, "max_norm", 0) for s in question.spec.lookups())
    return isinstance(question, Program) and question.force_fp16 and refused.reason == "force_fp16"


def _quantize(question: Quantization, observation: Arrays) -> Judgement:
    """Contract 4: torchao's codes, scales and zero points, bit for bit."""
    q = question
    weights = values_array(q.values, q.dtype, (q.vocab_size, q.embed_dim))
    codes, scales, zero_points = _QUANTIZERS[q.method](weights, q.group_size)
    for name, right in {"scale": scales, "qdata": codes, "zero_point": zero_points}.items():
        if name not in observation.arrays:
            return DtypeShapeMismatch(name, "an array", "missing", "missing"), None
        if wrong := compare.same_bits(name, observation.arrays[name], right):
            return wrong, None
    return None, None


def _match(question: Program, graph: Graph) -> Judgement:
    """Contract 5: decisions as the predicate has them, the original's bits, nothing touched, stable."""
    wrong = (
        _decisions(question.spec, graph)
        or tables.judge_operands(graph)
        or _outputs(question.spec, graph)
        or tables.judge_reads(question.spec, graph.read, {d.lookup for d in graph.decisions if d.fused})
        or lowered.written_tensors(question.spec, graph.written)
        or lowered.at_other_sizes(question.spec, graph, _outputs)
        or next((Mutated(name, "source") for name in graph.changed), None)
        or next((Mutated(name, "second_run") for name in graph.unstable), None)
    )
    return wrong, None


def _decisions(spec: ProgramSpec, graph: Graph) -> Mismatch | None:
    expected = violations(spec)
    got = {d.lookup: d for d in graph.decisions}
    for lookup, reasons in expected.items():
        why = " and ".join(sorted(reasons))
        if lookup not in got:
            return DecisionMismatch(lookup, f"refused ({why})" if reasons else "fused", "no decision", "undecided")
        decision = got[lookup]
        if decision.fused and reasons:
            return DecisionMismatch(lookup, f"refused ({why})", "fused", f"undue_fusion:{min(reasons)}")
        if not decision.fused and not reasons:
            refused = f"refused ({decision.reason or 'no reason given'}: {decision.detail})"
            given = decision.reason if decision.reason in REASONS else "own_words" if decision.reason else NO_REASON
            return DecisionMismatch(lookup, "fused", refused, f"missed_fusion:{given}")
        if decision.reason in REASONS and decision.reason not in reasons:
            return DecisionMismatch(lookup, f"refused ({why})", f"refused ({decision.reason})", "wrong_reason")
        if reasons and decision.reason is not None and not decision.reason.strip():
            return DecisionMismatch(lookup, f"refused ({why})", "refused, without a reason", NO_REASON)
    return None


def _outputs(spec: ProgramSpec, graph: Graph) -> ArrayMismatch | DtypeShapeMismatch | None:
    """Every output: the reference's bits, or for a linear those of the program that was not rewritten (5.7).

    A linear of other bits was rewritten, for a delegate: contract 3.6 bounds it.
    """
    expected, groups = evaluate(spec), _group_sizes(spec)
    linear = {s.name: s for s in spec.steps if isinstance(s, Linear)}
    for name in spec.outputs():
        right = graph.source_outputs[name] if name in linear or name not in expected else expected[name]
        if name not in graph.outputs:
            why = graph.failed.get(name, "missing")
            return DtypeShapeMismatch(name, f"{dtype_name(right)}{list(right.shape)}", why, "missing")
        wrong: ArrayMismatch | DtypeShapeMismatch | None
        wrong = compare.same_bits(name, graph.outputs[name], right, groups.get(name, 0))
        if name in linear and isinstance(wrong, ArrayMismatch) and dtype_name(right) in {"float32", "float16"}:
            tensors = {**tensor_values(spec), **expected, **graph.outputs}
            wrong = lowered.judge_linear(spec, linear[name], graph.outputs[name], tensors, HOST)
        if wrong:
            return wrong
    return None


def _group_sizes(spec: ProgramSpec) -> dict[str, int]:
    """Columns that share a scale, by lookup, for the picture of a mismatch."""
    blocks = {s.name: s.block_size for s in spec.steps if isinstance(s, Dequantize)}
    return {s.name: blocks[s.table][-1] for s in spec.steps if isinstance(s, Lookup) and blocks[s.table]}


def _pack(table: Table, observation: Arrays) -> Judgement:
    """Contract 1: flat and linear-weight bytes, and the blocks that the GPU reads."""
    name = "blocks" if table.layout == "blocks" else "packed"
    if name not in observation.arrays:
        return DtypeShapeMismatch(name, "an array", "missing", "missing"), None
    packed, values = observation.arrays[name], table_values(table)
    right = _PACKERS[table.layout](values)
    fences = _fences(name, packed, observation.facts)
    return fences or compare.same_codes(name, packed, right, values, table.layout), None


def judge_kernel(question: Dispatch | EndToEnd, observation: Arrays) -> Judgement:
    """Contract 7 and 3: the accept set of what the shader declares; fences whole; every element written."""
    if "out" not in observation.arrays:
        return DtypeShapeMismatch("out", "an array", "missing", "missing"), None
    facts, read, out = observation.facts, operands(question), observation.arrays["out"]
    shape = (*read.indices.shape, read.values.shape[1])
    wrong = compare.dtype_shape("out", out, question.output_dtype, shape) or _fences("out", out, facts)
    if wrong:
        return wrong, None
    declared = replace(facts, io_storage=question.io_storage)  # what the case asked for, whatever an answer says
    modes = HOST if facts.arithmetic == "host" else compare.float_modes(declared)
    strict = bool(_accept(read, question.output_dtype, HOST).contains(out).all())
    return compare.accepted("out", out, _accept(read, question.output_dtype, modes), read.group_size), strict


def _fences(name: str, got: Any, facts: Facts) -> Mutated | ArrayMismatch | None:
    """Contract 7.4: the guard bands are whole, and every element of the output was written."""
    if facts.damage:
        return Mutated(f"guard band ({facts.damage})", "guard_band")
    # An element whose two runs differ was not reliably written either.
    unwritten = facts.unstable if facts.unwritten is None else facts.unwritten
    if unwritten is not None:
        index = tuple(int(i) for i in np.unravel_index(unwritten, got.shape))
        return ArrayMismatch(name, index, "never written", ("any allowed value",), 1, got.size, "unwritten")
    return None


def _accept(read: Operands, output_dtype: str, modes: FloatModes) -> AcceptSet:
    """Accept sets of a lookup; rows of indices outside [0, V) are NaN (contract 7.3)."""
    values, scales = read.values, read.scales_by_column()
    outside = (read.indices < 0) | (read.indices >= values.shape[0])
    rows = np.where(outside, 0, read.indices).astype(np.int64)
    if not values.shape[0]:  # every index is outside: any row will do
        values, scales = np.zeros((1, values.shape[1]), np.int8), np.ones((1, values.shape[1]), scales.dtype)
    accept = accept_products(values[rows], scales[rows], output_dtype, modes)
    nan = accept.any_nan | outside[..., None]
    return replace(accept, any_nan=nan, unconstrained=accept.unconstrained & ~outside[..., None])


_ORACLES: dict[str, tuple[Callable[[Any, Any], Judgement], type[Arrays | Graph | File]]] = {
    "QUANTIZE": (_quantize, Arrays),
    "EXPORT": (lambda question, graph: (export.judge_export(question.spec, graph), None), Graph),
    "MATCH": (_match, Graph),
    "PACK": (_pack, Arrays),
    "LOWER": (lambda question, file: (lowered.judge_lower(question, file), None), File),
    "PREPACK": (_pack, Arrays),
    "KERNEL": (judge_kernel, Arrays),
    "RUN": (
        lambda question, graph: (
            models.judge_model(question, graph)
            if isinstance(question, Model)
            else lowered.judge_run(question.spec, graph)
        ),
        Graph,
    ),
}
