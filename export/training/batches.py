"""Batches for training, made from tokenized rows. Imports torch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from export.tasks.base import IGNORED
from export.tasks.trained import AugmentedTask, OwnLossTask, TrainedTask
from serving.runtime.tokenization import FIELDS
from serving.runtime.types import Features, Integers

TEACHER_LOGITS = "teacher_logits"
"""Name of the column with the teacher's logits, if they are computed once in advance."""


def training_columns(
    features: Features, names: Sequence[str], targets: Mapping[str, Sequence[Any]], task: TrainedTask
) -> dict[str, Any]:
    """Make the columns of a data set, in which each row holds what must be in one batch together.

    For most tasks that is one row of the model. Where the model takes all rows of a request along an axis of their own, or the loss
    needs all requests of a labelled row, it is a list of model rows, and the column ``length`` holds the length of the longest.

    Args:
        features: The tokenized rows.
        names: Names of the model's inputs.
        targets: Training targets by name.
        task: The task.

    Returns:
        Columns by name.
    """
    inputs: dict[str, Any] = {name: [getattr(encoding, FIELDS[name]) for encoding in features.encodings] for name in names}
    if task.grouped:
        inputs, targets = _by_sample(inputs, features.origins.sample_mapping), _by_sample(targets, features.origins.sample_mapping)
    elif isinstance(task, OwnLossTask):
        inputs = _by_row(inputs, len(next(iter(targets.values()))))
    else:
        return {**inputs, **targets}
    return {**inputs, **targets, "length": [max(map(len, rows)) for rows in inputs["input_ids"]]}


def _by_sample(columns: Mapping[str, Sequence[Any]], sample_mapping: Integers) -> dict[str, list[Any]]:
    """Group the columns of model rows into one list per request row."""
    ends = np.cumsum(np.bincount(sample_mapping)).tolist()
    spans = list(zip([0, *ends[:-1]], ends, strict=True))
    return {name: [list(values[start:end]) for start, end in spans] for name, values in columns.items()}


def _by_row(columns: Mapping[str, Sequence[Any]], rows: int) -> dict[str, list[Any]]:
    """Group the columns of requests, in the order of ``Task.requests``, into one list per labelled row."""
    return {name: [list(values[row::rows]) for row in range(rows)] for name, values in columns.items()}


class Collator:
    """Makes batches of rows of a data set, padded on the right as when serving. Targets with one value per token are padded too.

    Random augmentation depends on numpy's global state, which the trainer saves with its checkpoints.
    """

    def __init__(self, padding: Mapping[str, int], task: TrainedTask) -> None:
        """Bind the collator to a task.

        Args:
            padding: Value of padded positions by model input name (see :func:`export.model_inputs.bind_padding`).
            task: The task, which may augment batches.
        """
        self._padding = padding
        self._task = task

    def __call__(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Make one batch.

        Args:
            rows: Rows of a data set.

        Returns:
            Tensors by name of input or target, ``[rows, …]``.
        """
        inputs = [{name: value for name, value in row.items() if name in FIELDS} for row in rows]
        batch = self._padded(inputs)
        for name in rows[0].keys() - FIELDS.keys() - {"length"}:
            values = [row[name] for row in rows]
            if isinstance(values[0], list):
                longest = max(map(len, values))
                values = [[*value, *[IGNORED] * (longest - len(value))] for value in values]
            batch[name] = torch.tensor(values)
        if not isinstance(self._task, AugmentedTask):
            return batch
        generator = np.random.default_rng(np.random.randint(2**31))
        augmented = self._task.augment_batch({name: values.numpy() for name, values in batch.items()}, generator)
        return {name: torch.from_numpy(values) for name, values in augmented.items()}

    def _padded(self, inputs: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        if self._task.grouped:
            return self._padded_groups(inputs)
        if isinstance(self._task, OwnLossTask):  # the first requests of all rows, then the second requests …
            requests = len(inputs[0]["input_ids"])
            inputs = [{name: values[place] for name, values in row.items()} for place in range(requests) for row in inputs]
        return self._pad(inputs)

    def _padded_groups(self, groups: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Pad to ``[groups, rows of the largest group, tokens]``.

        A group with fewer rows repeats its first row, because a row of padding alone makes the model return NaN.
        """
        most = max(len(group["input_ids"]) for group in groups)
        chosen = [(group, index if index < len(group["input_ids"]) else 0) for group in groups for index in range(most)]
        batch = self._pad([{name: values[index] for name, values in group.items()} for group, index in chosen])
        return {name: values.view(len(groups), most, -1) for name, values in batch.items()}

    def _pad(self, rows: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        return {
            name: pad_sequence(
                [torch.tensor(row[name]) for row in rows], batch_first=True, padding_value=self._padding.get(name, 0)
            )
            for name in rows[0]
        }
