"""What a program's operations keep apart, and what they may mix."""

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import nn
from torch.nn import functional

from pyro_discrete.inspection.apart import Keeping, follow
from pyro_discrete.inspection.trial import plain_trial
from pyro_discrete.inspection.trial_rows import run_over_rows
from pyro_discrete.programs.dims import ROWS_PLATE
from pyro_discrete.programs.pair import Pair

SIZE, WIDTH = 6, 4
WEIGHT, TABLE = torch.rand(WIDTH, WIDTH), torch.rand(2, WIDTH)
SQUARE = torch.rand(SIZE, SIZE)


class Added(torch.autograd.Function):
    """A function of which nobody knows what it does with the elements."""

    @staticmethod
    def forward(ctx, z):
        return z + 0 * z.as_strided(z.shape, z.stride())

    @staticmethod
    def backward(ctx, gradient):
        return gradient


def net():
    parts = nn.Linear(WIDTH, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, WIDTH)
    return nn.Sequential(*parts).double()


NET = net()


def written(z):
    out = torch.zeros_like(z)
    out[..., 1:] = z[..., :-1]
    return out


APART = {
    "pointwise": lambda z: (2 * z - 1).exp().clamp(0.1, 2.0),
    "network": NET,
    "einsum": lambda z: torch.einsum("...i,ij->...j", z, WEIGHT.double()),
    "matmul": lambda z: z @ WEIGHT.double() + z.matmul(WEIGHT.double().T),
    "batches": lambda z: (z.unsqueeze(-2) @ WEIGHT.double()).squeeze(-2),
    "softmax": lambda z: z.softmax(-1) + z.log_softmax(-1) + z.logsumexp(-1, keepdim=True),
    "along the event": lambda z: (
        z.cumsum(-1) + z.flip(-1) + z.roll(1, -1) + z.sort(-1).values + z.mean(-1, True) + z.topk(WIDTH).values
    ),
    "look-up": lambda z: TABLE.double()[z.long()].sum(-2),
    "one_hot": lambda z: functional.one_hot(z.long(), 2).double() @ TABLE.double() @ torch.ones(WIDTH).double(),
    "lists": lambda z: torch.cat([torch.stack(z.unbind(-1), -1), z], -1).split(WIDTH, -1)[0],
    "index": lambda z: z[..., [1, 0, 3, 2]] + z[..., 1:2] + z.index_select(-1, torch.tensor([0, 0, 1, 1])),
    "products": lambda z: z + z.prod(-1, keepdim=True) + z.norm(dim=-1, keepdim=True) + z.var(-1).unsqueeze(-1),
    "written": lambda z: torch.empty_like(z).copy_(z).mul_(2.0),
    "matrices": lambda z: torch.linalg.solve_triangular(SQUARE.tril()[:WIDTH, :WIDTH].double(), z.mT, upper=False).mT,
    "densities": lambda z: z * dist.MultivariateNormal(z, torch.eye(WIDTH).double()).log_prob(0.5 * z).unsqueeze(-1),
    "triangles": lambda z: z + (z.unsqueeze(-1) * z.unsqueeze(-2)).tril().sum(-1),
    "parts": lambda z: torch.cat([2 * z[..., :2, :], z[..., 2:, :].exp()], -2),
    "one by one": lambda z: torch.stack([z[..., i, :].exp() for i in range(SIZE)], -2),
    "unbound": lambda z: torch.stack([each * i for i, each in enumerate(z.unbind(-2))], -2),
    "chunks": lambda z: torch.cat(z.split(2, -2), -2) + torch.cat(z.split([1, 5], -2), -2),
    "turned back": lambda z: z.flip(-2).exp().flip(-2) + z.roll(2, -2).roll(-2, -2),
    "beside others": lambda z: (
        torch.cat([z[..., :3, :], torch.ones(*z.shape[:-2], 3, WIDTH)], -2)
        + torch.cat([torch.ones(*z.shape[:-2], 3, WIDTH), z[..., 3:, :]], -2)
    ),
    "all of a slice": lambda z: z[..., :SIZE, :],
    "views": lambda z: z.reshape(*z.shape[:-1], 2, 2).transpose(-1, -2).flatten(-2),
    "embedding": lambda z: functional.embedding(z.long(), TABLE.double()).mean(-2),
    "gather": lambda z: z.gather(-1, z.long()),
    "convolution": lambda z: functional.conv1d(
        z.reshape(-1, 1, WIDTH), torch.ones(1, 1, 3).double(), padding=1
    ).reshape(z.shape),
}
MIXED = {
    "sum": lambda z: z + z.sum(-2, keepdim=True),
    "roll": lambda z: z.roll(1, -2),
    "matrices": lambda z: torch.linalg.solve_triangular(SQUARE.tril().double(), z, upper=False),
    "flip": lambda z: z.flip(-2),
    "sort": lambda z: z.sort(-2).values,
    "softmax": lambda z: z.softmax(-2),
    "cumsum": lambda z: z.cumsum(-2),
    "matrix": lambda z: SQUARE.double() @ z,
    "identity": lambda z: torch.eye(SIZE).double() @ z,
    "einsum": lambda z: torch.einsum("ij,...jk->...ik", SQUARE.double(), z),
    "outer": lambda z: (z @ z.transpose(-1, -2)).mean(-1, keepdim=True),
    "index": lambda z: z[..., torch.arange(SIZE), :],
    "parts": lambda z: torch.cat([z[..., 2:, :], z[..., :2, :]], -2),
    "parts together": lambda z: torch.cat([z[..., :3, :] + z[..., 3:, :], z[..., 3:, :]], -2),
    "one by one": lambda z: torch.stack([z[..., i - 1, :] for i in range(SIZE)], -2),
    "unbound": lambda z: torch.stack([a + b for a, b in zip(z.unbind(-2), z.unbind(-2)[::-1], strict=True)], -2),
    "chunks": lambda z: torch.cat(z.split(2, -2)[::-1], -2),
    "beside others": lambda z: torch.cat([z[..., 3:, :], torch.ones(*z.shape[:-2], 3, WIDTH)], -2),
    "differences": lambda z: torch.cat([z[..., :1, :], z[..., 1:, :] - z[..., :-1, :]], -2),
    "weighed element": lambda z: z + torch.zeros(SIZE, 1) * z[..., :1, :],
    "squeezed element": lambda z: z + 0 * z[..., :1, :].squeeze(-2).unsqueeze(-2),
    "expanded element": lambda z: z[..., :1, :].expand(z.shape) * 1,
    "element": lambda z: z + z[..., 0, :].unsqueeze(-2),
    "where": lambda z: torch.where(torch.zeros(SIZE, 1) > 0, z.roll(1, -2), z),
    "written": lambda z: torch.zeros_like(z).copy_(z + z.sum(-2, keepdim=True)),
    "convolution": lambda z: functional.conv1d(
        z.transpose(-1, -2), torch.eye(WIDTH).double().unsqueeze(-1) * torch.tensor([0.0, 1.0, 0.0]), padding=1
    ).transpose(-1, -2),
}


def pair(of):
    def model():
        with pyro.plate("p", SIZE):
            z = pyro.sample("z", dist.Bernoulli(torch.full((WIDTH,), 0.4).double()).to_event(1))
            loc = of(z)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(loc.shape[-1]).double())

    def guide():
        with pyro.plate("p", SIZE):
            pyro.sample("z", dist.Bernoulli(torch.full((WIDTH,), 0.5).double()).to_event(1))

    return Pair(model, guide, (), {})


def followed(of, rows=False):
    program = pair(of)
    trial = plain_trial(program)
    return run_over_rows(program, trial, ["z"]).followed if rows else trial.followed(program, ["z"])


@pytest.mark.parametrize("rows", [False, True])
@pytest.mark.parametrize("name", APART)
def test_what_operations_keep_apart(name, rows):
    found = followed(APART[name], rows)
    assert not found.reason
    assert found.of("p") is Keeping.APART, found
    if rows:
        assert found.of(ROWS_PLATE) is Keeping.APART, found


@pytest.mark.parametrize("name", MIXED)
def test_what_operations_may_mix(name):
    found = followed(MIXED[name])
    assert not found.reason
    assert found.of("p") is Keeping.MIXED, found
    assert found.mixed == {"p": "x"}


@pytest.mark.parametrize("of", [Added.apply, lambda z: written(z.mT).mT], ids=["function", "a part that is written"])
def test_what_nobody_knows(of):
    found = followed(of)
    assert found.of("p") is Keeping.UNKNOWN
    assert found.unknown == {"p": "x"}


def test_what_python_sees_of_draws_is_not_followed():
    found = followed(lambda z: z if z.sum() > 2 else 1 - z)
    assert "Python reads" in found.reason
    assert found.of("p") is Keeping.UNKNOWN
    assert found.reaches(["z"], 1, "x")


def test_what_operations_may_mix_is_known_beside_what_python_sees_of_draws():
    found = followed(lambda z: torch.where(SQUARE.sum() > 99, z.flip(-2), z) + torch.as_tensor(z.tolist()))
    assert "leaves torch" in found.reason
    assert found.of("p") is Keeping.MIXED


def test_what_python_sees_of_others_decides_between_branches_alone():
    found = followed(lambda z: z if SQUARE.sum() > 0 else z.roll(1, -2))
    assert found.of("p") is Keeping.APART


def test_rows_in_other_dims():
    found = followed(lambda z: z + z.sum(0), rows=True)
    assert found.of(ROWS_PLATE) is Keeping.MIXED


@pytest.mark.parametrize("part", ["mask", "scale"])
def test_masks_and_scales_carry_draws(part):
    def model():
        with pyro.plate("p", SIZE):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            around = {
                "mask": pyro.poutine.mask(mask=z.roll(1, -1) > 0),
                "scale": pyro.poutine.scale(scale=1 + z.roll(1, -1)),
            }
            with around[part]:
                pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.zeros(SIZE))

    def guide():
        with pyro.plate("p", SIZE):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))

    program = Pair(model, guide, (), {})
    assert plain_trial(program).followed(program, ["z"]).mixed == {"p": "x"}


def test_terms_outside_of_a_plate():
    def model():
        with pyro.plate("p", SIZE):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.4)))
        pyro.sample("x", dist.Normal(0.0 * z.sum(), 1.0), obs=torch.tensor(0.0))

    def guide():
        with pyro.plate("p", SIZE):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))
            pyro.sample("y", dist.Bernoulli(torch.tensor(0.5)))

    program = Pair(model, guide, (), {})
    trial = plain_trial(program)
    found = follow(program, trial.subsamples, trial.values, ["z", "y"])
    assert found.reaches(["z"], 1, "x")
    assert not found.reaches(["y"], 1, "x")
    assert found.of("p") is Keeping.APART


@pytest.mark.parametrize(
    "of",
    [torch.mm, torch.matmul, lambda a, b: torch.addmm(SQUARE.double(), a, b), torch.bmm],
    ids=["mm", "matmul", "addmm", "bmm"],
)
def test_a_square_of_elements_times_itself(of):
    """A row of the product is of all rows, by the second factor, which is the first one as well."""

    def model():
        with pyro.plate("p", SIZE, dim=-1):
            z = pyro.sample("z", dist.Bernoulli(torch.full((SIZE,), 0.4).double()).to_event(1))
            wide = z.unsqueeze(0) if of is torch.bmm else z
            loc = of(wide, wide).reshape(SIZE, SIZE)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(1), obs=torch.zeros(SIZE).double())

    def guide():
        with pyro.plate("p", SIZE, dim=-1):
            pyro.sample("z", dist.Bernoulli(torch.full((SIZE,), 0.5).double()).to_event(1))

    program = Pair(model, guide, (), {})
    assert plain_trial(program).followed(program, ["z"]).of("p") is Keeping.MIXED


def drawn_in_a_plate(observed):
    def model():
        with pyro.plate("p", SIZE):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
            observed(z)

    def guide():
        with pyro.plate("p", SIZE):
            pyro.sample("z", dist.Bernoulli(torch.tensor(0.5)))

    program = Pair(model, guide, (), {})
    return plain_trial(program).followed(program, ["z"])


LAWS = {
    "bits": lambda z: dist.Bernoulli(probs=0.2 + z / 2),
    "bits by logits": lambda z: dist.Bernoulli(logits=z),
    "categories": lambda z: dist.Categorical(logits=z.unsqueeze(-1) * torch.arange(3)),
    "exponential": lambda z: dist.Exponential(z + 1),
    "gamma": lambda z: dist.Gamma(z + 1, 1.0),
    "laplace": lambda z: dist.Laplace(z, z + 1),
    "normal": lambda z: dist.Normal(z, 2.0),
    "counts": lambda z: dist.Poisson(z + 1),
    "event": lambda z: dist.Normal(z.unsqueeze(-1).expand(SIZE, 3), 1.0).to_event(1),
}
"""Laws that score entries by themselves, of parameters that are made of each element's draw."""


@pytest.mark.parametrize("name", LAWS)
def test_laws_that_keep_entries_apart(name):
    def observed(z, moved=lambda z: z):
        fn = LAWS[name](moved(z))
        pyro.sample("x", fn, obs=torch.ones(fn.shape()))

    assert drawn_in_a_plate(observed) == drawn_in_a_plate(observed)
    assert drawn_in_a_plate(observed).of("p") is Keeping.APART
    assert drawn_in_a_plate(observed).reaches(["z"], 1, "x")
    assert drawn_in_a_plate(lambda z: observed(z, lambda z: z.roll(1, -1))).mixed == {"p": "x"}


@pytest.mark.parametrize(
    "law",
    [
        lambda z: dist.Categorical(logits=z.expand(SIZE, SIZE)),
        lambda z: dist.Normal(z.expand(SIZE, SIZE), 1.0).to_event(1),
        lambda z: dist.Normal(z, 1.0 + z.flip(-1)),
        lambda z: dist.Normal(z[0], 1.0 + z),
    ],
    ids=["categories", "event", "two parameters", "one element"],
)
def test_laws_in_whose_terms_elements_meet(law):
    def observed(z):
        fn = law(z)
        pyro.sample("x", fn, obs=torch.zeros(SIZE, *fn.event_shape))

    assert drawn_in_a_plate(observed).mixed == {"p": "x"}


def test_a_law_under_a_mask():
    def masked(z):
        with pyro.poutine.mask(mask=False):
            pyro.sample("y", dist.Bernoulli(probs=0.2 + z.roll(1, -1) / 2))

    assert drawn_in_a_plate(masked).mixed == {"p": "y"}


def test_a_law_that_two_sites_have():
    """What a distribution makes of its parameters while it is not followed is not kept for a term that is."""
    laws = []

    def model():
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.4)))
        laws.append(dist.Bernoulli(probs=0.2 + z / 2))
        pyro.sample("x", laws[-1], obs=torch.tensor(1.0))
        pyro.sample("again", laws[-1].mask(torch.tensor(True)), obs=torch.tensor(1.0))

    program = Pair(model, lambda: None, (), {})
    found = plain_trial(program).followed(program, ["z"])
    assert found.reaches(["z"], 1, "x")
    assert found.reaches(["z"], 1, "again")
    assert "logits" in vars(laws[-1])  # which were made as the second one was followed
