"""Modules proven side by side, each in a process of its own, and what a certificate says of one.

Source: docs/formats.md, "Certificates"; docs/proofs.md.
"""

import multiprocessing
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, as_completed

from conformance.case.case import Case, Table
from conformance.proofs.certificate import EverySizeClaim
from conformance.proofs.every_size.claims import GROUPS
from conformance.proofs.every_size.contract import Setting
from conformance.proofs.every_size.decide import Decision, Finding, Form, decide

#: Sections of the contract, by group of obligations.
_SECTIONS = {"index": "7.1", "code": "1", "scale": "2", "arithmetic": "3", "bounds": "7.3", "outside": "7.3"}


def decisions(
    wanted: Mapping[str, tuple[bytes, Form, Sequence[Setting]]], jobs: int
) -> Iterator[tuple[str, tuple[Decision, ...]]]:
    """Decide every module in each of its settings; names come back as they are complete.

    Raises:
        BadModule: a module is none; nothing else is waited for.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["conformance.proofs.every_size.decide"])  # z3 is loaded once
    tasks = [(name, setting) for name, (_spirv, _form, settings) in wanted.items() for setting in settings]
    known: dict[str, dict[Setting, Decision]] = {name: {} for name in wanted}
    with ProcessPoolExecutor(min(jobs, len(tasks)), context, max_tasks_per_child=1) as pool:
        waiting: dict[Future[Decision], tuple[str, Setting]] = {
            pool.submit(decide, *wanted[name][:2], setting): (name, setting) for name, setting in tasks
        }
        for done in as_completed(waiting):
            name, setting = waiting[done]
            known[name][setting] = done.result()
            if len(known[name]) == len(wanted[name][2]):
                yield name, tuple(known[name][one] for one in wanted[name][2])


def claim(decided: Sequence[Decision]) -> EverySizeClaim:
    """What a certificate says: an outcome for each setting and group, and the hash of a setting's obligations."""
    outcomes = {f"{one.setting}: {group}": outcome for one in decided for group, outcome in one.groups.items()}
    hashes = {one.setting: one.sha256 for one in decided}
    return EverySizeClaim(outcomes, hashes, tuple(sorted({line for one in decided for line in one.sequences})))


def findings(decided: Sequence[Decision]) -> list[Finding]:
    """What was found in any of the settings."""
    return [found for one in decided for found in one.findings]


def case_of(name: str, finding: Finding) -> Case | None:
    """The case that shows a finding, or None where it has none."""
    if finding.question is None:
        return None
    stage = "PREPACK" if isinstance(finding.question, Table) else "KERNEL"
    section = _SECTIONS.get(finding.group, "7.4")
    return Case(f"every-size/{name}/{finding.group}", stage, section, f"not {finding.what}", finding.question)


__all__ = ["GROUPS", "case_of", "claim", "decisions"]
