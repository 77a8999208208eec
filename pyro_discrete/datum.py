"""Which plates hold independent data: each of their elements has an importance-weighted bound of its own."""

from __future__ import annotations

import warnings
from collections.abc import Collection, Mapping

from pyro.distributions import Delta

from pyro_discrete.errors import SettingError, near_matches
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.trial import Trial
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.sites import base_distribution, is_latent, sample_sites

__all__ = ["check_inside", "datum_plates"]


def datum_plates(trial: Trial, dependencies: Dependencies, given: Collection[str] | None) -> frozenset[str]:
    """Names of the plates whose elements are independent data; none for one joint bound.

    They are the plates that the observed sites, and the latent sites that share a plate with one of these, have in
    common. A latent site outside of them that comes after one inside could depend on its elements: unless it is known
    not to, all data are bounded jointly.
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
    if not later and (common or not any(_names(m) for m in [*observed, *latents])):
        return common
    reason = (
        f"site {later!r} outside plate {', '.join(sorted(common))} is drawn after sites inside and could depend on them"
        if later
        else "no plate holds all observed sites and the latent ones that share a plate with them"
    )
    warnings.warn(
        f"TraceIWELBO bounds all data jointly, as {reason}. Such a bound gets loose as the data grow. Draw sites "
        "outside the data's plate first, or name the plates of independent data: TraceIWELBO(datum_plates='...').",
        stacklevel=2,
    )
    return frozenset()


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
