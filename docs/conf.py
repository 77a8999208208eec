"""The site's settings: `make docs` builds it, from the project's root, into `docs/_build/html`.

The root is the source folder, so that a link between README, these pages, tutorials and results is the same on the site
and beside the files. Nothing is executed: notebooks come with their outputs. Nothing is fetched by a reader's browser
either: no fonts, no scripts from elsewhere, formulas as MathML.
"""

from __future__ import annotations

import sys
from pathlib import Path

DOCS = Path(__file__).parent
sys.path[:0] = [str(DOCS.parent), str(DOCS / "extensions")]

from pyro_discrete import __version__  # noqa: E402

project = "pyro_discrete"
author = "The pyro_discrete authors"
release = version = __version__
copyright = author

root_doc = "docs/index"
include_patterns = [
    "docs/**",
    "tutorials/*.ipynb",
    "benchmarks/results/RESULTS.md",
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
]
exclude_patterns = ["docs/_build", "**/.ipynb_checkpoints"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.viewcode",
    "sphinx_copybutton",
    "sphinx_design",
    "api",
    "drawings",
    "gallery",
    "native_math",
]

nitpicky = False  # names in backticks that are no public name stay code
default_role = "py:obj"
highlight_language = "none"
pygments_dark_style = "github-dark"

myst_enable_extensions = ["attrs_block", "colon_fence", "dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "off"
nb_merge_streams = True

autodoc_class_signature = "mixed"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_member_order = "bysource"
autodoc_preserve_defaults = True
python_use_unqualified_type_names = True
python_maximum_signature_line_length = 80
toc_object_entries_show_parents = "hide"
copybutton_exclude = ".linenos, .gp, .go"

html_theme = "furo"
html_title = "pyro_discrete"
html_static_path = ["static"]
html_css_files = ["site.css"]
html_copy_source = False
html_show_sphinx = False
html_additional_pages = {"index": "front.html"}
html_theme_options = {"navigation_with_keys": True}
templates_path = ["templates"]
