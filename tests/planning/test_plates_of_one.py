"""A first call with one datum shows nothing of several: later calls are right all the same, and so are drawn sizes."""

import itertools

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import DiscretePosterior, TraceELBO, TraceExpectation, TraceIWELBO, collapse

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning")

DATA = torch.tensor([-0.55, -0.05, 0.7], dtype=torch.float64)
READS = {
    "cumsum": lambda z: z.cumsum(-1),
    "flip": lambda z: z.flip(-1),
    "mean": lambda z: z.mean(-1, keepdim=True),
    "roll": lambda z: z.roll(1, -1),
}
PRIOR = torch.tensor(0.3, dtype=torch.float64)
ONE = torch.tensor(1.0, dtype=torch.float64)


def programs(read, logit):
    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(PRIOR))
            pyro.sample("x", dist.Normal(read(z), ONE), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    return model, guide


def right(read, logit, x):
    """The loss and its derivative by the logit, by all joint values; and the log evidence."""
    values = torch.tensor([*itertools.product([0.0, 1.0], repeat=len(x))], dtype=torch.float64)
    priors = [dist.Bernoulli(PRIOR).log_prob(z).sum() for z in values]
    data = [dist.Normal(read(z), ONE).log_prob(x).sum() for z in values]
    log_p = torch.stack(priors) + torch.stack(data)
    log_q = torch.stack([dist.Bernoulli(logits=logit).log_prob(z).sum() for z in values])
    loss = (log_q.exp() * (log_q - log_p)).sum()
    return float(loss), float(torch.autograd.grad(loss, logit)[0]), float(log_p.logsumexp(0))


@pytest.fixture
def logit():
    return torch.tensor(0.3, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
@pytest.mark.parametrize("compiled", [False, "graph"])
def test_exact_sums_after_one_datum(read, compiled, logit):
    model, guide = programs(read, logit)
    elbo = TraceELBO("enumerate", compile=compiled)
    for size in (1, 3, 1, 2):
        logit.grad = None
        loss, slope, _ = right(read, logit, DATA[:size])
        assert elbo.loss_and_grads(model, guide, DATA[:size]) == pytest.approx(loss, abs=1e-9)
        assert float(logit.grad) == pytest.approx(slope, abs=1e-9)


@pytest.mark.parametrize("read", READS.values(), ids=READS)
def test_sites_of_the_model_alone_after_one_datum(read, logit):
    model, _ = programs(read, logit)
    elbo, collapsed = TraceELBO("nvil"), collapse(model)
    for size in (1, 3, 2):
        evidence = right(read, logit, DATA[:size])[2]
        assert elbo.loss(model, lambda x: None, DATA[:size]) == pytest.approx(-evidence, abs=1e-9)
        total = pyro.poutine.trace(collapsed).get_trace(DATA[:size]).log_prob_sum()
        assert float(total) == pytest.approx(evidence, abs=1e-9)
        assert DiscretePosterior(model).marginals(DATA[:size])["z"].batch_shape == (size,)


def test_data_that_the_program_holds_may_grow(logit):
    """No argument shows their size."""
    held = {}

    def model():
        with pyro.plate("data", len(held["x"])):
            z = pyro.sample("z", dist.Bernoulli(PRIOR))
            pyro.sample("x", dist.Normal(z.cumsum(-1), ONE), obs=held["x"])

    elbo, collapsed = TraceELBO("enumerate"), collapse(model)
    for size in (1, 3, 1, 2):
        held["x"] = DATA[:size]
        evidence = right(READS["cumsum"], logit, DATA[:size])[2]
        assert elbo.loss(model, lambda: None) == pytest.approx(-evidence, abs=1e-9)
        total = pyro.poutine.trace(collapsed).get_trace().log_prob_sum()
        assert float(total) == pytest.approx(evidence, abs=1e-9)


@pytest.mark.parametrize("method", ["reinforce", "rloo", "indecater", "disarm"])
def test_sampled_gradients_after_one_datum(method, logit):
    model, guide = programs(READS["cumsum"], logit)
    pyro.set_rng_seed(0)
    elbo, found = TraceELBO(method, num_particles=2000), []
    elbo.loss_and_grads(model, guide, DATA[:1])
    for _ in range(20):
        logit.grad = None
        elbo.loss_and_grads(model, guide, DATA[:2])
        found.append(logit.grad.clone())
    slopes = torch.stack(found)
    off = slopes.mean() - right(READS["cumsum"], logit, DATA[:2])[1]
    assert abs(off) < 7 * slopes.std() / 20**0.5 + 1e-9  # Student's t of 19 degrees: fails by chance in 1e-6


def test_an_expectation_after_one_datum(logit):
    def reward(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(PRIOR))
            pyro.factor("reward", z.cumsum(-1) * x)

    elbo, guide = TraceExpectation("enumerate"), programs(None, logit)[1]
    for size in (1, 3):
        q = logit.detach().sigmoid()
        value = float((q * torch.arange(1, size + 1) * DATA[:size]).sum())
        assert elbo.loss(reward, guide, DATA[:size]) == pytest.approx(-value, abs=1e-9)


@pytest.mark.parametrize("way", ["exact", "bound"])
def test_elements_of_a_plate_of_drawn_size(way, logit):
    def model():
        n = int(pyro.sample("n", dist.Bernoulli(PRIOR)))
        with pyro.plate("data", 1 + n):
            z = pyro.sample("z", dist.Bernoulli(PRIOR))
            pyro.sample("x", dist.Normal(z.cumsum(-1), ONE), obs=DATA[: 1 + n])

    def guide():
        n = int(pyro.sample("n", dist.Bernoulli(logits=logit)))
        with pyro.plate("data", 1 + n):
            pyro.sample("z", dist.Bernoulli(logits=logit))

    total = 0.0
    for n in (0, 1):
        size = torch.tensor(float(n), dtype=torch.float64)
        log_q, log_p = dist.Bernoulli(logits=logit).log_prob(size), dist.Bernoulli(PRIOR).log_prob(size)
        total += float(log_q.exp() * (log_q - log_p + right(READS["cumsum"], logit, DATA[: 1 + n])[0]))
    for seed in range(6):  # the first run has one element, or two
        pyro.set_rng_seed(seed)
        if way == "exact":
            assert TraceELBO("enumerate").loss(model, guide) == pytest.approx(total, abs=1e-9)
        else:
            elbo = TraceIWELBO("reinforce", num_particles=2)
            elbo.loss(model, guide)
            assert not elbo.plan.layout.datum
