"""The scripts behind RESULTS.md run to their end on a small scale, and what they report is in order."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import matplotlib.image
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks.learning import endurance, long_run, mixtures_and_chains, ranks, relaxations
from benchmarks.memory import loss_memory, step_memory
from benchmarks.noise import bias_variance, bound_variance, nvil_ablation, variance
from benchmarks.soundness import collapsed
from benchmarks.steps import (
    capture_start,
    chains_beside_torch_struct,
    enumeration,
    step_curves,
    step_parts,
    step_time,
    structure_curves,
)
from benchmarks.steps.step_shapes import Shape


def call(command: object, *arguments: object) -> str:
    app = typer.Typer()
    app.command()(command)
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.stdout


def test_variance_reports_what_serves_and_why_the_rest_does_not(tmp_path: Path) -> None:
    small = ["--data", "digits", "--latents", 10, "--batch-size", 20, "--steps", 5, "--warm-up-steps", 2]
    names = "reinforce,rloo,disarm,coupled,gumbel_softmax"
    for program in ("linear", "categorical"):
        printed = call(
            variance.main, *small, "--draws", 12, "--programs", program, "--estimators", names, "--out", tmp_path
        )
    results = json.loads((tmp_path / "variance.json").read_text())
    assert list(results) == ["linear", "categorical"]  # a second call keeps what the first one measured
    linear = {one["estimator"]: one for one in results["linear"]["measured"]}
    assert set(linear) == {"reinforce", "rloo", "disarm", "gumbel_softmax"}
    assert set(results["linear"]["left_out"]) == {"coupled"}
    assert set(results["categorical"]["left_out"]) == {"disarm"}
    assert [linear[name]["evaluations"] for name in ("reinforce", "rloo", "disarm")] == [1, 2, 2]
    assert linear["rloo"]["guide_x_evaluations"] == 2 * linear["rloo"]["guide"]
    assert max(linear["rloo"]["guide"], linear["disarm"]["guide"]) < linear["reinforce"]["guide"] / 10
    assert all(one["draws"] == 12 and one["ms"] > 0 for one in linear.values())
    assert "`coupled`: Estimator 'coupled' does not serve" in printed
    assert min(matplotlib.image.imread(tmp_path / "variance.png").shape[:2]) > 200


def test_slow_estimators_make_fewer_draws(tmp_path: Path) -> None:
    small = ["--data", "digits", "--latents", 4, "--batch-size", 10, "--steps", 1, "--programs", "linear"]
    call(variance.main, *small, "--draws", 1000, "--seconds", 0.001, "--estimators", "rloo", "--out", tmp_path)
    linear = json.loads((tmp_path / "variance.json").read_text())["linear"]
    (one,), elbo_at_point = linear["measured"], linear["elbo_at_point"]
    assert one["draws"] == variance.LEAST_DRAWS
    call(variance.main, *small, "--draws", 12, "--particles", 3, "--estimators", "rloo", "--out", tmp_path / "three")
    three = json.loads((tmp_path / "three" / "variance.json").read_text())["linear"]
    assert (three["elbo_at_point"], three["measured"][0]["evaluations"]) == (elbo_at_point, 3)
    call(variance.main, *small, "--times-only", "--out", tmp_path)
    (again,) = json.loads((tmp_path / "variance.json").read_text())["linear"]["measured"]
    assert (again["guide"], again["draws"]) == (one["guide"], one["draws"])
    assert again["guide_x_ms"] == again["guide"] * again["ms"]
    assert again["ms"] != one["ms"]


@pytest.mark.parametrize("option", ["--programs", "--estimators"])
def test_an_unknown_name_is_refused(option: str, tmp_path: Path) -> None:
    app = typer.Typer()
    app.command()(variance.main)
    result = CliRunner().invoke(app, [option, "nothing", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "nothing" in result.output


def test_nvil_ablation_reports_every_variant(tmp_path: Path) -> None:
    small = ["--latents", 4, "--steps", 3, "--seeds", 1, "--draws", 3, "--warm-up-steps", 2, "--out", tmp_path]
    printed = call(nvil_ablation.main, *small)
    rows = json.loads((tmp_path / "nvil_ablation.json").read_text())["rows"]
    assert list(rows) == list(nvil_ablation.VARIANTS)
    assert all(name in printed for name in rows)
    full, unscaled = rows["all parts"]["variance"], rows["without `variance_normalisation`"]["variance"]
    assert full["unscaled"] == unscaled["unscaled"] == unscaled["as_trained"]
    assert len(rows["without any"]["test_elbo"]) == 1


@pytest.mark.parametrize(
    "shape",
    [
        Shape("two layers", "binary", 5, (4, 3), (4,), pixels=6),
        Shape("categories", "categorical", 5, (3, 2), (4,), pixels=6),
    ],
)
def test_step_time_measures_every_way(shape: Shape) -> None:
    found = step_time.measure(shape, "small", turns=2, steps=2, compiled=False, workers={})
    assert set(found["ms"]) >= {"fit, eager", "SVI.step, eager", "Pyro Trace_ELBO", "by hand, eager"}
    assert min(found["ms"].values()) > 0
    assert step_time.table(found).count("\n") == 1 + len(found["ms"])


@pytest.mark.parametrize(
    "shape",
    [
        Shape("one layer", "binary", 5, (4,), (4,), pixels=6),
        Shape("two layers", "binary", 5, (3, 2), pixels=6),
        Shape("categories", "categorical", 5, (3, 2), (4,), pixels=6),
        Shape("a chain", "chain", 3, exact=True),
    ],
)
def test_by_hand_is_the_same_estimator(shape: Shape) -> None:
    """Mean gradients of both, over enough draws that a fault would show: within 5 standard errors (fails by chance in
    fewer than one of 10^4 runs, over all parameters' sums); exact ones to rounding."""
    import pyro
    import torch

    from benchmarks.steps.step_shapes import by_hand
    from pyro_discrete import TraceELBO

    pyro.set_rng_seed(0)
    program, x = shape.program(), shape.data()[:, :12]
    elbo = TraceELBO("enumerate") if shape.exact else TraceELBO("rloo", num_particles=2)
    parameters = list(program.parameters())
    weights = [torch.randn_like(p) for p in parameters]
    loss = by_hand(shape, program)

    def projected(surrogate: torch.Tensor) -> torch.Tensor:
        gradients = torch.autograd.grad(surrogate, parameters)
        return torch.stack([(g * w).sum() for g, w in zip(gradients, weights, strict=True)])

    with pyro.get_param_store().scope():
        draws = 1 if shape.exact else 300
        theirs = torch.stack([projected(loss(x)) for _ in range(draws)])
        ours = torch.stack([projected(elbo.differentiable_loss(program.model, program.guide, x)) for _ in range(draws)])
    if shape.exact:
        torch.testing.assert_close(theirs, ours, rtol=1e-4, atol=1e-3)
        return
    error = ((theirs.var(0) + ours.var(0)) / draws).sqrt()
    assert float(((theirs.mean(0) - ours.mean(0)) / error).abs().max()) < 5


@pytest.mark.slow
def test_relaxations_are_trained_at_each_temperature_once(tmp_path: Path) -> None:
    small = ["--data", "digits", "--steps", 2, "--batch-size", 20, "--out", tmp_path]
    both = "reinmax;rloo, 2 particles"
    call(relaxations.main, *small, "--programs", "8 x 16", "--relaxations", both, "--defaults-only")
    first = json.loads((tmp_path / "relaxations.json").read_text())["programs"]
    printed = call(relaxations.main, *small, "--programs", "8 x 16;20 x 10", "--relaxations", "reinmax")
    again = json.loads((tmp_path / "relaxations.json").read_text())["programs"]
    assert list(first["8 x 16"]["reinmax"]) == ["1.0"]  # the default temperature
    assert again["8 x 16"]["reinmax"]["1.0"] == first["8 x 16"]["reinmax"]["1.0"]  # not made again
    assert list(again["8 x 16"]["reinmax"]) == list(again["20 x 10"]["reinmax"]) == ["1.0", "1.4"]
    assert all(run["bound"] >= run["elbo"] for run in again["20 x 10"]["reinmax"].values())
    assert "| `reinmax` | 1.0 |" in printed
    assert min(matplotlib.image.imread(tmp_path / "relaxations.png").shape[:2]) > 200


@pytest.mark.slow
def test_bias_and_variance_are_measured_for_every_relaxation(tmp_path: Path) -> None:
    call(bias_variance.main, "--particles", 20, "--calls", 2, "--points", 2, "--out", tmp_path)
    results = json.loads((tmp_path / "bias_variance.json").read_text())
    assert {"gumbel_softmax", "reinmax", "gumbel_rao"} <= set(results["one_hot_event"])
    assert all(len(points) == 2 for rows in results.values() for points in rows.values())
    assert min(matplotlib.image.imread(tmp_path / "bias_variance.png").shape[:2]) > 200


def test_growth_of_exact_sums(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Small sizes in this process: the ways agree, and a table and a picture come out."""

    def here(command: list[str], check: bool) -> None:
        enumeration.main(command[3:])

    monkeypatch.setattr(enumeration.subprocess, "run", here)
    enumeration.main(["--out", str(tmp_path), "--lengths", "5", "20", "--points", "50"])
    found = [json.loads(path.read_text()) for path in tmp_path.glob("*.json")]
    values = {(r["program"], r["size"], r["what"]): r["value"] for r in found}
    assert len(found) == 10
    assert values["chain", 20, "ours"] == pytest.approx(values["chain", 20, "pyro"], rel=1e-5)
    assert values["chain", 20, "guided"] > values["chain", 20, "ours"]  # a guide's bound is the looser
    assert "| chain | 20 | viterbi |" in (tmp_path / "enumeration.md").read_text()
    assert min(matplotlib.image.imread(tmp_path / "enumeration.png").shape[:2]) > 200


@pytest.mark.parametrize(
    ("name", "others"),
    [("iris", ["scikit-learn, EM"]), ("simulated-chains", ["hmmlearn, EM"]), ("simulated-answers", [])],
)
def test_mixtures_and_chains_beside_other_implementations(
    name: str, others: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(mixtures_and_chains.TASKS, name, {**mixtures_and_chains.TASKS[name], "steps": 3})
    monkeypatch.setattr(mixtures_and_chains, "EM_ITERATIONS", 5)
    printed = call(mixtures_and_chains.main, "--sets", name, "--seeds", 1, "--out", tmp_path)
    results = json.loads((tmp_path / f"{name}.json").read_text())
    assert list(results) == [*others, *mixtures_and_chains.OURS]
    for method, (row,) in results.items():
        assert row["log_likelihood"] < 0
        assert 0 < row["many_to_one_accuracy"] <= 1
        assert row["seconds"] > 0
        assert f"| {method} | {row['log_likelihood']:.2f} |" in printed


def test_step_parts_tell_matrix_products_from_the_rest() -> None:
    import torch

    from pyro_discrete import TraceELBO

    def step() -> None:
        torch.mm(torch.rand(20, 30), torch.rand(30, 20))

    found = step_parts.parts_of(step, steps=20)
    assert 0 < found["matrix products"] < 1
    assert 0 < found["random numbers"] < 1
    assert found["fused loops"] == found["Adam"] == 0
    shape = Shape("", "binary", 5, (4,), pixels=6)
    assert step_parts.calls_of(shape, TraceELBO("rloo", num_particles=2), steps=2) > 100


def test_step_curves_measures_points_and_draws_them(tmp_path: Path) -> None:
    shape = Shape("", "binary", 5, (4,), pixels=6)
    found = {
        mode: step_curves.measured(shape, {"num_particles": 2, "compile": compile}, seconds=0.01)
        for mode, compile in step_curves.MODES.items()
    }
    chunked = step_curves.measured(shape, {"num_particles": 4, "row_chunk": 2}, seconds=0.01)
    assert min(each["ms"] for each in (*found.values(), chunked)) > 0
    results = {
        axis: {m: {"2": found[m], "4": found[m]} for m in step_curves.modes_of(axis)} for axis in step_curves.AXES
    }
    results["particles"]["eager"]["256"] = chunked
    step_curves.picture(results, tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0.05
    assert step_curves.point("layers", 3)[0].latents == (200,) * 3
    assert step_curves.point("row_chunk", 16)[1] == {"num_particles": 256, "row_chunk": 16}


def test_structure_curves_measures_points_and_draws_them(tmp_path: Path) -> None:
    results = {
        name: {kind: {str(n): structure_curves.measured(name, n, kind, 0.01) for n in curve[2][:2]}
               for kind in structure_curves.kinds_of(name)}
        for name, curve in structure_curves.CURVES.items()
    }  # fmt: skip
    assert set(results["tree"]) == {"score"}
    assert set(results["ranking"]) == {"score", "noise"}
    assert min(min(points.values()) for kinds in results.values() for points in kinds.values()) > 0
    assert "exponent 2.0" in structure_curves.growth("tree", {"10": 1.0, "20": 4.0})
    assert "x 2.00" in structure_curves.growth("Gibbs matching", {"10": 1.0, "12": 4.0})
    structure_curves.picture(results, tmp_path / "curves.png")
    assert matplotlib.image.imread(tmp_path / "curves.png").std() > 0.05


def test_chains_are_compared_at_the_same_potentials(monkeypatch: pytest.MonkeyPatch) -> None:
    class Reference:
        """What the comparison reads of torch-struct's class, by a sum over all paths."""

        def __init__(self, links: torch.Tensor) -> None:  # [batch, T - 1, to, from]
            links = links.detach().requires_grad_()
            forward = links.new_zeros(links.shape[0], links.shape[-1])
            for link in links.unbind(1):
                forward = (link + forward.unsqueeze(-2)).logsumexp(-1)
            self.partition = forward.logsumexp(-1)
            (self.marginals,) = torch.autograd.grad(self.partition.sum(), links)

    monkeypatch.setattr(chains_beside_torch_struct, "theirs", lambda links: Reference(links.mT))
    assert max(chains_beside_torch_struct.differences((2, 6, 3)).values()) < 1e-10
    assert all(len(each) == 2 for each in chains_beside_torch_struct.times((2, 6, 3), 0.01).values())


def test_a_long_run_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for steps in (3, 6):
        arguments = ["--estimator", "disarm", "--data", "digits", "--compile", "no", "--bound-samples", "2"]
        monkeypatch.setattr("sys.argv", ["long_run", *arguments, "--steps", str(steps), "--out", str(tmp_path)])
        long_run.main()
        assert json.loads((tmp_path / "report.json").read_text())["steps"] == steps


def test_a_long_run_keeps_a_log_and_ends_when_its_minutes_are_over(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(long_run, "LOG_EVERY", 2)
    monkeypatch.setattr(long_run.Log, "every", 2)
    arguments = ["--data", "digits", "--compile", "no", "--bound-samples", "2", "--steps", "6", "--out", str(tmp_path)]
    monkeypatch.setattr("sys.argv", ["long_run", *arguments, "--minutes", "0"])
    long_run.main()
    report = json.loads((tmp_path / "report.json").read_text())
    assert (report["steps"], report["stopped"]) == (2, "0 minutes")
    monkeypatch.setattr("sys.argv", ["long_run", *arguments, "--resume"])
    long_run.main()
    log = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [line["step"] for line in log] == [2, 4, 6]
    assert log[0]["seconds"] < log[-1]["seconds"]


def test_ranks_times_a_process() -> None:
    found = ranks.measured(batch=4, steps=8, compile=False)
    assert found["ms"] > 0
    assert found["processor_ms"] > 0
    assert (found["ranks"], found["bytes"]) == (1, 0)


def test_endurance_notes_what_a_process_holds(tmp_path: Path) -> None:
    call(endurance.memory, "--steps", 100, "--out", tmp_path)
    found = json.loads((tmp_path / "memory.json").read_text())
    assert [held["step"] for held in found["held"]] == [1, 10, 30, 50, 70, 90, 100]
    assert min(held["resident_mib"] for held in found["held"]) > 10


@pytest.mark.slow
def test_endurance_kills_a_run_that_goes_on(tmp_path: Path) -> None:
    call(endurance.kills, "--kills", 1, "--steps", 120, "--out", tmp_path)
    found = json.loads((tmp_path / "kills.json").read_text())
    assert 0 <= found["lost"][0] <= endurance.EVERY
    assert found["as_unbroken"]


def test_bound_variance_reports_each_number_of_particles(tmp_path: Path) -> None:
    small = ["--data", "digits", "--latents", 5, "--batch-size", 10, "--steps", 3, "--warm-up-steps", 2]
    names = "reinforce;vimco;reweighted_wake_sleep;rloo, 2 outer samples"
    for particles in ("3", "2"):
        printed = call(
            bound_variance.main,
            *small,
            "--draws",
            12,
            "--particles",
            particles,
            "--estimators",
            names,
            "--out",
            tmp_path,
        )
    kept = tmp_path / "bound_variance.json"
    results = json.loads(kept.read_text())["particles"]
    assert list(results) == ["2", "3"]  # a second call keeps what the first one measured
    rows = {row["estimator"]: row for row in results["3"]["rows"]}
    assert [row["evaluations"] for row in rows.values()] == [3, 3, 3, 6]
    assert [row["unbiased"] for row in rows.values()] == [True, True, False, True]
    assert rows["vimco"]["guide"] < rows["reinforce"]["guide"] / 10
    assert rows["vimco"]["guide_signal"] > rows["reinforce"]["guide_signal"]
    assert "| `vimco` | unbiased | 12 | 3 |" in printed
    call(bound_variance.main, *small, "--particles", "3", "--times-only", "--out", tmp_path)
    again = json.loads(kept.read_text())["particles"]
    assert again["2"] == results["2"]
    assert [{**row, "ms": 0} for row in again["3"]["rows"]] == [{**row, "ms": 0} for row in rows.values()]
    assert again["3"]["rows"] != results["3"]["rows"]


def test_a_loss_in_blocks_is_that_of_all_at_once() -> None:
    shape = Shape("", "binary", 20, (200,))
    blocks, at_once = (loss_memory.measured(shape, 250, way) for way in (True, False))
    assert blocks["bound"] == pytest.approx(at_once["bound"], rel=1e-6)
    assert min(blocks["seconds"], at_once["seconds"]) > 0
    row = {"blocks": blocks, "at once": at_once}
    assert loss_memory.table({"1000": row, "10000": {"blocks": blocks}}).count("\n") == 4


def test_peak_memory_of_steps(tmp_path: Path) -> None:
    """Every way runs, and chunks of many particles hold less than all at once."""
    for way in step_memory.WAYS:
        assert step_memory.measured(way, 2, steps=1)["ms"] > 0
    results = {way: {"1": {"mib": 1.0, "ms": 2.0}, "10": {"mib": 3.0, "ms": 4.0}} for way in step_memory.WAYS}
    assert step_memory.table(results).count("\n") == 2 + len(step_memory.WAYS)
    step_memory.picture(results, tmp_path / "memory.png")
    assert min(matplotlib.image.imread(tmp_path / "memory.png").shape[:2]) > 200


@pytest.mark.slow
def test_start_up_of_captured_steps() -> None:
    printed = call(capture_start.main, "--only", "mixture", "--parts", "start,steps", "--turns", 2)
    rows = [line.split(" | ") for line in printed.splitlines() if line.startswith("| mixture")]
    assert len(rows) == 2
    assert all(float(row[1]) > 0 and float(row[2]) > 0 for row in rows)


def test_collapsed_models_against_pyros_enumeration(tmp_path, capsys):
    """The table is written; densities and gradients are Pyro's to 1e-6 (times belong to a machine at rest)."""
    collapsed.main(["--out", str(tmp_path), "--turns", "2", "--only", "groups"])
    assert (tmp_path / "collapsed.md").read_text().rstrip() == capsys.readouterr().out.rstrip()
    for case in collapsed.CASES:
        if case.both and case.size <= 500:
            assert collapsed.difference(case) < 1e-6
    collapsed.main(["--out", str(tmp_path), "--turns", "2", "--only", "counts"])
    assert "counts, 200" in (tmp_path / "collapsed.md").read_text()


@pytest.mark.parametrize("worker", ["chains.numpyro_scan", "steps.numpyro_worker", "steps.storchastic_worker"])
def test_workers_say_what_they_are_for(worker: str) -> None:
    command = [sys.executable, "-m", f"benchmarks.{worker}", "--help"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert "Started by" in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
