"""Bisection over stages: every hand-over of one case against its oracle; the first that is wrong is the culprit's.

A case of one stage is turned into a case of every other stage that its program, table or dispatch says enough for.

Source: docs/bisecting.md.
"""

import tempfile
from dataclasses import replace
from pathlib import Path

from conformance.bisect import commands
from conformance.bisect.search import SearchEnded, ask, check_harness
from conformance.case.case import STAGES, Case, Dispatch, EndToEnd, Program, Quantization, Question, Table
from conformance.case.operands import operands, table_step
from conformance.files import say
from conformance.harness.worker import Worker
from conformance.results.verdict import PASS, UNSUPPORTED, Verdict
from reference.program.spec import ProgramSpec, Values

_FLOATS = ("float32", "float16")


def siblings(case: Case) -> tuple[Case, ...]:
    """Return the case at every stage that can be derived from it, in hand-over order, itself among them."""
    cases = {case.stage: case}

    def add(stage: str, question: Question) -> None:
        cases.setdefault(stage, replace(case, id=f"{case.id}/{stage.lower()}", stage=stage, question=question))

    spec = case.program
    if spec is not None:
        exported = () if spec.route == "synthetic" else ("EXPORT",)
        for stage in (*exported, "MATCH", "LOWER", "RUN"):
            add(stage, Program(spec))
        for t in spec.tables[:1]:  # the first lookup's, as with the dispatch below
            add("QUANTIZE", Quantization("symmetric", t.vocab_size, t.embed_dim, t.group_size, t.dtype, t.values))
        if (dispatch := _dispatch(spec)) is not None:
            add("KERNEL", dispatch)
    packable = case.question if isinstance(case.question, Table) else _table(cases.get("KERNEL"))
    if packable is not None:
        add("PACK", replace(packable, layout="flat" if packable.layout == "flat" else "linear_weight"))
        add("PREPACK", replace(packable, layout="blocks"))
    return tuple(cases[stage] for stage in STAGES if stage in cases)


def culprit(verdicts: list[Verdict]) -> Verdict | None:
    """Return the first verdict that is wrong.

    MATCH's outputs go through the packed bytes: where they are wrong and PACK is too, it is PACK's.
    """
    wrong = [v for v in verdicts if v.outcome not in {PASS, UNSUPPORTED}]
    if wrong and wrong[0].signature.startswith("MATCH/array"):
        return next((v for v in wrong if v.stage == "PACK"), wrong[0])
    return wrong[0] if wrong else None


def show(case: Case, subject: str, seconds: float, sought: str = "", repeat: int = 1) -> int:
    """Print every stage's verdict and the culprit; 0 where one is found. The case must fail as ``sought``, if given."""
    cases = {one.stage: one for one in siblings(case)}
    with Worker(subject, seconds) as worker:
        verdicts = {stage: ask(worker, one, repeat) for stage, one in cases.items()}
    own = verdicts[case.stage]
    if sought and own.signature != sought:
        answer = f"{own.outcome} {own.signature}".strip()
        raise SearchEnded(
            f"{case.id} does not fail as recorded: {answer}; sought is {sought}: another failure, or none"
        )
    for stage, verdict in verdicts.items():
        say(f"  {stage:8} {verdict.outcome:11} {verdict.reason if verdict.outcome != PASS else ''}".rstrip())
    for stage in STAGES:
        if stage not in verdicts:
            say(f"  {stage:8} {'none':11} the case says nothing of this stage")
    bad = culprit(list(verdicts.values()))
    passed = [v for v in verdicts.values() if v.outcome == PASS]
    if bad is None:
        say(f"no stage is wrong: {len(passed)} judged, {len(verdicts) - len(passed)} unsupported")
        return 1
    check_harness(bad)
    folder = Path(tempfile.mkdtemp(prefix="q4gsw-stages-"))
    say(f"first bad: {bad.stage} ({bad.signature})")
    say(f"  what:      {bad.reason}")
    for good in [v for v in passed if STAGES.index(v.stage) < STAGES.index(bad.stage)][-1:]:
        say(f"  before:    {good.stage} PASS")
        say(f"  good by hand: {commands.replay_of(folder, cases[good.stage], good)}")
    say(f"  bad by hand:  {commands.replay_of(folder, cases[bad.stage], bad)}")
    return 0


def _dispatch(program: ProgramSpec) -> EndToEnd | None:
    """The dispatch of a program's first lookup, or None where no kernel has its dtypes."""
    for lookup in program.lookups()[:1]:
        step = table_step(program, lookup)
        scale, layout = program.tensor(step.scale).dtype, "flat" if step is lookup else "block"
        if scale in _FLOATS and step.output_dtype in _FLOATS:
            return EndToEnd(step.output_dtype, scale, layout, spec=program)
    return None


def _table(kernel: Case | None) -> Table | None:
    """The table that a KERNEL case looks up, with its very values; None where it has none that packs."""
    if kernel is None or not isinstance(kernel.question, Dispatch | EndToEnd):
        return None
    try:
        values = operands(kernel.question).values
    except (ValueError, KeyError):
        return None
    low, high = -8, 7
    if values.dtype != "int8" or not values.size or values.min() < low or values.max() > high or values.shape[1] % 2:
        return None
    layout = "flat" if kernel.question.weight_layout == "flat" else "linear_weight"
    return Table(values.shape[0], values.shape[1], Values("literal", data=values.tobytes().hex()), layout)
