"""Models with latent structures, collapsed: against sums over all of their values, under handlers and inferences."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS, SVI, Predictive, Trace_ELBO
from pyro.infer.autoguide import AutoNormal
from pyro.ops.indexing import Vindex

from pyro_discrete import DiscretePosterior, TraceELBO, collapse, distributions
from pyro_discrete.distributions import (
    Arborescence,
    GibbsMatching,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    Structure,
    precedence,
)
from pyro_discrete.distributions.structure import GibbsStructure
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError

SMALL = [
    pytest.param(kind, place, id=f"{kind.__name__}-{place}")
    for kind in vars(distributions).values()
    if isinstance(kind, type) and issubclass(kind, Structure) and kind is not Structure and "small" in vars(kind)
    for place in range(len(kind.small()))
]


def traced(program, *args, **kwargs):
    trace = poutine.trace(program).get_trace(*args, **kwargs)
    trace.compute_log_prob()
    return trace


def sample_names(trace):
    return [n for n, m in trace.nodes.items() if m["type"] == "sample" and type(m["fn"]).__name__ != "_Subsample"]


def features(structure):
    """A number for every place of a value: what the program reads."""
    size = structure.event_shape.numel()
    return torch.linspace(0.3, 1.7, size).reshape(structure.event_shape)


def score(structure, value):
    """A curved function of a value, so that no sum over parts would do."""
    total = (value * features(structure)).sum(-1)
    return total.cos() + 0.3 * total


@pytest.mark.parametrize(("kind", "place"), SMALL)
def test_each_structure_is_summed_over_its_values(kind, place):
    structure = kind.small()[place]
    base = structure.like(structure.logits.reshape(-1, *structure.logits.shape[-structure.param_dim :])[0])
    m, x = torch.tensor(0.4, requires_grad=True), torch.tensor([0.7, -0.2, 1.1])

    def model(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        tilted = base.like(base.logits + 0.3 * m * base.logits.exp())
        z = pyro.sample("z", tilted)
        pyro.sample("y", dist.Normal(m + score(base, z), 1.0), obs=x[0])
        with pyro.plate("data", 2):
            w = pyro.sample("w", base)
            pyro.sample("x", dist.Normal(m + score(base, w), 1.0), obs=x[1:])

    every = base.enumerate_support(expand=False)
    tilted = base.like(base.logits + 0.3 * m * base.logits.exp())
    of_z = tilted.log_prob(every) + dist.Normal(m + score(base, every), 1.0).log_prob(x[0])
    of_w = base.log_prob(every)[:, None] + dist.Normal(m + score(base, every)[:, None], 1.0).log_prob(x[1:])
    expected = dist.Normal(0.0, 1.0).log_prob(m) + of_z.logsumexp(0) + of_w.logsumexp(0).sum()
    trace = traced(poutine.condition(collapse(model), {"m": m}), x)
    assert sample_names(trace) == ["m", "y", "x", "sum over z, w"]
    found = trace.log_prob_sum()
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5, check_dtype=False)
    slopes = [torch.autograd.grad(each, m)[0] for each in (found, expected)]
    torch.testing.assert_close(*slopes, rtol=1e-4, atol=1e-4)


def preferences(x, rankings=None):
    """Items of unknown strength, a ranking of each judge, of which a comparison of the first two is seen with noise."""
    strength = pyro.sample("strength", dist.Normal(0.0, 1.0).expand([4]).to_event(1))
    with pyro.plate("judges", len(x)):
        order = pyro.sample("order", PlackettLuce(strength), obs=rankings)
        pyro.sample("x", dist.Normal(precedence(order)[..., 0, 1], 0.5), obs=x)


def of_preferences(strength, x):
    law = PlackettLuce(strength)
    every = law.enumerate_support(expand=False)
    each = law.log_prob(every)[:, None] + dist.Normal(precedence(every)[:, 0, 1, None], 0.5).log_prob(x)
    return dist.Normal(0.0, 1.0).log_prob(strength).sum() + each.logsumexp(0).sum()


X = torch.tensor([0.9, 1.2, 0.1, 0.8])


def test_rankings_given_their_strengths():
    strength = torch.tensor([0.5, -0.3, 1.0, 0.1])
    found = traced(poutine.condition(collapse(preferences), {"strength": strength}), X).log_prob_sum()
    torch.testing.assert_close(found, of_preferences(strength, X), rtol=1e-5, atol=1e-5)
    # a comparison of two items is Bernoulli: the closed form beside the sum over 24 rankings
    first = torch.sigmoid(strength[0] - strength[1])
    each = [first.log() + dist.Normal(1.0, 0.5).log_prob(X), (1 - first).log() + dist.Normal(0.0, 0.5).log_prob(X)]
    closed = dist.Normal(0.0, 1.0).log_prob(strength).sum() + torch.stack(each).logsumexp(0).sum()
    torch.testing.assert_close(found, closed, rtol=1e-5, atol=1e-5)


def test_a_conditioned_structure_is_observed():
    strength = torch.tensor([0.5, -0.3, 1.0, 0.1])
    pyro.set_rng_seed(0)
    orders = PlackettLuce(torch.zeros(4, 4)).sample()
    values = {"strength": strength, "order": orders}
    trace = traced(poutine.condition(collapse(preferences), values), X)
    expected = dist.Normal(0.0, 1.0).log_prob(strength).sum() + PlackettLuce(strength).log_prob(orders).sum()
    expected = expected + dist.Normal(precedence(orders)[:, 0, 1], 0.5).log_prob(X).sum()
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-5, atol=1e-5)
    assert sample_names(trace) == ["strength", "order", "x"]


def test_nuts_autoguides_and_predictive():
    pyro.set_rng_seed(0)
    pyro.clear_param_store()
    collapsed = collapse(preferences)
    mcmc = MCMC(NUTS(collapsed), num_samples=6, warmup_steps=6, disable_progbar=True)
    mcmc.run(X)
    draws = mcmc.get_samples()
    assert {n: tuple(v.shape) for n, v in draws.items()} == {"strength": (6, 4)}
    guide = AutoNormal(collapsed)
    svi = SVI(collapsed, guide, pyro.optim.Adam({"lr": 0.05}), Trace_ELBO())
    losses = [svi.step(X) for _ in range(5)]
    assert torch.tensor(losses).isfinite().all()
    assert {*guide.median()} == {"strength"}
    found = Predictive(collapsed, draws)(X)
    assert found["order"].shape == (6, 4, 4)
    places = DiscretePosterior(collapsed, samples=draws).marginals(X)["order"].base_dist.probs
    law = PlackettLuce(draws["strength"][:, None])
    every = law.enumerate_support()
    weights = law.log_prob(every) + dist.Normal(precedence(every)[..., 0, 1], 0.5).log_prob(X)
    expected = torch.einsum("vsj,vsjpi->sjpi", weights.softmax(0), law.vertex(every).expand(-1, 6, 4, 4, 4))
    torch.testing.assert_close(places, expected, rtol=1e-4, atol=1e-5, check_dtype=False)


def test_rankings_that_are_data_of_latent_groups():
    """A mixture of Plackett-Luce groups: the structure is observed, and its group summed out."""
    pyro.set_rng_seed(0)
    strengths, rankings = torch.randn(2, 4), PlackettLuce(torch.zeros(5, 4)).sample()

    def model(rankings):
        s = pyro.sample("s", dist.Normal(0.0, 1.0).expand([2, 4]).to_event(2))
        with pyro.plate("judges", 5):
            group = pyro.sample("group", dist.Categorical(torch.tensor([0.3, 0.7])))
            pyro.sample("order", PlackettLuce(Vindex(s)[group, :]), obs=rankings)

    each = torch.stack([PlackettLuce(s).log_prob(rankings) for s in strengths]) + torch.tensor([[0.3], [0.7]]).log()
    expected = dist.Normal(0.0, 1.0).log_prob(strengths).sum() + each.logsumexp(0).sum()
    trace = traced(poutine.condition(collapse(model), {"s": strengths}), rankings)
    torch.testing.assert_close(trace.log_prob_sum(), expected, rtol=1e-5, atol=1e-5)
    assert trace.nodes["order"]["log_prob"].shape == (5,)


def test_a_structure_whose_law_depends_on_another():
    groups = torch.tensor([[0.0, 0.5, 1.0, -1.0], [1.0, -0.5, 0.0, 0.3]])

    def model(x):
        g = pyro.sample("g", dist.Bernoulli(0.3))
        chosen = pyro.sample("chosen", KSubset(Vindex(groups)[g.long(), :], 2))
        order = pyro.sample("order", PlackettLuce(chosen * 2.0 - 1.0))
        pyro.sample("x", dist.Normal(precedence(order)[..., 0, 2] + chosen[..., 1], 1.0), obs=x)

    x, joint = torch.tensor(0.8), []
    for g, weight in enumerate((0.7, 0.3)):
        subsets = KSubset(groups[g], 2)
        for chosen in subsets.enumerate_support(expand=False):
            orders = PlackettLuce(chosen * 2.0 - 1.0)
            every = orders.enumerate_support(expand=False)
            term = dist.Normal(precedence(every)[:, 0, 2] + chosen[1], 1.0).log_prob(x) + orders.log_prob(every)
            joint.append(term + subsets.log_prob(chosen) + torch.tensor(weight).log())
    expected = torch.cat(joint).logsumexp(0)
    torch.testing.assert_close(traced(collapse(model), x).log_prob_sum(), expected, rtol=1e-5, atol=1e-5)
    ours = TraceELBO("enumerate").loss(model, lambda x: None, x)
    assert ours == pytest.approx(-expected.item(), rel=1e-5)


TABLE = torch.tensor([0.3, 1.1, -0.5])


def test_joint_values_of_two_rankings_in_one_site():
    law, x, joint = PlackettLuce(torch.tensor([[0.2, -1.0, 0.6], [1.1, 0.0, -0.4]])), torch.tensor(0.6), []

    def likelihood(orders):
        return dist.Normal(TABLE[orders][..., 0].prod(-1).cos(), 1.0)

    def model(x):
        pyro.sample("x", likelihood(pyro.sample("orders", law.to_event(1))), obs=x)

    for one in PlackettLuce(torch.zeros(3)).enumerate_support():
        for other in PlackettLuce(torch.zeros(3)).enumerate_support():
            orders = torch.stack([one, other])
            joint.append(law.log_prob(orders).sum() + likelihood(orders).log_prob(x))
    torch.testing.assert_close(traced(collapse(model), x).log_prob_sum(), torch.stack(joint).logsumexp(0))


def test_a_chain_of_rankings():
    """Each ranking's law depends on the one before: summed forward, link by link."""
    bias, x = torch.tensor([0.0, 0.2, 0.4]), torch.tensor([0.4, -0.3, 1.2, 0.9, 0.0])

    def model(x):
        order = None
        for t in pyro.markov(range(len(x))):
            order = pyro.sample(f"order{t}", PlackettLuce(bias if order is None else TABLE[order] + bias))
            pyro.sample(f"x{t}", dist.Normal(TABLE[order][..., 0], 1.0), obs=x[t])

    every = PlackettLuce(torch.zeros(3)).enumerate_support()
    seen = dist.Normal(TABLE[every][:, :1], 1.0).log_prob(x)
    moves = torch.stack([PlackettLuce(TABLE[each] + bias).log_prob(every) for each in every])
    forward = PlackettLuce(bias).log_prob(every) + seen[:, 0]
    for t in range(1, 5):
        forward = (forward[:, None] + moves).logsumexp(0) + seen[:, t]
    found = traced(collapse(model), x).log_prob_sum()
    torch.testing.assert_close(found, forward.logsumexp(0), rtol=1e-5, atol=1e-5)


def test_scales_masks_and_subsamples_of_structures():
    law, kept, x = KSubset(torch.tensor([0.3, -0.2, 1.0, 0.1]), 2), torch.tensor([True, False, True]), X[:3]

    def likelihood(chosen):
        return dist.Normal((chosen * torch.arange(4.0)).sum(-1).sin(), 1.0)

    def model(x):
        with pyro.plate("data", 6, subsample_size=3), poutine.scale(scale=2.0), poutine.mask(mask=kept):
            pyro.sample("x", likelihood(pyro.sample("chosen", law)), obs=x)

    every = law.enumerate_support(expand=False)
    each = (law.log_prob(every)[:, None] + likelihood(every[:, None]).log_prob(x)).logsumexp(0)
    expected = 2 * 6 / 3 * each[kept].sum()
    torch.testing.assert_close(traced(poutine.scale(collapse(model), scale=0.5), x).log_prob_sum(), expected / 2)


def test_a_continuous_site_whose_prior_depends_on_a_ranking():
    law, y, u = PlackettLuce(torch.tensor([0.1, 0.5, -0.3])), torch.tensor(0.4), torch.tensor(0.2)

    def model(y):
        order = pyro.sample("order", law)
        u = pyro.sample("u", dist.Normal(TABLE[order][..., 0], 1.0))
        pyro.sample("y", dist.Normal(u, 1.0), obs=y)

    every = law.enumerate_support(expand=False)
    prior = (law.log_prob(every) + dist.Normal(TABLE[every][:, 0], 1.0).log_prob(u)).logsumexp(0)
    found = traced(poutine.condition(collapse(model), {"u": u}), y).log_prob_sum()
    torch.testing.assert_close(found, prior + dist.Normal(u, 1.0).log_prob(y))


def test_a_structure_too_large_to_list_may_be_conditioned():
    law, x, bits = PlackettLuce(torch.zeros(20)), torch.tensor(0.3), torch.tensor([0.0, 1.0])
    order = torch.arange(20).flip(0)

    def model(x):
        order = pyro.sample("order", law)
        g = pyro.sample("g", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(0.1 * order[..., 0] + g, 1.0), obs=x)

    each = dist.Bernoulli(0.4).log_prob(bits) + dist.Normal(1.9 + bits, 1.0).log_prob(x)
    found = traced(poutine.condition(collapse(model), {"order": order}), x).log_prob_sum()
    torch.testing.assert_close(found, law.log_prob(order) + each.logsumexp(0))


def test_a_program_that_reads_a_ranking_by_item():
    logits = torch.tensor([0.2, -0.4, 1.0])

    def model(x):
        order = pyro.sample("order", PlackettLuce(logits))
        if order[0].item() == 2:
            pyro.sample("x", dist.Normal(1.0, 1.0), obs=x)
        else:
            pyro.sample("x", dist.Normal(float(order[1].item()), 2.0), obs=x)

    x, law = torch.tensor(0.8), PlackettLuce(logits)
    each = [
        law.log_prob(o) + (dist.Normal(1.0, 1.0) if o[0] == 2 else dist.Normal(float(o[1]), 2.0)).log_prob(x)
        for o in law.enumerate_support(expand=False)
    ]
    collapsed = collapse(model)
    torch.testing.assert_close(traced(collapsed, x).log_prob_sum(), torch.stack(each).logsumexp(0))
    assert "one joint value after another" in str(collapsed.plan)


@pytest.mark.parametrize(
    ("structure", "values"),
    [
        (PlackettLuce(torch.zeros(12)), r"4\.79e\+08"),
        (KSubset(torch.zeros(40), 20), r"1\.38e\+11"),
        (SequentialMatching(torch.zeros(14, 14)), r"8\.72e\+10"),
        (GibbsMatching(torch.zeros(11, 11)), r"3\.99e\+07"),
        (LinearChain(torch.zeros(30, 3, 3)), r"2\.06e\+14"),
        (Arborescence(torch.zeros(14, 14)), r"5\.67e\+13"),
    ],
    ids=lambda each: type(each).__name__ if isinstance(each, Structure) else "",
)
def test_a_support_too_large_to_list(structure, values):
    def model(x):
        z = pyro.sample("z", structure)
        pyro.sample("x", dist.Normal(score(structure, z), 1.0), obs=x)

    listed = rf"{values} values.*at most 1048576 values.*are listed"
    reason = "partition function.*'x' is not known to add up" if isinstance(structure, GibbsStructure) else listed
    with pytest.raises(EnumerationError, match=rf"'z'.*{reason}") as found:
        collapse(model)(torch.tensor(1.0))
    assert "guide too" not in str(found.value)
    assert "TraceELBO in the place of collapse" in str(found.value)


def test_no_refusal_speaks_of_a_guide_that_is_not_there():
    def endless(x):
        z = pyro.sample("z", PlackettLuce(torch.zeros(400)))
        pyro.sample("x", dist.Normal(z[..., 0].float(), 1.0), obs=x)

    def hung_together(x):
        with pyro.plate("rows", 40):
            z = pyro.sample("z", dist.Bernoulli(0.4))
        pyro.sample("x", dist.Normal(z.sum(-1).cos(), 1.0), obs=x)

    def wide(x):
        z = [pyro.sample(f"z{i}", dist.Bernoulli(0.4)) for i in range(20)]
        pyro.sample("x", dist.Normal(sum(z), 1.0), obs=x)

    def two_scales(x):
        z = pyro.sample("z", dist.Bernoulli(0.4))
        with poutine.scale(scale=3.0):
            pyro.sample("x", dist.Normal(z, 1.0), obs=x)

    for model in (endless, hung_together, wide, two_scales):
        with pytest.raises(DiscreteInferenceError) as found:
            collapse(model, max_elements=1000)(torch.tensor(1.0))
        text = str(found.value)
        assert "guide too" not in text, model
        assert "drawn in the guide" not in text, model
        assert "Enumerate(" not in text, model
        assert "TraceELBO in the place of collapse" in text, model
