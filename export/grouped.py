"""Training a task that brings its own loss: all texts of a labelled row stand in one batch. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch.utils.data import SequentialSampler
from transformers import Trainer

from serving.runtime.tasks.base import Task


def grouped(columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, list[Any]]:
    """Values by request row, in the order of ``Task.requests`` → by labelled row, a list of those of its requests."""
    return {name: [list(values[row::rows]) for row in range(rows)] for name, values in columns.items()}


def in_request_order(rows: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Inverse of :func:`grouped`, for the rows of a batch: all rows' first requests, then all rows' second …"""
    requests = len(next(iter(rows[0].values())))
    return [{name: values[place] for name, values in row.items()} for place in range(requests) for row in rows]


class TaskTrainer(Trainer):  # type: ignore[misc]  # the library is untyped
    """A trainer whose rows are evaluated in the order given; for a task with its own loss, that one.

    What the model says of a batch is reduced to what the task reads of it before it is kept for the metric: the vectors of all
    tokens of an evaluation set would not fit into memory.
    """

    def __init__(self, task: Task, **arguments: Any) -> None:
        super().__init__(**arguments)
        self._task = task

    def _get_eval_sampler(self, eval_dataset: Any) -> Any:
        """Not sorted by length, as the library does where training is: answers are held against references by their place."""
        return SequentialSampler(eval_dataset)

    def compute_loss(self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, **arguments: Any) -> Any:
        """The loss, and with ``return_outputs`` ``outputs_read`` as ``[labelled rows, requests of each, …]``."""
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
