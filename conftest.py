"""What every test starts from: one torch thread, a fixed seed, an empty param store, default settings."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import matplotlib
import pyro
import pytest
import torch

torch.set_num_threads(1)  # pytest-xdist has a worker a core: more threads would only contend
matplotlib.use("Agg")
gc.disable()  # until all tests are collected: what that makes stays


def pytest_collection_finish() -> None:
    """The collector need not walk through thousands of tests and what they import, and not at every 700th object."""
    gc.freeze()
    gc.set_threshold(10_000, 20)
    gc.enable()


@pytest.fixture(autouse=True)
def fresh_state() -> Iterator[None]:
    """No test sees another's parameters, random numbers, validation setting or default dtype."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float32)
    yield
    pyro.clear_param_store()
    pyro.enable_validation(True)
    torch.set_default_dtype(torch.float32)
