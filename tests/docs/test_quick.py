"""`make quick` runs what `tests/quick.txt` lists: something of every floor, of what is there, none of it slow."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
LISTED = (ROOT / "tests" / "quick.txt").read_text().splitlines()


def test_every_floor_has_some() -> None:
    folders = {path.name for path in (ROOT / "tests").iterdir() if any(path.glob("test_*.py"))} - {"benchmarks"}
    assert {line.split("/")[1] for line in LISTED} == folders


def test_what_is_listed_is_there() -> None:
    for line in LISTED:
        path, _, name = line.partition("::")
        assert (ROOT / path).exists(), line
        assert f"def {name}" in (ROOT / path).read_text() if name else True, line


def test_contributing_names_the_command() -> None:
    assert "make quick" in (ROOT / "CONTRIBUTING.md").read_text()
