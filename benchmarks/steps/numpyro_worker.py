"""NumPyro's jitted step for one shape, in an environment of its own (`pip install numpyro funsor optax`).

Started by `python -m benchmarks.steps.step_time`, which hands it a shape as JSON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import sys
import time
from functools import partial
from itertools import pairwise
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import config_enumerate
    from numpyro.infer import SVI, TraceEnum_ELBO, TraceGraph_ELBO
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\nThis Python has no {missing.name}.") from None

DRAWS, STATES, SYMBOLS, LENGTH = 2, 8, 20, 100


def _uniform(key: Any, shape: tuple[int, ...], bound: float) -> Any:
    return jax.random.uniform(key, shape, minval=-bound, maxval=bound)


def dense(name: str, sizes: list[int], x: Any) -> Any:
    """Linear layers with LeakyReLU(0.3) between them."""
    for index, (below, above) in enumerate(pairwise(sizes)):
        bound = below**-0.5
        weight = numpyro.param(f"{name}.{index}.weight", partial(_uniform, shape=(below, above), bound=bound))
        x = x @ weight + numpyro.param(f"{name}.{index}.bias", jnp.zeros(above))
        if index < len(sizes) - 2:
            x = jnp.where(x > 0, x, 0.3 * x)
    return x


def programs(settings: dict[str, Any]) -> tuple[Any, Any, Any, Any]:
    """Model, guide, loss and data."""
    latents, hidden, pixels, batch = settings["latents"], settings["hidden"], settings["pixels"], settings["batch"]
    key = jax.random.PRNGKey(1)

    if settings["kind"] == "chain":

        @config_enumerate
        def model(x: Any) -> None:
            start = numpyro.param("start", jnp.zeros(STATES))
            transition = numpyro.param("transition", lambda key: 0.5 * jax.random.normal(key, (STATES, STATES)))
            emission = numpyro.param("emission", lambda key: 0.5 * jax.random.normal(key, (STATES, SYMBOLS)))

            def step(z: Any, symbol: Any) -> Any:
                with numpyro.plate("data", batch):
                    z = numpyro.sample("z", dist.Categorical(logits=transition[z]))
                    numpyro.sample("x", dist.Categorical(logits=emission[z]), obs=symbol)
                return z, None

            with numpyro.plate("data", batch):
                first = numpyro.sample("z_0", dist.Categorical(logits=start))
                numpyro.sample("x_0", dist.Categorical(logits=emission[first]), obs=x[0])
            scan(step, first, x[1:])

        symbols = jax.random.randint(key, (LENGTH, batch), 0, SYMBOLS)
        return model, lambda x: None, TraceEnum_ELBO(max_plate_nesting=1), symbols

    x = jax.random.bernoulli(key, 0.4, (batch, pixels)).astype(jnp.float32)
    if settings["kind"] == "categorical":
        variables, categories = latents

        def model(x: Any) -> None:
            with numpyro.plate("data", batch):
                z = numpyro.sample("z", dist.Categorical(logits=jnp.zeros((variables, categories))).to_event(1))
                flat = jax.nn.one_hot(z, categories).reshape((*z.shape[:-1], -1))  # there is no OneHotCategorical
                logits = dense("decoder", [variables * categories, *reversed(hidden), pixels], flat)
                numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x: Any) -> None:
            with numpyro.plate("data", batch):
                logits = dense("encoder", [pixels, *hidden, variables * categories], x - 0.4)
                logits = logits.reshape((*logits.shape[:-1], variables, categories))
                numpyro.sample("z", dist.Categorical(logits=logits).to_event(1))

        return model, guide, TraceGraph_ELBO(num_particles=DRAWS), x

    sizes = [pixels, *latents]

    def model(x: Any) -> None:
        with numpyro.plate("data", batch):
            top = len(latents)
            z = numpyro.sample(f"z{top}", dist.Bernoulli(logits=jnp.zeros(latents[-1])).to_event(1))
            for layer in range(top - 1, 0, -1):
                widths = [sizes[layer + 1], *reversed(hidden), sizes[layer]]
                logits = dense(f"decoder{layer}", widths, z.astype(jnp.float32))
                z = numpyro.sample(f"z{layer}", dist.Bernoulli(logits=logits).to_event(1))
            logits = dense("decoder0", [sizes[1], *reversed(hidden), sizes[0]], z.astype(jnp.float32))
            numpyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(x: Any) -> None:
        with numpyro.plate("data", batch):
            below = x - 0.4
            for layer in range(1, len(sizes)):
                logits = dense(f"encoder{layer}", [sizes[layer - 1], *hidden, sizes[layer]], below)
                below = numpyro.sample(f"z{layer}", dist.Bernoulli(logits=logits).to_event(1)).astype(jnp.float32)

    return model, guide, TraceGraph_ELBO(num_particles=DRAWS), x


def main() -> None:
    """Answer "version", or a number of steps by their times in ms of the processor, until the input ends."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads, help="The shape.")
    model, guide, loss, x = programs(parser.parse_args().settings)
    svi = SVI(model, guide, numpyro.optim.Adam(1e-3), loss)
    state = svi.init(jax.random.PRNGKey(0), x)
    update = jax.jit(svi.update, donate_argnums=0)
    for _ in range(3):
        state, value = update(state, x)
    for line in sys.stdin:
        if line.strip() == "version":
            print(json.dumps(f"NumPyro {numpyro.__version__}, JAX {jax.__version__}"), flush=True)
            continue
        times = []
        for _ in range(int(line)):
            started = time.process_time()
            state, value = update(state, x)
            value.block_until_ready()
            jax.block_until_ready(state)
            times.append(1000 * (time.process_time() - started))
        print(json.dumps(times), flush=True)


if __name__ == "__main__":
    main()
