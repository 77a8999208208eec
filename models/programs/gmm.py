"""A Gaussian mixture: each point belongs to one of a few components."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import pyro
import torch
from pyro.distributions import Categorical, MultivariateNormal
from sklearn.cluster import KMeans
from torch import Tensor, nn

from models.data.dataset import Dataset
from models.data.points import Points
from models.programs.program import LatentClasses, Settings, dense

__all__ = ["GaussianMixture"]

LEAST_SCALE = 0.1
"""Added to the diagonal of each component's scale: without it, a component can shrink onto one point."""


class GaussianMixture(LatentClasses):
    """Site "z": the component of each point; "x": the point, from the component's Gaussian with full covariance.

    - `means` `[components, features]`, `scale_tril` `[components, features, features]`, `shares` `[components]`: where
      the components' means, Cholesky factors of the covariances, and weights start.
    - `hidden`: units of the hidden layers of the guide's network.

    Source: Dempster, Laird and Rubin (1977), Maximum likelihood from incomplete data via the EM algorithm, section 4.3.
    """

    summary = "Gaussian mixture: points of a few clusters"
    reads = Points
    data = "iris"
    defaults: ClassVar = {"categories": 3, "hidden_layers": 1, "hidden_units": 32, "guide": "amortised", "lr": 0.02}

    def __init__(
        self,
        means: Tensor,
        scale_tril: Tensor,
        shares: Tensor,
        hidden: Sequence[int] = (32,),
        guide: str = "amortised",
    ) -> None:
        super().__init__(guide)
        components, features = means.shape
        self.weights = nn.Parameter(shares.log())
        self.means = nn.Parameter(means.clone())
        # The diagonal goes through a softplus, so it starts from its inverse.
        diagonal = scale_tril.diagonal(dim1=-2, dim2=-1) - LEAST_SCALE
        self.scales = nn.Parameter(scale_tril.tril(-1) + diagonal.clamp(min=0.01).expm1().log().diag_embed())
        if not self.marginal:
            self.encoder = dense([features, *hidden, components])

    @classmethod
    def of(cls, config: Settings, data: Dataset) -> GaussianMixture:
        """Start from the clusters of k-means, as is usual for mixtures: neither gradients nor EM leave a bad start."""
        points = data.train
        clusters: Any = KMeans(config.categories, random_state=config.seed).fit(points.numpy())
        member = nn.functional.one_hot(torch.as_tensor(clusters.labels_).long(), config.categories).to(points.dtype)
        counts = member.sum(0)
        means = torch.as_tensor(clusters.cluster_centers_, dtype=points.dtype)
        centred = points - means.unsqueeze(1)  # [components, points, features]
        covariances = centred.mT @ (member.mT.unsqueeze(-1) * centred) / counts.view(-1, 1, 1)
        factors = torch.linalg.cholesky(covariances + LEAST_SCALE**2 * torch.eye(points.shape[1]))
        return cls(means, factors, counts / len(points), config.hidden, config.guide)

    @property
    def scale_tril(self) -> Tensor:
        """Cholesky factors of the covariances, `[components, features, features]`."""
        diagonal = nn.functional.softplus(self.scales.diagonal(dim1=-2, dim2=-1)) + LEAST_SCALE
        return self.scales.tril(-1) + diagonal.diag_embed()

    def model(self, x: Tensor) -> Tensor:
        pyro.module("gaussian_mixture", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", Categorical(logits=self.weights))
            component = MultivariateNormal(self.means[z], scale_tril=self.scale_tril[z])
            return pyro.sample("x", component, obs=x)

    def guide(self, x: Tensor) -> None:
        pyro.module("gaussian_mixture", self)
        if self.marginal:
            return
        with pyro.plate("data", len(x)):
            pyro.sample("z", Categorical(logits=self.encoder(x)))

    def values(self, x: Tensor) -> int:
        return len(self.weights) * x.shape[1] ** 2
