"""Programs after Pyro's examples and tutorials with discrete sites: our loss and gradients against Pyro's.

    python -m benchmarks.soundness.pyro_examples
    python -m benchmarks.soundness.pyro_examples --only "hmm*"

Mixtures, topics (LDA), the hidden Markov models 0 to 6 of Pyro's example, a semi-supervised autoencoder and a Dirichlet
process mixture, rewritten after these on seeded data of the same shape, only smaller. Discrete sites are summed out by
both, so that losses and gradients are equal, not only in the mean. Ends with status 1 if one differs.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Annotated, Any

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoDelta
from pyro.infer.autoguide.initialization import init_to_mean
from pyro.ops.indexing import Vindex
from torch import Tensor, nn

from pyro_discrete import TraceELBO
from pyro_discrete.errors import DiscreteInferenceError

__all__ = ["EXAMPLES", "Example"]

PARALLEL: Any = {"enumerate": "parallel"}
TONES, STATES = 5, 3


@dataclass(frozen=True)
class Example:
    """A pair with its arguments, and how many plates stand in each other."""

    model: Callable[..., Any]
    guide: Callable[..., Any]
    args: tuple[Any, ...]
    nesting: int


EXAMPLES: dict[str, Callable[[], Example]] = {}
"""By name, what makes an example; under the seed and in the param store of the caller."""


def example(make: Callable[[], Example]) -> Callable[[], Example]:
    """Enter a maker of an example under its name."""
    EXAMPLES[make.__name__] = make
    return make


def at_means(model: Callable[..., Any], prefix: str | tuple[str, ...]) -> AutoDelta:
    """The examples' guide: a point for each site of these names."""
    exposed = poutine.block(model, expose_fn=lambda msg: msg["name"].startswith(prefix))
    return AutoDelta(exposed, init_loc_fn=init_to_mean)


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


def joined(one: Tensor, other: Tensor) -> list[Tensor]:
    """Both with the batch dims of either."""
    batch = torch.broadcast_shapes(one.shape[:-1], other.shape[:-1])
    return [one.expand(*batch, one.shape[-1]), other.expand(*batch, other.shape[-1])]


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


def sequences() -> tuple[Tensor, Tensor]:
    """Music-like data: `[sequences, length, tones]` and lengths."""
    return (torch.rand(4, 4, TONES) > 0.6).to(torch.get_default_dtype()), torch.tensor([4, 2, 3, 4])


def hmm(model: Callable[..., Any], nesting: int = 2) -> Example:
    """A hidden Markov model with a point for all its probabilities."""
    return Example(model, at_means(model, "probs_"), sequences(), nesting)


def transitions(name: str, *sizes: int) -> Tensor:
    """Rows of probabilities that stay."""
    prior = (0.9 * torch.eye(sizes[-1]) + 0.1).expand(*sizes[:-1], sizes[-1]) if len(sizes) > 1 else torch.ones(sizes)
    return pyro.sample(name, dist.Dirichlet(prior).to_event(len(sizes) - 1))


def tones_of(name: str, *sizes: int) -> Tensor:
    """Probabilities of tones."""
    return pyro.sample(name, dist.Beta(0.1, 0.9).expand([*sizes, TONES]).to_event(len(sizes) + 1))


@example
def hmm_0() -> Example:
    """Sequence by sequence."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        for i in pyro.plate("sequences", 2):
            x: Any = 0
            for t in pyro.markov(range(int(lengths[i]))):
                x = pyro.sample(f"x_{i}_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                with tones:
                    pyro.sample(f"y_{i}_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[i, t])

    return hmm(model, 1)


@example
def hmm_1() -> Example:
    """All sequences at once, masked."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x: Any = 0
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[:, t])

    return hmm(model)


@example
def hmm_2() -> Example:
    """Tones read the tones before."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", STATES, STATES), tones_of("probs_y", STATES, 2)
        tones_plate = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x: Any = 0
            y: Any = 0
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    with tones_plate as tones:
                        y = pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(probs_y)[x, y, tones]), obs=data[:, t]).long()

    return hmm(model)


def two_chains(joined: bool) -> Example:
    """Factorial chains w and x; x reads w where they are joined."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_w = transitions("probs_w", 2, 2)
        probs_x = transitions("probs_x", 2, 2, 2) if joined else transitions("probs_x", 2, 2)
        probs_y = tones_of("probs_y", 2, 2)
        tones_plate = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            w, x = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    w = pyro.sample(f"w_{t}", dist.Categorical(probs_w[w]), infer=PARALLEL)
                    row = Vindex(probs_x)[w, x] if joined else probs_x[x]
                    x = pyro.sample(f"x_{t}", dist.Categorical(row), infer=PARALLEL)
                    with tones_plate as tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(Vindex(probs_y)[w, x, tones]), obs=data[:, t])

    return hmm(model)


@example
def hmm_3() -> Example:
    """Two chains beside each other."""
    return two_chains(joined=False)


@example
def hmm_4() -> Example:
    """Two chains, of which one reads the other."""
    return two_chains(joined=True)


@example
def hmm_5() -> Example:
    """Tones by a network of the state and the tones before."""
    network = nn.Sequential(nn.Linear(STATES + TONES, 6), nn.ReLU(), nn.Linear(6, TONES))

    def model(data: Tensor, lengths: Tensor) -> None:
        pyro.module("network", network)
        probs_x = transitions("probs_x", STATES, STATES)
        with pyro.plate("sequences", len(data), dim=-1):
            x: Any = 0
            y = torch.zeros(len(data), TONES)
            for t in pyro.markov(range(data.shape[1])):
                with poutine.mask(mask=t < lengths):
                    x = pyro.sample(f"x_{t}", dist.Categorical(probs_x[x]), infer=PARALLEL)
                    state = nn.functional.one_hot(x, STATES).to(y.dtype)
                    both = torch.cat(joined(state, y), -1)
                    fn = dist.Bernoulli(logits=network(both)).to_event(1)
                    y = pyro.sample(f"y_{t}", fn, obs=data[:, t])

    return hmm(model, 1)


@example
def hmm_6() -> Example:
    """Of second order, with a history of two."""

    def model(data: Tensor, lengths: Tensor) -> None:
        probs_x, probs_y = transitions("probs_x", 2, 2, 2), tones_of("probs_y", 2)
        tones = pyro.plate("tones", TONES, dim=-1)
        with pyro.plate("sequences", len(data), dim=-2):
            x, before = torch.tensor(0), torch.tensor(0)
            for t in pyro.markov(range(data.shape[1]), history=2):
                with poutine.mask(mask=(t < lengths).unsqueeze(-1)):
                    row = Vindex(probs_x)[before, x]
                    before, x = x, pyro.sample(f"x_{t}", dist.Categorical(row), infer=PARALLEL)
                    with tones:
                        pyro.sample(f"y_{t}", dist.Bernoulli(probs_y[x.squeeze(-1)]), obs=data[:, t])

    return hmm(model)


def measured(made: Example, elbo: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by name of a step."""
    loss = elbo.loss_and_grads(made.model, made.guide, *made.args)
    named = dict(pyro.get_param_store().named_parameters())
    if isinstance(made.guide, nn.Module):
        named |= dict(made.guide.named_parameters())
    found = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    for parameter in named.values():
        parameter.grad = None
    return loss, found


def verdict(name: str) -> tuple[str, str]:
    """ "equal", "refused" or "wrong", and numbers or a reason."""
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = EXAMPLES[name]()
        made.guide(*made.args)
        loss, gradients = measured(made, TraceEnum_ELBO(max_plate_nesting=made.nesting))
        try:
            ours, found = measured(made, TraceELBO("enumerate", max_plate_nesting=made.nesting))
        except DiscreteInferenceError as error:
            return "refused", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        except Exception as error:
            return "wrong", f"raised {type(error).__name__}: {str(error)[:200]}"
    text = f"loss {ours:.6f}, Pyro's {loss:.6f}"
    if abs(ours - loss) > 1e-8 * max(1.0, abs(loss)):
        return "wrong", text
    for parameter, gradient in gradients.items():
        if parameter not in found or not torch.allclose(found[parameter], gradient, rtol=1e-6, atol=1e-8):
            return "wrong", f"{text}; the gradient of {parameter} differs"
    return "equal", text


def main(only: Annotated[str, typer.Option(help="Glob of the examples to run.")] = "*") -> None:
    """Run the examples and print a line for each."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    kinds = []
    for name in EXAMPLES:
        if fnmatchcase(name, only):
            kind, text = verdict(name)
            kinds.append(kind)
            print(f"{name:28s} {kind:8s} {text}")
    raise typer.Exit("wrong" in kinds)


if __name__ == "__main__":
    typer.run(main)
