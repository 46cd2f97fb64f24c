"""A training job and its result. Imports no torch."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from export.data import LabelledRows
from export.tasks.trained import TrainedTask
from export.training.hyperparameters import Adapter, Hyperparameters

if TYPE_CHECKING:
    from export.training.distillation import Teacher


@dataclass(frozen=True, kw_only=True)
class TrainingJob:
    """A training job: the checkpoint, the rows and all settings of one run of the trainer.

    Attributes:
        base: Folder of the checkpoint to start from.
        checkpoint_name: The checkpoint as the user named it, for messages and records.
        tokenizer: The checkpoint's tokenizer.
        task: The task, bound to the labels of the training rows.
        chosen_settings: Names of the task settings that the user chose; the others may be fitted on the validation rows.
        splits: Rows by split: ``train``, ``validation`` and optionally ``test``.
        max_length: Maximum number of tokens of a row; longer rows are truncated.
        options: Hyper-parameters.
        adapter: Adapter to train instead of all weights; None: train all weights.
        teacher: Teacher model for distillation; None: learn from the labels only.
        device: ``auto``, ``cpu`` or ``gpu``.
        scratch: Folder for the trainer's own checkpoints. Training resumes from the last complete epoch found there.
        tokens: Folder that caches the tokenized rows.
        report_to: Experiment trackers, by their names in ``transformers``.
    """

    base: Path
    checkpoint_name: str
    task: TrainedTask
    chosen_settings: Collection[str]
    tokenizer: Any
    splits: Mapping[str, LabelledRows]
    max_length: int
    options: Hyperparameters
    adapter: Adapter | None
    teacher: Teacher | None
    device: str
    scratch: Path
    tokens: Path
    report_to: tuple[str, ...] = ()


@dataclass(frozen=True, kw_only=True)
class TrainingResult:
    """The result of a training job.

    Attributes:
        model: The model of the best epoch, on the CPU, in float32. An adapter is merged into it.
        adapter: Folder with the adapter alone; None where all weights were trained.
        settings: Task settings that were fitted on the validation rows, by name.
        options: Hyper-parameters, with the values that the job left open filled in.
        figures: Metrics by split, the ``interval`` of the main metric (95 %, on the test rows if there are any), ``best_epoch``,
            ``epochs``, ``steps``, ``parameters``, ``trained_parameters`` and peak memory in MiB.
    """

    model: Any
    adapter: Path | None
    settings: dict[str, Any]
    options: Hyperparameters
    figures: dict[str, Any]
