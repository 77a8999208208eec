"""A plan as a table, in a notebook too, and as a drawing: true numbers, alike sites once, names escaped."""

from __future__ import annotations

import re
import sys

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_discrete import TraceELBO, TraceIWELBO
from pyro_discrete.errors import SettingError
from pyro_discrete.planning.plan import Plan, Sequential
from pyro_discrete.planning.plan_display import FILLS, alike_lines
from pyro_discrete.programs.dims import Columns

TABLE = torch.tensor([[0.9, 0.1], [0.2, 0.8]])


def planned(elbo, model, guide=lambda: None, *args) -> Plan:
    pyro.clear_param_store()
    pyro.set_rng_seed(0)
    elbo.loss_and_grads(model, guide, *args)
    return elbo.plan


def chain(length=300):
    z = 0
    for t in pyro.markov(range(length)):
        z = pyro.sample(f"z_{t}", dist.Categorical(TABLE[z]))
        pyro.sample(f"x_{t}", dist.Normal(z, 1.0), obs=torch.tensor(0.1))


def drawn_chain(length=300):
    for t in range(length):
        logit = pyro.param(f"a_{t}", torch.tensor(0.1))
        pyro.sample(f"z_{t}", dist.Categorical(logits=torch.stack([logit * 0, logit])))


def crossing():
    mu = pyro.sample("mu", dist.Normal(0.0, 1.0))
    rows, columns = pyro.plate("users", 4, dim=-2), pyro.plate("items", 3, dim=-1)
    with rows:
        u = pyro.sample("u", dist.Bernoulli(0.3))
    with columns:
        v = pyro.sample("v", dist.Bernoulli(0.3))
    with rows, columns:
        pyro.sample("x", dist.Normal(u * v + mu, 1.0), obs=torch.zeros(4, 3))


def crossing_guide():
    pyro.sample("mu", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0))
    with pyro.plate("users", 4, dim=-2):
        pyro.sample("u", dist.Bernoulli(logits=pyro.param("a", torch.zeros(4, 1))))
    with pyro.plate("items", 3, dim=-1):
        pyro.sample("v", dist.Bernoulli(logits=pyro.param("b", torch.zeros(3))))


def lines_of(drawing: str) -> list[str]:
    return [line.strip() for line in drawing.splitlines()]


def test_a_chain_of_300_is_one_line_and_two_boxes() -> None:
    plan = planned(TraceELBO(), chain)
    assert str(plan).splitlines()[1].split("  ")[0] == "z_0 ... z_299 (300)"
    assert plan._repr_html_().count("<tr>") == 2
    assert lines_of(plan.render())[1:5] == [
        's0(["z_0 ... z_299 (300)<br/>Categorical<br/>summed out"]):::summed_out',
        's1["x_0 ... x_299 (300)<br/>Normal<br/>observed"]:::observed',
        's0 -->|"each on the one before"| s0',
        's0 -->|"one to one"| s1',
    ]


def test_a_sampled_chain_is_one_line_whose_numbers_are_ranges() -> None:
    """The signal of each site leaves out another number of terms: all from none to what only the last one does."""

    def model():
        z = torch.tensor(0.0)
        for t in pyro.markov(range(6)):
            z = pyro.sample(f"z_{t}", dist.Bernoulli(0.2 + 0.6 * z))

    def guide():
        for t in range(6):
            pyro.sample(f"z_{t}", dist.Bernoulli(logits=pyro.param(f"a_{t}", torch.tensor(0.1))))

    plan = planned(TraceELBO("rloo", num_particles=2), model, guide)
    (line,) = [line for line in str(plan).splitlines() if line.startswith("z_")]
    assert line.startswith(
        "z_0 ... z_5 (6)  Bernoulli  rloo       1     the ELBO's default; its signal leaves out 9 to 10 of 12"
    )
    left_out = [s.notes for s in plan.sites]
    assert {int(re.findall(r"\d+", note)[0]) for note in left_out} == {9, 10}


def test_alike_lines_keep_numbers_that_are_parts_of_words() -> None:
    lines = [(f"z{t}", f"a run of 2e+04 of z1, {t + 1} of 0.5 in layer-3") for t in range(4)]
    assert alike_lines(lines) == [("z0 ... z3 (4)", "a run of 2e+04 of z1, 1 to 4 of 0.5 in layer-3")]
    assert alike_lines(lines[:3]) == lines[:3]


def test_plates_that_cross_have_a_box_where_they_do() -> None:
    plan = planned(TraceELBO({"u": "rloo", "v": "gumbel_softmax"}, num_particles=2), crossing, crossing_guide)
    drawing = plan.render()
    shown = lines_of(drawing)
    assert shown[: shown.index("s0 --> s3")] == [
        "flowchart TB",
        's0(["mu<br/>Normal<br/>pathwise"]):::pathwise',
        'subgraph p0["items (3)"]',
        's2(["v<br/>Bernoulli<br/>relaxed: gumbel_softmax"]):::relaxed',
        "end",
        'subgraph p1["users (4)"]',
        's1(["u<br/>Bernoulli<br/>sampled: rloo"]):::sampled',
        "end",
        'subgraph p2["items (3) x users (4)"]',
        's3["x<br/>Normal<br/>observed"]:::observed',
        "end",
    ]
    assert {line for line in shown if "-->" in line} == {"s0 --> s3", "s1 --> s3", "s2 --> s3"}
    for name in ("pathwise", "relaxed", "sampled", "observed"):
        assert f"classDef {name} fill:{FILLS[name][0]}" in drawing


def test_plates_within_each_other_are_boxes_within_each_other() -> None:
    def model():
        with pyro.plate("documents", 4, dim=-2):
            t = pyro.sample("t", dist.Bernoulli(0.3))
            with pyro.plate("words", 5, dim=-1):
                pyro.sample("w", dist.Bernoulli(0.2 + 0.5 * t), obs=torch.zeros(4, 5))

    shown = planned(TraceELBO(), model).render().splitlines()
    assert shown[1:6] == [
        '  subgraph p0["documents (4)"]',
        '    s0(["t<br/>Bernoulli<br/>summed out"]):::summed_out',
        '    subgraph p1["words (5)"]',
        '      s1["w<br/>Bernoulli<br/>observed"]:::observed',
        "    end",
    ]


def test_arrows_of_the_guide_are_dashed() -> None:
    def model():
        a = pyro.sample("a", dist.Bernoulli(0.5))
        pyro.sample("b", dist.Bernoulli(0.2 + 0.5 * a))

    def guide():
        c = pyro.sample("c", dist.Normal(pyro.param("m", torch.tensor(0.1)), 1.0), infer={"is_auxiliary": True})
        b = pyro.sample("b", dist.Bernoulli(logits=c))
        pyro.sample("a", dist.Bernoulli(0.2 + 0.5 * b))

    drawing = planned(TraceELBO("rloo", num_particles=2), model, guide).render()
    assert {line for line in lines_of(drawing) if "->" in line} == {"s0 --> s1", "s1 -.-> s0", "s2 -.-> s1"}
    assert 's2(["c<br/>Normal<br/>pathwise (the guide\'s alone)"]):::pathwise' in drawing
    assert "solid arrows: the model, dashed: the guide" in drawing


def test_names_are_escaped() -> None:
    evil = '<script>alert("1")</script> & `z` #1;'

    def model():
        with pyro.plate('p"late<b>', 2):
            z = pyro.sample(evil, dist.Bernoulli(0.5))
            pyro.sample("x", dist.Normal(z, 1.0), obs=torch.zeros(2))

    plan = planned(TraceELBO(), model)
    html, drawing = plan._repr_html_(), plan.render()
    assert "<script" not in html
    assert "&lt;script&gt;alert(&quot;1&quot;)&lt;/script&gt; &amp; `z` #1;" in html
    assert "<script" not in drawing
    words = re.findall(r'\["(.*?)"\]', drawing)
    assert all(not set(re.sub(r"#\d+;|<br/>", "", w)) & set('"<>`&#;') for w in words)
    assert len(words) == 3


def test_the_table_of_a_notebook_says_what_the_printed_one_does() -> None:
    plan = planned(TraceELBO("rloo", num_particles=2), crossing, crossing_guide)
    assert repr(plan) == str(plan)
    words = re.sub(r"<[^>]+>", " ", plan._repr_html_()).replace("&#x27;", "'").split()
    assert words == str(plan).split()


def test_a_bound_and_a_program_that_python_reads_are_drawn() -> None:
    def branches():
        z = pyro.sample("z", dist.Bernoulli(0.5))
        pyro.sample("x", dist.Normal(1.0 if z.item() else -1.0, 1.0), obs=torch.tensor(0.3))

    def guide():
        pyro.sample("z", dist.Bernoulli(logits=pyro.param("a", torch.tensor(0.2))))

    with pytest.warns(UserWarning, match="cannot take a leading dim"):
        plan = planned(TraceIWELBO("vimco", num_particles=3), branches, guide)
    drawing = plan.render()
    assert "s0 --> s1" in lines_of(drawing)
    assert "arrows may be missing: Python reads a tensor's value (.item(), if or an index) at" in drawing
    said = str(plan)
    assert "sequential: 1 row(s) x 1 outer sample(s) x 3 particle(s)" in said
    assert re.search(
        r"\(Python takes a draw for one value at test_plan_display.py:\d+, by .item\(\), if or an index\)", said
    )


def test_one_run_alone_is_said_to_be_so() -> None:
    plan = planned(TraceELBO("nvil"), lambda: chain(3), lambda: drawn_chain(3))
    assert "sequential: 1 row(s) x 1 particle(s) a step (one run, with nothing beside it)" in str(plan)


def test_graphviz_has_the_same_drawing() -> None:
    pytest.importorskip("graphviz")
    plan = planned(TraceELBO("rloo", num_particles=2), crossing, crossing_guide)
    source = plan.render("graphviz").source
    assert all(f"s{number} -> s3" in source for number in range(3))
    assert source.count("subgraph cluster_") == 3
    assert 'label="u\\nBernoulli\\nsampled: rloo"' in source
    assert FILLS["sampled"][0] in source


def test_without_graphviz_mermaid_is_drawn_all_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "graphviz", None)
    plan = planned(TraceELBO(), lambda: chain(2))
    assert plan.render().startswith("flowchart TB")
    with pytest.raises(ImportError):
        plan.render("graphviz")


def test_what_a_notebook_draws_is_the_text() -> None:
    drawing = planned(TraceELBO(), lambda: chain(2)).render()
    assert drawing._repr_markdown_() == f"```mermaid\n{drawing}\n```"
    assert repr(drawing) == drawing


def test_bad_kinds_and_plans_without_a_pair() -> None:
    plan = planned(TraceELBO(), lambda: chain(2))
    with pytest.raises(SettingError, match="kind='png' given, 'mermaid' or 'graphviz' expected"):
        plan.render("png")
    with pytest.raises(SettingError, match="without an ELBO"):
        Plan(Sequential(), [], {}, Columns(), 1, 0).render()
