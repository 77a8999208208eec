"""What a raw error of torch or Pyro, or an infinite sum, means: the site or argument, what was given and expected."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Callable
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI
from torch import Tensor, nn

from pyro_discrete import NVIL, TraceELBO, TraceExpectation, TraceIWELBO
from pyro_discrete.errors import (
    DiscreteInferenceError,
    MissingDataError,
    NonFiniteError,
    SettingError,
    SiteMatchError,
    SiteShapeError,
)

X = torch.tensor([0.3, 1.2, -0.4])
OBJECTIVES: dict[str, Callable[[], Any]] = {
    "nvil": lambda: TraceELBO("nvil"),
    "particles": lambda: TraceELBO("rloo", num_particles=2),
    "row by row": lambda: TraceELBO("rloo", num_particles=2, vectorize_particles=False),
    "enumerate": lambda: TraceELBO("enumerate"),
    "bound": lambda: TraceIWELBO("vimco", num_particles=3),
    "graph": lambda: TraceELBO("nvil", compile="graph"),
}


@pytest.fixture(params=OBJECTIVES)
def elbo(request: pytest.FixtureRequest) -> Any:
    return OBJECTIVES[request.param]()


def model(x: Any, name: str = "z") -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample(name, dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def guide(x: Any, name: str = "z") -> None:
    with pyro.plate("data", len(x)):
        pyro.sample(name, dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2)), validate_args=False))


def refused(error: type[DiscreteInferenceError], words: str, call: Callable[[], Any]) -> None:
    with pytest.raises(error, match=words) as caught:
        call()
    text = str(caught.value)
    assert "Trace Shapes" not in text
    assert "\n" not in text
    assert len(text) < 500


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize(
    ("data", "words"),
    [
        (X.numpy(), r"'x' of the model observes a NumPy array of shape \(3,\), the argument 'x'.*a tensor"),
        ([0.3, 1.2, -0.4], "'x' of the model observes a list, the argument 'x' .*a tensor is expected"),
        ((0.3, 1.2, -0.4), "'x' of the model observes a tuple, the argument 'x' .*a tensor is expected"),
    ],
)
def test_data_that_are_no_tensor(data: Any, words: str, validated: bool, elbo: Any) -> None:
    with pyro.validation_enabled(validated):
        refused(SettingError, words, lambda: elbo.loss_and_grads(model, guide, data))
        refused(SettingError, words, lambda: SVI(model, guide, pyro.optim.Adam({}), elbo).step(x=data))


@pytest.mark.parametrize("data", [X.numpy(), X.tolist()])
def test_data_that_are_no_tensor_in_a_network(data: Any) -> None:
    encoder = nn.Linear(3, 3)

    def amortised(x: Any) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)))

    refused(SettingError, r"rgument 'x' .*torch.as_tensor\(x\)", lambda: TraceELBO("nvil").loss(model, amortised, data))


def test_an_array_that_a_program_reads_itself_is_no_error() -> None:
    def own(x: Any) -> None:
        model(torch.as_tensor(x))

    for each in (TraceELBO("enumerate"), TraceELBO("nvil")):
        assert math.isfinite(each.loss_and_grads(own, lambda x: guide(torch.as_tensor(x)), X.numpy()))


def test_errors_of_the_program_itself_go_by(elbo: Any) -> None:
    def wrong(x: Any, table: Any) -> None:
        model(x)
        {}["no such key"]

    with pytest.raises(KeyError, match="no such key"):
        elbo.loss_and_grads(wrong, lambda x, table: guide(x), X, [1.0])


@pytest.mark.parametrize("second", ["latent", "observed", "in the guide"])
def test_two_sites_of_one_name(second: str, elbo: Any) -> None:
    def twice(x: Tensor) -> None:
        model(x)
        if second == "latent":
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        elif second == "observed":
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))

    def of_twice(x: Tensor) -> None:
        guide(x)
        if second == "in the guide":
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))

    where, name = {"latent": ("model", "z"), "observed": ("model", "x"), "in the guide": ("guide", "z")}[second]
    words = f"The {where} has two sites of the name '{name}'"
    refused(SiteMatchError, words, lambda: elbo.loss_and_grads(twice, of_twice, X))


@pytest.mark.parametrize("validated", [True, False])
@pytest.mark.parametrize("form", ["plate", "event", "event size"])
def test_an_observed_value_of_another_shape(form: str, validated: bool) -> None:
    def wrong(x: Tensor) -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        if form == "plate":
            with pyro.plate("data", 3):
                pyro.sample("x", dist.Normal(z, 1.0), obs=x)
        else:
            size = 3 if form == "event" else 4
            pyro.sample("x", dist.Normal(z[..., None], torch.ones(size)).to_event(1), obs=x if form == "event" else X)

    def of_wrong(x: Tensor) -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.2))))

    shapes = {"event size": r"\(3,\).*\(4,\)"}.get(form, r"\(2,\).*\(3,\)")
    for each in (TraceELBO("nvil"), TraceELBO("rloo", num_particles=2), TraceELBO("enumerate")):
        with pyro.validation_enabled(validated):
            refused(SiteShapeError, f"'x' of the model.*{shapes}", lambda e=each: e.loss(wrong, of_wrong, X[:2]))


def test_a_later_batch_of_another_shape() -> None:
    def fixed(x: Tensor) -> None:
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for each in (TraceELBO("nvil"), TraceELBO("enumerate")):
        each.loss_and_grads(fixed, lambda x: guide(X), X)
        for later in (X[:2], X.numpy()):
            with pytest.raises((SiteShapeError, SettingError), match="'x' of the model observes"):
                each.loss_and_grads(fixed, lambda x: guide(X), later)


@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "OneHotCategorical"])
def test_parameters_that_are_nan_without_validation(family: str, elbo: Any) -> None:
    shape = () if family == "Bernoulli" else (4,)

    def of(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            logits = pyro.param("logits", torch.full(shape, math.nan))
            pyro.sample("z", getattr(dist, family)(logits=logits, validate_args=False))

    def prior(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", getattr(dist, family)(logits=torch.zeros(shape)))
            z = z.float() if z.dim() == 1 or family != "OneHotCategorical" else z[..., 0]
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        refused(NonFiniteError, "(?i)'z'.*nan", lambda: elbo.loss_and_grads(prior, of, X))


def test_missing_covariates_are_the_reason_for_parameters_that_are_nan() -> None:
    def of(x: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=w, validate_args=False))

    call = lambda: TraceELBO("nvil").loss(lambda x, w: model(x), of, X, w=torch.tensor([0.1, math.nan, 0.2]))  # noqa: E731
    with pyro.validation_enabled(False):
        refused(MissingDataError, "argument 'w'.*NaN", call)


def test_data_outside_the_support_name_their_site() -> None:
    def counts(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Poisson(1 + z), obs=x)

    for each in (TraceELBO("nvil"), TraceELBO("enumerate"), TraceELBO("rloo", num_particles=2)):
        refused(
            NonFiniteError, r"'x' of the model observes.*Poisson.*\(3 of 3 ", lambda e=each: e.loss(counts, guide, X)
        )


@pytest.mark.parametrize("other", [None, 3, X])
def test_what_is_no_program(other: Any, elbo: Any) -> None:
    shown = {None: "None", 3: "3"}.get(other if not isinstance(other, Tensor) else "", r"a tensor of shape \(3,\)")
    refused(SettingError, f"The model is {shown}; a function", lambda: elbo.loss_and_grads(other, guide, X))
    refused(SettingError, f"The guide is {shown}; a function", lambda: elbo.loss(model, other, X))


def test_gradients_that_are_off_are_told_of(elbo: Any) -> None:
    for off in (torch.no_grad, torch.inference_mode):
        with off(), pytest.warns(UserWarning, match="loss_and_grads was called with gradients off"):
            elbo.loss_and_grads(model, guide, X)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with torch.no_grad():
            elbo.loss(model, guide, X)


def test_the_state_of_other_sites_is_told_of_once() -> None:
    old, new = TraceELBO("nvil"), TraceELBO("nvil")
    old.loss_and_grads(model, guide, X)
    new.load_state_dict(old.state_dict())
    with pytest.warns(UserWarning, match="learned at site 'z', which the guide does not have; it has site 'w'"):
        new.loss_and_grads(model, guide, X, name="w")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        new.loss_and_grads(model, guide, X, name="w")
        new.loss_and_grads(model, guide, X)  # at last they are met
    assert not new.estimators._waiting


def test_the_state_of_a_site_in_a_branch_is_not_told_of() -> None:
    names = []

    def either(x: Tensor) -> None:
        names.append("w" if len(names) % 2 == 0 else "z")
        guide(x, names[-1])

    def any_model(x: Tensor) -> None:
        model(x, names[-1])

    old, new = TraceELBO(NVIL()), TraceELBO(NVIL())
    old.loss_and_grads(model, guide, X)
    new.load_state_dict(old.state_dict())
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message="The loaded state")
        with contextlib.suppress(DiscreteInferenceError):  # the sites change at every run, which is another matter
            new.loss_and_grads(any_model, either, X)


def masked(z: Tensor) -> Any:
    return dist.MaskedMixture(z > 0.5, dist.Normal(torch.tensor(0.0), 1.0), dist.Delta(torch.tensor(0.0)))


IMPOSSIBLE: dict[str, Callable[[Tensor], Any]] = {
    "masked mixture": masked,
    "uniform": lambda z: dist.Uniform(torch.tensor(-9.0), 9.0 - 17.9 * z, validate_args=False),
    "shifted": lambda z: dist.TransformedDistribution(
        dist.HalfNormal(torch.ones(())), [torch.distributions.transforms.AffineTransform(3.0 * z, 1.0)]
    ),
}


@pytest.mark.parametrize("family", ["Bernoulli", "Categorical", "two bits", "of the model alone"])
@pytest.mark.parametrize("likelihood", IMPOSSIBLE)
def test_an_infinite_sum_names_the_site_and_the_value(likelihood: str, family: str) -> None:
    """The value that makes the datum impossible has a probability of some two per cent: a plain run rarely has it."""

    def prior() -> None:
        if family == "two bits":
            z = pyro.sample("z", dist.Bernoulli(torch.full((2,), 0.5)).to_event(1)).prod(-1)
        elif family == "Categorical":
            z = (pyro.sample("z", dist.Categorical(torch.ones(3) / 3)) == 2).float()
        else:
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.02 if family == "of the model alone" else 0.5)))
        pyro.sample("seen", IMPOSSIBLE[likelihood](z), obs=torch.tensor(1.5))

    def of() -> None:
        if family == "two bits":
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.full((2,), -4.0))).to_event(1))
        elif family == "Categorical":
            pyro.sample("z", dist.Categorical(logits=pyro.param("c", torch.tensor([0.0, 0.0, -4.0]))))
        elif family == "Bernoulli":
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("b", torch.tensor(-4.0))))

    pyro.clear_param_store()
    with pyro.validation_enabled(False):
        elbo = TraceELBO("enumerate")
        if family == "of the model alone":  # a mixture's term that is impossible makes the sum no smaller than it is
            assert math.isfinite(elbo.loss_and_grads(prior, of))
            return
        value = {"Categorical": "2", "two bits": "1"}.get(family, "1")
        words = f"loss is inf at step 0: site 'seen' of the model has .*where 'z' is {value}"
        refused(NonFiniteError, words, lambda: elbo.loss_and_grads(prior, of))


def test_an_infinite_reward_names_its_factor() -> None:
    def reward() -> None:
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
        pyro.factor("reward", torch.where(z > 0.5, -torch.inf, 1.0))

    def of() -> None:
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("rare", torch.tensor(-4.0))))

    refused(
        NonFiniteError,
        "site 'reward' of the model.*where 'z' is 1",
        lambda: TraceExpectation("enumerate").loss_and_grads(reward, of),
    )


def test_many_sites_are_looked_at_one_by_one() -> None:
    def prior() -> None:
        total = torch.tensor(0.0)
        for i in range(12):
            total = total + pyro.sample(f"z_{i}", dist.Bernoulli(torch.tensor(0.5)))
        pyro.sample("seen", dist.Uniform(torch.tensor(-1.0), 3.0 - 2.5 * (total > 11.5)), obs=torch.tensor(1.5))

    def of() -> None:
        for i in range(12):
            pyro.sample(f"z_{i}", dist.Bernoulli(torch.tensor(0.05)))

    with pyro.validation_enabled(False):
        refused(NonFiniteError, "looked at one by one|'seen'", lambda: TraceELBO("enumerate").loss_and_grads(prior, of))
