"""Steps that cannot be captured run eagerly, and say why."""

from __future__ import annotations

import copy
import random
import warnings
from collections.abc import Callable

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from torch import Tensor

from pyro_discrete import TraceELBO
from pyro_discrete.errors import NonFiniteError
from tests.support.captured_pairs import Pair, captures_of, data, graph_elbo, same_as_eager, steps

OWN_GENERATOR = torch.Generator().manual_seed(0)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda mean: mean if mean.sum() > 0 else -mean, "decides in Python by a tensor's value"),
        (lambda mean: mean * float(mean.mean()), "decides in Python by a tensor's value"),
        (lambda mean: mean * torch.tensor(mean.tolist()), "decides in Python by a tensor's value"),
        (lambda mean: mean * mean.detach().untyped_storage()[0], r"\.untyped_storage\(\)"),
        (lambda mean: mean + torch.from_numpy(mean.detach().numpy() * 0.1), r"\.numpy\(\)"),
        (lambda mean: mean + torch.rand((), generator=OWN_GENERATOR), "torch.Generator of its own"),
        (lambda mean: mean + random.random(), "random numbers from NumPy or Python"),
        (lambda mean: mean + float(np.random.rand()), "random numbers from NumPy or Python"),  # noqa: NPY002
        (lambda mean: mean * (mean[mean > 0].numel() + 1), "shape of a tensor depends on values"),
    ],
)
def test_what_cannot_be_captured_runs_eagerly(change: Callable[[Tensor], Tensor], reason: str) -> None:
    elbo, pair = graph_elbo(), Pair(change)
    with pytest.warns(UserWarning, match=reason) as caught:
        steps(elbo, pair, data())
    assert sum("compile" in str(each.message) for each in caught) == 1
    assert captures_of(elbo).count == 0
    assert captures_of(elbo).reason
    assert elbo.loss_and_grads(pair.model, pair.guide, data()) != 0


def test_what_is_held_may_be_a_list_until_it_is_written_to() -> None:
    """`.tolist()` goes past torch's dispatcher: a draw's was taken for a constant."""
    held = torch.tensor([0.5, 0.25])
    elbo, pair = TraceELBO("reinforce", compile="graph"), Pair(lambda mean: mean * held.tolist()[0])
    steps(elbo, pair, data())
    assert captures_of(elbo).count == 1
    held.mul_(3)
    eager = TraceELBO("reinforce")
    found = []
    for each in (elbo, eager):
        torch.manual_seed(1)
        found.append(each.loss_and_grads(pair.model, pair.guide, data()))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_what_a_refused_step_had_written_is_put_back() -> None:
    """The step that could not be captured runs again: batch statistics and arguments are changed once."""
    outcomes = []
    for elbo in (TraceELBO("reinforce"), TraceELBO("reinforce", compile="graph")):
        pyro.set_rng_seed(0)
        norm, generator, counter = torch.nn.BatchNorm1d(2), torch.Generator().manual_seed(0), torch.zeros(3)

        def change(mean: Tensor, norm=norm, generator=generator, counter=counter) -> Tensor:
            counter[1:].add_(1)
            counter.mul_(1.5)
            norm(torch.rand(4, 2, generator=generator))
            return mean * float(norm.running_mean.sum())

        pair = Pair(change)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            losses = [elbo.loss_and_grads(pair.model, pair.guide, data()) for _ in range(4)]
        outcomes.append([torch.tensor(losses), counter, *norm.state_dict().values(), generator.get_state()])
    assert all(torch.equal(a, b) for a, b in zip(*outcomes, strict=True))


def test_a_draws_value_in_python_is_refused():
    def guide() -> None:
        if pyro.sample("a", dist.Bernoulli(logits=pyro.param("a_logit", torch.tensor(0.2)))).item() > 0:
            pyro.sample("b", dist.Bernoulli(logits=pyro.param("b_logit", torch.tensor(0.1))))

    def model() -> None:
        if pyro.sample("a", dist.Bernoulli(0.5)).item() > 0:
            pyro.sample("b", dist.Bernoulli(0.3))

    elbo = TraceELBO("reinforce", compile="graph")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        for _ in range(6):
            elbo.loss_and_grads(model, guide)
    assert sum("cannot be captured" in str(each.message) for each in caught) == 1


def test_numpy_arguments_run_eagerly():
    elbo, pair = graph_elbo(), Pair()
    with pytest.warns(UserWarning, match="give a tensor"):
        elbo.loss_and_grads(pair.model, pair.guide, data(), np.ones(3))


def test_a_loss_that_is_not_finite_is_an_error_and_teaches_nothing():
    pair = Pair()
    elbo = TraceELBO("nvil", compile="graph")
    steps(elbo, pair, data(), count=6)
    state = copy.deepcopy({k: v for k, v in elbo.state_dict().items() if torch.is_tensor(v)})
    bad = data()
    bad[0, 0] = float("inf")
    with pytest.raises(NonFiniteError, match="'z' of the guide"):
        elbo.loss_and_grads(pair.model, pair.guide, bad)
    assert all(torch.equal(value, elbo.state_dict()[key]) for key, value in state.items())


def test_a_handler_around_the_step_is_obeyed():
    elbo, pair = graph_elbo(), Pair()
    steps(elbo, pair, data())
    with pytest.warns(UserWarning, match="handler is around"), poutine.scale(scale=2.0):
        assert same_as_eager(elbo, pair.model, pair.guide, data())


def test_exact_sums_of_a_program_that_decides_say_that_they_are_not_captured():
    pair, elbo = Pair(lambda mean: mean if mean.sum() > 0 else -mean), TraceELBO("enumerate", compile="graph")
    with pytest.warns(UserWarning, match="exact enumeration: it decides in Python"):
        steps(elbo, pair, data())
    assert captures_of(elbo).count == 0
