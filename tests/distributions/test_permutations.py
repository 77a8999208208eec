"""Precedence, inverse and membership of rankings and lists, hard, soft, and batched."""

from __future__ import annotations

import pytest
import torch

from pyro_discrete.distributions import PlackettLuce, inverse, k_hot, precedence
from pyro_discrete.draws.softening import one_hot_vector
from pyro_discrete.errors import SettingError
from pyro_discrete.relaxations import SoftIndex


def test_precedence_says_whose_place_is_before() -> None:
    torch.manual_seed(0)
    order = torch.stack([torch.randperm(5) for _ in range(12)]).reshape(3, 4, 5)
    place = inverse(order)
    assert (place.gather(-1, order) == torch.arange(5)).all()
    right = place.unsqueeze(-1) < place.unsqueeze(-2)
    corners = one_hot_vector(order, torch.zeros(5))
    for value in (order, corners, SoftIndex(corners, site="order")):
        assert (precedence(value) == right).all()


def test_inverse_keeps_its_kind() -> None:
    order = torch.tensor([2, 0, 3, 1])
    corners = one_hot_vector(order, torch.zeros(4))
    assert inverse(order).dtype == torch.int64
    assert (inverse(corners) == corners.T).all()
    soft = inverse(SoftIndex(corners, site="order"))
    assert isinstance(soft, SoftIndex)
    assert soft.site == "order"
    table = torch.randn(4)
    torch.testing.assert_close(table[soft], table[inverse(order)])
    assert (precedence(inverse(SoftIndex(corners, site="order"))) == precedence(inverse(order))).all()


def test_k_hot_forgets_the_order() -> None:
    order = torch.tensor([[3, 1], [0, 4]])
    right = torch.tensor([[0.0, 1.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0, 1.0]])
    corners = one_hot_vector(order, torch.zeros(5))
    for value in (order, corners, SoftIndex(corners)):
        assert (k_hot(value, 5) == right).all()


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda: k_hot(torch.tensor([[1, 2], [3, 5]]), 4), r"k_hot: the items \[1, 2, 3, 5\] given, 0 to 3 expected"),
        (lambda: k_hot(torch.tensor([-1, 0]), 4), "k_hot: the items"),
        (lambda: precedence(torch.tensor([4, 0, 2])), r"precedence: the items \[0, 2, 4\] given, 0 to 2 expected"),
        (lambda: inverse(torch.tensor([4, 0, 2])), "inverse: the items"),
    ],
)
def test_items_that_there_are_not(call, said):
    """A list of the first places taken for a ranking would else lose who is not among its numbers, without a word."""
    with pytest.raises(SettingError, match=said):
        call()


def test_soft_rankings_go_to_the_hard_ones_and_have_slopes() -> None:
    torch.manual_seed(0)
    logits = torch.randn(5, dtype=torch.float64, requires_grad=True)
    d = PlackettLuce(logits)
    noise = d.perturb()
    soft = d.soft(noise, 0.01)
    assert (precedence(soft) - precedence(d.read(noise))).abs().max() < 1e-3
    assert (precedence(soft).diagonal(dim1=-2, dim2=-1) == 0).all()
    (slope,) = torch.autograd.grad(precedence(d.soft(noise, 1.0))[0, 1], logits)
    assert slope.abs().sum() > 0
