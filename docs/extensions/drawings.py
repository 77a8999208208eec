"""Drawings (.svg) become part of the page, where they take the theme's colours, light or dark."""

from __future__ import annotations

import re
from pathlib import Path

from docutils import nodes
from sphinx.application import Sphinx

__all__ = ["setup"]


def put_in(app: Sphinx, document: nodes.document) -> None:
    """Replace images of drawings by the drawings, for a builder that writes HTML."""
    for image in list(document.findall(nodes.image)):
        if not image["uri"].endswith(".svg"):
            continue
        path = Path(app.srcdir) / image["uri"]
        drawing = re.sub(r"<\?xml.*?\?>\s*", "", path.read_text())
        app.env.note_dependency(str(path))
        image.replace_self(nodes.raw("", f'<div class="drawing">{drawing}</div>', format="html"))


def setup(app: Sphinx) -> dict[str, bool]:
    """Listen for pages that have been read."""
    app.connect("doctree-read", put_in)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
