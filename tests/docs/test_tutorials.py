"""The tutorials run from top to bottom, with fewer training steps; their cells assert what their text says.

`python tests/docs/test_tutorials.py` (or `make generated`) runs them in full and stores their outputs.
"""

from __future__ import annotations

import os
import re
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

TUTORIALS = sorted((Path(__file__).parents[2] / "tutorials").glob("*.ipynb"))
FEWER_STEPS = {"01_first_model": 800, "04_gumbel_softmax": 800}
"""Of those whose text compares runs that have come far; others make 500."""


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a fresh run; raises `CellExecutionError` if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(notebook, timeout=600, record_timing=False, resources={"metadata": {"path": path.parent}})
    client.execute()
    return notebook


def source(cell: nbformat.NotebookNode) -> str:
    return "".join(cell.source)


@pytest.mark.slow
@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_runs(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TUTORIAL_STEPS", str(FEWER_STEPS.get(path.stem, 500)))
    executed(path)


@pytest.mark.parametrize("path", TUTORIALS, ids=lambda path: path.stem)
def test_is_stored_with_the_outputs_of_one_full_run(path: Path) -> None:
    code = [cell for cell in nbformat.read(path, as_version=4).cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    outputs = [output for cell in code for output in cell.outputs]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)
    drawn = sum("image/png" in output.get("data", {}) for output in outputs)
    shows = r"^(?:plt\.show\(\)|show\(|display\()"
    asked_for = sum(len(re.findall(shows, source(cell), re.MULTILINE)) for cell in code)
    assert drawn == asked_for


def renew() -> None:
    """Run every tutorial in full and store it with its outputs, without what differs from machine to machine."""
    for setting in ("TUTORIAL_STEPS", "MPLBACKEND"):  # fewer steps, no pictures
        os.environ.pop(setting, None)
    for path in TUTORIALS:
        notebook = executed(path)
        notebook.metadata = {
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
        nbformat.write(notebook, path)


if __name__ == "__main__":
    renew()
