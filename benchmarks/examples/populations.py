"""Animals, cells and causes after Pyro's examples: chains beside other discrete sites, labels in the guide."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.infer import config_enumerate
from torch import Tensor, nn

from benchmarks.examples.chains import taken
from benchmarks.examples.example import PARALLEL, Example, at_means, example, joined

__all__ = ["captures"]

ANIMALS, YEARS = 6, 5


def captures() -> tuple[Tensor, Tensor]:
    """Which animals were seen in which years `[animals, years]`, each at least once, and their sexes."""
    history = (torch.rand(ANIMALS, YEARS) > 0.5).to(torch.get_default_dtype())
    history[torch.arange(ANIMALS), torch.arange(ANIMALS) % 3] = 1.0
    return history, (torch.arange(ANIMALS) % 2).to(history)


def survival(history: Tensor, seen_rate: Tensor, survives: Any) -> None:
    """A chain of alive or dead for each animal, from its first capture on. `survives(t)`: the rate, of the year."""
    seen: Any = torch.zeros(len(history), dtype=torch.bool)
    alive = torch.ones(len(history))
    animals = pyro.plate("animals", len(history), dim=-1)
    for t in pyro.markov(range(history.shape[1])):
        rate = survives(t)
        with animals, poutine.mask(mask=seen):
            alive = pyro.sample(f"z_{t}", dist.Bernoulli(torch.where(seen, rate * alive, 1.0)), infer=PARALLEL)
            pyro.sample(f"y_{t}", dist.Bernoulli(seen_rate * alive), obs=history[:, t])
        seen = seen | history[:, t].bool()


@example
def capture_recapture() -> Example:
    """One rate of survival for all."""

    def model(history: Tensor, sex: Tensor) -> None:
        rate = pyro.sample("phi", dist.Uniform(0.0, 1.0))
        survival(history, pyro.sample("rho", dist.Uniform(0.0, 1.0)), lambda t: rate)

    return Example(model, at_means(model, ("phi", "rho")), captures(), 1)


@example
def capture_recapture_by_year() -> Example:
    """A rate for each year, drawn inside of the chain, and an effect of sex."""

    def model(history: Tensor, sex: Tensor) -> None:
        of_sex = sex * pyro.sample("phi_beta", dist.Normal(0.0, 10.0))

        def survives(t: int) -> Tensor:
            return torch.sigmoid(of_sex + (pyro.sample(f"phi_{t}", dist.Normal(0.0, 10.0)) if t else 0.0))

        survival(history, pyro.sample("rho", dist.Uniform(0.0, 1.0)), survives)

    return Example(model, at_means(model, ("phi", "rho")), captures(), 1)


@example
def mixed_hmm() -> Example:
    """Tracks of animals in groups: a discrete effect of the group and of the animal on the transitions of a chain.

    Observed steps of the length zero are inflated; animals and times that are missing are masked.
    """
    effects, states, groups, animals, times = 2, 2, 2, 3, 3
    steps = dist.Gamma(2.0, 1.0).sample((animals, groups, times)) * (torch.rand(animals, groups, times) > 0.3)
    there: Any = torch.ones(animals, groups, dtype=torch.bool)
    there[2, 1] = False
    ends: Any = torch.tensor([[3, 2], [2, 3], [3, 3]])

    @config_enumerate
    def model() -> None:
        def of(name: str, *shape: int) -> Tensor:
            return pyro.param(name, lambda: torch.randn(shape).abs() + 0.2)

        def table(name: str, *shape: int) -> Tensor:
            return pyro.param(name, lambda: torch.randn(shape))

        shares = dist.constraints.simplex
        of_group = pyro.param("group_probs", lambda: torch.rand(effects), constraint=shares)
        of_animal = pyro.param("animal_probs", lambda: torch.rand(groups, effects), constraint=shares)
        with pyro.plate("group", groups, dim=-1):
            group = pyro.sample("e_g", dist.Categorical(of_group))
            effect = taken(table("group_table", effects, states**2), ..., group, slice(None))
            with pyro.plate("animal", animals, dim=-2), poutine.mask(mask=there):
                animal = pyro.sample("e_i", dist.Categorical(of_animal))
                effect = effect + taken(table("animal_table", groups, effects, states**2), ..., animal, slice(None))
                moves = effect.reshape(*effect.shape[:-1], states, states)
                y: Any = torch.tensor(0)
                for t in pyro.markov(range(times)):
                    with poutine.mask(mask=t < ends):
                        y = pyro.sample(f"y_{t}", dist.Categorical(logits=taken(moves, ..., y, slice(None))))
                        still = steps[..., t] == 0
                        rests = dist.Categorical(logits=taken(table("rests", states, 2), ..., y, slice(None)))
                        pyro.sample(f"rest_{t}", rests, obs=still.long())
                        moving = dist.Gamma(taken(of("shape", states), ..., y), taken(of("rate", states), ..., y))
                        length = dist.MaskedMixture(still, moving, dist.Delta(torch.tensor(0.0)))
                        pyro.sample(f"step_{t}", length, obs=steps[..., t])

    return Example(model, lambda: None, (), 2)


@example
def annotated_cells() -> Example:
    """Counts of genes in cells without a label, two layers of latents and a label between them, summed out.

    After the example's model of single cells, with a point in the place of each continuous site's distribution.
    """
    genes, labels, size = 7, 3, 2
    x = dist.Poisson(4.0).sample((5, genes))
    decoder_2, decoder = nn.Linear(size + labels, 2 * size), nn.Linear(size, 2 * genes)
    encoder, classifier, encoder_1 = nn.Linear(genes, size + 1), nn.Linear(size, labels), nn.Linear(size + labels, size)

    def model(x: Tensor) -> None:
        pyro.module("decoder", nn.ModuleList([decoder_2, decoder]))
        theta = pyro.param("dispersion", 10.0 * torch.ones(genes), constraint=dist.constraints.positive)
        with pyro.plate("cells", len(x)), poutine.scale(scale=1.0 / x.numel()):
            z1 = pyro.sample("z1", dist.Normal(0.0, torch.ones(size)).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=torch.zeros(labels)))
            loc, scale = decoder_2(torch.cat(joined(z1, y), -1)).chunk(2, -1)
            z2 = pyro.sample("z2", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))
            total = pyro.sample("total", dist.LogNormal(3.0, torch.ones(1)).to_event(1))
            gates, shares = decoder(z2).chunk(2, -1)
            rates = (total * shares.softmax(-1) + 5e-3).log() - theta.log()
            counts = dist.ZeroInflatedNegativeBinomial(gate_logits=gates, total_count=theta, logits=rates)
            pyro.sample("x", counts.to_event(1), obs=x)

    @config_enumerate(default="parallel", expand=True)
    def guide(x: Tensor) -> None:
        pyro.module("encoder", nn.ModuleList([encoder, classifier, encoder_1]))
        with pyro.plate("cells", len(x)), poutine.scale(scale=1.0 / x.numel()):
            loc = encoder(torch.log1p(x))
            pyro.sample("total", dist.Delta(loc[..., -1:].exp(), event_dim=1))
            z2 = pyro.sample("z2", dist.Delta(loc[..., :-1], event_dim=1))
            y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(z2)))
            pyro.sample("z1", dist.Delta(encoder_1(torch.cat(joined(z2, y), -1)), event_dim=1))

    return Example(model, guide, (x,), 1)


@example
def hidden_cause() -> Example:
    """Three bits in a row for each datum, the one in the middle not observed."""
    first, last = ((torch.rand(8) > share).to(torch.get_default_dtype()) for share in (0.4, 0.6))

    @config_enumerate
    def model(first: Tensor, last: Tensor) -> None:
        rate = pyro.sample("p_a", dist.Beta(1.0, 1.0))
        middle, end = (pyro.sample(n, dist.Beta(torch.ones(2), torch.ones(2)).to_event(1)) for n in ("p_b", "p_c"))
        with pyro.plate("data", len(first)):
            a = pyro.sample("a", dist.Bernoulli(rate), obs=first)
            b = pyro.sample("b", dist.Bernoulli(taken(middle, a.long())))
            pyro.sample("c", dist.Bernoulli(taken(end, b.long())), obs=last)

    return Example(model, at_means(model, "p_"), (first, last), 1)
