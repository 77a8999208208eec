"""The plan of a pair: what each site got, the columns of a step, the way it goes; and what steps have met since."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, ClassVar, Literal, overload

from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.errors import SettingError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.estimators.relaxed.base import RelaxedEstimator
from pyro_discrete.estimators.support_sums.enumerate import Enumerate
from pyro_discrete.inspection.dependencies import UNKNOWN, Dependencies
from pyro_discrete.inspection.pair_graph import pair_graph
from pyro_discrete.inspection.wiring import Wiring
from pyro_discrete.planning.plan_display import FILLS, MermaidText, Treatment, alike_lines, sketch
from pyro_discrete.programs.dims import Columns, Layout
from pyro_discrete.programs.module_state import ModuleState
from pyro_discrete.programs.pair import Pair
from pyro_discrete.relaxations.jumps import JumpsSeen
from pyro_discrete.sums.components import SumCost
from pyro_discrete.sums.counts import Counts
from pyro_discrete.sums.expectation import SumCosts
from pyro_discrete.tables.html_table import html_table

__all__ = [
    "ANALYTIC",
    "Chunked",
    "ChunkedBound",
    "Elementwise",
    "Exact",
    "Jointly",
    "Marginals",
    "Met",
    "OneByOne",
    "Parallel",
    "Plan",
    "Sequential",
    "SitePlan",
    "StructureChangedError",
    "Vectorised",
    "Way",
]


ClosedTerms = Callable[[Trace, Trace, Dependencies], dict[str, Tensor]]


def _no_closed_terms(guide_trace: Trace, model_trace: Trace, known: Dependencies) -> dict[str, Tensor]:
    return {}


ANALYTIC = "; KL term analytic"
"""What a plan says of such a site."""


ESCAPES = "may influence a later site outside their plate"
"""What sites do whose plate elements have to be enumerated jointly, in most cases."""


class StructureChangedError(Exception):
    """A run has a site, or more plate dims, than its plan knows of: it is to be planned anew.

    `batch_dims`: how many plate dims there are, if that is all. `apart`: the plates whose elements are to be moved one
    at a time at a site, with their sizes, if that is all: see `Columns`. `grown`: plates that have several elements in
    a run, where they had one in the trial, which shows nothing of several. `singly`: why the model's own sites cannot
    be summed out at once, if that is all. `own`: why they can't be if trials go on without them, where such a site is
    new.
    """

    def __init__(
        self,
        message: str,
        batch_dims: int | None = None,
        apart: Mapping[str, Mapping[str, int]] | None = None,
        singly: str = "",
        own: str = "",
        grown: Collection[str] = (),
    ) -> None:
        super().__init__(message)
        self.grown: Collection[str] = grown
        self.batch_dims: int | None = batch_dims
        self.apart: Mapping[str, Mapping[str, int]] | None = apart
        self.singly: str = singly
        self.own: str = own


@dataclass(frozen=True)
class Way:
    """Which way a step goes. `path`: how a plan prints it."""

    path: ClassVar[str]


@dataclass(frozen=True)
class Vectorised(Way):
    """All rows at once, under a leading plate."""

    path = "vectorised"


@dataclass(frozen=True)
class Sequential(Way):
    """Row by row, particle by particle."""

    path = "sequential"


@dataclass(frozen=True)
class Chunked(Way):
    """All rows, at most so many at once, each run twice: for its costs, then for its gradient."""

    over: Vectorised | Sequential
    rows: int

    @property
    def path(self) -> str:  # type: ignore[override]
        """That of the rows themselves."""
        return self.over.path


@dataclass(frozen=True)
class ChunkedBound(Chunked):
    """The same for the particles that a bound weighs: for their weights, then for its gradient."""


@dataclass(frozen=True)
class Exact(Way):
    """Every discrete site of the guide summed over its support.

    - `settings`: the budget. `explicit`: whether this was asked for; what "auto" took is given up if it cannot be had.
    """

    path = "enumerated"
    settings: Enumerate
    explicit: bool


@dataclass(frozen=True)
class Parallel(Exact):
    """Values in dims of their own, left of all plates.

    - `at_once`: whether particles go side by side as well.
    - `untried`: whether the program runs under enumeration alone, so that nothing could be tried on single values.
    """

    at_once: bool = True
    untried: bool = False


@dataclass(frozen=True)
class OneByOne(Exact):
    """One joint value of the guide's sites after another."""


@dataclass(frozen=True)
class Jointly(Exact):
    """Joint values of all plate elements as rows.

    - `why`: what the sites do that elements do not go by themselves.
    - `one_by_one`: whether each has a run of its own, where the program takes no rows. `own_too`: and each joint value
      of the model's own sites one of the model. `in_branches`: whether Python sees the values, so that each of them may
      lead into a branch of its own.
    """

    why: str = ESCAPES
    one_by_one: bool = False
    own_too: bool = False
    in_branches: bool = False


@dataclass(frozen=True)
class Elementwise(Exact):
    """Event elements one by one. `values`: of each site, how many an element has."""

    values: Mapping[str, int]


@dataclass(frozen=True)
class Marginals:
    """How discrete sites of the model alone are summed out, whichever way a step goes.

    - `settings`: the budget of each. `cost`: what the sums cost a row.
    - `one_by_one`: why they are by a run of the model for each joint value, where it takes no leading dims.
    - `by_parts`: the structures that are summed by their partition function, of so many places in a row each.
    - `in_branches`: whether Python sees draws, so that sums at once are tried anew at those of each run.
    - `untried`: whether the first step is what tries them, and finds their cost (`Met.cost`).
    """

    settings: Mapping[str, Enumerate] = field(default_factory=dict)
    cost: SumCost | None = None
    one_by_one: str = ""
    by_parts: Mapping[str, int] = field(default_factory=dict)
    in_branches: bool = False
    untried: bool = False


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
class Met:
    """What the steps of a plan have met on their way: nothing of it was known when the plan was made.

    - `sites`, `estimators`: sites that only some runs have.
    - `largest`: for a relaxed Binomial the largest number of trials, which its relaxation goes up to.
    - `linear`: relaxed sites whose divergence was analytic and is not any more, with the reason.
    - `jumps`: in which runs it was looked whether the program jumps as relaxed values move.
    - `closed`: sites of an enumerated program whose sampled terms closed ones stand for. `cost`: that of the last sums.
    - `sum_costs`: what expectations of enumerated terms cost.
    - `costs`: what sites' learning signals held in the last run, in words.
    - `runs`: how often the last step ran the guide and the model, where that is more than once.
    - `digests`: what its runs have done. `looks`: why that is noted in every call, if it is.
    - `plain`: whether its steps draw each site once (`steps.plain`), where that has been looked at. `made`: how costs
      are put together in such steps, by the sites of a run.
    - `together`: draws of an enumerated guide that the model sees beside each other, where the guide does not.
    """

    sites: list[SitePlan] = field(default_factory=list)
    estimators: dict[str, Estimator] = field(default_factory=dict)
    largest: dict[str, int] = field(default_factory=dict)
    linear: dict[str, str] = field(default_factory=dict)
    jumps: JumpsSeen = field(default_factory=JumpsSeen)
    closed: set[str] = field(default_factory=set)
    cost: SumCost | None = None
    sum_costs: SumCosts = field(default_factory=SumCosts)
    costs: str = ""
    runs: Mapping[str, int] = field(default_factory=dict)
    digests: set[int] = field(default_factory=set)
    looks: str = ""
    plain: bool | None = None
    made: dict[Any, Any] = field(default_factory=dict)
    together: dict[str, set[str]] = field(default_factory=dict)

    def keep_apart(self, together: Mapping[str, Collection[str]]) -> bool:
        """Take in draws that the model sees beside each other; whether this is new."""
        before = sum(map(len, self.together.values()))
        for name, others in together.items():
            self.together.setdefault(name, set()).update(others)
        return sum(map(len, self.together.values())) > before


@dataclass(frozen=True)
class Plan:
    """What a step does. `print(elbo.plan)` shows it as a table, as a notebook does; `elbo.plan.render()` draws it.

    No step changes it: what steps learn is in `met`.

    - `way`: which way a step goes, with the settings of that way. `reason`: why, where it is not the first choice.
    - `planned`, `given`: each site's line of the table, and its estimator.
    - `columns`: the coupled values of a particle. `particles`: the repetitions. `layout`: what a run's rows are.
    - `batch_dims`: how many plate dims there are. `elements`: how many numbers a row's values have.
    - `marginals`: how sites of the model alone are summed out.
    - `observed`: the observed sites that a baseline may read, each with its number of features.
    - `analytic`: the relaxed sites whose divergences are analytic.
    - `closed_terms`: of an enumerated program's traces, what stands for its reparameterised sites' sampled terms.
    - `passed_over`: why "auto" does not sum over few joint values, if there are few.
    - `joined`: names of plates whose elements share terms. `of_one`: of those that had one element in the trial, so
      that it shows nothing of several: a run in which they have more is to be planned anew.
    - `wiring`: what the costs of a site are known by. `costs`: what each site's learning signal holds, in words.
    - `whole`: what depends on what, where every term depends on every draw: nothing more could, so that it is not
      looked for again. A step of a belief network of 64 and 20 units takes 0.96 of the time that it takes while all
      that its code can see is watched.
    - `state`: the modules that a run may change: averages, counts.
    - `counts`: how far sums over counts go. `pair`: what it was made for, to be drawn.
    """

    way: Way
    planned: Sequence[SitePlan]
    given: Mapping[str, Estimator | None]
    columns: Columns
    particles: int
    batch_dims: int
    reason: str = ""
    layout: Layout = field(default_factory=lambda: Layout(1))
    elements: int = 1
    marginals: Marginals = field(default_factory=Marginals)
    observed: Mapping[str, int] = field(default_factory=dict)
    analytic: Collection[str] = frozenset()
    closed_terms: ClosedTerms = _no_closed_terms
    passed_over: str = ""
    joined: frozenset[str] = frozenset()
    of_one: frozenset[str] = frozenset()
    wiring: Wiring | None = None
    costs: str = ""
    whole: Dependencies | None = None
    state: ModuleState = field(default_factory=ModuleState)
    met: Met = field(default_factory=Met)
    counts: Counts = field(default_factory=Counts)
    pair: Pair | None = field(default=None, compare=False)

    @property
    def path(self) -> str:
        """ "vectorised" (all rows at once), "sequential" (row by row), or "enumerated" (exact)."""
        return self.way.path

    @cached_property
    def rows_layout(self) -> Layout:
        """What the rows of a training step are, with its columns."""
        return self.layout.of(self.columns.count, self.columns.owned)

    @cached_property
    def soft_columns(self) -> Collection[int]:
        """The columns whose owner's value is relaxed there, beside its draw."""
        estimators = [(name, e) for name, e in self.given.items() if e is not None and e.relaxed]
        return {self.columns.rows_of(name)[r] for name, e in estimators for r in e.relaxed if r > 0}

    @property
    def sites(self) -> list[SitePlan]:
        """Each site's line, with what steps have met since."""
        return [self._as_met(site) for site in self.planned] + self.met.sites

    def _as_met(self, site: SitePlan) -> SitePlan:
        if site.name in self.met.linear:
            return _linear(site, self.met.linear[site.name])
        if site.name in self.met.closed:
            return replace(site, notes="; KL term in closed form")
        return site

    @property
    def estimators(self) -> dict[str, Estimator | None]:
        """Each site's estimator, None for a reparameterised one."""
        return {**self.given, **self.met.estimators}

    @property
    def choices(self) -> dict[str, str]:
        """Each site's name, and that of what it got: "enumerate", "pathwise", "rloo" ..."""
        return {site.name: site.estimator.partition("(")[0] for site in self.sites}

    @property
    def samples(self) -> bool:
        """Whether any site is drawn, so that particles differ."""
        return any(site.rows for site in self.planned)

    @property
    def cost(self) -> SumCost | None:
        """What exact sums cost: those of the last step, or of the model's own sites a row."""
        return self.met.cost or self.marginals.cost

    @property
    def rows(self) -> int:
        """Evaluations of the model per particle and step."""
        return self.columns.count + sum(max(0, site.rows - 1) for site in self.met.sites)

    @property
    def evaluations(self) -> int:
        """Evaluations of the model per step: rows x particles, for a bound x its inner particles."""
        return self.rows * self.particles * (self.layout.inner or 1)

    def runs_once(self, training: bool = True) -> bool:
        """Whether a step (or a look at the loss) runs the guide and the model once each."""
        if self.marginals.one_by_one or isinstance(self.way, Chunked | OneByOne | Jointly):
            return False
        if isinstance(self.way, Parallel):
            return self.way.at_once or self.particles == 1 or not self.samples
        if isinstance(self.way, Elementwise) or (isinstance(self.way, Vectorised) and training):
            return True
        return (self.evaluations if training else self.particles * (self.layout.inner or 1)) == 1

    def dependencies(self, pair: Pair) -> Dependencies:
        """Which cost terms each site can influence in a call with these arguments, as far as that is known."""
        if self.whole is not None:
            return self.whole
        if self.wiring is None:
            return UNKNOWN.sharing(self.joined)
        known = self.wiring.of(pair)
        self.met.costs = known.describe()
        return known.sharing(self.joined)

    def without_dependencies(self) -> Plan:
        """The plan as if nothing were known of them."""
        reason = "nothing is known of what its prior depends on"
        planned = [_linear(site, reason) if site.name in self.analytic else site for site in self.planned]
        return replace(self, planned=planned, analytic=frozenset(), wiring=None, whole=None, costs="")

    def single(self) -> Plan:
        """The same for one particle, without a leading dim."""
        return replace(self, way=Sequential(), particles=1, layout=self.layout.block())

    def taken_by_auto(self) -> dict[str, str]:
        """Site to the name of the estimator that "auto" chose for it."""
        taken = {name: e.name for name, e in self.estimators.items() if e is not None}
        if isinstance(self.way, Exact):
            taken |= {s.name: Enumerate.name for s in self.sites if not s.rows}
        return {s.name: taken[s.name] for s in self.sites if s.why.startswith("auto") and s.name in taken}

    def __str__(self) -> str:
        header, lines = self._table()
        widths = [max(len(row[i]) for row in [header, *lines]) for i in range(4)]
        table = ["  ".join(v.ljust(w) for v, w in zip(row, [*widths, 0], strict=True)) for row in [header, *lines]]
        return "\n".join([*(row.rstrip() for row in table), *self._sentences()])

    __repr__ = __str__

    def _repr_html_(self) -> str:
        header, lines = self._table()
        got = {name: FILLS[what][1] for name, (what, _) in self.treatments.items()}
        colours = [got[line[0].split(" ... ")[0]] for line in lines]
        return html_table(header, lines, notes=self._sentences(), colours=colours)

    @property
    def treatments(self) -> dict[str, Treatment]:
        """What became of each site, "summed out", "sampled", "relaxed" or "pathwise", and its estimator's name."""
        estimators, choices = self.estimators, self.choices
        return {site.name: (_treated(site, estimators.get(site.name)), choices[site.name]) for site in self.sites}

    @overload
    def render(self, kind: Literal["mermaid"] = "mermaid") -> MermaidText: ...
    @overload
    def render(self, kind: Literal["graphviz"]) -> Any: ...
    def render(self, kind: Literal["mermaid", "graphviz"] = "mermaid") -> Any:
        """A drawing of the pair: its sites in their plates, what each depends on, coloured by what it got.

        A solid arrow says that the model reads what was drawn at its start, a dashed one that the guide does. Sites
        that differ by a number alone share a box. The pair is run twice for it, with the arguments of the call that
        the plan was made at; random states, parameters and modules stay as they were.

        - `kind`: "mermaid", a text that JupyterLab, GitHub and VS Code draw, for which nothing is to be installed; or
          "graphviz", a `graphviz.Digraph`, for which the extra "plots" is, and to see it drawn Graphviz itself.

        Raises `SettingError` for another kind, and for a plan that no ELBO made.

        >>> import pyro, torch
        >>> import pyro.distributions as dist
        >>> from pyro_discrete import TraceELBO
        >>> def model():
        ...     z = pyro.sample("z", dist.Bernoulli(0.3))
        ...     pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.8))
        >>> elbo = TraceELBO()
        >>> loss = elbo.loss(model, lambda: None)
        >>> print(elbo.plan.render())
        flowchart TB
          s0(["z<br/>Bernoulli<br/>summed out"]):::summed_out
          s1["x<br/>Normal<br/>observed"]:::observed
          s0 --> s1
          classDef summed_out fill:#b9e6d6,stroke:#00795a,color:#111111
          classDef observed fill:#e2e2e2,stroke:#555555,color:#111111
        """
        if kind not in ("mermaid", "graphviz"):
            raise SettingError(f"render: kind={kind!r} given, 'mermaid' or 'graphviz' expected.")
        if self.pair is None:
            raise SettingError("render: this plan was made without an ELBO, and knows of no pair to draw.")
        drawn = sketch(pair_graph(self.pair), self.treatments)
        return drawn.mermaid() if kind == "mermaid" else drawn.graphviz()

    def _table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        lines = [(s.name, s.kind, s.estimator, str(s.rows or "-"), s.why + s.notes) for s in self.sites]
        return ("site", "kind", "estimator", "rows", "why"), alike_lines(lines)

    def _sentences(self) -> list[str]:
        """What there is to say of a step as a whole."""
        runs = ["a step runs the guide and the model once"] if self.runs_once() else []
        if self.met.runs and not runs:
            times = " and ".join(
                f"the {name} {number} time{'s' * (number > 1)}" for name, number in self.met.runs.items()
            )
            runs = [f"a step runs {times}; modules (averages, counts) end as after one run"]
        if self.met.looks:
            runs.append(f"what it does is noted in every run, to see which branch it takes: {self.met.looks}")
        total = f"{self.path}: {self.rows} row(s) x {self.particles} particle(s) a step"
        if self.layout.inner is not None:
            datum = f"each element of plate {', '.join(sorted(self.layout.datum))}" if self.layout.datum else "all data"
            total = (
                f"{self.path}: {self.rows} row(s) x {self.particles} outer sample(s) x {self.layout.inner} particle(s) "
                f"a step; a bound for {datum}"
            )
        alone = "one run, with nothing beside it" if self.evaluations == 1 and isinstance(self.way, Sequential) else ""
        reason = self.reason or alone
        total += f" ({reason})" if reason else ""
        singly = f"; one joint value after another ({self.marginals.one_by_one})" if self.marginals.one_by_one else ""
        cost = f": {self.cost} a row" if self.cost is not None else ""
        exact = [f"exact sums{cost}{singly}"] if cost or singly else []
        passed = [f"not summed out, though there are few values: {self.passed_over}"] if self.passed_over else []
        costs = [f"costs: {self.met.costs or self.costs}"] if self.costs else []
        return [*runs, total, *exact, *passed, *costs]


def _treated(site: SitePlan, estimator: Estimator | None) -> str:
    if not site.rows or isinstance(estimator, Enumerate):
        return "summed out"
    if isinstance(estimator, RelaxedEstimator):
        return "relaxed"
    return "pathwise" if site.estimator == "pathwise" else "sampled"


def _linear(site: SitePlan, reason: str) -> SitePlan:
    return replace(site, notes=site.notes.replace(ANALYTIC, f"; KL term linear ({reason})"))
