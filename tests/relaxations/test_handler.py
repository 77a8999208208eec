"""Relaxed draws, the extended log-mass, and the `relax` handler by itself."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Predictive, Trace_ELBO, TraceEnum_ELBO

from pyro_discrete import ExponentialDecay, GumbelSoftmax, SoftIndex, StraightThroughGumbelSoftmax, TraceELBO, relax
from pyro_discrete.errors import SettingError, UnknownSiteError
from pyro_discrete.relaxations import Relaxed, relaxed_bernoulli, relaxed_one_hot
from tests.support.pairs import DATA, gradients, layers, layers_guide

REAL = torch.float64
LOGITS = torch.tensor([-2.0, 0.0, 1.5])


def test_relaxed_draws_round_to_the_discrete_distribution():
    hard = (relaxed_bernoulli(LOGITS.expand(200_000, 3), 0.7) > 0.5).float().mean(0)
    assert torch.allclose(hard, LOGITS.sigmoid(), atol=0.005)  # 4.5 standard errors
    corner = relaxed_one_hot(LOGITS.expand(200_000, 3), 0.7).argmax(-1)
    assert torch.allclose(torch.bincount(corner) / 200_000, LOGITS.softmax(-1), atol=0.005)


@pytest.mark.parametrize("temperature", [0.01, 0.5, 100.0])
def test_relaxed_draws_stay_in_their_support(temperature):
    logits = torch.linspace(-50, 50, 101).expand(1000, 101)
    soft = relaxed_bernoulli(logits, temperature)
    assert bool(((soft >= 0) & (soft <= 1)).all())
    simplex = relaxed_one_hot(logits, temperature)
    assert torch.allclose(simplex.sum(-1), torch.ones(1000), atol=1e-5)


@pytest.mark.parametrize(
    "base", [dist.Bernoulli(logits=LOGITS), dist.OneHotCategorical(logits=LOGITS)], ids=lambda d: type(d).__name__
)
def test_extended_log_mass_is_exact_at_hard_values_and_linear_between(base):
    relaxed, values = Relaxed(base), base.enumerate_support()
    assert torch.allclose(relaxed.log_prob(values), base.log_prob(values), atol=1e-6)
    middle = 0.25 * values[0] + 0.75 * values[1]
    expected = 0.25 * base.log_prob(values[0]) + 0.75 * base.log_prob(values[1])
    assert torch.allclose(relaxed.log_prob(middle), expected, atol=1e-6)


def test_extended_log_mass_of_a_category_without_probability():
    logits = torch.tensor([0.0, -torch.inf, 1.0], requires_grad=True)
    value = torch.tensor([0.3, 0.0, 0.7], requires_grad=True)
    log_mass = Relaxed(dist.OneHotCategorical(logits=logits, validate_args=False)).log_prob(value)
    assert log_mass.isfinite()


def one_hot(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.OneHotCategorical(torch.tensor([0.2, 0.5, 0.3]).expand(2, 3)).to_event(1))
        pyro.sample("x", dist.Normal(z[..., 0].sum(-1), 1.0), obs=x)


def one_hot_guide(x):
    logits = pyro.param("logits", torch.zeros(2, 3))
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.OneHotCategorical(logits=logits).to_event(1))


@pytest.mark.parametrize("hard", [False, True])
@pytest.mark.parametrize(("model", "guide"), [(layers, layers_guide), (one_hot, one_hot_guide)])
def test_handler_with_pyros_own_elbo_equals_the_estimator(hard, model, guide):
    """Wrapping both, or as a context manager, Pyro's pathwise gradient is that of the estimator under one seed."""
    estimator = StraightThroughGumbelSoftmax(0.5) if hard else GumbelSoftmax(0.5, kl="linear")
    torch.manual_seed(0)
    TraceELBO(estimator).loss_and_grads(model, guide, DATA)
    ours = gradients()
    torch.manual_seed(0)
    wrapped = (relax(f, temperature=0.5, hard=hard) for f in (model, guide))
    Trace_ELBO().loss_and_grads(*wrapped, DATA)
    pyros = gradients()
    torch.manual_seed(0)
    with relax(temperature=0.5, hard=hard):
        Trace_ELBO().loss_and_grads(model, guide, DATA)
    around = gradients()
    assert ours.keys() == pyros.keys() == around.keys()
    for name, gradient in ours.items():
        assert gradient.abs().sum() > 0
        assert torch.allclose(gradient, pyros[name], atol=1e-5)
        assert torch.equal(pyros[name], around[name])


def test_hard_draws_are_hard_and_carry_a_gradient():
    logits = LOGITS.clone().requires_grad_()

    def program():
        return pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))

    with relax(temperature=0.5, hard=True):
        value = pyro.poutine.trace(program).get_trace().nodes["z"]["value"]
    assert set(value.tolist()) <= {0.0, 1.0}
    value.sum().backward()
    assert logits.grad is not None
    assert bool((logits.grad > 0).all())


def test_program_stays_hard_outside_the_handler_and_for_predictions():
    TraceELBO("gumbel_softmax").loss_and_grads(layers, layers_guide, DATA)
    assert set(layers_guide.__code__.co_names) & {"relax"} == set()
    samples = Predictive(layers, guide=layers_guide, num_samples=5)(DATA)
    assert set(samples["z1"].unique().tolist()) <= {0.0, 1.0}


def test_observed_and_reparameterised_sites_are_left_alone():
    def model():
        loc = pyro.sample("loc", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Bernoulli(logits=loc + z), obs=torch.tensor(1.0))

    trace = pyro.poutine.trace(relax(model, temperature=0.5)).get_trace()
    assert isinstance(trace.nodes["loc"]["fn"], dist.Normal)
    assert isinstance(trace.nodes["x"]["fn"], dist.Bernoulli)
    assert isinstance(trace.nodes["z"]["fn"], Relaxed)
    assert 0 < trace.nodes["z"]["value"] < 1


def test_loss_of_a_relaxed_estimator_is_the_discrete_objective():
    elbo = TraceELBO(GumbelSoftmax(temperature=2.0), num_particles=20_000)
    discrete = elbo.loss(layers, layers_guide, DATA)
    relaxed = elbo.loss_and_grads(layers, layers_guide, DATA)
    exact = TraceELBO("enumerate").loss(layers, layers_guide, DATA)
    assert discrete == pytest.approx(exact, abs=0.06)
    assert abs(relaxed - exact) > 0.2


def real(*values):
    return torch.tensor(values, dtype=REAL)


def several():
    a = pyro.sample("a.0", dist.Bernoulli(0.5))
    b = pyro.sample("a.1", dist.Categorical(torch.ones(3)))
    c = pyro.sample("c", dist.Categorical(torch.ones(3)))
    return a, b, c


@pytest.mark.parametrize(
    ("sites", "soft"),
    [
        (None, "abc"),
        ("a.0", "a"),
        ("a.*", "ab"),
        (["a.1", "c"], "bc"),
        (lambda site: site.family.value == "Categorical", "bc"),
        (lambda site: site.name.endswith("0"), "a"),
    ],
)
def test_the_handler_relaxes_the_sites_it_is_told_to(sites, soft):
    for values in (relax(several, temperature=0.5, sites=sites)(), _around(relax(temperature=0.5, sites=sites))):
        found = "".join(n for n, v in zip("abc", values, strict=True) if isinstance(v, SoftIndex))
        assert found == soft
    assert not any(isinstance(v, SoftIndex) for v in several())


def _around(handler):
    with handler:
        return several()


def test_the_handler_says_what_it_was_told_wrongly():
    with pytest.raises(UnknownSiteError, match="'b' matches no latent site"):
        relax(several, temperature=0.5, sites=["c", "b"])()
    with pytest.raises(SettingError, match="no temperature is given for site 'c'"):
        relax(several, temperature={"a.*": 0.5}, sites="*")()
    with pytest.raises(SettingError, match="temperature=-1"):
        relax(several, temperature={"a.*": -1.0})


def test_temperatures_by_site_and_by_step():
    def program():
        return pyro.sample("z", dist.Categorical(torch.ones(2))), pyro.sample("y", dist.Categorical(torch.ones(2)))

    handler = relax(temperature={"z": ExponentialDecay(1.0, 0.1, rate=0.5), "y": 0.3})
    seen = []
    for _ in range(3):
        with handler:
            trace = pyro.poutine.trace(program).get_trace()
        seen.append([float(trace.nodes[n]["fn"].temperature) for n in "zy"])
    assert seen == [[pytest.approx(torch.tensor(-0.5 * i).exp().item()), 0.3] for i in range(3)]
    assert handler.step == 3


@pytest.mark.parametrize("family", ["bernoulli", "categorical"])
def test_over_a_guide_alone_pyros_own_distribution_scores_the_soft_value(family):
    table = real(0.0, 1.0, 2.0)

    def make(logits):
        return dist.Bernoulli(logits=logits[..., 0]) if family == "bernoulli" else dist.Categorical(logits=logits)

    def model():
        z = pyro.sample("z", make(real(0.3, -0.2, 0.1)))
        pyro.sample("x", dist.Normal(table[z.long()], 1.0), obs=real(0.7)[0])

    def guide():
        pyro.sample("z", make(pyro.param("t", real(0.1, 0.2, -0.5))))

    found = []
    for pair in (
        (model, relax(guide, temperature=0.5)),
        (relax(model, temperature=0.5), relax(guide, temperature=0.5)),
    ):
        pyro.clear_param_store()
        torch.manual_seed(0)
        loss = Trace_ELBO().loss_and_grads(*pair)
        found.append((loss, gradients()["t"]))
    assert found[0][0] == pytest.approx(found[1][0])
    torch.testing.assert_close(found[0][1], found[1][1])


def test_other_sites_are_enumerated_beside_relaxed_ones():
    """By this ELBO (a local expectation) and by Pyro's, whose enumerated sites the handler leaves alone.

    The enumerated site's gradient is exact given the relaxed value; the relaxed one's sees a draw of the other here,
    and its sum there.
    """
    table, both = real([0.0, 1.0], [2.0, -1.0], [0.5, 3.0]), {"enumerate": "parallel"}

    def model():
        z = pyro.sample("z", dist.Categorical(logits=real(0.3, -0.2, 0.1)))
        c = pyro.sample("c", dist.Categorical(logits=real(0.1, 0.4)), infer=both)
        pyro.sample("x", dist.Normal(pyro.ops.indexing.Vindex(table)[z, c], 1.0), obs=real(0.7)[0])

    def guide():
        pyro.sample("z", dist.Categorical(logits=pyro.param("z_logits", real(0.1, 0.2, -0.5))))
        pyro.sample("c", dist.Categorical(logits=pyro.param("c_logits", real(0.1, 0.2))), infer=both)

    pyro.clear_param_store()
    torch.manual_seed(0)
    TraceELBO({"z": GumbelSoftmax(0.5), "c": "enumerate"}).loss_and_grads(model, guide)
    ours = gradients()
    torch.manual_seed(0)
    with relax(temperature=0.5):
        TraceEnum_ELBO(max_plate_nesting=0).loss_and_grads(model, guide)
    theirs = gradients()
    torch.testing.assert_close(ours["c_logits"], theirs["c_logits"])
    assert (ours["z_logits"] - theirs["z_logits"]).abs().max() < 0.1
