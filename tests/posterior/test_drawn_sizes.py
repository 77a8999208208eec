"""Plates of drawn size: losses, posteriors and collapsed models, held against a list of all joint values."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor

from pyro_discrete import DiscretePosterior, TraceELBO, TraceIWELBO, collapse, to_inference_data
from pyro_discrete.errors import SiteShapeError

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = torch.tensor([0.3, -1.2, 2.0], dtype=torch.float64)
SIZE, GUESS = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.tensor([0.4, 0.3, 0.3], dtype=torch.float64)
TWO = torch.tensor([0.4, 0.6], dtype=torch.float64)
BIT, OWN_BIT = torch.tensor(0.3, dtype=torch.float64), torch.tensor(0.6, dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)


def model(x, sizes=SIZE):
    n = int(pyro.sample("n", dist.Categorical(sizes)))
    with pyro.plate("data", n + 1):
        z = pyro.sample("z", dist.Bernoulli(BIT))
        pyro.sample("x", dist.Normal(z, ONE), obs=x[: n + 1])


def observed(x, sizes=SIZE):
    n = int(pyro.sample("n", dist.Categorical(sizes)))
    with pyro.plate("data", n + 1):
        pyro.sample("x", dist.Normal(BIT, ONE), obs=x[: n + 1])


def nothing(x, sizes=SIZE):
    pass


def sized(x, sizes=SIZE):
    pyro.sample("n", dist.Categorical(GUESS[: len(sizes)]))


def guessed(x, sizes=SIZE):
    n = int(pyro.sample("n", dist.Categorical(GUESS[: len(sizes)])))
    with pyro.plate("data", n + 1):
        pyro.sample("z", dist.Bernoulli(OWN_BIT))


def joint(sizes: Tensor = SIZE) -> dict[tuple[int, tuple[int, ...]], float]:
    """log p of each size with its bits."""
    found = {}
    for n in range(len(sizes)):
        for bits in itertools.product([0, 1], repeat=n + 1):
            value = torch.tensor(bits, dtype=torch.float64)
            terms = dist.Bernoulli(BIT).log_prob(value) + dist.Normal(value, ONE).log_prob(DATA[: n + 1])
            found[n, bits] = float(sizes[n].log() - sizes.sum().log() + terms.sum())
    return found


def log_evidence_of_each() -> Tensor:
    """log p(n, data), the bits summed out."""
    by_size = [[v for (n, _), v in joint().items() if n == size] for size in range(len(SIZE))]
    return torch.stack([torch.tensor(each, dtype=torch.float64).logsumexp(0) for each in by_size])


def right_loss(pair: str) -> float:
    if pair == "own":
        return -float(log_evidence_of_each().logsumexp(0))
    if pair == "sized":
        return float((GUESS * (GUESS.log() - log_evidence_of_each())).sum())
    total = torch.zeros((), dtype=torch.float64)
    for (n, bits), log_p in joint().items():
        log_q = dist.Bernoulli(OWN_BIT).log_prob(torch.tensor(bits, dtype=torch.float64)).sum()
        total = total + GUESS[n] * log_q.exp() * (GUESS[n].log() + log_q - log_p)
    return float(total)


PAIRS = {"own": nothing, "sized": sized, "guessed": guessed}


@pytest.mark.parametrize("pair", PAIRS)
@pytest.mark.parametrize("vectorised", [True, False])
def test_exact_loss(pair, vectorised):
    elbo = TraceELBO("enumerate", vectorize_particles=vectorised)
    for _ in range(2):
        assert elbo.loss(model, PAIRS[pair], DATA) == pytest.approx(right_loss(pair), abs=1e-9)
    assert elbo.loss_and_grads(model, PAIRS[pair], DATA) == pytest.approx(right_loss(pair), abs=1e-9)


@pytest.mark.parametrize(
    ("method", "pair"), [("auto", "guessed"), ("reinforce", "guessed"), ("rloo", "guessed"), ("rloo", "sized")]
)
def test_sampled_losses_have_the_right_mean(method, pair):
    pyro.set_rng_seed(1)
    elbo = TraceELBO(method, num_particles=2)
    losses = torch.tensor([elbo.loss(model, PAIRS[pair], DATA) for _ in range(100)])
    off = (losses.mean() - right_loss(pair)) / (losses.std() / len(losses) ** 0.5)
    assert abs(off) < 4.9  # fails by chance with a probability of 1e-6


def test_the_bound_takes_particles_of_different_sizes():
    pyro.set_rng_seed(0)
    elbo = TraceIWELBO("reinforce", num_particles=3)
    losses = torch.tensor([elbo.loss_and_grads(model, guessed, DATA) for _ in range(60)])
    assert torch.isfinite(losses).all()
    assert losses.mean() < right_loss("guessed")


@pytest.mark.parametrize("guide", [nothing, sized])
@pytest.mark.parametrize("sizes", [SIZE, TWO], ids=["three", "two"])
def test_marginals_are_those_of_the_elements_that_are_there(guide, sizes):
    """Of two sizes the terms of one element would fit those of two by broadcasting."""
    found = DiscretePosterior(model, guide).marginals(DATA, sizes)
    log_p = torch.tensor(list(joint(sizes).values()), dtype=torch.float64)
    shares = dict(zip(joint(sizes), log_p.softmax(0), strict=True))
    if guide is sized:
        within = {n: sum(p for (m, _), p in shares.items() if m == n) for n in range(len(sizes))}
        guess = GUESS[: len(sizes)] / GUESS[: len(sizes)].sum()
        shares = {key: p / within[key[0]] * guess[key[0]] for key, p in shares.items()}
    for size in range(len(sizes)):
        right = sum(p for (n, _), p in shares.items() if n == size)
        assert float(found["n"].probs[size]) == pytest.approx(float(right), abs=1e-6)
    for element in range(len(sizes)):
        there = {bits: p for (n, bits), p in shares.items() if n >= element}
        right = sum(p for bits, p in there.items() if bits[element]) / sum(there.values())
        assert float(found["z"].probs[element]) == pytest.approx(float(right), abs=1e-6)


def test_the_size_of_a_plate_of_data_has_its_posterior():
    for sizes in (SIZE, TWO):
        each = [sizes[n].log() + dist.Normal(BIT, ONE).log_prob(DATA[: n + 1]).sum() for n in range(len(sizes))]
        found = DiscretePosterior(observed, nothing).marginals(DATA, sizes)["n"]
        assert torch.allclose(found.probs.double(), torch.stack(each).softmax(0), atol=1e-6)
        total = pyro.poutine.trace(collapse(observed)).get_trace(DATA, sizes).log_prob_sum()
        assert float(total) == pytest.approx(float(torch.stack(each).logsumexp(0) - sizes.sum().log()), abs=1e-6)


def test_collapsed():
    collapsed = collapse(model)
    for data in (DATA, -DATA):
        total = pyro.poutine.trace(collapsed).get_trace(data).log_prob_sum()
        assert float(total) == pytest.approx(-TraceELBO("enumerate").loss(model, nothing, data), abs=1e-9)


def test_draws_are_nan_where_an_element_is_not():
    pyro.set_rng_seed(0)
    draws = DiscretePosterior(model, guessed, num_samples=40).samples(DATA)
    there = torch.arange(3) <= draws["n"][:, None]
    assert torch.equal(torch.isnan(draws["z"]), ~there)
    data = to_inference_data(model, guessed, DATA, num_samples=40)
    sizes = data.posterior["n"].values[..., None]
    for group, name in ((data.posterior, "z"), (data.log_likelihood, "x")):
        assert group[name].dims == ("chain", "draw", "data")
        assert ((group[name].isnull().values) == (torch.arange(3).numpy() > sizes)).all()


def test_most_probable():
    found = DiscretePosterior(model, nothing).most_probable(DATA)
    n, bits = max(joint(), key=joint().__getitem__)
    assert int(found["n"]) == n
    assert found["z"].tolist() == [*map(float, bits)]


def test_a_subsample_of_drawn_size_is_kept_by_its_size():
    """Each run of one sum sees one subsample of each size: in the mean over these the loss is that of all data."""

    def part(x):
        n = int(pyro.sample("n", dist.Categorical(TWO)))
        with pyro.plate("data", n + 2, subsample_size=1) as i:
            pyro.sample("x", dist.Normal(BIT, ONE), obs=x[i])

    def guide(x):
        pyro.sample("n", dist.Categorical(TWO))

    terms = dist.Normal(BIT, ONE).log_prob(DATA)
    right = -float(TWO[0] * terms[:2].sum() + TWO[1] * terms.sum())
    pyro.set_rng_seed(0)
    losses = torch.tensor([TraceELBO("enumerate").loss(part, guide, DATA) for _ in range(100)])
    assert abs(losses.mean() - right) < 4.9 * losses.std() / 10  # fails by chance with a probability of 1e-6


def test_events_of_drawn_size_have_draws_and_no_marginals():
    """Joint values of two elements are not those of one and some more."""

    def words(x):
        n = int(pyro.sample("n", dist.Categorical(TWO)))
        z = pyro.sample("z", dist.Bernoulli(BIT.expand(n + 1)).to_event(1))
        pyro.sample("x", dist.Normal(z.sum(-1), ONE), obs=x[0])

    posterior = DiscretePosterior(words, num_samples=30)
    with pytest.raises(SiteShapeError, match=r"'z' has events of shapes \[\(1,\), \(2,\)\]"):
        posterior.marginals(DATA)
    draws = posterior.samples(DATA)
    assert torch.equal(torch.isnan(draws["z"]), torch.arange(2) > draws["n"][:, None])
