"""The tests leave the user's cache alone: their runs would push out the reports that are kept there."""

import os
import tempfile

import pytest


def pytest_configure(config: pytest.Config) -> None:
    """Give this session, its workers and all that they start a cache that ends with it."""
    if "Q4GSW_CACHE" not in os.environ:
        folder = tempfile.TemporaryDirectory(prefix="q4gsw-tests-")
        os.environ["Q4GSW_CACHE"] = folder.name
        config.add_cleanup(folder.cleanup)
        config.add_cleanup(lambda: os.environ.pop("Q4GSW_CACHE", None))
