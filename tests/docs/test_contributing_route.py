"""CONTRIBUTING's route of a step is the code's own: its quotation is the function's source, its files are there.

`python tests/docs/test_contributing_route.py` (or `make generated`) quotes the function anew.
"""

from __future__ import annotations

import inspect
import re
import textwrap
from pathlib import Path

import pytest

from pyro_discrete.steps import step

ROOT = Path(__file__).parents[2]
CONTRIBUTING = ROOT / "CONTRIBUTING.md"
BEGIN, END = "<!-- route: begin -->", "<!-- route: end -->"


def route() -> str:
    """The source of the function that has the route of a step."""
    return textwrap.dedent(inspect.getsource(step.train_step)).strip()


def quoted(text: str) -> str:
    """What stands in the Python block between the two markers."""
    assert text.count(BEGIN) == text.count(END) == 1
    between = text.split(BEGIN)[1].split(END)[0]
    block = re.fullmatch(r"\s*```python\n(.*?)\n```\s*", between, flags=re.DOTALL)
    assert block is not None, "one Python block and nothing else stands between the markers"
    return textwrap.dedent(block[1]).strip()


def with_route(text: str) -> str:
    """`text` with the function quoted between the two markers."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n```python\n{route()}\n```\n{END}{rest.split(END)[1]}"


def test_the_quotation_is_the_code() -> None:
    assert quoted(CONTRIBUTING.read_text()) == route(), "run `make generated`"


def test_another_quotation_is_seen() -> None:
    text = with_route(CONTRIBUTING.read_text())
    assert quoted(text) == route()
    assert quoted(text.replace(route(), f"{route()}  # as it was")) != route()
    with pytest.raises(AssertionError):
        quoted(text.replace(BEGIN, ""))


def test_the_function_is_a_screen_long() -> None:
    assert len(route().splitlines()) <= 50


def test_files_of_the_stages_are_there() -> None:
    section = CONTRIBUTING.read_text().split("## The route of a training step")[1].split("\n## ")[0]
    named = re.findall(r"`([a-z_]+/(?:[a-z_]+\.py)?)`", section)
    assert named
    assert [path for path in named if not (ROOT / "pyro_discrete" / path).exists()] == []


if __name__ == "__main__":
    CONTRIBUTING.write_text(with_route(CONTRIBUTING.read_text()))
