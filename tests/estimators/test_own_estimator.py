"""Estimators that live outside the package go on working: written for the contract as users know it.

The classes are as a user would have written them against `pyro_discrete.estimators.base`. They are a promise: a change
of the package that needs them changed breaks users' own estimators, and is wrong. The reports' false alarms together
have a probability below 1e-6.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_discrete import TraceELBO, TraceIWELBO, available_estimators
from pyro_discrete.estimators.base import Draw, Estimator, SiteView, Surrogate
from pyro_discrete.families import FINITE, RELAXABLE, Family
from pyro_discrete.testing import assert_contract, check_estimator, count_programs, programs

X = (1.7 * torch.arange(20)).sin().reshape(10, 2)
FALSE_ALARM = 1e-7


class SelfCritic(Estimator):
    """The score function with the cost at the most likely value as its baseline, two coupled rows."""

    name = "self_critic"
    summary = "score function, baseline at the most likely value"
    reference = "Rennie et al. 2017"
    evaluations = "2"
    families = frozenset({Family.BERNOULLI, Family.CATEGORICAL})
    unbiased = True

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        if site.family is Family.BERNOULLI:
            likely = (site.logits > 0).to(site.logits.dtype)
        else:
            likely = site.logits.argmax(-1)
        value = torch.stack([site.sample(), likely])
        return Draw(value, logits=site.logits, extra={"log_mass": site.log_mass(value).transpose(0, 1)})

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """`cost` `[2, K, *batch]`; the score is at hand twice: as the engine's, and as this class's own `extra`."""
        assert draw.value.shape[:2] == cost.shape[:2]
        assert draw.logits is not None
        torch.testing.assert_close(draw.extra["log_mass"][:, 0], draw.score)
        return Surrogate(draw.score * (cost[0] - cost[1]).detach())


class Averaged(Estimator):
    """The score function, its baseline a running average and a network of what the site's context holds.

    - `learning_rate`: None: whoever trains the model trains the network. `steps` counts what was seen.
    """

    name = "averaged"
    summary = "score function, running average and a network as baselines"
    reference = "none"
    reads_context = True

    average: Tensor
    steps: Tensor

    def __init__(self, decay: float = 0.9, input: str | Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.decay, self.input = decay, input
        self.register_buffer("average", torch.zeros(()))
        self.register_buffer("steps", torch.zeros((), dtype=torch.int64))
        self.network: nn.Module | None = None

    @classmethod
    def variants(cls) -> list[Estimator]:
        return [cls(), cls(decay=0.5)]

    def prepare(self, features: int, like: Tensor) -> None:
        if features and self.network is None:
            self.network = nn.Linear(features, 1).to(like)

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """Works on costs freed of the plates' scale; reads the average before it is updated."""
        f = cost[0].detach() / draw.scale
        signal, auxiliary = f - self.average.to(f), None
        if self.network is not None and draw.context is not None:
            predicted = self.network(draw.context.to(f)).squeeze(-1)
            auxiliary = (signal - predicted).square().mean()
            signal = signal - predicted.detach()
        with torch.no_grad():
            self.average.lerp_(f.mean().to(self.average), 1 - self.decay)
            self.steps.add_(1)
        return Surrogate(draw.score * signal * draw.scale, auxiliary)


class Expanded(Estimator):
    """The score function less the cost's expansion about the mean: a relaxed row and its slope."""

    name = "expanded"
    summary = "score function, first-order expansion about the mean"
    reference = "Gu et al. 2016"
    evaluations = "2"
    families = RELAXABLE
    relaxed = (1,)

    def rows(self, site: SiteView) -> int:
        return 2

    def draw(self, site: SiteView) -> Draw:
        mean = site.logits.softmax(-1) if site.family is Family.ONE_HOT else site.logits.sigmoid()
        return Draw(torch.stack([site.sample(), mean]))

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        """`draw.slopes` has those of row 1 alone: what `slope_rows` says."""
        assert set(draw.slopes) == set(self.slope_rows) == {1}
        (value, mean), slope = draw.value, draw.slopes[1].detach()
        over = (*cost.shape[1:], -1)
        linear = (slope * (value - mean).detach()).reshape(over).sum(-1)
        signal = (cost[0] - cost[1]).detach() - linear
        return Surrogate(draw.score * signal + (slope * mean).reshape(over).sum(-1))


class Sloped(Estimator):
    """Leave-one-out, a learned multiple of the other particles' slope at their hard values as a second baseline."""

    name = "sloped"
    summary = "leave-one-out, and the slopes of the others"
    reference = "Titsias & Shi 2022"
    families = frozenset({Family.BERNOULLI})
    sloped = (0,)
    min_particles = 2

    def __init__(self) -> None:
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(-0.5))

    def draw(self, site: SiteView) -> Draw:
        return Draw(site.sample().unsqueeze(0), extra={"mean": site.logits.sigmoid()})

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        def others(each: Tensor) -> Tensor:
            return (each.sum(0) - each) / (len(each) - 1)

        mean, over = draw.extra["mean"], (*cost.shape[1:], -1)
        slope, alpha = others(draw.slopes[0].detach()), self.alpha.to(cost)
        linear = (slope * (draw.value[0] - mean).detach()).reshape(over).sum(-1)
        signal = cost[0] - others(cost[0]) + alpha * (linear - others(linear))
        loss = draw.score * signal.detach() - alpha.detach() * (slope * mean).reshape(over).sum(-1)
        return Surrogate(loss, (signal / draw.scale).square().mean())


class SummedOut(Estimator):
    """The exact sum over a site's own support, all of its values as rows."""

    name = "summed_out"
    summary = "each element's support, row by row"
    reference = "none"
    families = FINITE - {Family.COUNT}
    separable = True

    def rows(self, site: SiteView) -> int:
        return 1 + int(site.cardinality)

    def draw(self, site: SiteView) -> Draw:
        support = site.support()
        value = torch.cat([site.sample().unsqueeze(0), support])
        return Draw(value, extra={"mass": site.log_mass(support).exp().transpose(0, 1)})

    def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
        return Surrogate((draw.extra["mass"].transpose(0, 1) * cost[1:].detach()).sum(0))


class Layers(nn.Module):
    """A bit and an integer for each datum, and one bit for all."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.up, self.decode = nn.Linear(2, 1), nn.Linear(1, 3), nn.Linear(4, 2)
        self.shared = nn.Parameter(torch.zeros(()))

    def model(self, x: Tensor) -> None:
        pyro.module("layers", self)
        g = pyro.sample("g", dist.Bernoulli(0.4))
        with pyro.plate("data", 20, subsample=torch.arange(len(x))):
            b = pyro.sample("b", dist.Categorical(torch.tensor([0.2, 0.5, 0.3])))
            a = pyro.sample("a", dist.Bernoulli(0.2 + 0.1 * b))
            values = torch.stack([a, 0.5 * b, a * b, g.expand_as(a)], -1)
            pyro.sample("x", dist.Normal(self.decode(values), 0.7).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("layers", self)
        pyro.sample("g", dist.Bernoulli(logits=self.shared))
        with pyro.plate("data", 20, subsample=torch.arange(len(x))):
            a = pyro.sample("a", dist.Bernoulli(logits=self.encode(x).squeeze(-1)))
            pyro.sample("b", dist.Categorical(logits=self.up(a.unsqueeze(-1))))


ELBOS: dict[str, Callable[[], Any]] = {
    "plain": lambda: TraceELBO(SelfCritic()),
    "plain, particles": lambda: TraceELBO(SelfCritic(), num_particles=3),
    "plain, one by one": lambda: TraceELBO(SelfCritic(), num_particles=2, vectorize_particles=False),
    "plain, in chunks": lambda: TraceELBO(SelfCritic(), num_particles=4, row_chunk=2),
    "buffer and network": lambda: TraceELBO(Averaged()),
    "of an input": lambda: TraceELBO({"a": Averaged(input="x"), "*": "rloo"}, num_particles=2),
    "relaxed row": lambda: TraceELBO(Expanded()),
    "slopes": lambda: TraceELBO({"b": Expanded(), "*": Sloped()}, num_particles=2),
    "support": lambda: TraceELBO({"g": "enumerate", "a": SelfCritic(), "b": SummedOut()}),
    "bound": lambda: TraceIWELBO(Averaged(), num_particles=3),
    "captured": lambda: TraceELBO({"g": Averaged(), "a": Sloped(), "b": Expanded()}, num_particles=2, compile="graph"),
}


@pytest.mark.parametrize("name", ELBOS)
def test_a_few_steps_of_training(name: str) -> None:
    """Losses stay finite, every parameter moves, the estimators' own among them, and the state is loaded again."""
    layers, elbo = Layers(), ELBOS[name]()
    svi = SVI(layers.model, layers.guide, pyro.optim.Adam({"lr": 0.01}), loss=elbo)
    svi.step(X)
    before = {n: p.detach().clone() for n, p in [*layers.named_parameters(), *elbo.named_parameters()]}
    losses = [svi.step(X) for _ in range(5)]
    assert torch.tensor([*losses, svi.evaluate_loss(X)]).isfinite().all()
    for key, parameter in [*layers.named_parameters(), *elbo.named_parameters()]:
        assert not torch.equal(parameter, before[key]), key
    other = ELBOS[name]()
    other.loss(layers.model, layers.guide, X)  # builds the networks
    other.load_state_dict(elbo.state_dict())
    assert int(other.step) == int(elbo.step) == 6
    found = []
    for each in (elbo, other):
        torch.manual_seed(5)
        found.append(each.loss_and_grads(layers.model, layers.guide, X))
    assert found[0] == found[1]


def test_state_is_counted_and_kept_by_site() -> None:
    layers, elbo = Layers(), TraceELBO(Averaged())
    for _ in range(3):
        elbo.loss_and_grads(layers.model, layers.guide, X)
    keys = elbo.state_dict().keys()
    for site in ("g", "a", "b"):
        own = elbo.estimators[site]
        assert isinstance(own, Averaged)
        assert int(own.steps) == 3
        assert float(own.average) != 0
        assert {f"estimators.{site}.{key}" for key in ("average", "steps", "network.weight", "network.bias")} <= keys
    assert len({id(elbo.estimators[site]) for site in ("g", "a", "b")}) == 3


def test_they_are_not_taken_for_ours() -> None:
    assert not {"self_critic", "averaged", "expanded", "sloped", "summed_out"} & available_estimators().keys()
    assert [type(each) for each in Averaged.variants()] == [Averaged, Averaged]
    assert [type(each) for each in SelfCritic.variants()] == [SelfCritic]


CHECKED: dict[str, tuple[Callable[[], Estimator], tuple[str, ...]]] = {
    "plain": (SelfCritic, ("one_bernoulli", "one_categorical", "categorical_event", "ragged_subsample")),
    "buffer and network": (Averaged, ("one_hot_event", "shared_parameters", "subsampled", "one_poisson")),
    "quick average": (lambda: Averaged.variants()[1], ("one_bernoulli", "not_reparameterised")),
    "relaxed row": (Expanded, ("bernoulli_event", "one_hot_plate", "subsampled", "mixed_chain")),
    "slopes": (Sloped, ("bernoulli_event", "two_layers", "ragged_subsample")),
    "support": (SummedOut, ("one_categorical", "one_hot_plate", "subsampled")),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", CHECKED)
def test_they_keep_the_contract(name: str) -> None:
    make, names = CHECKED[name]
    chosen = [each for each in (*programs(), *count_programs()) if each.name in names]
    assert len(chosen) == len(names)
    report = check_estimator(make(), programs=chosen, draws=1_600, dtypes=(torch.float64,), false_alarm=FALSE_ALARM)
    assert_contract(report)
    assert report.unbiased
    assert {comparison.program for comparison in report.comparisons} <= set(names)
    assert len({comparison.program for comparison in report.comparisons}) >= 2, str(report)


@pytest.mark.statistical
def test_they_keep_the_contract_of_the_bound() -> None:
    chosen = [each for each in programs() if each.name in ("one_bernoulli", "subsampled")]
    report = check_estimator(
        Averaged(), programs=chosen, draws=1_600, dtypes=(torch.float64,), false_alarm=FALSE_ALARM, inner=2
    )
    assert_contract(report)


@pytest.mark.statistical
def test_a_wrong_one_is_caught() -> None:
    class Shrunk(SelfCritic):
        """The draw's own cost within its baseline."""

        def surrogate(self, draw: Draw, cost: Tensor) -> Surrogate:
            return Surrogate(draw.score * (cost[0] - cost.mean(0)).detach())

    chosen = [each for each in programs() if each.name == "one_bernoulli"]
    report = check_estimator(Shrunk(), programs=chosen, draws=1_600, dtypes=(torch.float64,))
    with pytest.raises(AssertionError, match="one_bernoulli"):
        assert_contract(report)
