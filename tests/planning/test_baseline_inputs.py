"""What a baseline reads of the data: numbers as they are, the indicators of a structure's integers."""

from __future__ import annotations

from types import SimpleNamespace

import pyro
import pyro.distributions as dist
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from pyro_discrete import NVIL, TraceELBO
from pyro_discrete.distributions import Arborescence, KSubset, LinearChain, PlackettLuce, SequentialMatching
from pyro_discrete.planning.baseline_inputs import features_of


def observed(fn, value):
    return {"fn": fn, "value": value}


def test_integers_of_a_structure_are_indicators():
    orders = torch.tensor([[2, 0, 1], [1, 2, 0]])
    law = PlackettLuce(torch.zeros(2, 3))
    torch.testing.assert_close(features_of(observed(law, orders)), F.one_hot(orders, 3).float().reshape(2, 9))
    together = features_of(observed(law.to_event(1), orders))
    torch.testing.assert_close(together, F.one_hot(orders, 3).float().reshape(18))
    lists = PlackettLuce(torch.zeros(4), 2)
    torch.testing.assert_close(
        features_of(observed(lists, torch.tensor([3, 1]))), F.one_hot(torch.tensor([3, 1]), 4).float().reshape(8)
    )
    torch.manual_seed(0)
    states = torch.tensor([1, 0, 2, 2])
    torch.testing.assert_close(
        features_of(observed(LinearChain(torch.zeros(4, 3, 3)), states)), F.one_hot(states, 3).float().reshape(12)
    )
    for law in (SequentialMatching(torch.zeros(3, 3)), Arborescence(torch.zeros(4, 4))):
        found = features_of(observed(law, law.sample()))
        assert found.unique().tolist() == [0.0, 1.0]
        assert found.sum() == 3  # an indicator of each integer


def test_other_values_are_read_as_they_are():
    subset = torch.tensor([1.0, 0.0, 1.0])
    torch.testing.assert_close(features_of(observed(KSubset(torch.zeros(3), 2), subset)), subset)
    torch.testing.assert_close(
        features_of(observed(dist.Categorical(torch.ones(2, 4)), torch.tensor([3, 1]))), torch.tensor([[3.0], [1.0]])
    )


@pytest.mark.parametrize("settings", [{}, {"compile": "graph"}, {"num_particles": 2}])
def test_nvil_reads_observed_rankings(settings):
    """A group's label is drawn given its members' rankings, which its baseline sees item by place."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    orders = PlackettLuce(torch.zeros(6, 4)).sample()
    guess, strengths = nn.Parameter(torch.zeros(6)), torch.tensor([[0.0, 1.0, 0.5, -1.0], [1.0, -1.0, 0.0, 0.3]])

    def model(orders):
        with pyro.plate("judges", 6):
            group = pyro.sample("group", dist.Bernoulli(0.4))
            logits = strengths[0] + group.unsqueeze(-1) * (strengths[1] - strengths[0])
            pyro.sample("order", PlackettLuce(logits), obs=orders)

    def guide(orders):
        with pyro.plate("judges", 6):
            pyro.sample("group", dist.Bernoulli(logits=guess))

    network = SimpleNamespace(widths=[])

    class Watched(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(16, 1)

        def forward(self, context):
            network.widths.append(context.shape)
            return self.linear(context)

    elbo = TraceELBO(NVIL(network=Watched()), **settings)
    for _ in range(3):
        elbo.loss_and_grads(model, guide, orders)
    assert {shape[-2:] for shape in network.widths} == {torch.Size([6, 16])}
