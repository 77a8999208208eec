"""Discrete sites of the model that the guide does not have: summed out exactly, whatever the guide's estimators.

The model runs with these sites' values in dims left of all plates (and of the rows). The log-probabilities that carry
such dims are contracted, each connected component of them to one marginal log-likelihood, and a trace in which this
term stands for its members goes on to the objective, for which it is an observed site like any other.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pyro import poutine
from pyro.distributions import TorchDistribution
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteShapeError, first_line, why_not_at_once
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.enumerability import crossing_site, joined_elements, why_not_over_values
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import (
    KeepSubsamples,
    Pair,
    on_trial,
    set_torch_random_state,
    torch_random_state,
    trace_pair,
)
from pyro_discrete.programs.parameters import leaf_parameters
from pyro_discrete.programs.sites import (
    Site,
    is_latent,
    latent_sites,
    sample_sites,
    site_log_prob,
    summed_by_parts,
    without_mask,
)
from pyro_discrete.sums.components import SumCost, components, contract, unpacked, within_budget
from pyro_discrete.sums.enumerated_sites import (
    IN_GUIDE,
    BudgetError,
    Marginalise,
    OutOfScopeError,
    in_pairs_where_needed,
)
from pyro_discrete.sums.factors import Component
from pyro_discrete.sums.joint_values import GiveValues, JointValues
from pyro_discrete.sums.left_out import LeftOutOfRuns, note_left_out

__all__ = [
    "MOST",
    "SCALES_DIFFER",
    "Absorbed",
    "Group",
    "Known",
    "Summed",
    "absorbed",
    "check_elements",
    "collapsed",
    "common_scale",
    "from_first",
    "joint_traces",
    "marginal_sites",
    "nor_one_by_one",
    "settle",
    "settle_marginals",
    "sites_by_parts",
    "summed_one_by_one",
    "try_sums",
    "why_not_at_once_here",
]


SCALES_DIFFER = (
    "the scales of these differ, so there is no marginal likelihood to scale. Put them into the same subsampled plate "
    "and poutine.scale (a kl_weight is one, too: it weighs the sites that the guide draws), or draw them "
    f"{IN_GUIDE}."
)


MANY_SCALES = (
    "A poutine.scale of many elements ({shape}) is around site {name!r}, which is summed out, or summed over, with "
    "sites of the model alone: there is no one scale for the sum."
)


def common_scale(component: Component) -> Any:
    """The scale of all factors; it goes outside the logarithm."""
    scales = [f.message["scale"] for f in component.factors]
    first = next((s for s in scales if torch.is_tensor(s)), scales[0])
    if torch.is_tensor(first) and first.numel() > 1:
        raise EnumerationError(MANY_SCALES.format(shape=tuple(first.shape), name=component.factors[0].name))
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


class Absorbed(Known):
    """The distribution of a member of a sum: its part is in the sum's own term, and `zero` here."""

    def __init__(self, zero: Tensor) -> None:
        self.zero = zero
        super().__init__(zero)


def collapsed(
    model_trace: Trace,
    marginalise: Marginalise,
    batch_dims: int,
    judge: Callable[[Component], Any] = lambda component: None,
) -> tuple[Trace, dict[str, list[str]]]:
    """The trace with each component's marginal log-likelihood in the place of its members', and each one's members.

    The term comes right after its last member (what a site influences, it must come after), in the plates that all
    members are in, with their scale. The members stay, with a log-probability of zero, where others look for them.
    `judge` is shown each component before it is summed over.
    """
    found, names = components(model_trace, marginalise)
    for component in found:
        judge(component)
    absorbed = {f.name: f.value for c in found for f in c.factors}
    after = {c.factors[-1].name: c for c in found}
    trace = Trace()
    zeros: dict[Any, Absorbed] = {}
    for name, msg in model_trace.nodes.items():
        if name not in absorbed:
            trace.add_node(name, **msg)
            continue
        rows = tuple([f.size for f in msg["cond_indep_stack"] if f.name == ROWS_PLATE])
        key = rows, absorbed[name].dtype, absorbed[name].device
        if key not in zeros:  # one for all members, as chains have thousands
            zeros[key] = Absorbed(absorbed[name].new_zeros((*rows, *(1,) * batch_dims)))
        fn = zeros[key]
        zero = fn.zero
        trace.add_node(name, **{**msg, **_with(fn), "scale": 1.0})
        if name in after:
            component = after[name]
            term = contract(component)
            note_left_out(component)
            log_prob = unpacked(term, term._pyro_dims, names)  # type: ignore[attr-defined]
            node = {**msg, **_with(Known(log_prob)), "scale": common_scale(component)}
            shared = frozenset.intersection(*(frozenset(f.message["cond_indep_stack"]) for f in component.factors))
            node["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f in shared)
            node |= {"name": component.label, "value": zero, "is_observed": True, "infer": {}}
            trace.add_node(component.label, **node)
    return trace, {c.label: [f.name for f in c.factors] for c in found}


def absorbed(model_trace: Trace, names: Collection[str]) -> Trace:
    """The trace with the named sites marked as `collapsed` marks the members of a component."""
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        trace.add_node(name, **({**msg, **_with(Absorbed(torch.zeros(())))} if name in names else msg))
    return trace


def _with(fn: Known) -> dict[str, Any]:
    return {"fn": fn, "mask": None, "args": (), "kwargs": {}}


MOST = 256
"""So many joint values at most are gone through one by one, in every row."""


def joint_traces(
    model: Callable[..., Any], drawn: Collection[str], args: Any, kwargs: Any, most: int = MOST
) -> Iterator[Trace]:
    """The model's trace for each joint value of its sites that are not in `drawn`, of all elements of their plates.

    Sites may depend on earlier values. No site is left to be drawn: numbers that the program draws by itself, to choose
    some data or to leave out some units, are the same in each run, and so is the term that they are of. Raises
    `EnumerationError` for more than `most` of them.
    """
    walk, start = JointValues(most), torch_random_state()

    def run() -> Trace:
        with GiveValues(lambda msg: msg["name"] not in drawn, walk.choose):
            return poutine.trace(model).get_trace(*args, **kwargs)

    after = None
    for number, _ in enumerate(walk):
        if number:
            set_torch_random_state(start)
        trace = run()
        if not number and any(map(site_is_subsample, trace.nodes.values())) and _have_moved(start):
            after = torch_random_state()
            set_torch_random_state(start)  # later runs draw no subsample, and begin with the program's own numbers
            walk.again()
            trace = run()
        yield trace
    if after is not None:  # else the next sum would be of the same subsample
        set_torch_random_state(after)


def _have_moved(before: tuple[Tensor, list[Tensor]]) -> bool:
    """Whether torch's random states are others by now."""
    own, others = torch_random_state()
    return not (torch.equal(own, before[0]) and all(map(torch.equal, others, before[1])))


def summed_one_by_one(
    model: Callable[..., Any], guide_trace: Trace, args: Any, kwargs: Any, most: int = MOST
) -> tuple[Trace, Trace, Mapping[str, list[str]]]:
    """A trace of the model, the same as it is to be scored, and the members of the term that stands for the sum.

    That term is the log of the sum, over the joint values, of the product of every term from the first summed site on:
    those that do not depend on them are a factor of each, and stay outside where their scale is another one.
    """
    drawn = latent_sites(guide_trace)
    replayed = KeepSubsamples()(poutine.replay(model, trace=guide_trace))
    traces = list(joint_traces(replayed, drawn, args, kwargs, most))
    first = traces[0]
    own = [n for n in latent_sites(first) if n not in drawn]
    if not own:
        return first, first, {}
    scale = _one_number(own[0], first.nodes[own[0]]["scale"])
    outside = _outside(traces, drawn, scale)
    members = [n for n in from_first(first, drawn) if n not in outside]
    totals, left_out = [], LeftOutOfRuns()
    for trace in traces:
        inside = [n for n in from_first(trace, drawn) if n not in outside]
        terms = {n: _term(trace.nodes[n], n in drawn) for n in inside}
        totals.append(torch.stack(list(terms.values())).sum())
        left_out.saw(terms, trace.nodes, [n for n in latent_sites(trace) if n in terms and n not in drawn])
    term = torch.stack(totals).logsumexp(0)
    left_out.note(term)
    scored = Trace()
    for name, msg in first.nodes.items():
        zero = {"fn": Known(term.new_zeros(())), "mask": None, "args": (), "kwargs": {}, "scale": 1.0}
        scored.add_node(name, **({**msg, **zero} if name in members else msg))
    label = f"sum over {', '.join(own[:3])}{', ...' if len(own) > 3 else ''}"
    node = {**first.nodes[members[-1]], "fn": Known(term), "mask": None, "args": (), "kwargs": {}, "scale": scale}
    node |= {"name": label, "value": term.new_zeros(()), "is_observed": True, "infer": {}, "cond_indep_stack": ()}
    scored.add_node(label, **node)
    return first, scored, {label: members}


def _one_number(name: str, scale: Any) -> Any:
    if torch.is_tensor(scale) and scale.numel() > 1:
        if not bool((scale == scale.flatten()[0]).all()):
            raise EnumerationError(MANY_SCALES.format(shape=tuple(scale.shape), name=name))
        return scale.flatten()[0]
    return scale


def _outside(traces: Sequence[Trace], drawn: Collection[str], scale: Any) -> frozenset[str]:
    """The sites of another scale than that of the sum: these may not depend on the values that are summed over.

    Raises `EnumerationError` where one does.
    """
    found: dict[str, list[Trace]] = {}
    for trace in traces:
        for name in from_first(trace, drawn):
            if not _same_scale(trace.nodes[name]["scale"], scale):
                found.setdefault(name, []).append(trace)
    for name, each in found.items():
        terms = [_term(t.nodes[name], name in drawn) for t in each]
        scales = [t.nodes[name]["scale"] for t in each]
        alike = _alike(terms) and all(_same_scale(s, scales[0]) for s in scales)
        if len(each) < len(traces) or not alike or (is_latent(each[0].nodes[name]) and name not in drawn):
            raise EnumerationError(
                f"Site {name!r} ({_shown(scales[0])}) is summed over together with sites of the model alone "
                f"({_shown(scale)}), but {SCALES_DIFFER}"
            )
    return frozenset(found)


def _alike(terms: Sequence[Tensor]) -> bool:
    """Whether terms have the same value and the same gradient: a weight of zero hides what a term depends on."""
    if not all(torch.equal(term, terms[0]) for term in terms):
        return False
    leaves = {id(leaf): leaf for term in terms for leaf in leaf_parameters(term)}
    if not leaves:
        return True
    slopes = []
    for term in terms:
        if not term.requires_grad:
            return False
        found = torch.autograd.grad(term, list(leaves.values()), retain_graph=True, allow_unused=True)
        slopes.append([torch.zeros_like(x) if g is None else g for x, g in zip(leaves.values(), found, strict=True)])
    return all(torch.equal(a, b) for each in slopes for a, b in zip(each, slopes[0], strict=True))


def _same_scale(one: Any, other: Any) -> bool:
    return one is other or bool((torch.as_tensor(one) == torch.as_tensor(other)).all())


def _shown(scale: Any) -> str:
    return f"{float(scale):.6g}" if torch.as_tensor(scale).numel() == 1 else f"of shape {tuple(scale.shape)}"


def from_first(trace: Trace, drawn: Collection[str]) -> list[str]:
    """The sites from the first one on that is summed out; none where none is."""
    names = list(sample_sites(trace))
    start = next((i for i, n in enumerate(names) if is_latent(trace.nodes[n]) and n not in drawn), len(names))
    return names[start:]


def _term(msg: Any, drawn: bool) -> Tensor:
    """A site's log-probability in all, masked unless it is summed out, unscaled."""
    if is_latent(msg) and not drawn:
        return without_mask(msg["fn"]).log_prob(msg["value"]).sum()
    return torch.as_tensor(scale_and_mask(site_log_prob(msg), mask=msg["mask"])).sum()


class NotAtOnceError(EnumerationError):
    """Sites of the model alone cannot be summed out at once: there is a run for each joint value, if these are few."""


class NoLeadingDimsError(NotAtOnceError):
    """A program that cannot take leading dims, over which its own sites are summed out; `reason` says why."""

    def __init__(self, message: str, reason: str) -> None:
        super().__init__(message)
        self.reason = reason


def marginal_sites(trial: Trial) -> list[Site]:
    """Latent sites that the model has and the guide does not."""
    drawn = latent_sites(trial.guide_trace)
    return [Site(m) for n, m in latent_sites(trial.model_trace).items() if n not in drawn]


def sites_by_parts(trial: Trial) -> dict[str, int]:
    """The structures of the model alone that are summed by their partition function, of single places as far as known
    (see `in_pairs_where_needed`)."""
    return {s.name: 1 for s in marginal_sites(trial) if summed_by_parts(s.distribution) is not None}


def check_elements(pair: Pair, trial: Trial, sites: Sequence[Site]) -> None:
    """Raise `NotAtOnceError` where plate elements of these sites of the model alone hang together."""
    crossed = crossing_site(pair, trial, sites)
    if crossed is not None:
        outer, inner = crossed
        raise NotAtOnceError(
            f"Site {outer!r} outside a plate depends on site {inner.name!r} inside it, which is in the model alone: "
            f"all joint values of the plate's elements would have to be summed over. Draw {inner.name!r} "
            f"{IN_GUIDE}."
        )
    joined = joined_elements(pair, trial, sites)
    if joined:
        listed = ", ".join(repr(s.name) for s in sites)
        raise NotAtOnceError(
            f"Sites {listed} are in the model alone, and {joined}: all joint values of the plate's elements would have "
            f"to be summed over. Draw them {IN_GUIDE}."
        )


Group = tuple[frozenset[str], frozenset[str]]
"""The sites whose terms are in a sum, and the names of the plates that the sum's term is in."""


@dataclass(frozen=True)
class Summed:
    """What sums over sites of the model alone join, and cost.

    - `groups`: one for each sum.
    - `one_by_one`: why it is taken by a run of the model for each joint value, if it is.
    - `by_parts`: the structures that are summed by their partition function, with the number of consecutive places
      that terms read together: 1, or 2.
    """

    cost: SumCost = field(default_factory=SumCost)
    groups: Sequence[Group] = ()
    one_by_one: str = ""
    by_parts: Mapping[str, int] = field(default_factory=dict)

    @property
    def members(self) -> frozenset[str]:
        """The sites whose terms are in a sum."""
        return frozenset[str]().union(*(members for members, _ in self.groups))


def settle_marginals(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate], untried: bool = False) -> Summed:
    """What the sums will join, and cost for one row: checked, and tried once, but where they are to stay `untried`.

    Raises `EnumerationError` if the program mixes values in leading dims, if a plate's elements hang together, or if
    the cost is beyond the budget.
    """
    check_elements(pair, trial, [s for s in marginal_sites(trial) if s.name in settings])
    reason = why_not_over_values(pair, trial, settings.keys())
    if reason:
        raise _no_leading_dims(trial, settings, reason)
    return Summed() if untried else try_sums(pair, trial, settings, rows=False)


def why_not_at_once_here(pair: Pair, draws: Mapping[str, Tensor], subsamples: KeepSubsamples, batch_dims: int) -> str:
    """Why the model's own sites cannot be summed out at once at these draws of one run; empty if they can.

    A program that lets Python see a draw may take another branch at each, of which a trial has seen one.
    """
    with on_trial(), kept_state(pair.model, pair.guide), torch.no_grad():
        try:
            trial = Trial(*trace_pair(pair, subsamples, draws), subsamples, batch_dims, alone=True).sharing_runs(pair)
            own = marginal_sites(trial)
            check_elements(pair, trial, own)
            return why_not_over_values(pair, trial, {s.name for s in own}) if own else ""
        except (BudgetError, OutOfScopeError):
            raise
        except (EnumerationError, SiteShapeError) as error:
            return first_line(error)


def try_sums(pair: Pair, trial: Trial, settings: Mapping[str, Enumerate], rows: bool) -> Summed:
    """Try the sums once, without contracting them; `rows`: with a dim for them between plates and values."""
    drawn = latent_sites(trial.guide_trace)

    def tried(by_parts: Mapping[str, int]) -> Summed:
        cost, groups = SumCost(), []
        marginalise = Marginalise(drawn, settings, trial.batch_dims, rows=rows, by_parts=by_parts)
        replayed = pair.replayed(trial.guide_trace, marginalise)
        trace = poutine.trace(replayed).get_trace(*pair.args, **pair.kwargs)
        for component in components(trace, marginalise)[0]:
            cost = cost.beside(within_budget(component, settings))
            plates = [frozenset(f.name for f in factor.message["cond_indep_stack"]) for factor in component.factors]
            groups.append((frozenset(f.name for f in component.factors), frozenset.intersection(*plates)))
        return Summed(cost, groups, by_parts=by_parts)

    try:
        with torch.no_grad(), trial.subsamples:
            return in_pairs_where_needed(tried, sites_by_parts(trial))
    except DiscreteInferenceError:
        raise
    except Exception as error:
        raise _no_leading_dims(trial, settings, why_not_at_once(error)) from error


def _no_leading_dims(trial: Trial, settings: Mapping[str, Enumerate], reason: str) -> NoLeadingDimsError:
    sites = [s for s in marginal_sites(trial) if s.name in settings]
    names = ", ".join(repr(s.name) for s in sites[:5]) + (", ..." if len(sites) > 5 else "")
    large = ", ".join(repr(s.name) for s in sites if summed_by_parts(s.distribution) is not None)
    hint = f" Places of {large} are dim -1: read them by .to_event(1), not in a plate, or .sum(-1)." if large else ""
    return NoLeadingDimsError(
        f"Sites of the model alone ({names}) are summed out over leading dims, which the program cannot take "
        f"({reason}). Index from the right so that dims on the left broadcast, or draw them {IN_GUIDE}.{hint}",
        reason,
    )


def nor_one_by_one(refused: DiscreteInferenceError, other: Exception) -> DiscreteInferenceError:
    """What to say of sums that can be had neither at once nor one joint value after another."""
    if not isinstance(refused, NotAtOnceError):
        return refused
    return EnumerationError(f"{refused} One joint value after another cannot be had either: {first_line(other)}")


def settle(
    pair: Pair,
    trial: Trial,
    settings: Mapping[str, Enumerate],
    most: int = MOST,
    singly: str = "",
    untried: bool = False,
) -> Summed:
    """As `settle_marginals`, or else by a run for each joint value of all elements, `most` at most.

    `singly`: why not at once, if another run has shown it. `untried`: whether sums at once are left to whoever takes
    them to try: what they join and cost is not known then. Raises `EnumerationError` if neither can be had.
    """
    refused: DiscreteInferenceError
    try:
        if singly:
            raise _no_leading_dims(trial, settings, singly)
        return settle_marginals(pair, trial, settings, untried)
    except (BudgetError, OutOfScopeError):
        raise
    except (EnumerationError, SiteShapeError) as error:
        refused = error
    drawn = latent_sites(trial.guide_trace)
    try:
        with torch.no_grad(), trial.subsamples:
            replayed = pair.replayed(trial.guide_trace)
            traces = list(joint_traces(replayed, drawn, pair.args, pair.kwargs, most))
            summed_one_by_one(replayed, trial.guide_trace, pair.args, pair.kwargs, most)
    except EnumerationError as other:
        raise nor_one_by_one(refused, other) from None
    numbers = [sum(m["value"].numel() for m in sample_sites(trace).values()) for trace in traces]
    members = frozenset(from_first(traces[0], drawn))
    why = refused.reason if isinstance(refused, NoLeadingDimsError) else first_line(refused)
    return Summed(SumCost(max(numbers), sum(numbers)), [(members, frozenset())], why)
