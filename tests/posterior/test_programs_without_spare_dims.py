"""Programs that take no rows, no enumerated values, or neither: exact all the same, by closed form or brute force.

Where draws are averaged, five standard errors or more are allowed: a false alarm has a probability below 1e-6.
"""

from __future__ import annotations

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import config_enumerate

from pyro_discrete import DiscretePosterior, TraceELBO
from pyro_discrete.errors import EnumerationError, SettingError, SiteMatchError
from tests.support.pairs import OwnCount

t = torch.tensor


def nothing(*args):
    pass


def close(found, expected, tolerance=1e-5):
    return torch.allclose(torch.as_tensor(found).double(), torch.as_tensor(expected).double(), atol=tolerance)


READS = {
    "item": lambda z: z.item() > 0.5,
    "if": lambda z: bool(z > 0.5),
    "list": lambda z: z.tolist() > 0.5,
}


@pytest.mark.parametrize("read", READS)
def test_a_guide_that_branches_on_a_value(read):
    def program():
        b = pyro.sample("b", dist.Bernoulli(t(0.45)))
        pyro.sample("u", dist.Categorical(t([0.1, 0.9]) if READS[read](b) else t([0.7, 0.3])))

    posterior = DiscretePosterior(program, program)
    found = posterior.marginals()
    assert close(found["b"].probs, 0.45)
    assert close(found["u"].probs, [0.45 * 0.1 + 0.55 * 0.7, 0.45 * 0.9 + 0.55 * 0.3])
    best = posterior.most_probable()  # 0.405, against 0.385 for (0, 0)
    assert (best["b"], best["u"]) == (1, 1)


@pytest.mark.parametrize("read", READS)
def test_a_model_that_branches_on_a_value_of_its_own(read):
    def model(x):
        b = pyro.sample("b", dist.Bernoulli(t(0.4)))
        u = pyro.sample("u", dist.Bernoulli(t(0.9) if READS[read](b) else t(0.2)))
        pyro.sample("x", dist.Normal(2 * u + b, 1.0), obs=x)

    x = t(1.1)
    pairs = torch.tensor(list(itertools.product((0.0, 1.0), repeat=2)))
    log_p = dist.Bernoulli(0.4).log_prob(pairs[:, 0]) + dist.Bernoulli(0.2 + 0.7 * pairs[:, 0]).log_prob(pairs[:, 1])
    p = (log_p + dist.Normal(2 * pairs[:, 1] + pairs[:, 0], 1.0).log_prob(x)).softmax(0)
    posterior = DiscretePosterior(model, num_samples=4000)
    found, best, drawn = posterior.marginals(x), posterior.most_probable(x), posterior.samples(x)
    assert close(found["b"].probs, p @ pairs[:, 0])
    assert close(found["u"].probs, p @ pairs[:, 1])
    assert [best["b"], best["u"]] == pairs[p.argmax()].tolist()
    both = torch.stack([drawn["b"], drawn["u"]], -1)
    frequency = torch.stack([(both == pair).all(-1).double().mean() for pair in pairs])
    assert close(frequency, p, 5.5 * 0.5 / 4000**0.5)


def branching(x):
    b = pyro.sample("b", dist.Bernoulli(t(0.4)))
    if b.item() > 0.5:
        c = pyro.sample("u", dist.Bernoulli(t(0.3)))
    else:
        c = pyro.sample("v", dist.Categorical(t([0.1, 0.2, 0.7])))
    pyro.sample("x", dist.Normal(b + c, 1.0), obs=x)


def test_sites_that_one_branch_alone_has():
    """Their marginals are given that they are drawn, their draws NaN where they are not."""
    x = t(1.5)
    weight = {}
    for b, prior in ((1, [0.7, 0.3]), (0, [0.1, 0.2, 0.7])):
        for c, p in enumerate(prior):
            weight[b, c] = (0.4 if b else 0.6) * p * float(dist.Normal(b + c, 1.0).log_prob(x).exp())
    total, of_one = sum(weight.values()), sum(w for (b, _), w in weight.items() if b)
    posterior = DiscretePosterior(branching, num_samples=2000)
    found = posterior.marginals(x)
    assert close(found["b"].probs, of_one / total)
    assert close(found["u"].probs, weight[1, 1] / of_one)
    assert close(found["v"].probs, [weight[0, c] / (total - of_one) for c in range(3)])
    best = posterior.most_probable(x)
    assert {n: int(v) for n, v in best.items()} == {"b": 0, "v": 2}
    drawn = posterior.samples(x)
    assert torch.equal(drawn["u"].isnan(), drawn["b"] == 0)
    assert torch.equal(drawn["v"].isnan(), drawn["b"] == 1)
    assert close(drawn["b"].mean(), of_one / total, 5.5 * 0.5 / 2000**0.5)
    assert posterior.predictive(x)["x"].shape == (2000,)

    def guide(x):
        with poutine.block(hide=["x"]):
            branching(x)

    found = DiscretePosterior(branching, guide, num_samples=200).marginals(x)  # q is the prior
    assert close(found["b"].probs, 0.4)
    assert close(found["u"].probs, 0.3)
    assert close(found["v"].probs, [0.1, 0.2, 0.7])


@pytest.mark.parametrize("read", READS)
@pytest.mark.parametrize("seed", range(3))
def test_a_site_behind_one_too_large_to_sum_over(read, seed):
    """Every marginal is an average over draws, none of one draw: 400 draws, 0.45 either way."""

    def program():
        z = pyro.sample("z", dist.Bernoulli(torch.full((9,), 0.5)).to_event(1))
        pyro.sample("u", dist.Bernoulli(t(0.95) if READS[read](z[..., 0]) else t(0.05)))

    pyro.set_rng_seed(seed)
    found = DiscretePosterior(program, program, 400).marginals()
    assert close(found["u"].probs, 0.5, 5.5 * 0.45 / 400**0.5)
    assert close(found["z"].base_dist.probs, torch.full((9,), 0.5))


def test_values_read_by_another_dim_than_the_enumerated_one():
    torch.manual_seed(0)
    table, x = torch.randn(5, 4), torch.randn(5)

    def gather(z):
        return table.gather(-1, z[:, None])[:, 0]

    def matrices(z):
        return torch.bmm(table.unsqueeze(1), torch.nn.functional.one_hot(z, 4).float().unsqueeze(-1)).flatten()

    def loop(z):
        return torch.stack([table[i, z[i]] for i in range(5)])

    for look_up in (gather, matrices, loop):

        def model(look_up=look_up):
            with pyro.plate("data", 5):
                z = pyro.sample("z", dist.Categorical(torch.ones(4)))
                pyro.sample("x", dist.Normal(look_up(z), 1.0), obs=x)

        def guide(look_up=look_up):
            with pyro.plate("data", 5):
                z = pyro.sample("z", dist.Categorical(logits=table))
                pyro.sample("u", dist.Bernoulli(logits=look_up(z)))

        expected = dist.Normal(table, 1.0).log_prob(x[:, None]).softmax(-1)
        own = DiscretePosterior(model)
        assert close(own.marginals()["z"].probs, expected)
        assert torch.equal(own.most_probable()["z"], expected.argmax(-1))
        drawn = DiscretePosterior(model, num_samples=2000).samples()["z"]
        frequency = torch.nn.functional.one_hot(drawn, 4).double().mean(0)
        assert close(frequency, expected, 5.5 * 0.5 / 2000**0.5)
        of_guide = DiscretePosterior(guide, guide, 30).marginals()
        assert close(of_guide["u"].probs, (table.softmax(-1) * table.sigmoid()).sum(-1))


def test_a_site_outside_a_plate_that_reads_its_elements():
    q = t([0.2, 0.5, 0.7])

    def model(read):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(q))
        pyro.sample("x", dist.Normal(read(z), 1.0), obs=t(2.2))

    def guide(read):
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(q))
        pyro.sample("u", dist.Bernoulli(read(z) / 4))

    bits = t(list(itertools.product((0.0, 1.0), repeat=3)))
    for read in (lambda z: z.sum(-1), lambda z: z[..., 0] + z[..., 2], lambda z: float(z.sum())):
        prior = dist.Bernoulli(q).log_prob(bits).sum(-1)
        loc = torch.stack([torch.as_tensor(read(b)) for b in bits])
        p = (prior + dist.Normal(loc, 1.0).log_prob(t(2.2))).softmax(0)
        posterior = DiscretePosterior(model)
        assert close(posterior.marginals(read)["z"].probs, p @ bits)
        assert torch.equal(posterior.most_probable(read)["z"], bits[p.argmax()])
        assert close(DiscretePosterior(guide, guide).marginals(read)["u"].probs, prior.exp() @ loc / 4)


def test_more_joint_values_than_can_be_gone_through_are_refused_by_name():
    def model():
        with pyro.plate("data", 40):
            z = pyro.sample("z", dist.Bernoulli(t(0.5)))
        pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=t(2.2))

    with pytest.raises(EnumerationError, match="'z'"):
        DiscretePosterior(model).marginals()


POWERS = {
    "mask": (0.0, 1.0, lambda z: poutine.mask(mask=z.bool())),
    "not mask": (1.0, 0.0, lambda z: poutine.mask(mask=z == 0)),
}


@pytest.mark.parametrize("form", POWERS)
@pytest.mark.parametrize("whole", [True, False])
def test_a_mask_that_reads_a_site_that_is_summed_out(form, whole):
    x, far = t([0.3, 2.0, -1.0]), dist.Normal(torch.full((3,), 5.0) if whole else t(5.0), 1.0)
    low, high, handler = POWERS[form]

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(t(0.3)))
            with handler(z):
                pyro.sample("x", far, obs=x)

    p = far.log_prob(x).exp()
    expected = 0.3 * p**high / (0.3 * p**high + 0.7 * p**low)
    assert close(DiscretePosterior(model).marginals()["z"].probs, expected)
    assert torch.equal(DiscretePosterior(model).most_probable()["z"], (expected > 0.5).float())


def test_a_scale_that_reads_a_site_that_is_summed_out_is_refused():
    def model():
        z = pyro.sample("z", dist.Bernoulli(t(0.3)))
        with poutine.scale(scale=0.5 + z):
            pyro.sample("x", dist.Normal(5.0, 1.0), obs=t(0.3))

    with pytest.raises(EnumerationError, match=r"'x' has a (poutine\.)?scale"):
        DiscretePosterior(model).marginals()


def test_a_chain_of_second_order_under_a_history_of_one():
    """Pyro then gives one dim to two sites; the tables do not fit plain runs, and are made value by value."""
    x = t([0.3, 1.2, 0.8, 1.6])

    def model():
        before = last = t(0.0)
        for i in pyro.markov(range(4)):
            before, last = last, pyro.sample(f"z{i}", dist.Bernoulli(logits=1.5 * last - 2.0 * before + 0.2))
            pyro.sample(f"x{i}", dist.Normal(2 * last, 1.0), obs=x[i])

    paths = t(list(itertools.product((0.0, 1.0), repeat=4)))
    padded = torch.cat([torch.zeros(16, 2), paths], 1)
    log_p = dist.Bernoulli(logits=1.5 * padded[:, 1:-1] - 2.0 * padded[:, :-2] + 0.2).log_prob(paths)
    p = (log_p + dist.Normal(2 * paths, 1.0).log_prob(x)).sum(1).softmax(0)
    found, best = DiscretePosterior(model).marginals(), DiscretePosterior(model).most_probable()
    assert close(torch.stack([found[f"z{i}"].probs for i in range(4)]), p @ paths)
    assert [float(best[f"z{i}"]) for i in range(4)] == paths[p.argmax()].tolist()


@pytest.mark.parametrize("num_samples", [1, 20])
def test_programs_that_take_one_dim_and_no_further_one(num_samples):
    """An encoder and a decoder that ask for the number of dims, as networks written for enumeration do."""
    torch.manual_seed(0)
    n, k = 7, 3
    x, m, eye, q = torch.randn(n, 2), torch.randn(n, 2), torch.eye(k), torch.randn(n, k)
    network = torch.nn.Linear(2 + k, 2)

    def joined(a, y):
        if y.dim() == 3:
            a, y = a.expand(len(y), -1, -1), y.expand(-1, n, -1)
        return torch.cat([a, y], -1)

    def model():
        with pyro.plate("n", n):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            y = pyro.sample("y", dist.Categorical(torch.ones(n, k)))
            pyro.sample("x", dist.Normal(network(joined(z, eye[y])), 1.0).to_event(1), obs=x)

    def delta():
        with pyro.plate("n", n):
            pyro.sample("z", dist.Delta(m).to_event(1))

    def encoder():
        with pyro.plate("n", n):
            y = pyro.sample("y", dist.OneHotCategorical(logits=q))
            pyro.sample("z", dist.Normal(network(joined(x, y)), 0.1).to_event(1))

    at = torch.stack([network(torch.cat([m, eye[i].expand(n, k)], -1)) for i in range(k)], 1)
    expected = dist.Normal(at, 1.0).log_prob(x[:, None]).sum(-1).softmax(-1).detach()
    own = DiscretePosterior(model, delta, num_samples)
    assert close(own.marginals()["y"].probs, expected)
    assert torch.equal(own.most_probable()["y"], expected.argmax(-1))
    of_guide = DiscretePosterior(encoder, encoder, num_samples)
    assert close(of_guide.marginals()["y"].probs, q.softmax(-1))
    assert torch.equal(of_guide.most_probable()["y"].argmax(-1), q.argmax(-1))


def test_a_global_whose_event_dims_lie_where_the_plates_are():
    torch.manual_seed(0)
    x, drawn, values = torch.randn(6, 4) + 1, torch.randn(6, 4) * 0.4, torch.arange(3.0)

    def model():
        offset = pyro.sample("offset", dist.Normal(0.0, 1.0).expand([6, 4]).to_event(2))
        with pyro.plate("rows", 6, dim=-2), pyro.plate("columns", 4, dim=-1):
            state = pyro.sample("state", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(state + offset, 1.0), obs=x)

    def guide():
        pyro.sample("offset", dist.Delta(drawn).to_event(2))

    expected = dist.Normal(drawn[..., None] + values, 1.0).log_prob(x[..., None]).softmax(-1)
    posterior = DiscretePosterior(model, guide, 60)
    assert close(posterior.marginals()["state"].probs, expected)
    assert close(posterior.samples()["state"].double().mean(0), expected @ values, 6 * 60**-0.5)
    assert posterior.predictive()["x"].shape == (60, 6, 4)


@pytest.mark.parametrize("mark", [{"enumerate": "parallel"}, {"enumerate": "parallel", "num_samples": 20}])
@pytest.mark.parametrize("event", [True, False])
def test_marks_change_nothing(mark, event):
    p, q, x = t([0.3, 0.6]), t([0.4, 0.7]), t(0.8)

    def site(probs):
        if event:
            return pyro.sample("z", dist.Bernoulli(probs).to_event(1), infer=mark).sum(-1)
        return sum(pyro.sample(f"z{i}", dist.Bernoulli(v), infer=mark) for i, v in enumerate(probs))

    def model():
        pyro.sample("x", dist.Normal(site(p), 1.0), obs=x)

    def guide():
        site(q)

    bits = t(list(itertools.product((0.0, 1.0), repeat=2)))
    own = (dist.Bernoulli(p).log_prob(bits).sum(-1) + dist.Normal(bits.sum(-1), 1.0).log_prob(x)).softmax(0)
    for pair, mean, mode in (((model,), own @ bits, bits[own.argmax()]), ((model, guide), q, q.round())):
        posterior = DiscretePosterior(*pair, num_samples=2000)

        def together(found):
            return found["z"] if event else torch.stack([found["z0"], found["z1"]], -1)

        marginals = {n: d.mean for n, d in posterior.marginals().items()}
        assert close(together(marginals), mean)
        assert torch.equal(together(posterior.most_probable()), mode)
        assert close(together(posterior.samples()).mean(0), mean, 5.5 * 0.5 / 2000**0.5)


def test_subsamples_differ_from_call_to_call():
    table = torch.linspace(0.05, 0.95, 10)

    def program(observed=False):
        with pyro.plate("data", 10, subsample_size=3) as index:
            z = pyro.sample("z", dist.Bernoulli(table[index]))
            if observed:
                pyro.sample("x", dist.Normal(z, 1.0), obs=table[index])

    odds = table.logit() + dist.Normal(1.0, 1.0).log_prob(table) - dist.Normal(0.0, 1.0).log_prob(table)
    pyro.set_rng_seed(0)
    for pair, observed, values in (((program, program), False, table), ((program,), True, odds.sigmoid())):
        posterior = DiscretePosterior(*pair)
        found = torch.stack([posterior.marginals(observed)["z"].probs for _ in range(6)])
        assert len(set(map(tuple, found.tolist()))) > 3  # of 720 ordered subsamples
        assert ((found[..., None] - values).abs().min(-1).values < 1e-5).all()
        assert posterior.samples(observed)["z"].shape == (100, 3)


def test_the_random_state_is_left_alone_where_nothing_is_drawn():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=t(0.3))

    before = torch.get_rng_state()
    DiscretePosterior(model).marginals()
    DiscretePosterior(model).most_probable()
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.parametrize("what", ["marginals", "most_probable", "samples", "predictive"])
@pytest.mark.parametrize("own", [True, False])
def test_inference_mode(what, own):
    x = t([0.1, 2.9])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(t(0.5)))
            pyro.sample("x", dist.Normal(3.0 * z, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli((x > 1) * 0.6 + 0.1))

    posterior = DiscretePosterior(model, None if own else guide)
    pyro.set_rng_seed(0)
    outside = getattr(posterior, what)(x)
    with torch.inference_mode():
        pyro.set_rng_seed(0)
        inside = getattr(posterior, what)(x * 1.0)  # a tensor of inference mode
    for name, value in outside.items():
        got = inside[name]
        assert torch.equal(got.probs, value.probs) if what == "marginals" else torch.equal(got, value)


def test_own_sites_are_averaged_over_the_guides_joint_values_exactly():
    def model(read):
        b = pyro.sample("b", dist.Bernoulli(0.5))
        k = pyro.sample("k", dist.Categorical(torch.ones(3)))
        y = pyro.sample("y", dist.Bernoulli(t(0.3)))
        pyro.sample("x", dist.Normal(read(b) + k + 2 * y, 1.0), obs=t(1.7))

    def guide(read):
        b = pyro.sample("b", dist.Bernoulli(0.2))
        pyro.sample("k", dist.Categorical(t([0.5, 0.3, 0.2]) + 0 * b))

    expected = 0.0
    for b, k in itertools.product(range(2), range(3)):
        odds = (
            t(0.3).logit() + dist.Normal(b + k + 2.0, 1.0).log_prob(t(1.7)) - dist.Normal(b + k, 1.0).log_prob(t(1.7))
        )
        expected = expected + (0.2 if b else 0.8) * (0.5, 0.3, 0.2)[k] * float(odds.sigmoid())
    for read in (lambda b: b, lambda b: b.item()):
        for _ in range(2):
            assert close(DiscretePosterior(model, guide, 10).marginals(read)["y"].probs, expected)


def test_what_is_refused_and_what_is_said():
    def model():
        z = pyro.sample("z", dist.Bernoulli(0.3))
        pyro.sample("x", dist.Normal(z, 1.0), obs=t(0.3))

    def guide():
        pyro.sample("z", dist.Bernoulli(0.3))

    for what in ("marginals", "samples", "most_probable", "predictive"):
        with pytest.raises(SettingError, match=r"guide observes 'x'.*the model comes first"):
            getattr(DiscretePosterior(guide, model), what)()
    for wrong in ({"num_samples": 2.5}, {"num_samples": True}, {"guide": 3}):
        with pytest.raises(SettingError, match=f"{next(iter(wrong))}="):
            DiscretePosterior(model, **wrong)
    with pytest.raises(SettingError, match="model=NoneType"):
        DiscretePosterior(None)
    assert repr(DiscretePosterior(model, guide, 7)).startswith("DiscretePosterior(model=")
    assert "num_samples=7" in repr(DiscretePosterior(model, guide, 7))
    assert "guide=None" in repr(DiscretePosterior(model))

    def counted():  # without an end, and without a known bound of its tail
        z = pyro.sample("z", OwnCount(t(2.0)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=t(0.3))

    with pytest.raises(SiteMatchError, match=r"'z' is latent in the model but not drawn in the guide"):
        DiscretePosterior(counted).marginals()


@pytest.mark.parametrize("seed", range(3))
def test_sites_behind_a_branch_on_a_continuous_draw(seed):
    """The first run may be of either branch; what only the other one has is found all the same."""

    def program(first):
        s = pyro.sample("s", dist.Normal(0.0, 1.0))
        if s.item() > 0:
            if first:
                pyro.sample("u", dist.Bernoulli(t(0.9)))
            pyro.sample("many", dist.Bernoulli(torch.full((10,), 0.2)).to_event(1))
        elif first:
            pyro.sample("u", dist.Bernoulli(t(0.2)))
            pyro.sample("w", dist.Categorical(t([0.2, 0.8])))

    for first in (True, False):
        pyro.set_rng_seed(seed)
        found = DiscretePosterior(program, program, 300).marginals(first)
        assert close(found["many"].base_dist.probs, torch.full((10,), 0.2))
        assert found.keys() == ({"u", "w", "many"} if first else {"many"})
        if first:
            assert close(found["w"].probs, [0.2, 0.8])
            assert close(found["u"].probs, 0.55, 5.5 * 0.35 / 300**0.5)
            drawn = DiscretePosterior(program, program, 60).samples(first)
            assert torch.equal(drawn["w"].isnan(), ~drawn["many"].isnan().all(-1) == 1)


def test_the_averages_of_modules_are_left_as_they_were():
    norm = torch.nn.BatchNorm1d(1)

    def model():
        with pyro.plate("data", 6):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            loc = norm(torch.arange(6.0)[:, None])[:, 0]
            pyro.sample("x", dist.Normal(loc + z, 1.0), obs=torch.zeros(6))

    model.norm = norm
    posterior = DiscretePosterior(model)
    loc = norm(torch.arange(6.0)[:, None])[:, 0].detach()
    before = int(norm.num_batches_tracked)
    odds = dist.Normal(loc + 1, 1.0).log_prob(t(0.0)) - dist.Normal(loc, 1.0).log_prob(t(0.0))
    assert close(posterior.marginals()["z"].probs, odds.sigmoid())
    posterior.samples()
    posterior.most_probable()
    assert int(norm.num_batches_tracked) == before


@pytest.mark.parametrize("read", READS)
def test_marginals_are_exact_beside_a_point_mass(read):
    """The guide's, and those of a site of the model alone that reads one of them."""

    def guide():
        b, c = pyro.sample("b", dist.Bernoulli(t(0.45))), pyro.sample("c", dist.Delta(t(0.3)))
        pyro.sample("u", dist.Bernoulli(logits=c + (1.5 if READS[read](b) else -0.5)))

    def model():
        pyro.sample("c", dist.Normal(0.0, 1.0))
        b, u = pyro.sample("b", dist.Bernoulli(0.5)), pyro.sample("u", dist.Bernoulli(0.5))
        w = pyro.sample("w", dist.Bernoulli(0.2 + 0.3 * float(b)))
        pyro.sample("x", dist.Normal(2 * w + u, 1.0), obs=t(1.3))

    second, own = 0.0, 0.0
    for b, p_b in ((0, 0.55), (1, 0.45)):
        of_u = torch.sigmoid(t(0.3 + (1.5 if b else -0.5)))
        second = second + p_b * of_u
        for u, p_u in ((0, 1 - of_u), (1, of_u)):
            prior = (0.8 - 0.3 * b, 0.2 + 0.3 * b)
            seen = [p * dist.Normal(2.0 * w + u, 1.0).log_prob(t(1.3)).exp() for w, p in enumerate(prior)]
            own = own + p_b * p_u * seen[1] / sum(seen)
    found = DiscretePosterior(model, guide).marginals()
    assert close(found["u"].probs, second, 1e-6)
    assert close(found["w"].probs, own, 1e-6)
    assert close(TraceELBO("reinforce").compute_marginals(model, guide)["w"].probs, own, 1e-6)


def test_what_hangs_on_no_noise_is_exact_beside_drawn_sites():
    """Bits that hang on each other alone; what hangs on the noise is averaged over its draws, and the noise is the same
    at all of their values: each draw's distribution adds up to one."""

    def guide(noisy):
        b = pyro.sample("b", dist.Bernoulli(t(0.45)))
        c = pyro.sample("c", dist.Normal(float(b), 1.0))
        u = pyro.sample("u", dist.Bernoulli(logits=1.5 if b.item() > 0.5 else -0.5))
        pyro.sample("v", dist.Categorical(logits=torch.stack([c * noisy, t(0.2), float(u) - t(0.1)])))

    torch.manual_seed(0)
    right = 0.45 * torch.sigmoid(t(1.5)) + 0.55 * torch.sigmoid(t(-0.5))
    for noisy in (0.0, 1.0):
        found = DiscretePosterior(guide, guide, num_samples=200).marginals(noisy)
        assert close(found["b"].probs, 0.45, 1e-7)
        assert close(found["u"].probs, right, 1e-6)
        assert close(found["v"].probs.sum(), 1.0, 1e-6)
        expected = torch.zeros(3)
        nodes = torch.linspace(-6, 6, 2001)
        weights = dist.Normal(0.0, 1.0).log_prob(nodes).softmax(0)
        for b, p_b in ((0, 0.55), (1, 0.45)):
            for u in (0, 1):
                p_u = torch.sigmoid(t(1.5 if b else -0.5))
                logits = torch.stack([(nodes + b) * noisy, t(0.2).expand(2001), t(u - 0.1).expand(2001)], -1)
                expected = expected + p_b * (p_u if u else 1 - p_u) * (weights @ logits.softmax(-1))
        # 200 draws of a probability whose standard deviation is at most 0.5: six standard errors
        assert close(found["v"].probs, expected, 1e-5 if noisy == 0 else 6 * 0.5 / 200**0.5)


def test_elements_that_read_each_other_have_a_mode_beside_continuous_sites():
    def guide():
        c = pyro.sample("c", dist.Normal(0.4, 1.0))
        with pyro.plate("p", 2):
            z = pyro.sample("z", dist.Bernoulli(t([0.6, 0.45])))
        pyro.sample("w", dist.Bernoulli(logits=c + 5 * float(sum(z.unbind(-1))) - 4))

    best = DiscretePosterior(guide, guide).most_probable()
    joint = {}
    for a, b, w in itertools.product((0, 1), repeat=3):
        p_w = torch.sigmoid(t(0.4 + 5.0 * (a + b) - 4)).item()
        joint[a, b, w] = (0.6 if a else 0.4) * (0.45 if b else 0.55) * (p_w if w else 1 - p_w)
    assert (*best["z"].long().tolist(), int(best["w"])) == max(joint, key=joint.get)


@pytest.mark.parametrize("own", [False, True])
def test_a_model_that_runs_under_enumeration_alone(own):
    """Its guide has the posterior; what asks the model for single values, or of a site of its own, is refused."""
    x, logits = torch.tensor([0.3, -1.0]), torch.tensor([[0.2, 0.8, -0.5], [1.0, 0.0, 0.3]])

    def model():
        with pyro.plate("data", 2):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0))
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(2, 3)), infer={"enumerate": "parallel"})
            if own:
                pyro.sample("own", dist.Bernoulli(0.5), infer={"enumerate": "parallel"})
            mean = a.repeat(3) + z.reshape(-1, 3) @ torch.arange(3.0)
            pyro.sample("x", dist.Normal(mean.reshape(z.shape[:-1]), 1.0), obs=x)

    @config_enumerate(default="parallel", expand=True)
    def guide():
        with pyro.plate("data", 2):
            pyro.sample("a", dist.Normal(0.0, 1.0).expand([2]))
            pyro.sample("z", dist.OneHotCategorical(logits=logits))

    posterior = DiscretePosterior(model, guide, num_samples=3000)
    asked = [posterior.predictive, lambda: TraceELBO().sample_posterior(model, guide)]
    if own:
        asked = [posterior.marginals, posterior.samples, posterior.most_probable, *asked]
    else:
        assert torch.allclose(posterior.marginals()["z"].probs.float(), logits.softmax(-1), atol=1e-5)
        share = posterior.samples()["z"].float().mean(0)
        assert torch.allclose(share, logits.softmax(-1), atol=5 * 0.5 / 3000**0.5)  # five standard errors
        assert posterior.most_probable()["z"].argmax(-1).tolist() == [1, 0]
    for query in asked:
        with pytest.raises(EnumerationError, match="only while sites are enumerated"):
            query()
