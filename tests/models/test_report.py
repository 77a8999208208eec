"""The report on a run: one file that holds its figures, pictures and settings."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from models.cli.commands import app


def test_train_then_report(tmp_path: Path) -> None:
    out = tmp_path / "run"
    small = ["--latents", "3", "--steps", "20", "--bound-samples", "2", "--monitor-every", "10", "--out", str(out)]
    trained = CliRunner().invoke(app, ["train", "sbn", "--estimator", "rloo", *small])
    assert trained.exit_code == 0, trained.output
    reported = CliRunner().invoke(app, ["report", str(out)])
    assert reported.exit_code == 0, reported.output
    page = (out / "report.html").read_text()
    assert "sbn on digits, trained with rloo" in page
    assert page.count("data:image/png;base64,") == 4  # curves, gradients, reconstructions, samples
    assert "bound of the test data (ELBO)" in page
    assert 'name="viewport"' in page
    assert "categories" not in page  # which this program does not read
    assert "hidden layers" in page
    assert "http" not in page  # nothing is fetched


def test_a_folder_without_a_finished_run_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["report", str(tmp_path)])
    assert result.exit_code == 2
    assert "a report is written on a finished run" in " ".join(result.output.split())
