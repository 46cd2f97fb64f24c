"""``transformers.Trainer``, as tasks need it. Imports torch."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from transformers import Trainer

from serving.runtime.tasks._labels import IGNORED
from serving.runtime.tasks.base import Arrays, Origins, Task


class TaskTrainer(Trainer):  # type: ignore[misc]  # the library is untyped
    """Evaluates rows in their order, with the loss that the task brings where its model has none.

    What the model says of a batch is reduced to what the task reads of it before it is kept for the metric: what it says of every
    token of an evaluation set may be more than fits into memory.
    """

    def __init__(self, task: Task, **arguments: Any) -> None:
        super().__init__(compute_loss_func=_loss_of_groups if task.grouped else None, **arguments)
        self._task = task

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Grouping by length shuffles these too, and no prediction would stand beside its reference."""
        return torch.utils.data.SequentialSampler(eval_dataset)

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **arguments: Any) -> Any:
        """The loss; with the task's own, ``return_outputs`` gives ``outputs_read`` as ``[labelled rows, requests of each, …]``."""
        if not self._task.own_loss:
            return super().compute_loss(model, inputs, return_outputs=return_outputs, **arguments)
        targets = {name: inputs[name] for name in self.label_names}
        feed = {name: value for name, value in inputs.items() if name not in targets}
        heads = model(**feed)
        outputs: dict[str, Any] = self._task.reduced({name: heads[name] for name in self._task.heads}, feed)
        loss = self._task.loss(outputs, targets)
        if not return_outputs:
            return loss
        rows = len(next(iter(targets.values())))
        by_row = {name: values.unflatten(0, (-1, rows)).transpose(0, 1) for name, values in outputs.items()}
        return loss, {"loss": loss, **by_row}

    def prediction_step(self, model: Any, inputs: Any, *arguments: Any, **named: Any) -> Any:
        """Loss, outputs and targets of a batch."""
        loss, outputs, targets = super().prediction_step(model, inputs, *arguments, **named)
        if not self._task.tail or self._task.own_loss or outputs is None:
            return loss, outputs, targets
        found = outputs if isinstance(outputs, tuple) else (outputs,)
        heads = {name: head.float().cpu().numpy() for name, head in zip(self._task.heads, found, strict=True)}
        reduced = self._task.reduced(heads, {name: values.cpu().numpy() for name, values in inputs.items()})
        return loss, tuple(torch.from_numpy(reduced[name]) for name in self._task.outputs_read), targets


def _loss_of_groups(outputs: Any, labels: Any, **_: Any) -> Any:
    """Cross entropy of each group's right row among its rows. The models' own cannot take groups of unlike sizes.

    Args:
        labels: ``[groups, rows]``, 1 for the right row, 0 for others, :data:`IGNORED` where a group has no such row.
    """
    logits = outputs["logits"].masked_fill(labels == IGNORED, -math.inf)
    return torch.nn.functional.cross_entropy(logits, labels.argmax(dim=-1))


def predicted(predictions: Any, task: Task, origins: Origins) -> Arrays:
    """What the trainer collected of the model's outputs → ``outputs_read`` by name, ``[model rows, …]``."""
    outputs = predictions if isinstance(predictions, tuple) else (predictions,)
    if task.grouped:  # [groups, most rows of one]
        counts = np.bincount(origins.owners)[:, None]
        outputs = tuple(values[np.arange(values.shape[1]) < counts][:, None] for values in outputs)
    elif task.own_loss:  # [labelled rows, requests of each, …]
        outputs = tuple(values.swapaxes(0, 1).reshape(-1, *values.shape[2:]) for values in outputs)
    return dict(zip(task.outputs_read, outputs, strict=True))
