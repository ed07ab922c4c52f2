"""Every doctest of reference/ runs, and every module there has one."""

import doctest
import importlib
import pkgutil

import pytest

import reference

WITHOUT = {"reference.program.spec"}  # plain data: nothing to compute
_WALK = list(pkgutil.walk_packages(reference.__path__, "reference."))
MODULES = sorted(module.name for module in _WALK if not module.ispkg)


def test_every_folder_is_walked() -> None:
    assert {name.rpartition(".")[0] for name in MODULES} == {
        "reference",
        "reference.arithmetic",
        "reference.program",
        "reference.table",
    }


@pytest.mark.parametrize("name", MODULES)
def test_doctests_pass(name: str) -> None:
    results = doctest.testmod(importlib.import_module(name), raise_on_error=False)
    assert results.failed == 0
    assert results.attempted > 0 or name in WITHOUT
