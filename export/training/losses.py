"""Losses that the models in ``transformers`` have not themselves. Imports torch."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch.nn import functional

from export.training.hyperparameters import Hyperparameters
from serving.errors import DataError
from serving.runtime.tasks._labels import IGNORED
from serving.runtime.tasks.base import Task

Loss = Callable[[Any, Any], Any]
"""Logits and labels of a batch → a tensor of one number."""


def loss_function(task: Task, options: Hyperparameters, targets: Sequence[Any], *, unlabelled: bool = False) -> Loss | None:
    """What takes the place of the model's own loss; None: nothing needs to.

    Args:
        targets: of the training rows, one per model row: a label, a list of them, or as many numbers as there are labels.
        unlabelled: some rows have none (see :func:`missing_label`).

    Raises:
        DataError: the task's labels cannot be weighed or smoothed.
    """
    if not unlabelled:
        return _loss(task, options, targets)
    known = [target for target in targets if not _is_none(target)]
    return _of_labelled(_loss(task, options, known) or _usual(task))


def _usual(task: Task) -> Loss:
    """What the models in ``transformers`` have for texts."""
    match task.head().get("problem_type"):
        case "regression":
            return lambda logits, labels: functional.mse_loss(logits.squeeze(-1), labels)
        case "multi_label_classification":
            return _each_label(None)
        case _:
            return _one_label(None, 0.0)


def missing_label(target: Any) -> Any:
    """What stands in the place of such a target for a row that has none: :data:`IGNORED`, or no number."""
    if isinstance(target, list):
        return [missing_label(one) for one in target]
    return math.nan if isinstance(target, float) else IGNORED


def _is_none(target: Any) -> bool:
    first = target[0] if isinstance(target, list) else target
    return first == IGNORED if isinstance(first, int) else math.isnan(first)


def _of_labelled(loss: Loss) -> Loss:
    """``loss`` of the rows that have a label, shared out over all: then it is the same in whatever parts a step is taken."""

    def labelled(logits: Any, labels: Any) -> Any:
        first = labels if labels.ndim == 1 else labels[:, 0]
        rows = ~first.isnan() if first.is_floating_point() else first != IGNORED
        return loss(logits[rows], labels[rows]) * rows.float().mean() if rows.any() else logits.sum() * 0

    return labelled


def _loss(task: Task, options: Hyperparameters, targets: Sequence[Any]) -> Loss | None:
    if not (options.class_weights or options.label_smoothing):
        return grouped_cross_entropy if task.grouped else None
    asked = "--class-weights" if options.class_weights else "--label-smoothing"
    labels = task.settings().get("labels", ())
    if len(labels) < 2:
        raise DataError(f"{asked} is for labels of which there are several", hint=f"leave it out for {task.name}")
    several = bool(targets) and isinstance(targets[0], list) and any(isinstance(one, float) for one in targets[0])
    if several and options.label_smoothing:
        raise DataError("--label-smoothing is for rows with one label each", hint="leave it out")
    if several:
        return _each_label(_shares(targets) if options.class_weights else None)
    weights = _balanced(targets, len(labels)) if options.class_weights else None
    return _one_label(weights, options.label_smoothing)


def grouped_cross_entropy(logits: Any, labels: Any) -> Any:
    """Cross entropy of each group's right row among its rows. The models' own cannot take groups of unlike sizes.

    Args:
        logits: ``[groups, rows]``.
        labels: ``[groups, rows]``, 1 for the right row, 0 for others, :data:`IGNORED` where a group has no such row.
    """
    return functional.cross_entropy(logits.masked_fill(labels == IGNORED, -math.inf), labels.argmax(dim=-1))


def _one_label(weights: Any | None, smoothing: float) -> Loss:
    def loss(logits: Any, labels: Any) -> Any:
        weight = None if weights is None else weights.to(logits)
        flat = logits.reshape(-1, logits.shape[-1]), labels.reshape(-1)
        return functional.cross_entropy(*flat, weight=weight, ignore_index=IGNORED, label_smoothing=smoothing)

    return loss


def _each_label(weights: Any | None) -> Loss:
    def loss(logits: Any, labels: Any) -> Any:
        return functional.binary_cross_entropy_with_logits(
            logits, labels, pos_weight=None if weights is None else weights.to(logits)
        )

    return loss


def label_counts(targets: Iterable[Any]) -> Counter[int]:
    """How often each label stands in ``targets``, those of tokens without one left out."""
    return Counter(label for target in targets for label in (target if isinstance(target, list) else [target]) if label != IGNORED)


def _balanced(targets: Sequence[Any], labels: int) -> Any:
    """So that all labels weigh alike together, and one of average frequency weighs 1; one that no row has weighs nothing."""
    counts = label_counts(targets)
    total = sum(counts.values())
    return torch.tensor([total / (len(counts) * counts[label]) if counts[label] else 0.0 for label in range(labels)])


def _shares(targets: Sequence[Any]) -> Any:
    """For each label how many rows lack it for one that has it."""
    had = torch.tensor(targets).sum(dim=0).clamp(min=1)
    return (len(targets) - had).clamp(min=1) / had
