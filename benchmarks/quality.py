"""Quality of answers: the task's metric, and agreement with the original."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import JsonValue

from benchmarks.answers import differences, largest_difference, same
from benchmarks.inputs import BenchmarkRows
from benchmarks.measurements import ChangedAnswer, Estimate, Quality
from export import metric
from export.tasks._encoder import ExportedEncoderTask
from serving.runtime.types import Arrays

BINS = 15
SHOWN = 10
"""Number of changed answers in a report."""


def evaluate(
    task: ExportedEncoderTask,
    rows: BenchmarkRows,
    answers: Arrays,
    original: Arrays | None,
    *,
    logit_difference: float | None = None,
) -> Quality:
    """Compute the metric over answers to the labelled rows, and their distance from the original's; None: they are its own."""
    predictions = task.predictions(answers)
    metrics = metric.compute(task.metric, predictions, rows.references)
    theirs = answers if original is None else original
    drop = None
    if original is not None:
        lost, (low, high) = metric.bootstrapped_drop(
            task.metric, task.main_metric, task.predictions(original), predictions, rows.references
        )
        drop = _estimate(lost, low, high)
    whole = task.row_agreement(answers, theirs)
    p99, largest = map(_finite, metric.tail(task.score_changes(answers, theirs)))
    return Quality(
        rows=len(rows.references),
        metrics={name: value for name, value in metrics.items() if math.isfinite(value)},
        agreement=float(np.mean(task.agreement(answers, theirs))),
        row_agreement=None if whole is None else float(np.mean(whole)),
        p99_score_change=p99,
        max_score_change=largest,
        max_score_difference=_finite(largest_difference(answers, theirs)),
        max_logit_difference=logit_difference,
        main=_estimate(*metric.bootstrapped(task.metric, task.main_metric, predictions, rows.references)),
        drop=drop,
        calibration_error=calibration_error(task.confidence(answers), predictions, rows.references),
        not_finite=not_finite(answers),
        changed_answers=[] if original is None else changed_answers(task, rows, answers, original),
    )


def evaluate_pipeline(task: ExportedEncoderTask, rows: BenchmarkRows, answers: Sequence[JsonValue], original: Arrays) -> Quality:
    """Compute how many answers of ``transformers.pipeline`` equal the original's in the pipeline's own form.

    The pipeline does not return enough for the metric.
    """
    _, shown = task.served.sanitize_parameters(task.pipeline_options)
    wanted = task.served.add_inputs(task.served.format_answers(original, **shown), [tuple(row) for row in rows.labelled])
    agreeing = [same(mine, theirs) for mine, theirs in zip(answers, wanted, strict=True)]
    return Quality(rows=len(rows.labelled), metrics={}, agreement=float(np.mean(agreeing)), max_score_difference=None)


def _estimate(value: float, low: float, high: float) -> Estimate | None:
    """None if one of them is NaN or infinite, as the correlation of equal numbers is."""
    return Estimate(value=value, low=low, high=high) if all(map(math.isfinite, (value, low, high))) else None


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


def not_finite(answers: Arrays) -> int:
    """Count the rows that hold NaN or infinity."""
    broken = [~np.isfinite(values).reshape(len(values), -1).all(axis=1) for values in answers.values() if values.dtype.kind == "f"]
    return int(np.logical_or.reduce(broken).sum()) if broken else 0


def calibration_error(
    confidence: npt.NDArray[np.float64] | None, predictions: Sequence[Any], references: Sequence[Any]
) -> float | None:
    """Compute the expected calibration error over 15 bins of equal width.

    Guo et al. 2017, "On Calibration of Modern Neural Networks".

    Returns:
        The error, 0 to 1; None without a probability of each prediction, ``[rows]``, or if one of them is NaN or infinite.
    """
    if confidence is None or not np.isfinite(confidence).all():
        return None
    right = np.array([mine == wanted for mine, wanted in zip(predictions, references, strict=True)], dtype=np.float64)
    places = np.minimum((confidence * BINS).astype(np.int64), BINS - 1)
    gaps = np.bincount(places, weights=confidence - right, minlength=BINS)
    return float(np.abs(gaps).sum() / len(right))


def changed_answers(task: ExportedEncoderTask, rows: BenchmarkRows, answers: Arrays, original: Arrays) -> list[ChangedAnswer]:
    """List the answers that differ most from the original's: other labels first, then other scores; at most :data:`SHOWN`."""
    agreement, apart = task.agreement(answers, original), differences(answers, original)
    requests = len(rows.labelled) // len(rows.references)  # a labelled row may take several
    by_row = None if apart is None else np.nan_to_num(apart, nan=np.inf).reshape(requests, -1).max(axis=0)
    distance = np.zeros(len(agreement)) if by_row is None else by_row
    mine, theirs = task.predictions(answers), task.predictions(original)
    return [
        ChangedAnswer(
            row=row,
            texts=_texts(task, rows, row),
            reference=_readable(task, rows.references[row]),
            original=_readable(task, theirs[row]),
            answer=_readable(task, mine[row]),
            difference=None if by_row is None else _finite(float(by_row[row])),
        )
        for row in np.lexsort((-distance, agreement))[:SHOWN].tolist()
        if agreement[row] != 1 or distance[row] != 0
    ]


def _texts(task: ExportedEncoderTask, rows: BenchmarkRows, row: int) -> dict[str, str]:
    """Texts of a labelled row by input tensor, numbered if the row takes several requests."""
    requests = rows.labelled[row :: len(rows.references)]
    names = [tensor.name for tensor in task.served.inputs()]
    return {
        name if len(requests) == 1 else f"{name} {place + 1}": text
        for place, request in enumerate(requests)
        for name, text in zip(names, request, strict=True)
    }


def _readable(task: ExportedEncoderTask, value: Any) -> JsonValue:
    """A prediction with names of labels instead of their numbers."""
    labels = task.labels
    if labels and isinstance(value, int) and 0 <= value < len(labels):
        return str(labels[value])
    if labels and isinstance(value, list) and all(isinstance(one, int) for one in value):
        return [str(labels[one]) for one in value]
    readable: JsonValue = json.loads(json.dumps(value, default=float), parse_constant=str)  # JSON has no NaN
    return readable
