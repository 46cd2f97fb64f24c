"""Are the answers right, and are they the original's?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.answers import largest_difference, same
from benchmarks.report import Quality
from export import metric
from serving.runtime.tasks.base import Arrays, Task


def judge(task: Task, references: Sequence[Any], answers: Arrays, original: Arrays) -> Quality:
    """The task's metric over ``answers``, and how far they are from the original's.

    Args:
        references: what the task's predictions are held against, one per labelled row.
        answers, original: to the same rows in the same order.
    """
    return Quality(
        rows=len(references),
        metrics=metric.compute(task.metric, task.predictions(answers), references),
        agreement=float(np.mean(task.agreement(answers, original))),
        max_score_difference=largest_difference(answers, original),
    )


def judge_pipeline(task: Task, answers: Sequence[Any], original: Arrays, rows: Sequence[Sequence[str]]) -> Quality:
    """How many answers of ``transformers.pipeline`` are the original's, were those given in the pipeline's own form.

    Args:
        rows: of requests: what they answer.
    """
    wanted = task.completed(task.pipeline_answers(original, **task.pipeline_options), [tuple(row) for row in rows])
    agreeing = [same(mine, theirs) for mine, theirs in zip(answers, wanted, strict=True)]
    return Quality(rows=len(rows), metrics={}, agreement=float(np.mean(agreeing)), max_score_difference=None)
