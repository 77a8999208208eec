"""The mean of a reward: the model's factors and observed terms alone, with a weight on the guide's entropy."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from pyro_discrete.errors import SiteMatchError
from pyro_discrete.estimators.base import Estimator
from pyro_discrete.objectives.base import Objective
from pyro_discrete.objectives.evidence import EvidenceBound
from pyro_discrete.programs.pair import Pair, SiteMessenger
from pyro_discrete.programs.sites import is_latent

__all__ = [
    "RewardAlone",
]


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


class ExpectedReward(EvidenceBound):
    """f(z) is the model's factors and observed terms alone; in training, with a weight on the guide's entropy."""

    name = "TraceExpectation"

    def __init__(self) -> None:
        super().__init__(analytic_kl=True)

    def around(self, pair: Pair, training: bool) -> Pair:
        """The pair without the terms of its latent sites, but for the entropy in training."""
        alone = RewardAlone(self.weight if training else None)
        return replace(pair, guide=alone(pair.guide), model=alone.around_model()(pair.model))

    def check_estimator(self, estimator: Estimator, where: str, particles: int) -> None:
        """Whatever scores a relaxed prior, none counts here."""
        Objective.check_estimator(self, estimator, where, particles)

    def notes(self, guide_trace: Any, model_trace: Any, dependencies: Any) -> dict[str, str]:
        """Which sites have their entropy in closed form, where it has a weight."""
        if self.weight is None:
            return {}
        notes = super().notes(guide_trace, model_trace, dependencies)
        return {name: note.replace("KL term", "entropy") for name, note in notes.items()}
