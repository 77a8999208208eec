"""How a collapsed model was run, as a table in a notebook: alike sites once, every way named, names escaped."""

import re

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import collapse
from pyro_discrete.distributions import KSubset
from pyro_discrete.planning.plan_display import FILLS

MOVE = torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def of_the_table(model, *args):
    """The cells of each row, and what stands below the table."""
    pyro.set_rng_seed(0)
    collapsed = collapse(model)
    collapsed(*args)
    html = collapsed.plan._repr_html_()
    table, _, below = html.partition("</table>")
    rows = re.findall(r"<tr>(.*?)</tr>", table, re.DOTALL)
    cells = [re.findall(r"<t[dh][^>]*>(.*?)</t[dh]>", row, re.DOTALL) for row in rows]
    assert cells[0] == ["site", "what becomes of it", "how"]
    assert table.count(FILLS["summed out"][1]) == sum(row[1] == "summed out" for row in cells)
    return cells[1:], re.findall(r">([^<>]+)</div>", below)


def chain(x):
    spread = pyro.sample("<spread>", dist.Gamma(2.0, 1.0))
    z = 0
    for t in pyro.markov(range(len(x))):
        z = pyro.sample(f"z_{t}", dist.Categorical(MOVE[z]))
        pyro.sample(f"x_{t}", dist.Normal(2.0 * z, spread), obs=x[t])


def test_alike_sites_share_a_line_and_names_are_escaped():
    rows, notes = of_the_table(chain, torch.zeros(30))
    assert rows == [
        ["z_0 ... z_29 (30)", "summed out", "over its values"],
        ["&lt;spread&gt;", "as it stands", ""],
        ["x_0 ... x_29 (30)", "as it stands", ""],
    ]
    assert len(notes) == 1
    assert re.fullmatch(r"exact sums: largest table \S+ elements, \S+ operations", notes[0])


def of_counts_and_subsets(x):
    n = pyro.sample("n", dist.Poisson(1.5))
    few = pyro.sample("few", KSubset(torch.linspace(-1.0, 1.0, 5), 2))
    many = pyro.sample("many", KSubset(torch.linspace(-1.0, 1.0, 40), 20))
    pyro.sample("x", dist.Normal(n + few[..., 0] * few[..., 1], 1.0), obs=x)
    pyro.factor("y", (many * torch.arange(40.0)).sum(-1) / 40)


def test_counts_end_somewhere_and_large_structures_go_by_their_partition_function():
    rows, _ = of_the_table(of_counts_and_subsets, torch.tensor(2.0))
    assert re.fullmatch(r"over its values up to \d+", rows[0][2])
    assert [row for row in rows if row[1] == "summed out"] == [
        ["n", "summed out", rows[0][2]],
        ["few", "summed out", "over its values"],
        ["many", "summed out", "by its partition function"],
    ]


def branching(x):
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(3.0 if z.item() else 0.0, 1.0), obs=x)


def branching_on_what_stays(x):
    s = pyro.sample("s", dist.Normal(0.0, 1.0))
    z = pyro.sample("z", dist.Bernoulli(0.3))
    pyro.sample("x", dist.Normal(z if s > 0 else -z, 1.0), obs=x)


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (branching, "one joint value after another ("),
        (branching_on_what_stays, "the program decides by its draws of s: every run looks whether"),
    ],
)
def test_what_takes_longer_is_said(model, words):
    _, notes = of_the_table(model, torch.tensor(1.0))
    assert notes[1].startswith(words)


def without_data():
    pyro.sample("z", dist.Bernoulli(0.3))


def test_a_program_that_is_drawn_as_it_stands():
    rows, notes = of_the_table(without_data)
    assert not rows
    assert notes == ["drawn as it stands: nothing is observed"]


def test_at_a_prompt_it_is_words():
    collapsed = collapse(chain)
    collapsed(torch.zeros(3))
    assert repr(collapsed.plan) == str(collapsed.plan)
    assert "3 site(s) summed out (z_0, z_1, z_2)" in repr(collapsed.plan)
