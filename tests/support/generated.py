"""Generated programs for tests: quick to import, also by a process that does nothing else."""

from conformance.case.case import Case
from conformance.generate.search import generated_case, search
from reference.program.spec import ProgramSpec


def drawn(count: int, seed: str = "0") -> list[ProgramSpec]:
    """Different programs, the same every time."""
    specs: list[ProgramSpec] = []

    def note(case: Case) -> str:
        assert case.program is not None
        specs.append(case.program)
        return ""

    assert search(note, seed=seed, count=count) is None
    return specs


def ids(shard: int, seed: int = 3) -> list[str]:
    """Ids of the first programs of a shard."""
    return [generated_case(spec).id for spec in drawn(12, f"{seed}/{shard}")]
