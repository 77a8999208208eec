"""Programs after Pyro's examples and tutorials with discrete sites: our loss and gradients against Pyro's.

    python -m benchmarks.soundness.pyro_examples
    python -m benchmarks.soundness.pyro_examples --only "hmm*"

Mixtures, topics (LDA), the hidden Markov models 0 to 6 of Pyro's example, a semi-supervised autoencoder, a Dirichlet
process mixture, capture and recapture, a mixed hidden Markov model, annotated cells and a hidden cause, rewritten after
these on seeded data of the same shape, only smaller. Then what packages built on Pyro do, at their sizes: matrix
products of globals, distributions and networks for enumerated values alone, repeats by hand. Discrete sites are summed
out by both, so that losses and gradients are equal, not only in the mean. Ends with status 1 if one differs.
"""

from __future__ import annotations

import warnings
from fnmatch import fnmatchcase
from typing import Annotated, Any

import pyro
import torch
import typer
from pyro.infer import TraceEnum_ELBO
from torch import Tensor, nn

from benchmarks.examples.catalogue import names
from benchmarks.examples.example import EXAMPLES, Example
from pyro_discrete import TraceELBO
from pyro_discrete.errors import DiscreteInferenceError

__all__ = ["measured", "verdict"]


def measured(made: Example, elbo: Any) -> tuple[float, dict[str, Tensor]]:
    """Loss and gradients by name of a step."""
    loss = elbo.loss_and_grads(made.model, made.guide, *made.args)
    named = dict(pyro.get_param_store().named_parameters())
    if isinstance(made.guide, nn.Module):
        named |= dict(made.guide.named_parameters())
    found = {n: p.grad.clone() for n, p in named.items() if p.grad is not None}
    for parameter in named.values():
        parameter.grad = None
    return loss, found


def verdict(name: str) -> tuple[str, str]:
    """ "equal", "refused" or "wrong", and numbers or a reason."""
    with pyro.get_param_store().scope(), torch.random.fork_rng(devices=[]), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        made = EXAMPLES[name]()
        made.guide(*made.args)
        loss, gradients = measured(made, TraceEnum_ELBO(max_plate_nesting=made.nesting))
        try:
            ours, found = measured(made, TraceELBO("enumerate", max_plate_nesting=made.nesting))
        except DiscreteInferenceError as error:
            return "refused", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"
        except Exception as error:
            return "wrong", f"raised {type(error).__name__}: {str(error)[:200]}"
    text = f"loss {ours:.6f}, Pyro's {loss:.6f}"
    if abs(ours - loss) > 1e-8 * max(1.0, abs(loss)):
        return "wrong", text
    for parameter, gradient in gradients.items():
        if parameter not in found or not torch.allclose(found[parameter], gradient, rtol=1e-6, atol=1e-8):
            return "wrong", f"{text}; the gradient of {parameter} differs"
    return "equal", text


def main(only: Annotated[str, typer.Option(help="Glob of the examples to run.")] = "*") -> None:
    """Run the examples and print a line for each."""
    torch.set_default_dtype(torch.float64)
    torch.set_num_threads(1)
    kinds = []
    for name in names():
        if fnmatchcase(name, only):
            kind, text = verdict(name)
            kinds.append(kind)
            print(f"{name:28s} {kind:8s} {text}")
    raise typer.Exit("wrong" in kinds)


if __name__ == "__main__":
    typer.run(main)
