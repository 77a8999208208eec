"""The relaxed value of an integer or a bit, and what is said where a program does what only a hard one allows."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import torch
from pyro.ops.provenance import extract_provenance, track_provenance
from torch import Tensor

from pyro_discrete.draws.soft_scores import expectation
from pyro_discrete.errors import RelaxationError

__all__ = [
    "NUMBER",
    "WRITE",
    "Handler",
    "SoftBit",
    "SoftIndex",
    "first_soft",
    "functions",
    "handles",
    "is_soft",
    "refusal",
    "shaped",
]


NUMBER = (
    "A relaxed value is no single number: Python control flow, `range` and list indices need one. Use torch.where, or "
    "look it up in a table (`table[z]`)"
)


WRITE = "A relaxed value is neither written in place nor into a tensor. Use torch.stack, torch.cat or torch.where"

_REMEDIES = {
    "item": NUMBER,
    "numpy": "A relaxed value is no single number that NumPy could hold. Stay with torch",
    "mask": "Elements cannot be picked by a relaxed condition. Use torch.where(condition, a, b), or multiply by it",
    "write": WRITE,
    "scatter": "Use F.one_hot(z, K) and sums or products of it",
}


_REASONS: dict[str, str] = {
    name: reason
    for reason, names in {
        "item": "item tolist __bool__ __int__ __index__ __float__ __complex__ __contains__ is_nonzero equal allclose "
        "aten._local_scalar_dense.default",
        "numpy": "numpy __array__ __dlpack__",
        "mask": "masked_select nonzero masked_fill masked_scatter argwhere",
        "write": "__setitem__ copy_ index_put index_put_ fill_ index_copy set_",
        "scatter": "scatter scatter_ scatter_add scatter_add_ index_add index_add_ bincount unique",
    }.items()
    for name in names.split()
}


def refusal(z: Any, operation: str, remedy: str | None = None) -> RelaxationError:
    """The error for an operation on a soft index that it cannot do."""
    in_place = operation.endswith("_") and not operation.startswith("__")
    remedy = remedy or _REMEDIES.get(_REASONS.get(operation, "write" if in_place else ""), "")
    remedy = remedy or (
        "Look it up in a table (`table[z]`), compare it with a constant (`z == 1`), take F.one_hot(z, K) or z.float() "
        "of it"
    )
    shown = operation if operation.endswith((")", "]")) else f"{operation}()"
    return RelaxationError(
        f"Site {z.site!r} has a relaxed value, and {shown} of it is not defined. {remedy}; or choose an "
        "estimator of hard draws for the site ('rloo', 'nvil')."
    )


Handler = Callable[..., Any]


_HANDLERS: dict[Any, Handler] = {}


def handles(*functions: Any) -> Callable[[Handler], Handler]:
    """Register what a torch function, called as `handler(function, *args, **kwargs)`, does to soft indices."""

    def register(handler: Handler) -> Handler:
        _HANDLERS.update(dict.fromkeys(functions, handler))
        return handler

    return register


def functions(names: str, *owners: Any) -> tuple[Any, ...]:
    """The functions of these names that the owners (torch, Tensor) have."""
    return tuple(getattr(owner, name) for owner in owners for name in names.split() if hasattr(owner, name))


class SoftIndex(Tensor):
    r"""The relaxed value of an integer site: a tensor of the integer's shape and dtype that holds weights.

    Element i stands for value `values[k]` with weight :math:`w_{ik}`. Wherever a Pyro program uses an integer, the
    result is the mixture :math:`\sum_k w_{ik} f(k)` of the integers' results - `table[z]` is `weights @ table` - so
    that at the corners of the simplex it is what the integer gives, and gradients reach the weights.

    - Looked up: `table[z]`, `table[..., z, :]`, `Vindex`, `F.embedding`, `gather`, `index_select`, `take_along_dim`,
      `take`, `F.one_hot`; several soft indices at once give the mixture over all their combinations.
    - Compared and computed with: `z == 1`, `z + 1`, `z % 2` are soft themselves; `torch.where(z == 1, a, b)` mixes.
      A floating result (`0.5 * z`, `z.float()`, `z.sum()`) is its expectation.
    - Moved: `reshape`, `unsqueeze`, `expand`, `stack`, `cat`, slices ... as any tensor; integers stacked with it count
      as weights of one.
    - As a mask or condition: `(z == 1)` times a number, `torch.where`, `poutine.mask`.
    - A site of counts has floating values: it takes part in any floating arithmetic as its expectation, and is soft
      where it is compared or turned into integers.

    Everything else (control flow, NumPy, `x[z == 1]`, in-place writes) raises `RelaxationError`, which names the site,
    the operation and what to write instead. Programs get soft indices from relaxed estimators and from `relax`; one's
    own code need not make any.

    - `weights` `[*shape, K]`, on the simplex. `values` `[K]` or `[*shape, K]`, by default 0, ..., K-1. `site`: for
      messages. `vertex`: where the index is a structure's, as it was drawn: the soft vertex that it was made of.

    >>> import torch
    >>> z = SoftIndex(torch.tensor([[0.25, 0.75], [1.0, 0.0]]))
    >>> z.shape, z.dtype
    (torch.Size([2]), torch.int64)
    >>> torch.tensor([10.0, 20.0])[z]
    tensor([17.5000, 10.0000])
    >>> (z == 1).float()
    tensor([0.7500, 0.0000])
    """

    weights: Tensor
    values: Tensor
    site: str
    counts_up: bool
    vertex: Tensor | None = None
    from_bit = False

    @staticmethod
    def __new__(cls, weights: Tensor, values: Tensor | None = None, site: str = "?") -> SoftIndex:
        counts_up = values is None
        if values is None:
            values = torch.arange(weights.shape[-1], device=weights.device)
        elif values.dim() > 1:
            weights, values = torch.broadcast_tensors(weights, values)
        shape, device = weights.shape[:-1], weights.device
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=values.dtype, device=device)  # type: ignore[attr-defined]
        self.weights, self.values, self.site, self.counts_up = weights, values, site, counts_up
        return self

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        """All is done in `__new__`."""

    def like(self, weights: Tensor, values: Tensor | None = None) -> SoftIndex:
        """A soft index of the same site."""
        made = SoftIndex(weights, values, self.site)
        made.from_bit = self.from_bit
        return made

    def expectation(self) -> Tensor:
        """`sum_k w_k values_k`, differentiable in the weights."""
        return expectation(self.weights, self.values)

    def hard(self) -> Tensor:
        """The value of greatest weight: a plain tensor."""
        index = self.weights.argmax(-1, keepdim=True)
        return self.values.expand(self.weights.shape).gather(-1, index).squeeze(-1)

    def __repr__(self, **kwargs: Any) -> str:  # type: ignore[override]
        return f"SoftIndex(shape={tuple(self.shape)}, values={self.weights.shape[-1]}, site={self.site!r})"

    def __format__(self, format_spec: str) -> str:
        return repr(self)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SoftIndex, (self.weights, None if self.counts_up else self.values, self.site)

    def __deepcopy__(self, memo: Any) -> SoftIndex:
        make, (weights, values, site) = self.__reduce_ex__(2)
        return make(copy.deepcopy(weights, memo), values, site)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if kwargs.get("out") is not None:
            raise refusal(first_soft(args, kwargs), f"{_name(func)}(out=)", WRITE)
        handler = _HANDLERS.get(func)
        if handler is not None:
            return handler(func, *args, **kwargs)
        found = first_soft(args, kwargs)
        if found.is_floating_point():  # a count or a bit: its expectation takes its place
            return func(*_averaged(args), **_averaged(kwargs))
        raise refusal(found, _name(func))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        # reached only from C++ that passes by the above
        if func is torch.ops.aten.detach.default:
            return shaped(args[0], Tensor.detach)
        if func is torch.ops.aten.alias.default:
            return args[0]
        raise refusal(first_soft(args, kwargs or {}), str(func))


class SoftBit(SoftIndex):
    """The relaxed value of a Bernoulli site: a floating tensor between zero and one in all that takes one.

    Turned into integers or conditions (`z.long()`, `z.bool()`, `z == 1`) it is soft, where a plain number would be cut
    down to zero. `<` and its like compare the number.

    - `mean` `[*shape]`: the relaxed value. `site`: for messages.

    >>> import torch
    >>> z = SoftBit(torch.tensor([0.25, 1.0]))
    >>> 2 * z
    tensor([0.5000, 2.0000])
    >>> torch.tensor([10.0, 20.0])[z.long()]
    tensor([12.5000, 20.0000])
    """

    from_bit = True
    _mean: Tensor
    _weights: Tensor | None

    @staticmethod
    def __new__(cls, mean: Tensor, site: str = "?") -> SoftBit:
        shape, dtype = mean.shape, mean.dtype
        self = Tensor._make_wrapper_subclass(cls, shape, dtype=dtype, device=mean.device)  # type: ignore[attr-defined]
        self._mean, self._weights, self.site, self.counts_up = mean, None, site, False
        return self

    @property
    def weights(self) -> Tensor:  # type: ignore[override]
        """Of zero and of one, `[*shape, 2]`."""
        if self._weights is None:
            self._weights = torch.stack([1 - self._mean, self._mean], -1)
        return self._weights

    @property
    def values(self) -> Tensor:  # type: ignore[override]
        """Zero and one."""
        return torch.arange(2, device=self._mean.device).to(self._mean.dtype)

    def expectation(self) -> Tensor:
        return self._mean

    def __reduce_ex__(self, protocol: Any) -> Any:
        return SoftBit, (self._mean, self.site)

    def __deepcopy__(self, memo: Any) -> SoftBit:
        return SoftBit(copy.deepcopy(self._mean, memo), self.site)


def is_soft(value: Any) -> bool:
    """Whether a value is a soft index."""
    return isinstance(value, SoftIndex)


def shaped(z: SoftIndex, change: Callable[[Tensor], Tensor]) -> SoftIndex:
    """`z` with its weights, and values that differ between elements, reshaped alike."""
    if isinstance(z, SoftBit):
        return SoftBit(change(z.expectation().unsqueeze(-1)).squeeze(-1), z.site)
    weights = change(z.weights)
    if weights is z.weights:
        return z
    if z.values.dim() > 1:
        return z.like(weights, change(z.values))
    return z.like(weights, None if z.counts_up else z.values)


def _name(func: Any) -> str:
    name = getattr(func, "__name__", str(func))
    return getattr(getattr(func, "__self__", None), "__name__", name) if name == "__get__" else name


def first_soft(args: Any, kwargs: Any) -> SoftIndex:
    """The first soft index among the arguments of a call."""
    stack = [args, kwargs]
    while stack:
        each = stack.pop(0)
        if isinstance(each, SoftIndex):
            return each
        if isinstance(each, dict):
            stack.extend(each.values())
        elif isinstance(each, list | tuple):
            stack.extend(each)
    raise RuntimeError("a call without a soft index came to SoftIndex")


def _averaged(args: Any) -> Any:
    """The arguments of a call with counts as their expectation; integers in them are refused by the call itself."""
    if isinstance(args, SoftIndex):
        return args.expectation() if args.is_floating_point() else args
    if isinstance(args, dict):
        return {name: _averaged(each) for name, each in args.items()}
    return type(args)(map(_averaged, args)) if type(args) in (list, tuple) else args


@handles(
    *(each.__get__ for each in functions("shape dtype device ndim layout is_leaf grad is_sparse", Tensor)),
    *(each.__get__ for each in functions("is_nested is_quantized is_meta is_cuda itemsize", Tensor)),
    *functions("size dim ndimension numel nelement __len__ __hash__ get_device", Tensor),
    *functions("element_size is_contiguous is_floating_point is_complex is_signed", Tensor),
    *functions("is_floating_point is_complex is_signed numel is_tensor", torch),
)
def _of_the_integer(func: Any, *args: Any, **kwargs: Any) -> Any:
    with torch._C.DisableTorchFunctionSubclass():
        return func(*args, **kwargs)


@handles(Tensor.requires_grad.__get__, Tensor.grad_fn.__get__)  # type: ignore[attr-defined]
def _of_the_weights(func: Any, z: SoftIndex) -> Any:
    return func(z.expectation() if isinstance(z, SoftBit) else z.weights)


@handles(Tensor.__bool__, Tensor.item)
def _single(func: Any, z: SoftIndex) -> Any:
    """A bit that is hard in its forward value may be asked for it, as any number; others have no single value."""
    if isinstance(z, SoftBit):
        return func(z.expectation())
    if z.from_bit and bool(((z.weights == 0) | (z.weights == 1)).all()):
        return func(z.hard())
    raise refusal(z, func.__name__)


@handles(
    *(
        getattr(torch, name)
        for name in ["zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like"]
    )
)
def _filled_like(func: Any, z: SoftIndex, *args: Any, **kwargs: Any) -> Tensor:
    return func(torch.empty(z.shape, dtype=z.dtype, device=z.weights.device), *args, **kwargs)


@handles(*functions("new_zeros new_ones new_full new_empty new_tensor", Tensor))
def _new(func: Any, z: SoftIndex, *args: Any, **kwargs: Any) -> Tensor:
    return func(torch.empty((), dtype=z.dtype, device=z.weights.device), *args, **kwargs)


@track_provenance.register
def _track(z: SoftIndex, provenance: frozenset) -> SoftIndex:
    if isinstance(z, SoftBit):
        return SoftBit(track_provenance(z.expectation(), provenance), z.site)
    return z.like(track_provenance(z.weights, provenance), None if z.counts_up else z.values)


@extract_provenance.register
def _extract(z: SoftIndex) -> tuple[SoftIndex, frozenset]:
    if isinstance(z, SoftBit):
        mean: Any
        mean, provenance = extract_provenance(z.expectation())
        return SoftBit(mean, z.site), provenance
    weights: Any
    values: Any
    weights, provenance = extract_provenance(z.weights)
    values, more = extract_provenance(z.values)
    return z.like(weights, None if z.counts_up else values), provenance | more
