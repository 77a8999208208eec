"""Sums over counts: as far as they have to go, judged in every step; stated ends; Binomials of different trials."""

import copy
import pickle
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.distributions import constraints

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO, UnorderedSet, collapse
from pyro_discrete.errors import EnumerationError, SettingError, SiteMatchError
from pyro_discrete.programs.counts import CountUpTo, log_mass_beyond

VALUES = torch.arange(3000.0, dtype=torch.double)


def no_guide(*args):
    """Draws nothing."""


FAMILIES = {
    "poisson": lambda t: dist.Poisson(t(2.5)),
    "geometric": lambda t: dist.Geometric(t(0.2)),
    "negative binomial": lambda t: dist.NegativeBinomial(t(2.5), probs=t(0.3)),
    "negative binomial, long tail": lambda t: dist.NegativeBinomial(t(0.5), probs=t(0.8)),
    "zero-inflated Poisson": lambda t: dist.ZeroInflatedPoisson(t(3.0), gate=t(0.3)),
    "zero-inflated negative binomial": lambda t: dist.ZeroInflatedNegativeBinomial(t(2.0), probs=t(0.4), gate=t(0.3)),
    "gamma-Poisson": lambda t: dist.GammaPoisson(t(2.0), t(0.7)),
}


def double(value):
    """A number in double precision."""
    return torch.tensor(value, dtype=torch.double)


@pytest.mark.parametrize("name", FAMILIES)
def test_the_tail_is_bounded_and_the_bound_is_close(name):
    fn = FAMILIES[name](torch.tensor)
    masses = FAMILIES[name](double).log_prob(VALUES)
    for last in (0, 3, 17, 60):
        beyond = masses[last + 1 :].logsumexp(0)
        bound = log_mass_beyond(fn, last)
        assert bound >= beyond - 1e-5
        if last >= 17:
            assert bound < beyond + 2.0


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("datum", [2.0, 30.0])
@pytest.mark.parametrize("likelihood", [dist.Normal, dist.Laplace, lambda n, s: dist.StudentT(3.0, n, s)])
def test_the_sum_goes_on_until_the_rest_does_not_matter(name, datum, likelihood):
    fn, x = FAMILIES[name](torch.tensor), torch.tensor(datum)

    def model():
        n = pyro.sample("n", fn)
        pyro.sample("x", likelihood(n, 0.4), obs=x)

    exact = (FAMILIES[name](double).log_prob(VALUES) + likelihood(VALUES, double(0.4)).log_prob(x)).logsumexp(0)
    assert TraceELBO().loss(model, no_guide) == pytest.approx(-exact.item(), rel=1e-6)


def test_data_far_in_the_tail():
    def model():
        n = pyro.sample("n", dist.Poisson(2.5))
        pyro.sample("x", dist.Normal(n, 0.1), obs=torch.tensor(30.0))

    elbo = TraceELBO("enumerate")
    assert elbo.loss(model, no_guide) == pytest.approx(48.286, abs=1e-3)
    assert elbo.loss_and_grads(model, no_guide) == pytest.approx(48.286, abs=1e-3)
    assert DiscretePosterior(model).most_probable()["n"] == 30


def test_rates_and_data_that_move_from_step_to_step():
    def model(x):
        rate = pyro.param("rate", torch.tensor(1.0), constraint=constraints.positive)
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(rate))
            pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    for mode in (False, "graph"):
        pyro.clear_param_store()
        elbo = TraceELBO("enumerate", compile=mode)
        for step in range(24):
            x = torch.tensor([3.0, 0.4]) + 12 * (step // 8)
            found = elbo.loss_and_grads(model, no_guide, x)
            rate = pyro.param("rate").detach().double()
            value = rate.clone().requires_grad_()
            joint = dist.Poisson(value).log_prob(VALUES[:200, None])
            exact = -(joint + dist.Normal(VALUES[:200, None], 1.0).log_prob(x.double())).logsumexp(0).sum()
            exact.backward()
            assert found == pytest.approx(exact.item(), rel=1e-6)
            parameter = pyro.get_param_store()._params["rate"]
            assert parameter.grad.item() == pytest.approx((value.grad * rate).item(), rel=1e-4)
            with torch.no_grad():
                parameter.grad = None
                parameter.add_(0.1 if step % 3 else -0.15)
        if mode:
            assert elbo.captures.made > 1
            assert not elbo.captures.reason


def test_a_captured_step_is_not_believed_where_its_sum_stops_too_early():
    def model(x):
        n = pyro.sample("n", dist.Poisson(pyro.param("rate", torch.tensor(2.0))))
        pyro.sample("x", dist.Normal(n, 0.3), obs=x)

    pyro.clear_param_store()
    elbo = TraceELBO("enumerate", compile="graph")
    for _ in range(6):  # a graph is run at the fourth
        elbo.gradients(model, no_guide, torch.tensor(2.0), check=False)
    far = torch.tensor(40.0)
    exact = -(dist.Poisson(2.0).log_prob(VALUES.float()) + dist.Normal(VALUES.float(), 0.3).log_prob(far)).logsumexp(0)
    assert elbo.gradients(model, no_guide, far, check=False).loss.item() == pytest.approx(exact.item(), rel=1e-5)


def counted(model_rate, prior_of_k, likelihood):
    def model():
        n = pyro.sample("n", dist.Poisson(model_rate))
        k = pyro.sample("k", prior_of_k(n))
        pyro.sample("x", likelihood(k), obs=torch.tensor(14.0))

    return model


def test_a_count_that_depends_on_a_count():
    model = counted(2.0, lambda n: dist.Poisson(0.5 + n), lambda k: dist.Laplace(k, 0.5))
    n = VALUES[:150]
    joint = dist.Poisson(torch.tensor(2.0).double()).log_prob(n)[:, None]
    joint = joint + dist.Poisson(0.5 + n[:, None]).log_prob(n)
    joint = joint + dist.Laplace(n, torch.tensor(0.5).double()).log_prob(torch.tensor(14.0))
    assert TraceELBO().loss(model, no_guide) == pytest.approx(-joint.flatten().logsumexp(0).item(), rel=1e-6)


def test_a_binomial_of_a_count_that_is_summed_out():
    model = counted(3.0, lambda n: dist.Binomial(n, 0.3), lambda k: dist.Normal(k, 0.5))
    thinned = dist.Poisson(torch.tensor(0.9).double()).log_prob(VALUES)
    joint = thinned + dist.Normal(VALUES, 0.5).log_prob(torch.tensor(14.0))
    assert TraceELBO().loss(model, no_guide) == pytest.approx(-joint.logsumexp(0).item(), rel=1e-6)


def test_data_that_some_values_of_the_count_rule_out():
    """The N-mixture model of ecology: no population is smaller than what was seen of it."""
    seen = torch.tensor([[3.0, 0.0, 6.0], [1.0, 2.0, 4.0]])

    def model(seen):
        detected = pyro.param("detected", torch.tensor(0.4), constraint=constraints.unit_interval)
        with pyro.plate("places", 3):
            n = pyro.sample("n", dist.Poisson(6.0))
            with pyro.plate("visits", 2):
                pyro.sample("seen", dist.Binomial(n, detected), obs=seen)

    pyro.clear_param_store()
    detected = torch.tensor(0.4, dtype=torch.double, requires_grad=True)
    n = VALUES[:150, None, None]
    each = dist.Binomial(n.expand(-1, 2, 3), detected, validate_args=False).log_prob(torch.minimum(seen.double(), n))
    each = torch.where(seen <= n, each, -torch.inf).sum(1)
    exact = -(dist.Poisson(torch.tensor(6.0).double()).log_prob(VALUES[:150, None]) + each).logsumexp(0).sum()
    exact.backward()
    elbo = TraceELBO()
    assert elbo.loss(model, no_guide, seen) == pytest.approx(exact.item(), rel=1e-6)
    elbo.loss_and_grads(model, no_guide, seen)
    slope = pyro.get_param_store()._params["detected"].grad.item()
    assert slope == pytest.approx(detected.grad.item() * 0.24, rel=1e-4)


def test_joint_values_of_counts_and_chains_of_counts():
    def event():
        n = pyro.sample("n", dist.Poisson(torch.tensor([1.0, 0.5])).to_event(1))
        pyro.sample("x", dist.Normal(n.sum(-1), 0.5), obs=torch.tensor(9.0))

    total = dist.Poisson(torch.tensor(1.5).double()).log_prob(VALUES) + dist.Normal(VALUES, 0.5).log_prob(
        torch.tensor(9.0)
    )
    assert TraceELBO().loss(event, no_guide) == pytest.approx(-total.logsumexp(0).item(), rel=1e-6)
    data = [0.5, 2.5, 4.5, 6.5]

    def chain():
        n = torch.tensor(1.0)
        for t in pyro.markov(range(4)):
            n = pyro.sample(f"n{t}", dist.Poisson(0.5 + n))
            pyro.sample(f"x{t}", dist.Normal(n, 0.7), obs=torch.tensor(data[t]))

    n = VALUES[:80]
    forward = dist.Poisson(torch.tensor(1.5).double()).log_prob(n)
    for t in range(4):
        if t:
            forward = (forward[:, None] + dist.Poisson(0.5 + n[:, None]).log_prob(n)).logsumexp(0)
        forward = forward + dist.Normal(n, torch.tensor(0.7).double()).log_prob(torch.tensor(data[t]))
    assert TraceELBO().loss(chain, no_guide) == pytest.approx(-forward.logsumexp(0).item(), rel=1e-6)


@pytest.mark.parametrize("estimator", ["auto", "rloo", "nvil"])
def test_counts_of_the_model_alone_under_a_sampling_estimator(estimator):
    def model(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with pyro.plate("data", len(x)):
            n = pyro.sample("n", dist.Poisson(1.0 + 2.0 * z))
            pyro.sample("x", dist.Poisson(n + 0.1), obs=x)

    def guide(x):
        pyro.sample("z", dist.Bernoulli(torch.tensor(1.0)))

    x = torch.tensor([1.0, 4.0, 25.0])
    each = dist.Poisson(torch.tensor(3.0).double()).log_prob(VALUES[:300, None])
    each = (each + dist.Poisson(VALUES[:300, None] + 0.1).log_prob(x)).logsumexp(0).sum()
    exact = each + torch.tensor(0.4).double().log()
    assert TraceELBO(estimator, num_particles=2).loss(model, guide, x) == pytest.approx(-exact.item(), rel=1e-6)


def by_item(x):
    n = pyro.sample("n", dist.Poisson(2.5))
    pyro.sample("x", dist.Normal(float(n.item()), 0.3), obs=x)


def test_a_program_that_reads_the_count_by_item_is_summed_value_by_value():
    x = torch.tensor(12.0)
    exact = dist.Poisson(torch.tensor(2.5).double()).log_prob(VALUES) + dist.Normal(VALUES, 0.3).log_prob(x)
    elbo = TraceELBO()
    assert elbo.loss(by_item, no_guide, x) == pytest.approx(-exact.logsumexp(0).item(), rel=1e-6)
    assert "one joint value after another" in str(elbo.plan)
    found = DiscretePosterior(by_item).marginals(x)["n"].probs
    expected = exact.softmax(0)[: found.shape[-1]]
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


# ------------------------------------------------------------------------------------------- where it cannot be told


@pytest.mark.parametrize(
    ("read", "why"),
    [
        (lambda n: pyro.factor("f", 0.1 * n), "Unit.*no bound"),
        (lambda n: pyro.sample("x", dist.Normal(0.0, 1.0 + n), obs=torch.tensor(1.0)), "changes with the count"),
        (lambda n: pyro.sample("x", dist.Gamma(1.0 + n, 1.0), obs=torch.tensor(1.0)), "Gamma.*no bound"),
    ],
    ids=["factor", "scale", "gamma"],
)
def test_where_no_bound_is_known_a_truncation_is_asked_for(read, why):
    def model(**infer):
        read(pyro.sample("n", dist.Poisson(1.5), infer=infer))

    with pytest.raises(EnumerationError, match=f"'n'.*{why}.*truncation"):
        TraceELBO().loss(model, no_guide)
    assert TraceELBO().loss(lambda: model(truncation=60), no_guide)


def test_sites_that_change_with_the_count_ask_for_a_truncation():
    def model(**infer):
        n = pyro.sample("n", dist.Poisson(1.5), infer=infer)
        for i in range(int(n.item())):
            pyro.sample(f"x{i}", dist.Normal(0.0, 1.0), obs=torch.tensor(0.1))

    with pytest.raises(EnumerationError, match=r"'n'.*change with the count.*truncation"):
        TraceELBO().loss(model, no_guide)
    each = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.1)).double()
    exact = (dist.Poisson(torch.tensor(1.5).double()).log_prob(VALUES) + VALUES * each).logsumexp(0)
    assert TraceELBO().loss(lambda: model(truncation=30), no_guide) == pytest.approx(-exact.item(), rel=1e-6)


def test_a_sum_that_does_not_settle():
    def model():
        n = pyro.sample("n", dist.Poisson(1.5))
        x = torch.where(n >= 0, torch.tensor(3.0), torch.tensor(4.0))
        pyro.sample("x", dist.Delta(x), obs=torch.tensor(5.0))

    with pytest.raises(EnumerationError, match=r"'n' does not settle.*truncation"):
        TraceELBO().loss(model, no_guide)


def test_a_factor_that_does_not_read_the_count_needs_no_bound():
    def model():
        n = pyro.sample("n", dist.Poisson(1.5))
        pyro.factor("f", torch.tensor(3.0))
        pyro.sample("x", dist.Normal(n, 1.0), obs=torch.tensor(1.0))

    exact = dist.Poisson(torch.tensor(1.5).double()).log_prob(VALUES) + dist.Normal(VALUES, 1.0).log_prob(
        torch.tensor(1.0)
    )
    assert TraceELBO().loss(model, no_guide) == pytest.approx(-exact.logsumexp(0).item() - 3.0, rel=1e-6)


def test_masked_data_and_mixtures_are_bounded():
    x = torch.tensor([1.0, 9.0])

    def model():
        z = pyro.sample("z", dist.Categorical(torch.tensor([0.3, 0.7])))
        with pyro.plate("data", 2):
            n = pyro.sample("n", dist.Poisson(1.5))
            scale = torch.tensor([0.5, 1.0])[z]
            with pyro.poutine.mask(mask=torch.tensor([True, False])):
                pyro.sample("x", dist.Normal(n, scale), obs=x)

    scale = torch.tensor([0.5, 1.0], dtype=torch.double)
    each = dist.Poisson(torch.tensor(1.5).double()).log_prob(VALUES[:200, None])
    each = (each + dist.Normal(VALUES[:200, None], scale).log_prob(x[0])).logsumexp(0)
    exact = (torch.tensor([0.3, 0.7], dtype=torch.double).log() + each).logsumexp(0)
    assert TraceELBO().loss(model, no_guide) == pytest.approx(-exact.item(), rel=1e-6)


# ------------------------------------------------------------------------------------------- stated ends, guides


def pair_of_counts(**infer):
    def model():
        n = pyro.sample("n", dist.Poisson(2.5))
        pyro.sample("x", dist.Normal(n, 1.0), obs=torch.tensor(4.0))

    def guide():
        rate = pyro.param("rate", torch.tensor(3.0), constraint=constraints.positive)
        pyro.sample("n", dist.Poisson(rate), infer=infer)

    return model, guide


def bound_up_to(last):
    """The loss and its slope along the unconstrained rate, of a guide that is cut there."""
    n = VALUES[: last + 1]
    rate = torch.tensor(3.0, dtype=torch.double, requires_grad=True)
    log_q = dist.Poisson(rate).log_prob(n).log_softmax(0)
    log_p = dist.Poisson(torch.tensor(2.5).double()).log_prob(n) + dist.Normal(n, 1.0).log_prob(torch.tensor(4.0))
    loss = -(log_q.exp() * (log_p - log_q)).sum()
    loss.backward()
    return loss.item(), rate.grad.item() * 3.0


@pytest.mark.parametrize("last", [None, 5, 40])
def test_a_guide_is_cut_where_its_sum_ends(last):
    """Its loss, gradient and draws are those of one distribution: the bound holds wherever it is cut."""
    model, guide = pair_of_counts(**({} if last is None else {"truncation": last}))
    loss, slope = bound_up_to(200 if last is None else last)
    pyro.clear_param_store()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elbo = TraceELBO("enumerate")
        assert elbo.loss(model, guide) == pytest.approx(loss, rel=1e-6)
        assert elbo.loss_and_grads(model, guide) == pytest.approx(loss, rel=1e-6)
        found = pyro.get_param_store()._params["rate"]
        assert found.grad.item() == pytest.approx(slope, rel=1e-4)
        pyro.set_rng_seed(0)
        bound = TraceIWELBO("enumerate", num_particles=500)  # its rows, and draws, are of the same distribution
        assert bound.loss(model, guide) <= loss + 0.1
    evidence = dist.Poisson(torch.tensor(2.5).double()).log_prob(VALUES)
    evidence = (evidence + dist.Normal(VALUES, 1.0).log_prob(torch.tensor(4.0))).logsumexp(0)
    assert loss > -evidence


@pytest.mark.statistical
def test_draws_of_a_cut_guide_are_of_the_same_distribution():
    """Beside a sampled site, "enumerate" is the local expectation, and `loss()` is by draws: 5 standard errors."""
    model, guide = pair_of_counts(truncation=5)

    def pair_model():
        pyro.sample("z", dist.Bernoulli(0.5))
        model()

    def pair_guide():
        pyro.sample("z", dist.Bernoulli(0.5))
        guide()

    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        elbo = TraceELBO({"n": "enumerate", "z": "rloo"}, num_particles=20_000)
        found = elbo.loss(pair_model, pair_guide)
        elbo.loss_and_grads(pair_model, pair_guide)
    n = VALUES[:6]
    log_q = dist.Poisson(torch.tensor(3.0).double()).log_prob(n).log_softmax(0)
    log_p = dist.Poisson(torch.tensor(2.5).double()).log_prob(n) + dist.Normal(n, 1.0).log_prob(torch.tensor(4.0))
    loss, slope = bound_up_to(5)
    spread = ((log_q.exp() * (log_p - log_q).square()).sum() - loss**2).sqrt() / 20_000**0.5
    assert abs(found - loss) < 5 * spread
    # the count itself is summed over: its gradient has no noise
    assert pyro.get_param_store()._params["rate"].grad.item() == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize("place", ["guide", "model"])
def test_a_large_share_of_the_last_term_is_worth_one_warning(place):
    model, guide = pair_of_counts(truncation=6)

    def alone():
        n = pyro.sample("n", dist.Poisson(2.5), infer={"truncation": 6})
        pyro.sample("x", dist.Normal(n, 1.0), obs=torch.tensor(4.0))

    elbo, pair = TraceELBO("enumerate"), (model, guide) if place == "guide" else (alone, no_guide)
    with pytest.warns(UserWarning, match="'n' is summed up to the last value.*share of 0.0"):
        elbo.loss(*pair)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        elbo.loss(*pair)
        TraceELBO("enumerate").loss(*pair_of_counts(truncation=60))


def test_a_prior_with_a_stated_end_keeps_its_probabilities():
    def model():
        n = pyro.sample("n", dist.Poisson(2.5), infer={"truncation": 4})
        pyro.sample("x", dist.Normal(n, 1.0), obs=torch.tensor(4.0))

    n = VALUES[:5]
    exact = dist.Poisson(torch.tensor(2.5).double()).log_prob(n) + dist.Normal(n, 1.0).log_prob(torch.tensor(4.0))
    with pytest.warns(UserWarning, match="last value"):
        assert TraceELBO().loss(model, no_guide) == pytest.approx(-exact.logsumexp(0).item(), rel=1e-6)


@pytest.mark.parametrize("end", [0, 2.5, True, "many"])
def test_a_stated_end_that_is_no_count(end):
    with pytest.raises(SettingError, match=r"'n'.*largest count"):
        TraceELBO("enumerate").loss(*pair_of_counts(truncation=end))


TRIALS = torch.tensor([2.0, 5.0, 3.0])
SEEN = torch.tensor([1.0, 4.0, 0.0])


def binomials():
    def model(trials):
        with pyro.plate("data", 3):
            k = pyro.sample("k", dist.Binomial(trials, 0.3))
            pyro.sample("x", dist.Normal(k, 1.0), obs=SEEN)

    def guide(trials):
        with pyro.plate("data", 3):
            pyro.sample(
                "k", dist.Binomial(trials, pyro.param("p", torch.tensor(0.4), constraint=constraints.unit_interval))
            )

    return model, guide


def binomial_loss(trials, p=None):
    total = torch.zeros((), dtype=torch.double)
    for count, x in zip(trials.tolist(), SEEN.double(), strict=True):
        k = torch.arange(count + 1, dtype=torch.double)
        log_p = dist.Binomial(int(count), torch.tensor(0.3).double()).log_prob(k) + dist.Normal(k, 1.0).log_prob(x)
        if p is None:
            total = total - log_p.logsumexp(0)
        else:
            log_q = dist.Binomial(int(count), p).log_prob(k)
            total = total - (log_q.exp() * (log_p - log_q)).sum()
    return total


@pytest.mark.parametrize("mode", [False, "graph"])
def test_binomials_of_different_trials(mode):
    model, guide = binomials()
    elbo = TraceELBO("enumerate", compile=mode)
    for trials in [TRIALS] * 4 + [TRIALS + 4] * 4:
        assert elbo.loss(model, no_guide, trials) == pytest.approx(binomial_loss(trials).item(), rel=1e-6)
    for estimator in ("enumerate", "auto", {"k": "enumerate"}):
        elbo = TraceELBO(estimator, compile=mode)
        for trials in [TRIALS] * 4 + [TRIALS + 4] * 4:
            pyro.clear_param_store()
            p = torch.tensor(0.4, dtype=torch.double, requires_grad=True)
            exact = binomial_loss(trials, p)
            exact.backward()
            assert elbo.loss_and_grads(model, guide, trials) == pytest.approx(exact.item(), rel=1e-5)
            found = pyro.get_param_store()._params["p"].grad.item()
            assert found == pytest.approx(p.grad.item() * 0.24, rel=1e-4)


def test_posterior_of_binomials_of_different_trials():
    model, _ = binomials()
    found = DiscretePosterior(model).marginals(TRIALS)["k"].probs
    for i, (count, x) in enumerate(zip(TRIALS.tolist(), SEEN, strict=True)):
        k = torch.arange(count + 1)
        expected = (dist.Binomial(int(count), 0.3).log_prob(k) + dist.Normal(k, 1.0).log_prob(x)).softmax(0)
        torch.testing.assert_close(found[i, : int(count) + 1].float(), expected)
        assert found[i, int(count) + 1 :].abs().sum() == 0


def in_a_plate(x):
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(2.5))
        pyro.sample("x", dist.Normal(n, 0.1), obs=x)


def test_queries_sum_as_far_as_the_data_ask_for():
    model, x = in_a_plate, torch.tensor([2.0, 30.0])
    posterior = pickle.loads(pickle.dumps(copy.deepcopy(DiscretePosterior(model))))
    assert posterior.marginals(x)["n"].probs.argmax(-1).tolist() == [2, 30]
    assert posterior.most_probable(x)["n"].tolist() == [2, 30]
    assert posterior.samples(x)["n"][0].tolist() == [2, 30]
    assert TraceELBO().compute_marginals(model, no_guide, x)["n"].probs.argmax(-1).tolist() == [2, 30]


def test_a_cut_distribution_is_one():
    cut = CountUpTo(dist.Poisson(torch.tensor([1.0, 4.0])), 3, cut=True, ends="stated")
    values = cut.enumerate_support()
    torch.testing.assert_close(cut.log_prob(values).exp().sum(0), torch.ones(2))
    assert cut.sample((200,)).max() <= 3
    assert cut.expand((5, 2)).sample().shape == (5, 2)
    assert cut.log_prob(torch.tensor([5.0, 2.0]))[0] == -torch.inf


def test_a_count_whose_rate_depends_on_a_site_of_an_outer_plate():
    """How far the sum goes differs from run to run with the outer site's value, and the terms do not."""
    t = torch.double
    x = torch.tensor([[1.0, 4.0], [0.0, 2.0], [7.0, 1.0]], dtype=t)

    def model(x):
        with pyro.plate("groups", 2, dim=-1):
            g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.4, dtype=t)))
            with pyro.plate("seen", 3, dim=-2):
                n = pyro.sample("n", dist.Poisson(1.0 + 4.0 * g))
                pyro.sample("x", dist.Laplace(n, 0.7), obs=x)

    k = VALUES[:200].reshape(-1, 1, 1)
    each = []
    for g, weight in enumerate((0.6, 0.4)):
        term = dist.Poisson(torch.tensor(1.0 + 4.0 * g, dtype=t)).log_prob(k) + dist.Laplace(k, 0.7).log_prob(x)
        each.append(term.logsumexp(0).sum(0) + torch.tensor(weight, dtype=t).log())
    right = torch.stack(each).logsumexp(0).sum().item()
    found = poutine.trace(collapse(model)).get_trace(x).log_prob_sum().item()
    assert found == pytest.approx(right, abs=1e-7)
    assert TraceELBO("enumerate").loss(model, no_guide, x) == pytest.approx(-right, abs=1e-7)


LOGITS = torch.tensor([0.2, -0.5, 0.4], dtype=torch.double)
DATA = torch.tensor([0.3, -1.2], dtype=torch.double)


def counts_of_three(data):
    """Two trials for each datum, as a Multinomial."""
    with pyro.plate("data", len(data)):
        z = pyro.sample("z", dist.Multinomial(2, logits=LOGITS))
        pyro.sample("x", dist.Normal(z[..., 0] - 0.5 * z[..., 2], 1.0), obs=data)


def trials_apart(data):
    """The same, trial by trial."""
    with pyro.plate("data", len(data)):
        draws = [pyro.sample(f"z{i}", dist.OneHotCategorical(logits=LOGITS)) for i in range(2)]
        z = draws[0] + draws[1]
        pyro.sample("x", dist.Normal(z[..., 0] - 0.5 * z[..., 2], 1.0), obs=data)


@pytest.mark.parametrize("compile", [False, "graph"])
def test_a_multinomial_is_summed_as_its_trials_are(compile):
    wanted = TraceELBO("enumerate").loss(trials_apart, no_guide, DATA)
    assert TraceELBO("enumerate", compile=compile).loss(counts_of_three, no_guide, DATA) == pytest.approx(wanted)
    assert -float(poutine.trace(collapse(counts_of_three)).get_trace(DATA).log_prob_sum()) == pytest.approx(wanted)
    probs = DiscretePosterior(counts_of_three).marginals(DATA)["z"].probs
    first = DiscretePosterior(trials_apart)
    assert probs.shape == (2, 6)
    expected = first.marginals(DATA)["z0"].probs[
        :, 0
    ]  # of a trial in the first category: half the mean of their number
    assert torch.allclose((probs * torch.tensor([0, 0, 0, 1, 1, 2])).sum(-1) / 2, expected)


@pytest.mark.parametrize("estimator", ["enumerate", "auto", "unordered_set"])
def test_a_multinomial_of_the_guide(estimator):
    shift = torch.zeros(3, dtype=torch.double, requires_grad=True)

    def guide(data):
        with pyro.plate("data", len(data)):
            pyro.sample("z", dist.Multinomial(2, logits=LOGITS + shift))

    values = torch.tensor([[i, j, 2 - i - j] for i in range(3) for j in range(3 - i)], dtype=torch.double)
    log_p, log_q = (dist.Multinomial(2, logits=logits).log_prob(values) for logits in (LOGITS, LOGITS + shift))
    likelihood = dist.Normal(values[:, 0] - 0.5 * values[:, 2], 1.0).log_prob(DATA[:, None])
    exact = -(log_q.exp() * (log_p + likelihood - log_q)).sum()
    (gradient,) = torch.autograd.grad(exact, shift)
    if estimator == "unordered_set":  # as many draws as values: the whole sum
        estimator = UnorderedSet(6)
    loss = TraceELBO(estimator).loss_and_grads(counts_of_three, guide, DATA)
    assert loss == pytest.approx(exact.item()) or isinstance(estimator, UnorderedSet)
    assert torch.allclose(shift.grad, gradient)


def test_a_multinomial_of_more_values_than_are_listed():
    def model():
        pyro.sample("z", dist.Multinomial(40, logits=torch.zeros(12)))

    with pytest.raises(SiteMatchError, match=r"'z' is latent .* has more values than the 1048576 that are listed"):
        TraceELBO().loss(model, no_guide)
    with pytest.raises(EnumerationError, match=r"'z' \(Multinomial\) has more values than"):
        TraceELBO("enumerate").loss(model, model)
    assert TraceELBO().loss(model, model) == pytest.approx(0.0, abs=1e-4)
