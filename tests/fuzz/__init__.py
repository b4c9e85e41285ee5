"""Readers of foreign bytes under a coverage-guided fuzzer: ``python -m tests.fuzz`` (extra ``fuzz``)."""
