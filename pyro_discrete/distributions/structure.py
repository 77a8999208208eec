"""What a structured discrete distribution is to an estimator: values, vertices, noise that brings a value, and mass."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Sequence
from typing import Any, ClassVar, Literal, TypeVar

import torch
from pyro.distributions import TorchDistribution
from torch import Tensor
from torch.distributions import constraints, register_kl

from pyro_discrete.errors import EnumerationError, SettingError, UnsupportedSiteError, is_whole, shown

__all__ = ["LARGEST_SUPPORT", "GibbsStructure", "Structure", "first_element", "float_or_inf"]

S = TypeVar("S", bound="Structure")

LARGEST_SUPPORT = 2**20
"""A support is not listed beyond so many values."""


def float_or_inf(log_size: float, size: Callable[[], int]) -> float:
    """A number that is counted exactly while a float holds it, and inf beyond: `log_size` is about its logarithm."""
    return float(size()) if log_size < 700 else math.inf


class Structure(TorchDistribution):
    """A discrete distribution over rankings, subsets, matchings, trees, paths: the protocol that estimators rely on.

    Shapes: logits `[*batch, *param]`, a value `[*batch, *event]`, its vertex `[*batch, *vertex]` (indicators, 0 or 1),
    noise flat, `[*batch, M]`. Every method takes values, vertices and noise with more dims on the left, and none
    loops over them.

    A subclass writes `param_dim`, `soft_value`, `event_shape_of`, `_draw`, `log_prob`, `cardinality`, `_support_list`,
    `vertex`, `value_of`, `support`, `small`, and of the rest what it can: `defines` reads its capabilities off the
    class, and what is not written raises `UnsupportedSiteError`, which names it.
    """

    has_enumerate_support = True
    arg_constraints: ClassVar[dict[str, Any]] = {"logits": constraints.real}
    param_dim: ClassVar[int] = 1
    """Dims of one element's logits."""
    soft_value: ClassVar[Literal["index", "weights"]] = "index"
    """What a program sees under relaxation: an index (integers when hard), or the vertex itself."""

    value_dims: ClassVar[tuple[str, ...]] = ("place",)
    """What the dims of a value count, in the words of the field: names for tables and pictures."""
    number_name: ClassVar[str] = "item"
    """What an index stands for."""

    logits: Tensor

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        self._check_shape(logits)
        self.logits = logits
        self._kept: tuple[int | None, bool, tuple[Tensor, ...]] | None = None
        batch = logits.shape[: logits.dim() - self.param_dim]
        super().__init__(batch, self.event_shape_of(logits), validate_args=validate_args)
        if self._validate_args:
            self._check_logits()

    def _check_shape(self, logits: Tensor) -> None:
        """Raise `SettingError` if these logits have not the dims that the structure needs."""
        if not isinstance(logits, Tensor) or logits.dim() < self.param_dim:
            raise SettingError(
                f"{type(self).__name__}: logits {_shape_of(logits)} given, a tensor of at least {self.param_dim} dims "
                "expected."
            )
        if not logits.is_floating_point():
            raise SettingError(f"{type(self).__name__}: logits of {logits.dtype} given, floating ones expected.")

    def _check_logits(self) -> None:
        """Under validation, raise `SettingError` if these logits have no law."""
        if bool((self.logits == math.inf).any()):
            raise SettingError(f"{type(self).__name__}: logits of +inf given, numbers or -inf expected.")

    def event_shape_of(self, logits: Tensor) -> torch.Size:
        """Shape of one value."""
        raise NotImplementedError

    # ---------------------------------------------------------------------------------------------------- as in Pyro

    def like(self: S, logits: Tensor) -> S:
        """The same structure at other logits, of any batch shape."""
        return type(self)(logits, validate_args=False, **self._settings())

    def of_free(self: S, logits: Tensor) -> S:
        """The same structure at numbers that nothing ties together, in the shape of the logits: what a guide learns."""
        return self.like(logits)

    def _settings(self) -> dict[str, Any]:
        """What `__init__` takes besides the logits."""
        return {}

    def same_values(self, other: Structure) -> bool:
        """Whether another structure is of the same class, and has the same values: settings and sizes are alike."""
        if type(self) is not type(other) or self.event_shape != other.event_shape:
            return False
        own, others = self._settings(), other._settings()
        return all(one is others[name] or bool(torch.tensor(one == others[name]).all()) for name, one in own.items())

    def expand(self: S, batch_shape: Sequence[int], _instance: Any = None) -> S:
        param = self.logits.shape[self.logits.dim() - self.param_dim :]
        wide = self.like(self.logits.expand(torch.Size(batch_shape) + param))
        wide._validate_args = self._validate_args
        return wide

    def sample(self, sample_shape: Sequence[int] = ()) -> Tensor:
        _ = self.tables  # made outside of `no_grad`, so that a score finds them
        with torch.no_grad():
            return self._draw(torch.Size(sample_shape) + self.batch_shape)

    def _draw(self, shape: torch.Size) -> Tensor:
        """Values `[*shape, *event]`, where `shape` ends in the batch shape."""
        raise NotImplementedError

    @property
    def cardinality(self) -> float:
        """The number of values, by formula; inf where no float holds it."""
        raise NotImplementedError

    def _support_list(self) -> Tensor:
        """All values, `[V, *event]`."""
        raise NotImplementedError

    def enumerate_support(self, expand: bool = True) -> Tensor:
        """All values, `[V, *batch, *event]` or (`expand=False`) with batch dims of size 1."""
        if self.cardinality > LARGEST_SUPPORT:
            raise EnumerationError(
                f"{type(self).__name__} has {self.cardinality:.4g} values, more than the {LARGEST_SUPPORT} that are "
                "listed. Take an estimator that draws, such as 'rloo'."
            )
        every = self._support_list().to(self.logits.device)
        every = every.reshape(every.shape[:1] + (1,) * len(self.batch_shape) + self.event_shape)
        return every.expand(every.shape[:1] + self.batch_shape + self.event_shape) if expand else every

    # ------------------------------------------------------------------------------------------------- what it can do

    @classmethod
    def defines(cls, *names: str) -> bool:
        """Whether the class has these capabilities: it writes each of these methods, or a class between does.

        >>> from pyro_discrete.distributions import PlackettLuce
        >>> PlackettLuce.defines("perturb", "perturb_given"), PlackettLuce.defines("marginals")
        (True, False)
        """
        return all(getattr(cls, name, None) is not getattr(Structure, name, None) for name in names)

    def _lacks(self, what: str) -> UnsupportedSiteError:
        return UnsupportedSiteError(f"{type(self).__name__} has no {what}.")

    @property
    def vertex_shape(self) -> torch.Size:
        """Shape of one value's vertex."""
        raise NotImplementedError

    @property
    def possible(self) -> Tensor:
        """Which coordinates of a vertex can be one: `[*batch, *vertex]`."""
        return torch.ones(self.batch_shape + self.vertex_shape, dtype=torch.bool, device=self.logits.device)

    def vertex(self, value: Tensor) -> Tensor:
        """A value's indicators, `[..., *vertex]`, in the logits' dtype."""
        raise NotImplementedError

    def value_of(self, vertex: Tensor) -> Tensor:
        """The value whose vertex this is."""
        raise NotImplementedError

    def log_mass(self, vertex: Tensor) -> Tensor:
        """`log_prob` of the value at a vertex, and a smooth function between vertices: `[...]`."""
        raise self._lacks("log-mass between its values")

    def perturb(self) -> Tensor:
        """Noise that stands for a value, `[*batch, M]`: differentiable in the logits, with what is drawn held."""
        raise self._lacks("noise that stands for a value")

    def read(self, noise: Tensor) -> Tensor:
        """The value that noise stands for: `[..., *event]`, of `[..., M]`."""
        raise self._lacks("noise that stands for a value")

    def perturb_given(self, value: Tensor) -> Tensor:
        """Noise given that it stands for this value, `[..., M]`: differentiable in the logits."""
        raise self._lacks("noise given a value")

    def soft(self, noise: Tensor, temperature: Tensor | float) -> Tensor:
        """A soft vertex `[..., *vertex]` of noise `[..., M]`; its limit at temperature 0 is the vertex of `read`."""
        raise self._lacks("soft value")

    def marginals(self) -> Tensor:
        """The mean of the vertex: `[*batch, *vertex]`."""
        raise self._lacks("marginals")

    def index_weights(self, vertex: Tensor) -> Tensor:
        """Of a soft vertex the weights of a value's integers, `[..., *event, integers]`, if `soft_value` is "index"."""
        return vertex

    @property
    def numbers(self) -> int:
        """How many numbers may stand at a place of a value: 0, 1, ... less than this."""
        raise self._lacks("sums with weights of places and numbers")

    def weighted(self, weights: Tensor) -> tuple[GibbsStructure, Tensor]:
        r"""Of an exponential family the same values, each as much more probable as its numbers weigh at their places.

        .. math:: p'(z) \propto \exp\big(\langle \mathrm{vertex}(z), \mathrm{logits} \rangle + \sum_i w_{i, z_i}\big)

        - `weights` `[*batch, places, numbers]`.

        Returns the structure, and what is to be added to its `log_partition` `[*batch]` for the log of the sum of these
        terms over all values. Structures whose parts say which number stands where have it: each place of a value adds
        to one of their logits.
        """
        raise self._lacks("sums with weights of places and numbers")

    def weighted_pairs(self, weights: Tensor) -> GibbsStructure:
        """The same values, each as much more probable as the pairs of numbers at its consecutive places weigh.

        - `weights` `[*batch, places - 1, numbers, numbers]`: of the number at a place, and of that at the next one.

        Chains have it, whose parts such pairs are. What is lost or gained of the sum is in `log_partition`.
        """
        raise self._lacks("sums with weights of pairs of numbers")

    def argmax(self, scores: Tensor) -> Tensor:
        """The value of the largest total of scores, which are like the logits."""
        raise self._lacks("best value that can be found")

    @property
    def mode(self) -> Tensor:
        """The most probable value."""
        return self.argmax(self.logits.detach())

    def top_k(self, k: int) -> Tensor:
        """The k most probable values, `[k, *batch, *event]`, the best first.

        Raises `SettingError` unless k is 1 to the number of values that have mass.
        """
        raise self._lacks("list of the k best values")

    def check_top_k(self, k: int) -> None:
        """Raise `SettingError` unless k is a number of values that there are."""
        if not is_whole(k) or k > self.cardinality:
            raise SettingError(f"{type(self).__name__}: the best k={k!r} asked for, of {self.cardinality:.4g} values.")

    @classmethod
    def small(cls) -> list[Structure]:
        """Small instances, of some 30 values at most, that `check_structure` looks at."""
        raise NotImplementedError

    # -------------------------------------------------------------------------------------------------------- tables

    def _make_tables(self, logits: Tensor) -> tuple[Tensor, ...]:
        """What draws and scores share, each tensor with the batch dims of these logits first."""
        return ()

    @property
    def tables(self) -> tuple[Tensor, ...]:
        """What `_make_tables` gives, kept on the instance: made anew where logits were written to or gradients are due.

        A backward pass that goes through them, and may have freed what they need for another, empties the store.
        """
        logits = self.logits
        version = None if logits.is_inference() else logits._version
        tracked = torch.is_grad_enabled() and logits.requires_grad
        if self._kept is None or self._kept[0] != version or self._kept[1] < tracked:
            if tracked:
                entry = logits.view_as(logits)
                own = weakref.ref(self)
                entry.register_hook(lambda _: _forget(own))
                made = self._make_tables(entry)
            else:
                made = self._of_distinct(logits)
            self._kept = version, tracked, made
        return self._kept[2]

    def _of_distinct(self, logits: Tensor) -> tuple[Tensor, ...]:
        """The tables, where no gradients are due: made once for elements that `expand` repeats."""
        batch = logits.shape[: logits.dim() - self.param_dim]
        narrow = logits
        for dim in range(len(batch)):
            if batch[dim] > 1 and logits.stride(dim) == 0:
                narrow = narrow.narrow(dim, 0, 1)
        made = self._make_tables(narrow)
        if narrow is logits:
            return made
        return tuple(table.expand(batch + table.shape[len(batch) :]) for table in made)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_kept": None}


def _shape_of(logits: object) -> object:
    return list(logits.shape) if isinstance(logits, Tensor) else shown(logits)


def first_element(which: Tensor) -> str:
    """Where this batch of conditions first holds, in words for a message; nothing if it is a single one."""
    return f" in element {tuple(which.nonzero()[0].tolist())}" if which.dim() else ""


def _forget(reference: Any) -> None:
    structure = reference()
    if structure is not None:
        structure._kept = None


class GibbsStructure(Structure):
    r"""A structure whose log-probability is linear in the vertex: an exponential family.

    .. math:: \log p(z) = \langle \mathrm{vertex}(z), \mathrm{logits} \rangle - \log Z(\mathrm{logits})

    Vertices have the shape of the logits. A subclass writes `log_partition`; marginals are its gradient, and
    entropies and divergences follow from them.
    """

    @property
    def log_partition(self) -> Tensor:
        """log Z, `[*batch]`, differentiable (twice) in the logits: by default the first of `tables`."""
        return self.tables[0]

    def _check_logits(self) -> None:
        super()._check_logits()
        empty = self.log_partition.detach() == -math.inf
        if bool(empty.any()):
            raise SettingError(f"{type(self).__name__}: no value has mass{first_element(empty)}; {self._no_mass()}")

    def _no_mass(self) -> str:
        """Which logits of -inf leave nothing, for a message."""
        return "fewer logits of -inf expected."

    @property
    def vertex_shape(self) -> torch.Size:
        return self.logits.shape[self.logits.dim() - self.param_dim :]

    @property
    def possible(self) -> Tensor:
        return self.logits > -math.inf

    def weight(self, vertex: Tensor) -> Tensor:
        """Inner product of vertices and logits, `[...]`; a weight of zero at a logit of -inf makes zero."""
        read = vertex != 0
        term = vertex * torch.where(read, self.logits, 0.0)
        return term.flatten(term.dim() - self.param_dim).sum(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        if self._validate_args:
            self._validate_sample(value)
        return self.log_mass(self.vertex(value))

    def log_mass(self, vertex: Tensor) -> Tensor:
        return self.weight(vertex) - self.log_partition

    def place_marginals(self) -> Tensor:
        """How probable each number is at each place: `[*batch, places, numbers]`."""
        marginals = self.marginals()
        if self.soft_value == "weights":
            return torch.stack([1 - marginals, marginals], -1)
        return self.index_weights(marginals)

    @property
    def work(self) -> int:
        """About how many numbers a log-partition goes through."""
        return self.vertex_shape.numel()

    def marginals(self) -> Tensor:
        tracked = self.logits.requires_grad and torch.is_grad_enabled()
        with torch.enable_grad():
            at = self if tracked else self.like(self.logits.detach().requires_grad_())
            total, kept = at.log_partition.sum(), at._kept
            (found,) = torch.autograd.grad(total, at.logits, create_graph=tracked, retain_graph=True)
            at._kept = kept  # nothing was freed
        return found

    def cross_entropy(self, other: GibbsStructure) -> Tensor:
        """`E_self[-log other]`, `[*batch]`."""
        return -other.log_mass(self.marginals())

    def entropy(self) -> Tensor:
        return self.cross_entropy(self)

    def kl(self, other: GibbsStructure) -> Tensor:
        """KL divergence to another with the same values, `[*batch]`. Raises `SettingError` for any other."""
        if not self.same_values(other):
            raise SettingError(
                f"{type(self).__name__}: the divergence to {other} asked for, one of the same class, sizes and "
                "settings expected."
            )
        return self.cross_entropy(other) - self.entropy()


@register_kl(GibbsStructure, GibbsStructure)
def _kl(p: GibbsStructure, q: GibbsStructure) -> Tensor:
    if not p.same_values(q):
        raise NotImplementedError
    return p.kl(q)
