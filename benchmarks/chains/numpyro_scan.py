"""NumPyro's scan of a hidden Markov model, jitted, in an environment of its own (`pip install numpyro funsor`).

Started by `python -m benchmarks.chains.unrolled`, which hands it a chain as JSON.
"""

# pyright: reportMissingImports=false
from __future__ import annotations

import argparse
import json
import statistics
import time
from typing import Any

try:
    import jax
    import jax.numpy as jnp
    import numpyro
    import numpyro.distributions as dist
    from numpyro.contrib.control_flow import scan
    from numpyro.contrib.funsor import config_enumerate, enum, log_density
    from numpyro.handlers import seed
except ModuleNotFoundError as missing:
    raise SystemExit(f"{__doc__}\nThis Python has no {missing.name}.") from None


def main() -> None:
    """Print the loss and the milliseconds, by process time, of it and its gradients."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("settings", type=json.loads, help="The chain.")
    settings = parser.parse_args().settings
    numpyro.enable_x64()
    states, x = settings["states"], jnp.array(settings["x"])

    @config_enumerate
    def model(x: Any) -> None:
        logits = jax.nn.log_softmax(numpyro.param("transition", 2 * jnp.eye(states)))
        locs = numpyro.param("locs", jnp.linspace(-2.0, 2.0, states))

        def link(z: Any, each: Any) -> tuple[Any, None]:
            z = numpyro.sample("z", dist.Categorical(logits=logits[z]))
            numpyro.sample("x", dist.Normal(locs[z], 1.0), obs=each)
            return z, None

        first = numpyro.sample("z_0", dist.Categorical(logits=logits[0]))
        numpyro.sample("x_0", dist.Normal(locs[first], 1.0), obs=x[0])
        scan(link, first, x[1:])

    params = {"transition": 2 * jnp.eye(states), "locs": jnp.linspace(-2.0, 2.0, states)}
    enumerated = enum(seed(model, jax.random.PRNGKey(0)), -1)

    def loss(params: Any, x: Any) -> Any:
        return -log_density(enumerated, (x,), {}, params)[0]

    run = jax.jit(jax.value_and_grad(loss))
    value, _ = jax.block_until_ready(run(params, x))
    times: list[float] = []
    started = time.perf_counter()
    while time.perf_counter() - started < settings["seconds"] or len(times) < 7:
        begun = time.process_time()
        jax.block_until_ready(run(params, x))
        times.append(1e3 * (time.process_time() - begun))
    print(json.dumps({"loss": float(value), "ms": statistics.median(times)}))


if __name__ == "__main__":
    main()
