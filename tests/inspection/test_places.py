"""What is computed from a value of several places, followed: which place each result reads, or that it is not known."""

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
}

UNKNOWN = {
    "a sum": lambda z: z.sum(-1),
    "two": lambda z: z[..., 0] * z[..., 1],
    "shifted": lambda z: z[..., 1:] * z[..., :-1],
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
    assert places.found(together) is None
    assert places.of(together) == {"w", "z"}
