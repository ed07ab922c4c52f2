"""Bisection over stages: every hand-over of one case against its oracle; the first that is wrong is the culprit's.

A case of one stage is turned into a case of every other stage that its program, table or dispatch says enough for.

Source: docs/bisecting.md.
"""

import shlex
import tempfile
from dataclasses import replace
from pathlib import Path

from conformance.bisect.ask import ask, check_harness
from conformance.bisect.commits import SearchEnded
from conformance.case import operands
from conformance.case.case import STAGES, Case, Dispatch, EndToEnd, Program, Quantization, Question, Table
from conformance.harness.worker import Worker
from conformance.results import replay
from conformance.results.verdict import PASS, UNSUPPORTED, Verdict
from conformance.runs import run as runner
from reference.program.spec import Dequantize, Lookup, ProgramSpec, Values

_FLOATS = ("float32", "float16")


def siblings(case: Case) -> tuple[Case, ...]:
    """Return the case at every stage that can be derived from it, in hand-over order, itself among them."""
    found = {case.stage: case}

    def add(stage: str, question: Question) -> None:
        found.setdefault(stage, replace(case, id=f"{case.id}/{stage.lower()}", stage=stage, question=question))

    spec = case.program
    if spec is not None:
        exported = () if spec.route == "synthetic" else ("EXPORT",)
        for stage in (*exported, "MATCH", "LOWER", "RUN"):
            add(stage, Program(spec))
        for t in spec.tables[:1]:  # the first lookup's, as with the dispatch below
            add("QUANTIZE", Quantization("symmetric", t.vocab_size, t.embed_dim, t.group_size, t.dtype, t.values))
        if (dispatch := _dispatch(spec)) is not None:
            add("KERNEL", dispatch)
    packable = case.question if isinstance(case.question, Table) else _table(found.get("KERNEL"))
    if packable is not None:
        add("PACK", replace(packable, layout="flat" if packable.layout == "flat" else "linear_weight"))
        add("PREPACK", replace(packable, layout="blocks"))
    return tuple(found[stage] for stage in STAGES if stage in found)


def run(cases: tuple[Case, ...], subject: str, seconds: float, repeat: int = 1) -> list[Verdict]:
    """Return the verdict on each stage's case.

    Raises:
        SearchEnded: a case's ``repeat`` runs do not agree.
    """
    with Worker(subject, seconds) as worker:
        return [ask(worker, case, repeat) for case in cases]


def culprit(verdicts: list[Verdict]) -> Verdict | None:
    """Return the first verdict that is wrong.

    MATCH's outputs go through the packed bytes: where they are wrong and PACK is too, it is PACK's.
    """
    wrong = [v for v in verdicts if v.outcome not in {PASS, UNSUPPORTED}]
    if wrong and wrong[0].signature.startswith("MATCH/array"):
        return next((v for v in wrong if v.stage == "PACK"), wrong[0])
    return wrong[0] if wrong else None


def show(case: Case, subject: str, seconds: float, sought: str = "", repeat: int = 1) -> int:
    """Print every stage's verdict and the culprit; 0 where one is found.

    Raises:
        SearchEnded: the case does not fail as ``sought``, where that is given, a verdict is not unanimous, or a broken
            harness comes before any stage that is wrong.
    """
    cases = siblings(case)
    verdicts = run(cases, subject, seconds, repeat)
    own = next(v for v in verdicts if v.stage == case.stage)
    if sought and own.signature != sought:
        found = f"{own.outcome} {own.signature}".strip()
        raise SearchEnded(f"{case.id} does not fail as recorded: {found}; sought is {sought}: another failure, or none")
    subject = verdicts[0].subject
    folder = Path(tempfile.mkdtemp(prefix="q4gsw-stages-"))
    commands = {}
    for one, verdict in zip(cases, verdicts, strict=True):
        path = replay.write(folder, one, verdict, runner.versions())
        commands[one.stage] = f"python -m conformance replay {path} --subject {shlex.quote(subject)}"
        said = verdict.reason if verdict.outcome != PASS else ""
        print(f"  {one.stage:8} {verdict.outcome:11} {said}".rstrip())
    for stage in STAGES:
        if stage not in commands:
            print(f"  {stage:8} {'none':11} the case says nothing of this stage")
    bad = culprit(verdicts)
    if bad is not None:
        check_harness(bad)
    if bad is None:
        judged = sum(v.outcome == PASS for v in verdicts)
        print(f"no stage is wrong: {judged} judged, {len(verdicts) - judged} unsupported")
        return 1
    good = [v for v in verdicts if v.outcome == PASS and STAGES.index(v.stage) < STAGES.index(bad.stage)]
    print(f"first bad: {bad.stage} ({bad.signature})")
    print(f"  what:      {bad.reason}")
    if good:
        print(f"  before:    {good[-1].stage} PASS")
        print(f"  good by hand: {commands[good[-1].stage]}")
    print(f"  bad by hand:  {commands[bad.stage]}")
    return 0


def _dispatch(program: ProgramSpec) -> EndToEnd | None:
    """The dispatch of a program's first lookup, or None where no kernel has its dtypes."""
    if not program.lookups():
        return None
    lookup = program.lookups()[0]
    if isinstance(lookup, Lookup):
        step: Dequantize = program.dequantize(lookup.table)
        scale, output, layout = program.tensor(step.scale).dtype, step.output_dtype, "block"
    else:
        scale, output, layout = program.tensor(lookup.scale).dtype, lookup.output_dtype, "flat"
    if scale not in _FLOATS or output not in _FLOATS:
        return None
    return EndToEnd(output_dtype=output, scale_dtype=scale, weight_layout=layout, spec=program)


def _table(kernel: Case | None) -> Table | None:
    """The table that a KERNEL case looks up, with its very values; None where it has none that packs."""
    if kernel is None or not isinstance(kernel.question, Dispatch | EndToEnd):
        return None
    try:
        values = operands.operands(kernel.question).values
    except (ValueError, KeyError):
        return None
    low, high = -8, 7
    if values.dtype != "int8" or not values.size or values.min() < low or values.max() > high or values.shape[1] % 2:
        return None
    layout = "flat" if kernel.question.weight_layout == "flat" else "linear_weight"
    return Table(values.shape[0], values.shape[1], Values("literal", data=values.tobytes().hex()), layout)
