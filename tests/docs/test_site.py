"""The site shows what there is: every model, every error, every tutorial, every public name; and builds without a word.

The build itself is `make docs`; these are the parts that can be looked at without it.
"""

from __future__ import annotations

import inspect
import re
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from models.runs.config import PROGRAMS
from pyro_discrete import available_estimators

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS / "extensions"))

api = pytest.importorskip("api", reason="the site's own packages: pip install -e '.[docs]'")
gallery = pytest.importorskip("gallery")
native_math = pytest.importorskip("native_math")

nodes = pytest.importorskip("docutils.nodes")

PUBLIC = api.public_names()
FLOORS = {
    floor: path.name
    for path in sorted((DOCS / "api").glob("*.rst"))
    for floor in re.findall(r"^\.\. floor:: (\S+)$", path.read_text(), flags=re.MULTILINE)
}


def test_every_public_name_is_on_the_page_of_its_floor() -> None:
    assert {public.floor for public in PUBLIC.values()} == FLOORS.keys()
    assert {"pyro_discrete.TraceELBO", "pyro_discrete.errors.RanksError", "pyro_discrete.testing.LOGITS"} <= set(PUBLIC)


def test_floors_are_folders_or_modules_at_the_root() -> None:
    assert api.floor_of("pyro_discrete.estimators.score.nvil") == "estimators/score"
    assert api.floor_of("pyro_discrete.errors") == "errors"


def test_every_public_name_has_a_docstring() -> None:
    assert [path for path, public in PUBLIC.items() if public.kind != "data" and not inspect.getdoc(public.thing)] == []


def test_a_name_without_an_entry_and_a_formula_without_a_drawing_are_warnings(monkeypatch: pytest.MonkeyPatch) -> None:
    """What fails the build, planted."""
    said: list[str] = []
    logger = SimpleNamespace(warning=lambda text, *arguments, **_: said.append(text % arguments))
    monkeypatch.setattr(api, "LOGGER", logger)
    monkeypatch.setattr(native_math, "LOGGER", logger)
    entries = {public.thing.__name__ if public.kind == "module" else path: None for path, public in PUBLIC.items()}
    api.check_all_are_there(None, SimpleNamespace(get_domain=lambda _: SimpleNamespace(objects=entries)))
    assert said == []
    del entries["pyro_discrete.NVIL"]
    api.check_all_are_there(None, SimpleNamespace(get_domain=lambda _: SimpleNamespace(objects=entries)))
    assert said == ["pyro_discrete.NVIL is public and on no page: estimators/score has none in docs/api"]
    assert "<mi>q</mi>" in native_math.mathml(nodes.math(text=r"\arg\max q"), "inline")
    native_math.mathml(nodes.math(text=r"\nosuchcommand q"), "inline")
    assert len(said) == 2
    assert "nosuchcommand" in said[1]


def test_every_page_of_the_api_is_in_its_contents() -> None:
    listed = re.findall(r"^   (\w+)$", (DOCS / "api" / "index.rst").read_text(), flags=re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in (DOCS / "api").glob("*.rst") if path.stem != "index")


def test_every_error_is_explained_by_its_own_words() -> None:
    """A heading for each type, and its docstring's first sentence under it."""
    text = (DOCS / "errors.md").read_text()
    sections = dict(re.findall(r"^### (\w+)\n\n\*(.*?)\*", text, flags=re.MULTILINE | re.DOTALL))
    errors = [public.thing for public in PUBLIC.values() if public.kind == "exception"]
    assert sections.keys() == {error.__name__ for error in errors}
    for error in errors:
        first = (inspect.getdoc(error) or "").split("\n\n")[0]
        assert " ".join(sections[error.__name__].split()) == " ".join(first.split())


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_model_has_an_entry_in_the_gallery(name: str) -> None:
    """With its picture, where one is stored, or by its docstring alone."""
    run = gallery.stored().get(name)
    for text in ("\n".join(gallery.entry(name, PROGRAMS[name], shown)) for shown in (run, None)):
        assert f"python -m models train {name} " in text
        assert len(text) > 100
    if run is not None:
        assert (DOCS / "gallery" / f"{name}.png").stat().st_size < 60_000


def test_the_gallery_has_no_models_that_are_gone() -> None:
    pictures = {path.stem for path in (DOCS / "gallery").glob("*.png")}
    assert pictures == set(gallery.stored()) <= set(PROGRAMS)


def test_the_drawing_of_the_choice_names_estimators_of_the_readme() -> None:
    """Those that it has are there, and the README's list of questions names each of them."""
    named = set(re.findall(r'"([a-z_]+)', (DOCS / "drawings" / "choose.svg").read_text().split("</style>")[1]))
    named &= set(available_estimators())
    asked = (ROOT / "README.md").read_text().split("## How to choose")[1].split("Or measure")[0]
    assert len(named) >= 10
    assert {name for name in named if f'"{name}"' not in asked} == set()


def test_nothing_is_fetched_and_no_machine_is_named() -> None:
    """No address but links, no folder of the machine that stored an output."""
    pages = [path for path in DOCS.rglob("*") if path.suffix in {".md", ".rst", ".svg", ".html", ".css", ".json"}]
    pages = [path for path in pages if "_build" not in path.parts]
    assert len(pages) > 30
    stored = [*pages, *(ROOT / "tutorials").glob("*.ipynb")]
    machine = r"/(?:home|root|work|tmp|Users)/\w"
    assert [path.name for path in stored if re.search(machine, path.read_text())] == []
    assert [path.name for path in pages if re.search(r"(?:src=|@import|url\().{0,2}https?:", path.read_text())] == []
