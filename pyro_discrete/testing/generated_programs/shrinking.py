"""A smaller program on which the net still finds the same fault."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace

from pyro_discrete.testing.generated_programs.description import (
    Branch,
    Chain,
    Description,
    Plate,
    Site,
    Statement,
    sites_of,
)

__all__ = ["shrink", "simpler"]


def shrink(description: Description, disagrees: Callable[[Description], bool], most_tries: int = 300) -> Description:
    """Greedily the smallest program found for which `disagrees` is still true, after so many tries at most.

    >>> from pyro_discrete.testing.generated_programs.random_pairs import random_pair
    >>> small = shrink(random_pair(2), lambda d: any(s.role == "latent" for s in d.sites()))
    >>> [(site.name, site.family, site.plates) for site in small.sites()]
    [('z1', 'bernoulli', ())]
    """
    tries, found = 0, True
    while found:
        found = False
        for candidate in simpler(description):
            if not candidate.body:
                continue
            tries += 1
            if tries > most_tries:
                return description
            if disagrees(candidate):
                description, found = candidate, True
                break
    return description


def simpler(description: Description) -> Iterator[Description]:
    """Programs with one thing less, the largest steps first."""
    for statement in reversed(description.body):
        yield description.without(statement.name)
    for statement in description.body:
        if isinstance(statement, Branch):
            for site in sites_of(statement):
                yield description.without(site.name)
    for plate in description.plates:
        yield _without_plate(description, plate)
    for handler in description.handlers:
        yield replace(description, handlers=tuple(h for h in description.handlers if h != handler))
    in_order = tuple(s.name for s in description.body)
    for plainer in (
        replace(description, parameters="leaf"),
        replace(description, shared=False),
        replace(description, arguments=False),
        replace(description, order=in_order),
    ):
        if plainer != description:
            yield plainer
    for plate in description.plates:
        yield from _plainer_plates(description, plate)
    for number, statement in enumerate(description.body):
        for plainer in _plainer_statements(statement):
            yield replace(description, body=(*description.body[:number], plainer, *description.body[number + 1 :]))


def _without_plate(description: Description, plate: Plate) -> Description:
    def out(site: Site | Chain) -> Site | Chain:
        return replace(site, plates=tuple(p for p in site.plates if p != plate.name))

    body = tuple(_mapped(s, out) for s in description.body)
    return replace(description, body=body, plates=tuple(p for p in description.plates if p != plate))


def _mapped(statement: Statement, change: Callable[[Site | Chain], Site | Chain]) -> Statement:
    if not isinstance(statement, Branch):
        return change(statement)
    arms = [tuple(s for s in map(change, arm) if isinstance(s, Site)) for arm in (statement.then, statement.otherwise)]
    return replace(statement, then=arms[0], otherwise=arms[1])


def _plainer_plates(description: Description, plate: Plate) -> Iterator[Description]:
    used = [p.dim for p in description.plates if p != plate]
    for plainer in (
        replace(plate, subsample=""),
        replace(plate, subsample="fixed") if plate.subsample else plate,
        replace(plate, size=2) if not plate.subsample else plate,
        replace(plate, dim=-1) if -1 not in used else plate,
    ):
        if plainer != plate:
            yield replace(description, plates=tuple(plainer if p == plate else p for p in description.plates))


def _plainer_statements(statement: Statement) -> Iterator[Statement]:
    if isinstance(statement, Chain):
        for plainer in (
            replace(statement, way="range", history=1),
            replace(statement, reads=()),
            replace(statement, emits=False),
            replace(statement, linked=False),
            replace(statement, order=1, history=1),
            replace(statement, length=2),
            replace(statement, how="value"),
            replace(statement, family="bernoulli"),
            replace(statement, plates=()),
        ):
            if plainer != statement:
                yield plainer
    elif isinstance(statement, Branch):
        for arm in ("then", "otherwise"):
            sites = getattr(statement, arm)
            for number, site in enumerate(sites):
                for plainer in _plainer_statements(site):
                    yield replace(statement, **{arm: (*sites[:number], plainer, *sites[number + 1 :])})
    else:
        yield from _plainer_sites(statement)


def _plainer_sites(site: Site) -> Iterator[Site]:
    for field in ("reads", "guide_reads"):
        reads = getattr(site, field)
        for number, read in enumerate(reads):
            yield replace(site, **{field: (*reads[:number], *reads[number + 1 :])})
            if read.how != "value":
                yield replace(site, **{field: (*reads[:number], replace(read, how="value"), *reads[number + 1 :])})
    plain = "normal" if "observed" in site.role or site.role == "point" else "bernoulli"
    for plainer in (
        replace(site, family=plain),
        replace(site, mask=""),
        replace(site, mask="constant") if site.mask else site,
        replace(site, scale=""),
        replace(site, scale="constant") if site.scale else site,
        replace(site, covariate=False),
        replace(site, marked=False),
        replace(site, sides="model"),
        replace(site, plates=site.plates[:1]),
        replace(site, plates=()),
    ):
        if plainer != site:
            yield plainer
