"""What an estimator returns, what its `surrogate` gets, and what it weighs rows with."""

from __future__ import annotations

import copy
import pickle

import pytest
import torch

import pyro_discrete
from pyro_discrete import Draw, ScoredDraw, estimators
from pyro_discrete.estimators.base import weighted_rows

VALUE = torch.arange(6.0).reshape(2, 3)


def test_what_the_engine_adds_is_not_there_before() -> None:
    draw = Draw(VALUE)
    for name in ("log_q", "score", "scale", "event_dim", "slopes", "context", "weights"):
        with pytest.raises(AttributeError, match=rf"a draw has its {name} only in surrogate\(\), not in draw\(\)"):
            getattr(draw, name)
    with pytest.raises(AttributeError, match="'Draw' object has no attribute 'scores'"):
        _ = draw.scores
    with pytest.raises(RuntimeError, match="no log_q"):
        _ = ScoredDraw(VALUE).score
    assert ScoredDraw is pyro_discrete.ScoredDraw is estimators.ScoredDraw


def test_a_draw_with_its_score_is_a_scored_draw() -> None:
    """As it was written when there was one class."""
    log_q = torch.ones(3)
    for made in (Draw(VALUE, log_q=log_q, event_dim=1), Draw.replace(Draw(VALUE), log_q=log_q, event_dim=1)):
        assert type(made) is ScoredDraw
        assert made.score is log_q
        assert made.event_dim == 1
        assert type(made.replace(scale=2.0)) is ScoredDraw
    assert type(Draw(VALUE, logits=VALUE[0]).replace(extra={})) is Draw


@pytest.mark.parametrize("made", [Draw(VALUE), ScoredDraw(VALUE, log_q=VALUE[0], scale=3.0)])
def test_draws_are_copied_and_pickled(made: Draw) -> None:
    for other in (copy.copy(made), copy.deepcopy(made), pickle.loads(pickle.dumps(made))):
        assert type(other) is type(made)
        assert torch.equal(other.value, VALUE)
        assert vars(other).keys() == vars(made).keys()


def test_what_rows_have_is_kept_by_particle_and_joined() -> None:
    """Runs of two and of one particle make one of three."""
    weight = torch.arange(6.0).reshape(2, 3)
    draw = ScoredDraw(VALUE, extra={"noise": VALUE[0]}, log_q=VALUE[0]).with_rows(weight=weight)
    assert type(draw) is ScoredDraw
    assert draw.extra["weight"].shape == (3, 2)
    assert torch.equal(draw.of_rows("weight"), weight)
    parts = [
        ScoredDraw(VALUE[:, k], extra={"noise": VALUE[0, k]}, log_q=VALUE[0, k]).with_rows(weight=weight[:, k])
        for k in (slice(0, 2), slice(2, 3))
    ]
    joined = ScoredDraw.join(parts)
    assert torch.equal(joined.of_rows("weight"), weight)
    assert torch.equal(joined.value, VALUE)
    assert torch.equal(joined.extra["noise"], VALUE[0])


def test_a_weight_of_zero_counts_nothing_in_value_and_gradient() -> None:
    weights = torch.tensor([[0.25, 0.0], [0.75, 1.0]], requires_grad=True)
    terms = torch.tensor([[4.0, torch.inf], [8.0, -1.0]], requires_grad=True)
    found = weighted_rows(weights, terms)
    assert found.tolist() == [7.0, -1.0]
    by_weight, by_term = torch.autograd.grad(found.sum(), (weights, terms))
    assert by_weight.tolist() == [[4.0, 0.0], [8.0, -1.0]]
    assert by_term.tolist() == [[0.25, 0.0], [0.75, 1.0]]
