"""Sites of the model alone summed out by a run for each joint value: for programs that take no leading dims."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any

import torch
from pyro import poutine
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.enumerated_sites import refuse_unguided
from pyro_discrete.errors import EnumerationError
from pyro_discrete.marginalisation import SCALES_DIFFER, Known
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import KeepSubsamples, SiteMessenger
from pyro_discrete.programs.sites import (
    is_latent,
    joint_support,
    latent_sites,
    sample_sites,
    site_log_prob,
    without_mask,
)

__all__ = ["MOST", "from_first", "joint_traces", "summed_one_by_one"]

MOST = 256
"""So many joint values at most are gone through one by one, in every row."""


class _Assign(SiteMessenger):
    """Gives sites of the model alone the values that are due, in the order of the program."""

    def __init__(self, drawn: Collection[str], due: list[int]) -> None:
        super().__init__()
        self.drawn, self.due = drawn, due
        self.sizes: list[int] = []

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg) or msg["done"] or msg["name"] in self.drawn:
            return
        refuse_unguided(msg["name"], msg["fn"])
        if any(p.vectorized for p in plates_of(msg)):
            raise EnumerationError(f"site {msg['name']!r} is in a plate, whose elements would have joint values.")
        support, place = joint_support(msg["fn"]), len(self.sizes)
        if place == len(self.due):
            self.due.append(0)
        self.sizes.append(len(support))
        msg["value"], msg["done"] = support[self.due[place]].reshape(msg["fn"].shape()), True


def joint_traces(model: Callable[..., Any], drawn: Collection[str], args: Any, kwargs: Any) -> Iterator[Trace]:
    """The model's trace for each joint value of its sites that are not in `drawn`; sites may depend on earlier values.

    Raises `EnumerationError` for more than `MOST` of them, or a site in a plate.
    """
    due: list[int] = []
    for count in range(MOST + 1):
        assign = _Assign(drawn, due)
        with assign:
            trace = poutine.trace(model).get_trace(*args, **kwargs)
        if count == MOST:
            raise EnumerationError(f"there are more than {MOST} of them.")
        yield trace
        while due and due[-1] + 1 == assign.sizes[len(due) - 1]:
            due.pop()
        if not due:
            return
        due[-1] += 1


def summed_one_by_one(
    model: Callable[..., Any], guide_trace: Trace, args: Any, kwargs: Any
) -> tuple[Trace, Trace, Mapping[str, list[str]]]:
    """A trace of the model, the same as it is to be scored, and the members of the term that stands for the sum.

    That term is the log of the sum, over the joint values, of the product of every term from the first summed site on:
    those that do not depend on them are a factor of each.
    """
    drawn = latent_sites(guide_trace)
    totals, first, members = [], None, []
    scale: Any = None
    replayed = KeepSubsamples()(poutine.replay(model, trace=guide_trace))
    for trace in joint_traces(replayed, drawn, args, kwargs):
        names = from_first(trace, drawn)
        if first is None:
            first, members = trace, names
        for name in names:
            found = trace.nodes[name]["scale"]
            scale = found if scale is None else scale
            if found is not scale and found != scale:
                raise EnumerationError(
                    f"Site {name!r} ({float(found):.6g}) is summed over together with sites of the model alone "
                    f"({float(scale):.6g}), but {SCALES_DIFFER}"
                )
        totals.append(torch.stack([_term(trace.nodes[n], n in drawn) for n in names]).sum())
    assert first is not None
    term = torch.stack(totals).logsumexp(0)
    scored = Trace()
    for name, msg in first.nodes.items():
        zero = {"fn": Known(term.new_zeros(())), "mask": None, "args": (), "kwargs": {}, "scale": 1.0}
        scored.add_node(name, **({**msg, **zero} if name in members else msg))
    own = [n for n in latent_sites(first) if n not in drawn]
    label = f"sum over {', '.join(own[:3])}{', ...' if len(own) > 3 else ''}"
    node = {**first.nodes[members[-1]], "fn": Known(term), "mask": None, "args": (), "kwargs": {}, "scale": scale}
    node |= {"name": label, "value": term.new_zeros(()), "is_observed": True, "infer": {}, "cond_indep_stack": ()}
    scored.add_node(label, **node)
    return first, scored, {label: members}


def from_first(trace: Trace, drawn: Collection[str]) -> list[str]:
    """The sites from the first one on that is summed out."""
    names = list(sample_sites(trace))
    start = next(i for i, n in enumerate(names) if is_latent(trace.nodes[n]) and n not in drawn)
    return names[start:]


def _term(msg: Any, drawn: bool) -> Tensor:
    """A site's log-probability in all, masked unless it is summed out, unscaled."""
    if is_latent(msg) and not drawn:
        return without_mask(msg["fn"]).log_prob(msg["value"]).sum()
    return torch.as_tensor(scale_and_mask(site_log_prob(msg), mask=msg["mask"])).sum()
