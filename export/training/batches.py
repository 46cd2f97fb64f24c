"""Encoded rows → the batches a model is trained on. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from serving.runtime.tasks._labels import IGNORED
from serving.runtime.tasks.base import Features, Task
from serving.runtime.tokenization import FIELDS

TEACHER_LOGITS = "teacher_logits"
"""Column of what a teacher says of the rows, where it is asked once."""


def training_columns(features: Features, names: Sequence[str], targets: Mapping[str, Sequence[Any]], task: Task) -> dict[str, Any]:
    """Inputs called ``names`` and targets as columns of a data set, whose rows are those that must stand in one batch.

    Mostly that is one row of the model. Where the model takes all rows of a request row along an axis of their own, or the loss is
    of all requests of a labelled row, it is a list of them, and ``length`` says how long the longest is.
    """
    inputs: dict[str, Any] = {name: [getattr(encoding, FIELDS[name]) for encoding in features.encodings] for name in names}
    if task.grouped:
        inputs, targets = _by_owner(inputs, features.origins.owners), _by_owner(targets, features.origins.owners)
    elif task.own_loss:
        inputs = _by_row(inputs, len(next(iter(targets.values()))))
    else:
        return {**inputs, **targets}
    return {**inputs, **targets, "length": [max(map(len, rows)) for rows in inputs["input_ids"]]}


def _by_owner(columns: Mapping[str, Sequence[Any]], owners: Any) -> dict[str, list[Any]]:
    """Columns of the model's rows → of groups of them, one per request row."""
    ends = np.cumsum(np.bincount(owners)).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    return {name: [list(values[start:end]) for start, end in spans] for name, values in columns.items()}


def _by_row(columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, list[Any]]:
    """Columns of requests in the order of ``Task.requests`` → of lists of them, one per labelled row."""
    return {name: [list(values[row::rows]) for row in range(rows)] for name, values in columns.items()}


class Collator:
    """Rows of a data set → a batch, padded on the right as when serving. Targets that are as long as their rows are padded too.

    What the task draws anew each time it draws by numpy's own state, which the trainer keeps with its checkpoints.
    """

    def __init__(self, tokenizer: Any, task: Task) -> None:
        self._tokenizer = tokenizer
        self._task = task

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        inputs = [{name: value for name, value in row.items() if name in FIELDS} for row in rows]
        batch = self._padded(inputs)
        for name in rows[0].keys() - FIELDS.keys() - {"length"}:
            values = [row[name] for row in rows]
            if isinstance(values[0], list):
                longest = max(map(len, values))
                values = [[*value, *[IGNORED] * (longest - len(value))] for value in values]
            batch[name] = torch.tensor(values)
        generator = np.random.default_rng(np.random.randint(2**31))
        altered = self._task.altered({name: values.numpy() for name, values in batch.items()}, generator)
        return {name: torch.from_numpy(values) for name, values in altered.items()}

    def _padded(self, inputs: Sequence[Mapping[str, Any]]) -> Any:
        if self._task.grouped:
            return self._padded_groups(inputs)
        if self._task.own_loss:  # all rows' first requests, then all rows' second …
            requests = len(inputs[0]["input_ids"])
            inputs = [{name: values[place] for name, values in row.items()} for place in range(requests) for row in inputs]
        return self._pad(inputs)

    def _padded_groups(self, groups: Sequence[Mapping[str, Any]]) -> Any:
        """``[groups, most rows of one, tokens]``. Where a group has fewer rows than another, its first stands in for them: unlike
        padding alone, that gives numbers."""
        most = max(len(group["input_ids"]) for group in groups)
        chosen = [(group, index if index < len(group["input_ids"]) else 0) for group in groups for index in range(most)]
        batch = self._pad([{name: values[index] for name, values in group.items()} for group, index in chosen])
        return {name: values.view(len(groups), most, -1) for name, values in batch.items()}

    def _pad(self, rows: Sequence[Mapping[str, Any]]) -> Any:
        return self._tokenizer.pad(rows, padding_side="right", return_tensors="pt")
