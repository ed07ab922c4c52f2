"""Every case that is selected: the subject's answer holds the contract."""

from collections.abc import Callable

from conformance.case.case import Case


def test_case(case: Case, judge: Callable[[Case], None]) -> None:
    """The answer is judged by the oracle of the case's stage."""
    judge(case)
