"""The gallery: an entry for every ready model, taken from the table of programs.

What an entry shows besides the program's own words is stored by `python docs/pictures.py gallery`: a picture
`docs/gallery/NAME.png` and, in `docs/gallery/gallery.json`, the command that drew it and what the run reached. A model
that has none yet is described by its docstring, with a command to try.
"""

from __future__ import annotations

import inspect
import json
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.util.docutils import SphinxDirective

from models.programs.program import Program
from models.runs.config import PROGRAMS

__all__ = ["entry", "setup", "stored"]

FOLDER = Path(__file__).parents[1] / "gallery"


def stored() -> dict[str, dict[str, Any]]:
    """What the runs behind the pictures said, by the model's name."""
    path = FOLDER / "gallery.json"
    return json.loads(path.read_text()) if path.exists() else {}


def entry(name: str, program: type[Program], run: dict[str, Any] | None) -> list[str]:
    """A model's entry, as Markdown."""
    first = (inspect.getdoc(program) or "").split("\n\n")[0]
    lines = [f"({name})=", f"## {name}", "", f"{program.summary[0].upper()}{program.summary[1:]}.", "", first, ""]
    if run is None:
        return [*lines, "```bash", f"python -m models train {name} --seed 0 --out runs/{name}", "```", ""]
    if (FOLDER / f"{name}.png").exists():
        lines += [f"![What {name} has learned: {program.summary}](/docs/gallery/{name}.png)", ""]
    figures = ", ".join(f"{what} {value}" for what, value in run["reached"].items())
    return [*lines, "```bash", run["command"], "```", "", f"On {run['data']}. Reached: {figures}.", ""]


class Gallery(SphinxDirective):
    """`{gallery}`: an entry for every program of the table."""

    def run(self) -> list[nodes.Node]:
        runs = stored()
        lines: list[str] = []
        for name, program in PROGRAMS.items():
            lines += entry(name, program, runs.get(name))
        for path in (FOLDER / "gallery.json", *FOLDER.glob("*.png")):
            self.env.note_dependency(str(path))
        return self.parse_text_to_nodes("\n".join(lines), allow_section_headings=True)


def setup(app: Sphinx) -> dict[str, bool]:
    """Register the directive."""
    app.add_directive("gallery", Gallery)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
