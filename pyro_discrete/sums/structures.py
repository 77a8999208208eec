"""Sums over structures by their partition function: all that reads one adds to the weights of its parts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.distributions.structure import GibbsStructure
from pyro_discrete.draws.log_space import Reduce, log_sum_exp
from pyro_discrete.errors import EnumerationError
from pyro_discrete.sums.elimination import Elimination, SizesAlone, Table, aligned, dims_of, highest, named
from pyro_discrete.sums.enumerated_sites import IN_GUIDE
from pyro_discrete.sums.factors import Component, Factor, Parts

__all__ = ["structures_summed"]


def structures_summed(component: Component, ring: Elimination) -> Component:
    r"""The same sum with each structure that is not listed summed out: one factor in the place of those that read it.

    Each of these adds up over places, so that for given values of all other sites

    .. math:: \sum_z p(z) \exp\Big(\sum_i w_{i, z_i}\Big) = Z(\mathrm{logits} + w) / Z(\mathrm{logits}),

    and likewise over pairs of consecutive places, where these are parts of the structure.

    Raises `EnumerationError` where a factor reads a site inside a plate as well, which the structure is outside of.
    """
    factors, inside = list(component.factors), dict(component.inside)
    for owner in component.factors:
        if owner.parts is None or owner.parts.structure is None:
            continue
        symbol = owner.own
        readers = [f for f in factors if symbol in f.symbols or f is owner]
        for factor in readers:
            _check(owner, factor, component)
        position = factors.index(owner)
        factors = [f for f in factors if all(f is not reader for reader in readers)]
        factors.insert(min(position, len(factors)), _summed(owner, readers, ring))
        del inside[symbol]
    return replace(component, factors=factors, inside=inside)


def _check(owner: Factor, factor: Factor, component: Component) -> None:
    for symbol in factor.symbols - {owner.own}:
        if not component.inside[symbol] <= owner.plates:
            other = next(f.name for f in component.factors if f.own == symbol)
            raise EnumerationError(
                f"Site {factor.name!r} reads the structure {owner.name!r}, which is too large to be listed, and "
                f"{other!r}, which is in a plate that {owner.name!r} is outside of: the sum over {other!r} leaves "
                f"nothing that adds up over the places of {owner.name!r}. Put {owner.name!r} into the plate, or draw "
                f"one of them {IN_GUIDE}."
            )


def _summed(owner: Factor, readers: Sequence[Factor], ring: Elimination) -> Factor:
    parts = owner.parts
    assert parts is not None
    assert parts.structure is not None
    structure, symbol = parts.structure, owner.own
    tables = [(f, ring.product(f.value, f.plates - owner.plates)) for f in readers]
    along = {f.parts.along for f in readers if f.parts is not None and f.parts.along}
    union = sorted({d for _, t in tables for d in dims_of(t)} - {symbol, *along} | {*parts.logits})
    dims = "".join(union)
    if isinstance(ring, SizesAlone):
        sizes = {d: n for _, t in tables for d, n in zip(dims_of(t), t.shape, strict=True)}
        batch = structure.logits.shape[: structure.logits.dim() - structure.param_dim]
        sizes |= dict(zip(parts.logits, [n for n in batch if n > 1], strict=True))
        elements = math.prod(sizes[d] for d in dims)
        value: Any = Table([sizes[d] for d in dims], dims)
        ring.weigh(elements * structure.event_shape[0] * structure.numbers, elements * structure.work)
    else:
        weights, pairs = _weights(structure, [(f, t) for f, t in tables if f is not owner], symbol, dims)
        own = aligned(owner.value, dims + parts.along + symbol)
        base = _prior(structure, parts.logits, dims, own.dtype)
        value = named(log_sum_over(base, own if weights is None else weights + own, pairs, ring.reduce), dims)
    symbols = frozenset(d for f in readers for d in f.symbols) - {symbol}
    return replace(owner, value=value, symbols=symbols, own="", parts=None)


def _prior(structure: GibbsStructure, symbols: str, dims: str, dtype: torch.dtype) -> GibbsStructure:
    """The structure with batch dims in the order of `dims`."""
    logits = structure.logits
    param = logits.shape[logits.dim() - structure.param_dim :]
    batch = [n for n in logits.shape[: logits.dim() - structure.param_dim] if n > 1]
    packed = logits.reshape(*batch, *param)
    order = [symbols.index(d) for d in dims if d in symbols]
    packed = packed.permute(*order, *range(len(batch), packed.dim()))
    shape = [batch[symbols.index(d)] if d in symbols else 1 for d in dims]
    return structure.like(packed.reshape(*shape, *param).to(torch.promote_types(dtype, logits.dtype)))


def _weights(
    structure: GibbsStructure, tables: Sequence[tuple[Factor, Tensor]], symbol: str, dims: str
) -> tuple[Tensor | None, Tensor | None]:
    """What all readers add to each number at each place, `[*dims, places, numbers]`, and to the pairs of these at
    consecutive places, `[*dims, places - 1, numbers, numbers]`."""
    places, numbers = structure.event_shape[0], structure.numbers
    of_one: list[Tensor] = []
    of_two: list[Tensor] = []
    alone: dict[int, list[Tensor]] = {}
    for factor, table in tables:
        parts = factor.parts
        assert parts is not None
        table = aligned(table, dims + parts.along + symbol)
        if not parts.along and parts.width == 1:
            alone.setdefault(parts.start, []).append(_with_numbers(table, parts, numbers))
            continue
        weights = _with_numbers(table if parts.along else table.unsqueeze(-2), parts, numbers)
        after = places - parts.width + 1 - parts.start - weights.shape[-1 - parts.width]
        weights = F.pad(weights, (*(0, 0) * parts.width, parts.start, after))
        (of_one if parts.width == 1 else of_two).append(weights)
    if alone:
        sums = {place: torch.stack(torch.broadcast_tensors(*each)).sum(0) for place, each in alone.items()}
        shape = torch.broadcast_shapes(*(s.shape for s in sums.values()))
        nothing = next(iter(sums.values())).new_zeros(shape)
        of_one.append(torch.stack([sums[i].expand(shape) if i in sums else nothing for i in range(places)], -2))
    return sum(of_one[1:], of_one[0]) if of_one else None, sum(of_two[1:], of_two[0]) if of_two else None


def _with_numbers(table: Tensor, parts: Parts, numbers: int) -> Tensor:
    """A factor's table `[..., (places,) values]` by the numbers that it reads, `[..., (places,) numbers]`, or of two
    places `[..., (places,) numbers, numbers]`.

    A structure of which some factor reads pairs has had values of one number at even places and of one at odd ones.
    """
    if table.shape[-1] == 1:
        table = table.unsqueeze(-1) if parts.width == 2 else table
        return table.expand(*table.shape[: -parts.width], *(numbers,) * parts.width)
    if table.shape[-1] == numbers:
        return table
    of_both = table.unflatten(-1, (numbers, numbers))
    if parts.width == 2:
        at_even, at_odd = of_both, of_both.mT
    else:
        at_even, at_odd = of_both[..., 0], of_both[..., 0, :]
    if not parts.along:
        return at_odd if parts.start % 2 else at_even
    places = parts.start + torch.arange(table.shape[-2], device=table.device)
    return torch.where((places % 2 == 0).reshape(-1, *(1,) * parts.width), at_even, at_odd)


def log_sum_over(structure: GibbsStructure, weights: Tensor, pairs: Tensor | None, reduce: Reduce) -> Tensor:
    """The log of the sum over a structure's values, of their probability times exp(weights of the numbers in them).

    - `weights` `[*batch, places, numbers]`; `pairs` `[*batch, places - 1, numbers, numbers]`, of consecutive ones.
    - `reduce`: as in `Elimination`: of a largest term or a random one, the gradient is at the numbers of one value.
    """
    made, more = structure.weighted(weights)
    made = made if pairs is None else made.weighted_pairs(pairs)
    if reduce is log_sum_exp:
        return made.log_partition + more - structure.log_partition
    with torch.no_grad():
        value = made.mode if reduce is highest else made.sample()
        total = made.log_partition + more
    through = _weight_of(value.long(), structure.numbers, weights, pairs)
    if reduce is highest:
        total = structure.weight(structure.vertex(value)) + through.detach()
    return total - structure.log_partition.detach() + through - through.detach()


def _weight_of(value: Tensor, numbers: int, weights: Tensor, pairs: Tensor | None) -> Tensor:
    """What the numbers of one value weigh, and the pairs of consecutive ones."""
    chosen = F.one_hot(value, numbers).bool()
    total = torch.where(chosen, weights, 0.0).sum((-2, -1))
    if pairs is None:
        return total
    both = chosen[..., :-1, :].unsqueeze(-1) & chosen[..., 1:, :].unsqueeze(-2)
    return total + torch.where(both, pairs, 0.0).sum((-3, -2, -1))
