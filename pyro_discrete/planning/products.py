"""Sites that are enumerated as one product beside sampled ones: a row for each joint value, weighed by its probability.

Each of them has the costs of all joint values, and sums over these the gradient of its own probability times the
probability of the others' values there: together that is the gradient of the joint distribution.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from pyro_discrete.errors import EnumerationError
from pyro_discrete.estimators.base import Estimator, ScoredDraw
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.objectives.base import Objective
from pyro_discrete.planning.plan import SitePlan
from pyro_discrete.planning.shared_terms import check_rows_apart
from pyro_discrete.programs.dims import Columns
from pyro_discrete.programs.sites import Site

__all__ = [
    "check_members",
    "in_product",
    "settle_products",
]


def settle_products(
    planned: Iterable[SitePlan],
    chosen: Mapping[str, Estimator | None],
    columns: Columns,
    sites: Iterable[Site],
    numbers: int,
    objective: Objective,
) -> None:
    """Give the sites of each product their columns, and say so in the plan's lines.

    `numbers`: how many numbers the values of all rows have. Raises `EnumerationError` if sites do not fit together.
    """
    products: dict[str, list[Site]] = {}
    for site in sites:
        estimator = chosen.get(site.name)
        if isinstance(estimator, Enumerate) and estimator.product:
            products.setdefault(estimator.product, []).append(site)
    for label, members in products.items():
        _check_plates(label, members)
        joint = math.prod(site.cardinality for site in members)
        settings = [e for e in (chosen[s.name] for s in members) if isinstance(e, Enumerate)]
        apart = {plate: size for s in members for plate, size in columns.apart.get(s.name, {}).items()}
        if apart:
            columns.apart.update({site.name: apart for site in members})
        elements = columns.room(members[0].name)
        _check_budget(label, members, settings, joint, joint * elements * numbers)
        rows = check_rows_apart(members[0].name, settings[0], elements, int(joint) + 1, objective)
        columns.give_product({site.name: int(site.cardinality) for site in members})
        names = [site.name for site in members]
        each = f" of each of {elements} elements, which share later terms" if elements > 1 else ""
        for site_plan in planned:
            if site_plan.name in names:
                site_plan.rows = rows
                others = ", ".join(repr(n) for n in names if n != site_plan.name) or "no other site"
                site_plan.notes = (
                    f"; in product {label!r} with {others}: {int(joint)} joint values{each}{site_plan.notes}"
                )


def _check_plates(label: str, members: Sequence[Site]) -> None:
    first = members[0]
    for site in members:
        plates, expected = ({p for p in s.plates if p.vectorized} for s in (site, first))
        if plates != expected:
            inside = [sorted(p.name for p in each) or "none" for each in (expected, plates)]
            raise EnumerationError(
                f"Sites {first.name!r} and {site.name!r} of product {label!r} are in different plates ({inside[0]} and "
                f"{inside[1]}): joint values are those of one element. Give sites of the same plates one product, and "
                "the others a plain 'enumerate' or a product of their own."
            )


def _check_budget(
    label: str, members: Sequence[Site], settings: Sequence[Enumerate], joint: float, elements: float
) -> None:
    largest, operations = min(e.max_elements for e in settings), min(e.max_operations for e in settings)
    if elements > min(largest, operations):
        sizes = ", ".join(f"{s.name!r}: {s.cardinality:.4g}" for s in members)
        raise EnumerationError(
            f"Product {label!r} has {joint:.4g} joint values ({sizes}); a row for each needs {elements:.3g} elements, "
            f"at most {min(largest, operations):.3g} are allowed (Enumerate(max_elements=..., max_operations=...)). "
            "Divide it into smaller products, or leave product out: each site is then summed over by itself, the "
            "others sampled."
        )


def check_members(names: Sequence[str], drawn: Iterable[str]) -> None:
    """Raise `EnumerationError` if one of a product's sites is in some runs only: not `drawn` in this or the first."""
    missing = sorted(set(names) - set(drawn))
    if missing:
        raise EnumerationError(
            f"Sites {', '.join(map(repr, names))} were given a product, but the guide draws "
            f"{', '.join(map(repr, missing))} in some runs only, and joint values are of sites that every run draws. "
            "Leave product out there."
        )


def in_product(draw: ScoredDraw, name: str, log_q: Mapping[str, Tensor]) -> ScoredDraw:
    """The named site's draw with its log q in every joint value, and the probability of the others' values there.

    `log_q`: of each of the product's sites, `[joint values, K, *batch]`.
    """
    others = sum((log_p.detach() for member, log_p in log_q.items() if member != name), log_q[name].new_zeros(()))
    return draw.with_rows(log_support=log_q[name], others=others.expand_as(log_q[name]).exp())
