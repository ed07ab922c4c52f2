"""Benchmarks of the optimized implementation: `nox -s bench -- kernel`."""
