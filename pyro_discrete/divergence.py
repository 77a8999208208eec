"""The KL terms of a bound: in closed form where a site has one, and weighed while they are annealed."""

from __future__ import annotations

from typing import Any

import torch
from pyro.distributions import Delta, Unit
from pyro.distributions.torch_distribution import MaskedDistribution
from pyro.distributions.util import scale_and_mask
from torch import Tensor
from torch.distributions import Independent, kl_divergence

from pyro_discrete.errors import SiteMatchError
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.programs.dims import plates_of
from pyro_discrete.programs.pair import SiteMessenger
from pyro_discrete.programs.sites import base_distribution, is_latent
from pyro_discrete.relaxations.relaxed_distribution import Relaxed, rebuilt
from pyro_discrete.sums.marginalisation import Known

__all__ = ["RewardAlone", "WeighDivergence", "closed_divergence"]


def closed_divergence(name: str, guide: Any, model: Any | None, dependencies: Dependencies) -> Tensor | str:
    r"""A site's KL term with its scales and masks, `[*batch]`, or why it is not put in closed form.

    .. math:: E_{q(z \mid u)}[\log q(z \mid u) - \log p(z \mid v)] = KL(q(\cdot \mid u) \,\|\, p(\cdot \mid v))

    holds if neither u nor v depends on z: a prior that reads what the guide draws from z keeps its sampled term. Where
    the guide's scale s and mask are not those of the model's, the terms weigh differently: s_q E[log q] - s_p E[log p]
    is s_p (KL + H) - s_q H, with the entropy H of q. Where the model has no such term it is -s_q H alone.

    - `guide`, `model`: the site in either trace.
    """
    if not is_latent(guide) or (model is not None and not is_latent(model)):
        return "not latent in both"
    if model is not None:
        if not dependencies.known:
            return f"its prior may depend on what was drawn from it: {dependencies.reason}"
        if name in dependencies.parameters.get(("model", name), ()):
            return "its prior depends on what the guide draws from it"
        if plates_of(guide) != plates_of(model):
            return "in other plates in the model"
        if isinstance(model["fn"], Known):
            return "its prior depends on a site of the model alone, which is summed out"
    q = _plain(guide["fn"])
    p = q if model is None else _plain(model["fn"])
    if isinstance(base_distribution(q), Delta | Unit):
        return "no distribution to integrate over"
    if _masked(q) or _masked(p):
        return "masked inside its distribution"
    try:
        return _weighed(guide, q, model, p)
    except NotImplementedError:
        return f"no closed form for {type(base_distribution(q)).__name__} and {type(base_distribution(p)).__name__}"


def _weighed(guide: Any, q: Any, model: Any | None, p: Any) -> Tensor:
    if model is None:
        return -scale_and_mask(q.entropy(), guide["scale"], guide["mask"])
    if q.batch_shape != p.batch_shape:  # torch's formulas index one side by a mask of the other
        shape = torch.broadcast_shapes(q.batch_shape, p.batch_shape)
        q, p = q.expand(shape), p.expand(shape)
    divergence = kl_divergence(q, p)
    if _same(guide["scale"], model["scale"]) and guide["mask"] is model["mask"]:
        return scale_and_mask(divergence, guide["scale"], guide["mask"])
    entropy = q.entropy()
    crossed = scale_and_mask(divergence + entropy, model["scale"], model["mask"])
    return crossed - scale_and_mask(entropy, guide["scale"], guide["mask"])


def _plain(fn: Any) -> Any:
    """A distribution as it was before it was extended to soft values."""
    if isinstance(base_distribution(fn), Relaxed):
        return rebuilt(fn, lambda base: base.base)
    return fn


def _masked(fn: Any) -> bool:
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return isinstance(fn, MaskedDistribution)


def _same(one: Any, other: Any) -> bool:
    return one is other or (isinstance(one, int | float) and isinstance(other, int | float) and one == other)


class WeighDivergence(SiteMessenger):
    """Multiplies the terms of the sites that the guide draws, in guide and model, by a weight `[]`.

    To go around the guide first, then `around_model()` around the model that is run against it.
    """

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = weight
        self.scales: dict[str, tuple[Any, Any]] = {}

    def _pyro_sample(self, msg: Any) -> None:
        if is_latent(msg):
            # one tensor for guide and model, so that they are seen to be weighed alike
            self.scales[msg["name"]] = msg["scale"], msg["scale"] * self.weight
            msg["scale"] = self.scales[msg["name"]][1]

    def around_model(self) -> SiteMessenger:
        """The handler for the model."""
        return _WeighModel(self)


class _WeighModel(SiteMessenger):
    def __init__(self, guide: WeighDivergence) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        known = self.guide.scales.get(msg["name"])
        if known is not None and is_latent(msg):
            msg["scale"] = known[1] if _same(known[0], msg["scale"]) else msg["scale"] * self.guide.weight


class RewardAlone(SiteMessenger):
    """Leaves out the terms of latent sites, in guide and model; in the guide with a weight for its entropy, if any.

    Sites of the guide need not be in the model. Used as `WeighDivergence` is.
    """

    def __init__(self, entropy_weight: Tensor | None = None) -> None:
        super().__init__()
        self.entropy_weight = entropy_weight
        self.drawn: set[str] = set()

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        self.drawn.add(msg["name"])
        msg["infer"] = {**msg["infer"], "is_auxiliary": True}
        if self.entropy_weight is None:
            msg["mask"] = False
        else:
            msg["scale"] = msg["scale"] * self.entropy_weight

    def around_model(self) -> SiteMessenger:
        """The handler for the model."""
        return _RewardOfModel(self)


class _RewardOfModel(SiteMessenger):
    def __init__(self, guide: RewardAlone) -> None:
        super().__init__()
        self.guide = guide

    def _pyro_sample(self, msg: Any) -> None:
        if not is_latent(msg):
            return
        if msg["name"] not in self.guide.drawn:
            raise SiteMatchError(
                f"Site {msg['name']!r} is latent in the model but not drawn in the guide, whose draws are what "
                "TraceExpectation takes the mean over. Draw it in the guide too, from the distribution that it is to "
                "have there (the model's does not count)."
            )
        msg["mask"] = False
