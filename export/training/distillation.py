"""Distillation: a model learns from a larger one's logits as well as from the labels (Hinton et al. 2015). Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional

from export import checkpoint as checkpoints
from export.training.batches import TEACHER
from export.training.hyperparameters import Distillation
from serving.errors import ArtifactError, DataError
from serving.runtime.tasks._labels import IGNORED, label_names
from serving.runtime.tasks.base import Task
from serving.runtime.tokenization import FIELDS


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A larger model that is done learning.

    Args:
        order: where each of the student's labels stands among the teacher's.
        inputs: names of what its model takes.
        own_tokens: it reads the texts through a tokenizer of its own, in columns that begin with ``TEACHER``.
    """

    model: Any
    tokenizer: Any
    task: Task
    options: Distillation
    order: Sequence[int] | None
    inputs: Collection[str]
    own_tokens: bool

    def loss(self, hard: Any, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """The loss by the labels, ``hard``, and how far ``outputs`` are from what the teacher says of the ``batch``, weighed."""
        self.model.to(hard.device)
        prefix = TEACHER if self.own_tokens else ""
        feed = {name.removeprefix(prefix): values for name, values in batch.items() if name.startswith(prefix)}
        with torch.no_grad():
            wanted = self.model(**{name: values for name, values in feed.items() if name in self.inputs})
        parts = [self._apart(outputs[head], self._ordered(wanted[head]), batch.get("labels")) for head in self.task.heads]
        weight = self.options.weight
        return (1 - weight) * hard + weight * sum(parts) / len(parts)

    def _ordered(self, logits: Any) -> Any:
        return logits if self.order is None else logits[..., self.order]

    def _apart(self, ours: Any, theirs: Any, labels: Any) -> Any:
        kind = self.task.head().get("problem_type")
        if kind == "regression":
            return functional.mse_loss(ours, theirs)
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(ours, theirs.sigmoid())
        if labels is not None and labels.ndim == ours.ndim - 1 and ours.ndim == 3:  # tokens; those without a label teach nothing
            ours, theirs = ours[labels != IGNORED], theirs[labels != IGNORED]
        elif labels is not None and labels.shape == ours.shape:  # groups; some have fewer rows than others
            ours, theirs = (logits.masked_fill(labels == IGNORED, torch.finfo(logits.dtype).min) for logits in (ours, theirs))
        heat = self.options.temperature
        soft = functional.log_softmax(ours / heat, dim=-1), functional.log_softmax(theirs / heat, dim=-1)
        return functional.kl_div(*soft, reduction="batchmean", log_target=True) * heat**2


def load_teacher(folder: Path, task: Task, student: Any, options: Distillation) -> Teacher:
    """The teacher in ``folder`` for a student with the tokenizer ``student``.

    Raises:
        ArtifactError: it cannot be loaded, or was taught another task or other labels.
        DataError: students of the task cannot be taught so.
    """
    if task.own_loss:
        raise DataError(f"a teacher shows logits, and {task.name} has none", hint="leave out --teacher")
    checkpoints.require_task(checkpoints.read_config(folder), type(task), options.teacher)
    tokenizer = checkpoints.load_tokenizer(folder, pads_with_end=task.causal)
    own_tokens = _rules(tokenizer) != _rules(student)
    if own_tokens and (task.token_level or task.grouped):
        raise DataError(
            f"{options.teacher} has another tokenizer than the student: what it says of its tokens is of no use to the student",
            hint=f"a teacher for {task.name} must have the same tokenizer",
        )
    model = checkpoints.load_model(folder, type(task)).requires_grad_(False)
    return Teacher(
        model=model,
        tokenizer=tokenizer,
        task=task,
        options=options,
        order=_order(task, model.config.to_dict(), options.teacher),
        inputs={*FIELDS, *(("labels",) if task.generates else ())} & inspect.signature(model.forward).parameters.keys(),
        own_tokens=own_tokens,
    )


def _rules(tokenizer: Any) -> tuple[Any, ...]:
    backend = tokenizer.backend_tokenizer
    steps = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return (backend.get_vocab(), *(None if step is None else step.__getstate__() for step in steps))


def _order(task: Task, config: Mapping[str, Any], teacher: str) -> list[int] | None:
    ours = task.settings().get("labels")
    if not ours:
        return None
    theirs = label_names(config)
    if set(ours) != set(theirs) or len(theirs) != len(ours):
        raise ArtifactError(
            f"{teacher} knows the labels {', '.join(theirs)}, the rows have {', '.join(ours)}",
            hint="fine-tune the teacher on rows with the same labels",
        )
    return [theirs.index(label) for label in ours]
