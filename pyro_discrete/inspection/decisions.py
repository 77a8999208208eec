"""What a program decides by: which values Python sees of its draws and arguments, so that a branch may hang on them.

A plan is of the branches that a trial took. Where Python sees nothing of a tensor, there is no other branch to take.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import pyro
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from pyro_discrete.inspection.dependencies import MarkDraws
from pyro_discrete.inspection.provenance import Provenance
from pyro_discrete.programs.module_state import kept_state
from pyro_discrete.programs.pair import KeepSubsamples, Pair, on_trial, trace_pair

__all__ = ["ARGUMENTS", "contents", "decided_by", "decisions", "words"]

ARGUMENTS = "the arguments"
"""What stands for tensors among a program's arguments, beside the names of draws."""

READ = frozenset((Tensor.numpy, Tensor.tolist, Tensor.__array__))
"""Ways of a tensor into Python that pass the dispatcher by."""


def decided_by(pair: Pair, given: Collection[str] = ()) -> frozenset[str]:
    """The latent sites whose draws Python sees in a run of the pair, and `ARGUMENTS` if it sees a value of theirs.

    A draw that is made given an argument counts as both. `given`: sites that handlers give values, which count as well.

    >>> import pyro, pyro.distributions as dist
    >>> def model(x):
    ...     z = pyro.sample("z", dist.Bernoulli(0.4))
    ...     pyro.sample("x", dist.Normal(1.0 if z.item() else 0.0, 1.0), obs=x)
    >>> sorted(decided_by(Pair(model, lambda x: None, (torch.tensor(0.3),), {})))
    ['z']
    """
    provenance = Provenance()
    unchanged, mark = kept_state(pair.model, pair.guide), MarkDraws(provenance, given)
    with on_trial(), unchanged, pyro.validation_enabled(False), suppress(Exception), provenance, mark:
        for value in tree_leaves((pair.args, dict(pair.kwargs))):
            if isinstance(value, Tensor):
                provenance.mark(value, [ARGUMENTS])
        trace_pair(pair, KeepSubsamples())
    return frozenset(provenance.seen_by_python)


def decisions(pair: Pair) -> tuple[Any, ...]:
    """What Python sees of tensors in one run of the pair, in its order: two runs that see the same take one branch.

    Values alone: by the sizes of what a mask selects programs seldom decide, and plates may change theirs.
    """
    seen: list[Any] = []
    with on_trial(), kept_state(pair.model, pair.guide), pyro.validation_enabled(False), torch.no_grad():
        try:
            with _Ways(seen), _Operations(seen):
                trace_pair(pair, KeepSubsamples())
        except Exception as error:
            seen.append(type(error).__name__)
    return tuple(seen)


class _Operations(TorchDispatchMode):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if torch.Tag.data_dependent_output in func.tags:
            self.seen.append(result)
        return result


class _Ways(TorchFunctionMode):
    def __init__(self, seen: list[Any]) -> None:
        super().__init__()
        self.seen = seen

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in READ:
            self.seen.append(contents(args[0].detach()))
        return func(*args, **(kwargs or {}))


def contents(*values: Any) -> str:
    """A digest of all tensors, flags and words in these; of other numbers only that there are such."""
    digest = hashlib.blake2b(digest_size=16)
    for value in tree_leaves(values):
        if isinstance(value, Tensor) and value.layout is torch.strided:
            digest.update(str((value.dtype, tuple(value.shape))).encode())
            plain = value.detach().resolve_conj().cpu().contiguous()
            digest.update(plain.flatten().view(torch.uint8).numpy().tobytes() if plain.numel() else b"")
        else:
            digest.update(repr(value if isinstance(value, bool | str | None) else type(value)).encode())
    return digest.hexdigest()


def words(arguments: tuple[tuple[Any, ...], Mapping[str, Any]]) -> tuple[Any, ...]:
    """The flags and words among arguments, by which Python may decide at once."""
    return tuple(v for v in tree_leaves(arguments) if isinstance(v, bool | str))
