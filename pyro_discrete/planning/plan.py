"""The plan of a pair: what each site got, the rows of a step, and the path it takes."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, field, replace

from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.wiring import Wiring
from pyro_discrete.programs.dims import Columns, Layout
from pyro_discrete.programs.pair import Pair
from pyro_discrete.sums.components import SumCost

__all__ = [
    "ANALYTIC",
    "Plan",
    "SitePlan",
]


ClosedTerms = Callable[[Trace, Trace, Dependencies], dict[str, Tensor]]


ANALYTIC = "; KL term analytic"
"""What a plan says of such a site."""


@dataclass
class SitePlan:
    """What one site got: `rows` counts the coupled values of a particle, 0 for a site that is not drawn."""

    name: str
    kind: str
    estimator: str
    rows: int
    why: str
    notes: str = ""


@dataclass
class Plan:
    """What a step does. `print(elbo.plan)` shows it as a table.

    - `path`: "vectorised" (all rows at once), "sequential" (row by row), or "enumerated" (exact, in parallel).
    - `rows`: evaluations of the model per particle; `particles` multiplies it.
    - `costs`: what each site's learning signal holds: the terms that it can influence, or why that is not known.
    - `analytic`: the relaxed sites whose divergences are analytic.
    - `largest`: for a relaxed Binomial the largest number of trials met so far, which its relaxation goes up to.
    - `separated`: sites that are summed over element by element, with the number of an element's values.
    - `closed_terms`: of an enumerated program's traces, what stands for its reparameterised sites' sampled terms.
    - `layout`: what a run's rows are. `elements`: how many numbers a row's values have.
    """

    sites: list[SitePlan]
    path: str
    columns: Columns
    particles: int
    batch_dims: int
    reason: str = ""
    layout: Layout = field(default_factory=lambda: Layout(1))
    elements: int = 1
    enumeration: Enumerate | None = None
    explicit: bool = False
    joint: bool = False
    separated: dict[str, int] = field(default_factory=dict)
    one_by_one: bool = False
    closed_terms: ClosedTerms = lambda *_: {}
    marginal: dict[str, Enumerate] = field(default_factory=dict)
    cost: SumCost | None = None
    sums_one_by_one: bool = False
    observed: dict[str, int] = field(default_factory=dict)
    estimators: dict[str, Estimator | None] = field(default_factory=dict)
    analytic: set[str] = field(default_factory=set)
    largest: dict[str, int] = field(default_factory=dict)
    wiring: Wiring | None = None
    costs: str = ""

    def dependencies(self, pair: Pair) -> Dependencies:
        """Which cost terms each site can influence in a call with these arguments, as far as that is known."""
        return UNKNOWN if self.wiring is None else self.wiring.of(pair)

    def forget_dependencies(self) -> None:
        """Plan as if nothing were known of them."""
        self.wiring, self.costs = None, ""
        for name in list(self.analytic):
            self.make_linear(name, "nothing is known of what its prior depends on")

    def note_closed(self, names: Collection[str]) -> None:
        """Say of an enumerated program's sites that closed terms stand for their sampled ones."""
        for site in self.sites:
            if site.name in names:
                site.notes = "; KL term in closed form"

    def make_linear(self, name: str, reason: str) -> None:
        """Have a relaxed site's divergence linear in its soft value, and say so."""
        self.analytic.discard(name)
        for site in self.sites:
            if site.name == name:
                site.notes = site.notes.replace(ANALYTIC, f"; KL term linear ({reason})")

    @property
    def rows(self) -> int:
        """Evaluations of the model per particle and step."""
        return self.columns.count

    @property
    def evaluations(self) -> int:
        """Evaluations of the model per step: rows x particles, for a bound x its inner particles."""
        return self.rows * self.particles * (self.layout.inner or 1)

    def single(self) -> Plan:
        """The same for one particle, without a leading dim."""
        return replace(self, path="sequential", particles=1, layout=self.layout.block())

    def chosen(self) -> dict[str, str]:
        """Site to the name of the estimator that "auto" chose for it."""
        chosen = {name: e.name for name, e in self.estimators.items() if e is not None}
        chosen |= {s.name: Enumerate.name for s in self.sites if self.enumeration is not None and not s.rows}
        return {s.name: chosen[s.name] for s in self.sites if s.why.startswith("auto") and s.name in chosen}

    def __str__(self) -> str:
        header = ("site", "kind", "estimator", "rows", "why")
        lines = [(s.name, s.kind, s.estimator, str(s.rows or "-"), s.why + s.notes) for s in self.sites]
        widths = [max(len(row[i]) for row in [header, *lines]) for i in range(4)]
        table = ["  ".join(v.ljust(w) for v, w in zip(row, [*widths, 0], strict=True)) for row in [header, *lines]]
        total = f"{self.path}: {self.rows} row(s) x {self.particles} particle(s) a step"
        if self.layout.inner is not None:
            datum = f"each element of plate {', '.join(sorted(self.layout.datum))}" if self.layout.datum else "all data"
            total = (
                f"{self.path}: {self.rows} row(s) x {self.particles} outer sample(s) x {self.layout.inner} particle(s) "
                f"a step; a bound for {datum}"
            )
        total += f" ({self.reason})" if self.reason else ""
        exact = [] if self.cost is None else [f"exact sums: {self.cost} a row"]
        costs = [f"costs: {self.costs}"] if self.costs else []
        return "\n".join([*(row.rstrip() for row in table), total, *exact, *costs])
