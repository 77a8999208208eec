"""What importing the package brings along: nothing of the extras, nor what is slow to import and seldom used."""

from __future__ import annotations

import subprocess
import sys

EXTRAS = {"jinja2", "matplotlib", "networkx", "sklearn", "tensorboard", "typer"}
SLOW = {"arviz", "pandas", "rich", "scipy", "xarray"}
"""They are imported in the functions that use them: importing the package takes little longer than importing Pyro."""


def test_importing_the_package_loads_no_extra_and_nothing_slow_and_warns_of_nothing():
    # what Pyro, torch or an installed plug-in of theirs loads is not ours
    code = (
        "import sys, pyro, torch; before = set(sys.modules); import pyro_discrete; "
        "print(*sorted({name.partition('.')[0] for name in set(sys.modules) - before}))"
    )
    found = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=True)
    assert "pyro_discrete" in found.stdout.split()
    assert not (EXTRAS | SLOW) & set(found.stdout.split())
