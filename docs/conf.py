"""How Sphinx builds the documents: `make docs`."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.metadata import version as _version

from docutils import nodes
from docutils.parsers.rst import Directive
from sphinx.application import Sphinx

project = "pagemove"
author = "The pagemove developers"
copyright = f"2026, {author}"
release = version = _version("pagemove")

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "sphinx_copybutton",
]
# What is copied is what is typed: no prompts, and no output.
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True
copybutton_copy_empty_lines = False
exclude_patterns = ["_build"]
myst_heading_anchors = 3

# In docstrings `name` is a name of Python's, where there is one to link to.
default_role = "py:obj"
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"
napoleon_google_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
maximum_signature_line_length = 80

html_theme = "furo"
html_title = f"pagemove {version}"
html_copy_source = False
html_static_path = ["_static"]
html_css_files = ["pagemove.css"]


class CommandHelp(Directive):
    """Put in what a command prints about itself: ``.. command-help:: doctor``."""

    optional_arguments = 1

    def run(self) -> list[nodes.Node]:
        arguments = [*self.arguments, "--help"]
        plain = {"NO_COLOR": "1", "TERM": "dumb", "COLUMNS": "88", "TERMINAL_WIDTH": "88"}
        done = subprocess.run(
            [sys.executable, "-m", "pagemove", *arguments],
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, **plain},
        )
        lines = "\n".join(line.rstrip() for line in done.stdout.strip().splitlines())
        return [nodes.literal_block(text=lines, language="text")]


_SEVERAL = re.compile(r"^\w+(?:, \w+)+(?= : )")
_comments: dict[str, list[str]] = {}


def before_napoleon(
    _app: Sphinx, what: str, name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Prepare docstrings for napoleon, which knows ``a, b : int`` for parameters only."""
    if what == "class":
        lines[:] = [_SEVERAL.sub(lambda names: names[0].replace(", ", ","), line) for line in lines]
    if what in ("attribute", "data"):
        _comments[name] = lines.copy()


def after_napoleon(
    _app: Sphinx, _what: str, name: str, _obj: object, _options: object, lines: list[str]
) -> None:
    """Give comments back, of which it takes what stands before the first colon for a type."""
    lines[:] = _comments.get(name, lines)


def setup(app: Sphinx) -> None:
    app.add_directive("command-help", CommandHelp)
    app.connect("autodoc-process-docstring", before_napoleon, priority=100)
    app.connect("autodoc-process-docstring", after_napoleon, priority=900)
