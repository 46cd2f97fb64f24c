"""Compare each ONNX variant with the PyTorch original on real rows. Gates take confidence intervals into account."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from export import metric
from export.long_steps import tracked
from export.rows import EncodedRows
from export.tasks._encoder import ExportedEncoderTask
from serving.errors import ExportError
from serving.manifests import VariantGate
from serving.reporting import plural
from serving.runtime.types import Arrays, Origins

Run = Callable[[Arrays], Arrays]
"""A function from the model inputs of some rows to the outputs that the task reads; the first axis of each is the row."""

MIN_AGREEMENT = {"fp32": 1.0, "fp16": 0.995, "int8": 0.97, "int8_rowwise": 0.97}
"""Default of ``--min-agreement`` by precision: the required share of rows whose label equals the original's."""
MIN_ROW_AGREEMENT = {"fp32": 1.0, "fp16": 0.99, "int8": 0.9, "int8_rowwise": 0.9}
"""Default of ``--min-row-agreement`` by precision: the required share of rows whose whole answer equals the original's.

It matters where an answer has several labels. A row of three labels, each of which agrees with the share in
:data:`MIN_AGREEMENT`, agrees as a whole with about this share: 0.97 ** 3 is 0.91, and 0.995 ** 3 is 0.985. For another number of
labels the default is scaled in the same way.
"""
SCALED_FROM_LABELS = 3
"""Number of labels that :data:`MIN_ROW_AGREEMENT` is for."""
MAX_LOGIT_DIFFERENCE = 1e-3
"""Allowed logit difference of fp32, multiplied by the largest logit if that is above 1."""
BATCH = 16
"""Rows per batch in verification and in the timing of batches."""
ROUNDING = 1e-6
"""Added before a sum of shares is rounded down to whole rows."""
MIN_ROWS = 64
"""Minimum number of rows for a meaningful verification.

If all labels of 64 rows agree, up to 5.6 % of all rows may still differ.
"""


@dataclass(frozen=True, kw_only=True)
class GateLimits:
    """The limits that the user may set.

    Attributes:
        max_metric_drop: Points (hundredths) of the main metric that a variant may lose.
        min_agreement: Required share of labels that agree; None: as in :data:`MIN_AGREEMENT`. fp32 always requires 1.
        min_row_agreement: Required share of rows whose whole answer agrees; None: as in :data:`MIN_ROW_AGREEMENT`, scaled by
            the number of labels. fp32 always requires 1.
    """

    max_metric_drop: float = 0.5
    min_agreement: float | None = None
    min_row_agreement: float | None = None


@dataclass(frozen=True, kw_only=True)
class OriginalOutputs:
    """The PyTorch original, which variants are compared with.

    Attributes:
        task: The task.
        outputs: Outputs of the original, ``[model rows, …]``.
        origins: Which request row each of the model's rows belongs to.
        references: The correct answers, one per labelled row.
    """

    task: ExportedEncoderTask
    outputs: Arrays
    origins: Origins
    references: Sequence[Any]

    @property
    def largest(self) -> float:
        """The largest magnitude of an output."""
        return max(float(np.abs(values).max()) for values in self.outputs.values())

    def answers(self, outputs: Arrays) -> Arrays:
        """Return the answers that the served task derives from a model's outputs, with the options that evaluation needs."""
        return self.task.answers(outputs, self.origins)


@dataclass(frozen=True, kw_only=True)
class VariantVerdict:
    """Result of :func:`verify_variant` for one variant.

    Attributes:
        metrics: Figures of the task's metrics by name; None if one is NaN or infinite.
        metric_drop: Points (hundredths) of the main metric that the variant loses.
        label_agreement: Share of rows whose answer equals the original's.
        row_agreement: Share of rows whose whole answer equals the original's; None if that is the label agreement.
        ties: Number of rows, or of labels within rows, that count as agreeing because the original's best two labels are tied.
        p99_score_change: 99th percentile of the changes of the scores of the original's labels; None without probabilities.
        max_score_change: Largest of these changes.
        max_logit_difference: Largest difference from the original's outputs; None if an output is NaN or infinite.
        mean_logit_difference: Mean difference; None if an output is NaN or infinite.
        gates: The gates.
    """

    metrics: dict[str, float | None]
    metric_drop: float
    label_agreement: float
    row_agreement: float | None
    ties: int
    p99_score_change: float | None
    max_score_change: float | None
    max_logit_difference: float | None
    mean_logit_difference: float | None
    gates: tuple[VariantGate, ...]

    @property
    def passed(self) -> bool:
        """Whether all gates held."""
        return all(gate.passed for gate in self.gates)


def compute_outputs(run: Run, rows: EncodedRows, task: ExportedEncoderTask, batches: Sequence[range], *, title: str) -> Arrays:
    """Run a model on all rows.

    Args:
        run: The model.
        rows: The rows.
        task: The task.
        batches: Indices of the model's rows, batch by batch.
        title: Label of the progress bar.

    Returns:
        The outputs, ``[model rows, …]``. If an axis is the position, it is as long as the longest row, and positions of padding are
        zero.
    """
    lengths = rows.lengths
    found: dict[str, Any] = {}
    for batch in tracked(batches, title):
        for name, values in run(rows.feed(batch)).items():
            if task.served.token_level:
                shape = (len(lengths), max(lengths), *values.shape[2:])
                target = found.setdefault(name, np.zeros(shape, dtype=np.float32))
                for index, row in zip(batch, values, strict=True):
                    target[index, : lengths[index]] = row[: lengths[index]]
            else:
                found.setdefault(name, []).append(values)
    return found if task.served.token_level else {name: np.concatenate(parts) for name, parts in found.items()}


def task_metrics(original: OriginalOutputs) -> dict[str, float | None]:
    """Return the figures of the task's metric for the original, by name; None if one is NaN or infinite.

    Raises:
        ExportError: The main metric is NaN or infinite.
    """
    return _metrics(original, original.outputs, original.answers(original.outputs), title="the PyTorch checkpoint")


def _metrics(original: OriginalOutputs, outputs: Arrays, answers: Arrays, *, title: str) -> dict[str, float | None]:
    task = original.task
    found = metric.compute(task.metric, task.predictions(answers), original.references)
    found |= task.extra_figures(outputs, original.outputs, original.origins, original.references)
    if not math.isfinite(main := found[task.main_metric]):
        raise ExportError(
            f"{task.main_metric} of {title} is {main}, so nothing can be compared", hint="check the rows to verify on"
        )
    return metric.finite_or_none(found)


def require_finite(outputs: Arrays) -> None:
    """Check the outputs of the original, because nothing can be compared with NaN.

    Args:
        outputs: ``[model rows, …]``.

    Raises:
        ExportError: An output is NaN or infinite.
    """
    finite = _finite_rows(outputs)
    if not finite.all():
        raise ExportError(
            f"the PyTorch checkpoint gives NaN or infinite {' and '.join(outputs)} for {(~finite).sum()} of {len(finite)} rows",
            hint="its weights are damaged, or its training diverged",
        )


def few_rows_warning(rows: int) -> str | None:
    """Return a warning if the number of rows is too small for a meaningful verification, otherwise None."""
    if rows >= MIN_ROWS:
        return None
    unseen = metric.share_interval(0, rows)[1]
    return (
        f"verified on only {rows} {plural(rows, 'row')}, fewer than {MIN_ROWS}, which is weak evidence. "
        f"Even if all labels agree on them, {unseen:.1%} of all rows may differ"
    )


def verify_variant(precision: str, original: OriginalOutputs, variant: Arrays, limits: GateLimits) -> VariantVerdict:
    """Compare a variant with the original, row by row.

    Args:
        precision: Precision of the variant.
        original: The original; its outputs are finite.
        variant: Outputs of the variant for the same rows. A row with a NaN or infinite output does not agree, counts as wrong in
            the accuracy and as zeros in any other metric, and fails a gate of its own.
        limits: Limits of the gates.

    Returns:
        Figures and gates.

    Raises:
        ExportError: The main metric is NaN or infinite.
    """
    task, rows = original.task, len(original.references)
    finite = _finite_rows(variant)
    outputs = variant
    if not finite.all():
        outputs = {name: np.nan_to_num(values, nan=0.0, posinf=0.0, neginf=0.0) for name, values in variant.items()}
    finite_requests = np.ones(original.origins.count, dtype=np.bool_)
    finite_requests[original.origins.sample_mapping[~finite]] = False
    valid = np.logical_and.reduce(finite_requests.reshape(-1, rows))  # a labelled row may take several requests
    answers, original_answers = original.answers(outputs), original.answers(original.outputs)
    metrics = _metrics(original, outputs, answers, title=precision)
    drop, interval = _drop(original, task.predictions(original_answers), task.predictions(answers), valid)
    agreement = task.agreement(answers, original_answers)
    ties = valid & (agreement < 1) & task.ties(original_answers)
    agreeing = float(np.where(valid, np.where(ties, 1, agreement), 0).sum())
    whole = task.row_agreement(answers, original_answers)
    p99, largest_change = metric.tail(task.score_changes(answers, original_answers))
    largest, mean = _differences(original.outputs, variant) if finite.all() else (None, None)
    gates = [
        _finite_gate(int((~valid).sum()), rows),
        drop_gate(task.main_metric, 100 * drop, (100 * interval[0], 100 * interval[1]), limits.max_metric_drop),
        _agreement_gate(agreeing, rows, _required(precision, limits.min_agreement, MIN_AGREEMENT)),
    ]
    if whole is not None:
        defaults = {name: share ** (task.labels_per_row / SCALED_FROM_LABELS) for name, share in MIN_ROW_AGREEMENT.items()}
        required = _required(precision, limits.min_row_agreement, defaults)
        gates.append(_row_agreement_gate(int((whole & valid).sum()), rows, required))
    if precision == "fp32":
        gates.append(_difference_gate(largest, original.largest))
    return VariantVerdict(
        metrics=metrics,
        metric_drop=100 * drop,
        label_agreement=agreeing / rows,
        row_agreement=None if whole is None else int((whole & valid).sum()) / rows,
        ties=int(ties.sum()) + task.near_ties(answers, original_answers),
        p99_score_change=p99,
        max_score_change=largest_change,
        max_logit_difference=largest,
        mean_logit_difference=mean,
        gates=tuple(gates),
    )


def _drop(
    original: OriginalOutputs, expected: Sequence[Any], variant: Sequence[Any], valid: npt.NDArray[np.bool_]
) -> tuple[float, tuple[float, float]]:
    """Return the drop of the main metric and its 95 % interval, which is exact if the metric is the accuracy."""
    task, references = original.task, original.references
    if task.main_metric != "accuracy":
        return metric.bootstrapped_drop(task.metric, task.main_metric, expected, variant, references)
    original_correct, variant_correct = (
        np.array([prediction == label for prediction, label in zip(predictions, references, strict=True)])
        for predictions in (expected, variant)
    )
    return metric.paired_drop(original_correct, variant_correct & valid)


def _finite_rows(outputs: Arrays) -> npt.NDArray[np.bool_]:
    """Return which rows have finite outputs only, ``[model rows]``."""
    each = [np.isfinite(values).reshape(len(values), -1).all(axis=-1) for values in outputs.values()]
    found: npt.NDArray[np.bool_] = np.logical_and.reduce(each)
    return found


def _differences(original: Arrays, variant: Arrays) -> tuple[float, float]:
    """Return the largest and the mean difference over all outputs, in float64 because float32 could overflow."""
    largest = total = 0.0
    for name, values in original.items():
        for row, other in zip(values, variant[name], strict=True):  # row by row, to limit the memory
            differences = np.abs(other.astype(np.float64) - row)
            largest, total = max(largest, float(differences.max())), total + float(differences.sum())
    return largest, total / sum(values.size for values in original.values())


def _required(precision: str, asked: float | None, defaults: Mapping[str, float]) -> float:
    return defaults[precision] if precision == "fp32" or asked is None else asked


def _finite_gate(broken: int, rows: int) -> VariantGate:
    message = f"logits are NaN or infinite for {broken} of {rows} rows"
    return VariantGate(name="finite", limit=0, value=broken, interval=None, passed=broken == 0, message=message)


def drop_gate(name: str, drop: float, interval: tuple[float, float], limit: float) -> VariantGate:
    """Make the gate of a metric.

    Args:
        name: Name of the figure.
        drop: Points (hundredths) that it is lower than the original's.
        interval: 95 % interval of the drop. The gate holds if the drop may be within the limit.
        limit: Points that may be lost.
    """
    message = f"{name} drops by {drop:.2f} points (95 % interval {interval[0]:.2f} to {interval[1]:.2f}), the limit is {limit:g}"
    return VariantGate(name="metric_drop", limit=limit, value=drop, interval=interval, passed=interval[0] <= limit, message=message)


def _agreement_gate(agreeing: float, rows: int, limit: float) -> VariantGate:
    """Make the gate of the label agreement.

    Args:
        agreeing: Number of rows that agree; a row that agrees in part counts in part. The interval is that of the whole rows.
        rows: Number of rows.
        limit: Required share.
    """
    share = agreeing / rows
    low, high = metric.share_interval(int(agreeing + ROUNDING), rows)
    message = (
        f"{agreeing:g} of {rows} labels agree with the original, {share:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), the minimum is {limit:.2%}"
    )
    return VariantGate(
        name="label_agreement", limit=limit, value=share, interval=(low, high), passed=high >= limit, message=message
    )


def _row_agreement_gate(agreeing: int, rows: int, limit: float) -> VariantGate:
    share, (low, high) = agreeing / rows, metric.share_interval(agreeing, rows)
    message = (
        f"the whole answers to {agreeing} of {rows} rows agree with the original's, {share:.2%} "
        f"(95 % interval {low:.2%} to {high:.2%}), the minimum is {limit:.2%}"
    )
    return VariantGate(name="row_agreement", limit=limit, value=share, interval=(low, high), passed=high >= limit, message=message)


def _difference_gate(difference: float | None, largest: float) -> VariantGate:
    """Make the gate of the logit difference.

    Args:
        difference: Largest difference; None if a logit is NaN or infinite.
        largest: Largest logit of the original.
    """
    limit = MAX_LOGIT_DIFFERENCE * max(1.0, largest)
    passed = difference is not None and difference <= limit
    found = "cannot be compared" if difference is None else f"differ by up to {difference:.2g}"
    message = f"logits {found}, the limit is {limit:.2g}"
    return VariantGate(name="max_logit_difference", limit=limit, value=difference, interval=None, passed=passed, message=message)


def overflow_gate(tensors: Sequence[str]) -> VariantGate:
    """Make the gate that no tensor inside the fp16 graph is NaN or infinite on real rows.

    Args:
        tensors: Names of those that are.
    """
    named = f": {', '.join(tensors[:3])}" if tensors else ""
    return VariantGate(
        name="overflow",
        limit=0,
        value=len(tensors),
        interval=None,
        passed=not tensors,
        message=f"{len(tensors)} tensors overflow in fp16{named}",
    )
