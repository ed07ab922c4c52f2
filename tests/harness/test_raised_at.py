"""The signature of a raised failure names the innermost function of the implementation under test."""

import types
from collections.abc import Callable
from functools import partial

import numpy as np
import pytest

from conformance.harness.child import raised_at
from conformance.harness.errors import CannotRun

SOURCE = """
def match(work):
    def inner():
        work()
    inner()

class Pass:
    def call(self, work):
        try:
            work()
        except ValueError as error:
            raise RuntimeError("wrapped") from error

def own():
    raise KeyError("x")
"""


def module(name: str) -> types.ModuleType:
    made = types.ModuleType(name)
    exec(compile(SOURCE, f"/somewhere/{name}.py", "exec"), made.__dict__)  # noqa: S102 - the code above
    return made


def named(work: Callable[[], object]) -> str:
    with pytest.raises(Exception) as raised:
        work()
    # The test's own frame stands for the suite's adapter, which calls the subject.
    return raised_at(raised.value.with_traceback(raised.tb.tb_next))


def test_the_innermost_function_of_the_implementation_is_named() -> None:
    mine, theirs = module("subject_mine"), module("torch.fx.passes")
    assert named(mine.own) == "subject_mine.own"
    assert named(partial(mine.match, mine.own)) == "subject_mine.own"
    assert named(partial(mine.match, theirs.own)) == "subject_mine.match.inner"


def test_an_exception_that_torch_wraps_is_named_where_it_began() -> None:
    mine, theirs = module("backend.patterns"), module("torch.fx.passes")
    work = partial(mine.match, partial(np.reshape, np.zeros(3), 2))
    assert named(partial(theirs.Pass().call, work)) == "backend.patterns.match.inner"


def test_where_only_torch_raised_its_called_function_is_named() -> None:
    suite, theirs = module("conformance.program.build"), module("torch.export")
    assert named(partial(suite.match, partial(theirs.match, theirs.own))) == "torch.export.match"


def test_the_suites_own_exceptions_name_no_place() -> None:
    assert not named(partial(module("subject_mine").match, refuse))


def refuse() -> None:
    raise CannotRun("no such operator")
