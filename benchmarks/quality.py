"""Are the answers right, and are they the original's?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.report import Quality
from export import metric
from serving.runtime.tasks.base import Task

Answers = dict[str, list[list[Any]]]
"""Answers by output tensor, one list per row, strings decoded."""


def judge(task: Task, references: Sequence[int], answers: Answers, original: Answers) -> Quality:
    """The task's metric over ``answers``, and how far they are from the original's.

    Args:
        references: position of the right label of each row.
        answers, original: ``LABEL`` and ``SCORES`` of the same rows in the same order.
    """
    labels: tuple[str, ...] = tuple(task.settings()["labels"])
    predictions = [labels.index(row[0]) for row in answers["LABEL"]]
    agreeing = [mine == theirs for mine, theirs in zip(answers["LABEL"], original["LABEL"], strict=True)]
    difference = np.abs(np.array(answers["SCORES"]) - np.array(original["SCORES"]))
    return Quality(
        rows=len(predictions),
        metrics=metric.compute(task.metric, predictions, references),
        agreement=float(np.mean(agreeing)),
        max_score_difference=float(difference.max()),
    )
