"""One HTML file on a finished run, with everything in it: figures, curves, samples, gradient health, settings."""

from __future__ import annotations

import base64
import json
from pathlib import Path
from typing import Any

from jinja2 import Environment

from models.errors import ConfigError
from pyro_discrete.checkpoints import write_atomically

__all__ = ["write_report"]

PICTURES = {
    "curves": "Training objective and discrete test ELBO, which may differ for a relaxed estimator: the latter counts.",
    "gradients": "Health of the gradient. Where the noise is far above the signal, steps are mostly luck; dead latent "
    "variables are the same for all data.",
    "reconstructions": "Test images, and what the model makes of one hard draw of their latents.",
    "samples": "Images that the model dreams up from its prior.",
    "found": "What was found: classes, an order, a subset, groups, a pattern, topics.",
}
"""Pictures of a run by their file's name, in the order of the report, each with a caption."""

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<title>{{ title }}</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; color: #222; }
figure { margin: 2rem 0; } img { max-width: 100%; } figcaption { color: #555; }
table { border-collapse: collapse; } td, th { padding: 0.2rem 1rem 0.2rem 0; text-align: left; }
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
<table>{% for name, value in config.items() %}<tr><th>{{ name }}</th><td>{{ value }}</td></tr>
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
    shown = {name.replace("_", " "): _shown(value) for name, value in summary.items()}
    title = f"{config['program']} on {config['data']}, trained with {config['estimator']}"
    write_atomically(out, page.render(title=title, config=config, summary=shown, pictures=pictures))
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


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
