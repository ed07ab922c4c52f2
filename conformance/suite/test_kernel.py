"""Stage KERNEL: every case of the catalogue that asks it."""

from collections.abc import Callable

from conformance.case.case import Case

STAGE = "KERNEL"


def test_kernel(case: Case, verdict_on: Callable[[Case], None]) -> None:
    """The subject's answer holds the contract."""
    verdict_on(case)
