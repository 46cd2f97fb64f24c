"""Losses that the models in ``transformers`` do not have themselves. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from export.tasks.base import IGNORED
from export.tasks.trained import TrainedTask
from export.training.hyperparameters import Hyperparameters
from serving.errors import DataError

Loss = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Maps the logits and labels of a batch to a tensor with one number."""
LossTarget = Any
"""Target of a model row: a class (int), a number (float), a list of classes, or a list of one float per label."""


def loss_function(
    task: TrainedTask, options: Hyperparameters, targets: Sequence[LossTarget], *, unlabelled: bool = False
) -> Loss | None:
    """Choose the loss that replaces the model's own.

    Args:
        task: The task, bound to its labels.
        options: Hyper-parameters; ``class_weights`` and ``label_smoothing`` shape the loss.
        targets: Targets of the training rows, one per model row. They are only needed for class weights or label smoothing.
        unlabelled: Whether some rows have no label (see :func:`missing_label`).

    Returns:
        The loss; None if the model's own loss applies.

    Raises:
        DataError: Class weights or label smoothing do not apply to the task's labels.
    """
    if not unlabelled:
        return _weighted_loss(task, options, targets)
    known = [target for target in targets if not _is_missing(target)]
    return _of_labelled_rows(_weighted_loss(task, options, known) or _default_loss(task))


def missing_label(target: LossTarget) -> LossTarget:
    """Return the value that marks a missing target of the same type: :data:`IGNORED` for classes, NaN for numbers."""
    if isinstance(target, list):
        return [missing_label(one) for one in target]
    return math.nan if isinstance(target, float) else IGNORED


def grouped_cross_entropy(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Compute the cross entropy of each group's right row among its rows. The models' own loss requires groups of equal size.

    Args:
        logits: ``[groups, rows]``, float.
        labels: ``[groups, rows]``, int: 1 for the right row, 0 for others, :data:`IGNORED` for padding rows.

    Returns:
        The mean over the groups.
    """
    return functional.cross_entropy(logits.masked_fill(labels == IGNORED, -math.inf), labels.argmax(dim=-1))


def _default_loss(task: TrainedTask) -> Loss:
    """Return the loss of the sequence classification models in ``transformers``."""
    match task.head().get("problem_type"):
        case "regression":
            return lambda logits, labels: functional.mse_loss(logits.squeeze(-1), labels)
        case "multi_label_classification":
            return _binary_cross_entropy(None)
        case _:
            return _cross_entropy(None, 0.0)


def _is_missing(target: LossTarget) -> bool:
    first = target[0] if isinstance(target, list) else target
    return first == IGNORED if isinstance(first, int) else math.isnan(first)


def _of_labelled_rows(loss: Loss) -> Loss:
    """Apply ``loss`` to the labelled rows, scaled by their share of the batch.

    So gradient accumulation does not change the result.
    """

    def labelled(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        first = labels if labels.ndim == 1 else labels[:, 0]
        rows = ~first.isnan() if first.is_floating_point() else first != IGNORED
        return loss(logits[rows], labels[rows]) * rows.float().mean() if rows.any() else logits.sum() * 0

    return labelled


def _weighted_loss(task: TrainedTask, options: Hyperparameters, targets: Sequence[LossTarget]) -> Loss | None:
    if not (options.class_weights or options.label_smoothing):
        return grouped_cross_entropy if task.grouped else None
    option = "--class-weights" if options.class_weights else "--label-smoothing"
    labels = task.labels
    if len(labels) < 2:
        raise DataError(f"{option} requires a task with several labels", hint=f"leave it out for {task.name}")
    multi_label = bool(targets) and isinstance(targets[0], list) and any(isinstance(one, float) for one in targets[0])
    if multi_label and options.label_smoothing:
        raise DataError("--label-smoothing requires rows with one label each", hint="leave it out")
    if multi_label:
        return _binary_cross_entropy(_positive_weights(targets) if options.class_weights else None)
    weights = _class_weights(targets, len(labels)) if options.class_weights else None
    return _cross_entropy(weights, options.label_smoothing)


def _cross_entropy(weights: torch.Tensor | None, smoothing: float) -> Loss:
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = None if weights is None else weights.to(logits)
        flat = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        return functional.cross_entropy(*flat, weight=weight, ignore_index=IGNORED, label_smoothing=smoothing)

    return loss


def _binary_cross_entropy(weights: torch.Tensor | None) -> Loss:
    def loss(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        weight = None if weights is None else weights.to(logits)
        return functional.binary_cross_entropy_with_logits(logits, labels, pos_weight=weight)

    return loss


def _class_weights(targets: Sequence[LossTarget], labels: int) -> torch.Tensor:
    """Return scikit-learn's balanced class weights, ``[labels]``; 0 for labels that no row has."""
    flat = np.fromiter(chain.from_iterable(target if isinstance(target, list) else [target] for target in targets), dtype=np.int64)
    flat = flat[flat != IGNORED]
    present = np.unique(flat)
    weights = torch.zeros(labels)
    weights[present] = torch.from_numpy(compute_class_weight("balanced", classes=present, y=flat)).float()
    return weights


def _positive_weights(targets: Sequence[LossTarget]) -> torch.Tensor:
    """Return for each label the ratio of rows without it to rows with it, ``[labels]``."""
    positive = torch.tensor(targets).sum(dim=0).clamp(min=1)
    return (len(targets) - positive).clamp(min=1) / positive
