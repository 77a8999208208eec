"""What `list` shows: programs, estimators, data sets, from a file, as trying them and importing torch takes long."""

from __future__ import annotations

import json
from pathlib import Path

from rich.table import Table

__all__ = ["CHOICES", "choice_tables"]

CHOICES = Path(__file__).with_name("choices.json")
"""What `models.reports.tables.choices` found; `make generated` renews it."""


def choice_tables() -> list[Table]:
    """Programs, estimators, data sets and binarisations, with a line on each."""
    found = json.loads(CHOICES.read_text(encoding="utf-8"))
    titles = {
        "programs": "Programs, and how many estimators of each kind ran when every one was tried",
        "estimators": "Estimators",
        "data sets": "Data sets",
        "binarisation": "Binarisation",
    }
    tables = []
    for part, title in titles.items():
        table = Table(title=title)
        for heading in found[part][0]:
            table.add_column(heading, no_wrap=heading in ("name", "exact", "score function", "relaxed"))
        for row in found[part]:
            table.add_row(*row.values())
        tables.append(table)
    relaxed = ", ".join(found["relaxed"])
    tables[0].caption = f"Score functions: with any control variate or coupling. Relaxed: {relaxed}."
    return tables
