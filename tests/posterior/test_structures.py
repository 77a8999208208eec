"""What a trained pair says of structures: marginals of places and edges, most probable values, draws, ArviZ's dims."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    Arborescence,
    DiscretePosterior,
    KSubset,
    LinearChain,
    PlackettLuce,
    SequentialMatching,
    to_inference_data,
)
from pyro_discrete.testing import structure_programs

DOUBLE = torch.float64
PROGRAMS = {p.name: p for p in structure_programs()}


def numbers(*shape):
    return (1.3 * torch.arange(1.0, 1 + torch.Size(shape).numel(), dtype=DOUBLE)).sin().reshape(shape)


def by_brute_force(structure):
    values = structure.enumerate_support()
    weights = structure.log_prob(values).exp()
    corners = structure.vertex(values)
    return (weights.reshape(-1, *[1] * (corners.dim() - 1)) * corners).sum(0)


def alone(structure):
    def program():
        return pyro.sample("z", structure)

    return program


STRUCTURES = {
    "ranking": PlackettLuce(numbers(4)),
    "subset": KSubset(numbers(12), 4),
    "matching": SequentialMatching(numbers(4, 4)),
    "chain": LinearChain(numbers(6, 3, 3)),
    "tree": Arborescence(numbers(5, 5)),
}


@pytest.mark.parametrize("name", STRUCTURES)
def test_marginals_are_those_of_all_values(name):
    """Of small supports, which are summed over, and of larger ones with marginals or values that can be listed."""
    structure = STRUCTURES[name]
    found = DiscretePosterior(alone(structure), alone(structure), num_samples=2).marginals()["z"]
    vertex = by_brute_force(structure)
    right = vertex if structure.soft_value == "weights" else structure.index_weights(vertex)
    assert found.event_shape == structure.event_shape
    torch.testing.assert_close(found.base_dist.probs, right, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("name", STRUCTURES)
def test_the_most_probable_value_is_the_best_of_all(name):
    structure = STRUCTURES[name]
    values = structure.enumerate_support()
    best = DiscretePosterior(alone(structure), alone(structure)).most_probable()["z"]
    log_p = structure.log_prob(values)
    torch.testing.assert_close(structure.log_prob(best), log_p.max())


def test_large_structures():
    """20 factorial rankings are known by their mode and by draws; a large sequential matching by its best draw."""
    ranking, matching = PlackettLuce(numbers(20)), SequentialMatching(numbers(12, 12))
    posterior = DiscretePosterior(alone(ranking), alone(ranking), num_samples=3)
    assert torch.equal(posterior.most_probable()["z"], ranking.logits.argsort(descending=True))
    torch.manual_seed(0)
    first = posterior.marginals()["z"].base_dist.probs[0]
    # 1,000 draws of 20 probabilities: |error| > 0.08 has a probability below 1e-5 (Hoeffding)
    assert (first - ranking.logits.softmax(-1)).abs().max() < 0.08
    with pytest.warns(UserWarning, match="the best of 1000 draws"):
        found = DiscretePosterior(alone(matching), alone(matching)).most_probable()["z"]
    assert sorted(found.tolist()) == list(range(12))


def test_a_structure_of_the_model_alone_has_its_exact_posterior():
    logits, table, target = numbers(4), numbers(4), torch.tensor(0.8, dtype=DOUBLE)

    def likelihood(order):
        return dist.Normal(table[order[..., 0]] - table[order[..., 1]], 0.6)

    def model():
        order = pyro.sample("order", PlackettLuce(logits, 2))
        pyro.sample("x", likelihood(order), obs=target)

    prior = PlackettLuce(logits, 2)
    values = prior.enumerate_support()
    joint = prior.log_prob(values) + likelihood(values).log_prob(target)
    right = (joint.softmax(0)[:, None, None] * prior.vertex(values)).sum(0)
    posterior = DiscretePosterior(model)
    torch.testing.assert_close(posterior.marginals()["order"].base_dist.probs, right, rtol=1e-6, atol=1e-7)
    assert torch.equal(posterior.most_probable()["order"], values[joint.argmax()])


@pytest.mark.parametrize("name", [n for n in PROGRAMS if n != "structure_beside_a_gaussian"])
def test_draws_and_predictions_of_every_program(name):
    with PROGRAMS[name].running() as pair:
        posterior = DiscretePosterior(pair.model, pair.guide, num_samples=5)
        shapes = {n: v.shape for n, v in posterior.samples(*pair.args).items()}
        assert all(shape[0] == 5 for shape in shapes.values())
        assert all(v.shape[0] == 5 for v in posterior.predictive(*pair.args).values())
        assert posterior.most_probable(*pair.args).keys() == shapes.keys() == posterior.marginals(*pair.args).keys()


def test_dims_bear_the_names_of_what_they_count():
    def guide():
        pyro.sample("order", PlackettLuce(numbers(4)))
        pyro.sample("tree", Arborescence(numbers(4, 4)))
        with pyro.plate("people", 2):
            pyro.sample("items", KSubset(numbers(5), 2))

    def model():
        guide()
        pyro.sample("x", dist.Normal(0.0, 1.0), obs=torch.tensor(0.3))

    found = to_inference_data(model, guide, num_samples=3).posterior
    assert found["order"].dims == ("chain", "draw", "order_place")
    assert found["tree"].dims == ("chain", "draw", "tree_node")
    assert found["tree_node"].values.tolist() == [1, 2, 3]
    assert found["items"].dims == ("chain", "draw", "people", "items_item")
    named = to_inference_data(model, guide, num_samples=3, dims={"order": ["rank"]}).posterior
    assert named["order"].dims == ("chain", "draw", "rank")


@pytest.mark.parametrize(
    ("fn", "shape"),
    [
        (dist.SpanningTree(torch.tensor([0.3, -0.2, 0.5])), (2, 2)),
        (dist.OneOneMatching(torch.zeros(3, 3)), (3,)),
    ],
)
def test_pyros_own_structures_which_draw_one_value_at_a_time(fn, shape):
    def model():
        z = pyro.sample("z", fn)
        pyro.sample(
            "x", dist.Normal((z == 0).sum((-1, -2) if len(shape) > 1 else -1) + 0.0, 1.0), obs=torch.tensor(1.0)
        )

    def guide():
        pyro.sample("z", fn)

    posterior = DiscretePosterior(model, guide, num_samples=7)
    assert posterior.samples()["z"].shape == (7, *shape)
    assert posterior.predictive()["x"].shape == (7,)
    assert to_inference_data(model, guide, num_samples=7)["posterior"]["z"].shape == (1, 7, *shape)
