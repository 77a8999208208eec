"""Whether exact sums can be had, and which way: tried once, when the plan is made."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import replace

import torch

from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteMatchError, in_a_line, why_not_at_once
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.decisions import draws_among
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.enumerability import why_not_over_values
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.inspection.trial_rows import check_rows, spread_values, unused_size
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import ESCAPES, Exact, Jointly, OneByOne, Parallel, Plan
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import Pair, trace_pair
from pyro_discrete.programs.sites import Site, draws_asked_for, family_of, is_marked, latent_sites
from pyro_discrete.steps.enumerated.jointly import ONE_BY_ONE, joint_values
from pyro_discrete.steps.step import WAYS
from pyro_discrete.sums.enumerated_sites import BudgetError, OutOfScopeError, SharedDimError
from pyro_discrete.sums.marginalisation import check_elements, marginal_sites, nor_one_by_one, settle
from pyro_discrete.sums.packed_terms import CoupledElementsError

__all__ = [
    "settled",
    "tried_by_step",
]

FEW = 16
"""So many joint values of sites without a mark "auto" goes through one by one, where it cannot be given all at once."""


def settled(
    plan: Plan, pair: Pair, objective: Objective, trial: Trial, seen: Collection[str], by_step: bool = False
) -> Plan | str:
    """The plan with a way by which its enumeration can be had; or why not, if "auto" chose it and it is not cheap.

    `by_step`: whether the step that follows may be what tries the sums at once (see `tried_by_step`): a first call of
    an enumerated mixture takes 0.9 of the time that it takes where they are tried before.

    In parallel, enumerated values fill new dims on the left, as rows do: a program that does not keep rows apart would
    be silently wrong. Where it was asked for, joint values go one by one instead. Raises `EnumerationError` if it
    cannot be had at all.
    """
    assert isinstance(plan.way, Exact)
    known = plan.dependencies(pair)
    # in the handlers of the trial: what has been seen of it need not be run again
    pair = objective.around(plan.counts.around(pair), training=False) if trial.shared is None else trial.shared.pair
    way = plan.way
    if isinstance(way, Parallel) and way.untried:
        return _as_marked(plan, pair, objective, known)
    refused: EnumerationError | None = None
    try:
        if way.explicit:  # what "auto" would take was looked at before
            check_elements(pair, trial, marginal_sites(trial))
        found = _at_once(plan, pair, objective, trial, known, by_step and tried_by_step(plan))
    except (BudgetError, OutOfScopeError):
        raise
    except EnumerationError as error:  # of what was asked for
        found, refused = why_not_at_once(error), error
    if isinstance(found, Plan):
        # what "auto" took is small here: larger batches may come
        return found if way.explicit else replace(found, way=replace(found.way, settings=Enumerate()))  # type: ignore[call-arg]
    if not _drawn(trial):  # draws beside each other cannot be had: one is enough
        return found
    if not way.explicit:
        joint = math.prod(
            s.cardinality for s in map(Site, latent_sites(trial.guide_trace).values()) if s.family is not None
        )
        marked = all(is_marked(trial.guide_trace.nodes[n]) for n in _drawn(trial))
        by_value = joint <= ONE_BY_ONE if marked else joint <= FEW and _runs_over_values(pair, trial)
        if isinstance(way, Jointly) or _coupled(trial) or not by_value:
            return found
    in_branches = _hangs_on_values(seen, trial)
    if way.explicit:
        return _one_after_another(plan, pair, trial, objective, found, refused, in_branches)
    try:
        if in_branches:
            if joint_values(trial.guide_trace.nodes[n] for n in _drawn(trial)) > FEW:
                return f"Python decides by draws in plates: {found}"
            return _by_joint_values(plan, pair, trial, objective, found, None, in_branches)
        return _one_by_one(plan, pair, trial, objective, found)
    except DiscreteInferenceError as error:
        return str(error)
    except Exception:
        return found


def _one_after_another(
    plan: Plan,
    pair: Pair,
    trial: Trial,
    objective: Objective,
    found: str,
    refused: EnumerationError | None,
    in_branches: bool,
) -> Plan:
    """The plan by a run for each value where that is exact, else for each joint value of all elements.

    Raises `EnumerationError` where neither can be had: what was `refused` at once, or that which was `found` there.
    """
    assert isinstance(plan.way, Exact)
    together = not isinstance(plan.way, Jointly) and not _coupled(trial)
    if refused is None and together and not in_branches:
        try:
            return _one_by_one(plan, pair, trial, objective, found)
        except SiteMatchError:
            raise
        except Exception:  # of values that all elements have at once: there are joint ones
            pass
    return _by_joint_values(plan, pair, trial, objective, found, refused, in_branches)


def _hangs_on_values(seen: Collection[str], trial: Trial) -> bool:
    """Whether a branch may hang on draws, of a program with more to be summed over than single values: which elements
    share terms, and which sums can be had at once, is known of the trial's branch alone then."""
    sites = [Site(m) for m in latent_sites(trial.guide_trace).values() if family_of(m["fn"]) is not None]
    more = any(s.plates for s in sites) or bool(marginal_sites(trial))  # of one element now, perhaps
    return more and bool(draws_among(seen))


def _by_joint_values(
    plan: Plan,
    pair: Pair,
    trial: Trial,
    objective: Objective,
    found: str,
    refused: EnumerationError | None,
    in_branches: bool,
) -> Plan:
    """The plan by a run for each joint value of all elements."""
    assert isinstance(plan.way, Exact)
    explicit = plan.way.explicit
    reason = f"one joint value after another, as at once: {found}"
    if isinstance(plan.way, Jointly):
        reason = f"{plan.reason}; one after another: {found}"
    why, settings = plan.way.why if isinstance(plan.way, Jointly) else ESCAPES, plan.way.settings
    last: Exception | None = None
    for own_too in (False, True):
        if not own_too and not _own_go_at_once(pair, trial):
            continue
        way = Jointly(settings, explicit, why, one_by_one=True, own_too=own_too, in_branches=in_branches)
        plan = replace(plan, way=way, reason=reason)
        try:
            _try(plan, pair, objective, plan.dependencies(pair))
            return plan
        except SiteMatchError:
            raise
        except Exception as error:
            last = error
    if refused is not None:
        raise nor_one_by_one(refused, last or refused)
    raise EnumerationError(
        f"The program cannot be enumerated, neither at once ({found}) nor one joint value after another "
        f"({in_a_line(last)}). Use 'rloo' or 'nvil', or index from the right so that dims on the left broadcast."
    ) from last


def _one_by_one(plan: Plan, pair: Pair, trial: Trial, objective: Objective, found: str) -> Plan:
    """The plan by a run for each joint value of the guide's sites, which all elements of a plate have at once.

    Raises what the program does, or `EnumerationError`.
    """
    assert isinstance(plan.way, Exact)
    joint = math.prod(
        s.cardinality for s in map(Site, latent_sites(trial.guide_trace).values()) if s.family is not None
    )
    if joint > ONE_BY_ONE:
        raise EnumerationError(
            f"The discrete sites cannot be enumerated in parallel ({found}), and their {joint:.3g} joint values are "
            f"too many to go through one by one ({ONE_BY_ONE} at most). Use 'rloo' or 'nvil', or index from the right "
            "so that dims on the left broadcast."
        )
    if not _own_go_at_once(pair, trial):
        raise EnumerationError(f"Sites of the model alone cannot be summed out over leading dims ({found}).")
    reason = f"one joint value after another, as in parallel: {found}"
    plan = replace(plan, way=OneByOne(plan.way.settings, plan.way.explicit), reason=reason)
    _try(plan, pair, objective, UNKNOWN)
    return plan


def _own_go_at_once(pair: Pair, trial: Trial) -> bool:
    """Whether the model's own sites can be summed out over leading dims, whatever the guide's draws."""
    own = marginal_sites(trial)
    try:
        return not own or not settle(pair, trial, {s.name: Enumerate() for s in own}).one_by_one
    except DiscreteInferenceError:
        return False


def _as_marked(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> Plan:
    """The plan of a program that runs under enumeration alone, if it does so with all of its discrete sites."""
    try:
        _try(plan, pair, objective, known)
    except DiscreteInferenceError:
        raise
    except Exception as error:
        raise EnumerationError(
            "The program runs only while the sites that it marks are enumerated in parallel, and not with all of its "
            f"discrete sites enumerated: {in_a_line(error)}. "
            "Index from the right so that single values can be read too."
        ) from error
    return plan


def tried_by_step(plan: Plan) -> bool:
    """Whether a step of the plan takes its sums as a trial of them does, within the same budget: if it raises, the plan
    has to be made anew, and its sums tried before a step."""
    way = plan.way
    if not isinstance(way, Parallel) or way.untried:
        return False
    return way.explicit or _budget(way.settings) == _budget(Enumerate())  # the settings of what "auto" took


def _budget(settings: Enumerate) -> tuple[int, int]:
    return settings.max_elements, settings.max_operations


def _at_once(
    plan: Plan, pair: Pair, objective: Objective, trial: Trial, known: Dependencies, by_step: bool = False
) -> Plan | str:
    """The plan with its way over leading dims, or why the program cannot go that way."""
    assert isinstance(plan.way, Exact)
    settings, explicit = plan.way.settings, plan.way.explicit
    try:
        reason = _why_not_rows(plan, pair, trial)
        if reason:
            return reason
        plan = replace(plan, way=_beside_each_other(plan, pair, trial))
        if by_step:
            return plan
        try:
            _try(plan, pair, objective, known)
        except CoupledElementsError as coupled:
            if not explicit:
                return str(coupled)
            reason = f"joint values of all plate elements, as {coupled.by}"
            plan = replace(plan, way=Jointly(settings, explicit), reason=reason)
            mixed = _why_not_rows(plan, pair, trial)
            if mixed:
                return mixed
            _try(plan, pair, objective, known)
    except EnumerationError as error:
        if explicit:
            raise
        return "too large" if isinstance(error, BudgetError) else str(error)
    except Exception as error:
        return why_not_at_once(error)
    return plan


def _why_not_rows(plan: Plan, pair: Pair, trial: Trial) -> str:
    """Why the program cannot be given the values over leading dims: at the sites summed over, or at all of them."""
    if not isinstance(plan.way, Parallel):  # a row holds values of every site
        return check_rows(pair, trial).reason
    return why_not_over_values(pair, trial, _discrete(trial) | _repeated(trial))


def _coupled(trial: Trial) -> tuple[str, str] | None:
    """A discrete site of the guide in a plate, and one of the model alone outside of it, which sums over both couple.

    Values that go one after another are the same for all elements: they are weighed element by element.
    """
    drawn = latent_sites(trial.guide_trace)
    alone = {n: plates_of(m) for n, m in latent_sites(trial.model_trace).items() if n not in drawn}
    for name, msg in drawn.items():
        if family_of(msg["fn"]) in (None, Family.CONTINUOUS):
            continue
        inside = {p for p in plates_of(msg) if p.vectorized}
        for other, plates in alone.items():
            if inside - plates:
                return name, other
    return None


def _runs_over_values(pair: Pair, trial: Trial) -> bool:
    """Whether the program runs over rows of values at all, so that its sites, and their number, do not hang on these.

    One that branches on a value has others in other branches: "auto" leaves it to the samplers.
    """
    try:
        trace_pair(pair, trial.subsamples, spread_values(trial, unused_size(trial), _discrete(trial)))
    except Exception:
        return False
    return True


def _discrete(trial: Trial) -> set[str]:
    sites = latent_sites(trial.guide_trace) | latent_sites(trial.model_trace)
    return {n for n, m in sites.items() if family_of(m["fn"]) not in (None, Family.CONTINUOUS)}


def _drawn(trial: Trial) -> set[str]:
    return _discrete(trial) & latent_sites(trial.guide_trace).keys()


def _repeated(trial: Trial) -> set[str]:
    return {n for n, m in latent_sites(trial.guide_trace).items() if draws_asked_for(m) > 1}


def _beside_each_other(plan: Plan, pair: Pair, trial: Trial) -> Exact:
    """The way, with particles side by side where there are several and the program takes rows at every site."""
    assert isinstance(plan.way, Exact)
    if not isinstance(plan.way, Parallel) or plan.particles == 1 or not plan.samples:
        return plan.way
    try:
        return replace(plan.way, at_once=bool(check_rows(pair, trial)))
    except DiscreteInferenceError:  # no error, as it has no rows then
        return replace(plan.way, at_once=False)


def _try(plan: Plan, pair: Pair, objective: Objective, known: Dependencies) -> None:
    while True:
        try:
            with torch.enable_grad():  # as in training: a program may differentiate something by itself
                WAYS[type(plan.way)].evaluate(plan, pair, objective, known)
            return
        except SharedDimError as error:
            if not plan.met.keep_apart(error.together):
                raise
