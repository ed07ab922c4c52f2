"""Loads the suite's options and fixtures, whatever path pytest is given."""

pytest_plugins = ("conformance.runs.plugin",)
