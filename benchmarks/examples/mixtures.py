"""Mixtures, topics and an autoencoder after Pyro's examples and tutorials."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import torch
from pyro.infer import config_enumerate
from torch import Tensor, nn

from benchmarks.examples.example import PARALLEL, Example, at_means, example, joined

__all__ = ["mixture"]


@example
def mixture() -> Example:
    """The tutorial's Gaussian mixture."""
    data = torch.tensor([0.0, 1.0, 10.0, 11.0, 12.0])

    @config_enumerate
    def model(data: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(0.5 * torch.ones(2)))
        scale = pyro.sample("scale", dist.LogNormal(0.0, 2.0))
        with pyro.plate("components", 2):
            locs = pyro.sample("locs", dist.Normal(torch.tensor([1.0, 9.0]), 10.0))
        with pyro.plate("data", len(data)):
            assignment = pyro.sample("assignment", dist.Categorical(weights))
            pyro.sample("obs", dist.Normal(locs[assignment], scale), obs=data)

    return Example(model, at_means(model, ("weights", "locs", "scale")), (data,), 1)


@example
def mixture_with_guide() -> Example:
    """The same with the assignments in the guide."""
    made = mixture()
    points = made.guide

    @config_enumerate
    def guide(data: Tensor) -> None:
        points(data)
        with pyro.plate("data", len(data)):
            probs = pyro.param("probs", torch.rand(len(data), 2).softmax(-1), constraint=dist.constraints.simplex)
            pyro.sample("assignment", dist.Categorical(probs))

    return Example(made.model, guide, made.args, 1)


@example
def dirichlet_process_mixture() -> Example:
    """Truncated sticks, Gaussian components, assignments in the guide."""
    data, most = torch.randn(12, 2) + 3.0 * torch.randint(0, 2, (12, 1)), 4

    def weights(beta: Tensor) -> Tensor:
        left = (1 - beta).cumprod(-1)
        return nn.functional.pad(beta, (0, 1), value=1) * nn.functional.pad(left, (1, 0), value=1)

    def model(data: Tensor) -> None:
        with pyro.plate("sticks", most - 1):
            beta = pyro.sample("beta", dist.Beta(1.0, 0.8))
        with pyro.plate("components", most):
            mu = pyro.sample("mu", dist.MultivariateNormal(torch.zeros(2), 5 * torch.eye(2)))
        with pyro.plate("data", len(data)):
            z = pyro.sample("z", dist.Categorical(weights(beta)))
            pyro.sample("obs", dist.MultivariateNormal(mu[z], torch.eye(2)), obs=data)

    tau, phi = torch.randn(most, 2), torch.rand(len(data), most).softmax(-1)

    @config_enumerate
    def guide(data: Tensor) -> None:
        with pyro.plate("sticks", most - 1):
            kappa = pyro.param("kappa", torch.full((most - 1,), 0.4), constraint=dist.constraints.unit_interval)
            pyro.sample("beta", dist.Delta(kappa))
        with pyro.plate("components", most):
            pyro.sample("mu", dist.Delta(pyro.param("tau", tau), event_dim=1))
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Categorical(pyro.param("phi", phi, constraint=dist.constraints.simplex)))

    return Example(model, guide, (data,), 1)


@example
def topics() -> Example:
    """Latent Dirichlet allocation: words in documents, their topics summed out."""
    words, documents, count, vocabulary = 6, 4, 3, 7
    data = torch.randint(0, vocabulary, (words, documents))

    def model(data: Tensor) -> None:
        with pyro.plate("topics", count):
            topic_weights = pyro.sample("topic_weights", dist.Gamma(1.0 / count, 1.0))
            topic_words = pyro.sample("topic_words", dist.Dirichlet(torch.ones(vocabulary) / vocabulary))
        with pyro.plate("documents", documents):
            doc_topics = pyro.sample("doc_topics", dist.Dirichlet(topic_weights))
            with pyro.plate("words", words):
                word_topics = pyro.sample("word_topics", dist.Categorical(doc_topics), infer=PARALLEL)
                pyro.sample("doc_words", dist.Categorical(topic_words[word_topics]), obs=data)

    return Example(model, at_means(model, ("topic_", "doc_topics")), (data,), 2)


@example
def semi_supervised_autoencoder() -> Example:
    """M2 on data without labels: these are in the guide, and summed out."""
    x = (torch.rand(6, 9) > 0.5).to(torch.get_default_dtype())
    decoder, classifier, encoder = nn.Linear(4 + 3, 9), nn.Linear(9, 3), nn.Linear(9 + 3, 8)

    def model(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("data"):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 4), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(x), 3) / 3), obs=y)
            pyro.sample("x", dist.Bernoulli(logits=decoder(torch.cat(joined(z, y), -1))).to_event(1), obs=x)

    @config_enumerate
    def guide(x: Tensor, y: Tensor | None = None) -> None:
        pyro.module("classifier", classifier)
        pyro.module("encoder", encoder)
        with pyro.plate("data"):
            if y is None:
                y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(x)))
            loc = encoder(torch.cat(joined(x, y), -1))[..., :4]
            pyro.sample("z", dist.Delta(loc, event_dim=1))  # a point: nothing is left to chance

    return Example(model, guide, (x,), 1)
