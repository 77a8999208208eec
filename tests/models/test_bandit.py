"""Policies from a bandit's log: what the log says of a policy, and how near the exact optimum each estimator comes."""

from __future__ import annotations

import json
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from typer.testing import CliRunner

from models.cli.commands import app
from models.data.logged import LoggedRounds, load_log, load_open_bandit
from models.errors import ConfigError, DataError
from models.programs.bandit import Policy, learn_policy

HEADER = "timestamp,item_id,position,click,propensity_score\n"


def small_log(rewards=(1.0, 0.0, 1.0, 0.5)):
    return LoggedRounds(
        "small",
        np.array([0, 0, 1, 1]),
        np.array([0, 2, 1, 2]),
        np.array(rewards),
        np.array([0.5, 0.25, 0.5, 0.25]),
        (2, 3),
        "four rounds",
    )


def test_values_are_inverse_propensity_means():
    log = small_log()
    assert log.values().tolist() == [[1.0, 0.0, 0.0], [0.0, 1.0, 1.0]]
    assert Policy(log).reward(np.array([[0, 1], [2, 2]])).tolist() == [[0.5, 0.5], [0.0, 0.5]]


def test_the_estimate_is_unbiased_for_the_simulated_truth():
    """The logging policy's weights undone: the mean over all arms within 4 standard errors (probability 6e-5)."""
    log = load_log("simulated")
    estimate, truth = log.values().mean(1), log.truth.mean(1)
    terms = log.rewards / log.propensities / log.size[1]
    error = terms.std() / np.sqrt(np.bincount(log.contexts))
    assert (abs(estimate - truth) < 4 * error).all()


@pytest.mark.parametrize("estimator", ["auto", "rloo"])
def test_the_optimum_is_come_near(estimator):
    run = learn_policy(small_log(), estimator, steps=60, particles=4, learning_rate=0.2)
    assert run.optimum == 1.0
    assert run.expected > 0.9
    assert run.trajectory[0][1] == pytest.approx(0.5)


def test_the_optimum_with_entropy_is_come_near_and_never_passed():
    run = learn_policy(small_log(), "enumerate", steps=150, learning_rate=0.1, entropy_weight=0.4)
    assert run.objective_optimum - 1e-3 < run.objective <= run.objective_optimum
    assert run.expected < 0.99


def test_the_open_bandit_is_read_from_a_named_folder(tmp_path: Path):
    folder = tmp_path / "random" / "all"
    folder.mkdir(parents=True)
    (folder / "all.csv").write_text(HEADER + "t,14,3,0,0.0125\nt,79,1,1,0.0125\n")
    log = load_open_bandit(tmp_path)
    assert log.size == (3, 80)
    assert log.contexts.tolist() == [2, 0]
    assert log.values()[0, 79] == pytest.approx(80)
    for text, message in ((HEADER + "t,80,1,0,0.0125\n", "action outside"), ("a,b\n1,2\n", "not a log")):
        (folder / "all.csv").write_text(text)
        with pytest.raises(DataError, match=message):
            load_open_bandit(tmp_path)


def test_what_is_missing_is_said_in_one_message(tmp_path: Path):
    with pytest.raises(DataError, match="obp"):
        load_open_bandit(None)
    with pytest.raises(DataError, match=r"all\.csv"):
        load_open_bandit(tmp_path)
    with pytest.raises(DataError, match="Did you mean 'simulated'"):
        load_log("simulate")
    with pytest.raises(ConfigError, match="reinforce"):
        learn_policy(small_log(), "reinforc")
    with pytest.raises(ConfigError, match="steps=0"):
        learn_policy(small_log(), "reinforce", steps=0)


def test_the_command_prints_a_table_and_keeps_the_figures(tmp_path: Path):
    arguments = ["bandit", "--estimators", "auto,reinforce", "--steps", "3", "--entropy-weight", "0.01"]
    result = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    runs = json.loads((tmp_path / "results.json").read_text())
    assert [run["estimator"] for run in runs] == ["auto", "reinforce"]
    assert f"{runs[0]['true']:.4f}" in result.output
    assert matplotlib.image.imread(tmp_path / "policies.png").std() > 0.01
    wrong = CliRunner().invoke(app, [*arguments, "--out", str(tmp_path)])
    assert wrong.exit_code == 2
