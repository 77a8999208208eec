"""What a program may branch on: what can be watched is, and of what cannot nothing is known; never a stale answer.

A branch on a value of Python's decides whether the term of x reads z. The value is changed after the first step; the
gradients here are exact means, z forced on the estimator's draws, against a sum over the two values of z by hand.
"""

from __future__ import annotations

import argparse
import collections
import contextvars
import dataclasses
import datetime
import enum
import functools
import io
import itertools
import operator
import os
import pathlib
import random
import sys
import threading
import time
import types
import weakref
from typing import ClassVar

import numpy as np
import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer.autoguide import AutoNormal
from pyro.nn import PyroModule, PyroSample
from pyro.poutine.messenger import Messenger
from torch import nn

from pyro_discrete import TraceELBO
from pyro_discrete.inspection.dependencies import Dependencies
from pyro_discrete.inspection.wiring import Wiring
from pyro_discrete.programs.pair import Pair
from pyro_discrete.programs.python_state import PythonState
from tests.support.forced import Forced

PHI = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
X = torch.tensor(3.0, dtype=torch.float64)


def body(use):
    z = pyro.sample("z", dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))
    pyro.sample("x", dist.Normal(3 * z if use else torch.zeros_like(X), 1.0), obs=X)


def guide(*_):
    pyro.sample("z", dist.Bernoulli(logits=PHI))


def gradient(elbo, model, args):
    """The mean of the estimates over both values of z."""
    total = 0.0
    for value in (0.0, 1.0):
        Forced.forced["z"], PHI.grad = value, None
        elbo.loss_and_grads(model, guide, *args)
        total = total + float(PHI.sigmoid() if value else 1 - PHI.sigmoid()) * PHI.grad
    PHI.grad = None
    return total


def exact(use):
    q = torch.stack([1 - PHI.sigmoid(), PHI.sigmoid()])
    means = torch.tensor([0.0, 3.0 if use else 0.0], dtype=torch.float64)
    loss = -(q * (dist.Normal(means, 1.0).log_prob(X) + torch.tensor(0.5).log() - q.log())).sum()
    return torch.autograd.grad(loss, PHI)[0]


def known_of(elbo, model, args) -> Dependencies:
    return elbo.plan.dependencies(Pair(model, guide, args, {}))


@dataclasses.dataclass
class Batch:
    use: bool


@dataclasses.dataclass(frozen=True)
class Nested:
    inner: list


class Slots:
    __slots__ = ("use",)

    def __init__(self, use=False):
        self.use = use


class Bare:
    def __init__(self, use=False):
        self.use = use


class Settings:
    use = False


class Switch(enum.Enum):
    OFF = 0
    ON = 1


Point = collections.namedtuple("Point", "use")
OTHER = types.ModuleType("other_settings")
ARRAY = np.array([False])
FLAGS = {"use": False}
GLOBAL = False


def labelled(): ...


def helper():
    return GLOBAL


def body_by_default(use=False):
    body(use)


class Private(PyroModule):
    def __init__(self):
        super().__init__()
        self._use = False

    def forward(self):
        body(self._use)


class ByProperty:
    def __init__(self):
        self.level = 0

    @property
    def use(self):
        return self.level > 1

    def __call__(self):
        body(self.use)


class ByLookUp:
    def __getattr__(self, name):
        return FLAGS["use"]


class Parent(nn.Module):
    def __init__(self):
        super().__init__()
        self.part, self.layers = nn.Identity(), nn.ModuleList([nn.Identity()])

    def forward(self):
        body(self.part(torch.zeros(2)).shape[0] > 2 or len(self.layers) > 1)


class Longer(nn.Module):
    def forward(self, x):
        return torch.cat([x, x])


class ByTraining(nn.Module):
    def forward(self):
        body(not self.training)


class Told:
    level = 0

    def __repr__(self):
        return str(self.level)


class WithTable:
    table: ClassVar = {"use": False}


class Descriptor:
    value = False

    def __get__(self, owner, kind):
        return self.value


class HasDescriptor:
    use = Descriptor()


class MetaOfMeta(type):
    level = 0

    @property
    def use(cls):
        return cls.level > 0


class Meta(metaclass=MetaOfMeta):
    pass


class Sampled(PyroModule):
    def __init__(self):
        super().__init__()
        self.level = 0
        self.z = PyroSample(lambda self: dist.Bernoulli(torch.tensor(0.5, dtype=torch.float64)))

    def forward(self):
        z = self.z
        pyro.sample("x", dist.Normal(3 * z if self.level else torch.zeros_like(X), 1.0), obs=X)


class Masking(Messenger):
    def __init__(self):
        super().__init__()
        self.use = False

    def _pyro_post_sample(self, msg):
        if self.use and msg["name"] == "none":
            msg["stop"] = True


def by_computed_name(settings, part):
    return getattr(settings, "us" + part)


ARGUMENTS = {
    "number": (lambda b: body(b), 0, 1),
    "string": (lambda b: body(b == "on"), "off", "on"),
    "dataclass": (lambda b: body(b.use), Batch(False), Batch(True)),
    "dataclass in a dataclass": (lambda b: body(b.inner[0].use), Nested([Batch(False)]), Nested([Batch(True)])),
    "slots": (lambda b: body(b.use), Slots(False), Slots(True)),
    "object": (lambda b: body(b.use), Bare(False), Bare(True)),
    "namedtuple": (lambda b: body(b.use), Point(False), Point(True)),
    "namespace": (lambda b: body(b.use), types.SimpleNamespace(use=False), types.SimpleNamespace(use=True)),
    "parsed options": (lambda b: body(b.use), argparse.Namespace(use=False), argparse.Namespace(use=True)),
    "long list": (lambda b: body(b[70]), [False] * 80, [False] * 70 + [True] * 10),
    "set": (lambda b: body("on" in b), {"off"}, {"on"}),
    "keys of a dict": (lambda b: body("on" in b), {"off": X}, {"on": X}),
    "order of a dict": (lambda b: body(next(iter(b)) == "on"), {"off": 0, "on": 0}, {"on": 0, "off": 0}),
    "NumPy array": (lambda b: body(b[0]), np.array([False]), np.array([True])),
    "NumPy scalar": (lambda b: body(b), np.bool_(False), np.bool_(True)),
    "NumPy array in a list": (lambda b: body(b[0][0]), [np.array([0])], [np.array([1])]),
    "enumeration": (lambda b: body(b is Switch.ON), Switch.OFF, Switch.ON),
    "class": (lambda b: body(b is Slots), Bare, Slots),
    "function": (lambda b: body(b()), lambda: False, lambda: True),
    "date": (lambda b: body(b.year > 2000), datetime.date(1900, 1, 1), datetime.date(2100, 1, 1)),
    "dtype": (lambda b: body(b is torch.float64), torch.float32, torch.float64),
    "attribute of a tensor": (lambda b: body(b.use), X.clone(), X.clone()),
}
ARGUMENTS["attribute of a tensor"][1].use, ARGUMENTS["attribute of a tensor"][2].use = False, True


@pytest.mark.parametrize("name", ARGUMENTS)
def test_an_argument_is_watched_by_what_it_holds(name):
    model, *arguments = ARGUMENTS[name]
    elbo = TraceELBO(Forced(), vectorize_particles=False)
    for use in (False, True, False):
        assert torch.isclose(gradient(elbo, model, (arguments[use],)), exact(use), rtol=1e-9)
        known = known_of(elbo, model, (arguments[use],))
        assert known.known, known.reason
        assert known.influences("z", ("model", "x")) is use


def watched():
    """Name to a model and what throws the switch."""
    bare, slots, by_property, parent, private = Bare(), Slots(), ByProperty(), Parent(), Private()
    container, late, namespace = {"a": [{"use": False}]}, Bare(), types.SimpleNamespace(use=False)
    queue, many, tensors = collections.deque([False]), [False] * 100, [torch.zeros(1)]
    training, bound, hooked = ByTraining(), partial_of(FLAGS), nn.Sequential(nn.Identity())
    cell, replaced, prior = False, types.ModuleType("replaced"), [dist.Normal(0.0, 1.0)]
    replaced.see, late.__dict__ = (lambda: False), {}

    shown, told, described, sampled, handler = Batch(False), Told(), HasDescriptor(), Sampled(), Masking()
    weak = weakref.ref(bare)
    made, kept = [dist.Normal(torch.zeros(2), 1.0).to_event(1)], Bare()
    kept.made = made[0]
    Switch.ON.use = WithTable.table["use"] = Descriptor.value = False
    MetaOfMeta.level, masked = 0, handler(lambda: body(handler.use))

    def throw_cell():
        nonlocal cell
        cell = True

    def throw_global(value=True):
        global GLOBAL
        GLOBAL = value

    def by_import():
        import other_settings  # pyright: ignore[reportMissingImports]

        body(other_settings.use)

    def from_import():
        from other_settings import use  # pyright: ignore[reportMissingImports]

        body(use)

    @functools.wraps(torch.relu)
    def named():
        return bare.use

    @torch.no_grad()
    def decorated():
        return bare.use

    def inner():
        def see():
            return [each() for each in (lambda: slots.use,)]

        return see()[0]

    @functools.cache
    def cached():
        return FLAGS["use"]

    return {
        "attribute of an object": (lambda: body(bare.use), lambda: setattr(bare, "use", True)),
        "through a decorated function": (lambda: body(decorated()), lambda: setattr(bare, "use", True)),
        "slot": (lambda: body(slots.use), lambda: setattr(slots, "use", True)),
        "lambda in a function in a function": (lambda: body(inner()), lambda: setattr(slots, "use", True)),
        "property": (by_property, lambda: setattr(by_property, "level", 2)),
        "bound method": (by_property.__call__, lambda: setattr(by_property, "level", 2)),
        "replaced submodule": (parent, lambda: setattr(parent, "part", Longer())),
        "appended submodule": (parent, lambda: parent.layers.append(nn.Identity())),
        "hook": (parent, lambda: parent.part.register_forward_hook(lambda *_: torch.zeros(3))),
        "mode of a module": (training, lambda: training.eval()),
        "private attribute": (private, lambda: setattr(private, "_use", True)),
        "method replaced in the class": (
            lambda: body(ByLookUp().use),
            lambda: FLAGS.update(use=True),
        ),
        "item in a container in a container": (
            lambda: body(container["a"][0]["use"]),
            lambda: container["a"][0].update(use=True),
        ),
        "container that is another": (lambda: body(container["a"][0]["use"]), lambda: container.update(a=[{"use": 1}])),
        "attribute that comes later": (lambda: body(getattr(late, "use", False)), lambda: setattr(late, "use", True)),
        "attribute of a class that comes later": (
            lambda: body(getattr(late, "later", False)),
            lambda: setattr(Bare, "later", True),
        ),
        "attribute by a computed name": (
            lambda: body(by_computed_name(namespace, "e")),
            lambda: setattr(namespace, "use", True),
        ),
        "attribute by `attrgetter`": (
            lambda: body(operator.attrgetter("use")(namespace)),
            lambda: setattr(namespace, "use", True),
        ),
        "representation": (lambda: body("use=True" in repr(shown)), lambda: setattr(shown, "use", True)),
        "representation of the program's own": (lambda: body(str(told) == "1"), lambda: setattr(told, "level", 1)),
        "attribute of an enumeration": (lambda: body(Switch.ON.use), lambda: setattr(Switch.ON, "use", True)),
        "dict of a class": (lambda: body(WithTable.table["use"]), lambda: WithTable.table.update(use=True)),
        "descriptor": (lambda: body(described.use), lambda: setattr(Descriptor, "value", True)),
        "metaclass": (lambda: body(Meta.use), lambda: setattr(MetaOfMeta, "level", 1)),
        "sample of a PyroModule": (sampled, lambda: setattr(sampled, "level", 1)),
        "handler": (masked, lambda: setattr(handler, "use", True)),
        "vars": (lambda: body(vars(namespace)["use"]), lambda: setattr(namespace, "use", True)),
        "deque": (lambda: body(queue[0]), lambda: queue.__setitem__(0, True)),
        "long list": (lambda: body(many[90]), lambda: many.__setitem__(90, True)),
        "shapes in a list": (lambda: body(tensors[0].numel() > 1), lambda: tensors.__setitem__(0, torch.zeros(2))),
        "type of a distribution": (
            lambda: body(isinstance(prior[0], dist.Cauchy)),
            lambda: prior.__setitem__(0, dist.Cauchy(0.0, 1.0)),
        ),
        "what a distribution is made of": (
            lambda: body(isinstance(made[0].base_dist, dist.Cauchy)),
            lambda: made.__setitem__(0, dist.Cauchy(torch.zeros(2), 1.0).to_event(1)),
        ),
        "attribute that is another distribution": (
            lambda: body(isinstance(kept.made.base_dist, dist.Cauchy)),
            lambda: setattr(kept, "made", dist.Cauchy(torch.zeros(2), 1.0).to_event(1)),
        ),
        "function under another's name": (lambda: body(named()), lambda: setattr(bare, "use", True)),
        "weak reference": (lambda: body(weak().use and bare.use), lambda: setattr(bare, "use", True)),
        "item of a partial": (bound, lambda: FLAGS.update(use=True)),
        "cell": (lambda: body(cell), throw_cell),
        "global variable": (lambda: body(GLOBAL), throw_global),
        "global variable of a helper": (lambda: body(helper()), throw_global),
        "NumPy global": (lambda: body(ARRAY[0]), lambda: ARRAY.fill(True)),
        "class attribute": (lambda: body(Settings.use), lambda: setattr(Settings, "use", True)),
        "other module": (lambda: body(OTHER.use), lambda: setattr(OTHER, "use", True)),
        "function of another module": (
            lambda: body(replaced.see()),
            lambda: setattr(replaced, "see", lambda: True),
        ),
        "module imported inside": (by_import, lambda: setattr(OTHER, "use", True)),
        "name imported inside": (from_import, lambda: setattr(OTHER, "use", True)),
        "function attribute": (lambda: body(labelled.use), lambda: setattr(labelled, "use", True)),
        "default": (body_by_default, lambda: setattr(body_by_default, "__defaults__", (True,))),
        "names of params": (lambda: body("on" in pyro.get_param_store()), lambda: pyro.param("on", torch.zeros(1))),
        "hook of a library's module": (
            lambda: body(hooked(torch.zeros(2)).numel() > 2),
            lambda: hooked.register_forward_pre_hook(lambda *_: (torch.zeros(3),)),
        ),
        "cache": (lambda: body(cached()), lambda: (FLAGS.update(use=True), cached.cache_clear())),
    }


def partial_of(flags):
    return functools.partial(lambda flags: body(flags["use"]), flags=flags)


@pytest.fixture(autouse=True)
def switched_off(monkeypatch):
    """All switches off, and the param store empty."""
    global GLOBAL
    GLOBAL, Settings.use, OTHER.use, labelled.use, FLAGS["use"] = False, False, False, False, False
    ARRAY.fill(False)
    body_by_default.__defaults__ = (False,)
    monkeypatch.setitem(sys.modules, "other_settings", OTHER)
    monkeypatch.delenv("STALE", raising=False)
    pyro.clear_param_store()
    yield
    if "later" in vars(Bare):
        del Bare.later


@pytest.mark.parametrize("name", watched())
def test_what_code_can_see_is_watched(name):
    model, throw = watched()[name]
    elbo = TraceELBO(Forced(), vectorize_particles=False)
    for use in (False, True):
        if use:
            throw()
        assert torch.isclose(gradient(elbo, model, ()), exact(use), rtol=1e-9)
        known = known_of(elbo, model, ())
        assert known.known, known.reason
        assert known.influences("z", ("model", "x")) is use


HELD = Bare()


def unwatched(path):
    """Name to a model, what throws the switch, and a word of the reason."""
    generator, count, text = (flag for flag in [False] * 10_000), itertools.count(), io.StringIO("0" * 10_000)
    drawn, rng, variable = random.Random(0), np.random.default_rng(0), contextvars.ContextVar("use", default=False)
    local, held, huge = threading.local(), HELD, np.zeros(100_000)
    referred, objects, file = weakref.proxy(held), np.array([{"use": False}], dtype=object), pathlib.Path(path)
    local.use = False
    gone = [Bare()]
    lost = weakref.ref(gone[0])
    many = list(range(20_000))
    now, clock = datetime.datetime(1900, 1, 1), time.time

    def written():
        with open(path) as stream:
            return stream.read() == "on"

    def later():
        import calendar

        return calendar.isleap(1900)

    return {
        "os.environ": (lambda: "STALE" in os.environ, lambda: os.environ.update(STALE="1"), "os"),
        "open": (written, lambda: file.write_text("on"), "open"),
        "path": (lambda: file.read_text() == "on", lambda: file.write_text("on"), "pathlib"),
        "clock": (lambda: clock() < 0, None, "time"),
        "module time": (lambda: time.time() < 0, None, "time"),
        "date of today": (lambda: datetime.datetime.now() < now, None, "datetime"),
        "generator": (lambda: next(generator), None, "generator"),
        "iterator": (lambda: next(count) < 0, None, "count"),
        "stream": (lambda: text.read(1) == "1", None, "StringIO"),
        "random": (lambda: random.random() < 0, None, "random"),
        "random generator": (lambda: drawn.random() < 0, None, "random"),
        "NumPy's random generator": (lambda: rng.random() < 0, None, "numpy"),
        "NumPy's random": (lambda: np.random.rand() < 0, None, "random numbers"),  # noqa: NPY002
        "file of NumPy's": (lambda: np.load(path), None, "load"),
        "file of torch's": (lambda: torch.load(path), None, "load"),
        "eval": (lambda: eval("FLAGS['use']"), lambda: FLAGS.update(use=True), "eval"),
        "globals": (lambda: globals()["GLOBAL"], None, "globals"),
        "context variable": (lambda: variable.get(), lambda: variable.set(True), "ContextVar"),
        "thread's own": (lambda: local.use, lambda: setattr(local, "use", True), "local"),
        "weak reference": (lambda: lost() is None, lambda: gone.clear(), "weakref"),
        "proxy": (lambda: referred.use, None, "weakref"),
        "large array": (lambda: huge[9], lambda: huge.fill(1.0), "NumPy"),
        "array of objects": (lambda: objects[0]["use"], lambda: objects[0].update(use=True), "NumPy"),
        "too long a list": (lambda: many[0], lambda: many.__setitem__(0, 1), "20000 items"),
        "import of what is not listed": (later, None, "calendar"),
        "C": (lambda: sys.getrefcount(held) < 0, None, "sys"),
    }


def by(see):
    return lambda: body(see())


@pytest.mark.parametrize("name", unwatched("none"))
def test_of_what_cannot_be_watched_nothing_is_known(name, tmp_path, monkeypatch):
    (tmp_path / "switch").write_text("off")
    monkeypatch.setenv("STALE", "0")
    monkeypatch.delenv("STALE")
    see, throw, word = unwatched(str(tmp_path / "switch"))[name]
    if name.startswith("file of"):
        assert word in Wiring().of(Pair(by(see), guide, (), {})).reason
        return
    elbo = TraceELBO(Forced(), vectorize_particles=False)
    model = by(see)
    for use in (False, True) if throw else (False,):
        if use:
            throw()
        assert torch.isclose(gradient(elbo, model, ()), exact(use), rtol=1e-9)
        if name == "weak reference" and use:
            continue  # what is gone does not come back: the branch that this has led to is known
        assert word in known_of(elbo, model, ()).reason
        assert word in elbo.plan.costs


def test_elements_that_a_changed_value_joins_are_summed_jointly():
    psi = torch.linspace(-1, 1, 9, dtype=torch.float64, requires_grad=True)

    def model(flags):
        z = pyro.sample("z", dist.Bernoulli(torch.full((9,), 0.4, dtype=torch.float64)).to_event(1))
        joined = z.prod(-1) * 5 + z[..., 0] * z[..., 1] * 3
        pyro.sample("x", dist.Normal(joined if flags[0] else torch.zeros_like(X), 1.0), obs=X)

    def guide(flags):
        pyro.sample("z", dist.Bernoulli(logits=psi).to_event(1))

    z = torch.tensor(list(itertools.product((0.0, 1.0), repeat=9)), dtype=torch.float64)
    log_q = dist.Bernoulli(logits=psi).log_prob(z).sum(-1)
    log_p = dist.Bernoulli(torch.tensor(0.4, dtype=torch.float64)).log_prob(z).sum(-1)
    elbo = TraceELBO("enumerate")
    for flags in (np.array([False]), np.array([True]), np.array([False])):
        means = (z.prod(-1) * 5 + z[:, 0] * z[:, 1] * 3) * float(flags[0])
        exact = (log_q.exp() * (log_q - log_p - dist.Normal(means, 1.0).log_prob(X))).sum()
        expected = torch.autograd.grad(exact, psi, retain_graph=True)[0]
        assert elbo.loss(model, guide, flags) == pytest.approx(exact.item(), rel=1e-9)
        psi.grad = None
        assert elbo.loss_and_grads(model, guide, flags) == pytest.approx(exact.item(), rel=1e-9)
        assert torch.allclose(psi.grad, expected, rtol=1e-7)


def test_ordinary_programs_keep_known_dependencies():
    class Encoder(nn.Module):
        def __init__(self):
            super().__init__()
            torch.manual_seed(0)
            self.size, self.net = 3, nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.0), nn.Linear(8, 3))

        def forward(self, x):
            for _ in range(self.size - 2):
                x = x + next(self.parameters()).sum() * 0
            return self.net(x)

    @dataclasses.dataclass
    class Config:
        scale: float = 1.0
        names: tuple = ("z", "x")

    config, encoder, decoder = Config(), Encoder(), nn.Linear(3, 4)

    def model(x, weight=1.0):
        pyro.module("decoder", decoder)
        z_name, x_name = config.names
        with pyro.plate("data", len(x)), pyro.poutine.scale(scale=weight):
            z = pyro.sample(z_name, dist.Bernoulli(torch.full((3,), 0.5)).to_event(1))
            pyro.sample(x_name, dist.Normal(decoder(z), config.scale * np.sqrt(2.0)).to_event(1), obs=x)

    def guide(x, weight=1.0):
        pyro.module("encoder", encoder)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=encoder(x)).to_event(1))

    wiring, x = Wiring(), torch.zeros(5, 4)
    for weight in (0.1, 0.2, 0.3):
        assert wiring.of(Pair(model, guide, (x,), {"weight": weight})).known
    scaled = pyro.poutine.scale(model, 0.5)
    assert Wiring().of(Pair(scaled, guide, (x,), {})).known


def test_an_automatic_guide_counts_as_unchanged():
    """It makes its plates anew in every run, and looks at the signature of its model."""

    def model(x):
        with pyro.plate("components", 2):
            loc = pyro.sample("loc", dist.Normal(0.0, 3.0))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(2)))
            pyro.sample("x", dist.Normal(loc[z], 1.0), obs=x)

    automatic, x = AutoNormal(poutine.block(model, hide=["z"])), torch.tensor([0.3, -1.0, 2.0])
    elbo = TraceELBO("enumerate")
    elbo.loss_and_grads(model, automatic, x)
    state = PythonState((model, automatic), (x,))
    for _ in range(2):
        elbo.loss_and_grads(model, automatic, x)
        assert not state.unknown
        assert state.holds()
        assert not elbo.plan.met.looks


@pytest.mark.parametrize("change", ["another plate", "a list", "a size"])
def test_what_is_made_anew_is_compared_by_what_it_holds(change):
    def made(size=3, name="p", listed=(1, 2)):
        return {"plate": pyro.plate(name, size, dim=-1), "list": list(listed), "map": {"a": 1.0}}

    class Holder:
        held = None

    holder = Holder()
    holder.held = made()
    state = PythonState([lambda: holder.held])
    holder.held = made()
    assert state.holds()
    changes = {"another plate": {"name": "q"}, "a list": {"listed": (1, 3)}, "a size": {"size": 4}}
    holder.held = made(**changes[change])
    assert not state.holds()


def test_a_distribution_of_one_s_own_keeps_known_dependencies():
    """Pyro gives each of its distributions' classes a `__signature__`, which stays as it is."""

    class Bernoulli(dist.TorchDistribution):
        arg_constraints: ClassVar[dict] = {}

        @dist.constraints.dependent_property(is_discrete=True, event_dim=0)
        def support(self):
            return dist.constraints.boolean

        def __init__(self, probs, validate_args=None):
            self.probs = probs
            super().__init__(probs.shape, validate_args=validate_args)

        def expand(self, batch_shape, _instance=None):
            return type(self)(self.probs.expand(batch_shape))

        def log_prob(self, value):
            return self.slope * (value * self.probs.log() + (1 - value) * (-self.probs).log1p())

        slope = 1.0

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))
            pyro.sample("x", Bernoulli(0.2 + 0.5 * z), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(torch.full((len(x),), 0.5)))

    wiring, pair = Wiring(), Pair(model, guide, (torch.ones(3),), {})
    first = wiring.of(pair)
    assert first.known, first.reason
    assert wiring.of(pair) is first
    Bernoulli.slope = 2.0  # what its code does read is watched
    assert wiring.of(pair) is not first
