"""What is said where a program does to a relaxed value what only a hard one allows."""

from __future__ import annotations

from typing import Any

from pyro_discrete.errors import RelaxationError

__all__ = ["NUMBER", "WRITE", "refusal"]

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
