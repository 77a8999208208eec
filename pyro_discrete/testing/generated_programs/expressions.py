"""What stands inside a generated statement: numbers, linear predictors, distributions, data."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro_discrete.testing.generated_programs.description import VALUES, Description, Read

__all__ = ["NEIGHBOURS", "Expressions", "Variable"]

SCALARS = ("bernoulli", "coin", "categorical", "binomial", "beta_binomial", "normal")
"""Families whose values have no event dims."""
BY_DATA = {"weighed": "({value} + {k}.sum() * {other})", "chosen": "torch.where({k}.sum() > 0, {other}, {value})"}
"""Ways to read other elements of a plate, or none, as data have it."""
NEIGHBOURS = ("flip", "cumsum", "centred", *BY_DATA)
"""Ways to read other elements of a plate that reader and read are both in."""


@dataclass
class Variable:
    """What a name holds."""

    family: str
    plates: tuple[str, ...]


class Expressions:
    """Writes expressions of one description; the data and parameters that they need are collected on the way.

    - `data`, `parameters` (of "model" and "guide"): name -> an expression of its tensor.
    - `side`: "model" or "guide", whichever is written. `variables`: what may be read at this place.
    """

    def __init__(self, description: Description) -> None:
        self.description = description
        self.data: dict[str, str] = {}
        self.parameters: dict[str, dict[str, str]] = {"model": {}, "guide": {}}
        self.side = "model"
        self.variables: dict[str, Variable] = {}

    # numbers

    def _numbers(self, name: str, shape: tuple[int, ...], draw: Callable[[random.Random], Any]) -> str:
        stream = random.Random(f"{self.description.seed} {name}")

        def nested(shape: tuple[int, ...]) -> Any:
            return draw(stream) if not shape else [nested(shape[1:]) for _ in range(shape[0])]

        return f"torch.tensor({nested(shape)})"

    def datum(self, name: str, shape: tuple[int, ...], draw: Callable[[random.Random], Any]) -> str:
        """A name of a data tensor."""
        self.data[name] = self._numbers(name, shape, draw)
        return name

    def parameter(self, name: str, shape: tuple[int, ...] = ()) -> str:
        """A name of a parameter of the side that is written."""
        self.parameters[self.side][name] = self._numbers(name, shape, lambda r: round(r.uniform(-1.2, 1.2), 2))
        return name

    @property
    def letters(self) -> tuple[str, str, str]:
        """What parameters' names begin with: base, coefficient, table."""
        return ("b", "c", "t") if self.side == "model" else ("g", "gc", "gt")

    # shapes

    def dims(self, plates: tuple[str, ...]) -> list[int]:
        return sorted(self.description.plate(p).dim for p in plates)

    def shape(self, plates: tuple[str, ...]) -> tuple[int, ...]:
        """The batch shape of whole data in these plates."""
        sizes = {self.description.plate(p).dim: self.description.plate(p).size for p in plates}
        return tuple(sizes.get(d, 1) for d in range(min(sizes, default=0), 0))

    def picked(self, name: str, plates: tuple[str, ...]) -> str:
        """Whole data, or what a subsample takes of it."""
        for plate in map(self.description.plate, plates):
            if plate.subsample:
                name += f".index_select({plate.dim - self._event(name)}, {plate.name}_index)"
        return name

    def _event(self, name: str) -> int:
        head = name.split(".")[0]
        return 1 if head.startswith("x_") and head[2:] in self.wide else 0

    @property
    def wide(self) -> set[str]:
        """Observed sites whose data have an event dim."""
        return {s.name for s in self.description.sites() if s.family in ("one_hot", "bits", "pair_of_categoricals")}

    # expressions

    def base(self, name: str) -> str:
        shared = self.side == "guide" and self.description.shared and self.description.parameters != "module"
        return self.parameter(f"{'b' if shared else self.letters[0]}_{name}")

    def scalar(self, name: str) -> str:
        """A variable without its event dim."""
        family = self.variables[name].family
        return (
            name if family in SCALARS else f"{name}[..., 0, 0]" if family == "pair_of_one_hots" else f"{name}[..., 0]"
        )

    def term(self, read: Read, child: str, plates: tuple[str, ...]) -> str:
        """What a read site adds to a linear predictor."""
        held, name, letter = self.variables[read.site], read.site, self.letters[1]
        coefficient = f"{letter}_{child}_{name}"
        taken = self.parameters[self.side]
        self.parameter(coefficient)
        found = self._term(read, held, child, plates, coefficient)
        if coefficient not in found.replace("(", " ").replace(",", " ").split():
            taken.pop(coefficient)
        return found

    def _term(self, read: Read, held: Variable, child: str, plates: tuple[str, ...], coefficient: str) -> str:
        name, how = read.site, read.how
        table = self.letters[2]
        missing = [d for d in self.dims(held.plates) if d not in self.dims(plates)]
        if how in BY_DATA and held.plates and not missing:
            k = self.datum(f"k_{child}_{name}", (2,), lambda r: round(r.uniform(0, 1), 2))
            value = self.scalar(name)
            other = f"{value}.flip({self.dims(held.plates)[-1]})"
            return f"{coefficient} * {BY_DATA[how].format(value=value, other=other, k=k)}"
        if missing or (how in NEIGHBOURS and held.plates):
            return f"{coefficient} * {self.across(self.scalar(name), how, held.plates, plates, missing)}"
        values = {"bits": 2, "pair_of_categoricals": 3, "pair_of_one_hots": 3}.get(held.family)
        values = values or VALUES.get(held.family, 2)
        whole = "" if held.family == "categorical" else ".long()"
        if how == "item" and not held.plates:
            return f"{coefficient} * float({self.scalar(name)})"
        if how == "stack":
            return f"{coefficient} * torch.stack([{self.scalar(name)}, 0.3 + {self.scalar(name)}]).sum(0)"
        if how == "escape":
            return f"{coefficient} * torch.as_tensor({self.scalar(name)}.tolist())"
        if how == "where":
            return f"torch.where({self.scalar(name)} > 0, {coefficient}, 0.2)"
        if how == "equal":
            return f"{coefficient} * ({self.scalar(name)} == 1)"
        if held.family == "normal":
            return f"{coefficient} * {name}"
        if how == "gather" and held.plates == plates and held.family in SCALARS and self._is_line(plates):
            size = self.description.plate(plates[0]).size
            rows = self.datum(f"k_{child}_{name}", (size, values), lambda r: round(r.uniform(-1, 1), 2))
            return f"{coefficient} * {rows}.gather(-1, {name}{whole}.reshape(-1)[:, None])[:, 0]"
        if how in ("lookup", "rows", "gather"):
            found = self.parameter(f"{table}_{child}_{name}", (values,))
            if held.family in ("one_hot", "pair_of_one_hots"):
                return f"({name} @ {found})" + (".sum(-1)" if held.family == "pair_of_one_hots" else "")
            return f"{found}[{name}{whole}]" + ("" if held.family in SCALARS else ".sum(-1)")
        if held.family in SCALARS:
            return f"{coefficient} * {name}"
        shape = {"one_hot": (3,), "pair_of_one_hots": (2, 3)}.get(held.family, (2,))
        return f"({name} * {self.parameter(f'{table}_{child}_{name}', shape)}).sum({tuple(range(-len(shape), 0))})"

    def _is_line(self, plates: tuple[str, ...]) -> bool:
        """Whether values are vectors of a plate's elements, all of them."""
        return self.dims(plates) == [-1] and not self.description.plate(plates[0]).subsample

    def across(self, value: str, how: str, held: tuple[str, ...], plates: tuple[str, ...], missing: list[int]) -> str:
        """A value in plates that its reader is not in, or turned round in them."""
        depth, last = -min(self.dims(held)), self.dims(held)[-1]
        if not missing:
            return {"flip": f"{value}.flip({last})", "cumsum": f"{value}.cumsum({last})"}.get(
                how, f"({value} - 0.5 * {value}.sum({last}, keepdim=True))"
            )
        if plates:
            if how == "first":
                return value + "".join(f".narrow({d}, 0, 1)" for d in missing)
            return f"{value}.sum({tuple(missing)}, keepdim=True)"
        if how == "element":
            return f"{value}[{', '.join(['0'] * depth)}]"
        if how == "first":
            return f"{value}[..., {', '.join(['0'] * depth)}]"
        if depth == 1 and how in ("prod", "logsumexp", "unbind", "plain"):
            form = {"prod": "(0.5 + {}).prod(-1)", "logsumexp": "(1.0 * {}).logsumexp(-1)", "plain": "{}.sum(-1)"}
            return form.get(how, "sum({}.unbind(-1))").format(value)
        if how == "loop" and depth == 1:
            return f"sum({value}[..., i] for i in range({self.description.plate(held[0]).kept}))"
        return f"{value}.sum({tuple(range(-depth, 0))})"

    def predictor(self, name: str, reads: tuple[Read, ...], plates: tuple[str, ...], covariate: bool = False) -> str:
        """The linear predictor of a site's distribution."""
        terms = [self.base(name)]
        if covariate:
            data = self.datum(f"u_{name}", self.shape(plates), lambda r: round(r.uniform(-1, 1), 2))
            terms.append(self.picked(data, plates))
        terms += [self.term(r, name, plates) for r in reads if r.site in self.variables]
        return " + ".join(terms)

    def distribution(self, name: str, family: str, predictor: str) -> str:
        """The distribution of a family with this predictor."""
        wide = f"({predictor}).unsqueeze(-1)"
        spread = f"{wide} * torch.tensor([1.0, -0.5, 0.3]) + torch.tensor([0.1, -0.4, 0.2])"
        return {
            "bernoulli": f"dist.Bernoulli(logits={predictor})",
            "coin": f"dist.Bernoulli(({predictor}).sigmoid())",
            "categorical": f"dist.Categorical(logits={spread})",
            "one_hot": f"dist.OneHotCategorical(logits={spread})",
            "binomial": f"dist.Binomial(2, logits={predictor})",
            "beta_binomial": f"dist.BetaBinomial(({predictor}).exp(), 1.5, total_count=2)",
            "bits": f"dist.Bernoulli(logits={wide} * torch.tensor([1.0, -0.7])).to_event(1)",
            "pair_of_categoricals": (
                f"dist.Categorical(logits=({spread}).unsqueeze(-2) * torch.tensor([[1.0], [-0.6]])).to_event(1)"
            ),
            "pair_of_one_hots": (
                f"dist.OneHotCategorical(logits=({spread}).unsqueeze(-2) * torch.tensor([[1.0], [-0.6]])).to_event(1)"
            ),
            "normal": f"dist.Normal({predictor}, 1.0)",
            "poisson": f"dist.Poisson(({predictor}).exp())",
        }[family]

    def observed(self, name: str, family: str, plates: tuple[str, ...]) -> str:
        """Data of an observed site, whole."""
        shape, draw = self.shape(plates), lambda r: float(r.randint(0, 1))
        if family == "normal":
            draw = lambda r: round(r.uniform(-2, 2), 2)  # noqa: E731
        elif family == "categorical":
            draw = lambda r: r.randint(0, 2)  # noqa: E731
        elif family == "one_hot":
            draw = lambda r: [[1.0, 0.0, 0.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]][r.randint(0, 2)]  # noqa: E731
        elif family == "bits":
            draw = lambda r: [float(r.randint(0, 1)), float(r.randint(0, 1))]  # noqa: E731
        elif family == "pair_of_categoricals":
            draw = lambda r: [r.randint(0, 2), r.randint(0, 2)]  # noqa: E731
        return self.datum(f"x_{name}", shape, draw)
