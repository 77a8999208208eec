"""The importance-weighted bound, one for each independent datum, and in which plates these data are."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from pyro.distributions import Delta
from pyro.distributions.util import scale_and_mask
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import ParticleError, SettingError, near_matches
from pyro_discrete.estimators.base import Estimator, Weights
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.objectives.base import Evaluation, Objective
from pyro_discrete.objectives.costs import Orders, Term
from pyro_discrete.objectives.log_weights import (
    BoundCosts,
    DoublyValue,
    Weighed,
    common_scale,
    doubly_sites,
    with_fixed_parameters,
)
from pyro_discrete.programs.dims import Layout, plates_of
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import base_distribution, guide_log_prob, is_latent, log_prob, padded, sample_sites
from pyro_discrete.sums.marginalisation import Group

__all__ = [
    "BoundEvaluation",
    "ImportanceBound",
    "check_inside",
    "datum_plates",
]


def datum_plates(
    trial: Trial, dependencies: Dependencies, given: Collection[str] | None, sums: Sequence[Group] = ()
) -> frozenset[str]:
    """Names of the plates whose elements are independent data; none for one joint bound.

    They are the plates that the observed sites, and the latent sites that share a plate with one of these, have in
    common. A latent site outside of them that comes after one inside could depend on its elements: unless it is known
    not to, all data are bounded jointly. So they are where a sum over sites of the model alone joins the elements.
    """
    guide, model = sample_sites(trial.guide_trace), sample_sites(trial.model_trace)
    known = {p.name for msg in [*guide.values(), *model.values()] for p in plates_of(msg)}
    if given is not None:
        for name in given:
            if name not in known:
                raise SettingError(
                    f"datum_plates: {name!r} is no plate of this program. "
                    f"{near_matches(name, known) if known else 'It has none.'}"
                )
        joining = _joining(trial, frozenset(given), sums)
        if joining:
            raise SettingError(
                f"datum_plates: the elements of {', '.join(map(repr, sorted(given)))} are no independent data, as "
                f"{joining}. Draw it in the guide too, or leave datum_plates out."
            )
        return frozenset(given)
    observed = [m for m in model.values() if m["is_observed"] and not isinstance(base_distribution(m["fn"]), Delta)]
    around = {p.name for msg in observed for p in plates_of(msg)}
    latents = [m for m in [*guide.values(), *model.values()] if is_latent(m)]
    plates = [_names(m) for m in [*observed, *(m for m in latents if _names(m) & around)]]
    common = frozenset.intersection(*plates) if plates else frozenset()
    later = None
    if common:
        inside = [name for name, m in guide.items() if common <= _names(m)]
        later = _dependent_outside(common, guide, inside, "guide", dependencies)
        later = later or _dependent_outside(common, model, inside, "model", dependencies)
    joining = _joining(trial, common, sums)
    if common & dependencies.plates:
        joining = f"terms read several elements of plate {', '.join(sorted(common & dependencies.plates))}"
    if not later and not joining and (common or not any(_names(m) for m in [*observed, *latents])):
        return common
    reason = joining or "no plate holds all observed sites and the latent ones that share a plate with them"
    if later:
        outside = f"site {later!r} outside plate {', '.join(sorted(common))}"
        reason = f"{outside} is drawn after sites inside and could depend on them"
    warnings.warn(
        f"TraceIWELBO bounds all data jointly, as {reason}. Such a bound gets loose as the data grow. Draw sites "
        "outside the data's plate first, or name the plates of independent data: TraceIWELBO(datum_plates='...').",
        stacklevel=2,
    )
    return frozenset()


def _joining(trial: Trial, plates: frozenset[str], sums: Sequence[Group]) -> str:
    """Which sum over sites of the model alone joins elements of the plates, in words; empty where none does."""
    model, guide = sample_sites(trial.model_trace), sample_sites(trial.guide_trace)
    if not plates or not any(is_latent(m) and plates <= _names(m) for m in guide.values()):
        return ""  # nothing that the particles of one datum have by themselves
    for members, around in sums:
        inside = [n for n in model if n in members and plates <= _names(model[n])]
        if inside and not plates <= around:
            own = next(n for n in model if n in members and is_latent(model[n]) and n not in guide)
            return f"site {own!r} of the model alone is summed out over all of them at once (up to site {inside[-1]!r})"
    return ""


def _names(msg: dict) -> frozenset[str]:
    return frozenset(p.name for p in plates_of(msg))


def _dependent_outside(
    common: frozenset[str], sites: Mapping[str, dict], inside: list[str], where: str, dependencies: Dependencies
) -> str | None:
    """The first latent site outside the plates that comes after one inside, and may depend on one of the guide's."""
    begun = False
    for name, msg in sites.items():
        if common <= _names(msg):
            begun = True
        elif begun and is_latent(msg) and any(dependencies.influences(i, (where, name)) for i in inside):
            return name
    return None


def check_inside(trial: Trial, datum: frozenset[str]) -> None:
    """Refuse subsampling within a datum: a log-weight that is estimated gives no bound."""
    for trace in (trial.guide_trace, trial.model_trace):
        for msg in sample_sites(trace).values():
            if not datum <= _names(msg):
                continue
            for plate in plates_of(msg):
                if plate.name not in datum and plate.full_size not in (None, plate.size):
                    whole = "all data are bounded jointly" if not datum else f"a datum is one of {sorted(datum)}"
                    raise SettingError(
                        f"Plate {plate.name!r} around site {msg['name']!r} is subsampled ({plate.size} of "
                        f"{plate.full_size}), but {whole}: the log-weights would be estimates, and the bound none. "
                        "Subsample plates of independent data alone, and name them if need be: "
                        "TraceIWELBO(datum_plates='...'); or use TraceELBO."
                    )


@dataclass
class BoundEvaluation(Evaluation):
    """An evaluation that can be put together with those of the bound's other particles."""

    costs: BoundCosts
    weighed: Weighed


class ImportanceBound(Objective[BoundEvaluation]):
    r"""The bound :math:`E_g[\log p(g)/q(g) + s \sum_n \log \frac1K \sum_k w_{nk}(g)]`.

    - `inner`: K. `outer`: how many samples of the bound are taken, in each of which g is drawn once.
    - `plates`: names of the plates of independent data, None to work them out.
    - `doubly`: whether continuous sites take the doubly reparameterised gradient where they can.
    """

    name = "TraceIWELBO"
    additive = False
    may_enumerate = False
    instead_of_separable = "Use 'vimco' or 'reinforce' for the site."

    def __init__(self, inner: int, outer: int, plates: Collection[str] | None, doubly: bool) -> None:
        self.inner: int = inner
        self.outer: int = outer
        self.plates: Collection[str] | None = plates
        self.doubly: bool = doubly
        self._orders = Orders()

    def repetitions(self, particles: int) -> int:
        """The number of outer samples."""
        return self.outer

    def layout(
        self, pair: Pair, trial: Trial, known: Dependencies, particles: int, sums: Sequence[Group] = ()
    ) -> Layout:
        """K inner particles of each outer sample; `SettingError` if the data's plates give no bound."""
        datum = datum_plates(trial, known, self.plates, sums)
        check_inside(trial, datum)
        doubly = doubly_sites(pair, trial, datum) if self.doubly else frozenset()
        return Layout(particles, self.inner, datum=datum, doubly=doubly)

    def automatic(self) -> str:
        """VIMCO, where there are particles to leave out."""
        return "vimco" if self.inner > 1 else ""

    def check_estimator(self, estimator: Estimator, where: str, particles: int) -> None:
        """Refuse an estimator that needs more inner particles, or outer samples to leave out one of."""
        who = f"Estimator {estimator.name!r} {where + ' ' if where else ''}"
        if estimator.min_inner > self.inner:
            raise ParticleError(
                f"{who}needs the weights of at least {estimator.min_inner} particles, num_particles={self.inner} was "
                f"given. Write TraceIWELBO({estimator.name!r}, num_particles=8)."
            )
        if estimator.min_particles > particles:
            raise ParticleError(
                f"{who}takes a particle's baseline from others that are independent of it, but the {self.inner} of "
                "one bound are not: each one's cost is the bound that they have in common, so that the baseline would "
                f"depend on the particle itself. Give num_outer_samples >= {estimator.min_particles} for it to run "
                f"over (num_outer_samples={particles} was given), or use 'vimco'."
            )

    def weights(self, evaluation: BoundEvaluation, name: str) -> Weights | None:
        """How the named site's particles are weighed; None if they share it."""
        return evaluation.costs.weights(name)

    def evaluate(
        self,
        guide_trace: Trace,
        model_trace: Trace,
        chosen: Mapping[str, Estimator],
        layout: Layout,
        batch_dims: int,
        keep_graph: bool = False,
        dependencies: Dependencies = UNKNOWN,
    ) -> BoundEvaluation:
        """Score a pair of traces: see `Objective.evaluate`."""
        guide, model = sample_sites(guide_trace), sample_sites(model_trace)
        scale = common_scale([*guide.values(), *model.values()], layout)
        weighed = Weighed(layout, batch_dims, scale, keep_graph)
        scores: dict[str, Tensor] = {}
        untended: dict[str, Tensor] = {}
        for position, (name, msg) in enumerate(guide.items()):
            plates, estimator = plates_of(msg), chosen.get(name)
            log_q, score, pathwise = guide_log_prob(msg, estimator)
            if score is not None:
                (scores if name in chosen else untended)[name] = layout.once(plates, padded(score, batch_dims))
            if layout.shares(plates):
                weighed.add_shared(Term(log_q, plates, False, position, name), pathwise)
                continue
            weighed.data[name] = weighed.datum(plates)
            if estimator is not None and not estimator.direct_term:
                log_q = log_q.detach()
            if name in layout.doubly and torch.is_grad_enabled():
                log_q = with_fixed_parameters(log_q, guide_log_prob({**msg, "value": msg["value"].detach()}, None)[0])
                values = DoublyValue(msg["value"], msg["fn"].event_dim, weighed.data[name], 0, layout.inner or 1)
                weighed.values.append(values)
            weighed.add(-log_q, plates)
        for position, (name, msg) in enumerate(model.items()):
            plates = plates_of(msg)
            log_p = scale_and_mask(log_prob(msg["fn"], msg), msg["scale"], msg["mask"])
            if layout.shares(plates):
                weighed.add_shared(Term(-log_p, plates, True, position, name), -log_p)
            else:
                weighed.add(log_p, plates)
        if not weighed.log_weights:  # no term is the particles' own: each weighs as much
            weighed.add(torch.zeros(()), frozenset())
        order = self._orders.of({name: plates_of(msg) for name, msg in guide.items()}, model, dependencies)
        pathwise, loss = weighed.loss()
        costs = weighed.costs(order)
        return BoundEvaluation(guide_trace, model_trace, costs, pathwise, loss, scores, untended, weighed)

    def join(self, evaluations: Sequence[BoundEvaluation]) -> BoundEvaluation:
        """The evaluation of one bound, from runs of one particle (or a block of them) each."""
        first, weighed = evaluations[0], Weighed.join([e.weighed for e in evaluations])
        pathwise, loss = weighed.loss()
        scores = {
            name: torch.cat([e.scores[name] for e in evaluations]) if name in weighed.data else score
            for name, score in first.scores.items()
            if all(name in e.scores and e.scores[name].shape[1:] == score.shape[1:] for e in evaluations)
        }
        costs = weighed.costs(first.costs.order)
        return replace(first, costs=costs, pathwise=pathwise, loss=loss, scores=scores, weighed=weighed)

    def beside(self, evaluation: BoundEvaluation, joined: BoundEvaluation, number: int) -> BoundEvaluation:
        """The evaluation of a run of one particle, as that of `number` beside the others of the joined runs."""
        return replace(evaluation, costs=evaluation.costs.beside(joined.costs, number))
