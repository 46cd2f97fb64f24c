"""Are the answers right, and are they the original's?"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.answers import differences, largest_difference, same
from benchmarks.inputs import BenchmarkRows
from benchmarks.report import ChangedAnswer, Estimate, Quality
from export import metric
from serving.runtime.tasks.base import Arrays, Task

BINS = 15
MOVED = 10
"""Rows shown of those whose answers differ."""


def evaluate(
    task: Task, rows: BenchmarkRows, answers: Arrays, original: Arrays | None, *, logit_difference: float | None = None
) -> Quality:
    """The task's metric over ``answers`` to the labelled rows, and how far they are from the original's.

    Args:
        original: the original's answers to the same rows; None where these are they.
        logit_difference: largest, where it was seen.
    """
    predictions = task.predictions(answers)
    metrics = metric.compute(task.metric, predictions, rows.references)
    theirs = answers if original is None else original
    return Quality(
        rows=len(rows.references),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        agreement=float(np.mean(task.agreement(answers, theirs))),
        max_score_difference=_finite(largest_difference(answers, theirs)),
        max_logit_difference=logit_difference,
        main=_estimate(*metric.bootstrapped(task.metric, task.main_metric, predictions, rows.references)),
        drop=None if original is None else _drop(task, predictions, task.predictions(original), rows.references),
        calibration_error=calibration_error(task.confidence(answers), predictions, rows.references),
        not_finite=not_finite(answers),
        moved=[] if original is None else moved(task, rows, answers, original),
    )


def evaluate_pipeline(task: Task, rows: BenchmarkRows, answers: Sequence[Any], original: Arrays) -> Quality:
    """How many answers of ``transformers.pipeline`` are the original's, were those given in the pipeline's own form."""
    wanted = task.completed(task.pipeline_answers(original, **task.pipeline_options), [tuple(row) for row in rows.labelled])
    agreeing = [same(mine, theirs) for mine, theirs in zip(answers, wanted, strict=True)]
    return Quality(rows=len(rows.labelled), metrics={}, agreement=float(np.mean(agreeing)), max_score_difference=None)


def _drop(task: Task, mine: Sequence[Any], original: Sequence[Any], references: Sequence[Any]) -> Estimate | None:
    drop, (low, high) = metric.bootstrapped_drop(task.metric, task.main_metric, original, mine, references)
    return _estimate(drop, low, high)


def _estimate(value: float, low: float, high: float) -> Estimate | None:
    """None where one of them is no number, as a correlation of equal numbers."""
    return Estimate(value=value, low=low, high=high) if all(map(math.isfinite, (value, low, high))) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def not_finite(answers: Arrays) -> int:
    """How many rows hold a number that is infinite or none."""
    broken = [~np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in answers.values() if values.dtype.kind == "f"]
    return int(np.logical_or.reduce(broken).sum()) if broken else 0


def calibration_error(
    confidence: npt.NDArray[np.float64] | None, predictions: Sequence[Any], references: Sequence[Any]
) -> float | None:
    """Expected calibration error over 15 bins of equal width (Guo et al. 2017, "On Calibration of Modern Neural Networks").

    Args:
        confidence: ``[rows]``, the probability given to each prediction; None: the task's scores are none.

    Returns:
        None without probabilities, and where one of them is no number.
    """
    if confidence is None or not np.isfinite(confidence).all():
        return None
    right = np.array([mine == wanted for mine, wanted in zip(predictions, references, strict=True)], dtype=np.float64)
    places = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(places, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def moved(task: Task, rows: BenchmarkRows, answers: Arrays, original: Arrays) -> list[ChangedAnswer]:
    """The rows whose answers differ most from the original's: other labels first, then other scores."""
    agreement, apart = task.agreement(answers, original), differences(answers, original)
    requests = len(rows.labelled) // len(rows.references)  # a labelled row may take several
    by_row = None if apart is None else np.nan_to_num(apart, nan=np.inf).reshape(requests, -1).max(axis=0)
    distance = np.zeros(len(agreement)) if by_row is None else by_row
    names = [tensor.name for tensor in task.inputs()]
    mine, theirs = task.predictions(answers), task.predictions(original)
    found = []
    for row in np.lexsort((-distance, agreement))[:MOVED].tolist():
        if agreement[row] == 1 and distance[row] == 0:
            break
        asked = rows.labelled[row :: len(rows.references)]
        texts = {
            name if requests == 1 else f"{name} {place + 1}": text
            for place, request in enumerate(asked)
            for name, text in zip(names, request, strict=True)
        }
        found.append(
            ChangedAnswer(
                row=row,
                texts=texts,
                reference=_worded(task, rows.references[row]),
                original=_worded(task, theirs[row]),
                answer=_worded(task, mine[row]),
                difference=None if by_row is None else _finite(float(by_row[row])),
            )
        )
    return found


def _worded(task: Task, value: Any) -> Any:
    """A prediction as people know it: the label's name rather than its number."""
    labels = task.settings().get("labels")
    if labels and isinstance(value, int) and 0 <= value < len(labels):
        return labels[value]
    if labels and isinstance(value, list) and all(isinstance(one, int) for one in value):
        return [labels[one] for one in value]
    return json.loads(json.dumps(value, default=float), parse_constant=str)  # JSON has no NaN
