"""Makes an xdist worker judge as the process does that started it."""

from argparse import Namespace

import pytest

from conformance.runs.plugin import Judging


def pytest_configure(config: pytest.Config) -> None:
    """In a worker, judge with the options of ``q4gsw run``, which alone can start the suite."""
    if hasattr(config, "workerinput"):
        config.pluginmanager.register(Judging(Namespace(**config.workerinput["q4gsw"])))
    elif not any(isinstance(plugin, Judging) for plugin in config.pluginmanager.get_plugins()):
        raise pytest.UsageError("the suite is started by: q4gsw run (after --, options of pytest's own)")
