"""The options that set up a run, given to every command that trains."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any

import typer

__all__ = ["LARGEST_SEED", "SETTINGS", "takes_settings"]

LARGEST_SEED = 2**32 - 1
"""That of a run's settings, which stand above torch."""

SETTINGS: dict[str, tuple[type, str]] = {
    "data": (str, "A data set from `list`. (default: digits, or a small set that the program reads)"),
    "binarisation": (str, "Of images: dynamic, static or threshold. (default: dynamic)"),
    "latents": (
        int,
        "Units a stochastic layer (sbn); one-hot variables (categorical_vae); features chosen (subset). "
        "(default: 200; 20; 3)",
    ),
    "categories": (
        int,
        "Values of a variable (categorical_vae); components, classes, states, groups, topics; parts of the guide's "
        "mixtures (structure). "
        "(default: 10; gmm, blocks 3; lca, hmm, topics, structure 4)",
    ),
    "layers": (int, "Stochastic layers, 1 to 3 (sbn). (default: 1)"),
    "hidden_layers": (int, "Hidden layers of each network. (default: sbn, structure 0, that is linear; others 1)"),
    "hidden_units": (int, "Units of a hidden layer. (default: 200; gmm, lca, hmm 32; rankings, structure 16)"),
    "prior": (str, "uniform or learned. (default: uniform; structure learned)"),
    "guide": (
        str,
        "amortised, or marginal: latents summed in the model (gmm, lca, hmm, motif, topics). (default: amortised)",
    ),
    "degrees": (str, "corrected, or equal: nodes of a group are alike (blocks). (default: corrected)"),
    "steps": (int, "Training steps. (default: 5000)"),
    "batch_size": (
        int,
        "Images, points, persons, sequences, seasons, tables, pairs, graphs, documents a step. "
        "(default: 100; rankings 10; subset, matching, structure, blocks 1)",
    ),
    "lr": (
        float,
        "Adam's learning rate. "
        "(default: 0.001 for sbn, categorical_vae; matching 0.005; blocks, topics 0.05; else 0.02)",
    ),
    "estimator_lr": (float, "The same for what the estimator itself learns. (default: 0.001)"),
    "particles": (int, "Independent draws a step. (default: the least that the estimator works with)"),
    "temperature": (float, "Of a relaxed estimator. (default: the estimator's own)"),
    "seed": (int, "Of parameters, batches and draws. (default: 0)"),
    "device": (str, "A torch device. (default: cpu)"),
    "evaluate_every": (int, "Steps between two test ELBOs. (default: a twentieth of all)"),
}
"""Type and help of each setting of `RunConfig` that the user may give; one left out stays None."""


def takes_settings(command: Callable[..., None]) -> Callable[..., None]:
    """Replace a command's parameter `settings` by one option for each of `SETTINGS`; it receives them as a dict."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.name != "settings"]
    options = [
        inspect.Parameter(
            name,
            inspect.Parameter.KEYWORD_ONLY,
            default=None,
            annotation=Annotated[kind | None, typer.Option(help=text, show_default=False)],
        )
        for name, (kind, text) in SETTINGS.items()
    ]
    parameters = [*(p.replace(kind=inspect.Parameter.KEYWORD_ONLY) for p in own), *options]

    @functools.wraps(command)
    def with_settings(**given: Any) -> None:
        settings = {name: given.pop(name) for name in SETTINGS}
        command(settings=settings, **given)

    with_settings.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    with_settings.__annotations__ = {p.name: p.annotation for p in parameters}
    return with_settings
