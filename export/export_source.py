"""The input of an export: a checkpoint that fits the task, and labelled rows to verify on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from export import checkpoint as checkpoints
from export.data import EVALUATION, LabelledRows, bind_evaluation_labels, encode_labels, read_evaluation
from export.export_options import ExportOptions
from export.options import refuse_idle_settings, with_chosen_metric
from export.sources import check_unaltered, checkpoint_files, checkpoint_folder, load_rows
from export.tasks import is_exported, task_class
from export.tasks._encoder import ExportedEncoderTask
from export.tasks._generation import ExportedGenerationTask
from export.tasks.exported import ExportedTask
from serving.artifact import MANIFEST, fingerprint, read_manifest
from serving.errors import ArtifactError, DataError, ExportError
from serving.manifests import CheckpointManifest
from serving.reporting import plural
from serving.runtime.types import JsonValue


@dataclass(frozen=True, kw_only=True)
class ExportSource:
    """A checkpoint that fits the task, and the rows to verify on.

    Attributes:
        name: The location as given, without the path of a folder; the name of the model if ``finetune`` wrote the checkpoint.
        folder: The folder of the checkpoint.
        trained: Whether ``finetune`` wrote it.
        config: Its ``config.json``.
        task: The task, bound to the config.
        chosen: Settings that the user chose for the checkpoint, in fine-tuning or now.
        rows: The rows.
        max_length: Maximum tokens of a row, as requested or as in fine-tuning; None if unknown.
        recommended_length: The maximum length that the checkpoint's files recommend, if any.
    """

    name: str
    folder: Path
    trained: bool
    config: dict[str, Any]
    task: ExportedTask
    chosen: Mapping[str, JsonValue]
    rows: LabelledRows
    max_length: int | None
    recommended_length: int | None

    @property
    def encoder_task(self) -> ExportedEncoderTask:
        """The task of a checkpoint that answers in one execution.

        Raises:
            TypeError: The checkpoint generates its answers.
        """
        if not isinstance(self.task, ExportedEncoderTask):
            raise TypeError(f"{self.name}: checkpoints of {self.task.name} generate their answers")
        return self.task

    @property
    def generation_task(self) -> ExportedGenerationTask:
        """The task of a checkpoint that generates.

        Raises:
            TypeError: The checkpoint answers in one execution.
        """
        if not isinstance(self.task, ExportedGenerationTask):
            raise TypeError(f"{self.name}: checkpoints of {self.task.name} answer in one execution")
        return self.task

    @cached_property
    def files(self) -> dict[str, str]:
        """The SHA-256 of each file of the checkpoint, by path relative to the folder."""
        return fingerprint(checkpoint_files(self.folder), root=self.folder)


def find_source(options: ExportOptions) -> ExportSource:
    """Find the checkpoint and the rows, and check that they fit the task and each other.

    Raises:
        ArtifactError: The checkpoint is missing, of another task, or was altered since fine-tuning.
        DataError: There are no rows, or their labels are not those of the checkpoint.
        ExportError: The task cannot be exported, or this checkpoint cannot be served for it.
    """
    task_type = task_class(options.task)
    if not is_exported(task_type):
        raise ExportError(
            f"checkpoints of {task_type.name} can be fine-tuned but not exported: the model generates one token at a time",
            hint="use the checkpoint with transformers.pipeline",
        )
    name, folder = _locate(options)
    config = checkpoints.read_config(folder)
    trained = read_manifest(folder, CheckpointManifest) if (folder / MANIFEST).is_file() else None
    if trained is not None:
        check_unaltered(folder, trained)
    if trained is not None and trained.task not in (options.task, task_type.trained_as):
        raise ArtifactError(f"{folder} was fine-tuned for {trained.task}, not {options.task}", hint=f"give --task {trained.task}")
    checkpoints.require_task(config, task_type, options.checkpoint or name)
    pair = len(options.columns.resolved(task_type).texts) == 2 or (trained is not None and trained.pair)
    chosen = ({} if trained is None else trained.chosen_settings) | dict(options.setting)
    try:
        task = task_type.from_config(config, pair=pair).with_settings(checkpoints.read_settings(folder, task_type, chosen))
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:  # the file may hold any JSON
        reason = str(error) if isinstance(error, ValueError) else "it does not have the expected structure"
        raise ExportError(
            f"{name} cannot be served for {task_type.name}: {reason}", hint=f"see {folder / 'config.json'}"
        ) from error
    refuse_idle_settings(task, options.setting)
    if options.test is None and trained is not None and trained.task != options.task:
        raise DataError(
            f"the rows in {folder} are for {trained.task} and cannot verify {options.task}", hint="give rows with --test"
        )
    task, rows = _rows(options, folder, task, {} if trained is None else trained.settings)
    decided = None if trained is None or trained.main_metric not in task.selectable_metrics else trained.main_metric
    task = with_chosen_metric(task, options.metric or decided)
    return ExportSource(
        name=name if trained is None else trained.name,
        folder=folder,
        trained=trained is not None,
        config=config,
        task=task,
        chosen=chosen,
        rows=rows,
        max_length=options.max_length or (None if trained is None else trained.max_length),
        recommended_length=task_type.checkpoint_length(checkpoints.read_files(folder, task_type)),
    )


def _locate(options: ExportOptions) -> tuple[str, Path]:
    """Return the name of the checkpoint and its folder."""
    if options.checkpoint is None:
        folder = options.artifacts / options.name / "checkpoint"
        read_manifest(folder, CheckpointManifest)  # its error says how to make a checkpoint
        return options.name, folder
    folder = checkpoint_folder(options.checkpoint, options.artifacts / "quickstart")
    return (Path(options.checkpoint).name if Path(options.checkpoint).is_dir() else options.checkpoint), folder


def _rows(
    options: ExportOptions, folder: Path, task: ExportedTask, settings: Mapping[str, JsonValue]
) -> tuple[ExportedTask, LabelledRows]:
    """Return the task as it is evaluated, and the rows to verify on."""
    if options.test is not None:
        found = load_rows(options.test, options.columns, type(task), split="test", cache=options.artifacts / "quickstart")
        if len(found.texts) != task.text_columns:
            raise DataError(
                f"the checkpoint takes {task.text_columns} {plural(task.text_columns, 'text')} per row, but the rows have "
                f"{len(found.texts)}",
                hint="name the columns with --text-column and --text-pair-column",
            )
        bound = bind_evaluation_labels(task, found)
        return bound, encode_labels(found, bound)
    if (folder / EVALUATION).is_file():
        return task.with_kept_rows(settings), read_evaluation(folder, task)
    raise DataError(f"{folder} holds no labelled rows to verify on", hint="give rows with --test")
