"""Are the answers right, and are they the original's?"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from benchmarks.report import Quality
from benchmarks.runners import Answers
from export import metric
from serving.runtime.tasks.base import Task


def judge(task: Task, references: Sequence[int], answers: Answers, original: Answers) -> Quality:
    """The task's metric over ``answers``, and how far they are from the original's.

    Args:
        references: position of the right label of each row.
        answers, original: to the same rows in the same order.
    """
    labels: tuple[str, ...] = tuple(task.settings()["labels"])
    predictions = [labels.index(row[0]["label"]) for row in answers]
    agreeing = [mine[0]["label"] == theirs[0]["label"] for mine, theirs in zip(answers, original, strict=True)]
    difference = np.abs(_scores(labels, answers) - _scores(labels, original))
    return Quality(
        rows=len(predictions),
        metrics=metric.compute(task.metric, predictions, references),
        agreement=float(np.mean(agreeing)),
        max_score_difference=float(difference.max()),
    )


def _scores(labels: tuple[str, ...], answers: Answers) -> npt.NDArray[np.float64]:
    """``[rows, labels]``, labels in the model's order."""
    by_label = [{item["label"]: item["score"] for item in row} for row in answers]
    return np.array([[row[label] for label in labels] for row in by_label])
