"""Making a plan: each site's estimator, the columns of a step, and the way it goes."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace

from pyro_discrete.distributions.structure import LARGEST_SUPPORT
from pyro_discrete.errors import EnumerationError, SiteMatchError, in_a_line
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.registry import AUTO, named_estimator
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.families import Family
from pyro_discrete.inspection.decisions import draws_among
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies, reached_by, why_joined
from pyro_discrete.inspection.enumerability import crossing_site, joined_elements, joined_plates, marked_trial
from pyro_discrete.inspection.trial import (
    Trial,
    check_batch_dims,
    check_data,
    check_pair,
    names_of_guide,
    observed_constants,
    plain_trial,
    warn_of_observations,
)
from pyro_discrete.inspection.trial_rows import RowsVerdict, check_rows
from pyro_discrete.inspection.wiring import Wiring
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.costs import Order
from pyro_discrete.planning.automatic import CHEAP_SUPPORT, Situation, cheap_enumeration, numbers_of, situations
from pyro_discrete.planning.baseline_inputs import features_of
from pyro_discrete.planning.kl_treatment import analytic_notes, note_when_met_late
from pyro_discrete.planning.plan import (
    ANALYTIC,
    ESCAPES,
    Chunked,
    ChunkedBound,
    Elementwise,
    Exact,
    Jointly,
    Marginals,
    Parallel,
    Plan,
    Sequential,
    SitePlan,
    Vectorised,
)
from pyro_discrete.planning.products import settle_products
from pyro_discrete.planning.select import Selection
from pyro_discrete.planning.shared_terms import SharedTerms, check_rows_apart
from pyro_discrete.programs.dims import Columns, Layout, plates_of
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import (
    Site,
    base_distribution,
    batched_alike,
    draws_asked_for,
    is_marked,
    latent_sites,
    listable,
    number_of_values,
    sample_sites,
    why_not_enumerable,
)
from pyro_discrete.sums.counts import Counts
from pyro_discrete.sums.enumerated_sites import BudgetError, check_table, refuse_unguided
from pyro_discrete.sums.marginalisation import (
    NoLeadingDimsError,
    Summed,
    absorbed,
    check_elements,
    marginal_sites,
    settle,
    sites_by_parts,
    try_sums,
)

__all__ = [
    "make_plan",
    "marginal_settings",
    "plan_site",
]


def marginal_settings(sites: list[Site], selection: Selection) -> dict[str, Enumerate]:
    """How each of these sites is summed out. Raises `SiteMatchError` if one cannot be, or is to be sampled."""
    settings, plain = {}, Enumerate()  # one for all, as chains have thousands of sites
    for site in sites:
        refuse_unguided(site.name, site.distribution, site.message["infer"])
        choice, why = selection.wanted(site)
        exact = isinstance(choice, Enumerate) or choice in (None, AUTO, Enumerate.name)
        if not exact and why in ("by name", "the site's infer"):
            name = choice if isinstance(choice, str) else getattr(choice, "name", choice)
            raise SiteMatchError(
                f"Estimator {name!r} was asked for at site {site.name!r}, which is latent in the model but not drawn "
                "in the guide: there are no draws to learn from. Draw it in the guide too, or leave it out of the "
                "dict to have it marginalised exactly."
            )
        settings[site.name] = choice if isinstance(choice, Enumerate) else plain
        check_table(site.message, settings[site.name], marginal=True)
    return settings


def make_plan(
    pair: Pair,
    selection: Selection,
    objective: Objective,
    vectorise: bool,
    max_plate_nesting: float,
    row_chunk: int | None = None,
    may_enumerate: bool = True,
    unknown: str = "",
    apart: Mapping[str, Mapping[str, int]] | None = None,
    coupled: str = "",
    counts: Counts | None = None,
    singly: str = "",
    seen: Collection[str] = (),
    unchanged: Callable[[], bool] = lambda: False,
    first: Trial | None = None,
    grown: Collection[str] = (),
    by_step: bool = False,
) -> tuple[Plan, Trial]:
    """Try the pair once, check it, and choose each site's estimator and the way of a step.

    With `may_enumerate=False`, "auto" does not enumerate. `unknown`: why nothing is to be known of what depends
    on what, if so. `apart`: plates whose elements steps have found to share later terms, by site, with their sizes.
    `coupled`: what a step has found to join plate elements that were summed over one by one, if anything.
    `counts`: how far the sums over counts go already. `singly`: why a step could not sum out the model's own sites at
    once, if it could not. `seen`: what Python sees in a run of the pair (`decided_by`). `unchanged`: whether all that
    it can see in Python is known to be as it was before. `first`: a run of it that was made before.
    `grown`: plates that may have several elements in other runs, where they have one in this. `by_step`: whether sums
    over the model's own sites may be tried by the step that follows, where the plan needs nothing of what they are of:
    a first call of a chain takes 0.87 of the time that it takes where they are tried before.
    """
    counts = Counts(selection.may_sum) if counts is None else counts
    given, pair = pair, objective.around(counts.around(pair), training=False)
    try:
        trial = _with_several(pair, grown) if first is None else first
        check_data(given, trial)
        check_batch_dims(trial)
    except (ValueError, RuntimeError, IndexError) as error:
        marked = marked_trial(pair, max_plate_nesting)
        if marked is None:
            raise
        return replace(_plan_by_marks(marked, selection, objective, error), counts=counts), marked
    if max_plate_nesting != math.inf:
        trial = replace(trial, batch_dims=max(trial.batch_dims, int(max_plate_nesting)))
    check_pair(trial)
    warn_of_observations(given, trial)
    trial = trial.at_generic_numbers(pair, given, seen)
    sites = [Site(m) for m in latent_sites(trial.guide_trace).values()]
    names = latent_sites(trial.guide_trace).keys() | latent_sites(trial.model_trace).keys()
    selection.check_patterns(names, lambda: names | names_of_guide(pair))
    for site in sites:
        if site.family in (None, Family.CONTINUOUS):
            selection.check_continuous(site)
    marginal = marginal_sites(trial)
    settings = marginal_settings(marginal, selection)
    wiring, single = Wiring(unknown), trial.plates_of_one
    sized = bool(draws_among(seen))  # draws may decide how large plates are
    share_terms = single if sized else single & {*grown}
    enumerated = _enumeration_plan(
        pair, trial, sites, marginal, selection, objective, may_enumerate, lambda: wiring.of(given), coupled
    )
    if isinstance(enumerated, Plan):
        closed = objective.reads_dependencies and any(s.family is None for s in sites)
        known_by = wiring if isinstance(enumerated.way, Elementwise) or closed else None
        plan = replace(enumerated, wiring=known_by, closed_terms=objective.closed_terms, counts=counts)
        return replace(plan, of_one=frozenset() if sized else single), trial
    wanted = objective.reads_dependencies or any(s.family is not None for s in sites)
    joined = _joined(pair, trial, sites) | share_terms
    alone = _drawn_alone(sites, marginal, selection, objective)
    over = trial.shared.over_rows.get(None) if trial.shared is not None and alone and not unknown else None
    whole = reached_by(over, alone) if over is not None and unchanged() else None
    known = (whole or wiring.of(given) if wanted else UNKNOWN).sharing(joined)
    alone_in_a_row = objective.additive and selection.particles == 1 and not wanted
    untried = bool(marginal) and by_step and alone_in_a_row and not (sized or singly or sites_by_parts(trial))
    sums = settle(pair, trial, settings, singly=singly, untried=untried) if marginal else Summed(one_by_one=singly)
    untried = untried and not sums.one_by_one
    in_branches = bool(marginal and sites and not sums.one_by_one and draws_among(seen))
    cost = sums.cost if marginal and not untried else None
    marginals = Marginals(settings, cost, sums.one_by_one, sums.by_parts, in_branches, untried)
    elements, layout = numbers_of(trial), objective.layout(pair, trial, known, selection.particles, sums.groups)
    order = Order({n: plates_of(m) for n, m in sample_sites(trial.guide_trace).items()}, {}, known)
    shared = SharedTerms(trial, objective, layout, known, sums.groups, apart or {})
    situation = situations(pair, trial, sites, shared, vectorise)
    columns, planned, chosen = Columns(), [], {}
    for site in sites:
        line, chosen[site.name] = plan_site(site, selection, layout, situation[site.name], order)
        estimator = chosen[site.name]
        if estimator is not None and estimator.separable and (plates := shared.of(site)):
            columns.apart[site.name] = plates
        if not (isinstance(estimator, Enumerate) and estimator.product):
            columns.give(site.name, line.rows - 1)
            if estimator is not None and (number := columns.room(site.name)) > 1:
                line.rows = check_rows_apart(site.name, estimator, number, line.rows, objective)
                line.notes += f"; as its elements share later terms, each of the {number} is moved by itself"
        planned.append(line)
    settle_products(planned, chosen, columns, sites, elements * layout.size, objective)
    drawn = {site.name for site in sites}
    columns.apart.update({name: plates for name, plates in (apart or {}).items() if name not in drawn})
    scored = absorbed(trial.model_trace, sums.members)
    notes = objective.notes(trial.guide_trace, scored, known)
    kl_notes = analytic_notes(chosen, trial.guide_trace, scored, known, _never_analytic(pair, objective))
    for line in planned:
        line.notes += (kl_notes | notes).get(line.name, "")
        line.notes += "; doubly reparameterised" if line.name in layout.doubly else ""
    way, reason, observed = _choose_way(pair, trial, chosen, columns.count * layout.size, vectorise, marginals)
    if row_chunk is not None and columns.count * layout.size > 1:
        way = (Chunked if layout.inner is None else ChunkedBound)(way, row_chunk)
    plan = Plan(
        way,
        planned + [_marginal_plan(site) for site in marginal],
        chosen,
        columns,
        selection.particles,
        trial.batch_dims,
        reason=reason,
        layout=layout,
        elements=elements,
        marginals=marginals,
        observed=observed,
        analytic=frozenset(name for name, note in kl_notes.items() if note == ANALYTIC),
        passed_over=enumerated,
        joined=joined,
        of_one=single - share_terms,
        wiring=wiring if wanted else None,
        costs=known.describe() if wanted else "",
        counts=counts,
    )
    if wanted and not objective.reads_dependencies and not any(e and (e.relaxed or e.sloped) for e in chosen.values()):
        plan = replace(plan, whole=known if known.whole else None)  # what relaxed values meet is looked at again
    return plan, trial


def _joined(pair: Pair, trial: Trial, sites: list[Site]) -> frozenset[str]:
    """The plates in which a draw of one element may change the terms of others, as far as a few values show.

    All of them, where the program does not run at those values.
    """
    discrete = [s for s in sites if s.family not in (None, Family.CONTINUOUS)]
    try:
        return frozenset(joined_plates(pair, trial, discrete, under_plate=True))
    except Exception:  # of runs at values that are never drawn, perhaps: nothing is known, then
        return frozenset(p.name for s in discrete for p in s.plates if p.vectorized and p.size > 1)


def _drawn_alone(sites: list[Site], marginal: list[Site], selection: Selection, objective: Objective) -> str:
    """The name of the guide's only site, if it is drawn hard, and nothing but its costs reads what depends on what."""
    if len(sites) != 1 or marginal or objective.reads_dependencies:
        return ""
    choice = selection.wanted(sites[0])[0]
    if choice is None or choice == AUTO:
        return ""
    estimator = named_estimator(choice) if isinstance(choice, str) else choice
    return "" if estimator.relaxed or estimator.sloped else sites[0].name


def _never_analytic(pair: Pair, objective: Objective) -> str:
    """Why the divergence of no relaxed site can be analytic, or nothing."""
    if not objective.additive:
        return "on this objective it is no term by itself"
    return "the guide runs the model itself" if pair.guide_runs_model else ""


def _marginal_plan(site: Site) -> SitePlan:
    return SitePlan(site.name, _kind(site), "enumerate", 0, "in the model alone: marginalised")


def plan_site(
    site: Site, selection: Selection, layout: Layout, situation: Situation | None = None, order: Order | None = None
) -> tuple[SitePlan, Estimator | None]:
    """A site's line of the plan, and its estimator: None for a reparameterised one."""
    said = "; its infer's num_samples is not read" if "num_samples" in site.message["infer"] else ""
    if site.family is None:
        return SitePlan(site.name, "reparameterised", "pathwise", 1, "continuous and reparameterised", said), None
    estimator, why = selection.estimator(site, situation, layout.shares(site.plates))
    if isinstance(estimator, Enumerate):
        _check_support(site, estimator)
    notes = note_when_met_late(estimator) if order is None else ""
    if order is not None and site.name in order.position:
        known = order.dependencies
        unmoved = sum(not known.influences(site.name, term) for term in known.terms)
        if unmoved:
            notes = f"; its signal leaves out {unmoved} of {len(known.terms)} terms"
        crossed = sorted(p.name for p in order.escapes(site.name))
        if crossed:
            shared = known.plates.issuperset(crossed)
            why_crossed = "the elements share terms" if shared else "a later site outside could carry influence"
            notes += f"; its cost is summed over plate {', '.join(crossed)}, as {why_crossed}"
    alike = batched_alike(site.distribution)
    if alike:
        said += f"; {alike.strip(' .')}"
    return SitePlan(site.name, site.family.value, _label(estimator), estimator.rows(site), why, notes + said), estimator


def _label(estimator: Estimator) -> str:
    details = estimator.extra_repr()
    return f"{estimator.name}({details})" if details else estimator.name


def _separated(
    pair: Pair,
    trial: Trial,
    discrete: list[Site],
    particles: int,
    settings: Enumerate,
    known: Callable[[], Dependencies],
) -> tuple[dict[str, int], str]:
    """The sites to be summed over element by element, by the number of an element's values; or why they cannot be."""
    joined = why_joined(pair, trial, known())
    if joined:
        return {}, joined
    values = {s.name: number_of_values(s) for s in discrete}
    elements = max(values.values()) * particles * numbers_of(trial)
    if elements > settings.max_elements:
        raise EnumerationError(
            f"Summing over the elements of {', '.join(map(repr, values))} one by one needs {elements:.3g} numbers; at "
            f"most {settings.max_elements:.3g} are allowed (Enumerate(max_elements=...)). Use smaller batches."
        )
    return values, ""


def _check_support(site: Site, settings: Enumerate, joined: str = "") -> None:
    size = site.cardinality
    if size == math.inf:
        raise EnumerationError(
            f"Site {site.name!r} ({type(site.distribution).__name__}) "
            f"{why_not_enumerable(site.distribution, site.message['infer'])}. Use 'rloo' or 'nvil' for it."
        )
    elements = size * math.prod(site.distribution.shape())
    if not listable(site.distribution):
        raise BudgetError(
            f"Enumerating site {site.name!r}, which is {type(base_distribution(site.distribution)).__name__}, needs a "
            f"list of its {size:.4g} values; at most {LARGEST_SUPPORT} are listed. Use 'rloo' or 'nvil' for it."
        )
    if elements > settings.max_elements:
        raise BudgetError(
            f"Enumerating site {site.name!r} needs {size:.3g} joint values of event shape "
            f"{tuple(site.distribution.event_shape)}, a table of {elements:.3g} elements; at most "
            f"{settings.max_elements:.3g} are allowed (Enumerate(max_elements=...))"
            f"{f', and its elements cannot be summed over one by one ({joined})' if joined else ''}. Use 'rloo' or "
            "'nvil' for it, or 'indecater', which sums over each element by itself, given a draw of the others, or "
            "declare independent dims as a pyro.plate instead of .to_event."
        )


RUNS_FOR_SEVERAL = 16


def _with_several(pair: Pair, grown: Collection[str]) -> Trial:
    """A run of the pair in which these plates have several elements, if one of a few has: of plates whose sizes the
    program draws by itself one run shows them with one element, and the next with several."""
    trial = plain_trial(pair)
    for _ in range(RUNS_FOR_SEVERAL):
        if not trial.plates_of_one & {*grown}:
            break
        trial = plain_trial(pair)
    return trial


def _enumeration_plan(
    pair: Pair,
    trial: Trial,
    sites: list[Site],
    marginal: list[Site],
    selection: Selection,
    objective: Objective,
    may_enumerate: bool,
    known: Callable[[], Dependencies],
    coupled: str,
) -> Plan | str:
    """A plan that enumerates every discrete site of the guide, if asked for or, under "auto", cheap or marked.

    Or why "auto" passes over what is small enough; empty where nothing is. Draws that a continuous site wants beside
    each other are enumerated as values are, if there are no discrete sites as well.
    """
    discrete = [s for s in sites if s.family not in (None, Family.CONTINUOUS)]
    repeated = any(draws_asked_for(s.message) > 1 for s in sites)
    if not objective.may_enumerate or not (discrete or repeated):
        return ""
    everything = discrete + marginal
    marked, (explicit, settings) = False, selection.wants_enumeration(discrete)
    if explicit and any(selection.left_to_auto(s) and not _fits(s, settings) for s in discrete):
        explicit = False  # a site that nobody named cannot be had: the named ones get the local expectation
    auto = may_enumerate and all(map(selection.left_to_auto, discrete))
    if not explicit:
        marked = auto and bool(discrete) and all(is_marked(s.message) and _fits(s, settings) for s in discrete)
        cheap = cheap_enumeration(pair, trial, discrete, marginal, known) if auto and not marked else None
        if cheap is None and not marked:
            return ""
        settings = cheap or settings
    separated, joined = {}, ""
    if explicit and any(s.cardinality > CHEAP_SUPPORT for s in discrete):
        separated, joined = _separated(pair, trial, discrete, selection.particles, settings, known)
    for site in everything:
        if site.name not in separated:
            _check_support(site, settings, joined)
    if marginal and not explicit:  # what was asked for can be had slowly
        try:
            check_elements(pair, trial, marginal)
        except EnumerationError as error:
            return str(error)
    joint, coupling = False, ESCAPES
    if coupled and not separated:
        joint, coupling = True, f"share terms ({coupled})"
    elif not separated:
        joint = crossing_site(pair, trial, discrete) is not None
        joint = joint or (explicit and _small_jointly(trial, discrete, settings, selection.particles))
    if not separated and not joint:
        joined_by = joined_elements(pair, trial, discrete)
        joint, coupling = bool(joined_by), f"share terms ({joined_by})"
    if joint and not explicit:
        return f"its sites {coupling}"
    way: Exact = Parallel(settings, explicit)
    if separated:
        way = Elementwise(settings, explicit, separated)
    elif joint:
        way = Jointly(settings, explicit, coupling)
    planned, chosen = [], {}
    for site in sites:
        if site in discrete:
            why = "asked for" if explicit else f"auto: at most {CHEAP_SUPPORT} joint values in a sum"
            why = "auto: marked for enumeration" if marked else why
            number = f"{int(site.cardinality)} joint values"
            if site.name in separated:
                number = f"{separated[site.name]} values an element, summed over one by one, as no term joins elements"
            planned.append(SitePlan(site.name, _kind(site), "enumerate", 0, why, f"; {number}"))
        elif site.family is None:
            line, chosen[site.name] = plan_site(site, selection, Layout(1))
            planned.append(line)
        else:
            planned.append(SitePlan(site.name, _kind(site), "reinforce", 1, "continuous: the score function"))
        if isinstance(way, Parallel) and draws_asked_for(site.message) > 1:
            planned[-1].notes = f"; the mean over {draws_asked_for(site.message)} draws (num_samples)"
    planned += map(_marginal_plan, marginal)
    reason = ""
    if joint:
        escaping = "a later site outside may depend on an enumerated one"
        reason = f"joint values of all plate elements, as {escaping if coupling is ESCAPES else f'they {coupling}'}"
    return Plan(way, planned, chosen, Columns(), selection.particles, trial.batch_dims, reason=reason)


def _plan_by_marks(trial: Trial, selection: Selection, objective: Objective, error: Exception) -> Plan:
    """The plan of a program that runs under the enumeration that it marks, and on no single value."""
    sites = [Site(m) for m in latent_sites(trial.guide_trace).values()]
    discrete = [s for s in sites if s.family not in (None, Family.CONTINUOUS)]
    nodes = latent_sites(trial.guide_trace) | latent_sites(trial.model_trace)
    names = ", ".join(repr(n) for n, m in nodes.items() if m["infer"].get("_enumerate_dim") is not None)
    explicit, settings = selection.wants_enumeration(discrete)
    if not objective.may_enumerate or not (explicit or all(map(selection.left_to_auto, discrete))):
        raise EnumerationError(
            f"The program runs only while sites {names} are enumerated in parallel, as it marks them: on single values "
            f"it raises {in_a_line(error)}. Choose 'enumerate' for every discrete site, or index from the "
            "right so that single values can be read too."
        ) from error
    planned, chosen = [], {}
    for site in sites:
        if site in discrete:
            planned.append(SitePlan(site.name, _kind(site), "enumerate", 0, "the program runs under enumeration alone"))
        elif site.family is None:
            line, chosen[site.name] = plan_site(site, selection, Layout(1))
            planned.append(line)
        else:
            planned.append(SitePlan(site.name, _kind(site), "reinforce", 1, "continuous: the score function"))
    planned += [_marginal_plan(site) for site in marginal_sites(trial)]
    way = Parallel(settings, explicit=True, at_once=False, untried=True)
    return Plan(way, planned, chosen, Columns(), selection.particles, trial.batch_dims)


def _small_jointly(trial: Trial, discrete: list[Site], settings: Enumerate, particles: int) -> bool:
    """Whether joint values of all elements are few, and may be needed: a later site of the guide is outside a plate.

    Where they are not few, the dims of a run in parallel tell whether that site depends on one inside. One in a plate
    beside it is left to these, too.
    """
    drawn = latent_sites(trial.guide_trace)
    plates = {name: frozenset(p for p in plates_of(msg) if p.vectorized) for name, msg in drawn.items()}
    names = list(plates)
    outside = any(plates[later] < plates[s.name] for s in discrete for later in names[names.index(s.name) + 1 :])
    number = math.prod(int(s.cardinality) ** math.prod(s.distribution.batch_shape) for s in discrete)
    return outside and number * numbers_of(trial) * particles <= settings.max_elements


def _fits(site: Site, settings: Enumerate) -> bool:
    fits = site.cardinality * math.prod(site.distribution.shape()) <= settings.max_elements
    return fits and listable(site.distribution)


def _kind(site: Site) -> str:
    return site.family.value if site.family else "reparameterised"


def _choose_way(
    pair: Pair,
    trial: Trial,
    chosen: Mapping[str, Estimator | None],
    total: int,
    vectorise: bool,
    marginals: Marginals,
) -> tuple[Vectorised | Sequential, str, dict[str, int]]:
    """Vectorised where there are `total` > 1 rows and the program can take them; why not; what baselines may read."""
    wants_data = any(e is not None and e.reads_context for e in chosen.values())
    verdict: RowsVerdict | None = None
    drawn = any(e is not None for e in chosen.values())
    wanted = total > 1 and vectorise and not marginals.one_by_one
    if wanted and drawn:
        verdict = check_rows(pair, trial)
    elif wanted or wants_data:
        verdict = _try_rows(pair, trial)
    observed = {}
    if wants_data:
        names = observed_constants(pair, trial, verdict.model_trace if verdict else None)
        nodes = sample_sites(trial.model_trace)
        observed = {n: features_of(nodes[n]).shape[-1] for n in names}
    if total == 1:
        return Sequential(), "", observed
    if not vectorise:
        return Sequential(), "vectorize_particles=False", observed
    cost = marginals.cost
    if cost is not None and not any(map(cost.times(total).fits, marginals.settings.values())):
        return Sequential(), f"{total} rows at once would be beyond the budget of exact sums", observed
    reason = verdict.reason if verdict is not None else ""
    if marginals.one_by_one:
        verdict, reason = None, "sites of the model alone are summed out by a run for each joint value"
    if verdict and marginals.settings:
        try:
            try_sums(pair, trial, marginals.settings, rows=True)
        except NoLeadingDimsError as error:
            verdict, reason = None, str(error)
    if not verdict:
        warnings.warn(
            f"This program cannot take a leading dim of {total} rows x particles, so each is run by itself, more "
            f"slowly ({reason}). Index from the right and avoid view(B, -1) to have them run at once.",
            stacklevel=2,
        )
        return Sequential(), reason, observed
    return Vectorised(), "", observed


def _try_rows(pair: Pair, trial: Trial) -> RowsVerdict:
    """Rows tried only to see what takes them: what is wrong with the program is no error here."""
    try:
        return check_rows(pair, trial)
    except ValueError as error:
        return RowsVerdict(None, str(error))
