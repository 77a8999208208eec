"""A categorical policy learned from a bandit's log, whose rewards are plain NumPy, by `TraceExpectation`."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import pyro
import torch
from numpy.typing import NDArray
from pyro.distributions import Categorical
from rich.table import Table
from torch import Tensor, nn

from models.data.logged import LoggedRounds
from models.errors import ConfigError
from pyro_discrete import TraceExpectation, available_estimators
from pyro_discrete.errors import near_matches

__all__ = ["LearnedPolicy", "Policy", "bandit_table", "learn_policy"]


class Policy(nn.Module):
    """One choice of an arm in each context, and the log's estimate of its value as a reward.

    The model knows the reward as a function of arrays alone; the guide is the policy.
    """

    def __init__(self, log: LoggedRounds) -> None:
        super().__init__()
        self.values = log.values()
        self.weights = log.weights
        self.logits = nn.Parameter(torch.zeros(log.size, dtype=torch.float64))

    def reward(self, arms: NDArray[np.int64]) -> NDArray[np.float64]:
        """Estimated values of arms `[..., contexts]`, weighed by how often the context comes."""
        contexts = np.arange(len(self.weights))
        return self.weights * self.values[contexts, arms]

    def model(self) -> None:
        with pyro.plate("contexts", len(self.weights)):
            arms = pyro.sample("arm", Categorical(logits=torch.zeros_like(self.logits)))
            pyro.factor("reward", torch.as_tensor(self.reward(arms.numpy())))

    def guide(self) -> None:
        pyro.module("policy", self)
        with pyro.plate("contexts", len(self.weights)):
            pyro.sample("arm", Categorical(logits=self.logits))

    def probabilities(self) -> Tensor:
        """The policy `[contexts, arms]`."""
        return self.logits.detach().softmax(-1)


@dataclass(frozen=True)
class LearnedPolicy:
    """What a run came to; rewards are means a round.

    - `expected`: of the policy, exactly, by the log's estimates; `objective` with the entropy it was trained with.
    - `optimum`, `objective_optimum`: the largest that any policy has, exactly. `true`, `true_optimum`: by the mean
      rewards that the log was simulated with, if it was.
    - `log`: what the logging policy earned.
    """

    estimator: str
    steps: int
    particles: int
    entropy_weight: float
    expected: float
    optimum: float
    objective: float
    objective_optimum: float
    entropy: float
    log: float
    true: float | None
    true_optimum: float | None
    ms_per_step: float
    trajectory: list[tuple[int, float]]

    def to_dict(self) -> dict[str, object]:
        """For a file."""
        return asdict(self)


def learn_policy(
    log: LoggedRounds,
    estimator: str,
    *,
    steps: int = 2000,
    particles: int = 16,
    learning_rate: float = 0.05,
    entropy_weight: float = 0.0,
    seed: int = 0,
) -> LearnedPolicy:
    """Train a policy from the uniform one, by Adam, and compare it with the exact optimum.

    With an entropy weight b, the best objective in a context is b log sum_a exp(V(a) / b), at a policy proportional to
    exp(V(a) / b). Raises `ConfigError` for an unknown estimator or settings out of range.
    """
    known = [*available_estimators(), "auto"]
    if estimator not in known:
        raise ConfigError(f"Unknown estimator {estimator!r}. {near_matches(estimator, known)}")
    if steps < 1 or particles < 1 or not learning_rate > 0 or not entropy_weight >= 0:
        raise ConfigError(
            f"steps={steps}, particles={particles}, learning_rate={learning_rate}, entropy_weight={entropy_weight} "
            "given; whole numbers of at least 1, a positive rate and a weight >= 0 are expected."
        )
    pyro.clear_param_store()
    torch.manual_seed(seed)
    policy = Policy(log)
    # the mean of the objective over contexts, so that a weight means the same whatever their number
    elbo = TraceExpectation(estimator, num_particles=particles, entropy_weight=entropy_weight / len(policy.weights))
    optimiser = torch.optim.Adam([policy.logits], lr=learning_rate)
    trajectory, seconds = [], 0.0
    for step in range(steps):
        if step % max(1, steps // 50) == 0:
            trajectory.append((step, _expected(policy)))
        started = time.perf_counter()
        optimiser.zero_grad()
        elbo.loss_and_grads(policy.model, policy.guide)
        optimiser.step()
        seconds += time.perf_counter() - started
    trajectory.append((steps, _expected(policy)))
    return _judged(policy, log, estimator, steps, particles, entropy_weight, 1e3 * seconds / steps, trajectory)


def _expected(policy: Policy) -> float:
    return float((policy.weights[:, None] * policy.values * policy.probabilities().numpy()).sum())


def _judged(
    policy: Policy,
    log: LoggedRounds,
    estimator: str,
    steps: int,
    particles: int,
    entropy_weight: float,
    ms_per_step: float,
    trajectory: list[tuple[int, float]],
) -> LearnedPolicy:
    weighed = policy.weights[:, None] * policy.values
    p = policy.probabilities()
    entropy = float(-torch.xlogy(p, p).sum(-1).mean())
    optimum = float(weighed.max(1).sum())
    best = optimum
    if entropy_weight:
        share = entropy_weight / len(policy.weights)
        best = float(share * torch.as_tensor(weighed / share).logsumexp(-1).sum())
    true = None if log.truth is None else policy.weights[:, None] * log.truth
    expected = _expected(policy)
    return LearnedPolicy(
        estimator,
        steps,
        particles,
        entropy_weight,
        expected,
        optimum,
        expected + entropy_weight * entropy,
        best,
        entropy,
        float(log.rewards.mean()),
        None if true is None else float((true * p.numpy()).sum()),
        None if true is None else float(true.max(1).sum()),
        ms_per_step,
        trajectory,
    )


def bandit_table(log: LoggedRounds, runs: Sequence[LearnedPolicy]) -> Table:
    """All runs on one log, a row each."""
    first = runs[0]
    regularised = first.entropy_weight > 0
    table = Table(
        title=f"policies learned from the log {log.name!r}: mean reward a round",
        caption=f"Expected by the log's estimates; the policy that wrote the log earned {first.log:.4f}."
        + (" True: by the rewards that the log was simulated with." if first.true is not None else ""),
    )
    table.add_column("estimator")
    headings = ["particles", "expected\nreward", "of the best\npolicy", "share of\nthe best"]
    headings += ["reward and\nentropy", "of the best\nwith entropy"] if regularised else []
    headings += ["true\nreward", "of the truly\nbest policy"] if first.true is not None else []
    for heading in [*headings, "ms per\nstep"]:
        table.add_column(heading, justify="right")
    for run in runs:
        cells = [f"{run.particles}", f"{run.expected:.4f}", f"{run.optimum:.4f}", f"{run.expected / run.optimum:.1%}"]
        cells += [f"{run.objective:.4f}", f"{run.objective_optimum:.4f}"] if regularised else []
        cells += [f"{run.true:.4f}", f"{run.true_optimum:.4f}"] if run.true is not None else []
        table.add_row(run.estimator, *cells, f"{run.ms_per_step:.2f}")
    return table
