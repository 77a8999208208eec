"""One HTML file on a finished run, with everything in it: figures, curves, samples, gradient health, settings."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment

from models.errors import ConfigError
from models.runs.config import OF_A_PROGRAM, PROGRAMS
from pyro_discrete.checkpoints import write_atomically

__all__ = ["write_report"]

PICTURES = {
    "curves": "Training objective and discrete test ELBO, which may differ for a relaxed estimator: the latter counts.",
    "gradients": "Health of the gradient. Where the noise is far above the signal, steps are mostly luck; dead latent "
    "variables are the same for all data.",
    "reconstructions": "Test images, and what the model makes of one hard draw of their latents.",
    "samples": "Images that the model dreams up from its prior.",
    "found": "What was found: classes, groups, an order, a subset, a matching, a graph, a pattern, topics.",
}
"""Pictures of a run by their file's name, in the order of the report, each with a caption."""

WORDS = {
    "step": "training steps made",
    "test_elbo": "bound of the test data (ELBO), one draw at a time",
    "test_bound": "importance-weighted bound of the test data",
    "bound_samples": "draws in that bound",
    "test_log_likelihood": "log-likelihood of the test data, exact",
    "adjusted_rand_index": "agreement with the true classes (adjusted Rand index, 1: all)",
    "many_to_one_accuracy": "right classes, each found one standing for its most frequent",
    "pairs_in_order": "pairs in the order of their standing, share",
    "mm_pairs_in_order": "the same by Hunter's MM fit",
    "test_r_squared": "variance of the test data explained (R²)",
    "lasso_r_squared": "the same by the lasso",
    "test_accuracy": "right predictions of the test data, share",
    "lasso_accuracy": "the same by the lasso",
    "right_features": "right features found, share",
    "lasso_right_features": "the same by the lasso",
    "inclusion_error": "largest error of a feature's probability",
    "ms_per_step": "milliseconds a step",
    "data": "data set",
    "particles": "draws a step",
    "evaluate_every": "steps between two test bounds",
    "lr": "learning rate",
    "estimator_lr": "learning rate of what the estimator learns",
    "batch_size": "elements a step",
    "seed": "seed of parameters, batches and draws",
    "device": "torch device",
    "temperature": "temperature of the relaxation, if not the estimator's own",
}
"""What figures and settings are, where their names do not say it."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
h1 { font-size: 1.6rem; } figcaption { color: #555; }
figure { margin: 2rem 0; overflow-x: auto; } img { width: 100%; min-width: 44rem; }
figcaption { position: sticky; left: 0; }
table { border-collapse: collapse; } td, th { padding: 0.2rem 1rem 0.2rem 0; text-align: left; vertical-align: top; }
th { font-weight: 600; } td { white-space: nowrap; }
tr { border-bottom: 1px solid #ddd; }
</style>
</head>
<body>
<h1>{{ title }}</h1>
<p>{{ config.steps }} steps, seed {{ config.seed }}.
Bounds are in nats per element of the test data, from hard samples.</p>
<h2>Figures</h2>
<table>{% for name, value in summary.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
{% for picture in pictures %}<figure><img alt="{{ picture.name }}" src="data:image/png;base64,{{ picture.data }}">
<figcaption>{{ picture.caption }}</figcaption></figure>
{% endfor %}<h2>Settings</h2>
<table>{% for name, value in settings.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
</body>
</html>
"""


def write_report(folder: Path, out: Path | None = None) -> Path:
    """Write the report on the run in `folder` to `out` (by default `report.html` beside it), and return its path.

    Raises `ConfigError` if the folder does not hold a finished run.
    """
    config, summary = (_read(folder, name) for name in ("config.json", "summary.json"))
    pictures = [
        {"name": name, "caption": caption, "data": base64.b64encode((folder / f"{name}.png").read_bytes()).decode()}
        for name, caption in PICTURES.items()
        if (folder / f"{name}.png").exists()
    ]
    page = Environment(autoescape=True).from_string(TEMPLATE)
    out = folder / "report.html" if out is None else out
    others = OF_A_PROGRAM - PROGRAMS[config["program"]].defaults.keys()
    settings = {
        _words(name): "none" if value is None else value for name, value in config.items() if name not in others
    }
    shown = {_words(name): _shown(value) for name, value in summary.items()}
    title = f"{config['program']} on {config['data']}, trained with {config['estimator']}"
    write_atomically(out, page.render(title=title, config=config, summary=shown, settings=settings, pictures=pictures))
    return out


def _read(folder: Path, name: str) -> dict[str, Any]:
    try:
        return json.loads((folder / name).read_text())
    except FileNotFoundError as error:
        raise ConfigError(
            f"{folder} holds no {name}: a report is written on a finished run, the --out of `python -m models train`."
        ) from error
    except ValueError as error:
        raise ConfigError(f"{folder / name} is damaged: it is no JSON.") from error


def _words(name: str) -> str:
    return WORDS.get(name, name.replace("_", " "))


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
