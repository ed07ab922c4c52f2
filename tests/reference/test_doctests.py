"""Every doctest of reference/ runs, and every module there has one."""

import doctest
import importlib
import pkgutil

import pytest

import reference

WITHOUT = {"reference.program.spec"}  # plain data: nothing to compute
MODULES = sorted(f"reference.{module.name}" for module in pkgutil.iter_modules(reference.__path__))


@pytest.mark.parametrize("name", MODULES)
def test_doctests_pass(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert results.failed == 0
    assert results.attempted > 0 or name in WITHOUT
