"""The pages of the site are true: their Python runs as printed.

Blocks that need a package which no extra installs run where it is, each by itself.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.texts import blocks, needs, run_in_order

ROOT = Path(__file__).parents[2]
PAGES = sorted(path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts)
WITH_OPTIONAL = [
    pytest.param(path, block, id=f"{path.relative_to(ROOT)}-{number}")
    for path in PAGES
    for number, block in enumerate(blocks(path, "python"))
    if needs(block)
]


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_runs_in_order_as_printed(path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_in_order([block for block in blocks(path, "python") if not needs(block)], str(path.relative_to(ROOT)))


def test_blocks_that_fail_or_print_something_else_are_seen() -> None:
    assert run_in_order(["a = 1\n", ">>> a + 1\n2\n", "b = a"], "a page")["b"] == 1
    with pytest.raises(AssertionError, match="a page, Python block 2: a printed"):
        run_in_order(["a = 1\n", ">>> a\n2\n"], "a page")
    with pytest.raises(AssertionError, match="raised NameError"):
        run_in_order([">>> b\n1\n"], "a page")
    with pytest.raises(NameError):
        run_in_order(["b\n"], "a page")


@pytest.mark.parametrize(("path", "block"), WITH_OPTIONAL)
def test_python_of_other_packages_runs(path: Path, block: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in needs(block):
        pytest.importorskip(name)
    run_in_order([block], str(path.relative_to(ROOT)))
