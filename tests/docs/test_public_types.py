"""The types that users' checkers see: pyright knows every public one of ours, as declared, not as it may infer it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PYRIGHT = shutil.which("pyright", path=str(Path(sys.executable).parent))

OF_PYRO = re.compile(r"Type of metaclass unknown|Type of base class .* is partially unknown")
"""Pyro's distributions are classes whose metaclass pyright does not find; so every class made from one is partly
unknown to it, and every type that names such a class."""


@pytest.mark.skipif(PYRIGHT is None, reason="needs pyright, of the extra dev")
def test_every_public_type_of_ours_is_known():
    assert PYRIGHT is not None
    search = {"PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}
    command = [PYRIGHT, "--verifytypes", "pyro_discrete", "--ignoreexternal", "--outputjson"]
    done = subprocess.run(command, cwd="/", env=os.environ | search, capture_output=True, text=True)
    report = json.loads(done.stdout)["typeCompleteness"]
    assert report["exportedSymbolCounts"]["withKnownType"] > 3000, "it has not looked at the package"
    messages = [
        (symbol["name"], found["message"])
        for symbol in report["symbols"]
        if not (symbol["isTypeKnown"] and not symbol["isTypeAmbiguous"])
        for found in symbol["diagnostics"]
        if found["severity"] == "error"
    ]
    of_pyro = {name.rpartition(".")[2] for name, message in messages if message == "Type of metaclass unknown"}
    named = re.compile(rf"(?:type|Type|class) .*\b({'|'.join(map(re.escape, sorted(of_pyro)))})\b")
    ours = [
        f"{name}: {message}"
        for name, message in messages
        if "Unknown" in message or not (OF_PYRO.match(message) or named.search(message))
    ]
    assert not ours, "\n".join(ours)
    assert all(name.startswith("pyro_discrete.") for name, _ in messages)
