"""Losses that weigh or smooth labels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn import functional

from export import cli
from export.tasks.base import IGNORED
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, SINGLE_LABEL, TextClassificationTask
from export.tasks.trained import TrainedTask
from export.training.hyperparameters import Hyperparameters
from export.training.losses import grouped_cross_entropy, loss_function
from serving.artifact import read_manifest
from serving.errors import DataError
from serving.manifests import CheckpointManifest
from tests.helpers import tasks
from tests.helpers.reviews import review_rows, write_tsv

WEIGHTS, SMOOTHING = Hyperparameters(class_weights=True), Hyperparameters(label_smoothing=0.1)


def classification(kind: str, *labels: str) -> TextClassificationTask:
    return tasks.classification(labels, "none", kind)


def test_models_keep_their_own_loss_where_nothing_is_asked() -> None:
    assert loss_function(classification(SINGLE_LABEL, "a", "b"), Hyperparameters(), [0, 1]) is None
    assert loss_function(tasks.choosing(), Hyperparameters(), []) is grouped_cross_entropy


def test_rare_labels_weigh_as_much_as_frequent_ones() -> None:
    loss = loss_function(classification(SINGLE_LABEL, "often", "rare", "never"), WEIGHTS, [0, 0, 0, 1])
    assert loss is not None
    logits = torch.zeros(4, 3)
    assert float(loss(logits, torch.tensor([0, 0, 0, 1]))) == pytest.approx(float(torch.tensor(3.0).log()))
    logits[3, 1] = 5  # the rare one right, the frequent ones not
    plain = functional.cross_entropy(logits, torch.tensor([0, 0, 0, 1]))
    assert float(loss(logits, torch.tensor([0, 0, 0, 1]))) < float(plain)


def test_tokens_without_a_label_count_for_nothing() -> None:
    tagger = tasks.tagging(("O", "B-x"))
    loss = loss_function(tagger, WEIGHTS, [[IGNORED, 0, 0, 0], [IGNORED, 1]])
    assert loss is not None
    logits, labels = torch.randn(1, 4, 2), torch.tensor([[IGNORED, 0, 0, 1]])
    weights = torch.tensor([4 / 6, 4 / 2])
    assert float(loss(logits, labels)) == pytest.approx(
        float(functional.cross_entropy(logits[0, 1:], labels[0, 1:], weight=weights))
    )


def test_each_of_several_labels_is_weighed_by_itself() -> None:
    loss = loss_function(classification(MULTI_LABEL, "a", "b"), WEIGHTS, [[1.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 0.0]])
    assert loss is not None
    logits, labels = torch.zeros(1, 2), torch.ones(1, 2)
    assert float(loss(logits, labels)) == pytest.approx((1 / 3 + 3) / 2 * 0.6931, rel=1e-3)


def test_smoothing_is_that_of_torch() -> None:
    loss = loss_function(classification(SINGLE_LABEL, "a", "b", "c"), SMOOTHING, [0, 1, 2])
    assert loss is not None
    logits, labels = torch.randn(5, 3), torch.tensor([0, 1, 2, 0, 1])
    assert float(loss(logits, labels)) == pytest.approx(float(functional.cross_entropy(logits, labels, label_smoothing=0.1)))


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (classification(REGRESSION, "score"), WEIGHTS, "--class-weights is for labels of which there are several"),
        (tasks.answering(), SMOOTHING, "--label-smoothing is for labels of which there are several"),
        (classification(MULTI_LABEL, "a", "b"), SMOOTHING, "--label-smoothing is for rows with one label each"),
    ],
)
def test_labels_that_cannot_be_weighed_are_told(task: TrainedTask, options: Hyperparameters, message: str) -> None:
    with pytest.raises(DataError, match=message):
        loss_function(task, options, [[1.0, 0.0]])


def test_training_and_its_evaluation_take_the_loss_that_was_asked_for(in_folder: Path, base_checkpoint: Path) -> None:
    rows = review_rows(300, seed=3)
    often, rare = ([row for row in rows if row[1] == label] for label in ("negative", "positive"))
    write_tsv(in_folder / "train.tsv", [*often, *rare[:10]])
    write_tsv(in_folder / "dev.tsv", review_rows(60, seed=4))
    command = [
        "finetune",
        "--checkpoint",
        str(base_checkpoint),
        "--train",
        "train.tsv",
        "--validation",
        "dev.tsv",
        "--device",
        "cpu",
    ]
    command += ["--epochs", "1", "--batch-size", "16", "--learning-rate", "3e-3", "--max-length", "32"]
    losses = []
    for name, more in (("plain", []), ("weighed", ["--class-weights"]), ("smoothed", ["--label-smoothing", "0.2"])):
        assert cli.main([*command, "--name", name, *more]) == 0
        manifest = read_manifest(in_folder / "artifacts" / name / "checkpoint", CheckpointManifest)
        losses.append(manifest.figures.validation["loss"])
        assert manifest.training["class_weights"] == (name == "weighed")
    assert len(set(losses)) == 3
