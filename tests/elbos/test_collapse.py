"""A collapsed model against closed forms and brute force, under every handler and inference that it is made for."""

import itertools
import math
import pickle

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import HMC, MCMC, NUTS, SVI, Importance, Predictive, Trace_ELBO, TraceEnum_ELBO, config_enumerate
from pyro.infer.autoguide import AutoNormal
from pyro.infer.importance import vectorized_importance_weights
from pyro.infer.mcmc.util import initialize_model
from pyro.ops.indexing import Vindex

from pyro_discrete import TraceELBO, collapse
from pyro_discrete.distributions import KSubset
from pyro_discrete.errors import EnumerationError, SettingError

X = torch.tensor([-2.0, 1.9, 2.2])
VALUES = {"w": torch.tensor([0.3, 0.7]), "locs": torch.tensor([-1.0, 2.0])}


def mixture(x=None, size=3):
    w = pyro.sample("w", dist.Dirichlet(torch.ones(2)))
    locs = pyro.sample("locs", dist.Normal(0.0, 3.0).expand([2]).to_event(1))
    with pyro.plate("data", size):
        z = pyro.sample("z", dist.Categorical(w))
        mean = pyro.deterministic("mean", Vindex(locs)[..., z])
        pyro.sample("x", dist.Normal(mean, 1.0), obs=x)


def of_mixture(values, x):
    """The log joint density of values and data, and of each datum."""
    w, locs = values["w"], values["locs"]
    prior = dist.Dirichlet(torch.ones(2)).log_prob(w) + dist.Normal(0.0, 3.0).log_prob(locs).sum(-1)
    w = w / w.sum(-1, keepdim=True)  # as the program has it
    each = (w.log().unsqueeze(-2) + dist.Normal(locs.unsqueeze(-2), 1.0).log_prob(x.unsqueeze(-1))).logsumexp(-1)
    return prior + each.sum(-1), each


def traced(program, *args, **kwargs):
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def terms(trace):
    """Each sample site's term, but for plates'."""
    sites = ((n, m) for n, m in trace.nodes.items() if m["type"] == "sample")
    return {n: float(m["log_prob_sum"]) for n, m in sites if type(m["fn"]).__name__ != "_Subsample"}


def total(trace):
    return float(trace.log_prob_sum())


def test_what_a_trace_holds():
    collapsed = collapse(mixture)
    trace = traced(collapsed, X)
    assert [*terms(trace)] == ["w", "locs", "x", "sum over z"]
    assert terms(trace)["x"] == 0.0
    assert trace.nodes["x"]["is_observed"]
    assert trace.nodes["x"]["value"] is X
    assert not trace.nodes["w"]["is_observed"]
    assert trace.nodes["sum over z"]["is_observed"]
    assert collapsed.plan.sites == ("z",)
    assert "1 site(s) summed out (z)" in str(collapsed.plan)


def test_the_total_is_the_log_joint_density():
    trace = traced(poutine.condition(collapse(mixture), VALUES), X)
    expected, each = of_mixture(VALUES, X)
    assert total(trace) == pytest.approx(expected.item(), rel=1e-6)
    assert terms(trace)["sum over z"] == pytest.approx(each.sum().item(), rel=1e-6)


def test_gradients_reach_all_that_is_conditioned():
    values = {n: v.clone().requires_grad_() for n, v in VALUES.items()}
    found = poutine.trace(poutine.condition(collapse(mixture), values)).get_trace(X).log_prob_sum()
    slopes = torch.autograd.grad(found, list(values.values()))
    expected = torch.autograd.grad(of_mixture(values, X)[0], list(values.values()))
    for one, other in zip(slopes, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_drawn_as_it_stands_where_nothing_is_observed_or_asked_for():
    collapsed = collapse(mixture)
    assert [*terms(traced(collapsed))] == ["w", "locs", "z", "mean", "x"]
    assert "nothing is observed" in str(collapsed.plan)
    with poutine.mask(mask=False):
        assert [*terms(traced(collapsed, X))] == ["w", "locs", "z", "mean", "x"]
    assert [*terms(traced(collapsed, X))] == ["w", "locs", "x", "sum over z"]  # and not for good
    pyro.set_rng_seed(0)
    with poutine.mask(mask=False):
        first = traced(collapsed).nodes["z"]["value"]
    pyro.set_rng_seed(0)
    with poutine.mask(mask=False):
        assert torch.equal(first, traced(mixture).nodes["z"]["value"])


@pytest.mark.parametrize("seed", range(4))
def test_what_is_observed_in_one_branch_alone_is_observed(seed):
    """Whether anything is, was told by one draw: the program was drawn as it stands, its density that of a draw."""

    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        if z.item() > 0:
            pyro.sample("x", dist.Normal(1.0, 1.0), obs=X[0])

    right = math.log(0.7 + 0.3 * dist.Normal(1.0, 1.0).log_prob(X[0]).exp().item())
    torch.manual_seed(seed)
    for _ in range(3):
        assert total(traced(collapse(model))) == pytest.approx(right, abs=1e-5)


@pytest.mark.parametrize("seed", range(4))
def test_a_continuous_draw_may_decide_what_is_observed(seed):
    def model():
        c, z = pyro.sample("c", dist.Normal(0.0, 1.0)), pyro.sample("z", dist.Bernoulli(0.3))
        if c.item() > 0:
            pyro.sample("x", dist.Normal(z + c, 1.0), obs=X[0])

    torch.manual_seed(seed)
    collapsed = collapse(model)
    for _ in range(6):
        trace = traced(collapsed)
        c = trace.nodes["c"]["value"]
        assert "z" not in trace.nodes
        of_values = [dist.Normal(c + z, 1.0).log_prob(X[0]).exp() for z in (0.0, 1.0)]
        right = dist.Normal(0.0, 1.0).log_prob(c)
        right = right + (torch.log(0.7 * of_values[0] + 0.3 * of_values[1]) if c > 0 else 0.0)
        assert total(trace) == pytest.approx(float(right), abs=1e-5)


@pytest.mark.parametrize("seed", range(6))
def test_a_branching_program_without_data_is_drawn_as_it_stands(seed):
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        if z.item() > 0:
            pyro.sample("w", dist.Bernoulli(0.5))

    torch.manual_seed(seed)
    trace = traced(collapse(model))
    assert [*terms(trace)] == (["z", "w"] if trace.nodes["z"]["value"] > 0 else ["z"])


def test_a_program_without_discrete_sites_is_itself():
    def model(x):
        pyro.sample("x", dist.Normal(pyro.sample("m", dist.Normal(0.0, 1.0)), 1.0), obs=x)

    assert [*terms(traced(collapse(model), X[0]))] == ["m", "x"]


def test_data_may_be_given_by_condition_and_replaced():
    collapsed = collapse(mixture)
    expected = of_mixture(VALUES, X)[0].item()
    assert total(traced(poutine.condition(collapsed, {**VALUES, "x": X}))) == pytest.approx(expected, rel=1e-6)
    expected = of_mixture(VALUES, X + 1)[0].item()
    found = total(traced(poutine.condition(collapsed, {**VALUES, "x": X + 1}), X))
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_conditioned_discrete_site_is_observed():
    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        a = pyro.sample("a", dist.Bernoulli(0.3))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("x", dist.Normal(m + a + b, 1.0), obs=x)

    x, bits = torch.tensor(1.2), torch.tensor([0.0, 1.0])
    collapsed = collapse(model)
    prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.4))
    a = torch.tensor(1.0)
    of_b = dist.Bernoulli(0.7).log_prob(bits) + dist.Normal(1.4 + bits, 1.0).log_prob(x)
    trace = traced(poutine.condition(collapsed, {"m": torch.tensor(0.4), "a": a}), x)
    assert total(trace) == pytest.approx((prior + math.log(0.3) + of_b.logsumexp(0)).item(), rel=1e-6)
    assert [*terms(trace)] == ["m", "a", "x", "sum over b"]
    assert trace.nodes["a"]["is_observed"]
    both = traced(poutine.condition(collapsed, {"m": torch.tensor(0.4), "a": a, "b": a}), x)
    assert total(both) == pytest.approx((prior + math.log(0.3) + of_b[1]).item(), rel=1e-6)
    free = traced(poutine.condition(collapsed, {"m": torch.tensor(0.4)}), x)
    joint = dist.Bernoulli(0.3).log_prob(bits)[:, None] + dist.Bernoulli((0.2 + 0.5 * bits)[:, None]).log_prob(bits)
    joint = joint + dist.Normal(0.4 + bits[:, None] + bits, 1.0).log_prob(x)
    assert total(free) == pytest.approx((prior + joint.flatten().logsumexp(0)).item(), rel=1e-6)


def test_a_discrete_site_that_a_guide_draws_is_not_summed():
    def model(x):
        a = pyro.sample("a", dist.Bernoulli(0.3))
        b = pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))
        pyro.sample("x", dist.Normal(a + b, 1.0), obs=x)

    collapsed, x, bits = collapse(model), torch.tensor(1.2), torch.tensor([0.0, 1.0])
    for a in bits:
        guided = poutine.trace(lambda x, a=a: pyro.sample("a", dist.Delta(a)))
        trace = traced(poutine.replay(collapsed, trace=guided.get_trace(x)), x)
        of_b = dist.Bernoulli(0.2 + 0.5 * a).log_prob(bits) + dist.Normal(a + bits, 1.0).log_prob(x)
        assert total(trace) == pytest.approx((dist.Bernoulli(0.3).log_prob(a) + of_b.logsumexp(0)).item(), rel=1e-6)
        assert not trace.nodes["a"]["is_observed"]


def test_block_scale_and_mask_around_it():
    conditioned = poutine.condition(collapse(mixture), VALUES)
    expected, each = of_mixture(VALUES, X)
    assert [*terms(traced(poutine.block(conditioned, hide=["locs"]), X))] == ["w", "x", "sum over z"]
    assert total(traced(poutine.scale(conditioned, scale=0.5), X)) == pytest.approx(expected.item() / 2, rel=1e-6)
    mask = torch.tensor([True, False, True])
    masked = terms(traced(poutine.mask(conditioned, mask=mask), X))
    assert masked["sum over z"] == pytest.approx(each[mask].sum().item(), rel=1e-6)


def test_scales_and_masks_inside_of_it():
    data = torch.randn(10, generator=torch.Generator().manual_seed(0))

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 10, subsample_size=4) as index, poutine.scale(scale=2.0):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            with poutine.mask(mask=index > 2):
                pyro.sample("x", dist.Normal(m + z, 1.0), obs=x[index])

    trace = traced(poutine.condition(collapse(model), {"m": torch.tensor(0.2)}), data)
    index = trace.nodes["data"]["value"]
    x = data[index]
    each = torch.stack(
        [math.log(0.6) + dist.Normal(0.2, 1.0).log_prob(x), math.log(0.4) + dist.Normal(1.2, 1.0).log_prob(x)]
    )
    expected = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.2)) + 2 * 10 / 4 * each.logsumexp(0)[index > 2].sum()
    assert total(trace) == pytest.approx(expected.item(), rel=1e-5)


def test_plates_around_it():
    collapsed = collapse(mixture)
    trace = traced(pyro.plate("runs", 4, dim=-2)(collapsed), X)
    values = {n: trace.nodes[n]["value"].squeeze(1) for n in VALUES}
    assert trace.nodes["sum over z"]["log_prob"].shape == (4, 1)
    assert total(trace) == pytest.approx(of_mixture(values, X)[0].sum().item(), rel=1e-5)
    with pyro.plate("runs", 8, subsample_size=2, dim=-2):  # all elements alike, in a plate that scales
        trace = traced(poutine.condition(collapsed, VALUES), X)
    assert total(trace) == pytest.approx(8 * of_mixture(VALUES, X)[0].item(), rel=1e-5)


def depends(y):
    z = pyro.sample("z", dist.Categorical(torch.tensor([0.2, 0.8])))
    u = pyro.sample("u", dist.Normal(torch.tensor([-1.0, 2.0])[z], torch.tensor([1.0, 0.5])[z]))
    with pyro.plate("data", len(y)):
        pyro.sample("y", dist.Normal(u, 1.0), obs=y)


def of_depends(u, y):
    prior = torch.tensor([0.2, 0.8]).log() + dist.Normal(torch.tensor([-1.0, 2.0]), torch.tensor([1.0, 0.5])).log_prob(
        u.unsqueeze(-1)
    )
    return prior.logsumexp(-1) + dist.Normal(u.unsqueeze(-1), 1.0).log_prob(y).sum(-1)


def test_a_continuous_site_whose_prior_depends_on_a_discrete_one():
    y, u = torch.tensor([0.3, 1.0]), torch.tensor(0.4)
    collapsed = collapse(depends)
    trace = traced(poutine.condition(collapsed, {"u": u}), y)
    assert total(trace) == pytest.approx(of_depends(u, y).item(), rel=1e-6)
    drawn = traced(collapsed, y)
    assert drawn.nodes["u"]["value"].shape == ()
    assert total(drawn) == pytest.approx(of_depends(drawn.nodes["u"]["value"], y).item(), rel=1e-5)


@pytest.mark.statistical
def test_importance_sampling_gives_the_evidence():
    """With draws of the collapsed model itself as proposals, and of a guide, by 400 runs and 4000 at once: 5 errors."""
    y, collapsed = torch.tensor([0.3, 1.0]), collapse(depends)
    grid = torch.linspace(-9, 9, 9001)
    evidence = (of_depends(grid, y).logsumexp(0) + math.log(grid[1] - grid[0])).item()
    pyro.set_rng_seed(0)

    def guide(y):
        pyro.sample("u", dist.Normal(0.8, 1.2))

    drawn = traced(pyro.plate("runs", 4000, dim=-2)(collapsed), y)
    own = sum(drawn.nodes[name]["log_prob"].expand(4000, -1).sum(-1) for name in terms(drawn) if name != "u")
    guided, *_ = vectorized_importance_weights(collapsed, guide, y, num_samples=4000, max_plate_nesting=1)
    for proposal, at_once in ((None, own), (guide, guided)):
        runs = Importance(collapsed, guide=proposal, num_samples=400)
        runs.run(y)
        for found in (torch.stack(runs.log_weights), at_once):
            weights = found.exp()
            error = 5 * weights.std() / weights.mean() / len(weights) ** 0.5
            assert weights.mean().log().item() == pytest.approx(evidence, abs=error.item())
        normalizer = torch.stack(runs.log_weights).logsumexp(0) - math.log(400)
        assert runs.get_log_normalizer().item() == pytest.approx(normalizer.item(), abs=1e-5)


def chain(x):
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    move = torch.tensor([[0.9, 0.1], [0.2, 0.8]])
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(move[z]))
        pyro.sample(f"x{t}", dist.Normal(2.0 * z, s), obs=x[t])


def items(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    rows, columns = pyro.plate("rows", 3, dim=-2), pyro.plate("columns", 2, dim=-1)
    with rows:
        u = pyro.sample("u", dist.Bernoulli(0.4))
    with columns:
        v = pyro.sample("v", dist.Bernoulli(0.6))
    with rows, columns:
        pyro.sample("x", dist.Normal(m + u * v, 1.0), obs=x)


def events(x):
    m = pyro.sample("m", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.2, 0.6, 0.5])).to_event(1))
    pyro.sample("x", dist.Normal(m + (z * torch.tensor([1.0, 2.0, 4.0])).sum(-1), 1.0), obs=x)


def test_chains_against_pyro():
    x, s = torch.randn(40, generator=torch.Generator().manual_seed(1)) + 1, torch.tensor(1.3)
    pyros = TraceEnum_ELBO(max_plate_nesting=0).loss(
        config_enumerate(poutine.condition(chain, {"s": s})), lambda x: None, x
    )
    assert total(traced(poutine.condition(collapse(chain), {"s": s}), x)) == pytest.approx(-pyros, rel=1e-5)


def test_plates_beside_each_other_and_joint_values():
    x = torch.randn(3, 2, generator=torch.Generator().manual_seed(2))
    joint = []
    for bits in itertools.product([0.0, 1.0], repeat=5):
        u, v = torch.tensor(bits[:3])[:, None], torch.tensor(bits[3:])
        prior = dist.Bernoulli(0.4).log_prob(u).sum() + dist.Bernoulli(0.6).log_prob(v).sum()
        joint.append(prior + dist.Normal(0.2 + u * v, 1.0).log_prob(x).sum())
    prior = dist.Normal(0.0, 1.0).log_prob(torch.tensor(0.2))
    found = total(traced(poutine.condition(collapse(items), {"m": torch.tensor(0.2)}), x))
    assert found == pytest.approx((torch.stack(joint).logsumexp(0) + prior).item(), rel=1e-6)
    bits = torch.tensor(list(itertools.product([0.0, 1.0], repeat=3)))
    each = dist.Bernoulli(torch.tensor([0.2, 0.6, 0.5])).log_prob(bits).sum(-1)
    each = each + dist.Normal(0.2 + bits @ torch.tensor([1.0, 2.0, 4.0]), 1.0).log_prob(torch.tensor(3.0))
    found = total(traced(poutine.condition(collapse(events), {"m": torch.tensor(0.2)}), torch.tensor(3.0)))
    assert found == pytest.approx((each.logsumexp(0) + prior).item(), rel=1e-6)


def counted(x):
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(r))
        pyro.sample("x", dist.Normal(n, 0.3), obs=x)


def of_counted(r, x):
    n = torch.arange(400.0, dtype=torch.double)[:, None]
    each = (dist.Poisson(r.double()).log_prob(n) + dist.Normal(n, 0.3).log_prob(x)).logsumexp(0)
    return dist.Gamma(2.0, 1.0).log_prob(r) + each.sum()


def test_counts_go_as_far_as_rates_and_data_ask_for():
    collapsed = collapse(counted)
    for x in (torch.tensor([1.0, 2.0]), torch.tensor([1.0, 40.0]), torch.tensor([90.0, 2.0])):
        for rate in (1.5, 60.0, 0.4):
            r = torch.tensor(rate)
            found = total(traced(poutine.condition(collapsed, {"r": r}), x))
            assert found == pytest.approx(of_counted(r, x).item(), rel=1e-5)
    far = {"r": torch.tensor(1.5), "n": torch.tensor([1.0, 60.0])}  # a conditioned count has no end
    x = torch.tensor([1.0, 60.0])
    expected = dist.Gamma(2.0, 1.0).log_prob(far["r"]) + dist.Poisson(1.5).log_prob(far["n"]).sum()
    expected = expected + dist.Normal(far["n"], 0.3).log_prob(x).sum()
    assert total(traced(poutine.condition(collapsed, far), x)) == pytest.approx(expected.item(), rel=1e-5)


def test_a_large_rate_that_was_tried_once_is_no_burden():
    collapsed, x = collapse(counted), torch.tensor([1.0, 2.0])
    traced(poutine.condition(collapsed, {"r": torch.tensor(3000.0)}), x)
    assert collapsed.plan.counts.tops["n"] > 3000
    for _ in range(25):
        traced(poutine.condition(collapsed, {"r": torch.tensor(2.0)}), x)
    assert collapsed.plan.counts.tops["n"] < 30


def branching(x):
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    pyro.sample("a", dist.Normal(r, 1.0), obs=torch.tensor(0.5))
    n = pyro.sample("n", dist.Poisson(r))
    b = pyro.sample("b", dist.Bernoulli(0.3))
    if b.item():
        pyro.sample("x", dist.Normal(float(n.item()), 0.3), obs=x)
    else:
        pyro.sample("x", dist.Normal(float(n.item()) + 1.0, 0.3), obs=x)


def branching_on_none(x):
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(s if z.item() else -s, 1.0), obs=x)


def test_a_program_that_reads_draws_by_item_is_summed_value_by_value():
    collapsed, x, r = collapse(branching), torch.tensor(9.0), torch.tensor(1.5)
    trace = traced(poutine.condition(collapsed, {"r": r}), x)
    assert "one joint value after another" in str(collapsed.plan)
    assert [*terms(trace)] == ["r", "a", "x", "sum over n, b"]
    n = torch.arange(200.0)[:, None]
    joint = dist.Poisson(r).log_prob(n) + torch.tensor([0.7, 0.3]).log()
    joint = joint + dist.Normal(n + torch.tensor([1.0, 0.0]), 0.3).log_prob(x)
    outside = dist.Gamma(2.0, 1.0).log_prob(r) + dist.Normal(r, 1.0).log_prob(torch.tensor(0.5))
    assert total(trace) == pytest.approx((outside + joint.flatten().logsumexp(0)).item(), rel=1e-5)
    trace = traced(poutine.condition(collapsed, {"r": r, "b": torch.tensor(1.0)}), x)
    assert total(trace) == pytest.approx((outside + joint[:, 1].logsumexp(0)).item(), rel=1e-5)


def test_nuts_hmc_and_predictive():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(collapse(mixture)), num_samples=8, warmup_steps=8, disable_progbar=True)
    mcmc.run(X)
    draws = mcmc.get_samples()
    assert {n: tuple(v.shape) for n, v in draws.items()} == {"w": (8, 2), "locs": (8, 2)}
    kernel = HMC(collapse(chain), step_size=0.1, num_steps=2)
    mcmc = MCMC(kernel, num_samples=3, warmup_steps=2, disable_progbar=True)
    mcmc.run(torch.randn(6))
    assert mcmc.get_samples()["s"].shape == (3,)
    found = Predictive(collapse(mixture), draws)(None)
    assert found["z"].shape == found["x"].shape == (8, 3)


def test_nuts_over_counts_whose_rates_it_tries():
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(collapse(counted)), num_samples=10, warmup_steps=20, disable_progbar=True)
    mcmc.run(torch.tensor([1.0, 2.0]))
    assert mcmc.get_samples()["r"].isfinite().all()


@pytest.mark.parametrize("particles", [1, 5])
def test_svi_with_an_autoguide(particles):
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    collapsed = collapse(mixture)
    guide = AutoNormal(collapsed)
    elbo = Trace_ELBO(num_particles=particles, vectorize_particles=particles > 1, max_plate_nesting=1)
    svi = SVI(collapsed, guide, pyro.optim.Adam({"lr": 0.05}), elbo)
    losses = [svi.step(X) for _ in range(150)]
    assert sum(losses[-30:]) < sum(losses[:30])
    assert {*guide.median()} == {"w", "locs"}


@pytest.mark.statistical
def test_the_bound_of_a_guide_is_that_of_our_own_elbo():
    """Exact sums either way, under the same draws of the guide."""

    def guide(x):
        pyro.sample("w", dist.Dirichlet(torch.tensor([2.0, 3.0])))
        pyro.sample("locs", dist.Normal(torch.tensor([-1.0, 2.0]), 0.5).to_event(1))

    pyro.set_rng_seed(0)
    ours = TraceELBO().loss(mixture, guide, X)
    pyro.set_rng_seed(0)
    assert Trace_ELBO().loss(collapse(mixture), guide, X) == pytest.approx(ours, rel=1e-5)


def ordered(x):
    a = pyro.sample("a", dist.Normal(0.0, 2.0))
    gap = pyro.sample("gap", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(a + gap * z, 0.7), obs=x)


@pytest.mark.slow
@pytest.mark.statistical
def test_a_posterior_of_two_parameters_with_an_ordered_prior_against_quadrature():
    """Means and spreads of the two locations, within 5 standard errors of an effective sample of a fifth.

    By the traced program; NUTS without one is in the next test.
    """
    x = torch.tensor([-1.2, -0.7, -1.6, 0.9, 1.4, 1.1, -0.9])
    a, gap = torch.linspace(-5, 4, 400)[:, None, None], torch.linspace(0.005, 8, 400)[:, None]
    low = math.log(0.6) + dist.Normal(a, 0.7).log_prob(x)
    each = torch.stack(torch.broadcast_tensors(low, math.log(0.4) + dist.Normal(a + gap, 0.7).log_prob(x)))
    joint = each.logsumexp(0).sum(-1) + dist.Normal(0.0, 2.0).log_prob(a)[..., 0]
    joint = joint + dist.Gamma(2.0, 1.0).log_prob(gap)[:, 0]
    weights = joint.flatten().softmax(0).reshape(400, 400)
    pyro.set_rng_seed(0)
    kernel = NUTS(collapse(ordered), jit_compile=True, ignore_jit_warnings=True)
    mcmc = MCMC(kernel, num_samples=1500, warmup_steps=300, disable_progbar=True)
    mcmc.run(x)
    draws = mcmc.get_samples()
    first = a[:, 0, 0][:, None].expand(400, 400)
    for found, grid in ((draws["a"], first), (draws["a"] + draws["gap"], first + gap[:, 0])):
        mean = (weights * grid).sum()
        spread = ((weights * grid.square()).sum() - mean.square()).sqrt()
        assert found.mean().item() == pytest.approx(mean.item(), abs=5 * spread.item() / 300**0.5)
        assert found.std().item() == pytest.approx(spread.item(), rel=0.25)


def zero_inflated(x):
    rate = pyro.sample("rate", dist.Gamma(2.0, 0.5))
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.ZeroInflatedPoisson(rate, gate=torch.tensor(0.35)))
        pyro.sample("x", dist.Normal(n, 0.4), obs=x)


@pytest.mark.slow
@pytest.mark.statistical
def test_zero_inflated_counts_inside_nuts_against_quadrature():
    """Mean and quartiles of the rate, over 600 draws.

    Errors are five standard ones of an effective sample of a quarter of the draws, which it is tested to be at least:
    by chance each of the four figures is beyond with a probability of 6e-7.
    """
    x = torch.tensor([0.2, -0.1, 3.4, 2.1, 0.3, 5.2, 0.1, 2.8, 3.9, -0.3])
    grid = torch.linspace(0.005, 20.0, 4000, dtype=torch.double)
    n = torch.arange(60.0, dtype=torch.double)[:, None]
    prior = (0.65 * dist.Poisson(grid).log_prob(n).exp() + 0.35 * (n == 0)).log()  # [counts, grid]
    each = (prior[..., None] + dist.Normal(n[..., None], 0.4).log_prob(x.double())).logsumexp(0)
    joint = dist.Gamma(2.0, 0.5).log_prob(grid) + each.sum(-1)
    collapsed = collapse(zero_inflated)
    for at in (100, 700, 2500):
        found = total(traced(poutine.condition(collapsed, {"rate": grid[at].float()}), x))
        assert found == pytest.approx(joint[at].item(), rel=1e-5)
    weights = joint.softmax(0)
    mean = (weights * grid).sum()
    spread = ((weights * (grid - mean).square()).sum()).sqrt()
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(collapsed), num_samples=600, warmup_steps=150, disable_progbar=True)
    mcmc.run(x)
    draws = mcmc.get_samples()["rate"].double()
    assert mcmc.diagnostics()["rate"]["n_eff"] > 150
    error = 5 / 150**0.5
    assert draws.mean().item() == pytest.approx(mean.item(), abs=error * spread.item())
    for share in (0.25, 0.5, 0.75):
        quartile = grid[(weights.cumsum(0) < share).sum()]
        assert (draws < quartile).double().mean().item() == pytest.approx(share, abs=error * (share - share**2) ** 0.5)


# ------------------------------------------------------------------------------------------------- traced programs


def unknown_moves(x):
    move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z{t}", dist.Categorical(move[z]))  # reads a single z in Python, and none of many
        pyro.sample(f"x{t}", dist.Normal(2.0 * z, 1.0), obs=x[t])


def counted_to_an_end(x):
    r = pyro.sample("r", dist.Gamma(2.0, 1.0))
    with pyro.plate("data", len(x)):
        n = pyro.sample("n", dist.Poisson(r), infer={"truncation": 25})
        pyro.sample("x", dist.Normal(n, 0.3), obs=x)


def subsets(x):
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", KSubset(torch.linspace(-1.0, 1.0, 6), 2))
    pyro.sample("x", dist.Normal(z.sum(-1) * s, s), obs=x[0])


def decides(x):
    s = pyro.sample("s", dist.Gamma(2.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(z * (2 * s if s.item() > 1 else s), 1.0), obs=x[0])


def potential(program, x, **settings):
    params, found, _, _ = initialize_model(collapse(program), (x,), skip_jit_warnings=True, **settings)
    return params, found


@pytest.mark.parametrize("program", [mixture, unknown_moves, events, counted_to_an_end, subsets, branching_on_none])
def test_a_traced_program_is_the_same_at_other_values(program):
    x = X[0] if program in (events, branching_on_none) else X.abs()
    params, traced_one = potential(program, x, jit_compile=True)
    _, plain = potential(program, x)
    for number in (0.3, -1.2, 1.0):
        at = [{n: torch.full_like(v, number).requires_grad_() for n, v in params.items()} for _ in range(2)]
        found, right = traced_one(at[0]), plain(at[1])
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
        slopes = [torch.autograd.grad(f, list(v.values())) for f, v in zip((found, right), at, strict=True)]
        torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("program", "words"),
    [(counted, "How far the sum over a count.*truncation"), (decides, "decides by its draws of s, anew in every run")],
)
def test_what_is_judged_in_every_run_cannot_be_traced(program, words):
    with pytest.raises(EnumerationError, match=words):  # at the start, or at the first values
        params, found = potential(program, X.abs(), jit_compile=True)
        found({name: torch.full_like(value, 0.3) for name, value in params.items()})


def test_reading_a_single_discrete_draw_is_no_branch(monkeypatch):
    """A chain by `move[z]`, run with all values at once, is not tried anew in every run; data still decide."""

    def tried(*args):
        raise AssertionError("tried anew")

    monkeypatch.setattr("pyro_discrete.elbos.collapse.why_not_at_once_here", tried)
    collapsed, move = collapse(unknown_moves), torch.tensor([[0.6, 0.4], [0.3, 0.7]])
    found = total(traced(poutine.condition(collapsed, {"move": move}), X))
    assert not collapsed.plan.decided_by
    loss = TraceELBO().loss(unknown_moves, lambda x: pyro.sample("move", dist.Delta(move, event_dim=2)), X)
    assert loss == pytest.approx(-found, rel=1e-5)

    def by_data(x):
        move = pyro.sample("move", dist.Dirichlet(torch.ones(2, 2)).to_event(1))
        z = pyro.sample("z", dist.Categorical(move[0]))
        w = pyro.sample("w", dist.Categorical(move[z]))
        pyro.sample("x", dist.Normal(2.0 * w, 1.0), obs=x)
        if x > 0:
            pyro.sample("y", dist.Normal(3.0 * w, 1.0), obs=x)

    collapsed = collapse(by_data)
    for x in (torch.tensor(-0.5), torch.tensor(1.5), torch.tensor(-0.7)):
        found = traced(poutine.condition(collapsed, {"move": move}), x)
        w = torch.arange(2.0)
        each = (move[0] @ move).log() + dist.Normal(2.0 * w, 1.0).log_prob(x)
        each = each + (dist.Normal(3.0 * w, 1.0).log_prob(x) if x > 0 else 0.0)
        right = dist.Dirichlet(torch.ones(2, 2)).log_prob(move).sum() + each.logsumexp(0)
        assert total(found) == pytest.approx(right.item(), rel=1e-5)


# --------------------------------------------------------------------------------------------------- bad input


def test_what_is_no_program():
    with pytest.raises(SettingError, match="the model is 3"):
        collapse(3)  # type: ignore[arg-type]
    with pytest.raises(SettingError, match="no argument 'max_element'"):
        collapse(mixture, max_element=3)  # type: ignore[call-arg]
    with pytest.raises(SettingError, match="first call"):
        _ = collapse(mixture).plan


def test_a_width_beyond_the_budget():
    with pytest.raises(EnumerationError, match=r"largest table of .* elements"):
        collapse(items, max_elements=8)(torch.zeros(3, 2))


def test_a_sum_that_cannot_be_told_to_settle():
    def model(x):
        n = pyro.sample("n", dist.Poisson(2.0))
        pyro.factor("f", 0.1 * n)
        pyro.sample("x", dist.Normal(n, 1.0), obs=x)

    with pytest.raises(EnumerationError, match=r"'n'.*'f'.*truncation"):
        collapse(model)(torch.tensor(1.0))


def test_a_collapsed_model_can_be_pickled_and_shows_what_it_is_made_of():
    collapsed = collapse(mixture)
    traced(collapsed, X)
    again = pickle.loads(pickle.dumps(collapsed))
    assert total(traced(poutine.condition(again, VALUES), X)) == pytest.approx(
        of_mixture(VALUES, X)[0].item(), rel=1e-6
    )
    assert repr(collapsed) == "collapse(mixture)"
    assert collapsed.uncollapsed is mixture


def test_parameters_and_modules_are_seen():
    network = torch.nn.Linear(1, 1)

    def model(x):
        pyro.module("network", network)
        scale = pyro.param("scale", torch.tensor(1.0))
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(network(z.unsqueeze(-1)).squeeze(-1) + m, scale), obs=x)

    pyro.clear_param_store()
    collapsed = collapse(model)
    svi = SVI(collapsed, AutoNormal(collapsed), pyro.optim.Adam({"lr": 0.01}), Trace_ELBO())
    before = network.weight.detach().clone()
    for _ in range(3):
        svi.step(X)
    assert not torch.equal(before, network.weight)
    assert pyro.param("scale") != 1.0
