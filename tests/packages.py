"""The wheel and the source archive are what users get: built, checked, installed alone and tried in three combinations.

`python tests/packages.py` builds both into dist/, has twine check them, and then for each of

- `oldest`: Python 3.11 with the lowest version that pyproject.toml admits of every package that it names,
- `pinned`: Python 3.12 with the versions of constraints.txt,
- `newest`: Python 3.13 with the newest version of everything,

makes an environment, installs the wheel into it, tries it by itself (imported without a warning, trained by `fit`, its
posterior handed to ArviZ), installs what the extra `test` names, and runs README's first example and the tests that
`quick.txt` lists out of the source archive, whose copy of the package is taken away first: they import the wheel.

    python tests/packages.py                      # all three
    python tests/packages.py newest oldest        # these
    python tests/packages.py --build              # build and check, no more
    python tests/packages.py newest --keep DIR    # with the environment left in DIR, and taken up again there

Pythons are looked for on PATH (`python3.12`). A combination whose Python is not there, or that fails, ends with
status 1. An environment takes up to some 7 GB for a while, where PyTorch comes with CUDA. `pip install -e '.[release]'`
has what this needs.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DIST = ROOT / "dist"
PYTHONS = {"oldest": "3.11", "pinned": "3.12", "newest": "3.13"}

ALONE = """
import pyro, torch
import pyro.distributions as dist
from pyro_discrete import TraceELBO, fit, to_inference_data
import importlib.metadata as packages, pyro_discrete
assert pyro_discrete.__version__ == packages.version("pyro_discrete")
assert "site-packages" in pyro_discrete.__file__, pyro_discrete.__file__

points = torch.cat([torch.randn(40) - 3, torch.randn(60) + 3])

def model(x):
    means = pyro.param("means", torch.tensor([-1.0, 1.0]))
    with pyro.plate("points", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(means[z.long()], 1.0), obs=x)

def guide(x):
    logits = pyro.param("logits", torch.zeros(100))
    with pyro.plate("points", len(x)):
        pyro.sample("z", dist.Bernoulli(logits=logits))

for compile in (False, "graph"):
    pyro.clear_param_store()
    elbo = TraceELBO("rloo", num_particles=4, compile=compile)
    found = fit(model, guide, points, elbo, lr=0.05, steps=100, log_every=10, progress=False)
    assert found.history["loss"].values[-1] < found.history["loss"].values[0], found.history["loss"]
data = to_inference_data(model, guide, points, num_samples=50)
assert dict(data.posterior["z"].sizes) == {"chain": 1, "draw": 50, "points": 100}
import arviz as az
print(f"alone: loss {found.loss:.1f}; torch {torch.__version__}, pyro {pyro.__version__}, arviz {az.__version__}")
"""


def lowest(*extras: str) -> list[str]:
    """What pyproject.toml asks for at least, of the package and of these extras with what they include: "numpy==1.26".

    >>> "numpy==1.26" in lowest(), any(line.startswith("pytest==") for line in lowest("test"))
    (True, True)
    """
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    wanted, found, left = list(project["dependencies"]), [], list(extras)
    while left:
        wanted += project["optional-dependencies"][left.pop()]
        left += [extra for line in wanted for extra in re.findall(r"^pyro_discrete\[(\w+)\]$", line)]
        wanted = [line for line in wanted if not line.startswith("pyro_discrete[")]
    for line in wanted:
        name, version = re.fullmatch(r"([\w-]+)(?:\[\w+\])?>=([\w.]+).*", line).groups()
        found.append(f"{name}=={version}")
    return sorted(set(found))


def run(*command: str | Path, **settings: object) -> None:
    print("$", *(str(part).strip().partition("\n")[0] for part in command), flush=True)
    subprocess.run([str(part) for part in command], check=True, **settings)


def build() -> tuple[Path, Path]:
    """The wheel and the source archive, in dist/, checked."""
    shutil.rmtree(DIST, ignore_errors=True)
    run(sys.executable, "-m", "build", "--outdir", DIST, ROOT)
    (wheel,), (archive,) = DIST.glob("*.whl"), DIST.glob("*.tar.gz")
    run(sys.executable, "-m", "twine", "check", "--strict", wheel, archive)
    return wheel, archive


def python(version: str) -> str:
    name = f"python{version}"
    found = shutil.which(name)
    if found is None or subprocess.run([found, "--version"], capture_output=True).returncode != 0:
        sys.exit(f"no {name} on PATH that runs (with pyenv: PYENV_VERSION=3.11:3.12:3.13 names those that do)")
    return found


def try_out(combination: str, wheel: Path, archive: Path, folder: Path) -> None:
    environment = folder / "environment"
    if not (environment / "bin" / "python").exists():
        run(python(PYTHONS[combination]), "-m", "venv", environment)
    inside = environment / "bin" / "python"
    limits = {"oldest": lowest("test"), "pinned": (ROOT / "constraints.txt").read_text().splitlines(), "newest": []}
    (folder / "limits.txt").write_text("\n".join(limits[combination]) + "\n")
    install = (inside, "-m", "pip", "install", "--quiet", "--no-compile", "--disable-pip-version-check")
    if limits[combination]:
        install += ("-c", folder / "limits.txt")
    else:
        install += ("--upgrade", "--upgrade-strategy", "eager")
    run(*install, wheel)
    surroundings = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"} | {"MPLBACKEND": "Agg"}
    run(inside, "-W", "error", "-c", "import pyro_discrete", cwd=folder, env=surroundings)
    run(inside, "-c", ALONE, cwd=folder, env=surroundings)
    run(*install, f"pyro_discrete[test] @ {wheel.as_uri()}")
    with tarfile.open(archive) as source:
        source.extractall(folder, filter="data")
    unpacked = folder / archive.name.removesuffix(".tar.gz")
    shutil.rmtree(unpacked / "pyro_discrete")
    example = (
        "from pathlib import Path; from tests.support.texts import blocks, run_in_order; "
        "run_in_order(blocks(Path('README.md'), 'python')[:1], 'README')"
    )
    run(inside, "-c", example, cwd=unpacked, env=surroundings)
    # tests/docs reads the package's source, which is no longer there
    quick = ("-n", "2", "@tests/quick.txt", "--deselect", "tests/docs")
    run(inside, "-m", "pytest", "-q", *quick, cwd=unpacked, env=surroundings)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("combination", nargs="*", choices=[*PYTHONS, []], help="oldest, pinned, newest; all, if none")
    parser.add_argument("--build", action="store_true", help="build and check, no more")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where environments are left, and taken up again")
    given = parser.parse_args()
    wheel, archive = build()
    if given.build:
        return
    for combination in given.combination or PYTHONS:
        with tempfile.TemporaryDirectory() as made:
            folder = (given.keep or Path(made)).absolute() / combination
            folder.mkdir(parents=True, exist_ok=True)
            try_out(combination, wheel, archive, folder)
        print(f"{combination}: Python {PYTHONS[combination]} passed", flush=True)


if __name__ == "__main__":
    main()
