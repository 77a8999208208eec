"""Every joint value of the random sites of a program, one run of the program for each."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from math import comb, log10, sqrt
from typing import Any

import numpy as np
import torch
from pyro.distributions import Delta, Normal, ZeroInflatedDistribution
from pyro.distributions.distribution import Distribution
from pyro.distributions.torch import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.subsample_messenger import _Subsample
from torch import Tensor
from torch.distributions import Geometric, Multinomial, NegativeBinomial, Poisson

from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.counts import CountUpTo
from pyro_discrete.relaxations.relaxed_distribution import rebuilt, stated_truncation

__all__ = ["AssignValues", "Choices", "innermost"]


class Choices:
    """A walk through a tree of choices, depth first, one whole path at a time.

    The tree need not be known beforehand: a run asks for each choice with its number of branches, follows the path
    for as long as it goes and then takes first branches. `advance` moves to the next path.

    >>> choices, paths = Choices(budget=10), []
    >>> while True:
    ...     choices.restart()
    ...     first = choices.take("a", 2)
    ...     paths.append((first, choices.take("b", 2)) if first else (first,))
    ...     if not choices.advance():
    ...         break
    >>> paths
    [(0,), (1, 0), (1, 1)]
    """

    def __init__(self, budget: int) -> None:
        self.budget = budget
        self.path: list[int] = []
        self.branches: list[int] = []

    def restart(self) -> None:
        """Begin a run along the current path."""
        self.branches = []

    def take(self, site: str, branches: int) -> int:
        """The branch to follow at a site with so many; raises EnumerationError where the paths exceed the budget."""
        depth, paths = len(self.branches), branches
        for earlier in self.branches:
            paths *= earlier
        if paths > self.budget:
            raise EnumerationError(
                f"Site {site!r} has {_written(branches)} joint values, which makes {_written(paths)} joint assignments "
                f"with the sites before it; the budget is {self.budget}. Use less data, fewer latent elements or a "
                "larger budget."
            )
        self.branches.append(branches)
        if depth == len(self.path):
            self.path.append(0)
        return self.path[depth]

    def advance(self) -> bool:
        """Move to the next path; False after the last."""
        del self.path[len(self.branches) :]
        while self.path and self.path[-1] + 1 == self.branches[len(self.path) - 1]:
            self.path.pop()
        if not self.path:
            return False
        self.path[-1] += 1
        return True


def _written(number: int) -> str:
    """A count that may have thousands of digits."""
    return str(number) if number < 10**12 else f"about 10^{int(log10(number))}"


class AssignValues(Messenger):
    """Sets every random site of one run to the value that `choices` is at.

    A count that has no end goes up to the last value that its site states. In the guide (nothing is `given`) its
    distribution is cut there, as that of "enumerate" is: its values' probabilities are divided by their sum. In the
    model they stay as they are.

    - `given`: values that sites of these names have (the guide's, when the model runs).
    - `weight`: after the run, the probability of the path under the program, `[]` float64: neither scaled nor masked,
      and differentiable in what the probabilities depend on.
    - `subsets`: which subsample each subsampled plate took.
    - `values`: the value of each site that this run has assigned.
    - `enumerated`, `integrated`: the discrete and the `Normal` sites that were not given.
    """

    def __init__(self, choices: Choices, nodes: int, given: Mapping[str, Tensor] | None = None) -> None:
        super().__init__()
        self.choices = choices
        self.nodes = nodes
        self.in_guide: bool = given is None
        self.given: Mapping[str, Tensor] = {} if given is None else given
        self.weight: Tensor = torch.ones((), dtype=torch.float64)
        self.subsets: list[tuple[str, int]] = []
        self.values: dict[str, Tensor] = {}
        self.enumerated: list[str] = []
        self.integrated: list[str] = []

    def _pyro_sample(self, msg: Any) -> None:
        if msg["done"] or msg["is_observed"] or msg["value"] is not None:
            return
        name, fn = msg["name"], msg["fn"]
        if name in self.given:
            value = self.given[name]
        elif isinstance(fn, _Subsample):
            value = self._subsample(name, fn)
        else:
            last = stated_truncation(msg["infer"], name)
            if last is not None and isinstance(innermost(fn), ENDLESS):
                fn = msg["fn"] = rebuilt(fn, lambda base: CountUpTo(base, last, cut=self.in_guide, ends="stated"))
            value = self._site(name, fn)
        self.values[name] = value
        msg["value"], msg["done"] = value, True

    def _subsample(self, name: str, fn: Any) -> Tensor:
        size = fn.size
        subsample_size = size if fn.subsample_size is None else min(fn.subsample_size, size)
        if subsample_size == size:
            return torch.arange(size)
        index = self.choices.take(name, comb(size, subsample_size))
        self.subsets.append((name, index))
        self.weight = self.weight / comb(size, subsample_size)
        return torch.tensor(list(combinations(range(size), subsample_size))[index])

    def _site(self, name: str, fn: Any) -> Tensor:
        base = innermost(fn)
        shape = fn.batch_shape + fn.event_shape
        elements = shape[: len(shape) - len(base.event_shape)]
        if isinstance(base, Delta):
            return base.v.expand(shape)
        if isinstance(base, Normal):
            return self._quadrature(name, base, elements)
        support = _support(base)
        if support is None:
            raise EnumerationError(
                f"Site {name!r} ({type(base).__name__}) can be neither enumerated nor integrated: an exact answer "
                'needs sites of finite support, counts with a stated end (infer={"truncation": 20}), Normal or Delta.'
            )
        branches = support.shape[0] ** elements.numel()
        digits = _digits(self.choices.take(name, branches), support.shape[0], elements)
        value = support[digits].reshape(shape)
        self.enumerated.append(name)
        self.weight = self.weight * base.log_prob(value).double().sum().exp()
        return value

    def _quadrature(self, name: str, base: Any, elements: torch.Size) -> Tensor:
        """A Gauss-Hermite node for each element: values follow loc and scale, where q is reparameterised."""
        roots, masses = np.polynomial.hermite_e.hermegauss(self.nodes)
        digits = _digits(self.choices.take(name, self.nodes ** elements.numel()), self.nodes, elements)
        noise = torch.as_tensor(roots, dtype=base.loc.dtype)[digits]
        mass = torch.as_tensor(masses / sqrt(2 * np.pi))[digits].prod()
        value = base.loc + base.scale * noise
        if not base.has_rsample:  # the density carries the dependence on the parameters instead of the value
            value = value.detach()
            log_q = base.log_prob(value).double().sum()
            mass = mass * (log_q - log_q.detach()).exp()
        self.integrated.append(name)
        self.weight = self.weight * mass
        return value


ENDLESS: tuple[type, ...] = (Poisson, Geometric, NegativeBinomial, ZeroInflatedDistribution)
"""Counts that have no end of their own."""


def _support(base: Any) -> Tensor | None:
    """Every value of one element, `[values, *event]`."""
    if isinstance(base, Multinomial):
        steps = [torch.arange(base.total_count + 1)] * (base.event_shape[0] - 1)
        first = torch.cartesian_prod(*steps).reshape(-1, len(steps))
        counts = torch.cat([first, base.total_count - first.sum(-1, keepdim=True)], -1)
        return counts[counts[:, -1] >= 0].to(base.logits.dtype)
    if base.has_enumerate_support:
        support = base.enumerate_support(expand=False)
        return support.reshape(support.shape[:1] + base.event_shape)
    return None


def innermost(fn: Any) -> Any:
    """The distribution inside `.to_event`, `.mask` and `.expand`."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    if not isinstance(fn, Distribution):
        raise TypeError(f"expected a Pyro distribution, not {type(fn).__name__}")
    return fn


def _digits(index: int, base: int, elements: torch.Size) -> Tensor:
    """`index` written in `base`, one digit an element: `[*elements]`."""
    digits = []
    for _ in range(elements.numel()):
        index, digit = divmod(index, base)
        digits.append(digit)
    return torch.tensor(digits, dtype=torch.long).reshape(elements)
