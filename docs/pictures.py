"""The pictures of the site: `python docs/pictures.py` `swap`, `plan`, `states` or `gallery [MODEL ...]`.

`swap` trains the front page's program under four words, with the code taken from the page itself: 1000 steps of 100
images a word, from the same parameters, seed 0. `plan` draws the plan of the program of "How it works", which needs
Graphviz (`dot`); `states` the posterior on the page about seeing. `gallery` trains each ready model (those named; all,
if none is) by the command that its entry shows, and keeps what it drew, in few colours and without empty margins, with
the figures that it reached.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyro
import torch
from matplotlib.figure import Figure
from PIL import Image, ImageOps
from pyro.infer import SVI

from models.data.catalogue import load_data
from models.runs.config import PROGRAMS
from pyro_discrete import TraceELBO
from pyro_discrete.checkpoints import write_atomically

DOCS = Path(__file__).parent
WORDS = {
    "reinforce": ("#CC79A7", {}),
    "nvil": ("#D55E00", {}),
    "rloo": ("#009E73", {"num_particles": 2}),
    "gumbel_softmax": ("#0072B2", {}),
}
STEPS, EVERY = 1000, 50
COMMAND = (
    "python -m models train {name} --estimator rloo --steps 1500 --seed 0 --threads 1 --monitor-every 0 --out {out}"
)
DRAWN = ("found.png", "reconstructions.png", "curves.png")
"""What an entry shows: the first of these that a run has drawn."""
FIGURES = {
    "test_elbo": ("test ELBO", " nats"),
    "test_log_likelihood": ("log likelihood", " nats"),
    "adjusted_rand_index": ("adjusted Rand index", ""),
}
WIDTH, MARGIN, COLOURS = 800, 12, 64


def program() -> dict[str, Any]:
    """What the front page's first block defines, at its parameters before training."""
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    block = (DOCS / "index.md").read_text().split("```python\n")[1].split("```")[0]
    namespace: dict[str, Any] = {}
    exec(block.split("svi = ")[0], namespace)
    return namespace


def curve(word: str, settings: dict[str, Any]) -> tuple[list[int], list[float]]:
    """Steps, and nats an image of the discrete program after so many."""
    page = program()
    model, guide, images = page["model"], page["guide"], page["images"]
    svi = SVI(model, guide, pyro.optim.Adam({"lr": 0.01}), loss=TraceELBO(word, **settings))
    at, nats = [], []
    for step in range(STEPS + 1):
        if step % EVERY == 0:
            at.append(step)
            nats.append(float(svi.evaluate_loss(images)) / len(images))  # type: ignore[arg-type]
        svi.step(images[torch.randint(len(images), (100,))])
    return at, nats


def swap() -> None:
    """Write `drawings/swap.png`: what is reached, a line for each word, the words in the lines' order."""
    figure = Figure(figsize=(4.8, 4.2), dpi=110, layout="constrained")
    axes = figure.subplots()
    ends = []
    for word, (colour, settings) in WORDS.items():
        at, nats = curve(word, settings)
        axes.plot(at, nats, color=colour, linewidth=1.8)
        ends.append((nats[-1], word, colour))
    for rank, (_, word, colour) in enumerate(sorted(ends)):
        axes.text(0.97, 0.62 + 0.08 * rank, f'TraceELBO("{word}")', color=colour, ha="right", transform=axes.transAxes)
    axes.set(ylim=(19, 32), xlabel="training step", ylabel="nats an image, lower is better")
    axes.set_title("the same program, another word", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(DOCS / "drawings" / "swap.png")


def plan() -> None:
    """Write `drawings/plan.svg`: the plan of the first program of "How it works", in the theme's colours."""
    block = (DOCS / "how_it_works.md").read_text().split("```python\n")[1].split("```")[0]
    page: dict[str, Any] = {}
    pyro.clear_param_store()
    exec(block, page)
    drawn = page["elbo"].plan.render("graphviz")
    text = drawn.pipe(format="svg", encoding="utf-8")
    text = re.sub(r"<!--.*?-->\s*", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'<polygon fill="white" stroke="[a-z]*" .*?/>\s*', "", text)  # the ground
    text = re.sub(r"<title>.*?</title>\s*", "", text)
    for name, colour in (("foreground-primary", "black"), ("foreground-border", "#888888")):
        text = re.sub(rf'(fill|stroke)="{colour}"', rf'\1="var(--color-{name}, {colour})"', text)
    text = re.sub(r"<text (?![^>]*fill=)", '<text fill="var(--color-foreground-primary, black)" ', text)  # in no box
    text = text.replace("<svg ", '<svg role="img" aria-label="The plan of the program above, drawn" ', 1)
    write_atomically(DOCS / "drawings" / "plan.svg", text)


def states() -> None:
    """Write `drawings/states.png`: the posterior of the chain of "See what the estimator did"."""
    first, *_ = (DOCS / "recipes" / "see.md").read_text().split("```python\n")[1:]
    page: dict[str, Any] = {}
    pyro.clear_param_store()
    exec(first.split("```")[0], page)
    page["DiscretePosterior"](page["model"]).plot(page["x"], path=DOCS / "drawings" / "states.png")


def gallery(names: Sequence[str]) -> None:
    """Train the models, and keep their pictures and figures."""
    for name in names:
        with tempfile.TemporaryDirectory() as folder:
            words = shlex.split(COMMAND.format(name=name, out=folder))
            subprocess.run([sys.executable, *words[1:]], check=True)
            keep(name, Path(folder))


def keep(name: str, run: Path) -> None:
    """Store the picture of a finished run, in few colours, and what it reached beside the command."""
    drawn = next(run / file for file in DRAWN if (run / file).exists())
    picture = Image.open(drawn).convert("RGB")
    left, top, right, bottom = ImageOps.invert(picture).getbbox() or (0, 0, *picture.size)
    picture = ImageOps.expand(picture.crop((left, top, right, bottom)), MARGIN, "white")
    picture.thumbnail((WIDTH, WIDTH))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(DOCS / "gallery" / f"{name}.png", optimize=True)
    summary = json.loads((run / "summary.json").read_text())
    data = load_data(json.loads((run / "config.json").read_text())["data"])
    a = data.element
    reached = {
        words: f"{summary[key]:.2f}{unit and f'{unit} per {a}'}"
        for key, (words, unit) in FIGURES.items()
        if key in summary
    }
    path = DOCS / "gallery" / "gallery.json"
    kept = json.loads(path.read_text()) if path.exists() else {}
    kept[name] = {
        "command": COMMAND.format(name=name, out=f"runs/{name}"),
        "data": data.origin,
        "reached": reached,
    }
    write_atomically(path, json.dumps({each: kept[each] for each in PROGRAMS if each in kept}, indent=2) + "\n")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["swap"]:
            swap()
        case ["plan"]:
            plan()
        case ["states"]:
            states()
        case ["gallery", *named]:
            gallery(named or list(PROGRAMS))
        case _:
            sys.exit(__doc__)
