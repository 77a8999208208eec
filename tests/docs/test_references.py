"""What texts refer to is there: links, commands with their options, modules, files.

Texts are README, CONTRIBUTING, RESULTS, the site's pages and the tutorials, and for modules and files every docstring
and comment too.
CHANGELOG has the names of earlier versions beside the new ones.
"""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    str(path.relative_to(ROOT))
    for path in (ROOT / "docs").rglob("*.md")
    if "_build" not in path.relative_to(ROOT).parts
)
TEXTS = ["README.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/results/RESULTS.md", *PAGES]
TUTORIALS = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "tutorials").glob("*.ipynb"))
PACKAGES = ("pyro_discrete", "models", "benchmarks", "tests")

EXAMPLE = "coin_flip"
"""In the name of each file that CONTRIBUTING has its reader write."""


EARLIER = {"benchmarks/soundness/unchanged.py", "tests/docs/test_layout.py", "tests/docs/test_references.py"}
"""Sources that name what an earlier version had, or what is planted."""


def read(path: str) -> str:
    """A text's Markdown, or a notebook's."""
    text = (ROOT / path).read_text()
    if not path.endswith(".ipynb"):
        return text
    return "\n".join("".join(cell["source"]) for cell in json.loads(text)["cells"])


def anchors(path: str) -> set[str]:
    """What GitHub makes of a text's headings."""
    headings = re.findall(r"^#+ (.*)$", read(path), flags=re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


def commands(text: str) -> Iterator[list[str]]:
    """The words behind each `python -m` of a code block without Python, or of code in a line."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, flags=re.MULTILINE | re.DOTALL)
    lines = "\n".join(block for language, block in blocks if language != "python").replace("\\\n", " ").splitlines()
    for line in [*lines, *re.findall(r"`(python -m [^`]*)`", text)]:
        for found in re.split(r"(?<![\w.])python3? -m ", line)[1:]:
            words = shlex.shlex(found, posix=True, punctuation_chars=";&|>")
            words.whitespace_split = True
            yield list(itertools.takewhile(lambda word: word[0] not in ";&|>", words))


def has_option(module: str, option: str) -> bool:
    """Whether a script's source declares an option, to argparse or to Typer."""
    source = (ROOT / module.replace(".", "/")).with_suffix(".py").read_text()
    name = re.escape(option.removeprefix("--").removeprefix("no-").replace("-", "_"))
    return f'"{option}"' in source or re.search(rf"\b{name}: Annotated\[", source) is not None


def is_module(name: str) -> bool:
    """Whether `python -m name` finds something to run."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return False
    return spec is not None and (spec.submodule_search_locations is None or is_module(f"{name}.__main__"))


def resolves(dotted: str) -> bool:
    """Whether a name leads to a module, or from one to what it has."""
    parts = dotted.split(".")
    for number in range(len(parts), 0, -1):
        try:
            found = importlib.import_module(".".join(parts[:number]))
        except ModuleNotFoundError:
            continue
        for part in parts[number:]:
            if not hasattr(found, part):
                return False
            found = getattr(found, part)
        return True
    return False


@pytest.mark.parametrize("path", TEXTS + TUTORIALS)
def test_links_lead_somewhere(path: str) -> None:
    folder = (ROOT / path).parent
    for target in re.findall(r"\]\(([^)\s]+)\)", read(path)):
        if re.match(r"[a-z]+:", target):
            continue
        file, _, anchor = target.partition("#")
        there = (folder / file).resolve() if file else ROOT / path
        assert there.exists(), target
        assert not anchor or anchor in anchors(str(there.relative_to(ROOT))), target


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "benchmarks/results/RESULTS.md", *PAGES, *TUTORIALS])
def test_commands_run_modules_that_are_there(path: str) -> None:
    for words in commands(read(path)):
        assert is_module(words[0]), " ".join(words)
        options = [word.partition("=")[0] for word in words if word.startswith("--")]
        if words[0].startswith("benchmarks."):
            assert [option for option in options if not has_option(words[0], option)] == [], " ".join(words)


def test_results_and_readme_name_commands() -> None:
    assert len(list(commands(read("README.md")))) >= 4
    assert len(list(commands(read("benchmarks/results/RESULTS.md")))) >= 20


def test_what_is_not_there_is_seen() -> None:
    first, second = commands(
        "```bash\nfor s in 1; do python -m benchmarks.variance --out $s; done\n```\n`python -m models`"
    )
    assert first == ["benchmarks.variance", "--out", "$s"]
    assert not is_module(first[0])
    assert not is_module("benchmarks")
    assert second == ["models"]
    assert is_module("models")
    assert is_module("benchmarks.noise.variance")
    assert has_option("benchmarks.noise.variance", "--out")
    assert not has_option("benchmarks.noise.variance", "--outside")
    assert resolves("pyro_discrete.steps.step")
    assert not resolves("pyro_discrete.rows")
    assert not resolves("pyro_discrete.steps.hard_loss.in_product")


def stale(path: str) -> list[str]:
    """Dotted names and files of ours that a text or source names, and that are not there."""
    text, ours = read(path), "|".join(PACKAGES)
    dotted = set(re.findall(rf"(?<![\w./])(?:{ours})(?:\.[A-Za-z_]\w*)+(?![\w/])", text))
    names = {name for name in dotted if not name.endswith((".py", ".md", ".json", ".pt"))}
    files = set(re.findall(rf"(?<![\w./])(?:{ours})/[\w/]+\.(?:py|md|json|ipynb)\b", text))
    lost = [name for name in sorted(names) if not resolves(name)]
    lost += [name for name in sorted(files) if not (ROOT / name).exists() and EXAMPLE not in name]
    return [f"{path}: {name}" for name in lost]


@pytest.mark.parametrize("path", ["README.md", "CONTRIBUTING.md", "benchmarks/results/RESULTS.md", *PAGES, *TUTORIALS])
def test_names_and_files_in_texts_are_there(path: str) -> None:
    assert stale(path) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_names_and_files_in_sources_are_there(package: str) -> None:
    paths = sorted(str(path.relative_to(ROOT)) for path in (ROOT / package).rglob("*.py"))
    assert [line for path in paths if path not in EARLIER for line in stale(path)] == []


def test_stale_names_are_seen() -> None:
    assert "tests/docs/test_references.py: pyro_discrete.rows" in stale("tests/docs/test_references.py")
