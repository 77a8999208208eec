"""Pictures of structures' marginals show what they say they do."""

from __future__ import annotations

import pyro
import pytest
import torch

from pyro_discrete import Arborescence, DiscretePosterior, KSubset, PlackettLuce, SpanningTree
from pyro_discrete.diagnostics import picture_structure
from pyro_discrete.errors import SettingError

pytest.importorskip("matplotlib")


def shown(figure):
    return torch.as_tensor(figure.axes[0].images[0].get_array().copy())


def test_a_ranking_is_a_map_of_places_by_items(tmp_path):
    ranking = PlackettLuce(torch.tensor([0.0, 1.0, -1.0]))
    figure = picture_structure(ranking, names=["rye", "oat", "pie"], path=tmp_path / "ranking.png")
    torch.testing.assert_close(shown(figure)[0].double(), ranking.logits.softmax(-1).double(), rtol=1e-5, atol=1e-6)
    axes = figure.axes[0]
    assert (axes.get_xlabel(), axes.get_ylabel()) == ("item", "place")
    assert [label.get_text() for label in axes.get_xticklabels()] == ["rye", "oat", "pie"]
    assert (tmp_path / "ranking.png").stat().st_size > 0


def test_trees_show_their_edges():
    directed = Arborescence(torch.tensor([[0.0, 1.0, 0.3], [0.2, 0.0, 0.4], [0.9, -0.5, 0.0]]))
    torch.testing.assert_close(shown(picture_structure(directed)), directed.marginals(), rtol=1e-5, atol=1e-6)
    even = shown(picture_structure(SpanningTree(torch.zeros(3, 3))))
    torch.testing.assert_close(even, torch.full((3, 3), 2 / 3) * (1 - torch.eye(3)))


def test_a_subset_has_a_bar_for_each_item_and_marginals_of_a_posterior_will_do():
    subset = KSubset(torch.tensor([0.5, -1.0, 0.2, 1.0]), 2)

    def program():
        pyro.sample("z", subset)

    found = DiscretePosterior(program, program, num_samples=1).marginals()["z"]
    heights = torch.tensor([float(bar.get_height()) for bar in picture_structure(found).axes[0].patches])
    torch.testing.assert_close(heights, subset.marginals(), rtol=1e-5, atol=1e-6)


def test_what_cannot_be_shown_is_told():
    with pytest.raises(SettingError, match="a structure or its marginals"):
        picture_structure(pyro.distributions.Normal(0.0, 1.0))
    with pytest.raises(SettingError, match="batch shape"):
        picture_structure(PlackettLuce(torch.zeros(2, 3)))
    with pytest.raises(SettingError, match="2 names given, 3 expected"):
        picture_structure(PlackettLuce(torch.zeros(3)), names=["a", "b"])
