"""Discrete sites of the model that the guide does not have: summed out exactly, whatever the guide's estimators.

The model runs with these sites' values in dims left of all plates (and of the rows). The log-probabilities that carry
such dims are contracted, each connected component of them to one marginal log-likelihood, and a trace in which this
term stands for its members goes on to the objective, for which it is an observed site like any other.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from pyro.distributions import TorchDistribution
from pyro.distributions.torch_distribution import TorchDistributionMixin
from pyro.distributions.util import scale_and_mask
from pyro.ops.contract import contract_tensor_tree
from pyro.poutine import Trace
from pyro.poutine.enum_messenger import EnumMessenger
from pyro.poutine.indep_messenger import CondIndepStackFrame
from torch import Tensor
from torch.distributions import constraints

from pyro_discrete.elimination import Elimination
from pyro_discrete.enumerated_sites import mark_for_enumeration
from pyro_discrete.errors import EnumerationError, SiteMatchError, SiteShapeError
from pyro_discrete.estimators.base import Family
from pyro_discrete.estimators.enumerate import Enumerate
from pyro_discrete.sites import ROWS_PLATE, cardinality, family_of, is_latent, sample_sites

__all__ = ["Component", "Factor", "Marginalise", "collapsed", "components", "contract", "refuse_unguided"]

FIRST_SYMBOL = 0x10000
"""Symbols of dims are characters from here on, in the order of their sites."""


def refuse_unguided(name: str, fn: Any) -> None:
    """Raise `SiteMatchError` if a site in the model alone cannot be summed out."""
    if family_of(fn) in (None, Family.CONTINUOUS) or not math.isfinite(cardinality(fn)):
        raise SiteMatchError(
            f"Site {name!r} is latent in the model but not drawn in the guide, and has no finite support that could be "
            "summed over. Draw it in the guide too."
        )


class Marginalise(EnumMessenger):
    """Enumerates every latent site of the model that is not in `drawn`, in dims left of rows and plates.

    `dims` says, by site, which enumerated site's values (by a number of its own) each such dim holds; `own` is each
    enumerated site's own number.
    """

    def __init__(self, drawn: Collection[str], settings: Mapping[str, Enumerate], batch_dims: int) -> None:
        super().__init__(first_available_dim=-2 - batch_dims)
        self.drawn, self.settings = drawn, settings
        self.dims: dict[str, dict[int, int]] = {}
        self.own: dict[str, int] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg) and not msg["done"] and msg["name"] not in self.drawn:
            refuse_unguided(msg["name"], msg["fn"])
            mark_for_enumeration(msg, self.settings.get(msg["name"]) or Enumerate(), marginal=True)
            super()._pyro_sample(msg)
            self.own[msg["name"]] = msg["infer"]["_dim_to_id"][msg["infer"]["_enumerate_dim"]]
        else:
            super()._pyro_sample(msg)

    def _pyro_post_sample(self, msg: Any) -> None:
        # as in Pyro, but kept here: a replayed site's `infer` is the guide site's own
        if not isinstance(msg["fn"], TorchDistributionMixin) or not torch.is_tensor(msg["value"]):
            return
        name = msg["name"]
        known = dict(self._param_dims.get(name, {}))
        if name in self.own:
            known |= msg["infer"]["_dim_to_id"]
        self.dims[name] = known
        shape = msg["value"].shape[: msg["value"].dim() - msg["fn"].event_dim]
        self._value_dims[name] = {d: i for d, i in known.items() if len(shape) >= -d and shape[d] > 1}


@dataclass(eq=False)
class Factor:
    """A log-probability that depends on enumerated values: `value` is packed (no dims of size 1, named by symbols)."""

    name: str
    position: int
    value: Tensor
    symbols: frozenset[str]
    plates: frozenset[str]
    message: Any


@dataclass
class Component:
    """Factors that share enumerated dims, directly or through others: they are summed out together."""

    factors: list[Factor]
    symbols: set[str]
    sites: list[str]

    @property
    def label(self) -> str:
        """A name for the term that stands for the component."""
        shown = ", ".join([*self.sites[:3], "..."] if len(self.sites) > 3 else self.sites)
        return f"sum over {shown} (up to {self.factors[-1].name})"


@dataclass
class _Names:
    """Symbols for enumerated sites (by number) and for plates."""

    plates: dict[tuple[str, int], str] = field(default_factory=dict)
    frames: dict[str, CondIndepStackFrame] = field(default_factory=dict)

    def of_plate(self, frame: CondIndepStackFrame) -> str:
        key = (frame.name, frame.dim or 0)
        if key not in self.plates:
            self.plates[key] = chr(FIRST_SYMBOL - 1 - len(self.plates))
            self.frames[self.plates[key]] = frame
        return self.plates[key]


def _symbol(number: int) -> str:
    return chr(FIRST_SYMBOL + number)


def components(model_trace: Trace, marginalise: Marginalise, batch_dims: int) -> tuple[list[Component], _Names]:
    """The trace's factors with enumerated dims, by connected component."""
    names, factors = _Names(), []
    for position, (name, msg) in enumerate(sample_sites(model_trace).items()):
        if name in marginalise.own or _reaches_left(msg, batch_dims):
            factors.append(_factor(name, position, msg, marginalise, batch_dims, names))
    _check_plates(factors, marginalise, names)
    group: dict[str, Component] = {}
    found: list[Component] = []
    for factor in factors:
        joined = Component([factor], set(factor.symbols), [])
        for other in {id(group[s]): group[s] for s in factor.symbols if s in group}.values():
            small, joined = sorted((joined, other), key=lambda c: len(c.symbols))
            joined.factors += small.factors
            joined.symbols |= small.symbols
            group.update(dict.fromkeys(small.symbols, joined))
        group.update(dict.fromkeys(factor.symbols, joined))
        if not factor.symbols:
            found.append(joined)  # a support of one value
    found += {id(c): c for c in group.values()}.values()
    for component in found:
        component.factors.sort(key=lambda f: f.position)
        component.sites = [f.name for f in component.factors if f.name in marginalise.own]
    return sorted(found, key=lambda c: c.factors[0].position), names


def _reaches_left(msg: Any, batch_dims: int) -> bool:
    """Whether a site's log-probability has a dim left of rows and plates."""
    value = msg["value"].dim() if torch.is_tensor(msg["value"]) else 0
    return max(len(getattr(msg["fn"], "batch_shape", ())), value - msg["fn"].event_dim) > 1 + batch_dims


def _factor(name: str, position: int, msg: Any, marginalise: Marginalise, batch_dims: int, names: _Names) -> Factor:
    log_p = msg["fn"].log_prob(msg["value"], *msg["args"], **msg["kwargs"])
    if name not in marginalise.own:
        log_p = scale_and_mask(log_p, mask=msg["mask"])
    at = {f.dim: names.of_plate(f) for f in msg["cond_indep_stack"] if f.dim is not None}
    known = marginalise.dims.get(name, {})
    symbols = ""
    for dim in range(-log_p.dim(), 0):
        if log_p.shape[dim] > 1:
            if dim < -1 - batch_dims and dim in known:
                symbols += _symbol(known[dim])
            elif dim in at:
                symbols += at[dim]
            else:
                raise SiteShapeError(
                    f"Site {name!r} has a log-probability of shape {tuple(log_p.shape)}, whose dim {dim} is in no "
                    "plate and belongs to no enumerated site. Index from the right, so that dims on the left broadcast."
                )
    packed = log_p.squeeze() if 1 in log_p.shape else log_p.clone()  # a tensor of its own, to carry the symbols
    packed._pyro_dims = symbols  # type: ignore[attr-defined]
    plates = frozenset(at.values())
    return Factor(name, position, packed, frozenset(symbols) - plates, plates, msg)


def _check_plates(factors: Sequence[Factor], marginalise: Marginalise, names: _Names) -> None:
    """Refuse a site outside a plate that depends on a site enumerated inside it: elements would be taken in step."""
    inside = {_symbol(marginalise.own[f.name]): f for f in factors if f.name in marginalise.own}
    for factor in factors:
        for symbol in factor.symbols:
            missing = inside[symbol].plates - factor.plates
            if missing:
                plates = ", ".join(sorted(repr(names.frames[p].name) for p in missing))
                raise EnumerationError(
                    f"Site {factor.name!r} outside plate {plates} depends on site {inside[symbol].name!r} inside it, "
                    "which is in the model alone: all joint values of the plate's elements would have to be summed "
                    f"over. Draw {inside[symbol].name!r} in the guide too."
                )


def _common_scale(component: Component) -> Any:
    """The scale of all factors; it goes outside the logarithm."""
    scales = [f.message["scale"] for f in component.factors]
    first = next((s for s in scales if torch.is_tensor(s)), scales[0])
    if torch.is_tensor(first) and first.numel() > 1:
        raise EnumerationError(f"Site {component.sites[0]!r} of the model alone has a poutine.scale of many elements.")
    # tensors are compared by identity where that is enough, as a step that is to be captured reads no values
    if any(s is not first and s != first for s in scales):
        listed = ", ".join(f"{f.name!r}: {float(s):.6g}" for f, s in zip(component.factors, scales, strict=True))
        raise EnumerationError(
            f"Sites {', '.join(map(repr, component.sites))} of the model alone are summed out together with the sites "
            f"that depend on them, but the scales of these differ ({listed}), so there is no marginal likelihood to "
            "scale. Put them into the same subsampled plate and poutine.scale (a kl_weight is one, too), or draw them "
            "in the guide too."
        )
    return first


def contract(component: Component, ring: Elimination | None = None) -> Tensor:
    """The component's marginal log-likelihood, packed: `[*plates that all of its factors are in]`."""
    tree: OrderedDict[frozenset[str], list[Tensor]] = OrderedDict()
    for factor in component.factors:
        tree.setdefault(factor.plates, []).append(factor.value)
    try:
        contracted = contract_tensor_tree(tree, set(component.symbols), ring=ring or Elimination())
    except NotImplementedError as error:
        raise EnumerationError(
            f"Sites {', '.join(map(repr, component.sites))} of the model alone depend on each other across plates that "
            f"are not nested, so that their sum grows exponentially with the plates' sizes ({error}). Draw some of "
            "them in the guide too."
        ) from error
    ((term,),) = contracted.values()
    return term


class _Known(TorchDistribution):
    """A site whose log-probability is known: zero where another term holds it, or the marginal of a component."""

    arg_constraints: ClassVar[dict[str, Any]] = {}

    def __init__(self, log_prob: Tensor) -> None:
        self._log_prob = log_prob
        super().__init__(log_prob.shape, torch.Size(), validate_args=False)

    @constraints.dependent_property
    def support(self) -> Any:  # type: ignore[override]
        return constraints.real

    def log_prob(self, value: Tensor) -> Tensor:
        return self._log_prob


def collapsed(model_trace: Trace, marginalise: Marginalise, batch_dims: int) -> tuple[Trace, dict[str, list[str]]]:
    """The trace with each component's marginal log-likelihood in the place of its members', and each one's members.

    The term comes right after its last member (what a site influences, it must come after), in the plates that all
    members are in, with their scale. The members stay, with a log-probability of zero, where others look for them.
    """
    found, names = components(model_trace, marginalise, batch_dims)
    absorbed = {f.name: f.value for c in found for f in c.factors}
    after = {c.factors[-1].name: c for c in found}
    trace = Trace()
    for name, msg in model_trace.nodes.items():
        if name not in absorbed:
            trace.add_node(name, **msg)
            continue
        rows = [f.size for f in msg["cond_indep_stack"] if f.name == ROWS_PLATE]
        zero = absorbed[name].new_zeros([*rows, *(1,) * batch_dims])
        trace.add_node(name, **{**msg, **_with(zero), "scale": 1.0})
        if name in after:
            component = after[name]
            node = {**msg, **_with(_unpacked(contract(component), names)), "scale": _common_scale(component)}
            shared = frozenset.intersection(*(frozenset(f.message["cond_indep_stack"]) for f in component.factors))
            node["cond_indep_stack"] = tuple(f for f in msg["cond_indep_stack"] if f in shared)
            node |= {"name": component.label, "value": zero, "is_observed": True, "infer": {}}
            trace.add_node(component.label, **node)
    return trace, {c.label: [f.name for f in c.factors] for c in found}


def _with(log_prob: Tensor) -> dict[str, Any]:
    return {"fn": _Known(log_prob), "mask": None, "args": (), "kwargs": {}}


def _unpacked(term: Tensor, names: _Names) -> Tensor:
    """A packed tensor with its plates where they belong."""
    at = [names.frames[s].dim or 0 for s in term._pyro_dims]  # type: ignore[attr-defined]
    ordered = term.permute(sorted(range(len(at)), key=at.__getitem__))
    shape = [1] * -min(at, default=0)
    for dim, size in zip(sorted(at), ordered.shape, strict=True):
        shape[dim] = size
    return ordered.reshape(shape)
