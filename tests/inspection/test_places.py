"""What is computed from a value of several places, followed: which place each result reads, or that it is not known."""

import itertools

import pytest
import torch
import torch.nn.functional as F

from pyro_discrete.inspection.places import Along, At, Places

Z = torch.tensor([[0, 0, 0, 0], [1, 1, 1, 1], [2, 2, 2, 2]])
TABLE = torch.linspace(-1.0, 1.0, 12).reshape(4, 3)
ALONG = Along("z", -1, 0, 4)

FOLLOWED = {
    "looked up": (lambda z: TABLE[0][z], ALONG),
    "looked up in a row each": (lambda z: TABLE[torch.arange(4), z].exp() - 1.0, ALONG),
    "vectors": (lambda z: TABLE.mT[z], Along("z", -2, 0, 4)),
    "sums of vectors": (lambda z: TABLE.mT[z].sum(-1), ALONG),
    "indicators": (lambda z: F.one_hot(z, 3), Along("z", -2, 0, 4)),
    "compared": (lambda z: torch.where(z == 1, 0.5, TABLE[:, 0]), ALONG),
    "some in a row": (lambda z: z[..., 1:3].float(), Along("z", -1, 1, 2)),
    "some from the end": (lambda z: z[..., -2:], Along("z", -1, 2, 2)),
    "with a dim more": (lambda z: z.unsqueeze(-1) + torch.zeros(5), Along("z", -2, 0, 4)),
    "gathered": (lambda z: TABLE.expand(3, 4, 3).gather(-1, z.unsqueeze(-1)).squeeze(-1), ALONG),
    "one": (lambda z: TABLE[1][z[..., 2]].cos(), At("z", 2)),
    "the last": (lambda z: z[..., -1], At("z", 3)),
    "one of some": (lambda z: z[..., 1:][..., 0], At("z", 1)),
    "one and again": (lambda z: (z[..., 2] * z[..., 2].float()).cumsum(0), At("z", 2)),
    "apart": (lambda z: z.unbind(-1)[1], At("z", 1)),
    "two": (lambda z: z[..., 0] * z[..., 1], At("z", 0, 2)),
    "shifted": (lambda z: z[..., 1:] * z[..., :-1], Along("z", -1, 0, 3, 2)),
    "a pair of a chain": (lambda z: TABLE[:3][z[..., :-1], z[..., 1:]][..., 1], At("z", 1, 2)),
    "differences": (lambda z: z.diff(dim=-1).abs()[..., 1:], Along("z", -1, 1, 2, 2)),
    "far apart": (lambda z: z[..., 0] + z[..., 3], At("z", 0, 4)),
    "every second step": (lambda z: z[..., 2:] - z[..., :-2], Along("z", -1, 0, 2, 3)),
}

UNKNOWN = {
    "a sum": lambda z: z.sum(-1),
    "every other": lambda z: z[..., ::2],
    "beside one": lambda z: z + z[..., :1],
    "flipped": lambda z: z.flip(-1),
    "rolled": lambda z: z.roll(1, -1),
    "sorted": lambda z: z.sort(-1).values,
    "running": lambda z: z.cumsum(-1),
    "as columns": lambda z: z.float() @ torch.ones(4, 4),
    "in another shape": lambda z: z.reshape(-1),
    "picked": lambda z: z[..., torch.tensor([3, 2, 1, 0])],
    "joined": lambda z: torch.cat([z, z], -1),
    "a table of it": lambda z: z[torch.tensor([0, 1, 2, 0])][:, 0] + z[0],
    "written to": lambda z: z.clone().mul_(2),
    "written through a view": lambda z: _through_a_view(z),
}


def _through_a_view(z):
    copy = z.clone()
    copy[..., 0] = copy[..., 1]
    return copy


@pytest.mark.parametrize("name", FOLLOWED)
def test_what_reads_place_by_place(name):
    make, expected = FOLLOWED[name]
    with Places() as places:
        z = Z.clone()
        places.follow(z, "z")
        made = make(z)
    assert places.found(made) == expected
    assert places.of(made) == {"z"}
    assert not places.escape


@pytest.mark.parametrize("name", UNKNOWN)
def test_what_is_not_known_to(name):
    with Places() as places:
        z = Z.clone()
        places.follow(z, "z")
        made = UNKNOWN[name](z)
    assert places.found(made) is None
    assert places.of(made) == {"z"}


W = torch.linspace(0.3, -1.1, 4)
LAYER = torch.nn.Linear(4, 1)
MATRIX = torch.linspace(-1.0, 1.0, 20).reshape(4, 5)

ADDED = {
    "weights": lambda z: (W * z).sum(-1),
    "a table": lambda z: TABLE[torch.arange(4), z].sum(-1, keepdim=True)[..., 0],
    "a mean": lambda z: TABLE[torch.arange(4), z].mean(-1),
    "gathered": lambda z: TABLE.expand(*z.shape, 3).gather(-1, z.unsqueeze(-1)).squeeze(-1).sum(-1),
    "scaled and moved": lambda z: (2.0 - TABLE[0][z].sum(-1) * 3.0) / 5.0 - 1.0,
    "a product with a vector": lambda z: z.float() @ W,
    "a product with a matrix": lambda z: (z.float() @ MATRIX)[..., 2],
    "a product with a matrix, added up": lambda z: (z.float() @ MATRIX).sum(-1),
    "a layer": lambda z: LAYER(z.float()).squeeze(-1),
    "einsum": lambda z: torch.einsum("...ij,ij->...", F.one_hot(z, 3).float(), TABLE),
    "indicators": lambda z: (F.one_hot(z, 3) * TABLE).sum((-1, -2)),
    "indicators, by dims": lambda z: (F.one_hot(z, 3) * TABLE).sum(-1).sum(-1),
    "two places": lambda z: TABLE[0][z[..., 0]] - 2 * TABLE[1][z[..., 3]],
    "a loop": lambda z: sum(TABLE[i][z[..., i]] for i in range(4)),
    "one beside a sum": lambda z: 5 - W[z].sum(-1) - TABLE[1][z[..., 2]] * 2,
    "a count": lambda z: (z == 1).sum(-1),
    "half a count": lambda z: 0.5 * (z == 1).sum(-1).float(),
    "a constant beside": lambda z: torch.linspace(0.0, 1.0, 2)[:, None] + W[z].sum(-1),
    "pairs": lambda z: TABLE[:3][z[..., :-1], z[..., 1:]].sum(-1),
    "pairs and places": lambda z: TABLE[:3][z[..., :-1], z[..., 1:]].sum(-1) + W[z].sum(-1) - W[z[..., 3]],
    "changes": lambda z: (z[..., 1:] != z[..., :-1]).sum(-1),
}
"""Sums over places, or pairs of consecutive ones."""

NOT_ADDED = {
    "an index": lambda z: W.repeat(4)[(z == 1).sum(-1)],
    "bits": lambda z: (z[..., 0] == 1) + (z[..., 3] == 1),
    "bits of a sum": lambda z: (z == 1).sum(-1).bool(),
    "small integers": lambda z: (z[..., 0].to(torch.uint8) * 100 + z[..., 3].to(torch.uint8) * 100).float(),
    "rounded": lambda z: (0.3 * z).sum(-1).to(torch.long),
    "rounded down": lambda z: torch.div(z.sum(-1), 2, rounding_mode="floor"),
    "whole halves": lambda z: z.sum(-1) // 2,
    "a square": lambda z: W[z].sum(-1) ** 2,
    "by itself": lambda z: (lambda s: s * s)(W[z].sum(-1)),
    "a sum times a place": lambda z: W[z].sum(-1) * TABLE[0][z[..., 1]],
    "exp": lambda z: W[z].sum(-1).exp(),
    "an inverse": lambda z: 1 / W[z].sum(-1),
    "below": lambda z: torch.ones(3) / (3 + W[z].sum(-1)),
    "cut": lambda z: W[z].sum(-1).clamp(min=0),
    "the larger": lambda z: torch.maximum(W[z].sum(-1), torch.zeros(())),
    "written to": lambda z: W[z].sum(-1).mul_(2),
    "written to, later": lambda z: (lambda s: (s.exp_(), s)[1])(W[z].sum(-1)),
    "written to through a view": lambda z: (lambda s: (s.view(-1).exp_(), s)[1])(W[z].sum(-1)),
    "sums along the values": lambda z: W[z].sum(-1).cumsum(0),
}


@pytest.mark.parametrize("name", ADDED)
def test_sums_over_places(name):
    """The summands, of all values at once, add up to what the program computes of each value by itself."""
    width = 2 if name in ("pairs", "pairs and places", "changes") else 1
    numbers = torch.arange(3**width)[:, None]
    even = torch.arange(4) % 2 == 0
    with Places() as places:
        z = torch.where(even, numbers // 3, numbers % 3) if width == 2 else numbers.repeat(1, 4)
        places.follow(z, "z")
        made = ADDED[name](z)
        added = places.sum_of(made)
    assert not places.escape
    assert added is not None
    assert (added.site, added.width) == ("z", width)
    summands = added.table(4, width)
    torch.testing.assert_close(summands.sum(-1), made, check_dtype=False)
    every = torch.tensor(list(itertools.product(range(3), repeat=4)))
    at = every
    if width == 2:
        first, second = every[:, :-1], every[:, 1:]
        at = torch.where(even[:-1], 3 * first + second, 3 * second + first)
    found = summands[..., at, torch.arange(5 - width)].sum(-1)
    torch.testing.assert_close(found, ADDED[name](every), check_dtype=False, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", NOT_ADDED)
def test_what_is_not_known_to_be_a_sum(name):
    with Places() as places:
        z = Z.clone()
        places.follow(z, "z")
        made = NOT_ADDED[name](z)
        assert places.sum_of(made) is None
    assert places.of(made) == {"z"}


def test_summands_are_differentiable():
    weights = W.clone().requires_grad_()
    with Places() as places:
        z = Z.clone()
        places.follow(z, "z")
        made = 3.0 * (weights * z).sum(-1)
        held = made.detach()
        without = places.sum_of(held)
        with torch.no_grad():
            quiet = places.sum_of((weights * z).sum(-1))
        summands = places.sum_of(made).table(4, 1)
    assert without is not None
    assert quiet is not None
    assert not without.table(4, 1).requires_grad
    assert not quiet.table(4, 1).requires_grad
    (slope,) = torch.autograd.grad(summands[2, 1], weights)
    assert slope.tolist() == [0.0, 6.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "read",
    [
        lambda z: z[0, 0].item(),
        lambda z: bool((z == 1).any()),
        lambda z: z.tolist(),
        lambda z: z.numpy(),
        lambda z: TABLE[0][z[z > 0]],
        lambda z: torch.zeros(4).index_put_((torch.tensor(0),), z[0, 0].float()),
    ],
)
def test_ways_out_are_noted(read):
    with Places() as places:
        z = Z.clone()
        places.follow(z, "z")
        read(z)
    assert places.escape


def test_what_is_not_followed_may_be_read():
    with Places() as places:
        z, x = Z.clone(), torch.ones(3)
        places.follow(z, "z")
        x[0] = x.sum().item()
        torch.distributions.Normal(TABLE[0][z], 1.0, validate_args=True).log_prob(torch.zeros(4))
    assert not places.escape
    assert not places.of(x)
    assert places.of(torch.zeros_like(z)) == frozenset()


def test_two_values_together():
    with Places() as places:
        z, w = Z.clone(), Z.clone()
        places.follow(z, "z")
        places.follow(w, "w")
        together = z + w
        added = places.sum_of(z.sum(-1) + w.sum(-1))
    assert places.found(together) is None
    assert added is None
    assert places.of(together) == {"w", "z"}
