"""The exact loss and gradient of a small pair, of a bound too, by brute force and independently of the engine."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from torch import Tensor

from pyro_discrete.diagnostics.assignments import AssignValues, Choices, innermost
from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.pair import Program
from pyro_discrete.programs.parameters import leaf_parameters, parameter_names
from pyro_discrete.programs.sites import guide_terms, is_random_observation, sample_sites

__all__ = [
    "BoundOracle",
    "Exact",
    "Oracle",
    "exact_gradient",
    "exact_loss",
]


@dataclass(frozen=True)
class Exact:
    """What the oracle found.

    - `loss`: minus the evidence lower bound.
    - `gradients`: name -> `d loss / d parameter`, float64, of the parameter's shape: for every leaf tensor that the
      loss depends on. A `pyro.param` has its own name (and its unconstrained value is meant), a parameter of a module
      `module.parameter`.
    - `parameters`: name -> the leaf tensor itself.
    - `assignments`: how many joint assignments were evaluated.
    """

    loss: float
    gradients: dict[str, Tensor]
    parameters: dict[str, Tensor]
    assignments: int


@dataclass(frozen=True)
class Oracle:
    r"""The exact negative ELBO of a model and a guide, and its gradient, by running both on every joint assignment.

    $$ \mathcal L = -\sum_a q(a) \Big[ \sum_i s_i m_i \log p_i(a) - \sum_j s_j m_j \log q_j(a) \Big] $$

    with a over the joint values of all elements of all random sites of the guide, scales s and masks m on each term and
    none on the weight q(a). The gradient is autograd's, of this very sum. Values are assigned in the program's own
    order, so sites and supports may depend on earlier values. Subsampled plates are averaged over every subset. A
    discrete site of the model that the guide does not have is summed out inside the logarithm, its scale outside (as
    `pyro.infer.TraceEnum_ELBO` does). `Normal` sites are integrated with Gauss-Hermite quadrature. A count that has no
    end is summed up to the one that its site states, `infer={"truncation": 20}`: the guide's is cut there (its
    probabilities are divided by their sum, as "enumerate" does), and a prior keeps its own.

    Cost: one run of guide and model for each assignment, so it is meant for two or three data.

    - `budget`: the most joint assignments to evaluate; more raise `EnumerationError`, naming the site and the number.
    - `nodes`: quadrature nodes for each element of a `Normal` site; exact for polynomials of degree 2 nodes - 1.

    >>> import pyro, pyro.distributions as dist
    >>> phi = torch.zeros((), requires_grad=True)
    >>> def model():
    ...     z = pyro.sample("z", dist.Bernoulli(0.5))
    ...     pyro.factor("reward", 2 * z)
    >>> def guide():
    ...     pyro.sample("z", dist.Bernoulli(logits=phi))
    >>> exact = Oracle()(model, guide)
    >>> round(exact.loss, 6), exact.gradients["phi"].item()
    (-1.0, -0.5)
    """

    budget: int = 10_000
    nodes: int = 20

    def __call__(self, model: Program, guide: Program, *args: Any, **kwargs: Any) -> Exact:
        """The exact answer for `model(*args, **kwargs)` and `guide(*args, **kwargs)`; touches no `.grad`."""
        loss, count = 0.0, 0
        leaves: dict[int, Tensor] = {}
        gradients: dict[int, Tensor] = {}
        choices, more = Choices(self.budget), True
        while more:
            term = self._term(model, guide, args, kwargs, choices)
            if count == 0 and not torch.equal(term, self._term(model, guide, args, kwargs, choices)):
                raise EnumerationError(
                    "The program gave two different values for the same joint assignment: it draws random numbers "
                    "outside its sample sites, or hides a site (poutine.block), or its loss is NaN."
                )
            loss, count = loss + term.item(), count + 1
            found = leaf_parameters(term)
            for leaf, gradient in zip(found, torch.autograd.grad(term, found) if found else (), strict=True):
                leaves[id(leaf)] = leaf
                gradients[id(leaf)] = gradients.get(id(leaf), torch.zeros(())) + gradient.double()
            more = choices.advance()
        names = parameter_names(leaves, {"model": model, "guide": guide})
        return Exact(
            loss,
            {names[key]: gradient for key, gradient in gradients.items()},
            {names[key]: leaf for key, leaf in leaves.items()},
            count,
        )

    def _term(
        self, model: Program, guide: Program, args: tuple[Any, ...], kwargs: dict[str, Any], choices: Choices
    ) -> Tensor:
        """The summand `[]` of the loss at the joint assignment of the guide's sites that `choices` is at."""
        choices.restart()
        assign = AssignValues(choices, self.nodes)
        with assign:
            trace = poutine.trace(guide).get_trace(*args, **kwargs)
        if assign.weight == 0:
            return torch.zeros((), dtype=torch.float64)
        trace.compute_log_prob()
        log_p = self._log_model(model, assign.values, args, kwargs)
        for name in sample_sites(trace).keys() - guide_terms(trace).keys():
            trace.remove_node(name)
        return -assign.weight * (log_p - _log_prob_sum(trace))

    def _log_model(
        self, model: Program, given: dict[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """log p(x, given) with the model's own discrete sites summed out; averaged over the model's own subsamples."""
        choices, more = Choices(self.budget), True
        by_subset: dict[tuple[tuple[str, int], ...], list[tuple[Any, list[str]]]] = {}
        while more:
            choices.restart()
            assign = AssignValues(choices, self.nodes, given)
            with assign:
                trace = poutine.trace(model).get_trace(*args, **kwargs)
            if assign.integrated:
                raise EnumerationError(
                    f"The model's continuous site {assign.integrated[0]!r} is not in the guide: give it a guide site."
                )
            if assign.weight > 0:
                trace.compute_log_prob()
                by_subset.setdefault(tuple(assign.subsets), []).append((trace, assign.enumerated))
            more = choices.advance()
        return torch.stack([_marginal(runs) for runs in by_subset.values()]).mean()


def exact_loss(model: Program, guide: Program, *args: Any, **kwargs: Any) -> float:
    """The exact negative ELBO of a small pair of programs; see `Oracle`, whose defaults it uses.

    Raises EnumerationError where a site has no finite support (and is no `Normal`) or there are too many assignments.
    """
    return Oracle()(model, guide, *args, **kwargs).loss


def exact_gradient(model: Program, guide: Program, *args: Any, **kwargs: Any) -> dict[str, Tensor]:
    """The exact gradient of the negative ELBO for each parameter, by name; see `Oracle`, whose defaults it uses.

    Raises EnumerationError where a site has no finite support (and is no `Normal`) or there are too many assignments.
    """
    return Oracle()(model, guide, *args, **kwargs).gradients


def _samples(trace: Any) -> Iterator[tuple[str, Any]]:
    return ((name, site) for name, site in trace.nodes.items() if site["type"] == "sample")


def _log_prob_sum(trace: Any) -> Tensor:
    """The sum `[]` of all scaled and masked log probabilities, accumulated in float64."""
    total = torch.zeros((), dtype=torch.float64)
    for _, site in _samples(trace):
        total = total + torch.as_tensor(site["log_prob"]).double().sum()
    return total


def _marginal(runs: list[tuple[Any, list[str]]]) -> Tensor:
    """log of the sum over runs, one for each joint value of the model's own latent sites; each run with their names.

    What has the latent sites' scale goes inside the logarithm and the scale outside; the rest must not depend on them.
    """
    scales = {float(trace.nodes[name]["scale"]) for trace, summed in runs for name in summed}
    if not scales:
        return _log_prob_sum(runs[0][0])
    if len(scales) > 1:
        raise EnumerationError(
            f"The model's own latent sites {runs[0][1]} are summed out together but have different scales: {scales}."
        )
    scale = scales.pop()
    inside, outside = [], []
    for trace, summed in runs:
        joint = outer = torch.zeros((), dtype=torch.float64)
        for name, site in _samples(trace):
            if name in summed:
                joint = joint + innermost(site["fn"]).log_prob(site["value"]).double().sum()
            elif float(site["scale"]) == scale:
                joint = joint + scale_and_mask(site["unscaled_log_prob"], mask=site["mask"]).double().sum()
            else:
                outer = outer + torch.as_tensor(site["log_prob"]).double().sum()
        inside.append(joint)
        outside.append(outer)
    if len({term.item() for term in outside}) > 1:
        raise EnumerationError(
            f"Sites that depend on the summed out {runs[0][1]} have another scale than theirs ({scale}), so there is "
            "no marginal. Put them into the same plate and poutine.scale."
        )
    return scale * torch.stack(inside).logsumexp(0) + outside[0]


@dataclass(frozen=True)
class BoundOracle:
    r"""Minus the exact importance-weighted bound of a model and a guide, and its gradient.

    .. math:: \mathcal L = -\sum_g q(g) \Big[ \log\frac{p(g)}{q(g)} + s \sum_n \sum_{a_1 \dots a_K}
        \prod_k q(a_k \mid g) \, \log \frac1K \sum_k w_n(a_k, g) \Big]

    with g the guide's sites outside the data's plates and the subsamples, a those inside, each over all joint values of
    all elements: every K-tuple of them, so that nothing is assumed of independence between data.

    - `particles`: K. `plates`: the plates of independent data; the frames are vectorised plates, or none at all.
    - `scale`: what multiplies the bound (the subsampled plates' full size / size).
    - `budget`: the most joint assignments. `nodes`: quadrature nodes for each element of a `Normal` site.
    """

    particles: int
    plates: Collection[str] = ()
    scale: float = 1.0
    budget: int = 2_000
    nodes: int = 20

    def __call__(self, model: Program, guide: Program, *args: Any) -> Exact:
        """The exact answer for `model(*args)` and `guide(*args)`; touches no `.grad`."""
        groups: dict[Any, list[_Assignment]] = {}
        choices, more, count = Choices(self.budget), True, 0
        while more:
            choices.restart()
            assign = AssignValues(choices, self.nodes)
            found = self._assignment(model, guide, args, assign)
            if found.weight.item() > 0:
                groups.setdefault(found.outside, []).append(found)
            count += 1
            more = choices.advance()
        loss = torch.stack([self._group(each) for each in groups.values()]).sum()
        leaves = leaf_parameters(loss)
        gradients = torch.autograd.grad(loss, leaves) if leaves else ()
        names = parameter_names({id(leaf): leaf for leaf in leaves}, {"model": model, "guide": guide})
        return Exact(
            loss.item(),
            {names[id(leaf)]: g.double() for leaf, g in zip(leaves, gradients, strict=True)},
            {names[id(leaf)]: leaf for leaf in leaves},
            count,
        )

    def _assignment(self, model: Program, guide: Program, args: tuple[Any, ...], assign: AssignValues) -> _Assignment:
        with assign:
            guide_trace = poutine.trace(guide).get_trace(*args)
        with AssignValues(Choices(1), self.nodes, assign.values):
            model_trace = poutine.trace(model).get_trace(*args)
        guide_trace.compute_log_prob()
        model_trace.compute_log_prob()
        log_weight: Tensor | float = 0.0
        outer: Tensor = torch.zeros((), dtype=torch.float64)
        outside: list[Any] = list(assign.subsets)
        for trace, sign in ((guide_trace, -1.0), (model_trace, 1.0)):
            for name, site in trace.nodes.items():
                if site["type"] != "sample" or name in [n for n, _ in assign.subsets]:
                    continue
                if type(site["fn"]).__name__ == "_Subsample":
                    continue
                if trace is guide_trace and is_random_observation(site):
                    continue
                frames = {f.name: f.dim for f in site["cond_indep_stack"]}
                term = sign * torch.as_tensor(site["log_prob"]).double()
                if set(self.plates) <= frames.keys():
                    log_weight = log_weight + self._per_datum(term, [frames[p] for p in self.plates]) / self.scale
                else:
                    outer = outer + term.sum()
                    if trace is guide_trace and not site["is_observed"]:
                        outside.append((name, tuple(torch.as_tensor(site["value"]).detach().flatten().tolist())))
        return _Assignment(tuple(outside), assign.weight, torch.as_tensor(log_weight), outer)

    @staticmethod
    def _per_datum(term: Tensor, dims: list[int | None]) -> Tensor:
        """A term `[*batch]` summed over all dims but the data's: `[data]`."""
        kept = sorted(term.dim() + d for d in dims if d is not None)
        others = [d for d in range(term.dim()) if d not in kept]
        return (term.sum(others) if others else term).reshape(-1)

    def _group(self, each: list[_Assignment]) -> Tensor:
        """The summand of one value of what lies outside."""
        weight = torch.stack([a.weight for a in each])
        whole = weight.sum()
        log_w = torch.stack([a.log_weight for a in each])  # [A, data]
        inside, assignments = weight / whole, len(each)
        probability = weight.new_ones((1,) * self.particles)
        parts = []
        for k in range(self.particles):
            shape = [1] * self.particles
            shape[k] = assignments
            parts.append(log_w.reshape(*shape, -1))
            probability = probability * inside.reshape(shape)
        joint = torch.stack(torch.broadcast_tensors(*parts)).logsumexp(0) - math.log(self.particles)
        bound = (probability.unsqueeze(-1) * joint).sum()
        return -(whole * (each[0].outer + self.scale * bound))


@dataclass(frozen=True)
class _Assignment:
    """One joint value: of what lies outside, its probability, log w of each datum, and the shared terms."""

    outside: tuple[Any, ...]
    weight: Tensor
    log_weight: Tensor
    outer: Tensor
