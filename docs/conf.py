"""Sphinx builds these pages and the API reference: ``sphinx-build -W docs docs/_build``."""

import re
from types import GenericAlias
from typing import Any

from docutils.nodes import SkipNode
from latex2mathml.converter import convert

project = "pyro_vsm"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.autosummary", "sphinx.ext.napoleon"]
myst_enable_extensions = ["dollarmath", "colon_fence"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
templates_path = ["_templates"]
html_theme = "alabaster"
html_math_renderer = "mathml"
html_theme_options = {"page_width": "68rem", "sidebar_width": "15rem", "description": "Variational Semantic Memory"}
html_show_copyright = False
autodoc_member_order = "bysource"
# packages that gather the names of their modules do not describe them a second time
autodoc_default_options = {"members": True, "show-inheritance": True, "ignore-module-all": True}
autodoc_typehints = "signature"
autodoc_preserve_defaults = True
napoleon_google_docstring = True
napoleon_use_ivar = True

# Links to code must lead somewhere; names of other packages are not looked up (no network in a build).
nitpicky = True
nitpick_ignore_regex = [
    (r"py:.*", r"(?!pyro_vsm).*"),
    (r"py:.*", r".*\.[A-Z]"),  # type variables
    (r"py:class", r"pyro_vsm\.config\.\w+Config"),  # in signatures, under a name they are imported by
]
suppress_warnings = ["ref.python"]  # in signatures, short names that several classes have

_CODE = re.compile(r"\[`(pyro_vsm[\w.]*)`\]\(\.\./pyro_vsm/[\w/]+\.py\)")


def _link_code(app: Any, name: str, source: list[str]) -> None:
    """In Markdown, links to source files become links to the API reference: both work where they are read."""
    source[0] = _CODE.sub(r"{py:obj}`\1`", source[0])


def _skip(app: Any, what: str, name: str, obj: Any, skip: bool, options: Any) -> bool | None:
    """Leave out names of types, and what scikit-learn adds, whose text refers to pages of its own."""
    foreign = isinstance(obj, GenericAlias) or (name.startswith("set_") and name.endswith("_request"))
    return True if foreign else None


def _inline(translator: Any, node: Any) -> None:
    """An equation as MathML, which browsers draw by themselves: no script from elsewhere is needed."""
    translator.body.append(convert(node.astext()))
    raise SkipNode


def _block(translator: Any, node: Any) -> None:
    translator.body.append(f'<div class="math">{convert(node.astext(), display="block")}</div>')
    raise SkipNode


def setup(app: Any) -> None:
    """Called by Sphinx."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    app.connect("source-read", _link_code)
    app.connect("autodoc-skip-member", _skip)
