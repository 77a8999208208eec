"""Chains that the guide draws too, all values enumerated: what a step costs, and whose dim is whose."""

import os
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO
from pyro_discrete.enumeration import enumerated_loss
from pyro_discrete.errors import EnumerationError
from pyro_discrete.probe import Pair
from pyro_discrete.testing import exact_loss


def calls_of_a_step(length):
    """Calls that the package makes in the first step, planning included, on a chain that is in the guide too."""

    def steps(rates):
        z = torch.tensor(0.0)
        for t in pyro.markov(range(length)):
            z = pyro.sample(f"z{t}", dist.Bernoulli(rates[t][0] * z + rates[t][1] * (1 - z)))
            yield t, z

    def model():
        for t, z in steps(torch.tensor([0.7, 0.2]).expand(length, 2).unbind()):
            pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.3))

    def guide():
        list(steps(pyro.param("rates", torch.full((length, 2), 0.4)).unbind()))

    calls = 0

    def note(frame, event, _):
        nonlocal calls
        caller = frame.f_back if event == "call" else frame if event == "c_call" else None
        calls += caller is not None and f"{os.sep}pyro_discrete{os.sep}" in caller.f_code.co_filename

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        TraceELBO("enumerate").loss_and_grads(model, guide)
    finally:
        sys.setprofile(before)
        pyro.clear_param_store()
    return calls


def test_a_chain_in_the_guide_too_takes_calls_in_proportion_to_its_length():
    short, middle, long = (calls_of_a_step(length) for length in (20, 40, 80))
    assert long - middle < 2.1 * (middle - short)


@pytest.mark.filterwarnings("ignore:.*possibly invalid dependency")
def test_elements_are_not_taken_in_step_where_a_chain_uses_its_dims_again():
    def chain(rate, crossed, observed):
        z, plate = torch.tensor(0.0), pyro.plate("data", 2)
        for t in pyro.markov(range(4)):
            if t < 2:
                with plate:
                    z = pyro.sample(f"z{t}", dist.Bernoulli(rate + 0.4 * z))
                continue
            if t == 2:
                z = z.mean(-1, keepdim=True) if crossed else torch.tensor(0.0)
            z = pyro.sample(f"z{t}", dist.Bernoulli(rate + 0.4 * z))
            if observed:
                pyro.sample(f"x{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.7))

    def model(crossed):
        chain(0.3, crossed, True)

    def guide(crossed):
        chain(pyro.param("rate", torch.tensor(0.2)), crossed, False)

    elbo = TraceELBO("enumerate")
    exact = float(exact_loss(model, guide, False))
    assert elbo.loss(model, guide, False) == pytest.approx(exact, abs=1e-5)
    plan = elbo.plan
    assert plan.joint  # as the wiring is not known in advance; in parallel, the check is by dims
    plan.joint = False
    loss = enumerated_loss(plan, Pair(model, guide, (False,), {}))
    assert loss.item() == pytest.approx(exact, abs=1e-5)
    with pytest.raises(EnumerationError, match=r"'z2' outside plate data depends on site 'z1' enumerated inside it"):
        enumerated_loss(plan, Pair(model, guide, (True,), {}))
