"""What is said of a step that cannot be made: the site, and a reason that is true."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.errors import NonFiniteError, SettingError

INFINITE = float("inf")


@pytest.mark.parametrize("estimator", ["rebar", "relax"])
@pytest.mark.parametrize("vectorised", [True, False], ids=["rows_at_once", "row_by_row"])
def test_impossible_transitions_are_refused_by_a_site_that_has_them(estimator, vectorised):
    pyro.set_rng_seed(0)
    w = torch.zeros(3, requires_grad=True)
    moves = torch.tensor([[0.0, 0.0, -INFINITE], [-INFINITE, 0.0, 0.0], [-INFINITE, -INFINITE, 0.0]])

    def chain(step):
        a = pyro.sample("a", dist.Categorical(logits=step(None)))
        b = pyro.sample("b", dist.Categorical(logits=step(a)))
        pyro.sample("c", dist.Categorical(logits=step(b)))

    def guide():
        chain(lambda z: w if z is None else w + moves[z])

    def model():
        chain(lambda z: torch.zeros(3) if z is None else torch.eye(3)[z])

    elbo = TraceELBO(estimator, vectorize_particles=vectorised)
    with pytest.raises(NonFiniteError, match=r"site '[bc]' of the (guide|model) gives a value no probability"):
        for _ in range(20):
            elbo.loss_and_grads(model, guide)
    for hard in ("coupled", "reinforce"):
        TraceELBO(hard).loss_and_grads(model, guide)


@pytest.mark.parametrize("estimator", ["reinforce", "straight_through", "enumerate"])
def test_half_precision_that_fails_the_check_of_a_simplex_is_said_to(estimator):
    def pair(**settings):
        def draw(trained):
            logits = torch.zeros(30_000, dtype=torch.float16, requires_grad=trained)
            return pyro.sample("z", dist.OneHotCategorical(logits=logits, **settings))

        return (lambda: draw(False)), (lambda: draw(True))

    with pytest.raises(SettingError, match=r"sum to .*single precision") as error:
        TraceELBO(estimator).loss_and_grads(*pair())
    assert "NaN" not in str(error.value)
    assert TraceELBO("reinforce").loss_and_grads(*pair(validate_args=False)) == pytest.approx(0.0, abs=0.1)


def test_parameters_that_are_nan_are_still_said_to_be():
    logits = torch.zeros(30_000, dtype=torch.float16).index_fill(0, torch.tensor(3), float("nan"))
    with pytest.raises(NonFiniteError, match="NaN or infinite"):
        TraceELBO("reinforce").loss(lambda: None, lambda: pyro.sample("z", dist.OneHotCategorical(logits=logits)))
