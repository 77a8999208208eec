"""What a terminal shows while a step is captured."""

from __future__ import annotations

import io
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def model() -> None:
    with pyro.plate("data", 3):
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=torch.ones(3))


def guide() -> None:
    with pyro.plate("data", 3):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("q", torch.zeros(3))))


@pytest.mark.parametrize("terminal", [True, False])
def test_a_terminal_is_told_what_capturing_is_at(terminal: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    shown = Terminal() if terminal else io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    elbo = TraceELBO("reinforce", compile="graph")
    for _ in range(2):
        elbo.loss_and_grads(model, guide)
    assert elbo.captures is not None
    assert elbo.captures.count == 1
    for told in ("compile: tracing a step", "compile: looking through"):
        assert (told in shown.getvalue()) is terminal
