"""Each kind of bad input gets one clear error that names the site and the remedy, and changes nothing."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import SVI, Trace_ELBO

from pyro_discrete import (
    ARMS,
    CARMS,
    NVIL,
    Enumerate,
    GumbelRao,
    GumbelSoftmax,
    StraightThroughGumbelSoftmax,
    SumAndSample,
    TraceELBO,
    TraceIWELBO,
    UnorderedSet,
    relax,
)
from pyro_discrete.errors import (
    EmptyBatchError,
    EnumerationError,
    MissingDataError,
    NonFiniteError,
    SettingError,
    SiteMatchError,
    SiteShapeError,
    UnsupportedSiteError,
)
from tests.support.pairs import DATA, OwnCount, gradients, mixture, mixture_guide


def poisson(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Poisson(2.0))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def poisson_guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Poisson(pyro.param("rate", torch.tensor(1.5))))


def run(error, words, estimator="reinforce", model=mixture, guide=mixture_guide, data=DATA, particles=1):
    elbo = TraceELBO(estimator, num_particles=particles)
    for call in (elbo.loss_and_grads, elbo.differentiable_loss):
        with pytest.raises(error, match=words) as caught:
            call(model, guide, data)
        assert "Trace Shapes" not in str(caught.value)
    assert all(gradient.isfinite().all() for gradient in gradients().values())


@pytest.mark.parametrize("name", ["gumbel_softmax", "straight_through_gumbel_softmax"])
def test_relaxed_estimator_on_a_poisson(name):
    run(UnsupportedSiteError, "'z'.*Poisson.*would do.*nvil", name, poisson, poisson_guide)


@pytest.mark.parametrize("settings", [{}, {"vectorize_particles": False}, {"compile": "graph"}])
@pytest.mark.parametrize("objective", [TraceELBO, TraceIWELBO])
def test_density_of_a_relaxed_multinomial(objective, settings):
    """It has none. The refusal names the site, of guide and model, and keeps its type on the way out."""

    def model(x):
        n = pyro.sample("n", dist.Multinomial(3, logits=torch.zeros(2)))
        pyro.sample("x", dist.Normal(n[..., 0], 1.0), obs=x[0])

    def guide(x):
        pyro.sample("n", dist.Multinomial(3, logits=pyro.param("logits", torch.zeros(2))))

    elbo = objective(GumbelSoftmax(kl="relaxed"), num_particles=2, **settings)
    with pytest.raises(UnsupportedSiteError, match=r"^Site 'n' is Multinomial.*kl='linear'"):
        elbo.loss_and_grads(model, guide, DATA)
    objective(GumbelSoftmax(kl="linear"), num_particles=2, **settings).loss_and_grads(model, guide, DATA)


@pytest.mark.parametrize("wrap", [True, False])
def test_relax_handler_on_a_poisson(wrap):
    with pytest.raises(UnsupportedSiteError, match=r"'z' is Poisson.*no relaxation"):
        if wrap:
            Trace_ELBO().loss(relax(poisson, temperature=0.5), relax(poisson_guide, temperature=0.5), DATA)
        else:
            with relax(temperature=0.5):
                Trace_ELBO().loss(poisson, poisson_guide, DATA)


def test_relax_handler_around_this_elbo():
    for estimator in ("auto", "nvil"):
        with relax(temperature=0.5), pytest.raises(SettingError, match="gumbel_softmax"):
            TraceELBO(estimator).loss(mixture, mixture_guide, DATA)


def test_enumerating_an_infinite_support():
    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", OwnCount(pyro.param("w", torch.tensor(0.2))))

    run(EnumerationError, "'z'.*no finite support.*truncation", "enumerate", poisson, guide)
    TraceELBO("enumerate").loss(poisson, poisson_guide, DATA)  # of a Poisson a bound is known


def test_enumerating_too_large_a_support_states_its_size():
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(50)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x[0])

    def guide(x):
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("w", torch.zeros(50))).to_event(1))

    run(EnumerationError, r"'z' needs 1\.13e\+15 joint values", "enumerate", model, guide)
    run(
        EnumerationError, "'z'.*at most 8 are", {"z": Enumerate(max_elements=8), "*": "rloo"}, model, guide, particles=2
    )


def test_guide_site_that_the_model_does_not_have():
    def guide(x):
        mixture_guide(x)
        pyro.sample("w", dist.Bernoulli(0.5))

    run(SiteMatchError, "'w' is drawn in the guide but is not in the model.*is_auxiliary", guide=guide)
    run(SiteMatchError, "'z' .*is observed in the model", model=pyro.condition(mixture, data={"z": torch.ones(3)}))


def test_model_site_that_the_guide_does_not_have():
    def counts(x):
        mixture(x)
        pyro.sample("w", OwnCount(torch.tensor(0.5)))

    def continuous(x):
        mixture(x)
        pyro.sample("w", dist.Normal(0.0, 1.0))

    run(SiteMatchError, "'w' is latent in the model.*no finite support.*Draw it in the guide", model=counts)
    run(SiteMatchError, "'w' is latent in the model but not drawn in the guide", "enumerate", model=continuous)


def test_missing_plates_and_wrong_shapes():
    def outside(x):
        pyro.sample("z", dist.Bernoulli(0.3))

    def undeclared(x):
        pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.3)))

    def event(x):
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(torch.full((3, 2), 0.3)).to_event(1))

    run(SiteShapeError, r"'z' has batch shape \(\).*'data'.*same plates", guide=outside)
    run(SiteShapeError, r"'z' of the guide has batch shape \(3,\).*in no plate.*pyro.plate of size 3", guide=undeclared)
    run(SiteShapeError, r"event shape \(2,\) in the guide", guide=event)


def test_missing_data_at_the_first_and_at_a_later_batch():
    broken = torch.tensor([0.1, math.nan, 0.2])
    run(MissingDataError, "Argument 0 of the program contains NaN", data=broken)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(0.4))

    run(MissingDataError, "site 'x' contains NaN", guide=guide, data=broken)
    for later, words in ((guide, "site 'x' contains NaN"), (mixture_guide, "Argument 0")):
        elbo = TraceELBO("reinforce")
        elbo.loss_and_grads(mixture, later, DATA)
        with pytest.raises(MissingDataError, match=words):
            elbo.loss_and_grads(mixture, later, broken)


def test_masked_missing_data_are_no_error():
    seen = torch.tensor([True, False, True])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            with pyro.poutine.mask(mask=seen):
                pyro.sample("x", dist.Normal(2 * z, 1.0, validate_args=False), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.tensor(0.4))))

    x = torch.tensor([0.1, math.nan, 0.2])
    for _ in range(2):
        assert math.isfinite(TraceELBO("nvil").loss_and_grads(model, guide, x))
    assert pyro.param("logit").unconstrained().grad.isfinite()


def test_empty_batch_at_the_first_and_at_a_later_call():
    run(EmptyBatchError, "size 0", data=torch.zeros(0))
    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(mixture, mixture_guide, DATA)
    with pytest.raises(EmptyBatchError, match="size 0"):
        elbo.loss_and_grads(mixture, mixture_guide, torch.zeros(0))


def test_settings_out_of_range():
    for temperature in (0.0, -1.0, math.nan, math.inf):
        for make in (GumbelSoftmax, StraightThroughGumbelSoftmax, relax):
            with pytest.raises(SettingError, match="temperature"):
                make(temperature=temperature)
    for settings in ({"num_particles": 0}, {"num_particles": 1.5}, {"max_plate_nesting": -1}, {"compile": "fast"}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            TraceELBO("nvil", **settings)
    for settings in ({"decay": 1.0}, {"learning_rate": 0.0}, {"hidden": 0}, {"hidden": 10.0}):
        with pytest.raises(SettingError, match=next(iter(settings))):
            NVIL(**settings)
    for make in (ARMS, CARMS, lambda draws: GumbelRao(draws=draws), UnorderedSet, SumAndSample):
        for number in (0, 2.5, "3"):
            with pytest.raises(SettingError, match=f"(draws|k)={number!r} given"):
                make(number)


def test_infinite_loss_names_site_and_step():
    def model(x, weight):
        mixture(x)
        pyro.factor("penalty", weight)

    def guide(x, weight):
        mixture_guide(x)

    elbo = TraceELBO("reinforce")
    elbo.loss_and_grads(model, guide, DATA, torch.zeros(()))
    logit = pyro.param("logit")
    before = logit.clone()
    svi = SVI(model, guide, pyro.optim.SGD({"lr": 1.0}), loss=elbo)
    with (
        pyro.validation_enabled(False),
        pytest.raises(NonFiniteError, match=r"inf at step 1: site 'penalty' of the model"),
    ):
        svi.step(DATA, torch.tensor(-math.inf))
    assert torch.equal(logit, before)
    logit.unconstrained().data.fill_(math.nan)
    with pytest.raises(NonFiniteError, match=r"At step 1 .*Bernoulli"):
        svi.step(DATA, torch.zeros(()))


def test_infinite_gradient_names_site_and_step_and_is_cleared():
    def guide(x):
        root = pyro.param("root", torch.tensor(0.0))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=root.abs().sqrt()))

    elbo = TraceELBO("reinforce")
    with pytest.raises(NonFiniteError, match=r"gradient is NaN or infinite at step 0.*site 'z' of the guide"):
        elbo.loss_and_grads(mixture, guide, DATA)
    assert pyro.param("root").unconstrained().grad is None


def test_nvil_inputs_that_do_not_fit():
    run(SettingError, "input='y'.*'z'|'z'.*input='y'", NVIL(input="y"))
    run(SettingError, "input function of site 'z'", NVIL(input=lambda x: x.tolist()))
    run(SiteShapeError, "baseline network returned", NVIL(network=torch.nn.Linear(1, 2)))
