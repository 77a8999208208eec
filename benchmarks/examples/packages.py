"""What packages built on Pyro do with discrete sites, at their sizes: short programs of the same structure.

Points stand in the place of the continuous distributions of their guides, so that nothing is left to chance.
"""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro.distributions import TorchDistribution
from pyro.infer import config_enumerate
from torch import Tensor, nn

from benchmarks.examples.chains import taken
from benchmarks.examples.example import PARALLEL, Example, at_means, example, joined

__all__ = ["Carrier", "Image"]


def probabilities(name: str, *shape: int) -> Tensor:
    """A parameter of rows of probabilities."""
    return pyro.param(name, lambda: torch.rand(shape).softmax(-1), constraint=dist.constraints.simplex)


def table_of(name: str, *shape: int) -> Tensor:
    """A parameter of normal numbers."""
    return pyro.param(name, lambda: torch.randn(shape))


def positive(name: str, *shape: int) -> Tensor:
    """A parameter of positive numbers."""
    return pyro.param(name, lambda: 0.5 + torch.rand(shape), constraint=dist.constraints.positive)


@example
def lineages() -> Example:
    """A mixture whose covariances come of matrix products of a global, which takes no leading dim."""
    kinds, x = 4, torch.randn(200, 3)

    def model(x: Tensor) -> None:
        with pyro.plate("kinds", kinds):
            scale = pyro.sample("scale", dist.LogNormal(torch.zeros(3), 0.5).to_event(1))
            loc = pyro.sample("loc", dist.Normal(torch.zeros(3), 1.0).to_event(1))
        factors = torch.stack([torch.mm(scale[k].diag_embed(), torch.eye(3)) for k in range(kinds)])
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(kinds)))
            pyro.sample("x", dist.MultivariateNormal(loc[z], scale_tril=factors[z]), obs=x)

    def guide(x: Tensor) -> None:
        with pyro.plate("kinds", kinds):
            pyro.sample("scale", dist.Delta(positive("scales", kinds, 3)).to_event(1))
            pyro.sample("loc", dist.Delta(table_of("locs", kinds, 3)).to_event(1))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probabilities("q", len(x), kinds)), infer=PARALLEL)

    return Example(model, guide, (x,), 1)


class Image(TorchDistribution):
    """Pixels of spots on a background: of the number of dims that enumerated bits give it, and no other batch."""

    arg_constraints: Any = {}  # noqa: RUF012
    support: Any = dist.constraints.real_vector

    def __init__(self, mean: Tensor, gain: Tensor) -> None:
        self.mean_of_pixels, self.gain = mean, gain
        super().__init__(mean.shape[:-2], mean.shape[-2:])

    def log_prob(self, value: Tensor) -> Tensor:
        """`[*batch]`; a gain without a batch is right."""
        return dist.Normal(self.mean_of_pixels, self.gain).log_prob(value).sum((-2, -1))


@example
def spots() -> Example:
    """Images of 14 x 14 pixels of up to two molecules, whether each is there summed out in the guide."""
    sites, frames, size = 4, 5, 14
    images = torch.randn(frames, sites, size, size)
    grid = torch.arange(float(size)).to(images)

    def model(images: Tensor) -> None:
        gain = pyro.sample("gain", dist.HalfNormal(2.0))
        with pyro.plate("sites", sites, dim=-1), pyro.plate("frames", frames, dim=-2):
            level = pyro.sample("level", dist.Normal(0.0, 1.0))
            mean = level[..., None, None]
            for k in range(2):
                there = pyro.sample(f"m_{k}", dist.Bernoulli(0.3))
                height = pyro.sample(f"height_{k}", dist.HalfNormal(3.0))
                place = pyro.sample(f"place_{k}", dist.Normal(torch.full((2,), 7.0), 3.0).to_event(1))
                shape = dist.Normal(place[..., :, None], 1.5).log_prob(grid).exp()
                spot = shape[..., 0, :, None] * shape[..., 1, None, :]
                mean = mean + (there * height)[..., None, None] * spot
            pyro.sample("image", Image(mean, gain), obs=images)

    def guide(images: Tensor) -> None:
        pyro.sample("gain", dist.Delta(positive("gains")))
        with pyro.plate("sites", sites, dim=-1), pyro.plate("frames", frames, dim=-2):
            pyro.sample("level", dist.Delta(table_of("levels", frames, sites)))
            for k in range(2):
                probs = pyro.param(f"m_{k}_probs", lambda: torch.rand(frames, sites))
                pyro.sample(f"m_{k}", dist.Bernoulli(probs), infer=PARALLEL)
                pyro.sample(f"height_{k}", dist.Delta(positive(f"heights_{k}", frames, sites)))
                place = 7 + table_of(f"places_{k}", frames, sites, 2)
                pyro.sample(f"place_{k}", dist.Delta(place, event_dim=1))

    return Example(model, guide, (images,), 2)


class Carrier(TorchDistribution):
    """Passes a value from guide to model, at density one."""

    arg_constraints: Any = {}  # noqa: RUF012
    support: Any = dist.constraints.real
    has_rsample = True

    def __init__(self, carried: Tensor) -> None:
        self.carried = carried
        super().__init__(carried.shape)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Carrier:
        """The same value in more elements."""
        return Carrier(self.carried.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """The value itself."""
        return self.carried.expand(torch.Size(sample_shape) + self.carried.shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Zero."""
        return torch.zeros_like(value)


@example
def droplets() -> Example:
    """Counts of 100 genes in 120 droplets with a cell or without; one site of a batch shape wider than its value."""
    cells, genes = 120, 100
    counts = dist.Poisson(3.0).sample((cells, genes))
    encode, decode = nn.Linear(genes, 6), nn.Linear(5, genes)

    def model(counts: Tensor) -> None:
        pyro.module("decode", decode)
        ambient = probabilities("ambient", genes)
        with pyro.plate("cells", cells):
            z = pyro.sample("z", dist.Normal(torch.zeros(5), 1.0).to_event(1))
            there = pyro.sample("y", dist.Bernoulli(0.4))
            noise = pyro.sample("noise", Carrier(torch.zeros(1)).expand_by([cells]))
            size = pyro.sample("d", dist.LogNormal(5.0, 0.3))
            rate = (there * size)[..., None] * decode(z).softmax(-1) + noise.exp()[..., None] * ambient
            pyro.sample("counts", dist.Poisson(rate + 1e-3).to_event(1), obs=counts)

    def guide(counts: Tensor) -> None:
        pyro.module("encode", encode)
        with pyro.plate("cells", cells):
            found = encode(counts.log1p())
            pyro.sample("noise", Carrier(pyro.param("noises", lambda: torch.rand(cells))))
            pyro.sample("y", dist.Bernoulli(logits=found[..., 5]), infer=PARALLEL)
            pyro.sample("z", dist.Delta(found[..., :5], event_dim=1))
            pyro.sample("d", dist.Delta(positive("sizes", cells)))

    return Example(model, guide, (counts,), 1)


@example
def ploidy() -> Example:
    """Copy numbers of 6 chromosomes in 69 samples of two kinds; the event dims of a global lie where plates are."""
    depths = 2 + 0.3 * torch.randn(6, 69)

    @config_enumerate
    def model(depths: Tensor) -> None:
        offset = pyro.sample("offset", dist.Normal(0.0, 0.1).expand([6, 69]).to_event(2))
        variance = pyro.sample("variance", dist.Exponential(1.0).expand([69]).to_event(1))
        with pyro.plate("chromosomes", 6, dim=-2), pyro.plate("samples", 69, dim=-1):
            copies = pyro.sample("copies", dist.Categorical(probabilities("prior", 6)))
            wide = pyro.sample("wide", dist.Bernoulli(0.1))
            scale = (0.01 + variance) * (1 + wide)
            pyro.sample("depth", dist.Normal(copies + offset, scale), obs=depths)

    return Example(model, at_means(model, ("offset", "variance")), (depths,), 2)


@example
def copy_numbers() -> Example:
    """Copy numbers of 6 values in 30 regions of 80 samples."""
    depths = 2 + 0.4 * torch.randn(30, 80)

    @config_enumerate
    def model(depths: Tensor) -> None:
        with pyro.plate("regions", 30, dim=-2):
            bias = pyro.sample("bias", dist.LogNormal(0.0, 0.1))
            prior = pyro.sample("prior", dist.Dirichlet(torch.ones(6)))
            with pyro.plate("samples", 80, dim=-1):
                copies = pyro.sample("copies", dist.Categorical(prior))
                pyro.sample("depth", dist.Normal(bias * copies, 0.3), obs=depths)

    return Example(model, at_means(model, ("bias", "prior")), (depths,), 2)


@example
def replication() -> Example:
    """Reads of 60 x 10 bins: a copy number of 13 values, doubled where the bin is replicated, both summed out."""
    bins, cells = 60, 10
    reads = dist.Poisson(20.0).sample((bins, cells))

    @config_enumerate
    def model(reads: Tensor) -> None:
        with pyro.plate("cells", cells, dim=-1):
            time = pyro.sample("time", dist.Beta(1.5, 1.5))
            size = pyro.sample("size", dist.Gamma(20.0, 2.0))
        with pyro.plate("bins", bins, dim=-2):
            late = pyro.sample("late", dist.Beta(1.5, 1.5))
            with pyro.plate("reads", cells, dim=-1):
                copies = pyro.sample("copies", dist.Categorical(probabilities("prior", bins, 1, 13)))
                done = pyro.sample("done", dist.Bernoulli(torch.sigmoid(8 * (time - late))))
                mean = size * copies * (1 + done) + 0.1
                pyro.sample("read", dist.NegativeBinomial(mean, probs=torch.tensor(0.3)), obs=reads)

    return Example(model, at_means(model, ("time", "size", "late")), (reads,), 2)


@example
def cognitive_diagnosis() -> Example:
    """Answers of 200 people to 20 items, by one of 32 classes of skills."""
    answers = (torch.rand(200, 20) > 0.5).to(torch.get_default_dtype())

    @config_enumerate
    def model(answers: Tensor) -> None:
        rates = torch.sigmoid(table_of("items", 32, 20))
        with pyro.plate("people", len(answers)):
            skills = pyro.sample("skills", dist.Categorical(probabilities("prior", 32)))
            pyro.sample("answers", dist.Bernoulli(taken(rates, skills, slice(None))).to_event(1), obs=answers)

    @config_enumerate
    def guide(answers: Tensor) -> None:
        with pyro.plate("people", len(answers)):
            pyro.sample("skills", dist.Categorical(probabilities("q", len(answers), 32)))

    return Example(model, guide, (answers,), 1)


def networks(pixels: int, kinds: int) -> tuple[nn.Module, nn.Module, nn.Module]:
    """Of an autoencoder with classes: classifier, encoder of image and class, decoder of two numbers and class."""
    encoder = nn.Sequential(nn.Linear(pixels + kinds, 64), nn.Tanh(), nn.Linear(64, 2))
    decoder = nn.Sequential(nn.Linear(2 + kinds, 64), nn.Tanh(), nn.Linear(64, pixels))
    return nn.Linear(pixels, kinds), encoder, decoder


@example
def classes_of_images() -> Example:
    """50 images of 144 pixels, 5 classes in the guide; networks that take one enumerated dim."""
    images, kinds = torch.rand(50, 144), 5
    classifier, encoder, decoder = networks(144, kinds)

    def model(images: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(images)):
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(images), kinds)))
            z = pyro.sample("z", dist.Normal(torch.zeros(len(images), 2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(torch.cat(joined(z, y), -1)), 0.5).to_event(1), obs=images)

    @config_enumerate(default="parallel", expand=True)
    def guide(images: Tensor) -> None:
        pyro.module("networks", nn.ModuleList([classifier, encoder]))
        with pyro.plate("images", len(images)):
            y = pyro.sample("y", dist.OneHotCategorical(logits=classifier(images)))
            seen = images.expand(len(y), -1, -1) if y.dim() == 3 else images
            pyro.sample("z", dist.Delta(encoder(torch.cat([seen, y], -1)), event_dim=1))

    return Example(model, guide, (images,), 1)


@example
def classes_of_the_model() -> Example:
    """The same with classes in the model alone, whose network takes their dim as the third and no further one."""
    images, kinds = torch.rand(50, 144), 5
    _, encoder, decoder = networks(144, kinds)
    one_hot = torch.eye(kinds)

    @config_enumerate
    def model(images: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = one_hot[pyro.sample("y", dist.Categorical(torch.ones(len(images), kinds)))]
            if y.dim() == 3:
                z, y = z.expand(len(y), -1, -1), y.expand(-1, len(images), -1)
            pyro.sample("x", dist.Normal(decoder(torch.cat([z, y], -1)), 0.5).to_event(1), obs=images)

    def guide(images: Tensor) -> None:
        pyro.module("encoder", encoder)
        with pyro.plate("images", len(images)):
            none = torch.zeros(len(images), kinds)
            pyro.sample("z", dist.Delta(encoder(torch.cat([images, none], -1)), event_dim=1))

    return Example(model, guide, (images,), 1)


@example
def copies_by_hand() -> Example:
    """The same with classes in the guide, and the other latent repeated by hand for each: it runs on no single draw."""
    images, kinds = torch.rand(50, 144), 5
    classifier, encoder, decoder = networks(144, kinds)

    def model(images: Tensor) -> None:
        pyro.module("decoder", decoder)
        with pyro.plate("images", len(images)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(images), 2), 1.0).to_event(1))
            y = pyro.sample("y", dist.OneHotCategorical(torch.ones(len(images), kinds)))
            means = decoder(torch.cat([z.repeat(kinds, 1), y.reshape(-1, kinds)], -1))
            pyro.sample("x", dist.Normal(means.reshape(*y.shape[:-1], 144), 0.5).to_event(1), obs=images)

    @config_enumerate(default="parallel", expand=True)
    def guide(images: Tensor) -> None:
        pyro.module("networks", nn.ModuleList([classifier, encoder]))
        with pyro.plate("images", len(images)):
            none = torch.zeros(len(images), kinds)
            pyro.sample("z", dist.Delta(encoder(torch.cat([images, none], -1)), event_dim=1))
            pyro.sample("y", dist.OneHotCategorical(logits=classifier(images)))

    return Example(model, guide, (images,), 1)


@example
def looked_up() -> Example:
    """A table of 5 numbers that the guide draws, looked up by each of 200 draws: `loc[z]`."""
    x = 3 * torch.randn(200)

    @config_enumerate
    def model(x: Tensor) -> None:
        weights = pyro.sample("weights", dist.Dirichlet(torch.ones(5)))
        with pyro.plate("parts", 5):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(weights))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    points = at_means(model, ("weights", "loc"))

    @config_enumerate
    def guide(x: Tensor) -> None:
        points(x)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(probabilities("q", len(x), 5)))

    return Example(model, guide, (x,), 1)
