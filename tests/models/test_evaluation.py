"""Bounds against exact answers, and gradient noise against a program whose noise is known."""

from __future__ import annotations

import itertools
import math

import pyro
import pytest
import torch
from torch import Tensor

from models.data.images import Images
from models.programs.sbn import SigmoidBeliefNetwork
from models.runs import evaluation
from models.runs.evaluation import (
    bounds,
    discrete_elbo,
    gradient_noise,
    isolated,
    log_weights,
    reconstruct,
    sample_prior,
)
from pyro_discrete import TraceELBO
from pyro_discrete.errors import NonFiniteError

PIXELS = 5


def network(latents: int, seed: int = 0) -> SigmoidBeliefNetwork:
    """A belief network with large weights, so that its posteriors are far from its prior."""
    torch.manual_seed(seed)
    program = SigmoidBeliefNetwork(torch.full((PIXELS,), 0.5), (latents,))
    with torch.no_grad():
        for parameter in program.parameters():
            parameter.mul_(3.0)
    return program


def bernoulli(x: Tensor, logits: Tensor) -> Tensor:
    return (x * logits - torch.nn.functional.softplus(logits)).sum(-1)


def enumerated(program: SigmoidBeliefNetwork, x: Tensor) -> tuple[Tensor, Tensor]:
    """Exact ELBO and log p(x) of each image `[batch]`, by summing over all latents, without Pyro."""
    latents = len(program.prior_logits)
    z = torch.tensor(list(itertools.product([0.0, 1.0], repeat=latents))).unsqueeze(1)
    with torch.no_grad():
        log_joint = bernoulli(x, program.decoder[0](z)) + bernoulli(z, program.prior_logits)
        log_q = bernoulli(z, program.encoder[0](x - program.pixel_means))
    return (log_q.exp() * (log_joint - log_q)).sum(0), log_joint.logsumexp(0)


@pytest.fixture
def x() -> Tensor:
    return torch.bernoulli(torch.full((12, PIXELS), 0.5), generator=torch.Generator().manual_seed(5))


def test_bounds_agree_with_enumeration(x: Tensor) -> None:
    program = network(3)
    exact_elbo, evidence = (float(value.mean()) for value in enumerated(program, x))
    estimated = bounds(program, x, samples=20_000)
    deviation = float(log_weights(program, x, 2000).std(0).mean()) / math.sqrt(20_000 * len(x))
    # Six standard errors: a false alarm in 2e-9 of all seeds, and the seed is fixed.
    assert estimated.elbo == pytest.approx(exact_elbo, abs=6 * deviation)
    assert estimated.importance_weighted == pytest.approx(evidence, abs=0.01)


def test_the_importance_weighted_bound_lies_between_elbo_and_evidence(x: Tensor) -> None:
    program = network(3)
    evidence = float(enumerated(program, x)[1].mean())
    found = bounds(program, x, samples=100)
    assert found.elbo < found.importance_weighted < evidence + 0.05
    one = bounds(program, x, samples=1)
    assert one.importance_weighted == pytest.approx(one.elbo)


def test_with_the_exact_posterior_every_weight_is_the_evidence(x: Tensor) -> None:
    """With one latent the posterior is logistic in x, so the linear guide can hold it: no sampling error at all."""
    program = network(1)
    decoder, encoder = program.decoder[0][0], program.encoder[0][0]
    with torch.no_grad():
        weight, bias = decoder.weight[:, 0], decoder.bias
        softplus = torch.nn.functional.softplus
        encoder.weight.copy_(weight.unsqueeze(0))
        encoder.bias.copy_((softplus(bias) - softplus(bias + weight)).sum() + weight @ program.pixel_means)
    evidence = enumerated(program, x)[1]
    assert torch.allclose(log_weights(program, x, 50), evidence.expand(50, -1), atol=1e-5)


def test_chunks_do_not_change_what_is_computed(x: Tensor, monkeypatch: pytest.MonkeyPatch) -> None:
    program = network(3)
    whole = bounds(program, x, samples=4000)
    monkeypatch.setattr(evaluation, "ELEMENTS_AT_ONCE", 5 * 4000 * PIXELS)
    chunked = bounds(program, x, samples=4000)
    assert chunked.elbo == pytest.approx(whole.elbo, abs=0.1)
    assert chunked.importance_weighted == pytest.approx(whole.importance_weighted, abs=0.02)


def test_evaluation_repeats_itself_and_leaves_the_random_state_alone(x: Tensor) -> None:
    program = network(2)
    before = torch.get_rng_state()
    assert discrete_elbo(program, x) == discrete_elbo(program, x)
    assert torch.equal(torch.get_rng_state(), before)
    assert len(pyro.get_param_store()) == 0


def test_isolation_keeps_two_programs_apart(x: Tensor) -> None:
    first, second = network(2, seed=0), network(2, seed=1)
    with isolated(0):
        before = bounds(second, x, samples=10)
        first.model(x)
        assert bounds(second, x, samples=10) == before
    assert not torch.equal(first.encoder[0][0].weight, second.encoder[0][0].weight)


def test_gradient_noise_is_that_of_the_estimates(x: Tensor) -> None:
    program = network(2)
    elbo = TraceELBO("reinforce")
    found = gradient_noise(program, elbo, x, draws=40)
    draws = []
    with isolated(evaluation.EVALUATION_SEED):
        for _ in range(40):
            program.zero_grad()
            elbo.differentiable_loss(program.model, program.guide, x).backward()
            draws.append({name: p.grad.double().flatten() / len(x) for name, p in program.named_parameters()})
    for part, prefix in (("guide", "encoder"), ("model", "decoder")):
        flat = torch.stack([torch.cat([g for name, g in draw.items() if name.startswith(prefix)]) for draw in draws])
        assert getattr(found, part) == pytest.approx(float(flat.var(0).sum()), rel=1e-9)
    assert found.total == found.guide + found.model


def test_the_exact_gradient_has_no_noise(x: Tensor) -> None:
    found = gradient_noise(network(2), TraceELBO("enumerate"), x, draws=5)
    assert found.total < 1e-12


def test_reconstructions_and_samples_are_images(x: Tensor) -> None:
    program = network(3)
    for images in (reconstruct(program, x), sample_prior(program, 12, PIXELS)):
        assert images.shape == (12, PIXELS)
        assert images.min() >= 0
        assert images.max() <= 1
    assert torch.equal(reconstruct(program, x), reconstruct(program, x))


def test_images_with_nan_are_never_trained_on() -> None:
    with pytest.raises(ValueError, match="NaN"):
        Images("own", torch.full((2, 4), math.nan), torch.zeros(2, 4), (2, 2), "made by the test")


@pytest.mark.filterwarnings("ignore:Encountered NaN")
@pytest.mark.parametrize(("value", "message"), [(math.nan, "outputs are NaN"), (1e38, "ELBO of the data is nan")])
def test_a_bound_that_is_not_finite(x: Tensor, value: float, message: str) -> None:
    program = network(2)
    with torch.no_grad():
        program.decoder[0][0].weight.fill_(value)
        program.decoder[0][0].bias.fill_(3e38)
    with pytest.raises(NonFiniteError, match=message):
        bounds(program, x, samples=3)
