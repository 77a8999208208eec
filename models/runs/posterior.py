"""The classes that a program finds in data, and how they agree with the labels."""

from __future__ import annotations

import numpy as np
import torch
from sklearn.metrics import adjusted_rand_score
from torch import Tensor

from models.data.dataset import Dataset
from models.programs.program import LatentClasses
from models.runs.evaluation import EVALUATION_SEED, isolated, pieces
from pyro_discrete import DiscretePosterior

__all__ = ["agreement", "many_to_one_accuracy", "most_probable"]


def most_probable(program: LatentClasses, x: Tensor) -> Tensor:
    """The most probable joint classes given `x` `[n, ...]`: `[n]`, or `[n, steps]` for a chain (Viterbi)."""
    posterior = DiscretePosterior(program.model)
    with isolated(EVALUATION_SEED), torch.no_grad():
        return torch.cat([_classes(posterior.most_probable(piece)) for piece in pieces(program, x, 1)])


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


def _classes(found: dict[str, Tensor]) -> Tensor:
    """The class of each element, or of each of its steps."""
    return found["z"] if "z" in found else torch.stack([found[f"z_{t}"] for t in range(len(found))], -1)
