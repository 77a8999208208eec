"""The messengers that draw the guide's sites, and place coupled values in their rows.

The leftmost dim of every value is columns x particles. Column 0 is the primary draw; each further column belongs to
one site, its owner (or to the sites of a product): sites before the owner copy column 0, the owner takes a coupled
value, and sites after it draw anew - those that it is known not to influence copy column 0 as well. Where the elements
of the owner's plates are moved one at a time, it has columns for each of them. A program that
cannot take a leading dim runs once for each column and particle instead, with the same copies.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from pyro_discrete.draws.soft_scores import Point
from pyro_discrete.estimators.base import Draw, Estimator
from pyro_discrete.planning.plan import StructureChangedError
from pyro_discrete.programs.dims import Columns, Layout, plates_of
from pyro_discrete.programs.pair import SiteMessenger
from pyro_discrete.programs.plate_elements import PlateElements
from pyro_discrete.programs.sites import Site, is_latent
from pyro_discrete.relaxations.relaxed_distribution import (
    as_seen,
    at_density,
    extended,
    mean,
    merged,
    one_hot_site,
    one_hot_weights,
    program_value,
    softened,
    with_vertex,
)
from pyro_discrete.steps.choice import Choice

__all__ = [
    "PlaceColumn",
    "PlaceRows",
    "Primary",
    "Shared",
]


Downstream = Callable[[str, str], bool]
"""Whether a site's draw may change the distribution of a later one."""


def _to_place(msg: Any) -> bool:
    return is_latent(msg) and not msg["done"] and msg["value"] is None


def _drawn(site: Site, estimator: Estimator) -> Draw:
    """What the estimator draws, with values that slopes can be taken at even where no parameter leads to them."""
    draw = estimator.draw(site)
    if estimator.slope_rows:
        draw.value.requires_grad_()
    return draw


def _always(site: str, later: str) -> bool:
    return True


@dataclass(frozen=True)
class Shared:
    """What inner particles have in common at a site, over rows.

    - `values` `[columns, S, *batch, *event]`, as the site's estimator sees them. `point`: where a relaxed one is
      scored, of that shape.
    """

    values: Tensor
    point: Point | None = None

    def tensors(self) -> list[Tensor]:
        """What may lead to parameters."""
        return [self.values] if self.point is None else [self.values, self.point.tensor]

    def cut_off(self, to_leaves: bool = True) -> Shared:
        """The same without the graph behind it; with leaves in the place of what has one, if these are wanted."""

        def cut(tensor: Tensor) -> Tensor:
            return tensor.detach().requires_grad_(to_leaves and tensor.requires_grad)

        return Shared(
            cut(self.values), None if self.point is None else replace(self.point, tensor=cut(self.point.tensor))
        )


class PlaceRows(SiteMessenger):
    """Draws every latent site of the guide for all columns and particles at once.

    `choice.of(site)` gives a site's estimator; `taken` holds those that drew, `draws` what they drew;
    `soft_columns` those whose owner's value is relaxed there, and `resampled` the sites drawn hard downstream in them.
    What inner particles share is taken from `given` where it has it, and kept in `shared`.
    """

    def __init__(
        self,
        choice: Choice,
        columns: Columns,
        layout: Layout,
        batch_dims: int,
        soft_columns: Collection[int] = (),
        downstream: Downstream = _always,
        given: Mapping[str, Shared] | None = None,
    ) -> None:
        super().__init__()
        self.downstream = downstream
        self.choice: Choice = choice
        self.columns: Columns = columns
        self.layout: Layout = layout
        self.batch_dims: int = batch_dims
        self.soft_columns: Collection[int] = soft_columns
        self.given: Mapping[str, Shared] = given or {}
        self.shared: dict[str, Shared] = {}
        self.draws: dict[str, Draw] = {}
        self.sites: dict[str, Site] = {}
        self.taken: dict[str, Estimator] = {}
        self.relaxed: dict[str, Point | None] = {}
        self.resampled: list[tuple[int, str]] = []
        self._drawn: dict[str, bool] = {}

    @property
    def has_soft_columns(self) -> bool:
        """Whether a site has relaxed values beside its draw."""
        return bool(self.soft_columns)

    @property
    def own(self) -> tuple[str, ...]:
        """The sites that have further columns."""
        return tuple(self.columns.owned)

    def _pyro_sample(self, msg: Any) -> None:
        if not _to_place(msg):
            return
        site = Site(msg, batch_dims=self.batch_dims).under(self.layout)
        shares = self.layout.shares(site.plates)
        estimator = self.choice.of(site)
        values, point = None, None
        if site.name in self.given:
            self._given(site, estimator, msg, self.given[site.name])
        elif estimator is None:
            if self.columns.count > 1 or shares:
                values = self._columns(site, site.fresh[:1])
                msg["value"], msg["done"] = site.merge(values), True
        else:
            soft = softened(site, estimator, bool(self.soft_columns))
            seen = as_seen(site, estimator)
            if 0 in estimator.relaxed:  # in every column it is relaxed, wherever it is drawn anew
                drawn = estimator.draw(as_seen(site.all_columns(), estimator))
                seen.fresh = drawn.value[0].reshape(self.columns.count, *seen.fresh_shape)
                draw = Draw(seen.fresh[:1], drawn.point)
            else:
                draw = _drawn(seen, estimator)
            self.draws[site.name], self.sites[site.name], self.taken[site.name] = draw, seen, estimator
            if soft:
                rows = draw.value
                if seen is site:  # drawn hard, soft in others' columns
                    seen, rows = one_hot_site(site), one_hot_weights(site.distribution, rows)
                values = self._columns(seen, rows, may_be_mean=not at_density(draw.point))
                point = self._point(seen, draw.point)
                self._place_soft(seen, msg, values, point)
            else:
                values = self._columns(site, draw.value)
                msg["value"] = site.merge(values)
            msg["done"] = True
        if shares and values is not None:
            self.shared[site.name] = Shared(values, point)
        self._drawn[site.name] = shares

    def _given(self, site: Site, estimator: Estimator | None, msg: Any, given: Shared) -> None:
        """Have a site that the particles share take what other particles have drawn."""
        if estimator is not None:
            self.taken[site.name] = estimator
        if estimator is not None and softened(site, estimator, bool(self.soft_columns)):
            self._place_soft(as_seen(site, estimator), msg, given.values, given.point)
        else:
            msg["value"] = site.merge(given.values)
        msg["done"] = True

    def _place_soft(self, seen: Site, msg: Any, values: Tensor, point: Point | None) -> None:
        """Give the program soft values, and a distribution that scores them."""
        point = merged(seen, point)
        msg["value"] = program_value(msg["fn"], seen.merge(values), seen.name)
        self.relaxed[seen.name] = with_vertex(msg["fn"], point, msg["value"], seen.name)
        msg["fn"] = extended(msg["fn"], seen.name, self.relaxed[seen.name])

    def _point(self, site: Site, point: Point | None) -> Point | None:
        """Where the site is scored in every column, `[columns, K, *batch, *event]`."""
        if point is None:
            return None
        there = site.of(site.distribution)
        there.fresh = point.tensor.reshape(self.columns.count, *site.fresh_shape)
        columns = self._columns(there, there.fresh[:1], may_be_mean=not at_density(point))
        return replace(point, tensor=columns)

    def _columns(self, site: Site, rows: Tensor, may_be_mean: bool = True) -> Tensor:
        """`rows` `[rows, K, ...]` of the site and draws of the other columns as one `[columns, K, ...]`.

        In soft columns a relaxable site has its mean; without `may_be_mean` it is drawn anew there too.
        """
        if self.columns.count == 1:
            return rows
        own = self.columns.placed(site.name)
        values = [rows[0]] * self.columns.count
        if own:
            rows = self._elements(site).rows(rows, site.event_dim)
        for column, row in own.items():
            if row < len(rows):  # there may be fewer elements than there is room for
                values[column] = rows[row]
        local = not self.layout.shares(site.plates)
        for owner, columns in self.columns.owned.items():
            # there the site draws anew, unless others share it whose owner they do not share
            if owner in self._drawn and self.downstream(owner, site.name) and (local or self._drawn[owner]):
                for column in columns:
                    if column not in own:
                        values[column] = self._downstream(site, column, may_be_mean)
        return torch.stack(values)

    def _elements(self, site: Site) -> PlateElements:
        """The elements that are moved one at a time at the site."""
        apart = self.columns.apart.get(site.name, {})
        elements = PlateElements(site.plates, apart)
        if elements.number > self.columns.room(site.name):
            sizes = {p.name: p.size for p in site.plates if p.name in apart}
            raise StructureChangedError(f"the plates of site {site.name!r} are larger", apart={site.name: sizes})
        return elements

    def _downstream(self, site: Site, column: int, may_be_mean: bool) -> Tensor:
        if column in self.soft_columns and may_be_mean:
            if site.relaxable:
                return mean(site)[column]
            if site.family is not None:
                self.resampled.append((column, site.name))
        return site.fresh[column]


@dataclass
class Primary:
    """The primary run of one particle, for its other columns to copy from."""

    draws: dict[str, Draw] = field(default_factory=dict)
    values: dict[str, Tensor] = field(default_factory=dict)
    points: dict[str, Point | None] = field(default_factory=dict)


class PlaceColumn(SiteMessenger):
    """Draws the guide's sites for one column of one particle.

    Column 0 (`owners=None`) draws and keeps its values in `primary`; a further column copies them up to its owner,
    takes the owner's coupled value, and draws anew from there. `owners` gives the row of that value, by site: where
    `apart` has a site, of its rows by `PlateElements`. `given` and `shared` are as in `PlaceRows`.
    """

    def __init__(
        self,
        choice: Choice,
        primary: Primary,
        layout: Layout,
        batch_dims: int,
        owners: Mapping[str, int] | None = None,
        downstream: Downstream = _always,
        given: Mapping[str, Tensor] | None = None,
        apart: Mapping[str, Collection[str]] | None = None,
    ) -> None:
        super().__init__()
        self.apart: Mapping[str, Collection[str]] = apart or {}
        self.downstream = downstream
        self.choice: Choice = choice
        self.primary: Primary = primary
        self.owners: Mapping[str, int] | None = owners
        self.layout: Layout = layout
        self.batch_dims: int = batch_dims
        self.given: Mapping[str, Tensor] = given or {}
        self.shared: dict[str, Tensor] = {}
        self.soft: bool = False
        self.resampled: list[tuple[int, str]] = []
        self.sites: dict[str, Site] = {}
        self.taken: dict[str, Estimator] = {}
        self.relaxed: dict[str, Point | None] = {}
        self.extra: dict[str, int] = {}
        self._points: dict[str, Point | None] = {}
        self._past: list[str] = []

    @property
    def has_soft_columns(self) -> bool:
        """Whether this column has a relaxed value in place of a draw."""
        return self.soft

    @property
    def own(self) -> tuple[tuple[str, int], ...]:
        """The sites that have a coupled value in this column, and which."""
        return tuple((self.owners or {}).items())

    def _pyro_sample(self, msg: Any) -> None:
        if not _to_place(msg):
            return
        site = Site(msg, batch_dims=self.batch_dims).under(self.layout)
        estimator = self.choice.of(site)
        if estimator is not None:
            self.taken[site.name] = estimator
        row = (self.owners or {}).get(site.name)
        if row is not None and estimator is not None:
            self.soft = row in estimator.relaxed
        if site.name in self.given:
            msg["value"], msg["done"] = self.given[site.name], True
        elif self.owners is None:
            self._primary(site, estimator, msg)
        elif estimator is not None and row is not None:
            drawn = self.primary.draws[site.name].value
            value = self.elements(site).row(drawn, as_seen(site, estimator).event_dim, row)
            msg["value"], msg["done"] = self._own_value(site, estimator, value), True
        elif not any(self.downstream(owner, site.name) for owner in self._past):
            msg["value"], msg["done"] = self.primary.values[site.name], True
        elif estimator is not None:
            msg["value"], msg["done"] = self._downstream(site, estimator), True
        if estimator is not None and softened(site, estimator, self.soft):
            point = self._points.get(site.name, self.primary.points.get(site.name))
            point = self.relaxed[site.name] = with_vertex(msg["fn"], point, msg["value"], site.name)
            msg["fn"] = extended(msg["fn"], site.name, point)
        if row is not None:
            self._past.append(site.name)

    def elements(self, site: Site) -> PlateElements:
        """The elements that are moved one at a time at the site."""
        return PlateElements(site.plates, self.apart.get(site.name, ()))

    @staticmethod
    def _own_value(site: Site, estimator: Estimator, value: Tensor) -> Tensor:
        """What the program sees of a value that the site's own estimator drew."""
        merged = as_seen(site, estimator).merge(value)
        soft = softened(site, estimator, beside=False)
        return program_value(site.distribution, merged, site.name) if soft else merged

    def _downstream(self, site: Site, estimator: Estimator) -> Tensor:
        draw = None
        if 0 in estimator.relaxed:
            seen = as_seen(site, estimator)
            draw = estimator.draw(seen)
            self._points[site.name] = merged(seen, draw.point)
        if self.soft and site.relaxable and not (draw and at_density(draw.point)):
            seen = one_hot_site(site)
            return program_value(site.distribution, seen.merge(mean(seen)[0]), site.name)
        if draw is not None:
            return self._own_value(site, estimator, draw.value[0])
        if self.soft:
            self.resampled.append((0, site.name))
        return site.merge(site.sample())

    def _primary(self, site: Site, estimator: Estimator | None, msg: Any) -> None:
        if estimator is None:
            return
        seen = as_seen(site, estimator)
        draw = _drawn(seen, estimator)
        self.primary.draws[site.name], self.sites[site.name] = draw, seen
        self.primary.points[site.name] = merged(seen, draw.point)
        self.extra[site.name] = self.elements(site).number * (draw.value.shape[0] - 1)
        msg["value"], msg["done"] = self._own_value(site, estimator, draw.value[0]), True

    def _pyro_post_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        if self.owners is None:
            self.primary.values[msg["name"]] = msg["value"]
        if self.layout.inner is not None and self.layout.shares(plates_of(msg)):
            self.shared[msg["name"]] = msg["value"]
