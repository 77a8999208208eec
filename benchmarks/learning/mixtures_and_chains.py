"""Mixtures and chains beside scikit-learn and hmmlearn, on the same data and by the same measures."""

from __future__ import annotations

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from sklearn.metrics import adjusted_rand_score
from sklearn.mixture import GaussianMixture

from models.data.catalogue import load_data
from models.data.dataset import Dataset
from models.programs.program import LatentClasses
from models.runs.config import configure
from models.runs.estimators import least_particles
from models.runs.evaluation import isolated, log_likelihood
from models.runs.posterior import agreement, many_to_one_accuracy
from models.runs.training import Training
from pyro_discrete.checkpoints import write_atomically

__all__ = ["TASKS", "compare", "section"]

OURS = {
    "enumerate, marginal": ("enumerate", "marginal"),
    "enumerate": ("enumerate", "amortised"),
    "rloo": ("rloo", "amortised"),
    "gumbel_softmax": ("gumbel_softmax", "amortised"),
}
"""Estimator and guide of each of our rows; "marginal" leaves the latents out of the guide."""
TASKS: dict[str, dict[str, Any]] = {
    "iris": {"program": "gmm", "categories": 3, "steps": 250},
    "wine": {"program": "gmm", "categories": 3, "steps": 250},
    "simulated-chains": {"program": "hmm", "categories": 4, "steps": 200, "lr": 0.05},
    "brown-words": {"program": "hmm", "categories": 12, "steps": 200, "lr": 0.05},
    "brown-characters": {"program": "hmm", "categories": 3, "steps": 200, "lr": 0.05},
    "simulated-answers": {"program": "lca", "categories": 4, "steps": 250},
    "ability": {"program": "lca", "categories": 4, "steps": 250},
}
"""A data set, and the settings of the run on it."""
IN_FOLDERS = ("brown-words", "brown-characters", "ability")
"""The data sets that are read from a folder."""
EM_ITERATIONS = 30
ENDS = "lowest to highest"


def _ours(estimator: str, guide: str, task: Mapping[str, Any], data: Dataset, seed: int) -> dict[str, float]:
    """Train our program; seconds are the processor's, of training alone."""
    particles = max(4, least_particles(estimator)) if estimator == "rloo" else None
    config = configure(estimator=estimator, data=data.name, guide=guide, seed=seed, particles=particles, **task)
    with isolated(seed):
        training = Training(config, data)
        started = time.process_time()
        training.run()
        seconds = time.process_time() - started
    program = training.program
    assert isinstance(program, LatentClasses)
    return {"log_likelihood": log_likelihood(program, data.test), **agreement(program, data), "seconds": seconds}


def _scikit_learn(task: Mapping[str, Any], data: Dataset, seed: int) -> dict[str, float]:
    """EM from scikit-learn, by its defaults: full covariances, one start from k-means."""
    points = data.test.numpy()
    started = time.process_time()
    fitted: Any = GaussianMixture(task["categories"], random_state=seed).fit(data.train.numpy())
    seconds = time.process_time() - started
    assert data.labels is not None
    return {"log_likelihood": float(fitted.score(points)), **_judged(data, fitted.predict(points)), "seconds": seconds}


def _hmmlearn(task: Mapping[str, Any], data: Dataset, seed: int) -> dict[str, float]:
    """EM from hmmlearn, `EM_ITERATIONS` at most, from its random start; classes by Viterbi."""
    from hmmlearn.hmm import CategoricalHMM

    (train, lengths), (test, test_lengths) = _joined(data.train), _joined(data.test)
    symbols = len(getattr(data, "vocabulary", ()))
    started = time.process_time()
    fitted: Any = CategoricalHMM(task["categories"], n_iter=EM_ITERATIONS, random_state=seed, n_features=symbols)
    fitted.fit(train, lengths)
    seconds = time.process_time() - started
    # A word that no training sentence has would get probability 0 and make the likelihood of the test set 0.
    fitted.emissionprob_ = (fitted.emissionprob_ + 1e-6) / (fitted.emissionprob_ + 1e-6).sum(1, keepdims=True)
    found = fitted.predict(test, test_lengths)
    each = float(fitted.score(test, test_lengths)) / len(test_lengths)
    return {"log_likelihood": each, **_judged(data, found), "seconds": seconds}


def _joined(sequences: torch.Tensor) -> tuple[np.ndarray, list[int]]:
    """Sequences one after another, `[symbols, 1]`, and their lengths."""
    there = sequences >= 0
    return sequences[there].numpy()[:, None], there.sum(1).tolist()


def _judged(data: Dataset, found: np.ndarray) -> dict[str, float]:
    assert data.labels is not None
    labels = data.labels[data.labels >= 0].numpy()
    return {
        "adjusted_rand_index": float(adjusted_rand_score(labels, found)),
        "many_to_one_accuracy": many_to_one_accuracy(labels, found),
    }


OTHERS: dict[str, tuple[str, Callable[..., dict[str, float]]]] = {
    "gmm": ("scikit-learn, EM", _scikit_learn),
    "hmm": ("hmmlearn, EM", _hmmlearn),
}


def compare(
    name: str, seeds: int, methods: Sequence[str] = tuple(OURS), data_dir: Path | None = None
) -> dict[str, list[dict[str, float]]]:
    """Results of another implementation, where there is one, and of our `methods` on a data set of `TASKS`, by seed."""
    task = TASKS[name]
    data = load_data(name, data_dir)
    results = {}
    if task["program"] in OTHERS:
        other, fit = OTHERS[task["program"]]
        results[other] = [fit(task, data, seed) for seed in range(seeds)]
    for method in methods:
        estimator, guide = OURS[method]
        results[method] = [_ours(estimator, guide, task, data, seed) for seed in range(seeds)]
    return results


def section(name: str, results: Mapping[str, list[dict[str, float]]]) -> str:
    """The results on one data set as a table of markdown: means over seeds, with the lowest and highest of a column.

    That is the index of agreement with the labels or, for data without labels, the likelihood.
    """
    task = TASKS[name]
    seeds = len(next(iter(results.values())))
    columns = [("log-likelihood", "log_likelihood", 2)]
    if all("adjusted_rand_index" in row for rows in results.values() for row in rows):
        columns += [("adjusted Rand index", "adjusted_rand_index", 3), (ENDS, "adjusted_rand_index", 3)]
        columns += [("many-to-one accuracy", "many_to_one_accuracy", 3)]
    else:
        columns += [(ENDS, "log_likelihood", 2)]
    columns += [("CPU seconds", "seconds", 2)]
    heads = " | ".join(head for head, _, _ in columns)
    lines = [
        f"| {name}, {task['categories']} classes, {seeds} seed{'s' * (seeds > 1)} | {heads} |",
        "| --- " * (1 + len(columns)) + "|",
    ]
    for method, rows in results.items():
        cells = [method]
        for head, key, digits in columns:
            values = [row[key] for row in rows]
            ends = f"{min(values):.{digits}f} to {max(values):.{digits}f}"
            cells.append(ends if head == ENDS else f"{statistics.mean(values):.{digits}f}")
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(
    sets: Annotated[str, typer.Option(help="Names from TASKS, separated by commas.")] = ",".join(TASKS),
    seeds: Annotated[int, typer.Option(min=1)] = 3,
    methods: Annotated[str, typer.Option(help="Ours, names from OURS, separated by semicolons.")] = ";".join(OURS),
    data_dir: Annotated[Path | None, typer.Option(help="Folder of the data, if their package is elsewhere.")] = None,
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("runs/mixtures"),
) -> None:
    """Fit every data set by every method, save the results, and print them as tables."""
    out.mkdir(parents=True, exist_ok=True)
    for name in sets.split(","):
        results = compare(name, seeds, methods.split(";"), data_dir if name in IN_FOLDERS else None)
        write_atomically(out / f"{name}.json", json.dumps(results, indent=2) + "\n")
        typer.echo(section(name, results))


if __name__ == "__main__":
    typer.run(main)
