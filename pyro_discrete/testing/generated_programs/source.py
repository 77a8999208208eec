"""A described pair as Python source that a reader can run, and the pair that this very source defines."""

from __future__ import annotations

import itertools
import linecache
from typing import Any

import pyro
from torch import Tensor, nn

from pyro_discrete.testing.generated_programs.description import SIZE, Branch, Chain, Description, Read, Site
from pyro_discrete.testing.generated_programs.expressions import Expressions, Variable
from pyro_discrete.testing.small_programs.program import Pair

__all__ = ["build", "source"]

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
        elif name.endswith("_module"):
            parameters |= {f"{name}.{n}": p for n, p in vars(value).items()}
    model, guide, arguments = namespace["model"], namespace["guide"], namespace["arguments"]
    if description.parameters == "param":
        pyro.poutine.trace(guide).get_trace(*arguments)
        pyro.poutine.trace(pyro.poutine.block(model)).get_trace(*arguments)
        with pyro.poutine.block():
            model(*arguments)
        parameters |= dict(pyro.get_param_store().named_parameters())
    return Pair(model, guide, arguments, parameters)


class _Writer:
    """Writes one description."""

    def __init__(self, description: Description) -> None:
        self.description = description
        self.write = Expressions(description)

    def site(self, site: Site) -> list[str]:
        """Lines of a site on the side that is written."""
        here = {"model": ("latent", "own", "point", "observed")}.get(
            self.write.side, ("latent", "auxiliary", "point", "observed_in_guide")
        )
        if site.role not in here:
            return []
        reads = site.reads if self.write.side == "model" else site.guide_reads
        contexts = self.contexts(site)
        arguments = []
        if site.role == "point" and self.write.side == "guide":
            fn = f"dist.Delta({self.write.parameter(f'g_{site.name}')})"
        else:
            predictor = self.write.predictor(site.name, reads, site.plates, site.covariate)
            if site.family == "factor":
                return self.within(contexts, [f'pyro.factor("{site.name}", {predictor})'])
            fn = self.write.distribution(site.name, site.family, predictor)
        if site.mask == "own" and site.sides in (self.write.side, "both"):
            fn += f".mask({self.mask(site)})"
        if site.role in ("observed", "observed_in_guide"):
            data = self.write.observed(site.name, site.family, site.plates)
            if not (site.role == "observed" and self.conditioned(site)):
                arguments.append(f"obs={self.write.picked(data, site.plates)}")
        infer = []
        if site.role == "auxiliary":
            infer.append('"is_auxiliary": True')
        if site.marked and self.description.elements(()) and site.role in ("latent", "own"):
            infer.append('"enumerate": "parallel"')
        if infer:
            arguments.append(f"infer={{{', '.join(infer)}}}")
        self.write.variables[site.name] = Variable(site.family, site.plates)
        call = f'pyro.sample("{site.name}", {fn}{"".join(f", {a}" for a in arguments)})'
        return self.within(contexts, [call if "observed" in site.role else f"{site.name} = {call}"])

    def conditioned(self, site: Site) -> bool:
        """Whether the value comes from `poutine.condition`."""
        whole = not any(self.description.plate(p).subsample for p in site.plates)
        return "condition" in self.description.handlers and whole and site in self.description.body

    def contexts(self, site: Site) -> list[str]:
        """What stands behind `with`."""
        found = [self.plate(p) for p in site.plates]
        if site.sides in (self.write.side, "both") or site.role in ("own", "observed"):
            if site.mask == "off":
                found.append("poutine.mask(mask=False)")
            elif site.mask not in ("", "own"):
                found.append(f"poutine.mask(mask={self.mask(site)})")
            if site.scale == "each":
                shape = self.write.shape(site.plates)
                each = self.write.datum(f"s_{site.name}", shape, lambda r: round(r.uniform(0.3, 1.7), 2))
                found.append(f"poutine.scale(scale={self.write.picked(each, site.plates)})")
            elif site.scale == "constant":
                found.append("poutine.scale(scale=0.5)")
            elif site.scale in self.write.variables:
                found.append(f"poutine.scale(scale=0.5 + {self.write.scalar(site.scale)})")
        return found

    def mask(self, site: Site) -> str:
        if site.mask in self.write.variables:
            return f"{self.write.scalar(site.mask)} > 0"
        mask = self.write.datum(f"m_{site.name}", self.write.shape(site.plates), lambda r: r.random() < 0.5)
        return self.write.picked(mask, site.plates)

    def plate(self, name: str) -> str:
        """What stands behind `with` for a plate."""
        return f"{name} as {name}_index" if self.description.plate(name).subsample else name

    @staticmethod
    def within(contexts: list[str], lines: list[str]) -> list[str]:
        return lines if not contexts else [f"with {', '.join(contexts)}:", *(f"    {line}" for line in lines)]

    def loop(self, chain: Chain) -> list[str]:
        """Lines of a chain."""
        if self.write.side == "guide" and chain.role != "latent":
            return []
        name, held = chain.name, Variable(chain.family, chain.plates)
        reads = chain.reads if self.write.side == "model" else ()
        linked = chain.way != "plate" and (self.write.side == "model" or chain.linked)
        lines = []
        outside = dict(self.write.variables)
        if linked:
            zero = "torch.tensor(0)" if chain.family == "categorical" else "torch.tensor(0.0)"
            self.write.variables[name] = held
            reads = (*reads, Read(name, chain.how))
            lines.append(f"{name} = {zero}")
            if chain.order == 2:
                self.write.variables[f"{name}_before"] = held
                reads = (*reads, Read(f"{name}_before", chain.how))
                lines.append(f"{name}_before = {zero}")
        fn = self.write.distribution(name, chain.family, self.write.predictor(name, reads, chain.plates))
        call = f'pyro.sample(f"{name}_{{t}}", {fn})'
        two = linked and chain.order == 2
        inner = [f"{name}_before, {name} = {name}, {call}" if two else f"{name} = {call}"]
        self.write.variables = {**outside, name: held}
        if self.write.side == "model" and chain.emits:
            shape = (chain.length, *self.write.shape(chain.plates))
            data = self.write.datum(f"x_{name}", shape, lambda r: round(r.uniform(-2, 2), 2))
            predictor = self.write.predictor(f"x_{name}", (Read(name, chain.how), *chain.reads), chain.plates)
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
        before = dict(self.write.variables)
        arms = []
        for arm in (branch.then, branch.otherwise):
            arms.append([line for s in arm for line in self.site(s)])
            self.write.variables = dict(before)
        if not any(arms):
            return []
        if branch.on == "data":
            condition = f"{self.write.datum(f'x_{branch.name}', (), lambda r: round(r.uniform(-1, 1), 2))} > 0"
        elif branch.on == "parameter":
            condition = f"{self.write.parameter(f'b_{branch.name}')} > 0"
        else:
            condition = f"{self.write.scalar(branch.on)}.item() > 0"
        lines = [f"if {condition}:", *(f"    {line}" for line in arms[0] or ["pass"])]
        return lines + (["else:", *(f"    {line}" for line in arms[1])] if arms[1] else [])

    def function(self, side: str) -> list[str]:
        """The body of the model or the guide."""
        self.write.side, self.write.variables = side, {}
        body = {s.name: s for s in self.description.body}
        lines: list[str] = []
        sized = 0  # where the size of a plate is known
        for name in body if side == "model" else self.description.order:
            statement = body[name]
            if isinstance(statement, Branch):
                lines += self.branch(statement)
            else:
                lines += self.loop(statement) if isinstance(statement, Chain) else self.site(statement)
            sized = len(lines) if name == SIZE in self.write.variables else sized
        plates = []
        for plate in self.description.plates:
            if any(f"{plate.name}:" in x or f"{plate.name}," in x or f"{plate.name} as " in x for x in lines):
                kind = {"fixed": f", subsample=torch.tensor({FIXED})", "random": ", subsample_size=2"}
                size = f"1 + int({SIZE})" if sized and plate.subsample == "drawn" else plate.size
                made = f'"{plate.name}", {size}{kind.get(plate.subsample, "")}, dim={plate.dim}'
                line = f"{plate.name} = pyro.plate({made})"
                lines.insert(sized, line) if sized and plate.subsample == "drawn" else plates.append(line)
        held = []
        if self.description.parameters == "param":
            held = [f'{n} = pyro.param("{n}", {v})' for n, v in self.write.parameters[side].items()]
        elif self.description.parameters in ("module", "method"):
            held = [f"{n} = self.{n}" for n in self.write.parameters[side]]
        elif self.description.parameters == "registered" and self.write.parameters[side]:
            held = [
                f'pyro.module("{side}", {side}_net)',
                *(f"{n} = {side}_net.{n}" for n in self.write.parameters[side]),
            ]
        return [*held, *plates, *lines] or ["pass"]

    def whole(self) -> str:
        """All of it."""
        kind, parts = self.description.parameters, {side: self.function(side) for side in ("model", "guide")}
        names = ", ".join(self.write.data) if self.description.arguments else ""
        lines = [f"{n} = {v}" for n, v in self.write.data.items()]
        if kind == "leaf":
            every = self.write.parameters["model"] | self.write.parameters["guide"]
            lines += [f"{n} = {v[:-1]}, requires_grad=True)" for n, v in every.items()]
        for side, body in parts.items():
            tensors = self.write.parameters[side].items()
            if kind in ("module", "method"):
                base = "(PyroModule)" if kind == "module" else ""
                name = "forward" if kind == "module" else "run"
                made = [f"self.{n} = torch.nn.Parameter({v})" for n, v in tensors]
                begun = ["super().__init__()"] if kind == "module" else []
                lines += ["", "", f"class {side.title()}{base}:", "    def __init__(self):"]
                lines += [*(f"        {line}" for line in [*begun, *made] or ["pass"]), ""]
                lines += [f"    def {name}(self{', ' * bool(names)}{names}):", *(f"        {line}" for line in body)]
                lines += ["", "", f"{side} = {side}_module = {side.title()}()"]
                if kind == "method":
                    lines += [f"{side} = {side}_module.run"]
            else:
                if kind == "registered":
                    lines += ["", "", f"{side}_net = torch.nn.Module()"]
                    lines += [f"{side}_net.{n} = torch.nn.Parameter({v})" for n, v in tensors]
                lines += ["", "", f"def {side}({names}):", *(f"    {line}" for line in body)]
        lines += ["", "", *self.handlers(), f"arguments = ({names}{',' * bool(names)})"]
        head = ["import functools", "import pyro", "import torch", "import pyro.distributions as dist"]
        head += [
            "from pyro import poutine",
            "from pyro.infer import config_enumerate",
            "from pyro.nn import PyroModule",
        ]
        head = [x for x in head if x.split()[-1] in "\n".join(lines) or x.endswith(("dist", "torch"))]
        return "\n".join([*head, "", "torch.set_default_dtype(torch.float64)", *lines, ""])

    def handlers(self) -> list[str]:
        """What is put around model and guide."""
        lines = []
        for handler in self.description.handlers:
            if handler == "condition":
                sites = [s for s in self.description.body if isinstance(s, Site) and s.role == "observed"]
                given = [s.name for s in sites if self.conditioned(s) and f"x_{s.name}" in self.write.data]
                values = ", ".join(f'"{n}": x_{n}' for n in given)
                lines.append(f"model = poutine.condition(model, data={{{values}}})")
            elif handler == "scale":
                lines.append("model, guide = poutine.scale(model, scale=0.5), poutine.scale(guide, scale=0.5)")
            elif handler == "mask":
                lines.append("model, guide = poutine.mask(model, mask=True), poutine.mask(guide, mask=True)")
            elif handler == "config_enumerate":
                lines.append("model = config_enumerate(model)")
            elif handler == "block":
                lines.append(
                    'model, guide = poutine.block(model, hide=["nothing"]), poutine.block(guide, hide=["nothing"])'
                )
            elif handler == "trace":
                lines.append("model, guide = poutine.trace(model), poutine.trace(guide)")
            elif handler == "wraps":
                for side in ("model", "guide"):
                    lines += ["", "", f"def around_{side}(*args, program={side}):", "    return program(*args)", "", ""]
                lines += ["model, guide = around_model, around_guide"]
            elif handler == "partial":
                lines.append("model, guide = functools.partial(model), functools.partial(guide)")
        return lines
