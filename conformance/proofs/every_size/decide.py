"""One shader in one setting: proven, refuted by a case, or undecided, with the reason.

Runs in a process of its own: z3's terms live in one context, and a proof has to have the same text wherever it is made.
"""

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

from conformance.case.case import Variant
from conformance.proofs.certificate import PROVEN, REFUTED, UNDECIDED
from conformance.proofs.every_size import refute
from conformance.proofs.every_size.claims import GROUPS, Failure
from conformance.proofs.every_size.contract import Lookup, Prepack, Setting, instances
from conformance.proofs.every_size.lookup import LookupClaims
from conformance.proofs.every_size.prepack import PrepackClaims
from conformance.proofs.every_size.refute import Question
from conformance.proofs.every_size.solve import FAILED, Solver
from conformance.proofs.every_size.spirv.explore import walk
from conformance.proofs.every_size.spirv.module import BadModule, Module, Unsupported, read

#: Image formats, SPIR-V specification 3.11.
_RGBA32F, _RGBA16F, _RGBA32I = 1, 2, 21
_LOCAL_SIZE = 25  # built-in WorkgroupSize, SPIR-V specification 3.21
#: What a shader is asked: a variant of the lookup, or the storage that a prepacking fills.
Form = Variant | str


@dataclass(frozen=True)
class Finding:
    """An obligation that does not hold, and the question that shows it, with what is wrong there."""

    group: str
    what: str
    question: Question | None = None
    wrong: str = ""

    @property
    def line(self) -> str:
        """In one line."""
        if self.question is None:
            return f"{self.group}: {self.what}"
        sizes = ", ".join(f"{name} {value}" for name, value in refute.describe(self.question).items())
        return f"{self.group}: not {self.what}: {sizes}: {self.wrong}"

    @property
    def shows(self) -> bool:
        """Whether every device has to show it: a wrong element or word, of a pipeline without sizes as constants."""
        return self.wrong.startswith(refute.VALUES) and not self.wrong.endswith(refute.KNOWN)


@dataclass(frozen=True)
class Decision:
    """What was found in one setting: an outcome for each group of obligations, how many these are, and their hash.

    ``seconds`` are the processor's.
    """

    setting: str
    groups: Mapping[str, str]
    findings: tuple[Finding, ...]
    obligations: int
    sha256: str
    sequences: tuple[str, ...]
    seconds: float

    def only(self, groups: Sequence[str]) -> "Decision":
        """What was found of some groups; of all where none is named."""
        if not groups:
            return self
        kept = {group: outcome for group, outcome in self.groups.items() if group in groups}
        # What is wrong with a shader that the argument does not reach concerns every group.
        findings = tuple(one for one in self.findings if one.group in groups or not self.obligations)
        return replace(self, groups=kept or self.groups, findings=findings)

    def doubting(self, doubted: Collection[Finding]) -> "Decision":
        """The same, but for findings that a device contradicts: they are no refutations, and the executor is wrong."""
        groups = {**self.groups, **{one.group: UNDECIDED for one in self.findings if one in doubted}}
        groups |= {one.group: REFUTED for one in self.findings if one.question is not None and one not in doubted}
        findings = tuple(
            Finding(one.group, f"ERROR: the executor is wrong, a device passes: {one.line}") if one in doubted else one
            for one in self.findings
        )
        return replace(self, groups=groups, findings=findings)

    @property
    def result(self) -> str:
        """PROVEN, REFUTED or UNDECIDED."""
        outcomes = set(self.groups.values())
        return REFUTED if REFUTED in outcomes else PROVEN if outcomes == {PROVEN} else UNDECIDED


def decide(spirv: bytes, form: Form, setting: Setting) -> Decision:
    """Prove or refute one module.

    Raises:
        BadModule: the bytes are no SPIR-V module of a compute shader.
    """
    started, module = time.process_time(), None
    try:
        module = read(spirv)
        claims = _asked(module, form, setting)
    except Unsupported as error:
        return _unsupported(module, form, setting, str(error), started)
    failing: dict[tuple[str, str], list[Failure]] = {}
    for failure in claims.failures:
        failing.setdefault((failure.group, failure.what), []).append(failure)
    groups = {group: PROVEN for group in GROUPS if claims.counts[group]}
    findings = []
    for (group, what), failures in failing.items():
        found = _example(module, form, claims, failures) if any(one.status == FAILED for one in failures) else None
        if found is None:
            more = (
                "" if any(one.status == FAILED for one in failures) else " (the solver met its limit: raise --effort)"
            )
            findings.append(Finding(group, f"{what}{more}"))
            groups[group] = REFUTED if groups[group] == REFUTED else UNDECIDED
        else:
            findings.append(Finding(group, what, *found))
            groups[group] = REFUTED
    seconds = time.process_time() - started
    total, sequences = sum(claims.counts.values()), tuple(sorted(claims.sequences))
    return Decision(setting.name, groups, tuple(findings), total, claims.solver.sha256, sequences, seconds)


def _asked(module: Module, form: Form, setting: Setting) -> LookupClaims | PrepackClaims:
    sizes = Prepack(form, setting) if isinstance(form, str) else Lookup(form, setting)
    _check_interface(module, form)
    solver = Solver(sizes.facts, instances(sizes.sizes))
    walked = walk(module, sizes.environment, sizes.specialization(), solver.possible)
    claims = PrepackClaims(sizes, walked, solver) if isinstance(sizes, Prepack) else LookupClaims(sizes, walked, solver)
    claims.prove()
    return claims


def _check_interface(module: Module, form: Form) -> None:
    """Images have the interface's dimensions, the written one its format, and the host sets the local size (7.2)."""
    wanted = _RGBA32I if isinstance(form, str) else _RGBA16F if form.output_dtype == "float16" else _RGBA32F
    sides = {0: 2} if isinstance(form, str) else {0: 3, 1: 3, 2: 2}
    for binding, variable in module.bound().items():
        kind = module.type(module.variables[variable]).of[0]
        image = kind.of[0] if kind.kind == "SampledImage" else kind
        if image.kind == "Image" and image.dim != sides.get(binding):
            raise Unsupported(f"binding {binding} as an image of {image.dim} dimensions")
        if image.kind == "Image" and binding == 0 and image.texels != wanted:
            raise Unsupported(f"binding 0 as an image of format {image.texels}, not {wanted}")
    sizes = [
        one.words for number, one in module.constants.items() if module.decoration(number, "BuiltIn") == _LOCAL_SIZE
    ]
    if [[module.decoration(part, "SpecId") for part in parts] for parts in sizes] != [[0, 1, 2]]:
        raise Unsupported("a local size that specialization constants 0 to 2 do not give")


def _example(
    module: Module, form: Form, claims: LookupClaims | PrepackClaims, failures: list[Failure]
) -> tuple[Question, str] | None:
    """A question on which the shader is wrong, and how; None where none was found."""
    strides = claims.sizes.setting.strides
    outside = strides or failures[0].group == "outside"
    for failure in failures:
        if failure.model is None:
            continue
        if isinstance(claims, LookupClaims):
            question: Question | None = refute.lookup_question(claims.own, failure.model, claims.reads, outside=outside)
        else:
            question = refute.prepack_question(claims.own, failure.model)
        if question is not None and (wrong := refute.wrong(module, question, strides=strides)):
            return question, wrong
    return _usual(module, form, strides=strides, outside=outside)


def _usual(module: Module, form: Form, *, strides: bool, outside: bool) -> tuple[Question, str] | None:
    questions = refute.usual_tables(form) if isinstance(form, str) else refute.usual_lookups(form, outside=outside)
    for question in questions:
        if wrong := refute.wrong(module, question, strides=strides):
            return question, wrong
    return None


def _unsupported(module: Module | None, form: Form, setting: Setting, why: str, started: float) -> Decision:
    """No argument was found; a small case may still show that the shader is wrong."""
    found = module and _usual(module, form, strides=setting.strides, outside=setting.strides)
    finding = Finding("writes", f"not supported: {why}", *(found or (None, "")))
    groups = {"writes": REFUTED if found else UNDECIDED}
    return Decision(setting.name, groups, (finding,), 0, "", (), time.process_time() - started)


__all__ = ["BadModule", "Decision", "Finding", "Form", "decide"]
