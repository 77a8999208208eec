"""How a batch is divided, and which plates are found to follow the data."""

from __future__ import annotations

from typing import Any

import pyro
import pyro.distributions as dist
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, DistributedSampler, TensorDataset

from pyro_discrete.errors import SettingError
from pyro_discrete.programs.pair import Pair
from pyro_discrete.training.batches import LoaderBatches
from pyro_discrete.training.parts import Parts, plates_that_follow
from pyro_discrete.training.ranks import Ranks


class Second(Ranks):
    """The second of three, as far as it tells itself."""

    def __init__(self) -> None:
        super().__init__()
        self.rank, self.size = 1, 3


def nothing(x: Tensor) -> None:
    pass


def pairs(model: Any, guide: Any = nothing, elements: tuple[int, int] = (3, 4)) -> tuple[Pair, Pair]:
    pyro.clear_param_store()
    few, many = (Pair(model, guide, (torch.ones(count, 2),), {}) for count in elements)
    return few, many


def observed(name: str, size: Any) -> Any:
    def model(x: Tensor) -> None:
        with pyro.plate(name, size(x)):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.flatten()[: size(x)])

    return model


@pytest.mark.parametrize(
    ("model", "found"),
    [
        (observed("data", len), {"data"}),
        (observed("numbers", lambda x: x.numel()), {"numbers"}),
        (observed("features", lambda x: 2), None),
        (observed("pairs", lambda x: len(x) - 1), "not in proportion"),
    ],
)
def test_plates_that_grow_with_the_data_are_found(model: Any, found: Any) -> None:
    if isinstance(found, set):
        assert plates_that_follow(pairs(model), (3, 4), None) == found
        return
    with pytest.raises(SettingError, match=found or "No plate follows"):
        plates_that_follow(pairs(model), (3, 4), None)


def test_a_subsample_of_fixed_size_needs_no_further_scale() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", 100, subsample=torch.arange(len(x))), pyro.plate("features", 2, dim=-2):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x.T)

    assert plates_that_follow(pairs(model), (3, 4), None) == set()


def test_two_plates_around_one_site_have_to_be_told_apart() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("rows", len(x), dim=-2), pyro.plate("columns", len(x), dim=-1):
            pyro.sample("x", dist.Normal(0.0, 1.0), obs=x @ x.T)

    with pytest.raises(SettingError, match=r"'columns' and 'rows'.*data_plate"):
        plates_that_follow(pairs(model), (3, 4), None)
    assert plates_that_follow(pairs(model), (3, 4), ["rows"]) == {"rows"}
    with pytest.raises(SettingError, match="Did you mean 'rows'"):
        plates_that_follow(pairs(model), (3, 4), ["row"])


def test_a_program_of_one_size_says_why_it_cannot_be_divided() -> None:
    def model(x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(torch.zeros(3), 1.0), obs=x[:, 0])

    with pytest.raises(SettingError, match="run on 3 and on 4 elements"):
        plates_that_follow(pairs(model), (3, 4), None)


def test_looking_leaves_params_and_random_numbers_alone() -> None:
    def model(x: Tensor) -> None:
        w = pyro.param("w", lambda: torch.randn(()))
        with pyro.plate("data", len(x)):
            pyro.sample("x", dist.Normal(w, 1.0), obs=x[:, 0])

    two = pairs(model)
    before = torch.get_rng_state()
    plates_that_follow(two, (3, 4), None)
    assert torch.equal(before, torch.get_rng_state())
    assert not list(pyro.get_param_store().keys())


class Once:
    """One batch, again and again."""

    def __init__(self, batch: Any) -> None:
        self.batch = batch

    def next_batch(self) -> Any:
        return self.batch

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None: ...


def prepared(batch: Any) -> Any:
    return (batch,), {}


def test_parts_differ_by_one_at_most_and_weigh_as_much_as_they_hold() -> None:
    part = Parts(Once(torch.arange(8)), prepared, Second(), "data", None, 0).next()
    assert (part.args[0].tolist(), part.share, part.elements) == ([3, 4, 5], 3 / 8, 8)
    none = Parts(Once(torch.arange(1)), prepared, Second(), "data", None, 0).next()
    assert (none.args, none.share, none.elements) == ((), 0.0, 1)


def test_lists_are_divided_with_tensors_and_single_numbers_go_to_all() -> None:
    batch = {"x": torch.arange(6), "names": list("abcdef"), "scale": torch.tensor(2.0), "flag": True}
    ((found,), _), *_ = [(p.args, p) for p in [Parts(Once(batch), prepared, Second(), "data", None, 0).next()]]
    assert found["x"].tolist() == [2, 3]
    assert found["names"] == ["c", "d"]
    assert (found["scale"].item(), found["flag"]) == (2.0, True)


def test_particles_see_all_of_a_batch() -> None:
    part = Parts(Once(torch.arange(7)), prepared, Second(), "particles", None, 0).next()
    assert (part.args[0].tolist(), part.share, part.elements) == (list(range(7)), 1 / 3, 7)


def test_a_loader_that_divides_by_itself_is_refused() -> None:
    data = TensorDataset(torch.arange(6))
    loader = DataLoader(data, batch_size=2, sampler=DistributedSampler(data, num_replicas=3, rank=1))
    with pytest.raises(SettingError, match="leave the sampler out"):
        Parts(LoaderBatches(loader), prepared, Second(), "data", None, 0)
