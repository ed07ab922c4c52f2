"""Benchmarks of the player: `nox -s bench -- kernel`."""
