"""What a site's baseline may read: the data, aligned with the site's plates."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from pyro.poutine import Trace
from torch import Tensor

from pyro_discrete.distributions.structure import Structure
from pyro_discrete.errors import SettingError, near_matches
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.programs.dims import Frames, plates_of
from pyro_discrete.programs.sites import base_distribution, sample_sites

__all__ = [
    "Contexts",
    "features_of",
]


def features_of(msg: Any) -> Tensor:
    """An observed value as floating features `[*batch, features]`: its numbers, in a row.

    A structure's integers are names (of items, states, parents), not sizes: each has indicators, as in its vertex.
    """
    value, event_dim = msg["value"].detach(), msg["fn"].event_dim
    batch = value.shape[: value.dim() - event_dim]
    structure = base_distribution(msg["fn"])
    if isinstance(structure, Structure) and structure.soft_value == "index":
        value = structure.index_weights(structure.vertex(value)).detach()
    elif not value.is_floating_point():
        value = value.to(torch.get_default_dtype())
    return value.reshape(*batch, -1)


class Contexts:
    """Baseline inputs of one step; sites in the same plates share them."""

    def __init__(
        self,
        model_trace: Trace,
        observed: Mapping[str, int],
        batch_dims: int,
        args: tuple[Any, ...],
        kwargs: Mapping[str, Any],
    ) -> None:
        self.model_trace: Trace = model_trace
        self.observed: Mapping[str, int] = observed
        self.batch_dims: int = batch_dims
        self.args: tuple[Any, ...] = args
        self.kwargs: Mapping[str, Any] = kwargs
        self._made: dict[tuple[str | None, Frames], Tensor | None] = {}

    def of(self, name: str, estimator: Estimator, plates: Frames) -> Tensor | None:
        """`[1, *batch, features]` for the named site, None if there is nothing to read."""
        if not estimator.reads_context:
            return None
        source = estimator.input
        if callable(source):
            return self._given(name, source(*self.args, **self.kwargs))
        key = (source, plates)
        if key not in self._made:
            if source is not None and source not in self.observed:
                raise SettingError(
                    f"Estimator {estimator.name!r} of site {name!r} is to read input={source!r}, which is not an "
                    f"observed site whose value is free of latent draws. {near_matches(source, self.observed)}"
                )
            self._made[key] = self._data([source] if source is not None else list(self.observed), plates)
        return self._made[key]

    def _given(self, name: str, value: Any) -> Tensor:
        """What an `input` function returned, `[*plates, features]`, with a leading dim and the missing batch dims."""
        if not torch.is_tensor(value) or value.dim() < 1 or value.dim() > 1 + self.batch_dims:
            got = tuple(value.shape) if torch.is_tensor(value) else type(value).__name__
            raise SettingError(
                f"The input function of site {name!r}'s estimator returned {got}; a tensor [*plates, features] with "
                f"at most {self.batch_dims} plate dims is expected."
            )
        return value.detach().reshape((1,) * (2 + self.batch_dims - value.dim()) + tuple(value.shape))

    def _data(self, names: Sequence[str], plates: Frames) -> Tensor | None:
        known = sample_sites(self.model_trace)
        parts = [self._aligned(known[n], plates) for n in names if n in known]
        if not parts:
            return None
        batch = torch.broadcast_shapes(*(p.shape[:-1] for p in parts))
        present = iter(p.expand(*batch, p.shape[-1]) for p in parts)
        # a site that this run does not have leaves zeros, so that the input keeps its size
        return torch.cat(
            [next(present) if n in known else parts[0].new_zeros(*batch, self.observed[n]) for n in names], -1
        )

    def _aligned(self, msg: Any, plates: Frames) -> Tensor:
        """An observed value as `[1, *batch, features]`, averaged over plates that the reader is not in."""
        value = features_of(msg)
        value = value.reshape((1,) * (2 + self.batch_dims - value.dim()) + tuple(value.shape)).nan_to_num()
        for plate in plates_of(msg):
            if plate.dim is not None and plate not in plates and value.shape[plate.dim - 1] > 1:
                value = value.mean(plate.dim - 1, keepdim=True)
        return value
