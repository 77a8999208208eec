"""Mixture, latent classes and hidden Markov model: gradients, likelihoods and classes against brute force."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.data.catalogue import load_data
from models.programs.gmm import GaussianMixture
from models.programs.hmm import HiddenMarkovModel
from models.programs.lca import LatentClassAnalysis
from models.programs.program import LatentClasses
from models.runs.config import PROGRAMS, configure
from models.runs.evaluation import bounds, isolated, log_likelihood
from models.runs.posterior import agreement, many_to_one_accuracy, most_probable
from models.runs.training import Training
from models.runs.trials import KINDS, kind_of, try_program
from pyro_discrete import AutoDiscreteMeanField, TraceELBO, available_estimators
from pyro_discrete.diagnostics import exact_gradient

NAMES = [name for name, program in PROGRAMS.items() if issubclass(program, LatentClasses)]
SEQUENCES = torch.tensor([[0, 2, 1], [1, 0, -1]])


def small(name: str, guide: str = "amortised", seed: int = 0) -> tuple[LatentClasses, Tensor]:
    """A program of two or three classes with parameters far from symmetric, and two elements of data."""
    torch.manual_seed(seed)
    if name == "gmm":
        factors = torch.tensor([[[1.0, 0.0], [0.3, 0.8]], [[0.5, 0.0], [-0.2, 1.2]]])
        shares = torch.tensor([0.7, 0.3])
        program: LatentClasses = GaussianMixture(0.3 * torch.randn(2, 2), factors, shares, (3,), guide)
        x = 0.3 * torch.randn(2, 2)
    elif name == "lca":
        program = LatentClassAnalysis(torch.tensor([0.3, 0.6, 0.8]), 3, (3,), guide)
        x = torch.tensor([[1.0, 0.0, -1.0], [0.0, 1.0, 1.0]])
    else:
        program = HiddenMarkovModel(torch.tensor([0.5, 0.3, 0.2]), 2, (3,), guide)
        x = SEQUENCES
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return program, x


def gradients(program: LatentClasses, elbo: TraceELBO, x: Tensor) -> dict[str, Tensor]:
    program.zero_grad()
    elbo.loss_and_grads(program.model, program.guide, x)
    return {n: torch.zeros_like(p) if p.grad is None else p.grad.clone() for n, p in program.named_parameters()}


def brute_force(program: LatentClasses, x: Tensor) -> dict[str, Tensor]:
    found = {name.split("$$$")[-1]: g for name, g in exact_gradient(program.model, program.guide, x).items()}
    return {name: found.get(name, torch.zeros_like(p)) for name, p in program.named_parameters()}


@pytest.mark.parametrize("guide", LatentClasses.GUIDES)
@pytest.mark.parametrize("name", NAMES)
def test_exact_gradients_are_those_of_brute_force(name: str, guide: str) -> None:
    program, x = small(name, guide)
    truth = brute_force(program, x)
    for parameter, gradient in gradients(program, TraceELBO("enumerate"), x).items():
        assert torch.allclose(gradient.double(), truth[parameter].double(), atol=2e-5), parameter


@pytest.mark.statistical
@pytest.mark.parametrize("name", NAMES)
def test_sampled_gradients_agree_with_brute_force(name: str) -> None:
    """A batch of 40 means of 500 particles; |z| < 5 over some 30 numbers: a false alarm in 2e-5 of all seeds."""
    program, x = small(name)
    truth = brute_force(program, x)
    elbo = TraceELBO("rloo", num_particles=500)
    draws = [gradients(program, elbo, x) for _ in range(40)]
    for parameter, exact in truth.items():
        found = torch.stack([draw[parameter] for draw in draws]).double()
        error = found.std(0) / math.sqrt(len(draws)) + 1e-6
        assert ((found.mean(0) - exact).abs() / error).max() < 5, parameter


def forward_algorithm(program: HiddenMarkovModel, sequence: list[int]) -> float:
    """log p(sequence) by Rabiner's forward recursion, in numpy and float64."""
    start, transition, emission = (
        torch.softmax(p.detach().double(), -1).numpy() for p in (program.start, program.transition, program.emission)
    )
    alpha = start * emission[:, sequence[0]]
    for symbol in sequence[1:]:
        alpha = (alpha @ transition) * emission[:, symbol]
    return float(np.log(alpha.sum()))


def test_the_likelihood_of_chains_is_that_of_the_forward_algorithm() -> None:
    torch.manual_seed(3)
    program = HiddenMarkovModel(torch.full((5,), 0.2), 4, guide="marginal")
    lengths = [9, 7, 2, 1]
    x = torch.full((4, 9), -1)
    for row, length in zip(x, lengths, strict=True):
        row[:length] = torch.randint(5, (length,))
    truth = [forward_algorithm(program, row[:length].tolist()) for row, length in zip(x, lengths, strict=True)]
    assert log_likelihood(program, x) == pytest.approx(np.mean(truth), abs=1e-4)
    assert bounds(program, x, samples=3).elbo == pytest.approx(np.mean(truth), abs=1e-4)


def log_joints(program: LatentClasses, x: Tensor) -> tuple[list[Any], Tensor]:
    """All joint classes of one element, and log p(x, z) of each element `[classes, n]`, without Pyro's enumeration."""
    p = {name: value.detach() for name, value in program.named_parameters()}
    weights = torch.log_softmax(p.get("weights", p.get("start", torch.empty(0))), -1)
    if isinstance(program, GaussianMixture):
        normal = torch.distributions.MultivariateNormal(program.means, scale_tril=program.scale_tril)
        return [0, 1], (normal.log_prob(x.unsqueeze(1)) + weights).T.detach()
    if isinstance(program, LatentClassAnalysis):
        chance = p["item_logits"].sigmoid()
        each = torch.where(x.unsqueeze(1) == 1, chance, torch.where(x.unsqueeze(1) == 0, 1 - chance, torch.ones(())))
        return [0, 1, 2], (each.log().sum(-1) + weights).T
    paths = list(itertools.product(range(2), repeat=x.shape[1]))
    transition, emission = torch.log_softmax(p["transition"], -1), torch.log_softmax(p["emission"], -1)
    table = torch.zeros(len(paths), len(x))
    for i, path in enumerate(paths):
        for j, row in enumerate(x.tolist()):
            ended = row.index(-1) if -1 in row else len(row)
            table[i, j] = sum(emission[path[t], row[t]] for t in range(ended)) + weights[path[0]]
            table[i, j] += sum((transition[path[t - 1], path[t]] for t in range(1, ended)), torch.zeros(()))
            if any(path[ended:]):
                table[i, j] = -math.inf  # what follows the end is nobody's: count each path once
    return paths, table


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("name", NAMES)
def test_likelihood_and_most_probable_classes_by_exhaustive_search(name: str, seed: int) -> None:
    program, x = small(name, seed=seed)
    classes, table = log_joints(program, x)
    assert log_likelihood(program, x) == pytest.approx(float(table.logsumexp(0).mean()), abs=1e-4)
    best = torch.tensor([classes[i] for i in table.argmax(0).tolist()])
    there = x >= 0 if name == "hmm" else torch.ones_like(best, dtype=torch.bool)
    assert torch.equal(most_probable(program, x)[there], best[there])


def test_a_long_enough_bound_is_the_likelihood() -> None:
    """A chain's guide that is one half everywhere: 20,000 weights bring the bound to the exact value."""
    program, x = small("hmm")
    assert bounds(program, x, 20_000).importance_weighted == pytest.approx(log_likelihood(program, x), abs=0.02)


@pytest.mark.parametrize("name", [n for n in NAMES if n != "motif"])  # which starts at what EM finds
def test_classes_are_found_again(name: str) -> None:
    config = configure(name, "enumerate", steps=100, guide="marginal", lr=0.05)
    data = load_data(config.data)
    with isolated(0):
        training = Training(config, data)
        before = log_likelihood(training.program, data.test)
        training.run()
    assert log_likelihood(training.program, data.test) > before + 0.1
    assert agreement(training.program, data)["adjusted_rand_index"] > 0.5


def test_many_to_one_accuracy() -> None:
    labels, found = np.array([0, 0, 0, 1, 1, 2]), np.array([1, 1, 0, 0, 0, 0])
    assert many_to_one_accuracy(labels, found) == pytest.approx(4 / 6)
    assert many_to_one_accuracy(labels, labels) == 1
    assert many_to_one_accuracy(labels, np.zeros(6)) == 0.5


def test_kinds_of_estimators() -> None:
    known = available_estimators()
    names = ("enumerate", "nvil", "disarm", "rebar", "gumbel_softmax")
    assert {name: kind_of(known[name].cls) for name in names} == {
        "enumerate": "exact",
        "nvil": "score function",
        "disarm": "score function",
        "rebar": "score function",
        "gumbel_softmax": "relaxed",
    }


@pytest.mark.parametrize("name", NAMES)
def test_each_program_runs_unmodified_under_every_kind(name: str) -> None:
    trial = try_program(name)
    assert all(trial.runs[kind] for kind in KINDS), trial.refused
    assert sum(len(trial.runs[kind]) + len(trial.refused[kind]) for kind in KINDS) == len(available_estimators())
    assert trial.told("exact") == "1 of 1"


@pytest.mark.parametrize("amortize", [False, 8])
@pytest.mark.parametrize("name", [n for n in NAMES if n != "motif"])  # whose places take more steps
def test_a_guide_made_from_the_model_serves_too(name: str, amortize: bool | int) -> None:
    """With logits for each element, the bound comes to the likelihood where classes are independent given the data."""
    program, x = small(name)
    guide = AutoDiscreteMeanField(program.model, amortize=amortize)
    elbo = TraceELBO("enumerate")
    before = -elbo.loss(program.model, guide, x) / len(x)
    optimiser = torch.optim.Adam(guide.parameters())
    for step in range(60):
        optimiser.param_groups[0]["lr"] = 0.3 * (1 - step / 60)
        optimiser.zero_grad()
        elbo.loss_and_grads(program.model, guide, x)
        optimiser.step()
    bound, evidence = -elbo.loss(program.model, guide, x) / len(x), log_likelihood(program, x)
    assert before < bound < evidence + 1e-4
    if not amortize:
        # What a chain's mean field leaves out: the dependence of one step on the next.
        assert bound == pytest.approx(evidence, abs=0.2 if name == "hmm" else 0.005)


@pytest.mark.parametrize("estimator", ["nvil", "gumbel_softmax"])
def test_latents_that_the_guide_leaves_out_are_summed_under_every_estimator(estimator: str) -> None:
    program, x = small("hmm", "marginal")
    truth = gradients(program, TraceELBO("enumerate"), x)
    for parameter, gradient in gradients(program, TraceELBO(estimator), x).items():
        assert torch.allclose(gradient, truth[parameter], atol=1e-5), parameter
