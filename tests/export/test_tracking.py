"""Trackers that are told how training goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from export import cli
from tests.helpers.reviews import review_rows, write_tsv


@pytest.fixture
def command(in_folder: Path, base_checkpoint: Path) -> list[str]:
    write_tsv(in_folder / "train.tsv", review_rows(120, seed=90))
    data = ["finetune", "--name", "tiny", "--checkpoint", str(base_checkpoint), "--train", "train.tsv", "--device", "cpu"]
    return [*data, "--epochs", "2", "--batch-size", "16", "--max-length", "32", "--learning-rate", "5e-3"]


def test_tensorboard_is_told_and_its_files_stay(command: list[str], in_folder: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    assert cli.main([*command, "--report-to", "tensorboard"]) == 0
    runs = in_folder / "artifacts" / "tiny" / "runs"
    told = EventAccumulator(str(runs)).Reload()
    assert {"train/loss", "train/learning_rate", "eval/accuracy"} <= set(told.Tags()["scalars"])
    assert len(told.Scalars("eval/accuracy")) >= 2
    assert not (in_folder / "artifacts" / "tiny" / ".training").exists()


def test_nobody_is_told_unasked(command: list[str], in_folder: Path) -> None:
    assert cli.main(command) == 0
    assert [path.name for path in (in_folder / "artifacts" / "tiny").iterdir()] == ["checkpoint"]


def test_trackers_that_are_not_there_are_told_before_anything_is_trained(
    command: list[str], in_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main([*command, "--report-to", "notebook"]) == 1
    assert "error: there is no tracker 'notebook' (one of " in capsys.readouterr().err
    assert cli.main([*command, "--report-to", "clearml"]) == 1
    assert "error: --report-to clearml needs its package (pip install clearml)" in capsys.readouterr().err
    assert not (in_folder / "artifacts" / "tiny" / "checkpoint").exists()
