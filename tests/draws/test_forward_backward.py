"""The log-sum over all paths of a chain, against one link after the other in plain torch."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck, gradgradcheck

from pyro_discrete.draws import forward_backward
from pyro_discrete.draws.forward_backward import chain_log_sum

SHAPES = [(1, 2, 2), (2, 1, 1), (5, 3, 3), (20, 4, 4, 2, 3), (9, 3, 3, 2)]


def in_logarithms(links: Tensor) -> Tensor:
    states = links.new_zeros(links.shape[1:2] + links.shape[3:])
    for link in links:
        states = (states.unsqueeze(1) + link).logsumexp(0)
    return states.logsumexp(0)


def chain(*shape: int, scale: float = 1.0, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, dtype=torch.float64, generator=generator)).requires_grad_()


def test_every_path_counts_once() -> None:
    links = chain(4, 3, 3).detach()
    paths = itertools.product(range(3), repeat=5)
    weights = [sum(links[t, a, b] for t, (a, b) in enumerate(itertools.pairwise(path))) for path in paths]
    torch.testing.assert_close(chain_log_sum(links), torch.stack(weights).logsumexp(0))  # type: ignore[arg-type]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("scale", [1.0, 30.0, 400.0])
def test_sums_and_gradients(shape: tuple[int, ...], scale: float) -> None:
    """Of the largest scale, probabilities are too small to be multiplied."""
    links = chain(*shape, scale=scale)
    found, expected = chain_log_sum(links), in_logarithms(links)
    assert found.shape == shape[3:]
    torch.testing.assert_close(found, expected, rtol=1e-13, atol=1e-13)
    torch.testing.assert_close(chain_log_sum(links.detach()), expected.detach(), rtol=1e-13, atol=1e-13)
    gradients = [torch.autograd.grad(total.sum(), links)[0] for total in (found, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("shape", [(1, 2, 2), (5, 3, 3), (6, 2, 2, 2)])
def test_two_derivatives(shape: tuple[int, ...]) -> None:
    links = chain(*shape)
    assert gradcheck(chain_log_sum, [links])
    assert gradgradcheck(chain_log_sum, [links])
    (first,) = torch.autograd.grad(chain_log_sum(links).sum(), links, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), links, create_graph=True)
    with pytest.raises(NotImplementedError, match="no third time"):
        torch.autograd.grad(second.sum(), links)


def test_paths_that_cannot_be() -> None:
    links = chain(40, 3, 3).detach()
    links[:, 2, :2] = -math.inf  # no way back
    links[7, :, 1] = -math.inf
    links[20] = torch.where(torch.tensor([[True, False, True]] * 3), links[20], -math.inf)
    links.requires_grad_()
    found, expected = chain_log_sum(links), in_logarithms(links)
    torch.testing.assert_close(found, expected)
    (gradient,) = torch.autograd.grad(found, links)
    torch.testing.assert_close(gradient.sum((1, 2)), torch.ones(40, dtype=torch.float64))
    assert bool((gradient[links == -math.inf] == 0).all())


def test_no_path_at_all_in_one_of_a_batch() -> None:
    links = chain(5, 2, 2, 3).detach()
    links[3, ..., 1] = -math.inf
    links.requires_grad_()
    found = chain_log_sum(links)
    assert found.isinf().tolist() == [False, True, False]
    (gradient,) = torch.autograd.grad(found.sum(), links)
    assert bool((gradient[..., 1] == 0).all())
    torch.testing.assert_close(gradient.sum((1, 2))[:, ::2], torch.ones(5, 2, dtype=torch.float64))


def test_a_state_that_is_hardly_reached_and_all_that_is_left() -> None:
    """After 60 links of e^-8 each its probability is beneath what a number holds; at last it is the only one."""
    links = torch.full((61, 2, 2), -math.inf, dtype=torch.float64)
    links[:, 0, 0], links[:, 1, 1] = 0.0, -25.0
    links[60, 0, 0] = -math.inf
    links.requires_grad_()
    found = chain_log_sum(links)
    assert found.item() == pytest.approx(-25.0 * 61)
    (gradient,) = torch.autograd.grad(found, links)
    assert bool((gradient[:, 1, 1] == 1).all())


def test_single_precision_is_computed_in_double() -> None:
    links = chain(300, 5, 5)
    single = links.detach().float().requires_grad_()
    found = chain_log_sum(single)
    assert found.dtype is torch.float32
    torch.testing.assert_close(found.double(), chain_log_sum(single.double()), rtol=1e-7, atol=0.0)
    (gradient,) = torch.autograd.grad(found, single)
    assert gradient.dtype is torch.float32


def test_what_is_no_number_stays_so() -> None:
    links = chain(5, 2, 2).detach()
    links[2, 0, 1] = math.nan
    assert bool(chain_log_sum(links).isnan())


def test_operations_keep_torchs_rules() -> None:
    links = chain(4, 2, 3, 3)
    torch.library.opcheck(forward_backward._sum_and_shares, (links,))
    torch.library.opcheck(forward_backward._sum_alone, (links.detach(),))
    shares = links.detach().softmax(3)
    torch.library.opcheck(forward_backward._covariances, (shares, links.detach()))
