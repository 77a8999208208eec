"""What an amortised guide reads of what the model is given, beside what it observes."""

from __future__ import annotations

import warnings
from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor, nn

from pyro_discrete import AutoDiscreteMeanField
from pyro_discrete.errors import SettingError
from tests.support.auto_programs import train

N = 8
Y = torch.linspace(-1.0, 2.0, N)
W = torch.randn(N, 2, generator=torch.Generator().manual_seed(2))


def regression(y: Tensor, w: Any) -> None:
    """Each datum's bit depends on its covariates alone; the data say nothing of it."""
    w = torch.as_tensor(w)
    with pyro.plate("data", len(y)):
        z = pyro.sample("z", dist.Bernoulli(logits=6.0 * w[..., 0]))
        pyro.sample("y", dist.Normal(0.0 * z, 1.0), obs=y)


def inputs(guide: AutoDiscreteMeanField, group: int = 0) -> int:
    return guide.networks.networks[group][0].in_features  # type: ignore[index, return-value]


@pytest.mark.parametrize("form", ["by place", "by name", "array", "subsampled", "in a tuple", "in a dict"])
def test_covariates_are_read(form: str) -> None:
    """A network that reads the data alone could not tell the elements apart: the posterior is the prior of each."""

    def subsampled(y: Tensor, w: Tensor) -> None:
        with pyro.plate("data", len(y), subsample_size=4) as index:
            z = pyro.sample("z", dist.Bernoulli(logits=6.0 * w[index, 0]))
            pyro.sample("y", dist.Normal(0.0 * z, 1.0), obs=y[index])

    def packed(batch: Any) -> None:
        regression(*(batch.values() if isinstance(batch, dict) else batch))

    model: Any = {"subsampled": subsampled, "in a tuple": packed, "in a dict": packed}.get(form, regression)
    args: dict[str, Any] = {"y": Y, "w": W.numpy() if form == "array" else W}
    args = {"in a tuple": {"batch": (Y, W)}, "in a dict": {"batch": {"y": Y, "w": W}}}.get(form, args)
    guide = AutoDiscreteMeanField(model, amortize=20)
    call = (lambda f: f(*args.values())) if form == "by place" else (lambda f: f(**args))
    call(guide)
    assert inputs(guide) == 3
    train(lambda: call(model), lambda: call(guide), steps=250, lr=0.05)
    if form != "subsampled":
        found = call(guide.marginals)["z"]
        assert torch.allclose(found, torch.sigmoid(6.0 * W[:, 0]), atol=0.08)


@pytest.mark.parametrize("view", ["whole", "steps", "rows", "columns and covariates", "cast", "twice"])
def test_what_is_observed_is_read_once(view: str) -> None:
    """Views of an argument, or rows of it, are not read again; what is left of it is."""

    def model(x: Tensor, other: Any = None) -> None:
        with pyro.plate("data", N, subsample_size=4 if view == "rows" else None) as index:
            z = pyro.sample("z", dist.Bernoulli(0.3))
            if view == "steps":
                for t in range(3):
                    pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=x[:, t])
            elif view == "columns and covariates":
                pyro.sample("x", dist.Normal(z + x[:, 1], 1.0), obs=x[:, 0])
            elif view == "cast":
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x.double().float())
            else:
                pyro.sample("x", dist.Normal(z.unsqueeze(-1), torch.ones(3)).to_event(1), obs=x[index])

    x = torch.randn(N, 3)
    guide = AutoDiscreteMeanField(model, amortize=5)
    args = (x, x.clone()) if view == "twice" else (x,)
    guide(*args)
    # Of two arguments with the same numbers it is not known which one is observed: both are read.
    assert inputs(guide) == {"columns and covariates": 4, "twice": 9}.get(view, 3)


def test_zeros_in_the_first_call_hide_no_covariate() -> None:
    guide = AutoDiscreteMeanField(regression, amortize=5)
    guide(torch.zeros(N), torch.zeros(N, 2))
    assert inputs(guide) == 3


def two_plates(y: Tensor, rows: Tensor, columns: Tensor, weight: Tensor) -> None:
    """Sites in both plates, in one, in none."""
    g = pyro.sample("g", dist.Bernoulli(0.5))
    with pyro.plate("columns", 3, dim=-1):
        c = pyro.sample("c", dist.Bernoulli(0.5))
        with pyro.plate("rows", 5, dim=-2):
            z = pyro.sample("z", dist.Bernoulli(0.3))
            pyro.sample("y", dist.Normal(weight * z + c + g + 0.0 * columns[:, 0] + 0.0 * rows[:, None], 1.0), obs=y)


def test_arguments_meet_the_plates_by_their_sizes() -> None:
    y, rows, columns, weight = torch.randn(5, 3), torch.randn(5), torch.randn(3, 2), torch.tensor(0.7)
    guide = AutoDiscreteMeanField(two_plates, amortize=40)
    guide(y, rows, columns, weight)
    assert [inputs(guide, i) for i in range(3)] == [1 + 1 + 2 + 1] * 3
    found = guide.marginals(y, rows, columns, weight)
    assert [found[n].expand(s).shape for n, s in (("g", (1, 1)), ("c", (1, 3)), ("z", (5, 3)))]

    def changed(**new: Tensor) -> set[str]:
        given = {"y": y, "rows": rows, "columns": columns, "weight": weight, **new}
        now = guide.marginals(**given)
        return {n for n in found if not torch.allclose(now[n], found[n], atol=1e-7)}

    swap = columns[[1, 0, 2]]
    assert changed(columns=swap) == {"c", "z"}  # the mean over columns is as it was
    assert changed(rows=rows + 1.0) == {"g", "c", "z"}
    assert changed(weight=torch.tensor(0.9)) == {"g", "c", "z"}
    assert changed() == set()


def test_plates_of_another_size_and_what_no_longer_fits() -> None:
    guide = AutoDiscreteMeanField(regression, amortize=5)
    guide(Y, W)
    assert guide(Y[:3], W[:3])["z"].shape == (3,)
    with pytest.raises(SettingError, match=r"'w', \[data\] x \[2\] in the first call; it is of shape \(8, 1\)"):
        guide(Y, W[:, :1])


def test_a_model_that_observes_nothing_but_is_given_something() -> None:
    def prior(w: Tensor) -> None:
        with pyro.plate("data", len(w)):
            z = pyro.sample("z", dist.Bernoulli(0.5))
            pyro.factor("f", z * w)

    guide = AutoDiscreteMeanField(prior, amortize=10)
    train(prior, guide, Y, steps=300, lr=0.05)
    assert torch.allclose(guide.marginals(Y)["z"], torch.sigmoid(Y), atol=0.05)


def test_what_is_not_read_is_told_of() -> None:
    def many(y: Tensor, table: Tensor) -> None:
        regression(y, table[:1].expand(len(y), 2))

    with pytest.warns(UserWarning, match=r"model's arguments not 'w' \[8, 2\] \(a network of your own\).*input="):
        AutoDiscreteMeanField(regression, amortize=nn.Linear(1, 1))(Y, W)
    with pytest.warns(UserWarning, match=r"not 'table' \[300, 2\] \(none of its first dims is a plate's\)"):
        AutoDiscreteMeanField(many, amortize=3)(Y, torch.randn(300, 2))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        AutoDiscreteMeanField(regression, amortize=nn.Linear(2, 1), input=lambda y, w: w)(Y, W)
        AutoDiscreteMeanField(regression)(Y, W)
