"""Runs over rows stand for runs of single values where rows keep apart, and are shared by the looks at one trial."""

from dataclasses import replace

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine

from pyro_discrete import TraceELBO
from pyro_discrete.inspection import trial as trial_module
from pyro_discrete.inspection import trial_rows
from pyro_discrete.inspection.apart import Followed
from pyro_discrete.inspection.enumerability import joined_plates, why_not_over_values
from pyro_discrete.inspection.trial import Trial, plain_trial
from pyro_discrete.inspection.trial_rows import check_rows
from pyro_discrete.planning import make_plan
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.sites import Site, latent_sites

X = torch.tensor([0.3, -0.7, 1.2, 0.4])
CHANCES = torch.tensor([0.3, 0.6, 0.5, 0.2])


def a_weight_of_zero():
    weight = pyro.param("c", torch.tensor(0.0))
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal(w + weight * w.roll(1, -1), 0.5), obs=X)


def two_parameters_that_start_alike():
    weight = pyro.param("a", torch.tensor(2.0)) - pyro.param("b", torch.tensor(2.0))
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal(w + weight * w.roll(1, -1), 0.5), obs=X)


def a_draw_that_switches():
    z = pyro.sample("z", dist.Bernoulli(0.01))
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal((1 - z) * w + z * w.roll(1, -1), 0.5), obs=X)


def masked_terms(joins: bool = False):
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        with poutine.mask(mask=torch.tensor([True, True, False, False])):
            v = pyro.sample("v", dist.Bernoulli(0.2 + 0.5 * (w.roll(1, -1) if joins else w)))
            pyro.sample("x", dist.Normal(w + v, 0.5), obs=X)


def masked_laws_that_join():
    masked_terms(joins=True)


def elements_apart():
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal(w, 0.5), obs=X)


def two_plates(along: int = -2):
    """As many elements in one plate as the other has halves."""
    outer, inner = pyro.plate("q", 2, dim=-2), pyro.plate("p", 4, dim=-1)
    with outer:
        v = pyro.sample("v", dist.Categorical(torch.ones(3)))
    with inner:
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
    with outer, inner:
        loc = v.cumsum(-2) + w if along == -2 else v + w.cumsum(-1)
        pyro.sample("x", dist.Normal(loc, 0.5), obs=X.expand(2, 4))


def two_plates_joined_along_the_inner_one():
    two_plates(-1)


def events():
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(0.4 * torch.ones(4, 3)).to_event(1))
        pyro.sample("x", dist.Normal(w.sum(-1) - w[..., 0].mean(-1, keepdim=True), 0.5), obs=X)


def shapes_that_take_no_rows():
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal(w.view(4) + w.mean(), 0.5), obs=X)


def noise_of_its_own():
    with pyro.plate("p", 4):
        w = pyro.sample("w", dist.Bernoulli(CHANCES))
        pyro.sample("x", dist.Normal(w + torch.rand_like(w), 0.5), obs=X)


PROGRAMS = [
    a_weight_of_zero,
    two_parameters_that_start_alike,
    a_draw_that_switches,
    masked_terms,
    masked_laws_that_join,
    elements_apart,
    two_plates,
    two_plates_joined_along_the_inner_one,
    events,
    shapes_that_take_no_rows,
    noise_of_its_own,
]


def drawn_by(model):
    """A guide with the model's draws."""
    return poutine.block(model, hide=["x"])


def planned(model, estimator):
    pyro.clear_param_store()
    torch.manual_seed(3)
    elbo = TraceELBO(estimator, num_particles=2)
    try:
        elbo.loss(model, drawn_by(model) if estimator != "in the model alone" else lambda: None)
    except ValueError as error:
        return str(error)
    return str(elbo.plan), elbo.plan.joined, repr(elbo.plan.way)


@pytest.mark.filterwarnings("ignore:This program cannot take")
@pytest.mark.filterwarnings("ignore:The guide observes")
@pytest.mark.parametrize("estimator", ["rloo", "enumerate", "auto"])
@pytest.mark.parametrize("model", PROGRAMS, ids=lambda model: model.__name__)
def test_plans_are_those_of_runs_by_themselves(monkeypatch, model, estimator):
    """Nothing followed, nothing shared, and what depends on what looked for: the same plan, by values."""
    found = planned(model, estimator)
    for module in (trial_module, trial_rows):
        monkeypatch.setattr(module, "follow", lambda *given: Followed("not followed"))
    monkeypatch.setattr(trial_rows.RunOverRows, "_run_followed", lambda over: None)
    monkeypatch.setattr(Trial, "shared_with", lambda trial, pair: None)
    monkeypatch.setattr(make_plan, "reached_by", lambda *given: None)
    assert planned(model, estimator) == found


def counted(model):
    """The trial of a pair as its looks share it, at generic numbers, and a list that grows with runs of the model."""
    runs = []

    def model_(*given):
        runs.append(1)
        return model(*given)

    given = Pair(model_, drawn_by(model), (), {})
    trial = plain_trial(given).at_generic_numbers(given, given, ())
    runs.clear()
    return given, trial, runs


def sites_of(trial):
    return [Site(m) for m in latent_sites(trial.guide_trace).values()]


@pytest.mark.parametrize(("model", "joined"), [(elements_apart, False), (events, True)])
def test_plate_elements_are_looked_at_in_rows(model, joined):
    """One run, which is followed, in the place of eight and more; the looks that follow need none."""
    pair, trial, runs = counted(model)
    assert ("p" in joined_plates(pair, trial, sites_of(trial), under_plate=True)) is joined
    assert check_rows(pair, trial)
    assert len(runs) == 1
    assert not why_not_over_values(pair, trial, ["w"])
    assert len(runs) == 2  # values at this site alone, without a plate of rows


@pytest.mark.parametrize("model", [shapes_that_take_no_rows, noise_of_its_own])
def test_programs_without_rows_and_with_noise(model):
    pair, trial, _ = counted(model)
    joined = joined_plates(pair, trial, sites_of(trial), under_plate=True)
    assert list(joined) == (["p"] if model is shapes_that_take_no_rows else [])


def test_shared_runs_are_at_the_numbers_of_the_trial_and_of_one_pair():
    pair, trial, runs = counted(a_weight_of_zero)
    assert trial.numbers is not None
    other = {"w": 1 - trial.values["w"]}
    run = trial.at(pair, other)
    assert trial.at(pair, dict(other)) is run
    assert len(runs) == 1
    plain = replace(trial, numbers=None, shared=None).at(pair, other)
    assert not torch.equal(run.terms[1]["x"].term, plain.terms[1]["x"].term)
    assert pyro.param("c").item() == 0.0
    elsewhere = Pair(pair.model, pair.guide, (), {})
    assert trial.at(elsewhere, other) is not run
    assert trial.at(pair, other, anew=True) is not run
    assert trial.at(pair, trial.values).traces == (trial.guide_trace, trial.model_trace)


def test_runs_that_draw_are_not_shared():
    pair, trial, _ = counted(noise_of_its_own)
    other = {"w": 1 - trial.values["w"]}
    assert trial.at(pair, other) is not trial.at(pair, other)


@pytest.mark.parametrize("whole", [torch.any, torch.all])
def test_reductions_over_all_rows_are_seen(whole):
    def model():
        with pyro.plate("p", 4):
            w = pyro.sample("w", dist.Bernoulli(CHANCES))
            pyro.sample("x", dist.Normal(w + whole(w > 0), 0.5), obs=X)

    pair, trial, _ = counted(model)
    assert "values in other rows" in check_rows(pair, trial).reason
