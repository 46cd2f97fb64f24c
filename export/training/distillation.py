"""Distillation: a model learns from a larger one's logits as well as from the labels (Hinton et al. 2015). Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import track
from torch.nn import functional

from export import checkpoint as checkpoints
from export.data import LabelledRows, model_rows
from export.tasks.base import IGNORED, label_names
from export.tasks.trained import AugmentedTask, OwnLossTask, TrainedTask
from export.training.batches import TEACHER_LOGITS
from export.training.hyperparameters import Distillation
from serving.errors import ArtifactError, DataError
from serving.reporting import console, logger
from serving.runtime.tokenization import FIELDS, TextEncoder

PART = 10
"""So often it is told how far the teacher has read, where there is no terminal."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """A larger model that is done learning.

    Args:
        order: where each of the student's labels stands among the teacher's.
        inputs: names of what its model takes.
    """

    model: Any
    tokenizer: Any
    task: TrainedTask
    options: Distillation
    order: Sequence[int] | None
    inputs: Collection[str]

    @property
    def cacheable(self) -> bool:
        """Whether it says of a row the same few numbers each time, so that it need be asked only once."""
        return _cacheable(self.task)

    def logits(self, rows: LabelledRows, *, at_once: int, max_length: int, device: str) -> list[list[float]]:
        """Its logits of each row, in the order of the student's labels, as it reads the texts through its own tokenizer.

        Args:
            at_once: rows that it reads at a time.
            max_length: tokens kept of a row, unless it takes fewer.
            device: ``auto``, ``cpu`` or ``gpu``.

        Raises:
            DataError: a row that it cannot take.
        """
        max_length = checkpoints.chosen_max_length(None, self.tokenizer, self.model.config.to_dict(), default=max_length)
        place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        model = self.model.to(place)
        names = [name for name in self.tokenizer.model_input_names if name in FIELDS and name in self.inputs]
        padding = {"input_ids": self.tokenizer.pad_token_id}
        encoder = TextEncoder(self.tokenizer.backend_tokenizer, max_length=max_length, names=names, padding=padding)
        encodings = model_rows(rows, self.task, encoder, training=True).encodings
        found: list[list[float]] = [[]] * len(encodings)
        for places in _shown(sorted(range(len(encodings)), key=lambda at: len(encodings[at])), at_once):
            arrays = encoder.arrays([encodings[at] for at in places])
            with torch.no_grad():
                wanted = model(**{name: torch.from_numpy(values).to(place) for name, values in arrays.items()})
            for at, logits in zip(places, self._ordered(wanted[self.task.heads[0]]).float().tolist(), strict=True):
                found[at] = logits
        self.model.to("cpu")  # it is not asked again
        return found

    def loss(self, hard: Any, outputs: Mapping[str, Any], batch: Mapping[str, Any]) -> Any:
        """The loss by the labels, ``hard``, and how far ``outputs`` are from what the teacher says of the ``batch``, weighed."""
        if TEACHER_LOGITS in batch:
            wanted = {self.task.heads[0]: batch[TEACHER_LOGITS]}
        else:
            self.model.to(hard.device)
            with torch.no_grad():
                told = self.model(**{name: values for name, values in batch.items() if name in self.inputs})
            wanted = {head: self._ordered(told[head]) for head in self.task.heads}
        apart = [self._apart(outputs[head], wanted[head], batch.get("labels")) for head in self.task.heads]
        weight = self.options.weight
        return (1 - weight) * hard + weight * sum(apart) / len(apart)

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
        width = min(ours.shape[-1], theirs.shape[-1])  # vocabularies are filled up to unlike sizes with what is no token
        ours, theirs = ours[..., :width], theirs[..., :width]
        heat = self.options.temperature
        soft = functional.log_softmax(ours / heat, dim=-1), functional.log_softmax(theirs / heat, dim=-1)
        return functional.kl_div(*soft, reduction="batchmean", log_target=True) * heat**2


def load_teacher(folder: Path, task: TrainedTask, student: Any, options: Distillation) -> Teacher:
    """The teacher in ``folder`` for a student with the tokenizer ``student``.

    Raises:
        ArtifactError: it cannot be loaded, or was taught another task or other labels.
        DataError: students of the task cannot be taught so.
    """
    if isinstance(task, OwnLossTask):
        raise DataError(f"a teacher shows logits, and {task.name} has none", hint="leave out --teacher")
    checkpoints.require_task(checkpoints.read_config(folder), type(task), options.teacher)
    tokenizer = checkpoints.load_tokenizer(folder, pads_with_end=task.causal)
    if options.parts and not _cacheable(task):
        raise DataError(f"parts of texts teach no {task.name}", hint="leave out --teacher-parts")
    if not _cacheable(task) and _rules(tokenizer) != _rules(student):
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
    )


def _cacheable(task: TrainedTask) -> bool:
    return not (task.token_level or task.grouped or isinstance(task, AugmentedTask))


def _shown(places: Sequence[int], at_once: int) -> Iterator[Sequence[int]]:
    """``places`` in batches, and how far it is."""
    terminal = console().is_terminal
    starts = range(0, len(places), at_once)
    said = {starts[len(starts) * part // PART] for part in range(PART)} if not terminal else set()
    for start in track(starts, "the teacher reads", console=console(), transient=True, disable=not terminal):
        if start in said:
            logger.info(f"the teacher reads: {start} of {len(places)} texts")
        yield places[start : start + at_once]


def _rules(tokenizer: Any) -> tuple[Any, ...]:
    backend = tokenizer.backend_tokenizer
    steps = (backend.normalizer, backend.pre_tokenizer, backend.post_processor)
    return (backend.get_vocab(), *(None if step is None else step.__getstate__() for step in steps))


def _order(task: TrainedTask, config: Mapping[str, Any], teacher: str) -> list[int] | None:
    ours = task.labels
    if not ours:
        return None
    theirs = label_names(config)
    if set(ours) != set(theirs) or len(theirs) != len(ours):
        raise ArtifactError(
            f"{teacher} knows the labels {', '.join(theirs)}, the rows have {', '.join(ours)}",
            hint="fine-tune the teacher on rows with the same labels",
        )
    return [theirs.index(label) for label in ours]
