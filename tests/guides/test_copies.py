"""Copies and pickles of the guide that is made from a model."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.infer.autoguide import AutoGuideList, AutoNormal
from torch import Tensor, nn

from pyro_discrete import AutoDiscreteMeanField, TraceELBO
from pyro_discrete.errors import SettingError

X = torch.linspace(-1.0, 2.0, 8)


def discrete(x: Tensor) -> None:
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(z, 1.0), obs=x)


def mixed(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(pyro.param("prior", torch.tensor(0.0)), 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(loc * z, 1.0), obs=x)


def plain(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(loc * z, 1.0), obs=x)


def subsampled(x: Tensor) -> None:
    loc = pyro.sample("loc", dist.Normal(0.0, 2.0))
    with pyro.plate("data", len(x), subsample_size=4) as index:
        local = pyro.sample("local", dist.Normal(0.0, 1.0))
        z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
        pyro.sample("x", dist.Normal(loc * z + local, 1.0), obs=x[index])


class Program(nn.Module):
    """A model with parameters, which a copied guide shares with the original."""

    def __init__(self) -> None:
        super().__init__()
        self.slope = nn.Parameter(torch.tensor(1.0))

    def forward(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.3)))
            pyro.sample("x", dist.Normal(self.slope * z, 1.0), obs=x)


MODELS: dict[str, Any] = {"discrete": discrete, "mixed": mixed, "subsampled": subsampled, "module": Program}
COPIES: dict[str, Any] = {
    "deepcopy": copy.deepcopy,
    "pickle": lambda guide: pickle.loads(pickle.dumps(guide)),
    "deepcopy of a pickle": lambda guide: copy.deepcopy(pickle.loads(pickle.dumps(guide))),
}


def loss(model: Any, guide: Any) -> float:
    pyro.set_rng_seed(5)
    return TraceELBO("enumerate").loss(model, guide, X)


@pytest.mark.parametrize("ran", [True, False])
@pytest.mark.parametrize("amortize", [True, False, 3])
@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("how", COPIES)
def test_a_copy_has_the_same_loss_and_trains_apart(how: str, name: str, amortize: bool | int, ran: bool) -> None:
    model = MODELS[name]() if name == "module" else MODELS[name]
    guide = AutoDiscreteMeanField(model, amortize=amortize)
    if ran:
        guide(X)
    twin = COPIES[how](guide)
    if not ran:
        pyro.set_rng_seed(1)
        guide(X)
    expected = loss(model, guide)
    if how != "deepcopy":
        pyro.clear_param_store()  # as in another process
    if not ran:
        pyro.set_rng_seed(1)
        twin(X)
    assert loss(model, twin) == pytest.approx(expected, abs=1e-5)
    assert guide.model is model
    if how == "deepcopy":
        assert twin.model is model
    before = {n: p.detach().clone() for n, p in guide.named_parameters()}
    for _ in range(3):  # the copy goes on, at other subsamples too
        TraceELBO("enumerate").loss_and_grads(model, twin, X)
        with torch.no_grad():
            for parameter in twin.parameters():
                if parameter.grad is not None:
                    parameter.sub_(0.1 * parameter.grad)
                    parameter.grad = None
    assert all(torch.equal(p, before[n]) for n, p in guide.named_parameters())
    assert set(guide.median(X)) == set(twin.median(X))
    assert any(not torch.equal(p, before[n]) for n, p in twin.named_parameters())


def test_a_part_of_a_list_and_the_list() -> None:
    guide = AutoGuideList(plain)
    guide.append(AutoNormal(pyro.poutine.block(plain, hide=["z"])))
    guide.append(AutoDiscreteMeanField(plain, continuous=None))
    guide(X)
    part = copy.deepcopy(guide[1])
    assert set(part(X)) == {"z"}
    assert guide[1].master is not None
    assert part.master is None
    twin = copy.deepcopy(guide)
    assert set(twin(X)) == {"loc", "z"}


def test_a_pickle_without_its_model_says_so() -> None:
    guide = AutoDiscreteMeanField(lambda x: discrete(x))
    ran = AutoDiscreteMeanField(lambda x: discrete(x))
    ran(X)
    assert set(pickle.loads(pickle.dumps(ran))(X)) == {"z"}  # which needs the model no more
    with pytest.raises(SettingError, match="unpickled without its model"):
        pickle.loads(pickle.dumps(guide))(X)
    assert set(guide(X)) == {"z"}
