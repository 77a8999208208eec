"""The command line in a terminal of any width, in plain letters, and before torch is there."""

from __future__ import annotations

import io
import os
import re
import subprocess
import sys

import pytest
from rich.console import Console
from rich.table import Table
from typer.testing import CliRunner

from models.cli.choices import choice_tables
from models.cli.commands import app
from models.cli.options import LARGEST_SEED
from models.cli.tables import fitted
from models.data.catalogue import DATASETS
from models.runs import config
from models.runs.config import PROGRAMS
from pyro_discrete import available_estimators


def drawn(table: Table, width: int) -> str:
    out = io.StringIO()
    console = Console(file=out, width=width, force_terminal=True, color_system=None)
    console.print(fitted(table, console))
    return out.getvalue()


def words(table: Table) -> set[str]:
    return {word for column in table.columns for cell in column.cells for word in str(cell).split()}


@pytest.mark.parametrize("width", [140, 120, 80, 60, 50])
def test_names_and_numbers_are_whole(width: int) -> None:
    tables = choice_tables()
    results = Table(title="sbn on digits", caption="Variance in (nats per image)².")
    for heading in ("estimator", "test\nELBO", "100-sample\nbound", "variance,\nguide", "ms a\nstep"):
        results.add_column(heading, justify="right")
    results.add_row("  straight_through_gumbel_softmax", "-1025.75", "-1024.11", "3,264", "12.70")
    for table in [*tables, results]:
        text = drawn(table, width)
        assert "…" not in text
        assert max(map(len, text.splitlines())) <= width
        assert words(table) <= set(re.sub("[│┃]", " ", text).split())


def test_a_stacked_table_has_each_cell_under_its_heading() -> None:
    table = Table("name", "score\nfunction", "what", title="Programs", caption="The end.")
    table.add_row("gmm", "15 of 20", "a text that is far too long for the twenty-four columns that there are")
    lines = [line.rstrip() for line in drawn(table, 24).splitlines()]
    assert lines[:5] == ["Programs", "", "gmm", "  score function: 15", "    of 20"]
    assert lines[-2:] == ["", "The end."]


def test_help_and_list_come_without_torch() -> None:
    lines = "import sys; from typer.testing import CliRunner; from models.cli.commands import app"
    lines += "; run = CliRunner().invoke"
    lines += "; assert run(app, ['list']).exit_code == run(app, ['train', '--help']).exit_code == 0"
    lines += "; assert not {'torch', 'pyro', 'matplotlib', 'pyro_discrete'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", lines], check=True)


def test_list_in_plain_letters() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "COLUMNS": "60"}
    done = subprocess.run([sys.executable, "-m", "models", "list"], env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr
    assert b"Lazaro-Gredilla" in done.stdout


def test_list_names_what_there_is() -> None:
    """The whole of it is held to a trial of each program by a slow test."""
    for table, known in zip(choice_tables(), (PROGRAMS, available_estimators(), DATASETS), strict=False):
        assert list(table.columns[0].cells) == list(known)


@pytest.mark.parametrize("command", ["train", "compare", "bandit", "report"])
def test_defaults_are_shown(command: str) -> None:
    printed = " ".join(CliRunner().invoke(app, [command, "--help"], env={"COLUMNS": "250"}).stdout.split())
    assert {
        "train": "(default: runs/PROGRAM-DATA-ESTIMATOR)",
        "compare": "(default: runs/compare-PROGRAM-DATA)",
        "bandit": "(default: runs/bandit-LOG)",
        "report": "(default: report.html in the folder)",
    }[command] in printed
    assert command == "report" or "Torch's threads." in printed


def test_seeds_have_one_limit() -> None:
    assert config.LARGEST_SEED == LARGEST_SEED
