"""Which program runs under which estimators: found out by letting each of them make a step."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from typing import Any

import torch

from models.data.catalogue import load_data
from models.data.images import binarise_once
from models.runs.config import PROGRAMS, build_elbo, build_program, configure
from models.runs.evaluation import isolated
from pyro_discrete import Enumerate, Estimator, available_estimators
from pyro_discrete.errors import DiscreteInferenceError

__all__ = ["KINDS", "Trial", "kind_of", "try_program"]

KINDS = ("exact", "score function", "relaxed")
SMALL: dict[str, int] = {"latents": 2, "hidden_units": 4}
STEPS_OF_A_CHAIN = 3
BATCH = 4


@dataclass(frozen=True)
class Trial:
    """One program's trials: the estimators that made a step, by kind, and what the others said, by kind and name."""

    program: str
    runs: dict[str, list[str]]
    refused: dict[str, dict[str, str]]

    def told(self, kind: str) -> str:
        """How many estimators of a kind ran, of how many."""
        ran = len(self.runs[kind])
        return f"{ran} of {ran + len(self.refused[kind])}" if ran else "-"


def kind_of(cls: type[Estimator]) -> str:
    """The kind of an estimator: exact, relaxed if its draw is, else score function (with whatever control variate)."""
    if issubclass(cls, Enumerate):
        return "exact"
    return "relaxed" if 0 in cls.relaxed else "score function"


def try_program(program: str) -> Trial:
    """Let every estimator make one step of a small copy of the program, unmodified, on a few data."""
    runs: dict[str, list[str]] = {kind: [] for kind in KINDS}
    refused: dict[str, dict[str, str]] = {kind: {} for kind in KINDS}
    for estimator, info in available_estimators().items():
        kind = kind_of(info.cls)
        try:
            _step(program, estimator)
        except DiscreteInferenceError as error:
            refused[kind][estimator] = str(error)
        else:
            runs[kind].append(estimator)
    return Trial(program, runs, refused)


def _step(program: str, estimator: str) -> None:
    own = PROGRAMS[program].defaults
    settings: dict[str, Any] = {name: value for name, value in SMALL.items() if name in own}
    if "categories" in own:
        settings["categories"] = 3
    config = configure(program, estimator, **settings)
    data = load_data(config.data)
    with isolated(config.seed), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        built = build_program(config, data)
        x = binarise_once(data.train[:BATCH], config.binarisation)
        elbo = build_elbo(config)
        elbo.loss_and_grads(built.model, built.guide, x[:, :STEPS_OF_A_CHAIN] if program == "hmm" else x)
        if all(p.grad is None or not torch.any(p.grad) for n, p in built.named_parameters() if "encoder" in n):
            raise DiscreteInferenceError(f"{estimator} gave the guide of {program} no gradient.")
