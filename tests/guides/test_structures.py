"""A guide made from a model has its structures with logits of its own, and `fit` trains and resumes it."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import (
    Arborescence,
    AutoDiscreteMeanField,
    KSubset,
    LinearChain,
    PlackettLuce,
    SpanningTree,
    TraceELBO,
    fit,
)

TABLE = torch.tensor([0.9, -0.6, 0.2, 1.4])


def model(x, orders):
    with pyro.plate("data", len(x)):
        order = pyro.sample("order", PlackettLuce(torch.zeros(4)))
        items = pyro.sample("items", KSubset(torch.zeros(4), 2))
        tree = pyro.sample("tree", SpanningTree(torch.zeros(4, 4)))
        path = pyro.sample("path", LinearChain(torch.zeros(3, 2, 2)))
        pyro.sample("seen", PlackettLuce(TABLE[order]), obs=orders)
        number = TABLE[order][..., 0] + (items * TABLE).sum(-1) + TABLE[tree].sum(-1) * (path == 1).float().mean(-1)
        pyro.sample("x", dist.Normal(number, 1.0), obs=x)


DATA = torch.tensor([0.4, 2.2, -0.3]), torch.tensor([[0, 1, 2, 3], [3, 1, 0, 2], [2, 0, 3, 1]])


@pytest.mark.parametrize("settings", [{}, {"amortize": True}], ids=str)
@pytest.mark.parametrize("estimator", ["rloo", "muprop_where_it_serves"])
def test_a_guide_of_structures(settings, estimator):
    guide = AutoDiscreteMeanField(model, **settings)
    chosen = "rloo" if estimator == "rloo" else {"order": "rloo", "*": "muprop"}
    elbo = TraceELBO(chosen, num_particles=2)
    for _ in range(2):
        elbo.loss_and_grads(model, guide, *DATA)
    args = DATA if settings else ()
    shapes = {name: tuple(value.shape) for name, value in guide.marginals(*args).items()}
    assert shapes == {"order": (3, 4, 4), "items": (3, 4), "tree": (3, 3, 4), "path": (3, 3, 2)}
    for name, value in guide.mode(*args).items():
        msg = pyro.poutine.trace(guide).get_trace(*DATA).nodes[name]
        assert value.shape == msg["value"].shape
        assert bool(msg["fn"].support.check(value).all())
    assert all(bool(p.grad.isfinite().all()) for p in guide.parameters() if p.grad is not None)


def test_undirected_trees_stay_undirected():
    """Free logits are made symmetric, so that a tree and its log-probability do not depend on the root."""

    def trees():
        pyro.sample("tree", SpanningTree(torch.zeros(4, 4)))

    guide = AutoDiscreteMeanField(trees, init_scale=1.0)
    guide()
    fn = pyro.poutine.trace(guide).get_trace().nodes["tree"]["fn"]
    assert isinstance(fn, SpanningTree)
    torch.testing.assert_close(fn.logits, fn.logits.mT)


def test_the_prior_is_where_the_guide_may_start():
    logits = torch.randn(3, 3)

    def trees():
        pyro.sample("tree", Arborescence(logits))

    guide = AutoDiscreteMeanField(trees, init="prior", init_scale=0.0)
    guide()
    torch.testing.assert_close(pyro.poutine.trace(guide).get_trace().nodes["tree"]["fn"].logits, logits)


def test_fit_goes_on_from_a_checkpoint(tmp_path):
    """In two parts as in one: the estimators' state and the guide's logits are kept."""
    phi = {}

    def ranks(x):
        with pyro.plate("data", len(x)):
            order = pyro.sample("order", PlackettLuce(torch.zeros(4)))
            pyro.sample("x", dist.Normal(TABLE[order][..., 0], 0.5), obs=x)

    def guide(x):
        logits = pyro.param("logits", lambda: torch.zeros(3, 4))
        with pyro.plate("data", len(x)):
            pyro.sample("order", PlackettLuce(logits))

    def run(steps, path, **settings):
        found = fit(ranks, guide, DATA[0], TraceELBO("rebar"), steps=steps, lr=0.05, seed=3, progress=False,
                    checkpoint=path, **settings)  # fmt: skip
        return found.parameters["logits"].detach().clone()

    phi["whole"] = run(6, tmp_path / "whole.pt")
    pyro.clear_param_store()
    run(3, tmp_path / "part.pt")
    pyro.clear_param_store()
    phi["parts"] = run(6, tmp_path / "part.pt", resume=True)
    torch.testing.assert_close(phi["whole"], phi["parts"])
    assert bool(phi["whole"].any())
