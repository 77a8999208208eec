"""Structures that are not listed, summed by their partition function: against sums over all of their values.

The route is forced at small sizes: structures count as too large to be listed from four values on.
"""

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import MCMC, NUTS

from pyro_discrete import DiscretePosterior, TraceELBO, collapse
from pyro_discrete.distributions import Arborescence, GibbsMatching, KSubset, LinearChain, SpanningTree
from pyro_discrete.errors import EnumerationError
from pyro_discrete.programs import sites

D = torch.float64


def numbers(*shape):
    return (1.3 * torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=D)).sin().reshape(shape)


def masked(logits, *at):
    made = logits.clone()
    for place in at:
        made[place] = -torch.inf
    return made


STRUCTURES = {
    "matching": GibbsMatching(masked(numbers(4, 4), (0, 1), (2, 3))),
    "chain": LinearChain(masked(numbers(4, 3, 3), (1, 0, 2))),
    "arborescence": Arborescence(masked(numbers(4, 4), (0, 2))),
    "tree": SpanningTree.from_edges(masked(numbers(6), 3)),
    "subset": KSubset(masked(numbers(5), 1), 2),
}


@pytest.fixture
def none_listed(monkeypatch):
    monkeypatch.setattr(sites, "LARGEST_SUPPORT", 3)


@pytest.fixture(params=STRUCTURES)
def structure(request):
    return STRUCTURES[request.param]


def scaled(structure, by):
    """The structure with its logits times a number; -inf stays."""
    possible = structure.logits > -torch.inf
    return structure.like(torch.where(possible, torch.where(possible, structure.logits, 0.0) * by, -torch.inf))


def score(program, values, *args):
    return poutine.trace(poutine.condition(collapse(program), values)).get_trace(*args).log_prob_sum()


def each(table, z):
    """What a table `[places, numbers]` says of the number at each place."""
    return table[torch.arange(len(table)), z.long()]


def assert_same(found, right, wrt, rtol=1e-9):
    torch.testing.assert_close(found, right, rtol=rtol, atol=rtol, check_dtype=False)
    slopes = [torch.autograd.grad(total, wrt, retain_graph=True) for total in (found, right)]
    for pair in zip(*slopes, strict=True):
        torch.testing.assert_close(*pair, rtol=10 * rtol, atol=10 * rtol, check_dtype=False)
        assert pair[0].isfinite().all()


# --------------------------------------------------------------------------------------------- against all values


def test_readers_of_every_kind(structure, none_listed):
    """An event place by place, a loop over places, a slice, one-hot indicators, and a site of its own beside."""
    n, most = structure.event_shape[0], structure.numbers
    table, x = numbers(n, most), numbers(n)

    def terms(z, m, g, x):
        yield dist.Normal(m * each(table, z) + g.unsqueeze(-1), 1.0).to_event(1), x
        yield dist.Normal(m + each(table[1:], z[..., 1:]), 0.5).to_event(1), x[1:]
        for i in (0, n - 1):
            yield dist.Normal(m * table[i][z[..., i].long()], 1.0), x[i]
        hot = torch.nn.functional.one_hot(z.long(), most).to(D)
        yield dist.Bernoulli(logits=(hot * table).sum(-1)).to_event(1), (x > 0).to(D)

    def program(x):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=D), 1.0))
        g = pyro.sample("g", dist.Categorical(torch.tensor([0.2, 0.5, 0.3], dtype=D)))
        z = pyro.sample("z", scaled(structure, 1 + 0.1 * m))
        for i, (fn, value) in enumerate(terms(z, m, g, x)):
            pyro.sample(f"x{i}", fn, obs=value)

    m = torch.tensor(0.7, dtype=D, requires_grad=True)
    tilted = scaled(structure, 1 + 0.1 * m)
    every = tilted.enumerate_support()
    every = every[(tilted.log_prob(every) > -torch.inf).nonzero().squeeze(-1)]
    joint = []
    for g in range(3):
        g = torch.tensor(g)
        likelihood = sum(fn.log_prob(value) for fn, value in terms(every, m, g, x))
        joint.append(tilted.log_prob(every) + likelihood + torch.tensor([0.2, 0.5, 0.3], dtype=D)[g].log())
    prior = dist.Normal(torch.zeros((), dtype=D), 1.0).log_prob(m)
    collapsed = collapse(program)
    found = poutine.trace(poutine.condition(collapsed, {"m": m})).get_trace(x).log_prob_sum()
    assert_same(found, prior + torch.cat(joint).logsumexp(0), [m])
    assert "z by the partition function" in str(collapsed.plan)


SUMS = {
    "a table": lambda z, m, table: m * each(table, z).sum(-1),
    "weights": lambda z, m, table: (table[:, 1] * z).sum(-1) - m,
    "a product": lambda z, m, table: m * (z.to(D) @ table[:, 0]) + 3.0,
    "two places": lambda z, m, table: table[0][z[..., 0].long()] * m - table[2][z[..., -1].long()] / m,
    "a loop": lambda z, m, table: sum(m * row[z[..., i].long()] for i, row in enumerate(table)),
    "indicators": lambda z, m, table: torch.einsum("...ij,ij->...", one_hot(z, table), table) * m,
}
PAIRS = {
    "pairs": lambda z, m, table: m * table[z[..., :-1], z[..., 1:]].sum(-1),
    "pairs and places": lambda z, m, table: m * table[z[..., :-1], z[..., 1:]].sum(-1) + each(table, z).sum(-1),
    "a pair and a place": lambda z, m, table: m * table[z[..., 1], z[..., 2]] + table[3][z[..., -1]],
    "curved in a pair": lambda z, m, table: (m * table[z[..., 1], z[..., 2]] + table[2][z[..., 1]]) ** 2,
    "changes": lambda z, m, table: -m * (z[..., 1:] != z[..., :-1]).sum(-1),
}


def one_hot(z, table):
    return torch.nn.functional.one_hot(z.long(), table.shape[-1]).to(D)


def assert_summed(law, term):
    """A factor's term over a structure, against the sum over all values: density, slope, marginals, mode, draws."""
    table = numbers(law.event_shape[0], law.numbers)

    def program(x):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=D), 1.0))
        z = pyro.sample("z", scaled(law, (1 + 0.1 * m).reshape(*m.shape, *[1] * law.param_dim)))
        pyro.factor("f", term(z, m, table))
        pyro.sample("x", dist.Normal(m, 1.0), obs=x)

    m, x = torch.tensor(0.7, dtype=D, requires_grad=True), torch.tensor(0.2, dtype=D)
    tilted = scaled(law, 1 + 0.1 * m)
    every = tilted.enumerate_support()
    every = every[tilted.log_prob(every) > -torch.inf]
    joint = tilted.log_prob(every) + term(every, m, table)
    outside = dist.Normal(torch.zeros((), dtype=D), 1.0).log_prob(m) + dist.Normal(m, 1.0).log_prob(x)
    collapsed = collapse(program)
    found = poutine.trace(poutine.condition(collapsed, {"m": m})).get_trace(x).log_prob_sum()
    assert_same(found, joint.logsumexp(0) + outside, [m])
    assert "by the partition function" in str(collapsed.plan)
    shares = joint.detach().softmax(0)
    right = torch.einsum("v,vij->ij", shares, torch.nn.functional.one_hot(every.long(), law.numbers).to(D))
    posterior = DiscretePosterior(program, samples={"m": m.detach().expand(400)})
    probs = posterior.marginals(x)["z"].base_dist.probs
    right = right[..., 1] if law.soft_value == "weights" else right
    torch.testing.assert_close(probs, right.expand(probs.shape), rtol=1e-6, atol=1e-8)
    assert torch.equal(posterior.most_probable(x)["z"][0], every[shares.argmax()])
    pyro.set_rng_seed(0)
    drawn = posterior.samples(x)["z"].long()
    same = (drawn.unsqueeze(1) == every.long()).all(-1)
    assert same.any(-1).all()
    assert (same.to(D).mean(0) - shares).abs().max() < 0.16  # of up to 81 shares of 400 draws: 1e-7 (Hoeffding)
    return collapsed


@pytest.mark.parametrize("name", SUMS)
def test_terms_that_are_sums_over_places(structure, name, none_listed):
    assert_summed(structure, SUMS[name])


@pytest.mark.parametrize("name", PAIRS)
def test_terms_of_consecutive_states(name, none_listed):
    for law in (STRUCTURES["chain"], LinearChain(numbers(5, 2, 2))):
        table = numbers(law.event_shape[0], law.numbers)
        assert table.shape[0] >= law.numbers
        collapsed = assert_summed(law, PAIRS[name])
        assert "z (of pairs of places)" in str(collapsed.plan)


def test_plates_around_and_inside(structure, none_listed):
    """A structure for each document, read by several observations of a plate inside."""
    n = structure.event_shape[0]
    table, x, y = numbers(n, structure.numbers), numbers(2, n), numbers(3, 2)
    weight = torch.tensor([1.0, 0.6], dtype=D, requires_grad=True)

    def program(x, y):
        with pyro.plate("documents", 2, dim=-1):
            z = pyro.sample("z", scaled(structure, weight.reshape(-1, *[1] * structure.param_dim)))
            pyro.sample("x", dist.Normal(each(table, z), 1.0).to_event(1), obs=x)
            with pyro.plate("seen", 3, dim=-2):
                pyro.sample("y", dist.Normal(table[1][z[..., 1].long()], 0.5), obs=y)

    right = 0.0
    for i in range(2):
        own = scaled(structure, weight[i])
        every = own.enumerate_support()
        every = every[(own.log_prob(every) > -torch.inf).nonzero().squeeze(-1)]
        one = own.log_prob(every) + dist.Normal(each(table, every), 1.0).log_prob(x[i]).sum(-1)
        one = one + dist.Normal(table[1][every[:, 1].long(), None], 0.5).log_prob(y[:, i]).sum(-1)
        right = right + one.logsumexp(0)
    assert_same(score(program, {}, x, y), right, [weight])


def test_a_law_and_a_reader_that_depend_on_other_sites(none_listed):
    """A class says which matching is likely, and a site whose prior reads one row of it is summed out, too."""
    laws, table, x = numbers(2, 4, 4), numbers(4, 2), numbers(4)

    def program(x):
        c = pyro.sample("c", dist.Bernoulli(torch.tensor(0.3, dtype=D)))
        z = pyro.sample("z", GibbsMatching(laws[c.long()]))
        g = pyro.sample("g", dist.Categorical(logits=table[z[..., 2]]))
        pyro.sample("x", dist.Normal(x[z] + g.unsqueeze(-1) - c.unsqueeze(-1), 1.0).to_event(1), obs=x)

    joint, every = [], GibbsMatching(laws[0]).enumerate_support()
    for c in range(2):
        for g in range(2):
            term = GibbsMatching(laws[c]).log_prob(every) + torch.tensor([0.7, 0.3], dtype=D)[c].log()
            term = term + table[every[:, 2]].log_softmax(-1)[:, g]
            joint.append(term + dist.Normal(x[every] + g - c, 1.0).log_prob(x).sum(-1))
    right = torch.cat(joint).logsumexp(0)
    torch.testing.assert_close(score(program, {}, x), right, rtol=1e-9, atol=1e-9)
    found = DiscretePosterior(program).marginals(x)
    weights = torch.stack(joint).exp() / right.exp()
    torch.testing.assert_close(found["c"].probs, weights[2:].sum(), rtol=1e-6, atol=1e-8, check_dtype=False)
    torch.testing.assert_close(found["g"].probs, weights.reshape(2, 2, -1).sum((0, 2)), rtol=1e-6, atol=1e-8)
    columns = torch.nn.functional.one_hot(every, 4).to(D)
    right_columns = torch.einsum("v,vrc->rc", weights.sum(0), columns)
    torch.testing.assert_close(found["z"].base_dist.probs, right_columns, rtol=1e-6, atol=1e-8)


def test_posteriors_given_draws(structure, none_listed):
    """Marginals, modes and joint draws, over draws of another inference at once, and the ELBO's sum."""
    n, most = structure.event_shape[0], structure.numbers
    table, x = numbers(n, most), numbers(2, n)

    def program(x):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=D), 1.0))
        with pyro.plate("documents", 2):
            z = pyro.sample("z", structure)
            pyro.sample("x", dist.Normal(m.unsqueeze(-1) * each(table, z), 0.5).to_event(1), obs=x)

    m = numbers(3)
    every = structure.enumerate_support()
    likelihood = dist.Normal(m[:, None, None, None] * each(table, every), 0.5).log_prob(x[:, None]).sum(-1)
    joint = likelihood + structure.log_prob(every)  # [draws, documents, values]
    posterior = DiscretePosterior(program, samples={"m": m})
    hot = torch.nn.functional.one_hot(every.long(), most).to(D)
    right = torch.einsum("dav,vij->daij", joint.softmax(-1), hot)
    probs = posterior.marginals(x)["z"].base_dist.probs
    right_probs = right[..., 1] if structure.soft_value == "weights" else right
    torch.testing.assert_close(probs, right_probs, rtol=1e-6, atol=1e-8)
    best = posterior.most_probable(x)["z"]
    assert best.dtype == every.dtype
    assert torch.equal(best, every[joint.argmax(-1)])
    pyro.set_rng_seed(0)
    drawn = DiscretePosterior(program, samples={"m": m[:1].expand(400)}).samples(x)["z"]
    assert (structure.log_prob(drawn) > -torch.inf).all()
    shares = torch.nn.functional.one_hot(drawn.long(), most).to(D).mean(0)
    assert (shares - right[0]).abs().max() < 0.16  # of 30 shares of 400 draws: below 1e-8 each (Hoeffding)
    loss = TraceELBO("enumerate").loss(program, lambda x: pyro.sample("m", dist.Delta(m[0])), x)
    prior = dist.Normal(torch.zeros((), dtype=D), 1.0).log_prob(m[0])
    assert loss == pytest.approx(-(prior + joint[0].logsumexp(-1).sum()).item(), rel=1e-9)


def test_handlers_around(none_listed):
    """A scale, a mask and a subsample; a value that is conditioned is observed."""
    law, table, x = STRUCTURES["matching"], numbers(4, 4), numbers(2, 4)
    kept = torch.tensor([True, False])

    def program(x):
        with pyro.plate("documents", 4, subsample_size=2), poutine.scale(scale=2.0):
            z = pyro.sample("z", law)
            with poutine.mask(mask=kept):
                pyro.sample("x", dist.Normal(each(table, z), 1.0).to_event(1), obs=x)

    every = law.enumerate_support()
    one = law.log_prob(every) + dist.Normal(each(table, every), 1.0).log_prob(x[0]).sum(-1)
    torch.testing.assert_close(score(program, {}, x), 4.0 * one.logsumexp(0), rtol=1e-9, atol=1e-9)
    z = law.sample(torch.Size([2]))
    given = law.log_prob(z).sum() + dist.Normal(each(table, z[0]), 1.0).log_prob(x[0]).sum()
    torch.testing.assert_close(score(program, {"z": z}, x), 4.0 * given, rtol=1e-9, atol=1e-9)


def test_single_precision(structure, none_listed):
    single = structure.like(structure.logits.float())
    n = structure.event_shape[0]
    table, x = numbers(n, structure.numbers).float(), numbers(n).float()

    def program(x):
        z = pyro.sample("z", single)
        pyro.sample("x", dist.Normal(each(table, z), 1.0).to_event(1), obs=x)

    every = structure.enumerate_support()
    right = structure.log_prob(every) + dist.Normal(each(table, every), 1.0).log_prob(x).sum(-1)
    found = score(program, {}, x)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.to(D), right.logsumexp(0), rtol=1e-5, atol=1e-5)


def test_a_continuous_site_whose_prior_goes_place_by_place():
    law, table, u, y = LinearChain(numbers(20, 3, 3)), numbers(3), numbers(20), torch.tensor(0.3, dtype=D)

    def program():
        z = pyro.sample("z", law)
        u = pyro.sample("u", dist.Normal(table[z], 1.0).to_event(1))
        pyro.sample("y", dist.Normal(u.sum(-1), 1.0), obs=y)

    made, _ = law.weighted(dist.Normal(table, 1.0).log_prob(u.unsqueeze(-1)))
    right = made.log_partition - law.log_partition + dist.Normal(u.sum(), 1.0).log_prob(y)
    torch.testing.assert_close(score(program, {"u": u}), right, rtol=1e-9, atol=1e-9)
    pyro.set_rng_seed(0)
    mcmc = MCMC(NUTS(collapse(program)), num_samples=3, warmup_steps=3, disable_progbar=True)
    mcmc.run()
    assert mcmc.get_samples()["u"].shape == (3, 20)


def test_counts_beside():
    """Alone they are summed as always; read together with a structure they need a last value."""
    law, table, x = LinearChain(numbers(20, 3, 3)), numbers(3), numbers(20)

    def program(stated):
        z = pyro.sample("z", law)
        rate = torch.tensor(2.0, dtype=D)
        n = pyro.sample("n", dist.Poisson(rate), infer={"truncation": 60} if stated else {})
        pyro.sample("x", dist.Normal(table[z] + n.unsqueeze(-1), 1.0).to_event(1), obs=x)

    counts = torch.arange(61, dtype=D)
    weights = dist.Normal(table + counts[:, None, None], 1.0).log_prob(x.unsqueeze(-1))
    right = law.weighted(weights)[0].log_partition - law.log_partition
    right = (right + dist.Poisson(torch.tensor(2.0, dtype=D)).log_prob(counts)).logsumexp(0)
    torch.testing.assert_close(score(program, {}, True), right, rtol=1e-9, atol=1e-9)
    with pytest.raises(EnumerationError, match=r"'n'.*it reads a structure.*truncation"):
        score(program, {}, False)


def test_a_traced_program_is_refused():
    def program(x):
        m = pyro.sample("m", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", LinearChain(torch.zeros(40, 3, 3)))
        pyro.sample("x", dist.Normal(m.unsqueeze(-1) + z, 1.0).to_event(1), obs=x)

    with pytest.raises(EnumerationError, match=r"'z' is summed by its partition function.*jit_compile"):
        MCMC(NUTS(collapse(program), jit_compile=True, ignore_jit_warnings=True), 1, 1, disable_progbar=True).run(
            torch.zeros(40)
        )


def test_no_value_is_possible():
    def program():
        z = pyro.sample("z", GibbsMatching(numbers(11, 11)))
        pyro.sample("x", dist.Delta(z.to(D)).to_event(1), obs=torch.full((11,), 3.0, dtype=D))

    assert score(program, {}) == -torch.inf


# --------------------------------------------------------------------------------- what does not add up over places

PLANTED = {
    "two places": lambda z: dist.Normal((z[..., 0] * z[..., 1]).to(D), 1.0),
    "a pair in a row": lambda z: dist.Normal((z[..., 1:] - z[..., :-1]).to(D).sum(-1), 1.0),
    "neighbours place by place": lambda z: dist.Normal((z[..., 1:] * z[..., :-1]).to(D)[..., 0], 1.0),
    "a sum": lambda z: dist.Normal(z.to(D).sum(-1), 1.0),
    "a count": lambda z: dist.Normal((z == 1).to(D).sum(-1), 1.0),
    "the largest": lambda z: dist.Normal(z.to(D).amax(-1), 1.0),
    "sorted": lambda z: dist.Normal(z.to(D).sort(-1).values[..., 0], 1.0),
    "a product": lambda z: dist.Normal((1 + z.to(D)).prod(-1), 1.0),
    "rolled": lambda z: dist.Normal(z.to(D) * z.to(D).roll(1, -1), 1.0).to_event(1),
    "flipped": lambda z: dist.Normal(z.to(D) + z.to(D).flip(-1), 1.0).to_event(1),
    "running": lambda z: dist.Normal(z.to(D).cumsum(-1), 1.0).to_event(1),
    "soft": lambda z: dist.Normal(z.to(D).softmax(-1), 1.0).to_event(1),
    "one beside each": lambda z: dist.Normal(z.to(D) + z[..., :1].to(D), 1.0).to_event(1),
    "covariance": lambda z: dist.MultivariateNormal(z.to(D), torch.eye(z.shape[-1], dtype=D)),
    "scattered": lambda z: dist.Normal(_scattered(z), 1.0).to_event(2),
    "a list": lambda z: dist.Normal(torch.tensor(z.tolist(), dtype=D), 1.0).to_event(1),
    "a branch": lambda z: dist.Normal(
        torch.zeros(z.shape[:-1], dtype=D) + (0.0 if bool((z[..., 0] == 1).all()) else 1.0), 1.0
    ),
    "a written buffer": lambda z: dist.Normal(_written(z), 1.0).to_event(1),
}


def _scattered(z):
    return torch.zeros(*z.shape, z.shape[-1], dtype=D).scatter(-1, z.unsqueeze(-1), 1.0)


def _written(z):
    held = torch.zeros(z.shape, dtype=D)
    held[..., 0] = z[..., 1].to(D)
    held[..., 1] = z[..., 1].to(D) * z[..., 0].to(D)
    return held


@pytest.mark.parametrize("planted", PLANTED)
def test_terms_that_do_not_add_up(planted, none_listed):
    """Refused, by the site's name; right where there are few joint values, which are gone through."""
    likelihood = PLANTED[planted]

    def program(law):
        z = pyro.sample("z", law)
        fn = likelihood(z)
        pyro.sample("x", fn, obs=torch.full(fn.event_shape, 0.3, dtype=D))

    with pytest.raises(EnumerationError, match="'z'"):
        score(program, {}, GibbsMatching(numbers(8, 8)))
    law = STRUCTURES["matching"]
    joint = []
    for z in law.enumerate_support():
        fn = likelihood(z)
        joint.append(law.log_prob(z) + fn.log_prob(torch.full(fn.event_shape, 0.3, dtype=D)))
    torch.testing.assert_close(score(program, {}, law), torch.stack(joint).logsumexp(0), rtol=1e-9, atol=1e-9)


LARGE_CHAIN = LinearChain(numbers(8, 8, 8))


def by_scale(law):
    z = pyro.sample("z", law)
    with poutine.scale(scale=1.0 + z[..., 0].to(D)):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def by_mask(law):
    z = pyro.sample("z", law)
    with poutine.mask(mask=z[..., 0] == 1):
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))


def by_another_structure(law):
    z = pyro.sample("z", law)
    w = pyro.sample("w", GibbsMatching(law.logits + each(numbers(11, 11), z).unsqueeze(-1)))
    pyro.sample("x", dist.Normal(w.to(D), 1.0).to_event(1), obs=numbers(11))


def by_two(law):
    z, w = pyro.sample("z", law), pyro.sample("w", law)
    pyro.sample("x", dist.Normal((z + w).to(D), 1.0).to_event(1), obs=numbers(8))


def by_a_plate(law):
    z = pyro.sample("z", law)
    with pyro.plate("seen", 3):
        g = pyro.sample("g", dist.Bernoulli(torch.tensor(0.4, dtype=D)))
        pyro.sample("x", dist.Normal(numbers(8)[z[..., 0]] + g, 1.0), obs=numbers(3))


@pytest.mark.parametrize("program", [by_scale, by_mask, by_another_structure, by_two, by_a_plate])
def test_other_readers_are_refused(program):
    with pytest.raises(EnumerationError, match="'z'") as found:
        score(program, {}, GibbsMatching(numbers(11, 11)) if program is by_another_structure else LARGE_CHAIN)
    assert "guide too" not in str(found.value)


# ------------------------------------------------------------------------------------------------- large ones

LARGE = {
    "tree of 30 nodes": SpanningTree(numbers(30, 30) + numbers(30, 30).mT),
    "chain of 200 x 10": LinearChain(numbers(200, 10, 10)),
    "matching of 12": GibbsMatching(numbers(12, 12)),
    "20 of 100": KSubset(numbers(100), 20),
}


@pytest.mark.parametrize("name", LARGE)
def test_large_structures_against_conditional_sums(name):
    """The density of the data is that of the joint at any value over the posterior's: here at one that is drawn."""
    law = LARGE[name]
    table, x = numbers(law.event_shape[0], law.numbers), numbers(law.event_shape[0])

    def program(x):
        m = pyro.sample("m", dist.Normal(torch.zeros((), dtype=D), 1.0))
        z = pyro.sample("z", law)
        pyro.sample("x", dist.Normal(m * each(table, z), 1.0).to_event(1), obs=x)

    m = torch.tensor(0.7, dtype=D, requires_grad=True)
    found = score(program, {"m": m}, x)
    z = law.sample()
    weights = dist.Normal(m * table, 1.0).log_prob(x.unsqueeze(-1))
    posterior = law.weighted(weights)[0]
    right = dist.Normal(torch.zeros((), dtype=D), 1.0).log_prob(m) + law.log_prob(z)
    right = right + dist.Normal(m * each(table, z), 1.0).log_prob(x).sum() - posterior.log_prob(z)
    assert_same(found, right, [m], rtol=1e-7)
