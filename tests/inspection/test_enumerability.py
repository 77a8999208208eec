"""Programs that are summed over values at their discrete sites alone, and those whose plate elements hang together."""

from __future__ import annotations

import itertools
import math
import warnings

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.diagnostics import to_inference_data
from pyro_discrete.errors import DiscreteInferenceError, EnumerationError, SiteMatchError, SiteShapeError
from pyro_discrete.planning.plan import Jointly, OneByOne, Parallel

X = torch.tensor([0.4, -1.3, 2.1, 0.9])
LOGITS = torch.tensor([[0.2, -0.4, 0.9], [1.0, 0.0, -0.5], [0.0, 0.3, 0.1], [-0.7, 0.2, 0.6]])


def by_hand(table: torch.Tensor, logits: torch.Tensor) -> tuple[float, torch.Tensor]:
    """The loss and its slope, of terms `table` `[n, k]` that include the prior."""
    logits = logits.clone().requires_grad_()
    log_q = logits.log_softmax(-1)
    loss = (log_q.exp() * (log_q - table)).sum()
    (slope,) = torch.autograd.grad(loss, logits)
    return float(loss.detach()), slope


def agrees(elbo, model, guide, loss: float, slope: torch.Tensor | None = None):
    """The plan, after a step has been seen to be exact: eager, and by `loss()`."""
    for parameter in pyro.get_param_store().values():
        parameter.grad = None
    assert elbo.loss_and_grads(model, guide) == pytest.approx(loss, abs=1e-4)
    if slope is not None:
        torch.testing.assert_close(pyro.get_param_store()["logits"].grad, slope, atol=1e-4, rtol=1e-4)
    assert elbo.loss(model, guide) == pytest.approx(loss, abs=1e-4)
    return elbo.plan


def categories(n: int = 4):
    with pyro.plate("data", n):
        return pyro.sample("z", dist.Categorical(logits=pyro.param("logits", LOGITS.clone())))


@pytest.mark.parametrize("options", [{}, {"estimator": "enumerate"}, {"estimator": "enumerate", "compile": "graph"}])
def test_a_table_drawn_by_the_guide_is_looked_up(options):
    """No row of the table is needed where there is one particle."""
    loc = torch.linspace(-2.0, 2.0, 3)

    def model():
        with pyro.plate("parts", 3):
            table = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.Normal(table[z], 1.0), obs=X)

    def guide():
        with pyro.plate("parts", 3):
            pyro.sample("loc", dist.Delta(loc))
        categories()

    loss, slope = by_hand(dist.Normal(loc, 1.0).log_prob(X[:, None]) - math.log(3), LOGITS)
    loss -= float(dist.Normal(0.0, 3.0).log_prob(loc).sum())
    elbo = TraceELBO(**options)
    for _ in range(3):
        plan = agrees(elbo, model, guide, loss, slope)
    assert isinstance(plan.way, Parallel)


@pytest.mark.parametrize("particles", [1, 2])
@pytest.mark.parametrize("estimator", ["auto", "enumerate"])
def test_continuous_sites_may_stand_in_matrix_products(estimator, particles):
    scales = torch.tensor([[0.7, 1.1], [1.4, 0.9], [1.0, 2.0]])
    data, prior = torch.tensor([[0.3, 1.0], [-1.0, 0.2], [2.0, 0.1], [0.0, -0.4]]), dist.LogNormal(torch.zeros(2), 0.5)

    def model():
        with pyro.plate("parts", 3):
            scale = pyro.sample("scale", prior.to_event(1))
        factors = torch.stack([torch.mm(scale[k].diag_embed(), torch.eye(2)) for k in range(3)])
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Categorical(torch.ones(3)))
            pyro.sample("x", dist.MultivariateNormal(torch.zeros(2), scale_tril=factors[z]), obs=data)

    def guide():
        with pyro.plate("parts", 3):
            pyro.sample("scale", dist.Delta(scales).to_event(1))
        categories()

    table = dist.Normal(0.0, scales).log_prob(data[:, None]).sum(-1) - math.log(3)
    loss, slope = by_hand(table, LOGITS)
    plan = agrees(
        TraceELBO(estimator, num_particles=particles), model, guide, loss - float(prior.log_prob(scales).sum()), slope
    )
    assert isinstance(plan.way, Parallel)


class NoBatch(dist.TorchDistribution):
    """A log-probability that takes a scale without batch alone."""

    arg_constraints = {}  # noqa: RUF012  # pyright: ignore[reportAssignmentType]
    support = dist.constraints.real_vector  # pyright: ignore[reportAssignmentType]

    def __init__(self, mean, scale):
        self.mean_, self.scale = mean, scale
        super().__init__(mean.shape, (2,))

    def log_prob(self, value):
        return dist.Normal(self.mean_[..., None], self.scale).log_prob(value).sum(-1)


@pytest.mark.filterwarnings("ignore:This program")
@pytest.mark.statistical
def test_a_log_probability_that_fails_over_rows_is_a_failed_trial():
    """Sampled means: 300 draws, five standard errors; a false alarm has a probability below 1e-6."""
    data = torch.tensor([[0.3, 1.0], [-1.0, 0.2], [2.0, 0.1], [0.0, -0.4]])
    prior, q = dist.LogNormal(0.0, 0.1), torch.tensor([0.2, 0.4, 0.6, 0.9])

    def model():
        scale = pyro.sample("scale", prior)
        with pyro.plate("data", 4):
            on = pyro.sample("on", dist.Bernoulli(0.5))
            pyro.sample("x", NoBatch(on, scale), obs=data)

    def guide():
        pyro.sample("scale", dist.Delta(torch.tensor(1.3)))
        with pyro.plate("data", 4):
            pyro.sample("on", dist.Bernoulli(q))

    each = dist.Normal(torch.arange(2.0)[:, None, None], 1.3).log_prob(data).sum(-1)
    both = torch.stack([1 - q, q])
    exact = float((both * (both.log() - math.log(0.5) - each)).sum() - prior.log_prob(torch.tensor(1.3)))
    for elbo in (TraceELBO(), TraceELBO("enumerate"), TraceELBO("enumerate", num_particles=2)):
        assert elbo.loss(model, guide) == pytest.approx(exact, abs=1e-4)
    for elbo in (TraceELBO("nvil"), TraceELBO("rloo", num_particles=2)):
        losses = torch.tensor([elbo.loss(model, guide) for _ in range(300)])
        assert abs(float(losses.mean()) - exact) < 5 * float(losses.std()) / 300**0.5


FORMS = {
    "roll": lambda z, plate: z.roll(1, -1),
    "flip": lambda z, plate: z.flip(-1),
    "mean": lambda z, plate: z.mean(-1, keepdim=True).expand_as(z),
    "cumsum": lambda z, plate: z.cumsum(-1),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_term_that_reads_another_element_is_summed_jointly(form):
    """Shapes all fit, so that elements summed over by themselves would be silently wrong."""
    q = torch.tensor([0.3, 0.6, 0.8])

    def model():
        with pyro.plate("data", 3) as plate:
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(z + 2 * FORMS[form](z, plate), 1.0), obs=X[:3])

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(q))

    loss = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=3):
        z = torch.tensor(bits)
        log_q = dist.Bernoulli(q).log_prob(z).sum()
        terms = dist.Bernoulli(0.4).log_prob(z) + dist.Normal(z + 2 * FORMS[form](z, None), 1.0).log_prob(X[:3])
        loss += float(log_q.exp() * (log_q - terms.sum()))
    plan = agrees(TraceELBO("enumerate"), model, guide, loss)
    assert isinstance(plan.way, Jointly)
    assert "joins elements of plate 'data'" in str(plan)
    auto = TraceELBO()
    auto.loss(model, guide)
    assert auto.plan.path != "enumerated"
    assert "joins elements of plate 'data'" in str(auto.plan)


def test_a_term_that_reads_one_part_of_other_elements_events():
    q = torch.tensor([[0.3, 0.6], [0.8, 0.4]])

    def model():
        with pyro.plate("data", 2):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor([0.4, 0.7])).to_event(1))
            pyro.sample("x", dist.Normal(0.8 - 0.6 * z[..., 0].cumsum(-1), 1.0), obs=X[:2])

    def guide():
        with pyro.plate("data", 2):
            pyro.sample("z", dist.Bernoulli(q).to_event(1))

    loss = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=4):
        z = torch.tensor(bits).reshape(2, 2)
        log_q = dist.Bernoulli(q).log_prob(z).sum()
        prior = dist.Bernoulli(torch.tensor([0.4, 0.7])).log_prob(z).sum()
        x = dist.Normal(0.8 - 0.6 * z[:, 0].cumsum(-1), 1.0).log_prob(X[:2]).sum()
        loss += float(log_q.exp() * (log_q - prior - x))
    assert isinstance(agrees(TraceELBO("enumerate"), model, guide, loss).way, Jointly)


def test_elements_that_a_branch_joins_go_through_all_joint_values():
    """No rows can be had, and elements do not go by themselves: a run for each joint value of all of them."""
    q = torch.tensor([0.3, 0.6, 0.8])

    def read(z):
        return z if z.sum() > 1.5 else 1 - 2 * z

    def model():
        with pyro.plate("data", 3):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            pyro.sample("x", dist.Normal(read(z), 1.0), obs=X[:3])

    def guide():
        with pyro.plate("data", 3):
            pyro.sample("z", dist.Bernoulli(q))

    loss = 0.0
    for bits in itertools.product((0.0, 1.0), repeat=3):
        z = torch.tensor(bits)
        log_q = dist.Bernoulli(q).log_prob(z).sum()
        terms = dist.Bernoulli(0.4).log_prob(z) + dist.Normal(read(z), 1.0).log_prob(X[:3])
        loss += float(log_q.exp() * (log_q - terms.sum()))
    plan = agrees(TraceELBO("enumerate"), model, guide, loss)
    assert isinstance(plan.way, Jointly)
    assert plan.way.one_by_one


def test_one_dim_more_than_needed_goes_value_by_value():
    data, times = torch.tensor([4.0, 5.0, 1.0, 0.0]), torch.arange(4)

    def model():
        s = pyro.sample("s", dist.Categorical(torch.ones(4)))
        with pyro.plate("times", 4):
            pyro.sample("x", dist.Poisson(torch.where(s[..., None] >= times, 4.0, 1.0)), obs=data)

    def guide():
        pyro.sample("s", dist.Categorical(logits=pyro.param("logits", LOGITS[:, 0].clone())))

    rates = torch.where(times[:, None] >= times, 4.0, 1.0)
    table = dist.Poisson(rates).log_prob(data).sum(-1) - math.log(4)
    loss, slope = by_hand(table, LOGITS[:, 0])
    for estimator in ("enumerate", "auto"):
        assert isinstance(agrees(TraceELBO(estimator), model, guide, loss, slope).way, OneByOne)


READS = {
    "repeat": (lambda a, z: a.repeat(3) + z.reshape(-1, 3) @ torch.arange(3.0), True),
    "cat": (lambda a, z: torch.cat([a] * 3) + z.reshape(-1, 3) @ torch.arange(3.0), True),
}


@pytest.mark.parametrize("form", READS)
@pytest.mark.parametrize("estimator", ["enumerate", "auto"])
def test_a_program_for_enumerated_copies_only(form, estimator):
    """What Pyro gives it is what it gets; a sampling estimator cannot run it, and the error says why."""
    read, expand = READS[form]

    def model():
        with pyro.plate("n", 4):
            a = pyro.sample("a", dist.Normal(torch.zeros(4), 1.0))
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(4, 3)))
            pyro.sample("x", dist.Normal(read(a, z).reshape(z.shape[:-1]), 1.0), obs=X)

    @pyro.infer.config_enumerate(default="parallel", expand=expand)
    def guide():
        with pyro.plate("n", 4):
            pyro.sample("a", dist.Delta(X))
            pyro.sample("z", dist.OneHotCategorical(logits=pyro.param("logits", LOGITS.clone())))

    table = dist.Normal(X[:, None] + torch.arange(3.0), 1.0).log_prob(X[:, None]) - math.log(3)
    loss, slope = by_hand(table, LOGITS)
    agrees(TraceELBO(estimator), model, guide, loss - float(dist.Normal(0.0, 1.0).log_prob(X).sum()), slope)
    with pytest.raises(EnumerationError, match="only while sites 'z' are enumerated in parallel"):
        TraceELBO("nvil").loss_and_grads(model, guide)


def test_a_program_that_reads_all_values_at_once_beside_a_site_of_the_guide():
    """`table[z[:, 0]]` runs while z has its values in a dim: on a draw the error says that it is for enumeration."""
    table = torch.randn(3, 4)

    def model():
        h = pyro.sample("h", dist.Bernoulli(0.4))
        z = pyro.sample("z", dist.Categorical(torch.ones(3)), infer={"enumerate": "parallel"})
        with pyro.plate("data", 4):
            pyro.sample("y", dist.Normal(table[z[:, 0]] + h, 1.0), obs=X)

    def guide():
        pyro.sample("h", dist.Bernoulli(0.3))

    q, p = torch.tensor([0.7, 0.3]), torch.tensor([0.6, 0.4])
    given = torch.stack([dist.Normal(table + h, 1.0).log_prob(X).sum(-1).logsumexp(0) - math.log(3) for h in (0, 1)])
    exact = -float((q * (p.log() + given - q.log())).sum())
    for estimator in ("enumerate", "auto"):
        assert TraceELBO(estimator, max_plate_nesting=1).loss(model, guide) == pytest.approx(exact, abs=1e-4)
    with pytest.raises(EnumerationError, match="only while"):
        TraceELBO("nvil", max_plate_nesting=1).loss(model, guide)


def test_a_batch_shape_is_judged_by_the_log_probability():
    class Carrier(dist.TorchDistribution):
        arg_constraints, support, has_rsample = {}, dist.constraints.real, True  # pyright: ignore

        def __init__(self, v):
            self.v = v
            super().__init__(v.shape)

        def expand(self, batch_shape, _instance=None):
            return Carrier(self.v.expand(batch_shape))

        def rsample(self, sample_shape=()):
            return self.v.expand(torch.Size(sample_shape) + self.v.shape)

        def log_prob(self, value):
            return torch.zeros_like(value)

    q = torch.linspace(0.2, 0.8, 4)

    def model(wide=False):
        with pyro.plate("n", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            if wide:
                carried = pyro.sample("carried", dist.Normal(torch.zeros(4, 4), 1.0))
            else:
                carried = pyro.sample("carried", Carrier(torch.zeros(1)).expand_by([4]))
            pyro.sample("x", dist.Normal(z + carried, 1.0), obs=X)

    def guide(wide=False):
        with pyro.plate("n", 4):
            pyro.sample("carried", Carrier(q))
            pyro.sample("z", dist.Bernoulli(q))

    both, prior = torch.stack([1 - q, q]), torch.tensor([[0.6], [0.4]])
    likelihood = dist.Normal(torch.arange(2.0)[:, None] + q, 1.0).log_prob(X)
    exact = float((both * (both.log() - prior.log() - likelihood)).sum())
    for estimator in ("enumerate", "auto"):
        assert TraceELBO(estimator).loss(model, guide) == pytest.approx(exact, abs=1e-4)
    with pytest.raises(SiteShapeError, match="'carried'"):
        TraceELBO("enumerate").loss(model, guide, True)


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("estimator", ["enumerate", "reinforce"])
def test_a_site_that_the_model_lacks_in_a_branch_is_refused_when_it_is_met(estimator, seed):
    def model():
        b = pyro.sample("b", dist.Bernoulli(0.4))
        loc = pyro.sample("u", dist.Bernoulli(0.7)) if b.item() > 0.5 else -pyro.sample("w", dist.Bernoulli(0.2))
        pyro.sample("x", dist.Normal(loc, 1.0), obs=X[0])

    def guide():
        b = pyro.sample("b", dist.Bernoulli(logits=pyro.param("q", torch.tensor(0.3))))
        pyro.sample("u" if b.item() > 0.5 else "v", dist.Bernoulli(0.5))

    pyro.set_rng_seed(seed)
    elbo = TraceELBO(estimator)
    with warnings.catch_warnings(), pytest.raises(SiteMatchError, match="'v' is drawn in the guide but is not in"):
        warnings.simplefilter("ignore")
        for _ in range(1 if estimator == "enumerate" else 60):
            elbo.loss(model, guide)


@pytest.mark.parametrize("estimator", ["auto", "reinforce", "nvil", "enumerate", "gumbel_softmax", "rloo"])
def test_planning_leaves_modules_as_one_run_does(estimator):
    encoder = torch.nn.Sequential(torch.nn.Linear(1, 3), torch.nn.BatchNorm1d(3))
    seen, x = torch.nn.BatchNorm1d(1), X[:, None]

    def model():
        seen(x)
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z @ torch.arange(3.0), 1.0), obs=X)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.OneHotCategorical(logits=encoder(x)))

    elbo = TraceELBO(estimator, num_particles=2 if estimator == "rloo" else 1)
    for step in range(1, 4):
        elbo.loss_and_grads(model, guide) if step < 3 else elbo.loss(model, guide)
        assert int(encoder[1].num_batches_tracked) == int(seen.num_batches_tracked) == step
        torch.testing.assert_close(seen.running_mean, x.mean(0) * (1 - 0.9**step))


TREE = torch.tensor([0.5, -0.2, 0.1])
MATCHING = torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.8, -0.4], [0.0, 0.2, 0.6]])


@pytest.mark.filterwarnings("ignore:This program")
@pytest.mark.parametrize(("law", "logits"), [(dist.SpanningTree, TREE), (dist.OneOneMatching, MATCHING)])
def test_trees_and_matchings_are_discrete(law, logits):
    def reward(z):
        return (
            (z.float() * torch.arange(1.0, 1 + z.shape[-1])).sum(-1)
            if law is dist.OneOneMatching
            else z.sum((-1, -2)) / 2
        )

    def model():
        pyro.factor("reward", reward(pyro.sample("z", law(torch.zeros_like(logits)))))

    def guide():
        pyro.sample("z", law(pyro.param("w", logits)))

    every = law(logits).enumerate_support()
    log_q = torch.stack([law(logits).log_prob(z) for z in every])
    rewards = torch.stack([torch.as_tensor(reward(z), dtype=torch.float) for z in every])
    exact = float((log_q.exp() * (log_q + math.log(len(every)) - rewards)).sum())
    elbo = TraceELBO("enumerate")
    assert elbo.loss_and_grads(model, guide) == pytest.approx(exact, abs=1e-4)
    for estimator in ("rloo", "unordered_set"):
        sampled = TraceELBO(estimator, num_particles=2)
        sampled.loss_and_grads(model, guide)
        assert "continuous" not in str(sampled.plan)
    with pytest.raises(DiscreteInferenceError, match="does not serve site 'z'"):
        TraceELBO("gumbel_softmax").loss_and_grads(model, guide)


@pytest.mark.parametrize("size", [None, 3])
@pytest.mark.parametrize("linked", [False, True])
def test_a_plate_without_a_stated_size_is_as_large_as_what_is_drawn_in_it(size, linked):
    x, q = torch.tensor([0.3, -1.0, 0.8]), torch.tensor([0.2, 0.5, 0.7])

    def model():
        with pyro.plate("data", size):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4)))
            pyro.sample("x", dist.Normal(z + (z.sum(-1, keepdim=True) if linked else 0.0), 1.0), obs=x)

    def guide():
        with pyro.plate("data", size):
            pyro.sample("z", dist.Bernoulli(q))

    values = torch.tensor(list(itertools.product((0.0, 1.0), repeat=3)))
    log_q = dist.Bernoulli(q).log_prob(values).sum(-1)
    mean = values + (values.sum(-1, keepdim=True) if linked else 0.0)
    log_p = (dist.Bernoulli(0.4).log_prob(values) + dist.Normal(mean, 1.0).log_prob(x)).sum(-1)
    assert TraceELBO("enumerate").loss(model, guide) == pytest.approx(float((log_q.exp() * (log_q - log_p)).sum()))
    assert to_inference_data(model, guide, num_samples=4).log_likelihood["x"].shape == (1, 4, 3)


def test_a_program_for_enumerated_copies_in_a_plate_without_a_stated_size():
    x, q = torch.tensor([0.3, -1.0]), torch.tensor([[0.2, 0.8, -0.5], [1.0, 0.0, 0.3]])
    infer = {"enumerate": "parallel", "expand": True}

    def model():
        with pyro.plate("data"):
            a = pyro.sample("a", dist.Normal(torch.zeros(2), 1.0))
            z = pyro.sample("z", dist.OneHotCategorical(torch.ones(2, 3)))
            mean = a.repeat(3) + z.reshape(-1, 3) @ torch.arange(3.0)
            pyro.sample("x", dist.Normal(mean.reshape(z.shape[:-1]), 1.0), obs=x)

    def guide():
        with pyro.plate("data"):
            pyro.sample("a", dist.Delta(torch.tensor([0.5, 0.1])))
            pyro.sample("z", dist.OneHotCategorical(logits=q), infer=infer)

    log_q, a = q.log_softmax(-1), torch.tensor([0.5, 0.1])
    log_p = dist.Normal(a[:, None] + torch.arange(3.0), 1.0).log_prob(x[:, None]) - torch.tensor(3.0).log()
    exact = (log_q.exp() * (log_q - log_p)).sum() - dist.Normal(0.0, 1.0).log_prob(a).sum()
    for name in ("enumerate", "auto"):
        assert TraceELBO(name).loss(model, guide) == pytest.approx(float(exact))


@pytest.mark.parametrize("linked", [False, True])
def test_elements_are_told_apart_under_noise_of_the_programs_own(linked):
    """Dropout changes a term from run to run, and does not join elements; a sum over a draw's elements does."""
    x = torch.tensor([0.3, -1.0, 0.8, 0.1])

    def model():
        with pyro.plate("data", 4):
            z = pyro.sample("z", dist.Bernoulli(0.4))
            noise = torch.nn.functional.dropout(torch.ones(4), 0.5)
            mean = z + noise + (z.sum(-1, keepdim=True) if linked else 0.0)
            pyro.sample("x", dist.Normal(mean, 1.0), obs=x)

    def guide():
        with pyro.plate("data", 4):
            pyro.sample("z", dist.Bernoulli(torch.nn.functional.dropout(torch.full((4,), 0.3), 0.5)))

    torch.manual_seed(0)
    state = torch.get_rng_state()
    elbo = TraceELBO("enumerate")
    elbo.loss(model, guide)
    assert isinstance(elbo.plan.way, Jointly if linked else Parallel)
    assert not torch.equal(state, torch.get_rng_state())  # the step's own noise is drawn from the user's state
    again = torch.get_rng_state()
    torch.set_rng_state(state)
    elbo.loss(model, guide)
    assert torch.equal(again, torch.get_rng_state())
