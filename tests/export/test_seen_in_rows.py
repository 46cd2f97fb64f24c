"""What fine-tuning says about the rows and the model: unknown tokens, baselines, conflicting labels, the main metric."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from export import leaks, splits
from export.baseline import figure_lines, measure_baseline, warn_if_not_better
from export.data import LabelledRows
from export.options import with_chosen_metric
from export.tasks import task_class
from export.tasks.text_classification import MULTI_LABEL, REGRESSION, TextClassificationTask
from export.tasks.trained import TrainedTask
from export.unknown_tokens import count_unknown_tokens, warn_of_unknown_tokens
from serving.errors import DataError
from serving.manifests import TrainingFigures
from tests.helpers.manifests import checkpoint_manifest
from tests.helpers.tasks import answering, choosing, classification, tagging

TWO = classification(("bad", "good"), "softmax")
NUMBERS = classification(("score",), "none", REGRESSION)
MANY = classification(("joy", "fear"), "sigmoid", MULTI_LABEL)
WORDS = tagging(("O", "B-x", "I-x"))
QUESTIONS = answering()
CHOICES = choosing()


def rows(*labels: Any, texts: Sequence[str] = ()) -> LabelledRows:
    return LabelledRows(texts=(tuple(texts) or tuple(f"text {index}" for index in range(len(labels))),), labels=labels)


def tagged(*labels: str) -> dict[str, list[Any]]:
    return {"start": list(range(len(labels))), "end": list(range(1, len(labels) + 1)), "label": list(labels)}


@pytest.mark.parametrize(
    ("task", "train", "validation", "description", "figures"),
    [
        (TWO, (1, 1, 0), (1, 0, 0, 1), "always good", {"accuracy": 0.5, "f1_macro": 1 / 3, "matthews_correlation": 0}),
        (MANY, ([0], [0, 1], []), ([0], [1]), "always joy", {"f1_micro": 0.5, "exact": 0.5}),
        (NUMBERS, (1.0, 4.0), (2.5, 3.5), "always 2.5, the mean", {"spearman": 0, "pearson": 0, "negative_mse": -0.5}),
        (WORDS, (tagged("O", "O", "B-x"),), (tagged("O", "B-x"),), "O for every word", {"f1": 0, "word_accuracy": 0.5}),
        (
            QUESTIONS,
            ([], [{"text": "Paris", "answer_start": 0}]),
            ([], [{"text": "Paris", "answer_start": 0}]),
            "no answer to any question",
            {"f1": 0.5, "exact_match": 0.5},
        ),
        (CHOICES, (1, 1, 0), (1, 0, 0, 0), "always position 1", {"accuracy": 0.25}),
    ],
)
def test_baselines(task: TrainedTask, train: Any, validation: Any, description: str, figures: dict[str, float]) -> None:
    found = measure_baseline(task, {"train": rows(*train), "validation": rows(*validation)})
    assert found is not None and found.test is None
    assert found.description.startswith(description)
    assert {name: found.validation[name] for name in figures} == pytest.approx(figures)


def test_a_task_without_a_baseline_has_none() -> None:
    task: Any = task_class("feature-extraction").from_labels([0.5, 1.0], names=(), pair=True)  # type: ignore[attr-defined]
    assert measure_baseline(task, {"train": rows(0.5), "validation": rows(0.5)}) is None


def trained_figures(accuracy: float) -> TrainingFigures:
    baseline = measure_baseline(TWO, {"train": rows(1, 1, 0), "validation": rows(1, 0), "test": rows(1, 0, 0, 0)})
    figures = checkpoint_manifest().figures.model_dump()
    split = {"loss": 0.5, "accuracy": accuracy}
    return TrainingFigures.model_validate({**figures, "validation": split, "test": split, "baseline": baseline})


def test_the_baseline_stands_beside_the_figures(caplog: pytest.LogCaptureFixture) -> None:
    assert figure_lines(trained_figures(0.75), "macro: a mean") == [
        "baseline, in brackets: always good, the most frequent label of the training rows",
        "          validation       test",
        "loss      0.5000           0.5000",
        "accuracy  0.7500 (0.5000)  0.7500 (0.2500)",
        "macro: a mean",
    ]
    without = trained_figures(0.75).model_copy(update={"baseline": None})
    assert figure_lines(without, "") == [
        "          validation  test",
        "loss      0.5000      0.5000",
        "accuracy  0.7500      0.7500",
    ]
    only_validation = without.model_copy(update={"test": None})
    assert figure_lines(only_validation, "") == ["          validation", "loss      0.5000", "accuracy  0.7500"]
    for figures in (trained_figures(0.26), without):
        warn_if_not_better(figures, "accuracy")
    assert not caplog.records
    warn_if_not_better(trained_figures(0.25), "accuracy")
    assert "the model is not better than the baseline: accuracy 0.2500 on the test rows, 0.2500 for always good" in caplog.text


@pytest.mark.parametrize(
    ("task", "name", "main"),
    [
        (TWO, "matthews_correlation", "matthews_correlation"),
        (TWO, "accuracy", "accuracy"),
        (MANY, "f1_macro", "f1_macro"),
        (NUMBERS, "mse", "negative_mse"),
        (WORDS, "recall", "recall"),
        (QUESTIONS, "exact_match", "exact_match"),
    ],
)
def test_the_main_metric_can_be_chosen(task: TrainedTask, name: str, main: str) -> None:
    chosen = with_chosen_metric(task, name)
    assert chosen.main_metric == main
    assert type(task).from_settings(chosen.to_settings()).main_metric == main, "it travels with the settings"
    assert with_chosen_metric(task, None) == task
    assert with_chosen_metric(chosen, task.default_metric) == task


@pytest.mark.parametrize(
    ("task", "name", "known"),
    [
        (TWO, "f1", "accuracy, f1_macro, f1_weighted, precision_macro, recall_macro, matthews_correlation, f1_positive"),
        (classification(("a", "b", "c"), "softmax"), "f1_positive", "accuracy, f1_macro, f1_weighted, "),
        (NUMBERS, "accuracy", "spearman, pearson, negative_mse"),
        (MANY, "accuracy", "f1_micro, f1_macro, exact"),
        (QUESTIONS, "bleu", "f1, exact_match"),
    ],
)
def test_a_metric_that_does_not_fit_is_refused(task: TrainedTask, name: str, known: str) -> None:
    with pytest.raises(DataError) as caught:
        with_chosen_metric(task, name)
    assert caught.value.message.startswith(f"the rows of {task.name} have no metric {name}; they have {known}")


def test_every_selectable_metric_is_a_figure() -> None:
    labels: dict[TrainedTask, Any] = {
        TWO: (0, 1),
        MANY: ([0], [1]),
        NUMBERS: (0.0, 1.0),
        WORDS: (tagged("O"), tagged("B-x")),
        QUESTIONS: ([], []),
        CHOICES: (0, 1),
    }
    for task, values in labels.items():
        found = measure_baseline(task, {"train": rows(*values), "validation": rows(*values)})
        assert found is not None and set(task.selectable_metrics) <= found.validation.keys()


def test_unknown_tokens_are_counted_and_shown(base_checkpoint: Path, caplog: pytest.LogCaptureFixture) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(base_checkpoint)
    texts = ["좋은 영화", "the film", "영화 the 영화", "a film"]
    found = count_unknown_tokens(rows(0, 1, 0, 1, texts=texts), TWO, tokenizer, seed=0)
    assert found is not None
    assert (found.rows, found.token) == (0.5, "[UNK]")
    assert found.tokens == pytest.approx(4 / 9)
    assert found.example.split() == ["[UNK]", "[UNK]"]
    warn_of_unknown_tokens(found)
    assert "50% of the training rows have unknown tokens ([UNK]), 44% of all tokens, such as: [UNK] [UNK]" in caplog.text
    caplog.clear()
    warn_of_unknown_tokens(found.model_copy(update={"rows": 0.1, "tokens": 0.01}))
    known = count_unknown_tokens(rows(1, texts=["the film"]), TWO, tokenizer, seed=0)
    assert known is not None and (known.rows, known.tokens, known.example) == (0, 0, "")
    warn_of_unknown_tokens(known)
    tokenizer.unk_token = None
    assert count_unknown_tokens(rows(1, texts=["영화"]), TWO, tokenizer, seed=0) is None
    warn_of_unknown_tokens(None)
    assert not caplog.records


@pytest.mark.parametrize(
    ("task", "labels", "said"),
    [
        (TWO, (1, 0, 1, 1), "'Fine.' with good and bad"),
        (MANY, ([0], [], [1], [0, 1]), "'Fine.' with joy and no label"),
        (NUMBERS, (0.5, 1.5, 1.0, 2.0), "'Fine.' with 0.5 and 1.5"),
    ],
)
def test_conflicting_labels_are_shown(
    task: TextClassificationTask, labels: tuple[Any, ...], said: str, caplog: pytest.LogCaptureFixture
) -> None:
    train = rows(*labels, texts=["Fine.", "fine", "Dull", "Other"])
    found = leaks.find_leaks({"train": train})
    assert found.conflicting_texts == 1
    splits._report_leaks(found, task, removed=True)
    expected = f"1 training text has conflicting labels (ignoring case, spaces and punctuation), such as {said}"
    assert [(record.levelno, record.message) for record in caplog.records] == [(logging.WARNING, expected)]
    caplog.clear()
    splits._report_leaks(replace(found, conflict=None), task, removed=True)
    assert not caplog.records
