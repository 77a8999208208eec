"""Whether draws, losses and gradients are bit for bit what they were: a hash of each, compared with an earlier tree's.

    python -m benchmarks.soundness.unchanged --out then.json      # before a change that is to change no behaviour
    python -m benchmarks.soundness.unchanged --against then.json  # after it; ends with status 1 if a case differs

A tree without this script is measured from its own root, by the path of this file: the package is taken from there.

Every estimator and all of its `variants()` run on the small programs of the contract, under each objective, with one
particle and more, side by side, one after the other, in chunks and captured as a graph, each under a seed of its own;
beside them runs of what users call. Hashed are the exact bytes of the guide's draws, of losses, of every parameter's
gradient, of the estimators' state, and of `loss()`; where a case is refused, the name of the error's class. What a plan
prints (but for places in files) is compared too, and not part of the hashes. They are the same on one machine and
version of PyTorch alone, and under one seed of Python's hashes, on which the order of some sums depends: the script
starts itself anew under it.
"""

from __future__ import annotations

import functools
import hashlib
import importlib
import json
import os
import re
import sys
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from itertools import chain
from pathlib import Path
from typing import Annotated, Any

if not __package__:  # run by its path: the package is that of the present folder
    sys.path[0] = os.getcwd()

import pyro
import pyro.distributions as dist
import torch
import typer
from pyro.infer import SVI, Trace_ELBO
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn
from tqdm import tqdm

import pyro_discrete
from pyro_discrete import (
    AutoDiscreteMeanField,
    DiscretePosterior,
    TraceELBO,
    TraceExpectation,
    TraceIWELBO,
    available_estimators,
    fit,
    relax,
    to_inference_data,
)
from pyro_discrete.diagnostics import compare_estimators
from pyro_discrete.testing import Program, bound_programs, count_programs, exact_gradient, programs

__all__ = ["Case", "cases", "measured"]

STEPS = 2
"""Steps with gradients of a case; the estimators' own parts are trained in between."""
Numbers = dict[str, Tensor]


@dataclass(frozen=True)
class Case:
    """Something that is run under a seed: `run` fills numbers by name, and gives what the plan prints."""

    objective: str
    estimator: str
    where: str
    run: Callable[[Numbers], str]
    steps: int

    @property
    def key(self) -> str:
        """What the case is called."""
        return f"{self.objective} | {self.estimator} | {self.where}"


class Recorder:
    """Keeps the values that a guide draws. It is said to be the package's, and has no `__dict__`, so that nothing takes
    it for state of the program."""

    __module__ = "pyro_discrete.testing"
    __slots__ = ("values",)

    def __init__(self) -> None:
        self.values: list[tuple[str, Any]] = []

    def around(self, guide: Callable[..., Any]) -> Callable[..., Any]:
        """The guide, watched. Nothing is computed from the values in there: the package would see them escape."""

        @functools.wraps(guide)
        def watched(*args: Any, **kwargs: Any) -> Any:
            with _Watch(self):
                return guide(*args, **kwargs)

        return watched

    def draws(self) -> Numbers:
        """The draws met, each once: a program that is run again on the same ones adds nothing."""
        found: Numbers = {}
        for name, value in self.values:
            if type(value) in (Tensor, nn.Parameter) or hasattr(value, "weights"):  # else it tracks dependencies
                content = getattr(value, "weights", value)
                found.setdefault(f"draw of {name} {digest({'': content})}", content)
        return found


class _Watch(Messenger):
    __module__ = "pyro_discrete.testing"

    def __init__(self, recorder: Recorder) -> None:
        super().__init__()
        self.recorder = recorder

    def _pyro_post_sample(self, msg: Any) -> None:
        if not msg["is_observed"]:
            self.recorder.values.append((msg["name"], msg["value"]))


def digest(numbers: Mapping[str, Tensor]) -> str:
    """A hash of names, dtypes, shapes and bytes."""
    found = hashlib.sha256()
    for name, value in numbers.items():
        value = value.detach().cpu().contiguous()
        found.update(f"{name} {value.dtype} {tuple(value.shape)} ".encode())
        found.update(value.reshape(-1).view(torch.uint8).numpy().tobytes() if value.numel() else b"")
    return found.hexdigest()[:16]


def on_program(program: Program, make: Callable[[], Any], dtype: torch.dtype, captured: bool) -> Callable[..., str]:
    """A case's run: steps of an ELBO on a small program, then its loss."""

    def run(numbers: Numbers) -> str:
        with program.running(dtype) as pair:
            torch.manual_seed(zlib.crc32(program.name.encode()))
            elbo, recorder = make(), Recorder()
            guide = pair.guide if captured else recorder.around(pair.guide)
            for step in range(STEPS):
                recorder.values.clear()  # the first step is planned on trial runs: what these draw is nobody's business
                loss = elbo.loss_and_grads(pair.model, guide, *pair.args)
                numbers[f"loss, step {step}"] = torch.tensor(loss, dtype=torch.float64)
                named = chain(sorted(pair.parameters.items()), sorted(elbo.named_parameters()))
                own = set(map(id, elbo.parameters()))
                for name, parameter in named:
                    if parameter.grad is not None:
                        numbers[f"gradient of {name}, step {step}"] = parameter.grad.detach().clone()
                        if id(parameter) in own:
                            parameter.data.sub_(0.01 * parameter.grad)
                        parameter.grad = None
            numbers["loss()"] = torch.tensor(elbo.loss(pair.model, guide, *pair.args), dtype=torch.float64)
            numbers.update(recorder.draws())
            numbers.update({f"state {n}": v for n, v in elbo.state_dict().items() if isinstance(v, Tensor)})
            numbers["random"] = torch.get_rng_state()
            return str(elbo.plan)

    return run


def small_programs() -> dict[str, Program]:
    """All programs of the contract by name, in alphabetical order."""
    try:
        marginals = importlib.import_module("pyro_discrete.testing.small_programs.marginals")
    except ModuleNotFoundError:
        marginals = importlib.import_module("pyro_discrete.diagnostics.marginal_programs")
    found = [*programs(), *count_programs(), *bound_programs()]
    found += [each for each in vars(marginals).values() if isinstance(each, Program)]
    return {each.name: each for each in sorted(found, key=lambda each: each.name)}


WAYS: dict[str, dict[str, Any]] = {
    "two": {"more": 1},
    "one after the other": {"more": 1, "vectorize_particles": False},
    "chunks": {"more": 2, "row_chunk": 2},
}
"""How a step goes besides the usual way, with the least number of particles side by side: an estimator meets each."""
CAPTURED = ("one_bernoulli", "one_categorical", "one_hot_event", "subsampled", "nested_plates", "one_poisson")
BOUNDED = (
    *("one_bernoulli", "one_categorical", "mixed_chain", "not_reparameterised", "masked_latent", "one_hot_plate"),
    *("partly_observed", "nested_plates", "words_feed_documents", "subsampled", "ragged_subsample"),
    *("global_and_layers", "words_in_documents", "global_category", "categories_in_documents", "continuous_upstream"),
    *("continuous_downstream", "one_poisson", "summed_under_a_bit"),
)
"""The programs for the importance-weighted bound."""
CLOSED = ("continuous_upstream", "continuous_downstream", "two_layers", "subsampled", "scaled", "summed_chain")
"""Those for KL terms in closed form and for weighed ones."""


def estimator_cases() -> Iterator[Case]:
    """Every variant of every estimator, and "auto", on the programs, under the objectives."""
    known = small_programs()
    variants: dict[str, list[Callable[[], Any]]] = {"auto": [lambda: "auto"]}
    for name, info in available_estimators().items():
        number = len(info.cls.variants())
        variants[name] = [lambda cls=info.cls, at=at: cls.variants()[at] for at in range(number)]

    for place, (name, makes) in enumerate(variants.items()):
        for at, make in enumerate(makes):
            example = make()
            families = getattr(example, "families", None)
            least = getattr(example, "min_particles", 1)
            alone = getattr(example, "importance_weighted", False)

            def case(
                objective: Callable[..., Any],
                program: Program,
                way: str,
                dtype: torch.dtype = torch.float64,
                name: str = name,
                at: int = at,
                make: Callable[[], Any] = make,
                **settings: Any,
            ) -> Case:
                called = objective.__name__
                run = on_program(program, lambda: objective(make(), **settings), dtype, "compile" in settings)
                return Case(called, name, f"variant {at} | {program.name} | {way}", run, STEPS + 1)

            for number, (title, program) in enumerate(known.items()):
                served = families is None or program.families <= families
                turn = (number + place + at) % (2 * len(WAYS))
                if (served or (at == 0 and turn == 0)) and (not alone or turn == 0):
                    yield case(TraceELBO, program, "usual", num_particles=least)
                if not served:
                    continue
                if turn < len(WAYS) and not alone:
                    way = [*WAYS][turn]
                    settings = dict(WAYS[way])
                    particles = max(2, least + settings.pop("more"))
                    yield case(TraceELBO, program, way, torch.float32, num_particles=particles, **settings)
                if title in CAPTURED and at == 0 and not alone:
                    yield case(TraceELBO, program, "captured", num_particles=least, compile="graph")
                if title in CLOSED and at == 0 and not alone and turn % 2:
                    yield case(TraceELBO, program, "closed", num_particles=least, analytic_kl=True)
                    yield case(TraceELBO, program, "weighed", num_particles=least, kl_weight=0.4)
                if title in BOUNDED:
                    outer = max(1, 1 if alone else least)
                    inner = max(2 + number % 2, getattr(example, "min_inner", 1))
                    settings = {"num_particles": inner, "num_outer_samples": outer}
                    if at == 0 or turn % 2:
                        yield case(TraceIWELBO, program, "usual", **settings)
                    if turn == 1:
                        yield case(TraceIWELBO, program, "one after the other", vectorize_particles=False, **settings)
                    if turn == 2:
                        yield case(TraceIWELBO, program, "chunks", row_chunk=3, **{**settings, "num_particles": 4})
                    if turn == 3:
                        more = {**settings, "num_outer_samples": outer + 1}
                        yield case(TraceIWELBO, program, "dreg, more outer samples", dreg=True, **more)
                    if title == "subsampled" and at == 0:
                        yield case(TraceIWELBO, program, "captured", compile="graph", **settings)
                if not alone and (turn % 2 == 0 if at == 0 else turn == 0):
                    weight = 0.3 * (number % 2)
                    yield case(TraceExpectation, program, "usual", num_particles=least, entropy_weight=weight)
                if not alone and turn == 4:
                    two = {"num_particles": max(2, least), "vectorize_particles": False, "entropy_weight": 0.2}
                    yield case(TraceExpectation, program, "one after the other", torch.float32, **two)


DATA = (1.7 * torch.arange(24, dtype=torch.float64)).sin().reshape(12, 2)
SERIES = (1.1 * torch.arange(6, dtype=torch.float64)).cos() * 2


def chain_model(x: Tensor) -> None:
    """A hidden chain of three states."""
    weight = pyro.param("weight", torch.tensor([[1.0, 0.2, -0.4], [0.1, 0.8, 0.3], [-0.5, 0.4, 0.9]], dtype=x.dtype))
    mean = pyro.param("mean", torch.tensor([-1.0, 0.3, 1.6], dtype=x.dtype))
    state: Any = 0
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"state_{t}", dist.Categorical(logits=weight[state]))
        pyro.sample(f"x_{t}", dist.Normal(mean[state], 0.8), obs=x[t])


def chain_guide(x: Tensor) -> None:
    """A chain too, that reads the data."""
    slope = pyro.param("slope", torch.tensor([[0.5, -0.2, 0.1], [0.3, 0.9, -0.6], [-0.4, 0.2, 0.7]], dtype=x.dtype))
    state: Any = 0
    for t in pyro.markov(range(len(x))):
        state = pyro.sample(f"state_{t}", dist.Categorical(logits=slope[state] * x[t]))


def mixture(x: Tensor) -> None:
    """Two clusters with unknown means, and a bit that says whether a datum is an outlier."""
    weights = pyro.param("weights", torch.tensor([0.3, 0.7], dtype=x.dtype), constraint=dist.constraints.simplex)
    low, high = (pyro.sample(name, dist.Normal(torch.zeros((), dtype=x.dtype), 2.0)) for name in ("low", "high"))
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Categorical(weights))
        far = pyro.sample("far", dist.Bernoulli(torch.tensor(0.1, dtype=x.dtype)))
        pyro.sample("x", dist.Normal(low + z * (high - low), 0.5 + 2 * far), obs=x)


def mixture_guide(x: Tensor) -> None:
    """For the means alone: both discrete sites are summed out."""
    for name, start in (("low", -0.5), ("high", 0.8)):
        pyro.sample(name, dist.Normal(pyro.param(f"{name}_at", torch.tensor(start, dtype=x.dtype)), 0.1))


class Network(nn.Module):
    """Three bits a datum, with networks."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.encode, self.decode = nn.Linear(2, 3, dtype=torch.float64), nn.Linear(3, 2, dtype=torch.float64)

    def model(self, x: Tensor) -> None:
        """The generative side."""
        pyro.module("network", self)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Bernoulli(torch.full((3,), 0.4, dtype=x.dtype)).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z), 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """The recognition side."""
        pyro.module("network", self)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Bernoulli(logits=self.encode(x)).to_event(1))


def stored(numbers: Numbers) -> None:
    """Note every parameter of the param store."""
    numbers.update({f"parameter {n}": p.detach().clone() for n, p in pyro.get_param_store().named_parameters()})


def svi(numbers: Numbers, elbo: Any, model: Any, guide: Any, x: Tensor, steps: int = 3) -> str:
    """Steps of Adam, and the loss in the end."""
    run = SVI(model, guide, pyro.optim.Adam({"lr": 0.02}), loss=elbo)
    losses = [run.step(x) for _ in range(steps)]
    numbers["losses"] = torch.tensor([*losses, run.evaluate_loss(x)], dtype=torch.float64)
    stored(numbers)
    return str(getattr(elbo, "plan", ""))


def of_posterior(numbers: Numbers, model: Any, guide: Any, x: Tensor) -> str:
    """All that `DiscretePosterior` gives."""
    posterior = DiscretePosterior(model, guide, num_samples=7)
    for name, found in sorted(posterior.marginals(x).items()):
        base = found
        while hasattr(base, "base_dist"):
            base = base.base_dist
        numbers[f"marginal of {name}"] = base.probs
    for what in ("samples", "most_probable", "predictive"):
        numbers.update({f"{what} of {n}": v for n, v in sorted(getattr(posterior, what)(x).items())})
    return ""


def fitted(numbers: Numbers, elbo: Any, **settings: Any) -> str:
    """Five steps of `fit`."""
    pair, settings = Network(), {"lr": 0.02, "batch_size": 4, "seed": 1, "log_every": 1, **settings}
    result = fit(pair.model, pair.guide, DATA, elbo, steps=5, progress=False, **settings)
    for name in ("loss", "validation_loss"):
        if name in result.history:
            numbers[name] = torch.as_tensor(result.history[name].values.copy())
    numbers.update({f"parameter {n}": p.detach().clone() for n, p in sorted(result.parameters.items())})
    return str(elbo.plan)


def automatic_guide(numbers: Numbers, estimator: Any, **settings: Any) -> str:
    """A guide made from a model, trained a little, and what it says then."""
    guide = AutoDiscreteMeanField(mixture, **settings)
    plan = svi(numbers, TraceELBO(estimator, num_particles=2), mixture, guide, DATA[:, 0])
    args = (DATA[:, 0],) if settings.get("amortize") else ()
    for name, value in sorted(guide.median(DATA[:, 0]).items()):
        numbers[f"median of {name}"] = value
    numbers.update({f"marginal of {name}": value for name, value in sorted(guide.marginals(*args).items())})
    return plan


def inference_data(numbers: Numbers) -> str:
    """The way into ArviZ."""
    pair = Network()
    data = to_inference_data(pair.model, pair.guide, DATA, num_samples=5)
    for group in ("posterior", "posterior_predictive", "log_likelihood", "sample_stats"):
        for name, found in sorted(data[group].data_vars.items()):
            numbers[f"{group} {name}"] = torch.as_tensor(found.values.copy())
    return ""


def relaxed(numbers: Numbers, hard: bool = False) -> str:
    """The `relax` handler under Pyro's own ELBO."""
    pair = Network()
    with relax(temperature=0.5, hard=hard):
        return svi(numbers, Trace_ELBO(), pair.model, pair.guide, DATA)


def compared(numbers: Numbers) -> str:
    """Estimators measured against the exact gradient."""
    pair, names = Network(), ["reinforce", "nvil", "disarm", "rebar"]
    found = compare_estimators(
        pair.model, pair.guide, DATA, estimators=names, draws=5, warm_up=3, progress=False
    ).dataset
    numbers.update({name: torch.as_tensor(found[name].values.copy()) for name in ("bias", "variance")})
    return ""


def oracle(numbers: Numbers) -> str:
    """The exact gradient by brute force."""
    pair = Network()
    numbers.update(sorted(exact_gradient(pair.model, pair.guide, DATA[:2]).items()))
    return ""


def everyday_cases() -> Iterator[Case]:
    """What users call, in small."""
    for estimator in ("enumerate", "rloo", "auto", "gumbel_softmax"):

        def chained(numbers: Numbers, estimator: str = estimator) -> str:
            return svi(numbers, TraceELBO(estimator, num_particles=2), chain_model, chain_guide, SERIES)

        yield Case("everyday", "a chain", estimator, chained, 4)

    def without_guide(*args: Any) -> None:
        """Draws nothing."""

    def graph(numbers: Numbers) -> str:
        return svi(numbers, TraceELBO(compile="graph"), chain_model, without_guide, SERIES)

    runs: dict[tuple[str, str], tuple[Callable[[Numbers], str], int]] = {
        ("a chain", "summed out"): (lambda n: svi(n, TraceELBO(), chain_model, without_guide, SERIES), 4),
        ("a chain", "summed out, captured"): (graph, 4),
        ("a mixture", "summed out"): (lambda n: svi(n, TraceELBO(), mixture, mixture_guide, DATA[:, 0]), 4),
        ("a mixture", "particles"): (
            lambda n: svi(n, TraceELBO(num_particles=3), mixture, mixture_guide, DATA[:, 0]),
            4,
        ),
        ("a guide from the model", "free"): (lambda n: automatic_guide(n, "rloo"), 4),
        ("a guide from the model", "auto"): (lambda n: automatic_guide(n, "auto", init="prior"), 4),
        ("a guide from the model", "network"): (lambda n: automatic_guide(n, "nvil", amortize=True), 4),
        ("posterior", "a chain"): (lambda n: of_posterior(n, chain_model, None, SERIES), 4),
        ("posterior", "a guided chain"): (lambda n: of_posterior(n, chain_model, chain_guide, SERIES), 4),
        ("posterior", "a mixture"): (lambda n: of_posterior(n, mixture, mixture_guide, DATA[:, 0]), 4),
        ("posterior", "networks"): (lambda n: of_posterior(n, (p := Network()).model, p.guide, DATA), 4),
        ("inference data", "networks"): (inference_data, 1),
        ("fit", "nvil"): (lambda n: fitted(n, TraceELBO("nvil"), validation_data=DATA[:4], validate_every=2), 5),
        ("fit", "captured"): (lambda n: fitted(n, TraceELBO("rloo", num_particles=2, compile="graph")), 5),
        ("fit", "bound"): (lambda n: fitted(n, TraceIWELBO("vimco", num_particles=3), clip_norm=1.0), 5),
        ("relax", "soft"): (relaxed, 4),
        ("relax", "hard"): (lambda n: relaxed(n, hard=True), 4),
        ("compare_estimators", "networks"): (compared, 20),
        ("exact", "networks"): (oracle, 1),
    }
    for (name, where), (run, steps) in runs.items():
        yield Case("everyday", name, where, run, steps)


def cases() -> list[Case]:
    """All cases, in an order of their own."""
    return [*estimator_cases(), *everyday_cases()]


def measured(case: Case) -> dict[str, Any]:
    """What a case gives: its hash, losses and the size of every gradient for a comparison, or the error's class."""
    numbers: Numbers = {}
    pyro.clear_param_store()
    pyro.set_rng_seed(zlib.crc32(case.key.encode()))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            plan = case.run(numbers)
        except Exception as error:  # what is refused is refused alike
            name = type(error).__name__
            return {"hash": hashlib.sha256(name.encode()).hexdigest()[:16], "error": name, "message": str(error)[:300]}
    return {
        "hash": digest(numbers),
        "draws": digest({n: v for n, v in numbers.items() if n.startswith("draw of ")}),
        "sizes": {n: _size(v) for n, v in numbers.items() if "loss" in n or n.startswith(("gradient", "parameter"))},
        "plan": re.sub(r" at \S+\.py:\d+", " at a line", plan),
    }


def _size(value: Tensor) -> list[float]:
    """Two numbers that stand for a tensor: its norm, and a weighted sum."""
    flat = value.detach().double().flatten()
    return [float(flat.norm()), float(flat @ torch.arange(1.0, 1.0 + flat.numel(), dtype=torch.float64).sin())]


def difference(now: Mapping[str, Any], then: Mapping[str, Any]) -> str:
    """In a line, how a case differs from then."""
    if "error" in now or "error" in then:
        return f"{then.get('error', 'a result')} then, {now.get('error', 'a result')} now: {now.get('message', '')}"
    sizes, before = now["sizes"], then["sizes"]
    worst: dict[str, float] = {"loss": 0.0, "gradient": 0.0}
    for name in sizes.keys() & before.keys():
        kind = "loss" if "loss" in name else "gradient"
        largest = max(map(abs, before[name] + sizes[name]))
        for one, other in zip(sizes[name], before[name], strict=True):
            apart = abs(one - other) / largest if one != other else 0.0
            worst[kind] = max(worst[kind], apart)
    missing = sorted(sizes.keys() ^ before.keys())
    draws = "draws as then" if now["draws"] == then["draws"] else "other draws"
    line = f"loss {worst['loss']:.1e}, gradients {worst['gradient']:.1e} apart (relative), {draws}"
    return line + (f"; in one of them alone: {', '.join(missing[:4])}" if missing else "")


def total(found: Mapping[str, Mapping[str, Any]], keys: list[str]) -> str:
    """One hash of several cases'."""
    return hashlib.sha256("".join(f"{key} {found[key]['hash']}\n" for key in keys).encode()).hexdigest()[:16]


def report(found: Mapping[str, dict[str, Any]], then: Mapping[str, dict[str, Any]]) -> int:
    """Print what differs from then; the number of cases that do."""
    both = [key for key in found if key in then]
    differing = [key for key in both if found[key]["hash"] != then[key]["hash"]]
    plans = [key for key in both if found[key].get("plan") != then[key].get("plan") and key not in differing]
    for key in differing:
        print(f"DIFFERS {key}: {difference(found[key], then[key])}")
    for key in plans[:20]:
        print(f"prints another plan: {key}\n  then: {then[key].get('plan')}\n  now:  {found[key].get('plan')}")
    for what, keys in (("new", found.keys() - then.keys()), ("not run now", then.keys() - found.keys())):
        if keys:
            print(f"{len(keys)} {what}, such as {min(keys)}")
    print(f"{len(both)} cases compared: {len(differing)} differ, {len(plans)} more print another plan")
    return len(differing)


def main(
    out: Annotated[Path | None, typer.Option(help="File for the cases' hashes.")] = None,
    against: Annotated[Path | None, typer.Option(help="Such a file to compare with.")] = None,
    only: Annotated[str, typer.Option(help="Glob of the cases to run, such as 'TraceELBO | rloo*'.")] = "*",
) -> None:
    """Run all cases, print a hash for each objective and estimator and one of all."""
    torch.set_num_threads(1)
    print(f"package: {Path(pyro_discrete.__file__).parent}", file=sys.stderr)
    chosen = {case.key: case for case in cases() if fnmatchcase(case.key, only)}
    found = {key: measured(case) for key, case in tqdm(chosen.items(), unit="case", mininterval=2.0, disable=None)}
    groups: dict[tuple[str, str], list[str]] = {}
    for key, case in chosen.items():
        groups.setdefault((case.objective, case.estimator), []).append(key)
    for (objective, estimator), keys in sorted(groups.items()):
        print(f"{objective:16s} {estimator:34s} {total(found, keys)}  {len(keys):4d} cases")
    errors = Counter(each["error"] for each in found.values() if "error" in each)
    print("refused: " + ", ".join(f"{name} {number}" for name, number in sorted(errors.items())), file=sys.stderr)
    if out is not None:
        out.write_text(json.dumps(found, indent=0) + "\n")
    differing = report(found, json.loads(against.read_text())) if against is not None else 0
    steps = sum(case.steps for key, case in chosen.items() if "error" not in found[key])
    print(f"total {total(found, list(chosen))} over {len(found)} cases, {steps} steps")
    if differing:
        raise typer.Exit(1)


if __name__ == "__main__":
    if os.environ.get("PYTHONHASHSEED") != "0":
        os.execve(sys.executable, sys.orig_argv, {**os.environ, "PYTHONHASHSEED": "0"})
    typer.run(main)
