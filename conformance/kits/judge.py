"""Verdicts on outputs that were made elsewhere, from a kit and a directory of raw files. Loads neither torch nor impl.

A kit is judged as its RUN case is. Where the runtime computed an output nobody saw: every lookup that may fuse, and
every linear, is judged as a delegate's.
"""

import hashlib
import json
import tomllib
from dataclasses import dataclass
from pathlib import Path

from conformance.files import read_text
from conformance.harness.observation import Declared, Facts
from conformance.judging import compare
from conformance.judging.judge import verdict_on
from conformance.judging.lowered import judge_outputs
from conformance.kits.kit import Array, Kit, WrongFile, read_tensor
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
    """Return the verdict on the files in ``outputs``; without ``facts`` only the strict host set is right."""
    mismatch: Mismatch | None = None
    strict, digest = False, hashlib.sha256()
    arrays: dict[str, Array] = {}
    for output in kit.description.outputs:
        try:
            arrays[output.name] = read_tensor(outputs, output)
        except WrongFile as error:
            right = f"{output.dtype}{list(output.shape)}, {output.size} bytes"
            mismatch = mismatch or DtypeShapeMismatch(output.name, right, str(error), error.kind)
            continue
        digest.update(arrays[output.name].tobytes())
    if mismatch is None:
        modes = HOST if facts is None else compare.float_modes(facts)
        delegated = {name for name, reasons in violations(kit.program).items() if not reasons}
        delegated |= {step.name for step in kit.program.steps if isinstance(step, Linear)}
        mismatch, strict = judge_outputs(kit.program, arrays, modes, delegated, {})
    known, outcome = facts or Facts(arithmetic="host"), FAIL if mismatch else PASS
    return verdict_on(kit.case, subject, outcome, mismatch, strict=strict, digest=digest.hexdigest(), facts=known)
