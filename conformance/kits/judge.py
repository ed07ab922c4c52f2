"""Verdicts on outputs that were made elsewhere, from a kit and a directory of raw files. Loads neither torch nor impl.

A call is judged as its case is, of stage RUN or KERNEL. Where the runtime computed an output nobody saw: every lookup
that may fuse, and every linear, is judged as a delegate's.
"""

import hashlib
import json
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from conformance.case.case import Case, Dispatch, EndToEnd
from conformance.files import read_text
from conformance.harness.observation import Arrays, Declared, Facts
from conformance.judging import compare
from conformance.judging.judge import Judgement, judge_kernel, verdict_on
from conformance.judging.lowered import judge_outputs
from conformance.judging.repeat import differences
from conformance.kits.kit import Array, Call, Kit, WrongFile, read_tensor
from conformance.results.mismatch import DtypeShapeMismatch, Mismatch
from conformance.results.verdict import FAIL, PASS, Verdict
from conformance.serialize import structure
from reference.arithmetic.accept import HOST
from reference.program.fusibility import violations
from reference.program.spec import Linear

_MODES = ("RoundingModeRTE", "RoundingModeRTZ", "DenormPreserve", "DenormFlushToZero", "SignedZeroInfNanPreserve")
_STORAGES = ("buffer", "texture3d")


@dataclass(frozen=True)
class Profile(Declared):
    """What a runtime's shaders declare, and where it ran."""

    device: str = ""
    driver: str = ""

    def __post_init__(self) -> None:
        """Modes that there are and that do not contradict each other."""
        if self.execution_modes is None:
            raise ValueError("execution_modes is missing; [] says that the shaders declare none")
        for mode in self.execution_modes:
            name, _, width = mode.partition(" ")
            if name not in _MODES or width not in {"16", "32"}:
                raise ValueError(f"execution mode {mode!r} is not one of {', '.join(_MODES)}, each with 16 or 32")
        if self.io_storage not in _STORAGES:
            raise ValueError(f"io_storage {self.io_storage!r} is not {' or '.join(_STORAGES)}")
        compare.float_modes(self)


def read_profile(path: Path) -> Facts:
    """Return a device profile, TOML or JSON, as the facts that ``compare.float_modes`` reads."""
    try:
        text = read_text(path)
        data = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not a device profile ({error})") from error
    return Facts(**vars(structure(Profile, data, str(path))))


def judge_kit(kit: Kit, outputs: Path, subject: str, facts: Facts | None = None) -> Verdict:
    """Return the verdict on the files in ``outputs``; without ``facts`` only the strict host set is right.

    Calls are judged in order; the verdict is the first one that is wrong.
    """
    known, digest = facts or Facts(arithmetic="host"), hashlib.sha256()
    strict: bool | None = True
    for number, call in enumerate(kit.description.calls):
        case = kit.cases[number] if kit.cases else kit.case
        arrays: dict[str, Array] = {}
        mismatch: Mismatch | None = None
        for output in call.outputs:
            try:
                arrays[output.name] = read_tensor(outputs, output)
            except WrongFile as error:
                right = f"{output.dtype}{list(output.shape)}, {output.size} bytes"
                mismatch = mismatch or DtypeShapeMismatch(output.name, right, str(error), error.kind)
                continue
            digest.update(arrays[output.name].tobytes())
        if mismatch is None:
            mismatch, held = _judged(kit, call, case, arrays, known)
            strict = strict and held
        if mismatch:
            verdict = verdict_on(case, subject, FAIL, mismatch, strict=False, digest=digest.hexdigest(), facts=known)
            size = f"call {number + 1} of {len(kit.description.calls)}: {verdict.reason}"
            return replace(verdict, reason=size if number else verdict.reason)
    return verdict_on(kit.case, subject, PASS, strict=strict, digest=digest.hexdigest(), facts=known)


def _judged(kit: Kit, call: Call, case: Case, arrays: dict[str, Array], facts: Facts) -> Judgement:
    """Judge the outputs of one call."""
    if call.expected:
        for tensor in call.expected:
            if wrong := compare.same_bits(tensor.name, arrays[tensor.name], read_tensor(kit.folder, tensor)):
                return wrong, None
        return None, None
    if isinstance(case.question, Dispatch | EndToEnd):
        return judge_kernel(case.question, Arrays(arrays, replace(facts, io_storage=case.question.io_storage)))
    assert case.program is not None  # noqa: S101 - read_kit saw to it
    modes = HOST if facts.arithmetic == "host" else compare.float_modes(facts)
    delegated = {name for name, reasons in violations(case.program).items() if not reasons}
    delegated |= {step.name for step in case.program.steps if isinstance(step, Linear)}
    return judge_outputs(case.program, arrays, modes, delegated, {})


def repeated(kit: Kit, verdict: Verdict, times: Sequence[Sequence[Array]]) -> Verdict:
    """Return the verdict of a kit that was played several times: that it is not deterministic, if it is not.

    ``times``: the outputs of every time, those of all calls in a row; from 2 on the last time is of another load.
    """
    names = [f"{output.file[:-4]}" for call in kit.description.calls for output in call.outputs]
    answers = [dict(zip(names, one, strict=False)) for one in times]
    mismatch = differences(answers, [0] * (len(times) - 1) + [1]) if len(times) > 1 else None
    return verdict_on(kit.case, verdict.subject, FAIL, mismatch, digest=verdict.digest) if mismatch else verdict
