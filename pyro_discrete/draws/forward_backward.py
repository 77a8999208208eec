r"""The log-sum over all paths of a chain, one link after the other, as a single operation with its own derivatives.

The log of :math:`\sum_{x_0, \dots, x_n} \prod_t \exp L_t[x_t, x_{t+1}]` by the forward algorithm costs :math:`n S^2`
where a product of matrices in logarithmic depth costs :math:`n S^3`. Its gradient are the probabilities of pairs of
neighbouring states, by the forward-backward algorithm; that of these, their covariances with a sum along the path.

Source: Rabiner (1989), A tutorial on hidden Markov models (with its scaling); for covariances, the expectations of sums
along a path given its state, as in Li and Eisner (2009), First- and second-order expectation semirings.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "chain_log_sum",
]


RESCALED = 8
"""After so many links, probabilities are scaled to a sum of one."""

MOST_TOGETHER = 1024
"""Up to so many elements that all chains' links have at one place, forward and backward sums are made together: with 16
states that takes 0.63 of the time, with 64, or 8 in batches of 64, as long or longer."""

LEAST_LOG = -300.0
"""Down to so little, by the largest of a link, weights are taken as they are; others, as logarithms."""

LEAST_PROBABILITY = 1e-170
"""Scaled probabilities have to be zero or more: with a link's least weight, no product of them is then lost."""


def chain_log_sum(links: Tensor) -> Tensor:
    """The log-sum over all paths of a chain: `links` `[n, S, S, *batch]` to `[*batch]`.

    - `links`: log-weights from each state to the next; -inf where there is no way. Zero gradient where no path is left.

    It can be differentiated twice. Single precision is computed in double.

    >>> import torch
    >>> from pyro_discrete.draws.forward_backward import chain_log_sum
    >>> chain_log_sum(torch.zeros(3, 2, 2)).exp()
    tensor(16.)
    """
    batch = links.shape[3:]
    flat = links.reshape(*links.shape[:3], math.prod(batch)).movedim(3, 1)
    if flat.requires_grad and torch.is_grad_enabled():
        total, _ = _sum_and_shares(flat)
    else:
        total = _sum_alone(flat)
    return total.reshape(batch)


# Operations that capturing, and inductor, take as they are. Links are `[n, batch, S, S]`.


@torch.library.custom_op("pyro_discrete::chain_sum", mutates_args=())
def _sum_alone(links: Tensor) -> Tensor:
    return _Chain(links, shared=False).total().to(links.dtype)


@_sum_alone.register_fake
def _(links: Tensor) -> Tensor:
    return links.new_empty(links.shape[1])


@torch.library.custom_op("pyro_discrete::chain_sum_and_shares", mutates_args=())
def _sum_and_shares(links: Tensor) -> tuple[Tensor, Tensor]:
    chain = _Chain(links, shared=True)
    return chain.total().to(links.dtype), chain.shares().to(links.dtype)


@_sum_and_shares.register_fake
def _(links: Tensor) -> tuple[Tensor, Tensor]:
    return links.new_empty(links.shape[1]), links.new_empty(links.shape)


def _keep_shares(ctx: Any, inputs: tuple[Tensor], output: tuple[Tensor, Tensor]) -> None:
    ctx.set_materialize_grads(False)
    ctx.save_for_backward(output[1])


def _backward(ctx: Any, of_total: Tensor | None, of_shares: Tensor | None) -> Tensor | None:
    (shares,) = ctx.saved_tensors
    gradient = None if of_total is None else of_total[:, None, None] * shares
    if of_shares is not None:
        more = _covariances(shares, of_shares)
        gradient = more if gradient is None else gradient + more
    return gradient


_sum_and_shares.register_autograd(_backward, setup_context=_keep_shares)


@torch.library.custom_op("pyro_discrete::chain_covariances", mutates_args=())
def _covariances(shares: Tensor, values: Tensor) -> Tensor:
    r"""Covariances, over paths, of which pair of states a link has with :math:`\sum_t V_t[x_t, x_{t+1}]`."""
    p, v = shares.double(), values.double()
    before, after = p.sum(3, keepdim=True), p.sum(2, keepdim=True)  # of a link's two states
    given_after = torch.where(after > 0, p / after, 0.0)
    given_before = torch.where(before > 0, p / before, 0.0)
    # what the path has added up on average before a link, given its first state, and after it, given its last
    to_here = _recursion((given_after * v).sum(2, keepdim=True), given_after)
    from_here = _recursion((given_before * v).sum(3).unsqueeze(2).flip(0), given_before.transpose(2, 3).flip(0)).flip(0)
    given_pair = to_here.transpose(2, 3) + v + from_here
    mean = (p[:1] * given_pair[:1]).sum((2, 3), keepdim=True)
    return (p * (given_pair - mean)).to(shares.dtype)


@_covariances.register_fake
def _(shares: Tensor, values: Tensor) -> Tensor:
    return torch.empty_like(shares, memory_format=torch.contiguous_format)


def _no_third_derivative(ctx: Any, gradient: Tensor) -> None:
    raise NotImplementedError("a sum along a chain can be differentiated twice, and no third time")


_covariances.register_autograd(_no_third_derivative)


def _recursion(added: Tensor, weights: Tensor) -> Tensor:
    """`x[t + 1] = added[t] + x[t] @ weights[t]` from zero on, `[n, batch, 1, S]`, without the last."""
    found = torch.zeros_like(added)
    states = found.unbind()
    for t, (constant, weight) in enumerate(zip(added.unbind()[:-1], weights.unbind(), strict=False)):
        torch.baddbmm(constant, states[t], weight, out=states[t + 1])
    return found


class _Chain:
    """A chain's probabilities forward, and for `shares` backward too; as logarithms where they would be too small.

    Scaled ones of small links are found in both directions at once, by half as many products.
    """

    def __init__(self, links: Tensor, shared: bool) -> None:
        self.links = links.detach().double()
        limits = torch.finfo(torch.float64)
        self.largest = self.links.amax((2, 3), keepdim=True).clamp(limits.min, limits.max)
        relative = self.links - self.largest
        self.weights = relative.exp()
        directions = [self.weights, self.weights.transpose(2, 3).flip(0)][: 2 if shared else 1]
        found: list[Tensor] | None = None
        if bool(((relative >= LEAST_LOG) | (relative == -math.inf)).all()):
            found = _all_scaled(directions)
        self.forward: Tensor | None = None
        if found is None:
            self.log_forward = _logarithms(self.links)
        else:
            self.forward, *reverse = found
            self.backward = [each.flip(0) for each in reverse]

    def total(self) -> Tensor:
        """The log-sum over all paths, `[batch]`."""
        if self.forward is None:
            last = self.log_forward[-1].unsqueeze(-1) + self.links[-1]
            return last.logsumexp((1, 2))
        at, following = self.forward[:-1].unsqueeze(2), self.forward[1:]
        # what each link, at scaled probabilities, adds up to by those that were scaled anew behind it
        scales = torch.bmm(at.flatten(0, 1), self.weights[:-1].flatten(0, 1)).sum((1, 2)).reshape(following.shape[:2])
        last = torch.bmm(self.forward[-1].unsqueeze(1), self.weights[-1]).sum((1, 2))
        start = math.log(self.links.shape[2])  # probabilities start even, of a sum of one
        return (scales / following.sum(2)).log().sum(0) + last.log() + self.largest.sum((0, 2, 3)) + start

    def shares(self) -> Tensor:
        """The probabilities of each link's pairs of states, `[n, batch, S, S]`; zero where no path is left."""
        if self.forward is not None:
            joint = self.forward.unsqueeze(3) * self.weights * self.backward[0].unsqueeze(2)
            return joint / joint.sum((2, 3), keepdim=True)
        backward = _logarithms(self.links.transpose(2, 3).flip(0)).flip(0)
        joint = self.log_forward.unsqueeze(3) + self.links + backward.unsqueeze(2)
        shares = (joint - joint.logsumexp((2, 3), keepdim=True)).exp()
        return torch.where(joint.amax((2, 3), keepdim=True) == -math.inf, 0.0, shares)


def _all_scaled(directions: list[Tensor]) -> list[Tensor] | None:
    """`_scaled` of each; None if any is too small."""
    if len(directions) > 1 and directions[0][0].numel() <= MOST_TOGETHER:
        together = _scaled(torch.cat(directions, 1))
        return None if together is None else [*together.chunk(len(directions), 1)]
    found = [_scaled(weights) for weights in directions]
    return [each for each in found if each is not None] if all(each is not None for each in found) else None


def _scaled(weights: Tensor) -> Tensor | None:
    """The sums over paths up to each link, by its first state, scaled: `[n, batch, S]`; None if any is too small."""
    count, batch, states, _ = weights.shape
    found = weights.new_full((count, batch, 1, states), 1 / states)
    at = found.unbind()
    for t, weight in enumerate(weights.unbind()[:-1]):
        following = at[t + 1]
        torch.bmm(at[t], weight, out=following)
        if (t + 1) % RESCALED == 0:
            following.div_(following.sum(2, keepdim=True))
    found = found.squeeze(2)
    enough = (found >= LEAST_PROBABILITY) | (found == 0)
    return found if bool((enough.all(2) & (found > 0).any(2)).all()) else None


def _logarithms(links: Tensor) -> Tensor:
    """As `_scaled`, of which these are the logarithms, not scaled and but for a constant."""
    found = links.new_zeros(links.shape[:3])
    at = found.unbind()
    for t, link in enumerate(links.unbind()[:-1]):
        torch.logsumexp(at[t].unsqueeze(2) + link, 1, out=at[t + 1])
    return found
