"""What importing the package brings along: nothing of the extras."""

from __future__ import annotations

import subprocess
import sys


def test_the_package_imports_no_extra():
    code = "import pyro_discrete, sys; print(sorted({'matplotlib', 'sklearn', 'typer', 'jinja2'} & sys.modules.keys()))"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"
