"""What a generated pair of programs is: a small tree, which can be drawn from a seed, shrunk, and written as source."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from math import perm
from typing import Any, TypeVar

__all__ = [
    "FIXED",
    "SIZE",
    "VALUES",
    "Branch",
    "Chain",
    "Description",
    "Plate",
    "Read",
    "Site",
    "Statement",
    "sites_of",
]

VALUES = {
    "bernoulli": 2,
    "coin": 2,
    "categorical": 3,
    "one_hot": 3,
    "binomial": 3,
    "beta_binomial": 3,
    "bits": 4,
    "pair_of_categoricals": 9,
    "pair_of_one_hots": 9,
}
"""Joint values of one element of a discrete family."""


FIXED = ("constant", "own", "off", "each")
"""Masks and scales that no draw decides."""


SIZE = "n"
"""The site by which the size of a plate is drawn."""


@dataclass(frozen=True)
class Plate:
    """A plate. `subsample`: "" for none, "fixed" for a stated subsample, "random" for one that is drawn (two of it).

    "drawn": its size is that of the site `SIZE`, and one; its elements are the first ones of the data's.
    """

    name: str
    size: int
    dim: int
    subsample: str = ""

    @property
    def kept(self) -> int:
        """Its elements in a run."""
        return 2 if self.subsample else self.size


@dataclass(frozen=True)
class Read:
    """An earlier site that a distribution depends on. `how`: a key of what `source` can write, such as "lookup"."""

    site: str
    how: str = "value"


@dataclass(frozen=True)
class Site:
    """A site, or the two of guide and model of one name.

    - `role`: "latent" (drawn by the guide), "own" (of the model alone), "auxiliary" (of the guide alone), "point"
      (continuous, a point mass in the guide), "observed", "observed_in_guide".
    - `family`: of `VALUES`, or of an observed site also "normal", "poisson", "factor".
    - `plates`: names. `reads`: what the model's distribution depends on, `guide_reads`: the guide's.
    - `mask`: "", "constant", "off" (False), "own" (`Distribution.mask`), or the name of the site that it is drawn by.
      `scale`: "", "constant", "each" (an element's own), or a name. `sides`: where these apply, "model", "guide" or
      "both".
    - `covariate`: whether data enters the distribution. `marked`: whether it says `infer={"enumerate": "parallel"}`.
    """

    name: str
    role: str
    family: str
    plates: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()
    guide_reads: tuple[Read, ...] = ()
    mask: str = ""
    scale: str = ""
    sides: str = "model"
    covariate: bool = False
    marked: bool = False


@dataclass(frozen=True)
class Chain:
    """Sites `name_0`, `name_1`, ... in a loop; each reads the one before it, and has an observed site if it `emits`.

    - `way`: "markov" (`pyro.markov`), "range", or "plate" (a sequential plate; then nothing is read of the one before).
    - `order`: how many of the earlier ones are read. `history`: what markov is told. `how`: the way they are read.
    - `linked`: whether the guide's sites form a chain as well.
    """

    name: str
    role: str
    family: str
    length: int
    way: str = "markov"
    order: int = 1
    history: int = 1
    how: str = "value"
    plates: tuple[str, ...] = ()
    reads: tuple[Read, ...] = ()
    emits: bool = True
    linked: bool = False


@dataclass(frozen=True)
class Branch:
    """`if ...:` with sites on both sides. `on`: "data", "parameter", or the name of a site outside all plates."""

    name: str
    on: str
    then: tuple[Site, ...]
    otherwise: tuple[Site, ...] = ()


Statement = Site | Chain | Branch


def sites_of(statement: Statement) -> tuple[Site | Chain, ...]:
    """The sites of a statement."""
    return (*statement.then, *statement.otherwise) if isinstance(statement, Branch) else (statement,)


@dataclass(frozen=True)
class Description:
    """A pair of programs.

    - `seed`: of the numbers in it, each of which depends on the seed and its own name alone.
    - `order`: names of statements, in the order in which the guide draws them.
    - `parameters`: "leaf" (tensors that the functions close over), "method" (tensors of the object whose methods the
      programs are), "param" (`pyro.param`), "module" (`PyroModule`) or "registered" (`pyro.module`).
    - `shared`: whether guide and model read the same parameters. `arguments`: whether data are arguments.
    - `handlers`: of "scale", "mask", "condition", "config_enumerate", "partial", "block", "trace", "wraps".
    """

    seed: int
    plates: tuple[Plate, ...]
    body: tuple[Statement, ...]
    order: tuple[str, ...]
    parameters: str = "leaf"
    shared: bool = False
    arguments: bool = False
    handlers: tuple[str, ...] = ()

    def plate(self, name: str) -> Plate:
        """A plate by its name."""
        return next(p for p in self.plates if p.name == name)

    @property
    def thinned(self) -> frozenset[str]:
        """The plates of which a run has a subsample."""
        return frozenset(p.name for p in self.plates if p.subsample in ("fixed", "random"))

    def sites(self) -> Iterator[Site | Chain]:
        """Every site and chain, those of branches included."""
        return chain.from_iterable(map(sites_of, self.body))

    def elements(self, plates: tuple[str, ...]) -> int:
        """How many elements a site in these plates has in a run."""
        count = 1
        for name in plates:
            count *= self.plate(name).kept
        return count

    @property
    def joint_values(self) -> int:
        """At most so many runs of the model tell all."""
        total = 1
        used = {name for site in self.sites() for name in site.plates}
        for plate in self.plates:
            if plate.subsample == "random" and plate.name in used:
                total *= perm(plate.size, plate.kept)
        for statement in self.body:
            if isinstance(statement, Branch):
                arms = [self._values_of(arm) for arm in (statement.then, statement.otherwise)]
                total *= max(arms)
            else:
                total *= self._values_of((statement,))
        return total

    def _values_of(self, sites: tuple[Site | Chain, ...]) -> int:
        total = 1
        for site in sites:
            if site.role in ("latent", "own", "auxiliary"):
                length = site.length if isinstance(site, Chain) else 1
                total *= VALUES[site.family] ** (length * self.elements(site.plates))
        return total

    @property
    def size(self) -> int:
        """How many sites a run meets."""
        return sum(site.length * (1 + site.emits) if isinstance(site, Chain) else 1 for site in self.sites())

    @property
    def features(self) -> frozenset[str]:
        """What is in it, in words, by which programs can be left out or counted."""
        found = {f"parameters:{self.parameters}", *(f"handler:{h}" for h in self.handlers)}
        found |= {f"subsample:{p.subsample}" for p in self.plates if p.subsample}
        found |= {"shared"} if self.shared else set()
        for site in self.sites():
            found |= {f"role:{site.role}", f"family:{site.family}"}
            if isinstance(site, Chain):
                found |= {f"chain:{site.way}"} | ({"chain:short"} if site.order > site.history else set())
                found |= {"chain:reads"} if site.reads else set()
                others = [s for s in self.sites() if s != site and s.role in ("latent", "own", "auxiliary")]
                found |= {"chain:beside"} if site.way == "markov" and site.role == "latent" and others else set()
                reads = (*site.reads, Read("", site.how))
            else:
                reads = site.reads + site.guide_reads
                for kind, value in (("mask", site.mask), ("scale", site.scale)):
                    if value:
                        found.add(f"{kind}:{value if value in FIXED else 'drawn'}")
                if site.marked:
                    found.add("marked:event" if VALUES.get(site.family) in (4, 9) else "marked")
            found |= {f"reads:{r.how}" for r in reads}
        for statement in self.body:
            if isinstance(statement, Branch):
                found.add(f"branch:{statement.on if statement.on in ('data', 'parameter') else 'draw'}")
        return frozenset(found)

    def without(self, name: str) -> Description:
        """Without the statement or site of this name, and all that refers to it."""
        body = []
        for statement in self.body:
            if statement.name == name or (isinstance(statement, Branch) and statement.on == name):
                continue
            if isinstance(statement, Branch):
                arms = [
                    tuple(_forget(s, name) for s in a if s.name != name) for a in (statement.then, statement.otherwise)
                ]
                if any(arms):
                    body.append(replace(statement, then=arms[0], otherwise=arms[1]))
            else:
                body.append(_forget(statement, name))
        kept = {s.name for s in body}
        return replace(self, body=tuple(body), order=tuple(n for n in self.order if n in kept))


OneSite = TypeVar("OneSite", bound=Site | Chain)


def _forget(site: OneSite, name: str) -> OneSite:
    """The site without whatever refers to another one."""
    changes: dict[str, Any] = {"reads": tuple(r for r in site.reads if r.site != name)}
    if isinstance(site, Site):
        changes["guide_reads"] = tuple(r for r in site.guide_reads if r.site != name)
        changes |= {field: "" for field in ("mask", "scale") if getattr(site, field) == name}
    return replace(site, **changes)
