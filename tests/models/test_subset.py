"""A subset of features: the data, the posterior against brute force, and the lasso beside it."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from models.data.tables import Tables, load_breast_cancer, load_diabetes, load_simulated_regression
from models.errors import ConfigError, DataError
from models.programs.structured.subset import SubsetRegression
from models.runs.config import build_program, configure
from models.runs.evaluation import isolated
from models.runs.findings import exact_inclusion, findings
from models.runs.rivals import LinearFit, lasso_fit
from models.runs.training import Training
from pyro_discrete import TraceELBO


def small(classes: bool) -> tuple[SubsetRegression, Tables]:
    """Four features of which two are read, weights far from zero, six rows."""
    torch.manual_seed(0)
    program = SubsetRegression(4, 2, classes)
    x = torch.randn(1, 6, 4)
    y = torch.randn(1, 6)
    table = torch.cat([(y > 0).float().unsqueeze(-1) if classes else y.unsqueeze(-1), x], -1)
    with torch.no_grad():
        program.weights.copy_(torch.tensor([1.0, -0.5, 0.7, 0.3]))
        program.intercept.fill_(0.2)
        program.log_scale.fill_(-0.3)
    return program, Tables("own", table, table, "made by the test", classes=classes, features=tuple("abcd"))


@pytest.mark.parametrize("classes", [False, True])
def test_posterior_and_bound_by_going_through_all_subsets(classes: bool) -> None:
    program, data = small(classes)
    y, x = data.train[0, :, 0], data.train[0, :, 1:]
    subsets = torch.zeros(6, 4)
    for row, chosen in zip(subsets, itertools.combinations(range(4), 2), strict=True):
        row[list(chosen)] = 1.0
    with torch.no_grad():
        linear = 0.2 + (x * subsets.unsqueeze(1)) @ program.weights
        if classes:
            each = torch.where(y == 1, linear.sigmoid(), 1 - linear.sigmoid()).log()
        else:
            variance = math.exp(-0.6)
            each = -0.5 * ((y - linear) ** 2 / variance + math.log(2 * math.pi * variance))
        joint = each.sum(-1) - math.log(6)
    exact = exact_inclusion(program, data)
    assert exact is not None
    assert torch.allclose(exact.float(), joint.softmax(0) @ subsets, atol=1e-5)
    with isolated(0):
        loss = TraceELBO("enumerate").loss(program.model, program.guide, data.train)
    assert -loss == pytest.approx(float(joint.mean()) + math.log(6), abs=1e-3)  # the guide is uniform


@pytest.mark.parametrize("estimator", ["enumerate", "rloo", "straight_through", "gumbel_softmax"])
def test_the_features_that_matter_are_found(estimator: str) -> None:
    """Three of ten at random would all be right in one of 120 cases, and explain nothing."""
    data = load_simulated_regression()
    particles = 8 if estimator == "rloo" else None
    with isolated(0):
        training = Training(configure("subset", estimator, steps=150, lr=0.05, particles=particles), data)
        training.run()
    found = findings(training.program, data, data.test)
    assert found["right_features"] == 1.0
    assert found["test_r_squared"] > 0.5


def test_the_lasso_chooses_no_more_features_than_asked_for() -> None:
    data = load_simulated_regression()
    fit = lasso_fit(data, 3)
    assert set(fit.chosen.tolist()) == set(data.truth)
    x, y = data.train[0, :, 1:].double(), data.train[0, :, :1].double()
    x = torch.cat([torch.ones_like(y), x[:, fit.chosen]], -1)
    weights = torch.linalg.lstsq(x, y).solution
    test_x, test_y = data.test[0, :, 1:].double()[:, fit.chosen], data.test[0, :, :1].double()
    rest = test_y - weights[0] - test_x @ weights[1:]
    r_squared = 1 - float((rest**2).sum() / ((test_y - test_y.mean()) ** 2).sum())
    assert fit.score == pytest.approx(r_squared, abs=1e-5)
    assert LinearFit(data, fit.chosen[:1]).score < fit.score
    cancer = load_breast_cancer()
    assert len(lasso_fit(cancer, 4).chosen) <= 4
    assert lasso_fit(cancer, 4).score > 0.85


def test_sets_of_tables() -> None:
    diabetes, cancer = load_diabetes(), load_breast_cancer()
    assert (diabetes.train.shape, diabetes.test.shape) == ((1, 332, 11), (1, 110, 11))
    assert (cancer.train.shape, cancer.test.shape) == ((1, 427, 31), (1, 142, 31))
    assert torch.allclose(diabetes.train.mean(1), torch.zeros(11), atol=1e-4)
    assert set(cancer.train[0, :, 0].tolist()) == {0.0, 1.0}


def test_too_many_features_and_classes_that_are_none() -> None:
    with pytest.raises(ConfigError, match="--latents is 11; expected 1 to 10, the features that there are"):
        build_program(configure("subset", "rloo", latents=11), load_simulated_regression())
    ok = torch.zeros(1, 3, 2)
    with pytest.raises(DataError, match="hold 2; expected 0 and 1"):
        Tables("own", ok + 2, ok, "made by the test", classes=True, features=("a",))
    with pytest.raises(DataError, match=r"expected \[number, any, 2\]"):
        Tables("own", ok, torch.zeros(1, 3, 3), "made by the test", features=("a",))
