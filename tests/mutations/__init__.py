"""Deliberate errors in the package, each of which the tests must notice: ``python -m tests.mutations``."""
