"""What a sum over counts leaves out: more than it may, or less."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from pyro.distributions import Delta, LogNormal
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from torch import Tensor
from torch.distributions import Independent, MixtureSameFamily

from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs.counts import CountUpTo
from pyro_discrete.programs.sites import base_distribution, joint_support, without_mask
from pyro_discrete.recording import is_recorded
from pyro_discrete.sums.components import contract
from pyro_discrete.sums.counts import LEFT_OUT
from pyro_discrete.sums.elimination import aligned, dims_of, named
from pyro_discrete.sums.enumerated_sites import plain_distribution
from pyro_discrete.sums.factors import Component, Factor

__all__ = [
    "LeftOutOfRuns",
    "has_open_end",
    "largest_log_density",
    "note_left_out",
]


@torch.no_grad()
def note_left_out(component: Component) -> None:
    """Note, with the counts of a component that is summed out, whether they go far enough.

    Of a count without a stated last value: the sum is taken again with one value more, which stands for all that are
    left out. It has their prior probability, or a bound of it, and each factor that reads the count has its upper bound
    there: 1 for discrete data, a density's largest value where its scale does not depend on the count. The sums differ
    by at least what is left out. Of a stated last value: its share in the sum.

    Raises `EnumerationError` where a factor has no such bound.
    """
    counts = {f.own: _count(f) for f in component.factors if f.own}
    opened = {symbol: count for symbol, count in counts.items() if count is not None and count.ends == "open"}
    stated = {symbol: count for symbol, count in counts.items() if count is not None and count.ends == "stated"}
    if is_recorded():  # a graph only says whether sums go far enough
        stated = {}
    if not opened and not stated:
        return
    kept = _contracted(component, _double)
    if opened:
        upper = _contracted(component, lambda factor: _extended(factor, opened))
        rounding = 8 * torch.finfo(torch.double).eps * kept.abs().nan_to_num(0.0, 0.0, 0.0)
        excess = torch.nan_to_num(upper - kept - LEFT_OUT - rounding, nan=-1.0)
        next(iter(opened.values())).ledger.note([c.name for c in opened.values()], excess)
    for symbol, count in stated.items():
        without = _contracted(component, lambda factor, s=symbol: _without_last(factor, s))
        count.ledger.note_share(count.name, torch.nan_to_num(-torch.expm1(without - kept), nan=0.0))


def _count(factor: Factor) -> CountUpTo | None:
    base = base_distribution(plain_distribution(factor.message["fn"]))
    return base if isinstance(base, CountUpTo) else None


def has_open_end(fn: Any) -> bool:
    """Whether it is the distribution of a count whose last value was found, and may have to be larger."""
    base = base_distribution(plain_distribution(fn))
    return isinstance(base, CountUpTo) and base.ends == "open"


def _contracted(component: Component, table: Callable[[Factor], Tensor]) -> Tensor:
    return contract(replace(component, factors=[replace(f, value=table(f)) for f in component.factors]))


def _double(factor: Factor) -> Tensor:
    return named(factor.value.detach().double(), dims_of(factor.value))


def _without_last(factor: Factor, symbol: str) -> Tensor:
    table, dims = _double(factor), dims_of(factor.value)
    if factor.own != symbol:
        return table
    fn = plain_distribution(factor.message["fn"])
    values = joint_support(fn)
    last = (values.reshape(len(values), -1) == base_distribution(fn).last).any(-1)
    return named(table.index_fill(dims.index(symbol), last.nonzero().squeeze(-1), -math.inf), dims)


def _extended(factor: Factor, opened: Mapping[str, CountUpTo]) -> Tensor:
    """A factor's table with one value more for each count that it reads: what is beyond the last one."""
    dims, table = dims_of(factor.value), _double(factor)
    reads = [symbol for symbol in dims if symbol in opened]
    if reads and factor.parts is not None:
        raise _unbounded(factor, reads, opened, "it reads a structure that is summed by its partition function, too")
    beyond = None
    if factor.own in reads:
        beyond = _packed(factor, _log_beyond(plain_distribution(factor.message["fn"])))
    bound = None if factor.own or not reads else _bound(factor, reads, opened)
    for symbol in reads:
        place = dims.index(symbol)
        shape = [*table.shape[:place], 1, *table.shape[place + 1 :]]
        if symbol == factor.own:
            assert beyond is not None
            filler = _stretched(beyond, dict(zip(dims, shape, strict=True)))
        else:  # of a site that is summed out, too, no probability is above 1
            filler = named(table.new_zeros(()), "") if bound is None else bound
        table = torch.cat([table, aligned(filler, dims).expand(shape)], place)
    return named(table, dims)


def _log_beyond(fn: Any) -> Tensor:
    """The log-probability that any element of a count is beyond its last value, or a bound of it: `[*batch]`."""
    if isinstance(fn, Independent):
        return _log_beyond(fn.base_dist).flatten(-fn.reinterpreted_batch_ndims).logsumexp(-1)
    found = fn.log_beyond()
    assert found is not None, "a count that is open has a tail that is known"
    return found


def _stretched(beyond: Tensor, sizes: Mapping[str, int]) -> Tensor:
    """What is beyond, with the probability 1 at the further value of a count on which the site's own depends."""
    dims = dims_of(beyond)
    for place, dim in enumerate(dims):
        missing = sizes[dim] - beyond.shape[place]
        if missing:
            behind = (0, 0) * (beyond.dim() - 1 - place)
            beyond = F.pad(beyond, (*behind, 0, missing))
    return named(beyond, dims)


def _packed(factor: Factor, term: Tensor) -> Tensor:
    """A term of the factor's message `[*batch]`, its dims of size 1 left out and the others named."""
    dims = "".join(factor.places[d] for d, n in enumerate(term.shape, start=-term.dim()) if n > 1)
    return named(term.squeeze() if 1 in term.shape else term[...], dims)


def _bound(factor: Factor, reads: Sequence[str], opened: Mapping[str, CountUpTo]) -> Tensor:
    """An upper bound of a factor at all values of the counts that it reads: packed, without these counts' dims.

    Raises `EnumerationError` where none is known.
    """
    msg = factor.message
    bound = largest_log_density(msg["fn"], msg["value"])
    if bound is None:
        raise _unbounded(factor, reads, opened, "no bound of its term is known")
    bound = bound.detach().double()
    mask = msg["mask"]
    own = [d for d, symbol in factor.places.items() if symbol in reads]
    for dim in own:
        if -dim <= bound.dim() and bound.shape[dim] > 1:
            least = bound.narrow(dim, 0, 1)
            if not is_recorded():
                if not bool((bound == least).all()):
                    raise _unbounded(factor, reads, opened, "the largest value of its density changes with the count")
                bound = least
            else:  # found by the program itself
                bound = torch.where((bound == least).all(dim, keepdim=True), least, math.inf)
    if torch.is_tensor(mask) and any(-dim <= mask.dim() and mask.shape[dim] > 1 for dim in own):
        bound = bound.clamp(min=0.0)  # it may be masked or not at the values left out
    elif mask is not None and mask is not True:
        bound = torch.where(torch.as_tensor(mask, device=bound.device), bound, 0.0)
    return _packed(factor, bound)


def _unbounded(factor: Factor, reads: Sequence[str], opened: Mapping[str, CountUpTo], reason: str) -> EnumerationError:
    names = ", ".join(repr(opened[symbol].name) for symbol in reads)
    return _not_judged(names, factor.name, factor.message["fn"], reason)


def _not_judged(counts: str, name: str, fn: Any, reason: str) -> EnumerationError:
    kind = type(base_distribution(plain_distribution(fn))).__name__
    return EnumerationError(
        f"The sum over {counts} has no last value, and goes on until what is left out is below {LEFT_OUT:g} of it. "
        f"Site {name!r} ({kind}) may read it, and {reason}, so that this cannot be told. State the last value at the "
        'site of the count: infer={"truncation": 100}.'
    )


class LeftOutOfRuns:
    """The same for a sum over runs, one for each joint value of the sites that are summed out.

    What is beyond a count's last value, given the sites before it, is at most its probability times the bounds of all
    terms: the sites that come after it and are summed out, too, add up to 1. Every run has to have the same sites.
    """

    def __init__(self) -> None:
        self.beyond: list[tuple[CountUpTo, Tensor]] = []
        self.at_last: dict[str, tuple[CountUpTo, list[Tensor]]] = {}
        self.bounds: dict[str, Tensor] = {}
        self.opened: dict[str, CountUpTo] = {}

    @torch.no_grad()
    def saw(self, terms: Mapping[str, Tensor], messages: Mapping[str, Any], own: Sequence[str]) -> None:
        """A run: its terms and messages, and the sites that are summed out, in their order."""
        counts = {name: base_distribution(plain_distribution(messages[name]["fn"])) for name in own}
        counts = {name: count for name, count in counts.items() if isinstance(count, CountUpTo) and count.ends}
        if not counts:
            return
        total = torch.stack([term.double().sum() for term in terms.values()]).sum()
        for name, count in counts.items():
            if count.ends == "stated":
                if bool((messages[name]["value"] == count.last).any()):
                    self.at_last.setdefault(name, (count, []))[1].append(total)
                continue
            if is_recorded():
                raise RuntimeError(f"how far the sum over {name!r} goes is judged by its values")
            self.opened[name] = count
            bounds = self._bounds(name, terms, messages, own)
            if all(
                bool((messages[later]["value"] == _first(messages[later])).all()) for later in own[own.index(name) :]
            ):
                before = [terms[other].double().sum() for other in own[: own.index(name)]]
                fn = without_mask(plain_distribution(messages[name]["fn"]))
                self.beyond.append((count, sum(before, _log_beyond(fn).flatten().logsumexp(0) + bounds)))

    def _bounds(
        self, count: str, terms: Mapping[str, Tensor], messages: Mapping[str, Any], own: Sequence[str]
    ) -> Tensor:
        found = {}
        for name, term in terms.items():
            if name not in own:
                bound = largest_log_density(messages[name]["fn"], messages[name]["value"])
                if bound is None:
                    raise _not_judged(repr(count), name, messages[name]["fn"], "no bound of its term is known")
                mask = messages[name]["mask"]
                unmasked = bound.double().expand(torch.broadcast_shapes(bound.shape, term.shape))
                found[name] = unmasked.sum() if mask is None else unmasked.clamp(min=0.0).sum()
        if self.bounds and found != self.bounds:
            raise EnumerationError(
                f"The sum over {count!r} has no last value, and the program's sites, or how dense its data can be, "
                "change with the count: how much is left out cannot be told. State the last value at the site: "
                'infer={"truncation": 100}.'
            )
        self.bounds = found
        return sum(found.values(), torch.zeros((), dtype=torch.double))

    @torch.no_grad()
    def note(self, total: Tensor) -> None:
        """All runs have been seen, and this is the log of their sum."""
        kept = total.detach().double()
        if self.beyond:
            left = torch.stack([term for _, term in self.beyond]).logsumexp(0)
            excess = torch.nan_to_num(torch.logaddexp(kept, left) - kept - LEFT_OUT, nan=-1.0)
            self.beyond[0][0].ledger.note(list(self.opened), excess)
        for name, (count, totals) in self.at_last.items():
            share = (torch.stack(totals).logsumexp(0) - kept).exp()
            count.ledger.note_share(name, torch.nan_to_num(share, nan=0.0))


def _first(msg: Any) -> Tensor:
    support = joint_support(plain_distribution(msg["fn"]))
    return support[0].expand(msg["value"].shape) if support[0].numel() else msg["value"]


def largest_log_density(fn: Any, value: Any) -> Tensor | None:
    """The largest log-density of a distribution of these scales, wherever it is centred, `[*batch]`.

    Of a location family it is the density at its centre, of a distribution over discrete values at most 1. None for a
    kind of which no bound is known.
    """
    fn = plain_distribution(fn)
    if isinstance(fn, MaskedDistribution):
        found = largest_log_density(fn.base_dist, value)
        mask = torch.as_tensor(fn._mask)
        return None if found is None else torch.where(mask, found, 0.0) if mask.dim() == 0 else found.clamp(min=0.0)
    if isinstance(fn, Independent):
        found = largest_log_density(fn.base_dist, value)
        return None if found is None else found.sum(tuple(range(-fn.reinterpreted_batch_ndims, 0)))
    if isinstance(fn, ExpandedDistribution):
        found = largest_log_density(fn.base_dist, value)
        return None if found is None else found.expand(fn.batch_shape)
    if isinstance(fn, MixtureSameFamily):
        found = largest_log_density(fn.component_distribution, value.unsqueeze(-1 - len(fn.event_shape)))
        return None if found is None else found.amax(-1)
    if isinstance(fn, LogNormal):  # of which the value is fixed, and the location moves
        found = largest_log_density(fn.base_dist, value)
        return None if found is None else found - value.log()
    if isinstance(fn, Delta):
        return fn.log_density if torch.is_tensor(fn.log_density) else None
    support = _support(fn)
    if getattr(support, "is_discrete", False):
        return torch.zeros(fn.batch_shape, device=value.device if torch.is_tensor(value) else None)
    if type(fn).__name__ in LOCATION_FAMILIES:
        return fn.log_prob(fn.loc)
    return None


LOCATION_FAMILIES = frozenset(
    {
        "AsymmetricLaplace",
        "Cauchy",
        "Gumbel",
        "Laplace",
        "Logistic",
        "LowRankMultivariateNormal",
        "MultivariateNormal",
        "MultivariateStudentT",
        "Normal",
        "SoftLaplace",
        "StudentT",
        "VonMises",
    }
)
"""Continuous distributions whose density is largest at their `loc`, and as large wherever that is."""


def _support(fn: Any) -> Any:
    try:
        return fn.support
    except NotImplementedError:
        return None
