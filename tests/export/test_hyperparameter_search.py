"""The search for hyper-parameters: what it tries, what it takes, and that it goes on where it was."""

from __future__ import annotations

import json
import signal
from pathlib import Path
from typing import Any

import pytest

from export import cli
from export.training import search
from export.training.hyperparameters import Hyperparameters
from serving.artifact import read_manifest
from serving.errors import DivergedError
from serving.manifests import CheckpointManifest
from tests.helpers.reviews import review_rows, write_tsv

TINY = ("--epochs", "2", "--max-length", "32", "--device", "cpu", "--name", "tiny", "--batch-size", "16")


@pytest.fixture
def data(in_folder: Path) -> Path:
    """Folder with train.tsv and validation.tsv; also the working directory."""
    for seed, (split, count) in enumerate({"train": 160, "validation": 60}.items()):
        write_tsv(in_folder / f"{split}.tsv", review_rows(count, seed=60 + seed))
    return in_folder


def command(checkpoint: Path, *more: str) -> list[str]:
    return ["finetune", "--checkpoint", str(checkpoint), "--train", "train.tsv", "--validation", "validation.tsv", *TINY, *more]


def test_the_best_of_the_trials_is_trained_with(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(command(base_checkpoint, "--search", "4", "--weight-decay", "0.02", "--json")) == 0
    out, err = capsys.readouterr()
    figures = json.loads(out)["figures"]
    assert figures["search"]["trials"] == 4
    assert figures["validation"]["accuracy"] == pytest.approx(figures["search"]["accuracy"]), "it is that training"
    trials = [line for line in err.splitlines() if line.startswith("trial ")]
    assert [line.partition(":")[0] for line in trials] == [f"trial {number} of 4" for number in (1, 2, 3, 4)]
    assert trials[0].endswith("learning rate 0.0001, warmup ratio 0.1, layer decay 1"), "first as it would be without a search"
    assert len(set(trials)) == 4 and "weight decay" not in err, "what was given stays"
    manifest = read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest)
    assert manifest.training["weight_decay"] == 0.02 and manifest.training["batch_size"] == 16
    assert f"{manifest.training['learning_rate']:.3g}" in err
    assert [path.name for path in (data / "artifacts" / "tiny").iterdir()] == ["checkpoint"], "no trial's weights stay"


@pytest.mark.long
def test_an_interrupted_search_goes_on(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, trained = search.train, []

    def press_ctrl_c(*arguments: Any) -> Any:
        trained.append(arguments[0].options)
        if len(trained) in (1, 4):
            signal.raise_signal(signal.SIGINT)
        return train(*arguments)

    monkeypatch.setattr(search, "train", press_ctrl_c)
    for _ in range(2):
        assert cli.main(command(base_checkpoint, "--search", "4")) == 1
        assert "interrupted" in capsys.readouterr().err
    assert cli.main(command(base_checkpoint, "--search", "4")) == 0
    assert trained[0] == trained[1], "what was being tried is tried again, the usual options first"
    assert trained[3] == trained[4]
    assert len({repr(options) for options in trained}) == 4 and len(trained) == 6, "two interrupted, and four others"
    assert read_manifest(data / "artifacts" / "tiny" / "checkpoint", CheckpointManifest).figures.search.trials >= 3


def test_trials_that_diverge_are_not_taken(
    data: Path, base_checkpoint: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    train, trained = search.train, []

    def diverge(*arguments: Any) -> Any:
        trained.append(1)
        if len(trained) != 2:
            raise DivergedError("training diverged")
        return train(*arguments)

    monkeypatch.setattr(search, "train", diverge)
    assert cli.main(command(base_checkpoint, "--search", "3")) == 0
    assert capsys.readouterr().err.count("  diverged: training diverged") == 2
    monkeypatch.setattr(search, "train", lambda *_: (_ for _ in ()).throw(DivergedError("training diverged")))
    assert cli.main(command(base_checkpoint, "--search", "2")) == 1
    assert "error: every trial diverged" in capsys.readouterr().err


def test_nothing_to_search_is_an_error(data: Path, base_checkpoint: Path, capsys: pytest.CaptureFixture[str]) -> None:
    given = [f"--{name.replace('_', '-')}={value}" for name, value in zip(search.SEARCHED, (1e-3, 16, 0.1, 0.1, 0.9), strict=True)]
    assert cli.main(command(base_checkpoint, "--search", "2", *given)) == 1
    assert "error: nothing is left to search: learning_rate, batch_size" in capsys.readouterr().err


def test_steps_that_are_tried_can_be_shared_out() -> None:
    trial = search.optuna.create_study().ask()
    search._suggested(trial, "batch_size", Hyperparameters(batch_size=24, gradient_accumulation=8))
    assert trial.distributions["batch_size"].choices == (24, 48), "12 rows have no 8 equal parts"
