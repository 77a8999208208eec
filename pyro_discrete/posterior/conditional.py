"""Draws of a guide, how the posterior given them shares itself out over values, and several runs put together."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from pyro_discrete.errors import SiteShapeError
from pyro_discrete.families import Family
from pyro_discrete.posterior.mixtures import Part, of_values
from pyro_discrete.programs.sites import joint_support, summed_by_parts

__all__ = [
    "Conditional",
    "by_draw",
    "check_same_shapes",
    "check_supports",
    "decoded_shares",
    "joined",
    "of_one_shape",
    "of_shares",
]


Values = dict[str, Tensor]


def of_one_shape(name: str, tensors: Sequence[Tensor], absent: float = 0.0) -> list[Tensor]:
    """These `[rows, ...]` of one site, the sides of each filled up to the largest: plates may be of drawn sizes.

    `absent` stands at elements that a run does not have. Raises `SiteShapeError` where numbers of dims differ.
    """
    shapes = {tuple(t.shape[1:]) for t in tensors}
    if len(shapes) == 1:
        return [*tensors]
    if len({len(shape) for shape in shapes}) > 1:
        raise SiteShapeError(
            f"Site {name!r} has shapes {sorted(shapes)}, whose numbers of dims differ from run to run: its values "
            "cannot be put together."
        )
    most = [max(sides) for sides in zip(*shapes, strict=True)]
    filled = []
    for tensor in tensors:
        if absent != absent and not tensor.is_floating_point():
            tensor = tensor.to(torch.get_default_dtype())
        after = [n for side, size in zip(tensor.shape[:0:-1], most[::-1], strict=True) for n in (0, size - side)]
        filled.append(F.pad(tensor, after, value=absent))
    return filled


def check_supports(name: str, parts: Sequence[tuple[Any, Tensor]]) -> None:
    """Raise `SiteShapeError` where shares `[..., values]` of some runs are not of the same values in order.

    Fewer numbers are the first ones of more; of events, an element more changes all joint values.
    """
    shapes, counts = {tuple(fn.event_shape) for fn, _ in parts}, {share.shape[-1] for _, share in parts}
    if len(shapes) > 1 or (len(counts) > 1 and shapes != {()}):
        raise SiteShapeError(
            f"Site {name!r} has events of shapes {sorted(shapes)} with {sorted(counts)} joint values, which differ "
            "from run to run: it has no one marginal distribution. Ask for samples, or declare its elements by a plate."
        )


def of_shares(name: str, parts: Sequence[tuple[Any, Tensor]]) -> Any:
    """A site's distribution from shares of its values, `[rows, *batch, values]` of some runs.

    Each element has its distribution in those runs that it is in.
    """
    check_supports(name, parts)
    most = max(share.shape[-1] for _, share in parts)
    fn = next(fn for fn, share in parts if share.shape[-1] == most)
    mean = torch.cat(of_one_shape(name, [share for _, share in parts])).mean(0)
    drawn = mean.sum(-1, keepdim=True)
    return of_values(fn, mean / drawn if bool((drawn < 1 - 1e-6).any()) else mean)


def by_draw(parts: Sequence[Conditional]) -> dict[str, Any]:
    """Each site's distribution given every draw, `[draws, *batch, *event]`; NaN for draws that a site is not in."""
    most: dict[str, int] = {}
    for name in dict.fromkeys(n for part in parts for n in part.shares):
        each = [(part.fns[name], part.shares[name]) for part in parts if name in part.shares]
        check_supports(name, each)
        most[name] = max(share.shape[-1] for _, share in each)
    padded = [{n: F.pad(s, (0, most[n] - s.shape[-1])) for n, s in part.shares.items()} for part in parts]
    found = joined(padded, [part.rows for part in parts])
    fns = {n: fn for part in parts for n, fn in part.fns.items() if part.shares[n].shape[-1] == most[n]}
    return {name: of_values(fns[name], share) for name, share in found.items()}


def joined(parts: Sequence[Mapping[Any, Tensor]], rows: Sequence[int], absent: float = math.nan) -> dict[Any, Tensor]:
    """Values `[rows, ...]` of several runs, one after another; `absent` for runs and elements that a site is not in."""
    found: dict[Any, Tensor] = {}
    for name in dict.fromkeys(n for part in parts for n in part):
        each = iter(of_one_shape(name, [part[name] for part in parts if name in part], absent))
        filled = [next(each) if name in part else None for part in parts]
        like = next(values for values in filled if values is not None)
        if all(name in part for part in parts):
            found[name] = torch.cat([values for values in filled if values is not None])
            continue
        kind = like.dtype if like.is_floating_point() else torch.get_default_dtype()
        blanks = [torch.full((n, *like.shape[1:]), absent, dtype=kind, device=like.device) for n in rows]
        found[name] = torch.cat([b if f is None else f.to(kind) for f, b in zip(filled, blanks, strict=True)])
    return found


@dataclass
class Conditional:
    """One run over `rows` draws of the guide, and how the posterior given them shares itself out.

    - `draws`: of the guide's latent sites, `[rows, *batch, *event]`.
    - `shares`: of the sites of the model alone, `[rows, *batch, values]`; `fns` are these as a plain run has them.
    """

    rows: int
    draws: Values
    shares: Values = field(default_factory=dict)
    fns: dict[str, Any] = field(default_factory=dict)
    families: dict[str, Family | None] = field(default_factory=dict)
    in_rows: bool = False

    @property
    def discrete(self) -> Values:
        """The draws of the discrete sites."""
        return {n: v for n, v in self.draws.items() if self.families[n] not in (None, Family.CONTINUOUS)}

    def decoded(self) -> Values:
        """Values `[rows, *batch, *event]` of one-hot shares."""
        return decoded_shares(self.shares, self.fns)


def decoded_shares(found: Values, fns: Mapping[str, Any]) -> Values:
    """Values `[rows, *batch, *event]` of one-hot shares `[rows, *batch, values]`, of sites distributed as `fns`; of a
    structure that is not listed, of shares of numbers at places, `[rows, *batch, places * numbers]`."""
    values = {}
    for name, share in found.items():
        fn = fns[name]
        structure = summed_by_parts(fn)
        if structure is not None:
            numbers = share.unflatten(-1, (-1, structure.numbers)).argmax(-1)
            values[name] = numbers.to(structure.logits.dtype) if structure.soft_value == "weights" else numbers
            continue
        values[name] = joint_support(fn).reshape(-1, *fn.event_shape)[share.argmax(-1)]
    return values


def check_same_shapes(name: str, parts: Sequence[Part], num_samples: int) -> None:
    """Raise `SiteShapeError` if a site's shape is another one in another run."""
    shapes = {(tuple(fn.batch_shape), tuple(fn.event_shape)) for fn, _ in parts}
    if len(shapes) > 1:
        raise SiteShapeError(
            f"Site {name!r} has batch and event shapes {sorted(shapes)} in {num_samples} runs of the guide, which "
            "differ: it has no one marginal distribution."
        )
