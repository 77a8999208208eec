"""Pyro's way of asking an ELBO for the posterior of what it sums out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import torch

from pyro_discrete.posterior.discrete_posterior import PosteriorRuns, answered, outside_of_inference_mode
from pyro_discrete.programs.pair import Pair, Substitute
from pyro_discrete.sums.elimination import random_value

__all__ = [
    "PosteriorMethods",
]


DRAWS = 100


class PosteriorMethods:
    """The methods of Pyro's `TraceEnum_ELBO` for discrete sites of the model alone: see `DiscretePosterior` for more.

    What the ELBO maximises, and by which estimator, has no say in them.
    """

    @outside_of_inference_mode
    def compute_marginals(
        self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any
    ) -> OrderedDict[str, Any]:
        """Each discrete site of the model alone -> its marginal distribution given the data, averaged over 100 draws of
        the guide (Pyro takes one); exact where the guide draws nothing. `DiscretePosterior.marginals` has the guide's
        sites too, and any number of draws."""
        pair = Pair(model, guide, args, kwargs)
        return OrderedDict(answered(pair, DRAWS, lambda runs: runs.own_marginals(DRAWS)))

    @outside_of_inference_mode
    def sample_posterior(self, model: Callable[..., Any], guide: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        """Run the model with one joint draw of the guide's sites and, given these and the data, of its own discrete
        ones. Returns what the model returns, as in Pyro (a trace around has the sites); of a model that returns
        nothing, the draws by site. `DiscretePosterior.samples` gives many at once."""

        def drawn(runs: PosteriorRuns) -> Any:
            runs.check_runs()
            part = runs.of_one_draw(random_value, runs.pair.guide, {})
            values = {n: v[0] for n, v in (part.draws | part.decoded()).items()}
            with torch.no_grad():
                result = Substitute(values)(runs.trial.subsamples(model))(*args, **kwargs)
            return values if result is None else result

        return answered(Pair(model, guide, args, kwargs), 1, drawn)
