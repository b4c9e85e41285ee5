"""The pages of the documentation: links to code lead to what they name, and the API reference has every module."""

import importlib
import inspect
import pkgutil
import re
from pathlib import Path

import pytest

import pyro_vsm

ROOT = Path(__file__).parents[1]
PAGES = sorted(p for p in (*ROOT.glob("docs/*.md"), ROOT / "README.md"))
CODE = re.compile(r"\[`(pyro_vsm[\w.]*)`\]\(([^)]+)\)")
MATHEMATICS = (ROOT / "docs/mathematics.md").read_text(encoding="utf-8")
LINKS = CODE.findall(MATHEMATICS)


def find(name):
    """The object of a dotted name, and the module that it was found in."""
    parts = name.split(".")
    for i in range(len(parts), 0, -1):
        try:
            found = module = importlib.import_module(".".join(parts[:i]))
        except ModuleNotFoundError:
            continue
        for part in parts[i:]:
            found = getattr(found, part)
        return found, module
    raise AssertionError(name)


@pytest.mark.parametrize(("name", "file"), LINKS, ids=[name for name, _ in LINKS])
def test_an_equation_names_what_computes_it_where_it_is_written(name, file):
    found, module = find(name)
    path = (ROOT / "docs" / file).resolve()
    assert Path(module.__file__) == path
    if not inspect.ismodule(found):
        found = getattr(found, "fget", found)  # of a property
        assert Path(inspect.getsourcefile(inspect.unwrap(found))) == path  # defined there, not only imported
        assert found.__doc__


def test_every_equation_is_followed_by_a_link_to_code():
    blocks = re.split(r"\n(?=#)", MATHEMATICS)
    with_equations = [b for b in blocks if "$$" in b]
    assert len(with_equations) >= 9
    for block in with_equations:
        after = block[block.rindex("$$") :]
        assert CODE.search(after), block.splitlines()[0]
        assert block.count("$$") % 2 == 0


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_links_between_files_lead_somewhere(page):
    text = page.read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if not re.match(r"[a-z]+:|#", target):
            assert (page.parent / target.partition("#")[0]).exists(), target


def test_every_module_says_what_it_is_for():
    modules = [m.name for m in pkgutil.walk_packages(pyro_vsm.__path__, "pyro_vsm.")]
    assert len(modules) > 80
    silent = [name for name in modules if not (importlib.import_module(name).__doc__ or "").strip()]
    assert silent == []
