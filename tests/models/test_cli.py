"""The command line: its commands end to end on a small scale, and one line for everything a user can get wrong."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import matplotlib.image
import pytest
import torch
from typer.testing import CliRunner

from models.cli import demo
from models.cli.commands import app
from models.cli.options import SETTINGS
from models.data import images
from models.data.catalogue import DATASETS
from models.runs import comparison
from models.runs.config import PROGRAMS, build_elbo, configure
from models.runs.estimators import bias
from models.runs.trials import KINDS
from pyro_discrete import available_estimators
from pyro_discrete.errors import ParticleError, SettingError

SMALL = ["--latents", "4", "--steps", "20", "--batch-size", "50", "--bound-samples", "5"]


def call(*arguments: object) -> Any:
    return CliRunner().invoke(app, [str(argument) for argument in arguments], env={"COLUMNS": "200"})


def refused(*arguments: object) -> str:
    """The message of a call that must end with exit code 2, one line and no traceback."""
    result = call(*arguments)
    assert result.exit_code == 2, result.output
    assert "Traceback" not in result.output
    lines = [line for line in result.stderr.splitlines() if line.startswith("Error: ")]
    assert len(lines) == 1
    return lines[0]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    out = tmp_path_factory.mktemp("runs") / "a"
    result = call("train", "sbn", "--estimator", "nvil", "--out", out, *SMALL)
    assert result.exit_code == 0, result.output
    return out, result.stdout


def test_train_reports_and_leaves_everything_in_its_folder(trained: tuple[Path, str]) -> None:
    out, printed = trained
    pictures = {"curves.png", "reconstructions.png", "samples.png"}
    files = {"checkpoint.pt", "config.json", "metrics.jsonl", "summary.json"}
    assert {path.name for path in out.iterdir()} == pictures | files
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_bound"] >= summary["test_elbo"]
    assert summary["bound_samples"] == 5
    assert f"{summary['test_elbo']:.2f}" in printed
    assert f"{summary['test_bound']:.2f}" in printed
    assert json.loads((out / "config.json").read_text())["estimator"] == "nvil"
    for name in pictures:
        pixels = matplotlib.image.imread(out / name)
        assert min(pixels.shape[:2]) > 200
        assert pixels.std() > 0.01


@pytest.mark.parametrize("program", ["gmm", "lca", "hmm"])
def test_programs_of_latent_classes_report_what_they_found(tmp_path: Path, program: str) -> None:
    out = tmp_path / "a"
    arguments = ["train", program, "--out", out, "--guide", "marginal", "--estimator", "enumerate", "--steps"]
    result = call(*arguments, 6, "--batch-size", 50)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "found.png"}
    assert matplotlib.image.imread(out / "found.png").std() > 0.01
    summary = json.loads((out / "summary.json").read_text())
    assert summary["test_elbo"] == summary["test_bound"] == pytest.approx(summary["test_log_likelihood"])
    for name in ("test_log_likelihood", "adjusted_rand_index", "many_to_one_accuracy"):
        assert f"{summary[name]:.3f}" in result.stdout
    again = call("train", program, "--out", out, "--resume", "--steps", 10)
    assert again.exit_code == 0, again.output
    whole = call(*arguments[:3], tmp_path / "whole", *arguments[4:], 10, "--batch-size", 50)
    assert whole.exit_code == 0, whole.output
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert {**first, "ms_per_step": 0} == {**second, "ms_per_step": 0}


@pytest.mark.parametrize("program", ["rankings", "subset", "matching", "structure", "motif", "blocks", "topics"])
def test_programs_of_structures_report_what_they_found(tmp_path: Path, program: str) -> None:
    out = tmp_path / "a"
    common = ["--estimator", "rloo", "--bound-samples", 5, "--monitor-every", 0]
    result = call("train", program, "--out", out, "--steps", 6, *common)
    assert result.exit_code == 0, result.output
    assert {path.name for path in out.glob("*.png")} == {"curves.png", "found.png"}
    assert matplotlib.image.imread(out / "found.png").std() > 0.01
    judged = {
        "rankings": ("test_log_likelihood", "pairs_in_order", "mm_pairs_in_order"),
        "subset": ("test_r_squared", "lasso_r_squared", "right_features", "lasso_right_features", "inclusion_error"),
        "matching": ("test_matched", "assignment_matched", "faq_matched", "elbo_of_truth"),
        "structure": ("test_row_log_likelihood", "edges", "auroc", "undirected_auroc", "hamming_distance"),
        "blocks": ("groups_used", "adjusted_rand_index", "split_off", "spectral_adjusted_rand_index"),
        "topics": ("perplexity", "guide_perplexity", "scikit_learn_perplexity"),
        "motif": ("test_log_likelihood", "em_log_likelihood", "places_found", "em_places_found", "profile_distance"),
    }[program]
    summary = json.loads((out / "summary.json").read_text())
    for name in judged:
        assert f"{summary[name]:.3f}" in result.stdout
    again = call("train", program, "--out", out, "--resume", "--steps", 10, *common[2:])
    assert again.exit_code == 0, again.output
    whole = call("train", program, "--out", tmp_path / "whole", "--steps", 10, *common)
    assert whole.exit_code == 0, whole.output
    first, second = (json.loads((folder / "summary.json").read_text()) for folder in (out, tmp_path / "whole"))
    assert {**first, "ms_per_step": 0} == {**second, "ms_per_step": 0}
    assert call("report", out).exit_code == 0
    assert "What was found" in (out / "report.html").read_text()


@pytest.mark.usefixtures("quick_noise")
@pytest.mark.parametrize(
    ("program", "size"),
    [("rankings", "a ranking a season"), ("subset", "3 features chosen"), ("matching", "a matching a pair")],
)
def test_compare_structures(tmp_path: Path, program: str, size: str) -> None:
    out = tmp_path / "c"
    result = call("compare", program, "--estimators", "gumbel_softmax,rloo", "--out", out, "--steps", 5)
    assert result.exit_code == 0, result.output
    assert f"{program}, {size}" in result.stdout
    assert matplotlib.image.imread(out / "comparison.png").std() > 0.01


@pytest.mark.usefixtures("quick_noise")
def test_compare_latent_classes(tmp_path: Path) -> None:
    out = tmp_path / "c"
    result = call("compare", "lca", "--estimators", "enumerate,rloo", "--out", out, "--steps", 5, "--bound-samples", 3)
    assert result.exit_code == 0, result.output
    assert "lca, 4 classes" in result.stdout
    rows = json.loads((out / "results.json").read_text())["rows"]
    assert all("adjusted_rand_index" in row for row in rows)
    assert matplotlib.image.imread(out / "comparison.png").std() > 0.01


def test_resume_takes_the_settings_of_the_run(trained: tuple[Path, str]) -> None:
    out, _ = trained
    result = call("train", "sbn", "--out", out, "--resume", "--steps", 30, "--bound-samples", 3)
    assert result.exit_code == 0, result.output
    assert json.loads((out / "summary.json").read_text())["step"] == 30
    assert "--latents was 4, now 5" in refused("train", "sbn", "--out", out, "--resume", "--latents", 5)
    assert "program was 'sbn'" in refused("train", "categorical_vae", "--out", out, "--resume")


def test_a_used_folder_is_refused(trained: tuple[Path, str]) -> None:
    assert "already holds a run" in refused("train", "sbn", "--out", trained[0], *SMALL)
    assert "already holds a run" in refused("demo", "--out", trained[0])


def test_train_where_no_folder_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    result = call("train", "categorical_vae", "--estimator", "rloo", *SMALL)
    assert result.exit_code == 0, result.output
    assert "rloo needs at least 2 particles and gets them" in result.stdout
    assert (tmp_path / "runs" / "categorical_vae-digits-rloo" / "checkpoint.pt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sbn", "--estimator", "reinforc"], "no estimator named 'reinforc'. Did you mean 'reinforce'?"),
        (["snb"], "Unknown program 'snb'. Did you mean 'sbn'?"),
        (["sbn", "--data", "fashion-mnis"], "Unknown data 'fashion-mnis'. Did you mean 'fashion-mnist'?"),
        (["sbn", "--data", "fashion-mnist", "--data-dir", "/nowhere"], "data folder /nowhere is not there"),
        (["sbn", "--estimator", "rloo", "--particles", "1"], "needs num_particles >= 2"),
        (["sbn", "--estimator", "gumbel_softmax", "--temperature", "0"], "temperature"),
        (["sbn", "--estimator", "nvil", "--temperature", "1"], "'nvil' has no temperature"),
        (["sbn", "--batch-size", "0"], "--batch-size is 0"),
        (["sbn", "--batch-size", "1501"], "batch size is 1501; expected 1 to 1500"),
        (["sbn", "--resume"], "--resume needs --out"),
        (["gmm", "--data", "digits"], "gmm reads points, the data set 'digits' holds images"),
        (["hmm", "--data", "brown-words", "--data-dir", "/nowhere"], "data folder /nowhere is not there"),
        (["gmm", "--latents", "3"], "gmm has no --latents"),
        (["sbn", "--estimator", "enumerate", "--latents", "100"], "z1"),
    ],
)
def test_bad_input_is_one_line_and_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert message in refused("train", *arguments)
    assert list(tmp_path.rglob("*.*")) == []


def test_a_loss_that_is_not_finite_names_site_and_step(tmp_path: Path) -> None:
    message = refused("train", "sbn", "--lr", "1e37", "--evaluate-every", 30, "--out", tmp_path / "a", *SMALL)
    assert " at step " in message
    assert "keeps the last checkpoint" in message


def test_resuming_what_was_never_begun(tmp_path: Path) -> None:
    assert "no checkpoint in" in refused("train", "sbn", "--out", tmp_path, "--resume")


def test_fashion_mnist_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "PACKAGE_FOLDERS", ())
    assert "apt-get install dataset-fashion-mnist" in refused("train", "sbn", "--data", "fashion-mnist")


@pytest.fixture
def quick_noise(monkeypatch: pytest.MonkeyPatch) -> None:
    """Few draws: these tests are about the way the noise is reported."""
    monkeypatch.setattr(comparison, "WARM_UP", 3)
    monkeypatch.setattr(comparison, "DRAWS", 4)


@pytest.mark.usefixtures("quick_noise")
def test_compare_prints_one_table_and_saves_one_picture(tmp_path: Path) -> None:
    out = tmp_path / "c"
    arguments = [
        "compare",
        "sbn",
        "--estimators",
        "reinforce, nvil,rloo,gumbel_softmax,enumerate",
        "--out",
        out,
        *SMALL,
    ]
    result = call(*arguments, "--temperature", "0.5")
    assert result.exit_code == 0, result.output
    results = json.loads((out / "results.json").read_text())
    assert [row["estimator"] for row in results["rows"]] == ["reinforce", "nvil", "rloo", "gumbel_softmax", "enumerate"]
    for row in results["rows"]:
        assert row["test_bound"] >= row["test_elbo"]
        assert f"{row['test_elbo']:.2f}" in result.stdout
        assert row["gradient_variance"]["draws"] == 4
        assert len(row["test_elbo_curve"]["step"]) == 20
        assert (out / row["estimator"] / "checkpoint.pt").exists()
    by_name = {row["estimator"]: row["gradient_variance"]["guide"] for row in results["rows"]}
    assert by_name["enumerate"] < 1e-10 < by_name["reinforce"]
    assert results["gradient_variance_at"].startswith("parameters at the last step of ")
    pixels = matplotlib.image.imread(out / "comparison.png")
    assert pixels.std() > 0.01

    assert "already holds a run" in refused(*arguments)
    again = call(*arguments, "--temperature", "0.5", "--resume")
    assert again.exit_code == 0, again.output
    for before, after in zip(results["rows"], json.loads((out / "results.json").read_text())["rows"], strict=True):
        assert before["test_elbo"] == after["test_elbo"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--estimators", ","], "expected different names"),
        (["--estimators", "nvil,nvil"], "expected different names"),
        (["--estimators", "nvil,rlo"], "Did you mean 'rloo'"),
        (["--estimators", "reinforce,rloo", "--particles", "1"], "needs num_particles >= 2"),
    ],
)
def test_bad_comparisons_cost_no_training(tmp_path: Path, arguments: list[str], message: str) -> None:
    assert message in refused("compare", "sbn", "--out", tmp_path / "c", *arguments)
    assert not (tmp_path / "c").exists()


@pytest.mark.usefixtures("quick_noise")
def test_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo, "ESTIMATORS", ("reinforce", "nvil"))
    for _ in range(2):  # again into the same folder, as `make demo` does
        result = call("demo", "--out", tmp_path / "demo", "--steps", 3)
        assert result.exit_code == 0, result.output
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.png", "results.json"}
    results: list[dict[str, Any]] = json.loads((tmp_path / "demo" / "results.json").read_text())
    assert [len(part["rows"]) for part in results] == [2, 2, 3]
    assert "nats per image" in result.stdout


def test_list_names_everything() -> None:
    result = call("list")
    assert result.exit_code == 0
    for name in [*PROGRAMS, *KINDS, *available_estimators(), *DATASETS, *images.BINARISATIONS]:
        assert name in result.stdout


def test_every_setting_has_its_option() -> None:
    for command in ("train", "compare"):
        printed = call(command, "--help").stdout
        told = re.sub(r"[^\w.;,:()-]+", " ", printed)  # without frames and line breaks
        for name, (_, text) in SETTINGS.items():
            assert f"--{name.replace('_', '-')}" in printed
            assert "(default:" in text
            assert re.sub(r"[^\w.;,:()-]+", " ", text) in told


def test_what_estimators_claim() -> None:
    assert {name: bias(name) for name in ("reinforce", "nvil", "gumbel_softmax", "auto")} == {
        "reinforce": "unbiased",
        "nvil": "up to scale",
        "gumbel_softmax": "biased",
        "auto": "unbiased",
    }


def test_settings_reach_the_estimator() -> None:
    with pytest.raises(SettingError):
        build_elbo(configure("sbn", "gumbel_softmax", temperature=-1.0))
    with pytest.raises(ParticleError):
        build_elbo(configure("sbn", "rloo", particles=1))
    assert configure("sbn", "rloo").particles == 2
    assert configure("sbn", "nvil").particles == 1
    elbo = build_elbo(configure("sbn", "straight_through_gumbel_softmax", temperature=0.25, particles=3))
    assert elbo.num_particles == 3


def test_threads(tmp_path: Path) -> None:
    assert call("train", "sbn", "--threads", "1", "--out", tmp_path / "a", *SMALL).exit_code == 0
    assert torch.get_num_threads() == 1
