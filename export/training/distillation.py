"""Distillation: the student learns from a teacher's logits as well as from the labels (Hinton et al. 2015). Imports torch."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from rich.progress import track
from torch.nn import functional

from export import checkpoint as checkpoints
from export.data import LabelledRows, tokenize_rows
from export.model_inputs import bind_padding, fed_inputs
from export.tasks.base import IGNORED, label_names
from export.tasks.trained import AugmentedTask, OwnLossTask, TrainedTask
from export.training.batches import TEACHER_LOGITS
from export.training.hyperparameters import Distillation
from serving.errors import ArtifactError, DataError
from serving.reporting import console, logger
from serving.runtime.tokenization import FIELDS, TextEncoder

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerFast

REPORTS = 10
"""Number of progress lines in a log."""


@dataclass(frozen=True, kw_only=True)
class Teacher:
    """The teacher, usually a larger model that is fine-tuned for the same labels.

    Attributes:
        model: Its frozen model.
        tokenizer: Its tokenizer.
        task: The student's task.
        options: Temperature, weight and n-gram augmentation.
        order: Position of each of the student's labels among the teacher's; None if the task has no labels.
        inputs: Names of the inputs of its model.
        fine_tuned: Whether ``finetune`` wrote the checkpoint.
    """

    model: PreTrainedModel
    tokenizer: PreTrainedTokenizerFast
    task: TrainedTask
    options: Distillation
    order: Sequence[int] | None
    inputs: Collection[str]
    fine_tuned: bool = False

    @property
    def cacheable(self) -> bool:
        """Whether its logits of a row are few and always the same, so that they are computed only once."""
        return _cacheable(self.task)

    def logits(self, rows: LabelledRows, *, batch_size: int, max_length: int, device: str) -> list[list[float]]:
        """Compute its logits for each row. It tokenizes the texts with its own tokenizer.

        Args:
            rows: The rows.
            batch_size: Number of rows at a time.
            max_length: Maximum number of tokens of a row; the teacher's own limit may be lower.
            device: ``auto``, ``cpu`` or ``gpu``.

        Returns:
            ``[rows, labels]``, in the order of the student's labels.

        Raises:
            DataError: The teacher cannot take a row.
        """
        config = self.model.config.to_dict()
        max_length = checkpoints.resolve_max_length(None, self.tokenizer, config, default=max_length, fine_tuned=self.fine_tuned)
        place = torch.device("cuda" if device != "cpu" and torch.cuda.is_available() else "cpu")
        model = self.model.to(place)
        names = fed_inputs(self.tokenizer, self.model)
        padding = bind_padding(self.tokenizer, self.model, self.options.teacher)
        encoder = TextEncoder(self.tokenizer.backend_tokenizer, max_length=max_length, names=names, padding=padding)
        encodings = tokenize_rows(rows, self.task, encoder, training=True).encodings
        found: list[list[float]] = [[]] * len(encodings)
        for places in _batches(sorted(range(len(encodings)), key=lambda at: len(encodings[at])), batch_size):
            arrays = encoder.arrays([encodings[at] for at in places])
            with torch.no_grad():
                outputs = model(**{name: torch.from_numpy(values).to(place) for name, values in arrays.items()})
            for at, logits in zip(places, self._ordered(outputs[self.task.heads[0]]).float().tolist(), strict=True):
                found[at] = logits
        self.model.to("cpu")  # the memory of the GPU is for the student
        return found

    def loss(self, hard: torch.Tensor, outputs: Mapping[str, torch.Tensor], batch: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """Combine the loss on the labels with the distance to the teacher's logits.

        Args:
            hard: Loss on the labels.
            outputs: The student's outputs by name.
            batch: Inputs and targets of the batch.

        Returns:
            The weighted sum of both losses.
        """
        if TEACHER_LOGITS in batch:
            theirs = {self.task.heads[0]: batch[TEACHER_LOGITS]}
        else:
            self.model.to(hard.device)
            with torch.no_grad():
                found = self.model(**{name: values for name, values in batch.items() if name in self.inputs})
            theirs = {head: self._ordered(found[head]) for head in self.task.heads}
        distances = [self._distance(outputs[head], theirs[head], batch.get("labels")) for head in self.task.heads]
        weight = self.options.weight
        return (1 - weight) * hard + weight * sum(distances) / len(distances)

    def _ordered(self, logits: torch.Tensor) -> torch.Tensor:
        return logits if self.order is None else logits[..., self.order]

    def _distance(self, ours: torch.Tensor, theirs: torch.Tensor, labels: torch.Tensor | None) -> torch.Tensor:
        kind = self.task.head().get("problem_type")
        if kind == "regression":
            return functional.mse_loss(ours, theirs)
        if kind == "multi_label_classification":
            return functional.binary_cross_entropy_with_logits(ours, theirs.sigmoid())
        if labels is not None and labels.ndim == ours.ndim - 1 and ours.ndim == 3:  # tokens; those without a label are left out
            ours, theirs = ours[labels != IGNORED], theirs[labels != IGNORED]
        elif labels is not None and labels.shape == ours.shape:  # groups; smaller ones are padded
            ours, theirs = (logits.masked_fill(labels == IGNORED, torch.finfo(logits.dtype).min) for logits in (ours, theirs))
        width = min(ours.shape[-1], theirs.shape[-1])  # vocabularies are padded to different sizes
        ours, theirs = ours[..., :width], theirs[..., :width]
        temperature = self.options.temperature
        soft = functional.log_softmax(ours / temperature, dim=-1), functional.log_softmax(theirs / temperature, dim=-1)
        return functional.kl_div(*soft, reduction="batchmean", log_target=True) * temperature**2


def load_teacher(folder: Path, task: TrainedTask, student: PreTrainedTokenizerFast, options: Distillation) -> Teacher:
    """Load a teacher.

    Args:
        folder: The teacher's checkpoint.
        task: The student's task.
        student: The student's tokenizer.
        options: Options of the distillation.

    Returns:
        The teacher.

    Raises:
        ArtifactError: It cannot be loaded, or was fine-tuned for another task or other labels.
        DataError: The task does not support distillation, or the teacher's tokenizer differs and the logits belong to tokens.
    """
    if isinstance(task, OwnLossTask):
        raise DataError(f"distillation requires logits, and {task.name} has none", hint="leave out --teacher")
    checkpoints.require_task(checkpoints.read_config(folder), type(task), options.teacher)
    tokenizer = checkpoints.load_tokenizer(folder, pads_with_end=task.causal)
    if options.parts and not _cacheable(task):
        raise DataError(f"n-gram augmentation does not support {task.name}", hint="leave out --teacher-parts")
    if not _cacheable(task) and _tokenizer_rules(tokenizer) != _tokenizer_rules(student):
        raise DataError(
            f"{options.teacher} and the student have different tokenizers, so their tokens do not correspond",
            hint=f"a teacher for {task.name} must have the same tokenizer",
        )
    model = checkpoints.load_model(folder, type(task), tokenizer).requires_grad_(False)
    return Teacher(
        model=model,
        tokenizer=tokenizer,
        task=task,
        options=options,
        order=_order(task, model.config.to_dict(), options.teacher),
        inputs={*FIELDS, *(("labels",) if task.generates else ())} & inspect.signature(model.forward).parameters.keys(),
        fine_tuned=checkpoints.is_fine_tuned(folder),
    )


def _cacheable(task: TrainedTask) -> bool:
    return not (task.token_level or task.grouped or isinstance(task, AugmentedTask))


def _batches(places: Sequence[int], batch_size: int) -> Iterator[Sequence[int]]:
    """Yield ``places`` in batches and report the progress."""
    terminal = console().is_terminal
    starts = range(0, len(places), batch_size)
    reported = {starts[len(starts) * part // REPORTS] for part in range(REPORTS)} if not terminal else set()
    for start in track(starts, "teacher", console=console(), transient=True, disable=not terminal):
        if start in reported:
            logger.info(f"teacher: {start} of {len(places)} texts")
        yield places[start : start + batch_size]


def _tokenizer_rules(tokenizer: PreTrainedTokenizerFast) -> tuple[Any, ...]:
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
