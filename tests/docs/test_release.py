"""What a release has to have: one version everywhere, and a changelog that is ready for the next."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pyro_discrete

ROOT = Path(__file__).parents[2]
CITATION = (ROOT / "CITATION.cff").read_text()


def test_the_version_is_the_same_everywhere() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    cited = re.search(r"^version: (.+)$", CITATION, flags=re.MULTILINE)
    assert cited is not None
    assert pyro_discrete.__version__ == project["version"] == cited[1]


def test_the_changelog_has_the_version_and_goes_on() -> None:
    titles = re.findall(r"^## (.+)$", (ROOT / "CHANGELOG.md").read_text(), flags=re.MULTILINE)
    assert titles[0] == "Unreleased"
    released = dict(title.split(" - ") for title in titles[1:])
    if released:
        assert next(iter(released)) == pyro_discrete.__version__
        assert f"date-released: {released[pyro_discrete.__version__]}" in CITATION
