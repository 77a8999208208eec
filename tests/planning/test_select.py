"""Which site gets which estimator."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import NVIL, RLOO, Family, Reinforce, TraceELBO, TraceIWELBO, available_estimators
from pyro_discrete.errors import (
    DiscreteInferenceError,
    ParticleError,
    SettingError,
    UnknownEstimatorError,
    UnknownSiteError,
    UnsupportedSiteError,
)
from pyro_discrete.planning.automatic import ranking
from tests.support.pairs import DATA, layers, layers_guide, mixture, mixture_guide


def got(estimator, particles=2, guide=layers_guide, model=layers):
    elbo = TraceELBO(estimator, num_particles=particles)
    elbo.loss(model, guide, DATA)
    return {site.name: site.estimator for site in elbo.plan.sites}


def test_name_instance_dict_and_callable():
    assert got("nvil") == {"z1": "nvil", "z2": "nvil"}
    assert got(RLOO()) == {"z1": "rloo", "z2": "rloo"}
    assert got({"z1": "nvil", "z*": RLOO()}) == {"z1": "nvil", "z2": "rloo"}
    assert got({"z*": "rloo", "z2": "nvil"}) == {"z1": "rloo", "z2": "nvil"}
    assert got(lambda site: "nvil" if site.name == "z1" else None)["z1"] == "nvil"
    assert got(lambda site: "nvil" if site["fn"].event_shape else Reinforce()) == {"z1": "nvil", "z2": "reinforce"}


def test_sites_own_choice_goes_first_and_is_not_passed_to_the_model():
    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Bernoulli(0.5 * torch.ones(2)).to_event(1), infer={"estimator": "reinforce"})
            pyro.sample("z2", dist.Bernoulli(logits=z1.sum(-1)))

    assert got({"*": "nvil"}, guide=guide) == {"z1": "reinforce", "z2": "nvil"}


def test_unnamed_sites_are_left_to_auto():
    for particles in (1, 3):
        elbo = TraceELBO({"z1": "nvil"}, num_particles=particles)
        elbo.loss(layers, layers_guide, DATA)
        named, left = elbo.plan.sites
        assert (named.estimator, named.why) == ("nvil", "by name")
        assert left.why.startswith("auto: least variance x time")


def test_auto_enumerates_where_cheap_else_reads_its_table():
    def wide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(40)).to_event(1))
            pyro.sample("x", dist.Normal(z.sum(-1), 1.0), obs=x)

    def wide_guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=pyro.param("w", torch.zeros(40))).to_event(1))

    assert got("auto") == {"z1": "enumerate", "z2": "enumerate"}
    for particles in (1, 4):
        names, _ = ranking(Family.BERNOULLI, 2.0**40, 1, particles, work=1000)
        assert got("auto", particles, wide_guide, wide)["z"].partition("(")[0] == names[0]


def test_each_site_has_a_copy_of_its_own():
    mine = NVIL()
    elbo = TraceELBO(mine)
    elbo.loss(layers, layers_guide, DATA)
    assert len({id(elbo.estimators["z1"]), id(elbo.estimators["z2"]), id(mine)}) == 3


@pytest.mark.parametrize(
    ("estimator", "error", "words"),
    [
        ("reinforc", UnknownEstimatorError, "Did you mean 'reinforce'"),
        ({"z1": "rlo"}, UnknownEstimatorError, "'rloo'"),
        ({"y*": "nvil"}, UnknownSiteError, r"'y\*'.*z1"),
        ({"z11": "nvil"}, UnknownSiteError, "Did you mean 'z1'"),
        (RLOO, DiscreteInferenceError, r"RLOO\(\)"),
        (3, DiscreteInferenceError, "name, an Estimator, a dict"),
        (lambda site: "nvl", UnknownEstimatorError, "'nvil'"),
        ({"z1": 3}, DiscreteInferenceError, "'z1'"),
    ],
)
def test_wrong_selections_are_refused(estimator, error, words):
    with pytest.raises(error, match=words):
        TraceELBO(estimator, num_particles=2).loss_and_grads(layers, layers_guide, DATA)


@pytest.mark.parametrize("estimator", ["rloo", RLOO(), {"z": "rloo"}])
def test_leave_one_out_needs_another_particle(estimator):
    with pytest.raises(ParticleError, match="num_particles >= 2"):
        TraceELBO(estimator)


def test_leave_one_out_returned_by_a_callable_needs_another_particle():
    with pytest.raises(ParticleError, match="'z'"):
        TraceELBO(lambda site: "rloo").loss(mixture, mixture_guide, DATA)


def test_what_a_dict_or_a_site_names_for_a_continuous_site_must_serve_it():
    def model(x):
        with pyro.plate("data", len(x)):
            w = pyro.sample("w", dist.Normal(0.0, 1.0)) + pyro.sample("v", dist.VonMises(0.0, 1.0))
            z = pyro.sample("z", dist.Bernoulli(0.3 * torch.ones(len(x))))
            pyro.sample("x", dist.Normal(w + z, 1.0), obs=x)

    def guide(x, at=None):
        with pyro.plate("data", len(x)):
            pyro.sample("w", dist.Normal(torch.zeros(len(x)), 1.0), infer={} if at is None else {"estimator": at})
            pyro.sample("v", dist.VonMises(torch.zeros(len(x)), 1.0))
            pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(len(x))))

    rest = {"v": "reinforce", "z": "disarm"}
    assert got({"w": "rloo", "*": "rloo"}, 2, guide, model) == {"w": "pathwise", "v": "rloo", "z": "rloo"}
    assert got("disarm", 2, guide, model) == {"w": "pathwise", **rest}
    assert got({"*": "disarm"}, 2, guide, model) == {"w": "pathwise", **rest}
    with pytest.raises(UnsupportedSiteError, match=r"'disarm'.* site 'w', .*Normal .*pathwise.*Leave the site"):
        got({"w": "disarm"}, 2, guide, model)
    with pytest.raises(UnsupportedSiteError, match=r"'disarm'.* site 'v', .*or choose nvil, reinforce, rloo"):
        got({"v": "disarm"}, 2, guide, model)
    with pytest.raises(UnsupportedSiteError, match="'enumerate' does not serve site 'w'"):
        TraceELBO().loss(model, lambda x: guide(x, "enumerate"), DATA)
    with pytest.raises(UnknownEstimatorError, match="pathwise by themselves"):
        TraceELBO({"w": "pathwise"})


def test_a_key_that_is_no_name_is_refused():
    with pytest.raises(SettingError, match="3 in the estimator dict"):
        TraceELBO({3: "rloo"}, num_particles=2)  # type: ignore[dict-item]


def test_every_estimator_is_described():
    for name, info in available_estimators().items():
        assert info.cls.name == name
        assert info.summary
        assert info.reference
        assert info.families
        assert info.evaluations


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("gumbel-softmax", "gumbel_softmax"),
        ("GumbelSoftmax", "gumbel_softmax"),
        ("Gumbel Softmax", "gumbel_softmax"),
        ("GS", "gumbel_softmax"),
        ("concrete", "gumbel_softmax"),
        ("gumbel_sofmax", "gumbel_softmax"),
        ("ST", "straight_through"),
        ("straigth-through", "straight_through"),
        ("U2G", "disarm"),
        ("DisArm", "disarm"),
        ("REINFORCE", "reinforce"),
        ("score function", "reinforce"),
        ("leave-one-out", "rloo"),
        ("exact", "enumerate"),
        ("parallel", "enumerate"),
        ("IWAE", "vimco"),
        ("RWS", "reweighted_wake_sleep"),
        ("UGC", "bitflip1"),
        ("Auto", "auto"),
    ],
)
def test_other_spellings_and_other_names_lead_to_the_name(written, meant):
    with pytest.raises(UnknownEstimatorError, match=rf"no estimator named '{written}'. Did you mean '{meant}'"):
        TraceELBO(written)


def test_no_name_means_two_estimators():
    def plain(text):
        return "".join(c for c in text.lower() if c.isalnum())

    names: dict[str, str] = {}
    for name, info in available_estimators().items():
        assert name == info.cls.name
        for text in {plain(t) for t in (name, info.cls.__name__, *info.also_known)}:
            assert names.setdefault(text, name) == name


def test_what_a_plan_names_is_what_is_available():
    for name, info in available_estimators().items():
        if {Family.BERNOULLI} <= info.families:
            objective = TraceIWELBO if info.cls.importance_weighted else TraceELBO
            elbo = objective(name, num_particles=max(2, info.cls.min_particles))
            elbo.loss(one_bit, one_bit_guide)
            (site,) = elbo.plan.sites
            assert site.estimator.partition("(")[0] == name


def one_bit():
    z = pyro.sample("z", dist.Bernoulli(0.5))
    pyro.sample("x", dist.Normal(z, 1.0), obs=torch.tensor(0.0))


def one_bit_guide():
    pyro.sample("z", dist.Bernoulli(logits=pyro.param("logit", torch.zeros(()))))
