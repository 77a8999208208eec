"""States and a checkpoint that an earlier version saved, and the numbers with which they went on.

`python -m tests.support.earlier_states` made the files in `tests/data`, with version 0.1.0 as it was at commit c991994
(before the modules moved into folders), PyTorch 2.13.0 and Pyro 1.9.2. They stand for what users have saved: made
again, they would say nothing of that. A change that cannot read them needs a way to, or a line in `CHANGELOG.md`.

- `elbo_states/<case>.pt`: the `state_dict` of the case's ELBO after `LEARNED` steps.
- `elbo_numbers.json`: case -> the next `FURTHER` steps: the loss, and what `summary` says of each parameter's gradient.
- `fit_checkpoint.pt`: what `fit` wrote after `BROKEN_OFF` of `STEPS` steps.
- `fit_numbers.json`: what the uninterrupted run recorded, and what `summary` says of its parameters in the end.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn
from tqdm import tqdm

import pyro_discrete
from pyro_discrete import (
    NVIL,
    REBAR,
    RELAX,
    RODEO,
    DoubleCV,
    FitResult,
    GumbelSoftmax,
    LearnedTemperature,
    LinearDecay,
    MuProp,
    OptimalControlVariate,
    TraceELBO,
    TraceExpectation,
    TraceIWELBO,
    fit,
)

__all__ = [
    "BROKEN_OFF",
    "CASES",
    "FILES",
    "STEPS",
    "Layers",
    "fitted",
    "learned",
    "next_steps",
    "numbers_of",
    "state_file",
]

FILES = Path(__file__).resolve().parents[1] / "data"
LEARNED, FURTHER = 4, 2
BROKEN_OFF, STEPS = 7, 15
DATA = (1.7 * torch.arange(18, dtype=torch.float64)).sin().reshape(6, 3)

Case = Callable[[], Any]
CASES: dict[str, Case] = {
    "nvil": lambda: TraceELBO("nvil"),
    "nvil_with_optimiser": lambda: TraceELBO(NVIL(hidden=5, learning_rate=0.01)),
    "nvil_of_own_network": lambda: TraceELBO(NVIL(network=nn.Linear(3, 1, dtype=torch.float64))),
    "nvil_captured": lambda: TraceELBO(NVIL(hidden=5, learning_rate=0.01), compile="graph"),
    "relax": lambda: TraceELBO(RELAX(hidden=5)),
    "relax_as_black_box": lambda: TraceELBO(RELAX(black_box=True, hidden=5)),
    "rebar": lambda: TraceELBO("rebar"),
    "rodeo": lambda: TraceELBO({"z1": RODEO(hidden=5), "z2": "rloo"}, num_particles=3),
    "muprop": lambda: TraceELBO(MuProp(decay=0.8)),
    "double_cv": lambda: TraceELBO("double_cv", num_particles=2),
    "double_cv_from_start": lambda: TraceELBO(DoubleCV(alpha=-0.5), num_particles=3),
    "optimal_control_variate": lambda: TraceELBO("optimal_control_variate"),
    "optimal_control_variate_of_site": lambda: TraceELBO(OptimalControlVariate(per="site", decay=0.8)),
    "auto": lambda: TraceELBO("auto", num_particles=2),
    "several": lambda: TraceELBO({"z1": NVIL(hidden=5, input="x"), "z*": REBAR(temperature=0.4)}),
    "learned_temperature": lambda: TraceELBO(GumbelSoftmax(temperature=LearnedTemperature(0.6))),
    "schedules": lambda: TraceELBO(
        GumbelSoftmax(temperature=LinearDecay(1.0, 0.2, steps=8)), kl_weight=LinearDecay(0.2, 1.0, steps=8)
    ),
    "one_after_the_other": lambda: TraceELBO(MuProp(), num_particles=2, vectorize_particles=False),
    "bound": lambda: TraceIWELBO(NVIL(hidden=5), num_particles=3),
    "bound_of_two_kinds": lambda: TraceIWELBO({"z1": "vimco", "z2": "muprop"}, num_particles=3, num_outer_samples=2),
    "reward": lambda: TraceExpectation(NVIL(hidden=5), entropy_weight=0.1),
    "reward_with_slopes": lambda: TraceExpectation({"z1": RELAX(hidden=5), "z2": "double_cv"}, num_particles=2),
}


class Layers(nn.Module):
    """Bits and a one-hot vector for each datum; every parameter has a given value.

    - `wide`: with so many bits that "auto" does not sum them out.
    """

    def __init__(self, wide: bool = False) -> None:
        super().__init__()
        self.bits = 12 if wide else 4
        make = {"encode": (3, self.bits), "up": (self.bits, 3), "down": (3, self.bits), "decode": (self.bits, 3)}
        for number, (name, (inputs, outputs)) in enumerate(make.items()):
            layer = nn.Linear(inputs, outputs, dtype=torch.float64)
            for place, parameter in enumerate(layer.parameters()):
                angles = torch.arange(parameter.numel(), dtype=torch.float64) * 1.3 + number + 2 * place
                nn.init.zeros_(parameter).data.add_(angles.sin().reshape(parameter.shape))
            self.add_module(name, layer)

    def model(self, x: Tensor) -> None:
        """Its factor is what counts for the expectation of a reward."""
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.OneHotCategorical(logits=torch.tensor([0.2, -0.4, 0.1], dtype=x.dtype)))
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.down(z2)).to_event(1))
            pyro.sample("x", dist.Normal(self.decode(z1), 0.8).to_event(1), obs=x)
            pyro.factor("reward", -(z1.sum(-1) - 1.5).square() * (1 + z2[..., 0]))

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Bernoulli(logits=self.encode(x)).to_event(1))
            pyro.sample("z2", dist.OneHotCategorical(logits=self.up(z1)))


def state_file(case: str) -> Path:
    """Where the state of a case's ELBO is."""
    return FILES / "elbo_states" / f"{case}.pt"


def pair_of(case: str) -> Layers:
    """The pair of a case."""
    return Layers(wide=case == "auto")


def learned(case: str) -> dict[str, Any]:
    """The state of the case's ELBO after some steps that train the estimators' own parts, and the pair not."""
    torch.manual_seed(1)
    elbo, pair = CASES[case](), pair_of(case)
    for _ in range(LEARNED):
        elbo.zero_grad()
        elbo.loss_and_grads(pair.model, pair.guide, DATA)
        own = [p for p in elbo.parameters() if p.grad is not None]
        if own:
            torch.optim.Adam(own, lr=0.05).step()
    return elbo.state_dict()


def summary(tensor: Tensor) -> list[float]:
    """Two numbers that change with any entry: the norm, and a weighted sum."""
    flat = tensor.detach().double().flatten()
    weights = torch.arange(1, 1 + flat.numel(), dtype=torch.float64).sin()
    return [float(f"{number:.10g}") for number in (flat.norm(), flat @ weights)]


def next_steps(elbo: Any, case: str) -> list[dict[str, Any]]:
    """Loss and gradients of an ELBO's next steps under a seed, as plain numbers; what the caller trains stays."""
    torch.manual_seed(2)
    steps, pair = [], pair_of(case)
    for _ in range(FURTHER):
        elbo.zero_grad()
        pair.zero_grad()
        loss = elbo.loss_and_grads(pair.model, pair.guide, DATA)
        steps.append({"loss": loss})
        for whose, module in (("pair", pair), ("own", elbo)):
            steps[-1][whose] = {name: summary(p.grad) for name, p in module.named_parameters() if p.grad is not None}
    return steps


class Normalised(Layers):
    """The same with a buffer that every step changes."""

    def __init__(self) -> None:
        super().__init__()
        self.normalise = nn.BatchNorm1d(3, dtype=torch.float64)

    def guide(self, x: Tensor) -> None:
        super().guide(self.normalise(x))


def noisy(x: Tensor) -> Tensor:
    """A transform that draws from torch and from NumPy."""
    return x + 0.1 * torch.randn_like(x) + 0.1 * float(np.random.rand())  # noqa: NPY002


def fitted(steps: int, checkpoint: Path, resume: bool = False) -> FitResult:
    """A run of `fit` of a new pair, as in a new process."""
    pyro.clear_param_store()
    pair = Normalised()
    return fit(
        pair.model,
        pair.guide,
        DATA,
        TraceELBO(NVIL(hidden=5)),
        lr=0.02,
        batch_size=4,
        steps=steps,
        seed=3,
        transform=noisy,
        scheduler=lambda optimizer: torch.optim.lr_scheduler.StepLR(optimizer, 3, 0.8),
        clip_norm=20.0,
        log_every=1,
        validation_data=DATA[:4],
        validate_every=4,
        checkpoint=checkpoint,
        resume=resume,
        progress=False,
        metadata={"of": "the tests"},
    )


def numbers_of(result: FitResult) -> dict[str, Any]:
    """What a run recorded and ended with, as plain numbers."""
    history = {name: result.history[name].values.tolist() for name in ("loss", "lr", "validation_loss")}
    return {**history, "parameters": {name: summary(p) for name, p in result.parameters.items()}}


def write(name: str, content: dict[str, Any]) -> None:
    """A file of numbers."""
    (FILES / name).write_text(json.dumps(content).replace("}, ", "},\n") + "\n")


def main() -> None:
    """Make all files anew."""
    (FILES / "elbo_states").mkdir(parents=True, exist_ok=True)
    versions = {"pyro_discrete": pyro_discrete.__version__, "torch": torch.__version__, "pyro": pyro.__version__}
    numbers = {}
    for case in tqdm(CASES, unit="case"):
        pyro.clear_param_store()
        torch.save(learned(case), state_file(case))
        pyro.clear_param_store()  # the ELBO that follows is that of a new process
        elbo = CASES[case]()
        elbo.load_state_dict(torch.load(state_file(case), weights_only=True))
        numbers[case] = next_steps(elbo, case)
    write("elbo_numbers.json", {"versions": versions, "cases": numbers})
    for name in ("fit_checkpoint.pt", "whole.pt"):
        (FILES / name).unlink(missing_ok=True)
    fitted(BROKEN_OFF, FILES / "fit_checkpoint.pt")
    whole = numbers_of(fitted(STEPS, FILES / "whole.pt"))
    (FILES / "whole.pt").unlink()
    write("fit_numbers.json", {"versions": versions, "run": whole})


if __name__ == "__main__":
    main()
