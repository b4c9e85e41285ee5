"""The list cannot rot: every line that a mutation replaces is still there, exactly once."""

from pathlib import Path

import pytest

import pyro_vsm

from .mutations import MUTATIONS

PACKAGE = Path(pyro_vsm.__file__).parent
TESTS = Path(__file__).parents[1]


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda m: m.what)
def test_the_line_is_there_and_the_change_is_python(mutation):
    source = (PACKAGE / mutation.file).read_text(encoding="utf-8")
    assert source.count(mutation.old) == 1
    compile(source.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert mutation.old != mutation.new
    assert all((TESTS / "core" / test).is_file() or (TESTS / test).is_file() for test in mutation.tests)


def test_there_are_enough():
    assert len(MUTATIONS) >= 15
