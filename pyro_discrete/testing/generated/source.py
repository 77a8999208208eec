"""A described pair as Python source that a reader can run, and the pair that this very source defines."""

from __future__ import annotations

import itertools
import linecache
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor, nn

from pyro_discrete.testing.generated.description import VALUES, Branch, Chain, Description, Read, Site
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["build", "source"]

SCALARS = ("bernoulli", "categorical", "binomial", "normal")
"""Families whose values have no event dims."""
FIXED = [0, 2]
"""The elements of a fixed subsample."""


def source(description: Description) -> str:
    """Python source of the pair: `model`, `guide`, `arguments`."""
    return _Writer(description).whole()


_numbered = itertools.count()


def build(description: Description) -> Pair:
    """The pair that the source defines. Needs float64 as the default dtype; `pyro.param`s enter the present store."""
    text = source(description)
    file = f"<generated {description.seed}-{next(_numbered)}>"
    linecache.cache[file] = (len(text), None, text.splitlines(keepends=True), file)
    namespace: dict[str, Any] = {"__name__": "generated"}
    exec(compile(text, file, "exec"), namespace)
    parameters: dict[str, Tensor] = {
        n: v for n, v in namespace.items() if isinstance(v, Tensor) and v.requires_grad and v.is_leaf
    }
    for name, value in namespace.items():
        if isinstance(value, nn.Module):
            parameters |= {f"{name}.{n}": p for n, p in value.named_parameters()}
    model, guide, arguments = namespace["model"], namespace["guide"], namespace["arguments"]
    if description.parameters == "param":
        pyro.poutine.trace(guide).get_trace(*arguments)
        pyro.poutine.trace(pyro.poutine.block(model)).get_trace(*arguments)
        with pyro.poutine.block():
            model(*arguments)
        parameters |= dict(pyro.get_param_store().named_parameters())
    return Pair(model, guide, arguments, parameters)


@dataclass
class _Variable:
    """What a name holds."""

    family: str
    plates: tuple[str, ...]


class _Writer:
    """Writes one description; data and parameters are collected on the way."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.data: dict[str, str] = {}
        self.parameters: dict[str, dict[str, str]] = {"model": {}, "guide": {}}
        self.side = "model"
        self.variables: dict[str, _Variable] = {}

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
        return name if self.variables[name].family in SCALARS else f"{name}[..., 0]"

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

    def _term(self, read: Read, held: _Variable, child: str, plates: tuple[str, ...], coefficient: str) -> str:
        name, how = read.site, read.how
        table = self.letters[2]
        missing = [d for d in self.dims(held.plates) if d not in self.dims(plates)]
        if missing or (how == "flip" and held.plates):
            return f"{coefficient} * {self.across(self.scalar(name), how, held.plates, plates, missing)}"
        values = {"bits": 2, "pair_of_categoricals": 3}.get(held.family) or VALUES.get(held.family, 2)
        whole = "" if held.family == "categorical" else ".long()"
        if how == "item" and not held.plates:
            return f"{coefficient} * float({self.scalar(name)})"
        if how == "where":
            return f"torch.where({self.scalar(name)} > 0, {coefficient}, 0.2)"
        if how == "equal":
            return f"{coefficient} * ({self.scalar(name)} == 1)"
        if held.family == "normal":
            return f"{coefficient} * {name}"
        if how == "gather" and held.plates == plates and len(plates) == 1 and self.dims(plates) == [-1]:
            if not self.description.plate(plates[0]).subsample and held.family in SCALARS:
                size = self.description.plate(plates[0]).size
                rows = self.datum(f"k_{child}_{name}", (size, values), lambda r: round(r.uniform(-1, 1), 2))
                return f"{coefficient} * {rows}.gather(-1, {name}{whole}[:, None])[:, 0]"
        if how in ("lookup", "rows", "gather"):
            found = self.parameter(f"{table}_{child}_{name}", (values,))
            if held.family == "one_hot":
                return f"{name} @ {found}"
            return f"{found}[{name}{whole}]" + ("" if held.family in SCALARS else ".sum(-1)")
        if held.family in SCALARS:
            return f"{coefficient} * {name}"
        width = 3 if held.family == "one_hot" else 2
        return f"({name} * {self.parameter(f'{table}_{child}_{name}', (width,))}).sum(-1)"

    def across(self, value: str, how: str, held: tuple[str, ...], plates: tuple[str, ...], missing: list[int]) -> str:
        """A value in plates that its reader is not in, or turned round in them."""
        if how == "flip" and not missing:
            return f"{value}.flip({self.dims(held)[-1]})"
        depth = -min(self.dims(held))
        if plates:
            if how == "first":
                return value + "".join(f".narrow({d}, 0, 1)" for d in missing)
            return f"{value}.sum({tuple(missing)}, keepdim=True)"
        if how == "element":
            return f"{value}[{', '.join(['0'] * depth)}]"
        if how == "first":
            return f"{value}[..., {', '.join(['0'] * depth)}]"
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
            "categorical": f"dist.Categorical(logits={spread})",
            "one_hot": f"dist.OneHotCategorical(logits={spread})",
            "binomial": f"dist.Binomial(2, logits={predictor})",
            "bits": f"dist.Bernoulli(logits={wide} * torch.tensor([1.0, -0.7])).to_event(1)",
            "pair_of_categoricals": (
                f"dist.Categorical(logits=({spread}).unsqueeze(-2) * torch.tensor([[1.0], [-0.6]])).to_event(1)"
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

    # statements

    def site(self, site: Site) -> list[str]:
        """Lines of a site on the side that is written."""
        here = {"model": ("latent", "own", "point", "observed")}.get(
            self.side, ("latent", "auxiliary", "point", "observed_in_guide")
        )
        if site.role not in here:
            return []
        reads = site.reads if self.side == "model" else site.guide_reads
        contexts = self.contexts(site)
        arguments = []
        if site.role == "point" and self.side == "guide":
            fn = f"dist.Delta({self.parameter(f'g_{site.name}')})"
        else:
            predictor = self.predictor(site.name, reads, site.plates, site.covariate)
            if site.family == "factor":
                return self.within(contexts, [f'pyro.factor("{site.name}", {predictor})'])
            fn = self.distribution(site.name, site.family, predictor)
        if site.mask == "own" and site.sides in (self.side, "both"):
            fn += f".mask({self.mask(site)})"
        if site.role in ("observed", "observed_in_guide"):
            data = self.observed(site.name, site.family, site.plates)
            if not (site.role == "observed" and self.conditioned(site)):
                arguments.append(f"obs={self.picked(data, site.plates)}")
        infer = []
        if site.role == "auxiliary":
            infer.append('"is_auxiliary": True')
        if site.marked and self.description.elements(()) and site.role in ("latent", "own"):
            infer.append('"enumerate": "parallel"')
        if infer:
            arguments.append(f"infer={{{', '.join(infer)}}}")
        self.variables[site.name] = _Variable(site.family, site.plates)
        call = f'pyro.sample("{site.name}", {fn}{"".join(f", {a}" for a in arguments)})'
        return self.within(contexts, [call if "observed" in site.role else f"{site.name} = {call}"])

    def conditioned(self, site: Site) -> bool:
        """Whether the value comes from `poutine.condition`."""
        whole = not any(self.description.plate(p).subsample for p in site.plates)
        return "condition" in self.description.handlers and whole and site in self.description.body

    def contexts(self, site: Site) -> list[str]:
        """What stands behind `with`."""
        found = [self.plate(p) for p in site.plates]
        if site.sides in (self.side, "both") or site.role in ("own", "observed"):
            if site.mask not in ("", "own"):
                found.append(f"poutine.mask(mask={self.mask(site)})")
            if site.scale == "constant":
                found.append("poutine.scale(scale=0.5)")
            elif site.scale in self.variables:
                found.append(f"poutine.scale(scale=0.5 + {self.scalar(site.scale)})")
        return found

    def mask(self, site: Site) -> str:
        if site.mask in self.variables:
            return f"{self.scalar(site.mask)} > 0"
        mask = self.datum(f"m_{site.name}", self.shape(site.plates), lambda r: r.random() < 0.5)
        return self.picked(mask, site.plates)

    def plate(self, name: str) -> str:
        return f"{name} as {name}_index" if self.description.plate(name).subsample else name

    @staticmethod
    def within(contexts: list[str], lines: list[str]) -> list[str]:
        return lines if not contexts else [f"with {', '.join(contexts)}:", *(f"    {line}" for line in lines)]

    def loop(self, chain: Chain) -> list[str]:
        """Lines of a chain."""
        if self.side == "guide" and chain.role != "latent":
            return []
        name, held = chain.name, _Variable(chain.family, chain.plates)
        reads = chain.reads if self.side == "model" else ()
        linked = chain.way != "plate" and (self.side == "model" or chain.linked)
        lines = []
        outside = dict(self.variables)
        if linked:
            zero = "torch.tensor(0)" if chain.family == "categorical" else "torch.tensor(0.0)"
            self.variables[name] = held
            reads = (*reads, Read(name, chain.how))
            lines.append(f"{name} = {zero}")
            if chain.order == 2:
                self.variables[f"{name}_before"] = held
                reads = (*reads, Read(f"{name}_before", chain.how))
                lines.append(f"{name}_before = {zero}")
        fn = self.distribution(name, chain.family, self.predictor(name, reads, chain.plates))
        call = f'pyro.sample(f"{name}_{{t}}", {fn})'
        two = linked and chain.order == 2
        inner = [f"{name}_before, {name} = {name}, {call}" if two else f"{name} = {call}"]
        self.variables = {**outside, name: held}
        if self.side == "model" and chain.emits:
            shape = (chain.length, *self.shape(chain.plates))
            data = self.datum(f"x_{name}", shape, lambda r: round(r.uniform(-2, 2), 2))
            predictor = self.predictor(f"x_{name}", (Read(name, chain.how), *chain.reads), chain.plates)
            value = f"{data}[t]"
            for plate in map(self.description.plate, chain.plates):
                if plate.subsample:
                    value += f".index_select({plate.dim}, {plate.name}_index)"
            inner.append(f'pyro.sample(f"x_{name}_{{t}}", dist.Normal({predictor}, 1.0), obs={value})')
        history = f", history={chain.history}" if chain.history > 1 else ""
        steps = {
            "markov": f"pyro.markov(range({chain.length}){history})",
            "range": f"range({chain.length})",
            "plate": f'pyro.plate("{name}_steps", {chain.length})',
        }[chain.way]
        inner = self.within([self.plate(p) for p in chain.plates], inner)
        return [*lines, f"for t in {steps}:", *(f"    {line}" for line in inner)]

    def branch(self, branch: Branch) -> list[str]:
        """Lines of an `if`."""
        before = dict(self.variables)
        arms = []
        for arm in (branch.then, branch.otherwise):
            arms.append([line for s in arm for line in self.site(s)])
            self.variables = dict(before)
        if not any(arms):
            return []
        if branch.on == "data":
            condition = f"{self.datum(f'x_{branch.name}', (), lambda r: round(r.uniform(-1, 1), 2))} > 0"
        elif branch.on == "parameter":
            condition = f"{self.parameter(f'b_{branch.name}')} > 0"
        else:
            condition = f"{self.scalar(branch.on)}.item() > 0"
        lines = [f"if {condition}:", *(f"    {line}" for line in arms[0] or ["pass"])]
        return lines + (["else:", *(f"    {line}" for line in arms[1])] if arms[1] else [])

    def function(self, side: str) -> list[str]:
        """The body of the model or the guide."""
        self.side, self.variables = side, {}
        body = {s.name: s for s in self.description.body}
        lines: list[str] = []
        for name in body if side == "model" else self.description.order:
            statement = body[name]
            if isinstance(statement, Branch):
                lines += self.branch(statement)
            else:
                lines += self.loop(statement) if isinstance(statement, Chain) else self.site(statement)
        plates = []
        for plate in self.description.plates:
            if any(f"{plate.name}:" in x or f"{plate.name}," in x or f"{plate.name} as " in x for x in lines):
                kind = {"fixed": f", subsample=torch.tensor({FIXED})", "random": ", subsample_size=2", "": ""}
                plates.append(
                    f'{plate.name} = pyro.plate("{plate.name}", {plate.size}{kind[plate.subsample]}, dim={plate.dim})'
                )
        held = []
        if self.description.parameters == "param":
            held = [f'{n} = pyro.param("{n}", {v})' for n, v in self.parameters[side].items()]
        elif self.description.parameters == "module":
            held = [f"{n} = self.{n}" for n in self.parameters[side]]
        return [*held, *plates, *lines] or ["pass"]

    def whole(self) -> str:
        """All of it."""
        kind, parts = self.description.parameters, {side: self.function(side) for side in ("model", "guide")}
        names = ", ".join(self.data) if self.description.arguments else ""
        lines = [f"{n} = {v}" for n, v in self.data.items()]
        if kind == "leaf":
            every = self.parameters["model"] | self.parameters["guide"]
            lines += [f"{n} = {v[:-1]}, requires_grad=True)" for n, v in every.items()]
        for side, body in parts.items():
            if kind == "module":
                made = [f"self.{n} = torch.nn.Parameter({v})" for n, v in self.parameters[side].items()]
                lines += ["", "", f"class {side.title()}(PyroModule):", "    def __init__(self):"]
                lines += ["        super().__init__()", *(f"        {line}" for line in made), ""]
                lines += [f"    def forward(self{', ' * bool(names)}{names}):", *(f"        {line}" for line in body)]
                lines += ["", "", f"{side} = {side}_module = {side.title()}()"]
            else:
                lines += ["", "", f"def {side}({names}):", *(f"    {line}" for line in body)]
        lines += ["", "", *self.handlers(), f"arguments = ({names}{',' * bool(names)})"]
        head = ["import functools", "import pyro", "import torch", "import pyro.distributions as dist"]
        head += ["from pyro import poutine", "from pyro.infer import config_enumerate", "from pyro.nn import PyroModule"]
        head = [x for x in head if x.split()[-1] in "\n".join(lines) or x.endswith(("dist", "torch"))]
        return "\n".join([*head, "", "torch.set_default_dtype(torch.float64)", *lines, ""])

    def handlers(self) -> list[str]:
        """What is put around model and guide."""
        lines = []
        for handler in self.description.handlers:
            if handler == "condition":
                given = [s.name for s in self.description.body if isinstance(s, Site) and s.role == "observed"]
                given = [n for n in given if self.conditioned(next(s for s in self.description.body if s.name == n))]
                given = [n for n in given if f"x_{n}" in self.data]
                values = ", ".join(f'"{n}": x_{n}' for n in given)
                lines.append(f"model = poutine.condition(model, data={{{values}}})")
            elif handler == "scale":
                lines.append("model, guide = poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5)")
            elif handler == "config_enumerate":
                lines.append("model = config_enumerate(model)")
            elif handler == "partial":
                lines.append("model, guide = functools.partial(model), functools.partial(guide)")
        return lines
