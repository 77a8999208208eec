"""The programs on images: their sites, their shapes under extra rows, and that their bound rises by any estimator."""

from __future__ import annotations

from dataclasses import replace

import pyro
import pytest
import torch
from pyro import poutine

from models.data.images import Images
from models.errors import ConfigError
from models.programs.categorical_vae import CategoricalVAE
from models.programs.program import Program
from models.programs.sbn import SigmoidBeliefNetwork
from models.runs.config import build_program, configure
from models.runs.evaluation import bounds, isolated
from models.runs.training import Training
from pyro_discrete import Family, available_estimators

PIXELS = 6


@pytest.fixture(scope="module")
def images() -> Images:
    """Two patterns and their mixture with a little noise: enough to learn in a hundred steps."""
    generator = torch.Generator().manual_seed(0)
    patterns = torch.tensor([[1, 1, 1, 0, 0, 0], [0, 0, 0, 1, 1, 1]], dtype=torch.float32)
    grey = 0.05 + 0.9 * patterns[torch.randint(2, (260,), generator=generator)]
    return Images("patterns", grey[:200], grey[200:], (2, 3), "made by the test")


def programs() -> list[Program]:
    means = torch.full((PIXELS,), 0.5)
    return [
        SigmoidBeliefNetwork(means, (4,)),
        SigmoidBeliefNetwork(means, (4, 3, 2), hidden=(5,), learned_prior=True),
        CategoricalVAE(means, 3, 4, hidden=(5, 5), learned_prior=True),
        CategoricalVAE(means, 3, 4, hidden=()),
    ]


@pytest.mark.parametrize("program", programs(), ids=["sbn", "deep sbn", "vae", "linear vae"])
def test_sites_broadcast_over_rows_and_particles(program: Program) -> None:
    x = torch.ones(7, PIXELS)
    with isolated(0):
        with pyro.plate("rows", 2, dim=-3), pyro.plate("particles", 5, dim=-2):
            guide = poutine.trace(program.guide).get_trace(x)
            model = poutine.trace(poutine.replay(program.model, trace=guide)).get_trace(x)
        model.compute_log_prob()
        latents = {name for name in guide.stochastic_nodes if name.startswith("z")}
        assert latents == {name for name in model.stochastic_nodes if name.startswith("z")}
        for name in {*latents, "x"}:
            assert model.nodes[name]["log_prob"].shape == (2, 5, 7)
        registered = set(pyro.get_param_store().keys())
    assert len(registered) == len(list(program.parameters()))


def test_site_names() -> None:
    deep, vae = programs()[1], programs()[2]
    x = torch.zeros(1, PIXELS)
    with isolated(0):
        assert poutine.trace(deep.guide).get_trace(x).stochastic_nodes[-3:] == ["z1", "z2", "z3"]
        assert poutine.trace(vae.guide).get_trace(x).stochastic_nodes[-1:] == ["z"]


def test_output_biases_start_from_the_data_mean() -> None:
    means = torch.tensor([0.1, 0.5, 0.9, 0.0])
    for program in (SigmoidBeliefNetwork(means, (2,)), CategoricalVAE(means, 2, 2)):
        decoder = program.decoder[0] if isinstance(program, SigmoidBeliefNetwork) else program.decoder
        assert torch.allclose(torch.sigmoid(decoder[-1].bias), means, atol=2e-3)


def test_a_uniform_prior_is_fixed_and_a_learned_one_is_a_parameter() -> None:
    names = [dict(program.named_parameters()).keys() for program in programs()]
    assert ["prior_logits" in keys for keys in names] == [False, True, True, False]


FAMILY = {"sbn": Family.BERNOULLI, "categorical_vae": Family.ONE_HOT}
SERVED = [
    (program, name)
    for program, family in FAMILY.items()
    for name in ["auto", *(n for n, e in available_estimators().items() if family in e.families)]
]


@pytest.mark.parametrize(("program", "estimator"), SERVED)
def test_the_bound_rises_under_every_estimator(program: str, estimator: str, images: Images) -> None:
    size = {"sbn": {"latents": 3}, "categorical_vae": {"latents": 2, "categories": 3, "hidden_units": 8}}[program]
    particles = 4 if estimator in ("reinforce", "rloo") else None
    config = configure(program, estimator, steps=150, batch_size=50, lr=0.02, particles=particles, **size)
    with isolated(0):
        training = Training(config, images)
        before = bounds(training.program, images.test.round(), samples=5).elbo
        training.run()
    # The best model of these images without latents has a bound of 6 log(1/2) = -4.16.
    after = bounds(training.program, images.test.round(), samples=5).elbo
    assert after > before + 0.2
    assert after > -4.3


def test_deep_networks_train_too(images: Images) -> None:
    config = configure("sbn", "nvil", latents=3, layers=3, hidden_layers=1, hidden_units=4, prior="learned", lr=0.02)
    config = replace(config, steps=100)
    with isolated(0):
        training = Training(config, images)
        before = bounds(training.program, images.test.round(), samples=20).elbo
        training.run()
    assert bounds(training.program, images.test.round(), samples=20).elbo > before


@pytest.mark.parametrize(
    ("program", "settings", "message"),
    [
        ("snb", {}, r"Unknown program 'snb'\. Did you mean 'sbn'"),
        ("sbn", {"layers": 4}, "--layers is 4; expected 1 to 3"),
        ("categorical_vae", {"layers": 2}, "categorical_vae has no --layers"),
        ("gmm", {"latents": 2}, "gmm has no --latents; leave it out"),
        ("gmm", {"guide": "amortized"}, "Did you mean 'amortised'"),
        ("hmm", {"categories": 1}, "--categories is 1; expected at least 2"),
        ("sbn", {"binarisation": "none"}, "images need one"),
        ("sbn", {"steps": 0}, "--steps is 0; expected at least 1"),
        ("sbn", {"batch_size": 0}, "--batch-size is 0; expected at least 1"),
        ("sbn", {"lr": -1.0}, "--lr is -1.0; expected a positive number"),
        ("sbn", {"lr": float("nan")}, "--lr is nan"),
        ("sbn", {"prior": "uniforn"}, "Did you mean 'uniform'"),
        ("sbn", {"data": "digit"}, "Did you mean 'digits'"),
        ("sbn", {"device": "abacus"}, "Device 'abacus' cannot be used"),
    ],
)
def test_bad_settings(program: str, settings: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        configure(program, "nvil", **settings)


def test_the_program_starts_the_same_under_every_estimator(images: Images) -> None:
    states = []
    for estimator in ("nvil", "rloo", "gumbel_softmax"):
        config = configure("sbn", estimator, latents=3)
        with isolated(0):
            states.append(Training(config, images).program.state_dict())
    for state in states[1:]:
        assert all(torch.equal(state[name], states[0][name]) for name in state)


def test_build_program_reads_the_config(images: Images) -> None:
    config = configure("sbn", "nvil", latents=5, layers=2, hidden_layers=1, hidden_units=7)
    shapes = {name: tuple(p.shape) for name, p in build_program(config, images).named_parameters()}
    assert shapes["encoder.0.0.weight"] == (7, PIXELS)
    assert shapes["encoder.1.2.weight"] == (5, 7)
    assert shapes["decoder.0.2.weight"] == (PIXELS, 7)
