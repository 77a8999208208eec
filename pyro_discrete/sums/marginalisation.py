"""Discrete sites of the model that the guide does not have: summed out exactly, whatever the guide's estimators.

The model runs with these sites' values in dims left of all plates (and of the rows). The log-probabilities that carry
such dims are contracted, each connected component of them to one marginal log-likelihood, and a trace in which this
term stands for its members goes on to the objective, for which it is an observed site like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, first_line, in_a_line
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.enumerability import joined_elements, why_not_over_values
from pyro_discrete.inspection.trial import Trial, crossing_site
from pyro_discrete.programs.dims import ROWS_PLATE, plates_of
from pyro_discrete.programs.pair import KeepSubsamples, Pair, SiteMessenger
from pyro_discrete.programs.sites import (
    Site,
    is_latent,
    joint_support,
    latent_sites,
    sample_sites,
    site_log_prob,
    without_mask,
)
from pyro_discrete.sums.components import Component, SumCost, components, contract, unpacked, within_budget
from pyro_discrete.sums.enumerated_sites import Marginalise, refuse_unguided

__all__ = [
    "MOST",
    "SCALES_DIFFER",
    "Known",
    "absorbed",
    "check_elements",
    "collapsed",
    "common_scale",
    "from_first",
    "joint_traces",
    "marginal_sites",
    "settle",
    "settle_marginals",
    "summed_one_by_one",
    "try_sums",
]


SCALES_DIFFER = (
    "the scales of these differ, so there is no marginal likelihood to scale. Put them into the same subsampled plate "
    "and poutine.scale (a kl_weight is one, too: it weighs the sites that the guide draws), or draw them in the guide "
    "too."
)


def common_scale(component: Component) -> Any:
    """The scale of all factors; it goes outside the logarithm."""
    scales = [f.message["scale"] for f in component.factors]
    first = next((s for s in scales if torch.is_tensor(s)), scales[0])
    if torch.is_tensor(first) and first.numel() > 1:
        raise EnumerationError(
            f"A poutine.scale of many elements ({tuple(first.shape)}) is around site {component.factors[0].name!r}, "
            "which is summed out, or summed over, with sites of the model alone: there is no one scale for the sum."
        )
    # tensors are compared by identity where that is enough, as a step that is to be captured reads no values
    if any(s is not first and s != first for s in scales):
        listed = ", ".join(f"{f.name!r}: {float(s):.6g}" for f, s in zip(component.factors, scales, strict=True))
        raise EnumerationError(
            f"Sites {', '.join(map(repr, component.sites))} of the model alone are summed out together with the sites "
            f"that depend on them ({listed}), but {SCALES_DIFFER}"
        )
    return first


class Known(TorchDistribution):
    """A site whose log-probability is known: zero where another term holds it, or the marginal of a component."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, log_prob: Tensor) -> None:
        self._log_prob = log_prob
        super().__init__(log_prob.shape, torch.Size(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob


def collapsed(model_trace: Trace, marginalise: Marginalise, batch_dims: int) -> tuple[Trace, dict[str, list[str]]]:
    """The trace with each component's marginal log-likelihood in the place of its members', and each one's members.

    The term comes right after its last member (what a site influences, it must come after), in the plates that all
    members are in, with their scale. The members stay, with a log-probability of zero, where others look for them.
    """
    found, names = components(model_trace, marginalise)
    absorbed = {f.name: f.value for c in found for f in c.factors}
    after = {c.factors[-1].name: c for c in found}
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        if name not in absorbed:
            trace.add_node(name, **msg)
            continue
        rows = [f.size for f in msg["cond_indep_stack"] if f.name == ROWS_PLATE]
        zero = absorbed[name].new_zeros([*rows, *(1,) * batch_dims])
        trace.add_node(name, **{**msg, **_with(zero), "scale": 1.0})
        if name in after:
            component = after[name]
            term = contract(component)
            log_prob = unpacked(term, term._pyro_dims, names)  # type: ignore[attr-defined]
            node = {**msg, **_with(log_prob), "scale": common_scale(component)}
            shared = frozenset.intersection(*(frozenset(f.message["cond_indep_stack"]) for f in component.factors))
            node["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f in shared)
            node |= {"name": component.label, "value": zero, "is_observed": True, "infer": {}}
            trace.add_node(component.label, **node)
    return trace, {c.label: [f.name for f in c.factors] for c in found}


def absorbed(model_trace: Trace, names: Collection[str]) -> Trace:
    """The trace with the named sites marked as `collapsed` marks the members of a component."""
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        trace.add_node(name, **({**msg, **_with(torch.zeros(()))} if name in names else msg))
    return trace


def _with(log_prob: Tensor) -> dict[str, Any]:
    return {"fn": Known(log_prob), "mask": None, "args": (), "kwargs": {}}


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
        refuse_unguided(msg["name"], msg["fn"], msg["infer"])
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


class NoLeadingDimsError(EnumerationError):
    """A program that cannot take leading dims, over which its own sites are summed out."""


def marginal_sites(trial: Trial) -> list[Site]:
    """Latent sites that the model has and the guide does not."""
    drawn = latent_sites(trial.guide_trace)
    return [Site(m) for n, m in latent_sites(trial.model_trace).items() if n not in drawn]


def check_elements(pair: Pair, trial: Trial, sites: Sequence[Site]) -> None:
    """Raise `EnumerationError` where plate elements of these sites of the model alone hang together."""
    crossed = crossing_site(pair, trial, sites)
    if crossed is not None:
        outer, inner = crossed
        raise EnumerationError(
            f"Site {outer!r} outside a plate depends on site {inner.name!r} inside it, which is in the model alone: "
            f"all joint values of the plate's elements would have to be summed over. Draw {inner.name!r} in the guide "
            "too."
        )
    joined = joined_elements(pair, trial, sites)
    if joined:
        listed = ", ".join(repr(s.name) for s in sites)
        raise EnumerationError(
            f"Sites {listed} are in the model alone, and {joined}: all joint values of the plate's elements would have "
            "to be summed over. Draw them in the guide too."
        )


def settle_marginals(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate]) -> tuple[SumCost, frozenset[str]]:
    """What the sum will cost for one row, and the sites whose terms are in it: checked, and tried once.

    `check_elements` comes before. Raises `EnumerationError` if the program mixes values in leading dims, or if the cost
    is beyond the budget.
    """
    reason = why_not_over_values(pair, trial, settings.keys())
    if reason:
        raise _no_leading_dims(trial, settings, reason)
    return try_sums(pair, trial, settings, rows=False)


def try_sums(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate], rows: bool) -> tuple[SumCost, frozenset[str]]:
    """Try the sum once, without contracting it; `rows`: with a dim for them between plates and values."""
    cost, members = SumCost(), frozenset[str]()
    try:
        with torch.no_grad(), trial.subsamples:
            marginalise = Marginalise(latent_sites(trial.guide_trace), settings, trial.batch_dims, rows=rows)
            replayed = pair.replayed(trial.guide_trace, marginalise)
            trace = poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)
            for component in components(trace, marginalise)[0]:
                cost = cost.beside(within_budget(component, settings))
                members = members.union(f.name for f in component.factors)
        return cost, members
    except DiscreteInferenceError:
        raise
    except Exception as error:
        raise _no_leading_dims(trial, settings, in_a_line(error)) from error


def _no_leading_dims(trial: Trial, settings: Mapping[str, Enumerate], reason: str) -> NoLeadingDimsError:
    sites = [s for s in marginal_sites(trial) if s.name in settings]
    names = ", ".join(repr(s.name) for s in sites[:5]) + (", ..." if len(sites) > 5 else "")
    return NoLeadingDimsError(
        f"Sites of the model alone ({names}) are summed out over leading dims, which the program cannot take "
        f"({reason}). Index from the right so that dims on the left broadcast, or draw them in the guide too."
    )


def settle(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate]) -> tuple[SumCost, frozenset[str], bool]:
    """As `settle_marginals`, or else by a run for each joint value; and whether that is the way.

    Raises `EnumerationError` if neither can be had.
    """
    try:
        return *settle_marginals(pair, trial, settings), False
    except NoLeadingDimsError as error:
        reason = str(error)
    drawn = latent_sites(trial.guide_trace)
    try:
        with torch.no_grad(), trial.subsamples:
            traces = list(joint_traces(pair.replayed(trial.guide_trace), drawn, pair.args, pair.kwargs))
    except EnumerationError as other:
        raise EnumerationError(
            f"{reason} One joint value after another cannot be had either: {first_line(other)}"
        ) from None
    numbers = [sum(m["value"].numel() for m in sample_sites(trace).values()) for trace in traces]
    return SumCost(max(numbers), sum(numbers)), frozenset(from_first(traces[0], drawn)), True
