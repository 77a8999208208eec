"""The README is true: its Python runs, its commands exist, its table is what the package says of itself.

`python tests/docs/test_readme.py` (or `make generated`) writes the table anew.
"""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from typer.main import get_command

from models.cli.commands import app
from pyro_discrete import available_estimators
from pyro_discrete.families import ANY_FAMILY, Need
from tests.support.texts import blocks, run_in_order

ROOT = Path(__file__).parents[2]
README = ROOT / "README.md"
BEGIN, END = "<!-- estimators: begin -->", "<!-- estimators: end -->"


def commands() -> list[list[str]]:
    return [line.split() for block in blocks(README, "bash") for line in block.splitlines() if line.strip()]


def estimator_table() -> str:
    """The README's table of estimators, as Markdown."""
    lines = [
        "| name | class | sites | unbiased | evaluations a step | what it is | reference |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name, info in sorted(available_estimators().items()):
        sites = "any" if info.families == ANY_FAMILY else ", ".join(sorted(f.value for f in info.families))
        first = next((need for need in Need if need in info.needs), None)  # the others come with it
        if first is not None:
            sites = sites.replace("structure", f"structure with {first.value}")
        cells = (
            f"`{name}`",
            f"`{info.cls.__name__}`",
            sites,
            "yes" if info.unbiased else "no",
            info.evaluations,
            info.summary,
            info.reference,
        )
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def with_table(text: str) -> str:
    """`text` with what stands between the two markers replaced by the table."""
    before, rest = text.split(BEGIN)
    return f"{before}{BEGIN}\n{estimator_table()}\n{END}{rest.split(END)[1]}"


def test_table_of_estimators_is_current() -> None:
    assert with_table(README.read_text()) == README.read_text(), "run `make generated`"


def test_python_runs_in_order_as_printed(capsys: pytest.CaptureFixture[str]) -> None:
    run_in_order(blocks(README, "python"), "README.md")
    printed = capsys.readouterr().out
    bound = re.search(r"(\d+\.\d) nats an image", printed)
    assert bound is not None
    claimed = re.search(r"ends near (\d+\.\d) nats", README.read_text())
    assert claimed is not None
    assert abs(float(bound[1]) - float(claimed[1])) < 0.6  # four runs with other seeds stayed within 0.2
    assert "nvil" in printed, "elbo.plan does not say which estimator the site got"


def test_commands_of_make_exist() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.MULTILINE)
    named = [words[1] for words in commands() if words[0] == "make"]
    assert named
    assert set(named) <= set(targets)


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    named = re.findall(r"pip install [^`\n]*\[(\w+)\]", README.read_text())
    assert named
    assert set(named) <= set(project["optional-dependencies"])


def test_commands_of_models_exist() -> None:
    offered = get_command(app).commands  # type: ignore[attr-defined]
    named = [words for words in commands() if words[:3] == ["python", "-m", "models"]]
    assert named
    for words in named:
        options = {option for parameter in offered[words[3]].params for option in parameter.opts}
        assert {word for word in words if word.startswith("--")} <= options, " ".join(words)


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)\)", README.read_text())
    local = [t for t in targets if not t.startswith("http")]
    assert local
    assert [t for t in local if not (ROOT / t).exists()] == []


if __name__ == "__main__":
    README.write_text(with_table(README.read_text()))
