"""``q4gsw prove every-size``: shaders proven for all sizes at once, from their SPIR-V.

Needs z3-solver; a refutation's case runs on a Vulkan device where there is one.
"""

import argparse
import os
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from tqdm import tqdm

from conformance.case.case import Case
from conformance.cli.options import Parser, names, positive
from conformance.files import make_folder, q4gsw, say, write_whole
from conformance.harness.subject import option_for
from conformance.proofs import certificate
from conformance.proofs.certificate import PROVEN, Certificate

if TYPE_CHECKING:
    from conformance.proofs.every_size.decide import Finding

_SUBJECT = '''"""The shader that `prove every-size` refuted, as a subject."""

from pathlib import Path

from conformance.subjects.impl import SubjectUnderTest, run_kernel


class Refuted(SubjectUnderTest):
    def run(self, case):
        return run_kernel(case.question, shader_source=Path({shader!r}))
'''


_PASSES = "passes on this device: what the shader does wrong does not show there"


def add_every_size(parser: Parser) -> Parser:
    """Add the way and its options."""
    what = "every size at once, from a shader's SPIR-V: writes, reads, bounds, overflow, conversions"
    way = parser.way("every-size", what, "prove every-size --variant 'block-*' --jobs 2", run)
    way.add_argument("--shader", type=Path, help="another file of the same interface: GLSL (.comp) or SPIR-V (.spv)")
    way.add_argument("--jobs", type=positive, default=os.cpu_count() or 1, help="processes (default: cores)")
    way.add_argument("--groups", type=names, default=(), metavar="A,B", help="of obligations; without a certificate")
    way.add_argument("--any-group", action="store_true", help="of a source tree: also groups that 4 does not divide")
    return way


def run(options: argparse.Namespace) -> int:
    """Prove every chosen form; 0 where all are proven, 1 where one is not."""
    from conformance.proofs.every_size import prove  # noqa: PLC0415 - loads z3
    from conformance.proofs.every_size.spirv.module import BadModule  # noqa: PLC0415 - the same
    from conformance.proofs.targets import modules  # noqa: PLC0415 - the same

    if unknown := set(options.groups) - set(prove.GROUPS):
        raise ValueError(f"no group of obligations {min(unknown)!r}; there are {', '.join(prove.GROUPS)}")
    own = {"any_group": options.any_group}
    sources = {name: modules.source(options.subject, name, options.shader, **own) for name in options.names}
    wanted = {name: (one.spirv, one.form, one.settings) for name, one in sources.items()}
    worst, began, known = 0, time.time(), certificate.versions(options.subject, solver=True)
    try:
        answers = prove.decisions(wanted, options.jobs)
        for name, decided in tqdm(answers, total=len(wanted), unit=" modules", disable=None):
            chosen = [one.only(options.groups) for one in decided]
            shown = _Shown()
            if not options.groups:
                found = {case.id: (case, one) for one in prove.findings(chosen) if (case := prove.case_of(name, one))}
                shown = _show(options, list(found.values()))
                chosen = [one.doubting(shown.doubted) for one in chosen]
            spent = sum(one.seconds for one in decided)
            lines = tuple(f"{one.setting}: {found.line}" for one in chosen for found in one.findings)
            timing = certificate.timing(began, time.time(), spent, {"oracle": spent})
            proof = Certificate(prove.claim(chosen), sources[name].facts, lines, known, timing)
            path = options.out / f"every-size-{name}.json"
            if not options.groups:
                certificate.write(path, proof)
            total = sum(one.obligations for one in decided)
            about = name if options.groups else path
            say(f"{proof.result}: {about} (obligations {total}, settings {len(decided)}, {spent:.1f} s)")
            for line in proof.mismatches:
                say(f"  {line}")
            worst = max(worst, 0 if proof.result == PROVEN else 1)
            for line in shown.lines:
                say(line)
    except BadModule as error:
        raise ValueError(f"{options.shader or options.subject}: {error}") from error
    return worst


@dataclass(frozen=True)
class _Shown:
    """What was said of the cases, and the findings that a device contradicts."""

    lines: list[str] = field(default_factory=list)
    doubted: "list[Finding]" = field(default_factory=list)


def _show(options: argparse.Namespace, found: "list[tuple[Case, Finding]]") -> _Shown:
    """Leave a replay file for each case, and run it where there is a device."""
    if not found:
        return _Shown()
    from conformance.results import replay  # noqa: PLC0415 - other proofs need no TOML
    from conformance.runs.run import versions  # noqa: PLC0415 - the same

    shown, subject = _Shown(), _subject(options, [case for case, _finding in found])
    for case, finding in found:
        signature, said = _asked(subject, case) if subject else ("", "not run: no subject has this shader")
        if said == _PASSES and finding.shows:
            shown.doubted.append(finding)
            said = "ERROR: passes on this device: the executor is wrong (please report it), and nothing is refuted"
        path = make_folder(options.out / "replay") / replay.file_name(case.id)
        write_whole({path: replay.text(case, subject or options.subject, signature, versions())})
        shown.lines.append(f"  case: {said}")
        shown.lines.append(f"  replay: {q4gsw('replay', path, *option_for(subject))}")
    return shown


def _subject(options: argparse.Namespace, cases: list[Case]) -> str:
    """What runs the refuted shader: the subject itself, or a file that hands --shader to ours; "" for nothing."""
    if options.shader is None:
        return str(options.subject)
    if options.shader.suffix == ".spv" or any(case.stage != "KERNEL" for case in cases):
        return ""
    path = (options.out / "refuted.py").resolve()
    write_whole({path: _SUBJECT.format(shader=str(options.shader.resolve()))})
    return f"{path}:Refuted"


def _asked(subject: str, case: Case) -> tuple[str, str]:
    """The signature that a case fails with, and what to say."""
    from conformance.harness.worker import Worker  # noqa: PLC0415 - other proofs need no TOML
    from conformance.results.verdict import PASS  # noqa: PLC0415 - the same
    from conformance.runs.run import timed  # noqa: PLC0415 - the same

    with Worker(subject) as worker:
        verdict = timed(worker, case)
    if verdict.outcome == PASS:
        return "", _PASSES
    return verdict.signature, f"{verdict.outcome} {verdict.signature}: {verdict.reason}"
