"""New."""

from __future__ import annotations

from pyro_discrete.errors import SiteMatchError
from pyro_discrete.estimators.registry import AUTO
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.programs.sites import Site
from pyro_discrete.select import Selection
from pyro_discrete.sums.enumerated_sites import check_table, refuse_unguided

__all__ = [
    "marginal_settings",
]


def marginal_settings(sites: list[Site], selection: Selection) -> dict[str, Enumerate]:
    """How each of these sites is summed out. Raises `SiteMatchError` if one cannot be, or is to be sampled."""
    settings = {}
    for site in sites:
        refuse_unguided(site.name, site.distribution)
        choice, why = selection.wanted(site)
        exact = isinstance(choice, Enumerate) or choice in (None, AUTO, Enumerate.name)
        if not exact and why in ("by name", "the site's infer"):
            name = choice if isinstance(choice, str) else getattr(choice, "name", choice)
            raise SiteMatchError(
                f"Estimator {name!r} was asked for at site {site.name!r}, which is latent in the model but not drawn "
                "in the guide: there are no draws to learn from. Draw it in the guide too, or leave it out of the "
                "dict to have it marginalised exactly."
            )
        settings[site.name] = choice if isinstance(choice, Enumerate) else Enumerate()
        check_table(site.message, settings[site.name], marginal=True)
    return settings
