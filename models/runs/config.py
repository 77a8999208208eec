"""What defines a run: program, estimator, data and optimisation; checked, saved, and made into program and ELBO."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import torch

from models.data.catalogue import DATASETS
from models.data.dataset import Dataset
from models.data.images import BINARISATIONS
from models.errors import ConfigError
from models.programs.blocks import BlockModel
from models.programs.categorical_vae import CategoricalVAE
from models.programs.gmm import GaussianMixture
from models.programs.hmm import HiddenMarkovModel
from models.programs.lca import LatentClassAnalysis
from models.programs.motif import MotifPlaces
from models.programs.program import LatentClasses, Program
from models.programs.sbn import SigmoidBeliefNetwork
from models.programs.structured.matching import MatchedNeurons
from models.programs.structured.rankings import ConsensusRanking
from models.programs.structured.structure import DirectedGraph
from models.programs.structured.subset import SubsetRegression
from models.programs.topics import TopicModel
from models.runs.estimators import AUTO, check_estimator, has_temperature, least_particles
from pyro_discrete import NVIL, Estimator, TraceELBO, TraceIWELBO, available_estimators
from pyro_discrete.checkpoints import load_checkpoint
from pyro_discrete.elbos.engine import DiscreteELBO
from pyro_discrete.errors import CheckpointError, near_matches

__all__ = [
    "CHECKPOINT_NAME",
    "LARGEST_SEED",
    "OF_A_PROGRAM",
    "PRIORS",
    "PROGRAMS",
    "RunConfig",
    "build_elbo",
    "build_program",
    "check_resumable",
    "configure",
    "resumed",
    "size_of",
]

PROGRAMS: dict[str, type[Program]] = {
    "sbn": SigmoidBeliefNetwork,
    "categorical_vae": CategoricalVAE,
    "gmm": GaussianMixture,
    "lca": LatentClassAnalysis,
    "hmm": HiddenMarkovModel,
    "rankings": ConsensusRanking,
    "subset": SubsetRegression,
    "matching": MatchedNeurons,
    "structure": DirectedGraph,
    "motif": MotifPlaces,
    "blocks": BlockModel,
    "topics": TopicModel,
}
CHECKPOINT_NAME = "checkpoint.pt"
"""The file of a run's folder that `fit` keeps its state in."""
PRIORS: dict[str, str] = {"uniform": "logits fixed at zero", "learned": "logits trained with the model"}

OF_A_PROGRAM = frozenset(
    {"binarisation", "latents", "categories", "layers", "hidden_layers", "hidden_units", "prior", "guide", "degrees"}
)
"""Settings that not every program reads; its `defaults` tell which it does."""
MAY_CHANGE = frozenset({"steps", "device", "evaluate_every"})
"""Settings that a resumed run may have anew: they leave the steps already made as they were."""

LARGEST_SEED = 2**32 - 1
"""NumPy's generator takes no larger one."""
LEAST: dict[str, int] = {
    "latents": 1,
    "categories": 2,
    "layers": 1,
    "hidden_layers": 0,
    "hidden_units": 1,
    "steps": 1,
    "batch_size": 1,
    "particles": 1,
    "evaluate_every": 1,
    "seed": 0,
}


@dataclass(frozen=True)
class RunConfig:
    """The settings of a training run. Raises `ConfigError` for an unknown name or a number out of its range.

    - `binarisation`: how grey images become binary; "none" for other data.
    - `latents`: units of each stochastic layer (sbn), number of one-hot variables (categorical_vae), or of features
      that are chosen (subset).
    - `categories`: values of a categorical variable: components (gmm), classes (lca), states (hmm), groups (blocks),
      topics (topics), parts of the guide's mixtures (structure). `layers`: stochastic layers (sbn).
    - `hidden_layers`, `hidden_units`: of each network between two stochastic layers, or of the guide's network.
    - `guide`: whether a network gives the latents' posterior or they are summed in the model (gmm, lca, hmm, motif,
      topics).
    - `degrees`: whether a graph's nodes have numbers of edges of their own (blocks).
    - `lr`: Adam's rate for the program, `estimator_lr` for what the estimator learns (baseline networks).
    - `temperature`: of a relaxed estimator; None is the estimator's own default.
    - `evaluate_every`: steps between two evaluations of the test ELBO.
    """

    program: str
    estimator: str
    data: str
    particles: int
    evaluate_every: int
    binarisation: str = "none"
    latents: int = 1
    categories: int = 2
    layers: int = 1
    hidden_layers: int = 0
    hidden_units: int = 1
    prior: str = "uniform"
    guide: str = "amortised"
    degrees: str = "corrected"
    steps: int = 5000
    batch_size: int = 100
    lr: float = 1e-3
    estimator_lr: float = 1e-3
    temperature: float | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        for name, known in (
            ("program", PROGRAMS),
            ("data", DATASETS),
            ("binarisation", BINARISATIONS),
            ("prior", PRIORS),
            ("guide", LatentClasses.GUIDES),
            ("degrees", BlockModel.DEGREES),
        ):
            _check_known(name, getattr(self, name), known)
        for name, least in LEAST.items():
            if getattr(self, name) < least:
                raise ConfigError(f"{_option(name)} is {getattr(self, name)}; expected at least {least}.")
        if self.seed > LARGEST_SEED:
            raise ConfigError(f"--seed is {self.seed}; expected 0 to {LARGEST_SEED}.")
        for name in ("lr", "estimator_lr"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ConfigError(f"{_option(name)} is {getattr(self, name)}; expected a positive number.")
        if self.layers > 3:
            raise ConfigError(f"--layers is {self.layers}; expected 1 to 3 stochastic layers.")
        if (self.binarisation == "none") == ("binarisation" in PROGRAMS[self.program].defaults):
            raise ConfigError(f"--binarisation is {self.binarisation!r}; images need one, and other data have none.")
        try:
            torch.empty(0, device=self.device)
        except (RuntimeError, AssertionError) as error:
            raise ConfigError(f"Device {self.device!r} cannot be used here: {str(error).splitlines()[0]}") from error

    @property
    def hidden(self) -> tuple[int, ...]:
        """Units of the hidden layers, from the side of the image."""
        return (self.hidden_units,) * self.hidden_layers

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


def configure(program: str, estimator: str, **given: Any) -> RunConfig:
    """A run's settings from those given: None stands for the default, which may depend on program and estimator.

    Raises `ConfigError` for an unknown program or a bad setting, `UnknownEstimatorError` for an unknown estimator.
    """
    _check_known("program", program, PROGRAMS)
    check_estimator(estimator)
    kind = PROGRAMS[program]
    given = {name: value for name, value in given.items() if value is not None}
    foreign = sorted((given.keys() & OF_A_PROGRAM) - kind.defaults.keys())
    if foreign:
        raise ConfigError(f"{program} has no {_option(foreign[0])}; leave it out.")
    settings: dict[str, Any] = {"data": kind.data, "particles": least_particles(estimator), **kind.defaults, **given}
    steps = settings.get("steps", RunConfig.steps)
    settings.setdefault("evaluate_every", max(1, steps // 20))
    return RunConfig(program=program, estimator=estimator, **settings)


def build_program(config: RunConfig, data: Dataset) -> Program:
    """The program with fresh parameters from torch's global generator; sizes and starts are taken from `data`.

    Raises `ConfigError` if the program does not read data of that kind.
    """
    kind = PROGRAMS[config.program]
    if not isinstance(data, kind.reads):
        raise ConfigError(
            f"{config.program} reads {kind.reads.elements}, the data set {data.name!r} holds {data.elements}; leave "
            f"out --data for {kind.data!r}, or see `list`."
        )
    return kind.of(config, data).to(config.device)


def build_elbo(config: RunConfig, *, rescaled: bool = True) -> DiscreteELBO:
    """The ELBO of a run, or the importance-weighted bound for the estimators that are made for it.

    With `rescaled=False`, NVIL leaves out its division by the signal's running deviation, which shrinks gradient and
    noise alike: without it, its variance can be compared with the others'.

    Raises `ConfigError` if a temperature is given to an estimator that has none, and the library's `SettingError` if
    it is not positive.
    """
    name = config.estimator
    if name == NVIL.name and not rescaled:
        return TraceELBO(NVIL(variance_normalisation=False), num_particles=config.particles)
    if config.temperature is None:
        return _elbo(available_estimators()[name].cls() if name != AUTO else AUTO, config.particles)
    if not has_temperature(name):
        raise ConfigError(f"Estimator {name!r} has no temperature; leave out --temperature.")
    estimator = available_estimators()[name].cls(temperature=config.temperature)  # type: ignore[call-arg]
    return _elbo(estimator, config.particles)


def size_of(config: RunConfig) -> str:
    """The size of the program's latents in a few words, for titles."""
    return PROGRAMS[config.program].size.format(**config.to_dict())


def resumed(folder: Path, given: Mapping[str, Any]) -> RunConfig:
    """The settings of the folder's run, with those of `given` that are not None and may change in its course.

    Raises `CheckpointError` if there is no run, or if a setting is given that differs from the run's.
    """
    saved = load_checkpoint(folder / CHECKPOINT_NAME)
    asked = {**_settings(saved, folder), **{name: value for name, value in given.items() if value is not None}}
    _check_asked(saved, asked, folder)
    return RunConfig(**asked)


def check_resumable(saved: Mapping[str, Any], config: RunConfig, folder: Path) -> None:
    """Raise `CheckpointError` if the checkpoint of the folder is not one that a run of these settings can go on from.

    It names every setting in which the run differs.
    """
    _check_asked(saved, config.to_dict(), folder)


def _settings(checkpoint: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """The settings that a checkpoint was made under."""
    saved = (checkpoint.get("metadata") or {}).get("config") or {}
    if saved.keys() != {field.name for field in fields(RunConfig)}:
        raise CheckpointError(f"The checkpoint in {folder} has other settings than this version knows; start anew.")
    return saved


def _check_asked(checkpoint: Mapping[str, Any], asked: Mapping[str, Any], folder: Path) -> None:
    saved = _settings(checkpoint, folder)
    differing = [
        f"{_option(name)} was {saved.get(name)!r}, now {asked.get(name)!r}"
        for name in sorted(saved.keys() | asked.keys())
        if name not in MAY_CHANGE and saved.get(name) != asked.get(name)
    ]
    if differing:
        raise CheckpointError(
            f"The checkpoint in {folder} belongs to another run: {'; '.join(differing)}. "
            "Resume with its settings, or choose another --out."
        )
    if asked["steps"] < checkpoint["step"]:
        raise CheckpointError(
            f"--steps is {asked['steps']}, and the run in {folder} has made {checkpoint['step']} already; ask for more."
        )


def _check_known(name: str, given: str, known: Mapping[str, object]) -> None:
    if given not in known:
        raise ConfigError(f"Unknown {name} {given!r}. {near_matches(given, known)}")


def _option(name: str) -> str:
    """A setting as the user writes it."""
    return name if name == "program" else f"--{name.replace('_', '-')}"


def _elbo(estimator: str | Estimator, particles: int) -> DiscreteELBO:
    weighted = isinstance(estimator, Estimator) and estimator.importance_weighted
    return (TraceIWELBO if weighted else TraceELBO)(estimator, num_particles=particles)
