"""The classes that a program finds in data, and how they agree with the labels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from pyro.infer import config_enumerate, infer_discrete
from pyro.poutine import trace
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.dataset import Dataset
from models.evaluation import EVALUATION_SEED, isolated, pieces
from models.program import LatentClasses

__all__ = ["agreement", "many_to_one_accuracy", "most_probable"]


def most_probable(program: LatentClasses, x: Tensor) -> Tensor:
    """The most probable joint classes given `x` `[n, ...]`: `[n]`, or `[n, steps]` for a chain (Viterbi)."""
    with isolated(EVALUATION_SEED), torch.no_grad():
        return torch.cat([_decoded(program.model, piece) for piece in pieces(program, x, 1)])


def agreement(program: LatentClasses, data: Dataset) -> dict[str, float]:
    """How the classes found in the test elements agree with their labels; empty if the data have none."""
    if data.labels is None:
        return {}
    there = data.labels >= 0
    found, labels = most_probable(program, data.test)[there].numpy(), data.labels[there].numpy()
    return {
        "adjusted_rand_index": float(adjusted_rand_score(labels, found)),
        "many_to_one_accuracy": many_to_one_accuracy(labels, found),
    }


def many_to_one_accuracy(labels: np.ndarray, found: np.ndarray) -> float:
    """The share of right labels if each class found stands for the label that it holds most often.

    Source: Johnson (2007), Why doesn't EM find good HMM POS-taggers?

    >>> many_to_one_accuracy(np.array([0, 0, 1, 1]), np.array([5, 5, 5, 7]))
    0.75
    """
    kinds, classes = np.unique(labels, return_inverse=True)[1], np.unique(found, return_inverse=True)[1]
    counts = np.zeros((classes.max() + 1, kinds.max() + 1), dtype=int)
    np.add.at(counts, (classes, kinds), 1)
    return float(counts.max(1).sum() / len(labels))


def _decoded(model: Callable[..., Any], x: Tensor) -> Tensor:
    decoder = infer_discrete(config_enumerate(model), first_available_dim=-2, temperature=0)
    sites: dict[str, Any] = trace(decoder).get_trace(x).nodes
    states: list[Any] = [site["value"] for name, site in sites.items() if name == "z" or name.startswith("z_")]
    return states[0] if "z" in sites else torch.stack(states, -1)
