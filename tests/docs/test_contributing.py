"""CONTRIBUTING's example of an estimator is complete: as it is printed it runs, is found, and keeps the contract."""

from __future__ import annotations

import doctest
import importlib
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from textwrap import dedent
from types import ModuleType

import pyro
import pytest
import torch
from pyro.infer import SVI

from pyro_discrete import TraceELBO, available_estimators, estimators
from pyro_discrete.estimators import coupled
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.families import Family
from pyro_discrete.testing import assert_contract, check_estimator, programs
from tests.support.pairs import DATA, layers, layers_guide

ROOT = Path(__file__).parents[2]
ATTRIBUTES = {"name", "summary", "reference", "evaluations", "families", "unbiased"}


def printed() -> str:
    """The example of "Add an estimator in one file", as it is printed."""
    section = (ROOT / "CONTRIBUTING.md").read_text().split("## Add an estimator in one file\n")[1].split("\n## ")[0]
    (example,) = re.findall(r"^( *```python\n.*?class CoinFlip.*?)^ *```$", section, flags=re.MULTILINE | re.DOTALL)
    return dedent(example).removeprefix("```python\n")


@pytest.fixture(scope="module")
def coin_flip(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The module, in a file where CONTRIBUTING puts it: as if its folder were that of the estimators of this kind."""
    folder = tmp_path_factory.mktemp("coupled")
    (folder / "coin_flip.py").write_text(printed())
    coupled.__path__.append(str(folder))
    name = f"{coupled.__name__}.coin_flip"
    importlib.invalidate_caches()
    yield importlib.import_module(name)
    coupled.__path__.remove(str(folder))
    del sys.modules[name], coupled.coin_flip
    importlib.invalidate_caches()


def test_it_is_found_by_its_name(coin_flip: ModuleType) -> None:
    info = available_estimators()["coin_flip"]
    assert info.cls is coin_flip.CoinFlip
    assert (info.evaluations, info.families, info.unbiased) == ("2", {Family.BERNOULLI}, True)
    assert not hasattr(estimators, "CoinFlip")


def test_it_meets_six_attributes(coin_flip: ModuleType) -> None:
    """Those, and three methods; all else that an estimator may declare has a default."""
    own = {name for name in vars(coin_flip.CoinFlip) if not name.startswith("_")}
    assert own == ATTRIBUTES | {"rows", "draw", "surrogate"}
    assert issubclass(coin_flip.CoinFlip, Estimator)


def test_its_docstring_runs(coin_flip: ModuleType) -> None:
    found = doctest.testmod(coin_flip)
    assert found.attempted == 2
    assert not found.failed


def test_it_is_in_our_style(tmp_path: Path) -> None:
    file = tmp_path / "coin_flip.py"
    file.write_text(printed())
    for command in (["check"], ["format", "--check"]):
        call = [sys.executable, "-m", "ruff", *command, "--config", str(ROOT / "pyproject.toml"), str(file)]
        done = subprocess.run(call, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("compile", [False, "graph"])
def test_it_trains(coin_flip: ModuleType, compile: bool | str) -> None:
    elbo = TraceELBO("coin_flip", num_particles=2, compile=compile)
    svi = SVI(layers, layers_guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    losses = [svi.step(DATA) for _ in range(6)]
    assert torch.tensor(losses).isfinite().all()
    assert {type(each) for _, each in elbo.estimators.items()} == {coin_flip.CoinFlip}


@pytest.mark.statistical
def test_it_keeps_the_contract(coin_flip: ModuleType) -> None:
    """On programs of each kind with Bernoulli sites alone; a false alarm has a probability below 1e-6."""
    names = ("one_bernoulli", "bernoulli_event", "two_layers", "subsampled", "shared_parameters")
    chosen = [each for each in programs() if each.name in names]
    assert len(chosen) == len(names)
    report = check_estimator(coin_flip.CoinFlip(), programs=chosen, draws=1_600, false_alarm=1e-6)
    assert_contract(report)
    assert report.unbiased
    assert {each.program for each in report.comparisons} == set(names)
