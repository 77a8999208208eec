"""Random descriptions of small pairs, one a seed."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from pyro_discrete.testing.generated_programs.description import (
    FIXED,
    SIZE,
    Branch,
    Chain,
    Description,
    Plate,
    Read,
    Site,
    Statement,
)
from pyro_discrete.testing.generated_programs.expressions import NEIGHBOURS

__all__ = ["MOST_SITES", "MOST_VALUES", "random_pair"]

MOST_VALUES = 64
"""Joint values of a program."""
MOST_SITES = 12
"""Sites of a run."""

FAMILIES = (
    "bernoulli",
    "bernoulli",
    "categorical",
    "categorical",
    "one_hot",
    "binomial",
    "coin",
    "beta_binomial",
    "bits",
    "pair_of_categoricals",
    "pair_of_one_hots",
)
OBSERVED = ("normal", "normal", "bernoulli", "poisson", "categorical", "one_hot", "bits", "factor")
HANDLERS = ("scale", "mask", "condition", "config_enumerate", "partial", "block", "trace", "wraps")
ALIKE = ("value", "value", "lookup", "lookup", "where", "equal", "gather", "rows", "item", "stack", "escape")
ACROSS = ("sum", "sum", "plain", "first", "element", "loop", "prod", "logsumexp", "unbind")


def random_pair(seed: int) -> Description:
    """The description of a seed: at most `MOST_VALUES` joint values and `MOST_SITES` sites, one of them discrete."""
    stream = random.Random(seed)
    while True:
        found = _Drawing(seed, stream).description()
        if found is not None:
            return found


class _Drawing:
    """One attempt."""

    def __init__(self, seed: int, stream: random.Random) -> None:
        self.seed, self.stream = seed, stream
        self.plates: tuple[Plate, ...] = self._plates()
        self.sized = self._sized()
        self.groups = self._groups()
        self.known: list[Site] = []

    def chance(self, probability: float) -> bool:
        return self.stream.random() < probability

    def _plates(self) -> tuple[Plate, ...]:
        pick = self.stream.random()
        count = 0 if pick < 0.2 else 1 if pick < 0.6 else 2
        dims = [-1, -2] if self.chance(0.5) else [-2, -1]
        if count == 1 and self.chance(0.85):
            dims = [-1]
        self.apart = count == 2 and self.chance(0.3)  # beside each other, never joined
        if self.apart and self.chance(0.5):
            dims = [-1, -1]
        subsample = self.stream.choice(("", "", "", "", "fixed", "random"))
        found = []
        for name, dim in zip(("p", "q")[:count], dims, strict=False):
            kept = subsample if name == "p" else ""
            found.append(Plate(name, 3 if kept or self.chance(0.3) else 2, dim, kept))
        return tuple(found)

    def _sized(self) -> Site | None:
        """In some programs with a plate that is whole, the site that its size is drawn by."""
        stream = random.Random(f"{self.seed} sized")
        if not self.plates or self.plates[0].subsample or stream.random() > 0.15:
            return None
        self.plates = (replace(self.plates[0], size=2, subsample="drawn"), *self.plates[1:])
        return Site(SIZE, stream.choice(("latent", "latent", "own")), "bernoulli")

    def _within(self, plates: tuple[str, ...], role: str) -> tuple[str, ...]:
        """These plates, without the one whose size the guide does not know."""
        unknown = self.sized is not None and self.sized.role == "own" and role not in ("own", "observed")
        return tuple(p for p in plates if not unknown or p != self.plates[0].name)

    def _groups(self) -> list[tuple[str, ...]]:
        """The plates that a site can be in."""
        names = tuple(p.name for p in self.plates)
        if len(names) < 2:
            return [(), names] if names else [()]
        if self.apart:
            return [(), ("p",), ("q",)]
        return [(), ("p",), names] if self.chance(0.5) else [(), ("p",), ("q",), names]  # nested, or crossed

    def reads(self, plates: tuple[str, ...], known: Sequence[Site], most: int = 2) -> tuple[Read, ...]:
        """What a site in these plates reads of earlier sites."""
        chosen = self.stream.sample(list(known), min(len(known), self.stream.randint(0, most)))
        found = []
        for parent in chosen:
            if set(parent.plates) <= set(plates):
                near = parent.plates and self.chance(0.12)
                how = self.stream.choice(NEIGHBOURS if near else ALIKE)
                found.append(Read(parent.name, how))
            elif self._may_look_across(parent.plates, plates) and self.chance(0.7):
                found.append(Read(parent.name, self.stream.choice(ACROSS)))
        return tuple(found)

    def _may_look_across(self, held: tuple[str, ...], plates: tuple[str, ...]) -> bool:
        """Whether a site in plates `held` can be summed up for one in others: not of a subsample, nor in one dim."""
        dims = {p.name: p.dim for p in self.plates}
        taken = {dims[n] for n in plates}
        return not any(p.subsample for p in self.plates) and not any(dims[n] in taken for n in held if n not in plates)

    def site(self, name: str, role: str, plates: tuple[str, ...] | None = None) -> Site:
        plates = self._within(self.stream.choice(self.groups) if plates is None else plates, role)
        family = "normal" if role == "point" else self.stream.choice(OBSERVED if "observed" in role else FAMILIES)
        family = "normal" if role == "observed_in_guide" and family == "factor" else family
        readable = [s for s in self.known if s.role in ("latent", "own", "point")]
        reads = self.reads(plates, readable) if role != "auxiliary" else ()
        drawn = [s.name for s in readable if set(s.plates) <= set(plates) and s.family != "normal"]
        mask = scale = ""
        if self.chance(0.12) and family != "factor":
            mask = self.stream.choice(("constant", "own", "off", *drawn))
        if self.chance(0.08):
            scale = self.stream.choice(("constant", "each", *drawn)) if role != "own" else ""
        sides = (
            "model"
            if role in ("own", "observed") or drawn_by(mask, scale)
            else self.stream.choice(("model", "guide", "both"))
        )
        covariate = bool(plates) and self.chance(0.5)
        return Site(name, role, family, plates, reads, (), mask, scale, sides, covariate, self.chance(0.15))

    def chain(self, name: str) -> Chain:
        way = self.stream.choice(("markov", "markov", "markov", "range", "plate"))
        order = 2 if self.chance(0.2) and way != "plate" else 1
        history = 2 if order == 2 and self.chance(0.8) else 1
        plates = self.stream.choice([(), (), *self.groups])
        readable = [s for s in self.known if set(s.plates) <= set(plates) and s.role in ("latent", "own", "point")]
        reads = self.reads(plates, readable, 1) if self.chance(0.7) else ()
        role, family = self.stream.choice(("latent", "own")), self.stream.choice(("bernoulli", "categorical"))
        if plates != self._within(plates, role):
            role = "own"
        how = self.stream.choice(("value", "lookup", "lookup", "where"))
        length = self.stream.choice((2, 2, 3))
        return Chain(
            name, role, family, length, way, order, history, how, plates, reads, self.chance(0.8), self.chance(0.5)
        )

    def branch(self, number: int) -> Branch | None:
        scalar = [s for s in self.known if s.role in ("latent", "own") and not s.plates and s.family != "normal"]
        on = self.stream.choice(("data", "parameter", "draw", "draw"))
        of_own = False
        if on == "draw":
            if not scalar:
                return None
            switch = self.stream.choice(scalar)
            on, of_own = switch.name, switch.role == "own"
        roles = ("observed", "own") if of_own else ("observed", "observed", "own", "latent")
        names = "ab"[: self.stream.randint(1, 2)]
        arms = [(self.site(f"y{number}{arm}", self.stream.choice(roles)),) for arm in names]
        return Branch(f"branch{number}", on, arms[0], arms[1] if len(arms) > 1 else ())

    def description(self) -> Description | None:
        """A description, or None where it is too large, or holds what has no right answer."""
        body: list[Statement] = [self.sized] if self.sized is not None else []
        self.known += [self.sized] if self.sized is not None else []
        counts: dict[str, int] = {}
        for _ in range(self.stream.randint(2, 6)):
            kind = self.stream.choices(
                ("latent", "own", "observed", "point", "auxiliary", "observed_in_guide", "chain", "branch"),
                (30, 18, 22, 5, 4, 2, 10, 9),
            )[0]
            number = counts[kind] = counts.get(kind, 0) + 1
            if kind == "chain":
                if number <= 2:
                    chain = self.chain("sr"[number - 1])
                    body.append(chain)
                    if self.chance(0.4):  # later sites may read its last value
                        self.known.append(Site(chain.name, chain.role, chain.family, chain.plates))
            elif kind == "branch":
                found = self.branch(number)
                body += [found] if found else []
            else:
                letter = {"latent": "z", "own": "w", "observed": "x", "point": "c", "auxiliary": "a"}.get(kind, "o")
                site = self.site(f"{letter}{number}", kind)
                body.append(site)
                self.known.append(site)
        if self.known and self.chance(0.9):
            body.append(self.site("end", "observed"))
        guided = self._guided(body)
        if guided is None:
            return None
        handlers = tuple(h for h in HANDLERS if self.chance(0.05))
        order = tuple(s.name for s in guided)
        by_name = {s.name: s for s in guided}
        body = [by_name[s.name] for s in body]
        parameters = self.stream.choice(("leaf", "leaf", "method", "param", "module", "registered"))
        if parameters in ("module", "registered"):
            body = [replace(s, on="data") if isinstance(s, Branch) and s.on == "parameter" else s for s in body]
        found = Description(
            self.seed, self.plates, tuple(body), order, parameters, self.chance(0.15), self.chance(0.5), handlers
        )
        return found if self._has_an_answer(found) else None

    def _guided(self, body: list[Statement]) -> list[Statement] | None:
        """The statements in the guide's order, with what the guide's distributions read."""
        order = list(body)
        if self.chance(0.5):
            self.stream.shuffle(order)
            for branch in [s for s in order if isinstance(s, Branch)]:
                on = next((i for i, s in enumerate(order) if s.name == branch.on), -1)
                if on > order.index(branch):
                    order.remove(branch)
                    order.append(branch)
        order.sort(key=lambda s: s.name != SIZE)  # first
        known: list[Site] = []
        found: list[Statement] = []
        for statement in order:
            if isinstance(statement, Site) and statement.role in ("latent", "auxiliary", "observed_in_guide"):
                reads = self.reads(statement.plates, known) if self.chance(0.6) else ()
                statement = replace(statement, guide_reads=reads)
                if statement.role != "observed_in_guide":
                    known.append(statement)
            elif isinstance(statement, Site) and statement.role == "point":
                known.append(statement)
            found.append(statement)
        return found

    def _has_an_answer(self, found: Description) -> bool:
        sites = list(found.sites())
        discrete = [s for s in sites if s.role in ("latent", "own")]
        if not discrete or not any(s.role == "observed" or isinstance(s, Chain) for s in sites):
            return False
        if found.joint_values > MOST_VALUES or found.size > MOST_SITES:
            return False
        # the scales of the model's own sites, which stand outside of one logarithm
        thinned = found.thinned
        own = [s for s in sites if s.role == "own"]
        return len({bool(thinned & set(s.plates)) for s in own}) <= 1


def drawn_by(*weights: str) -> bool:
    """Whether one of these masks and scales is that of a draw."""
    return any(w and w not in FIXED for w in weights)
