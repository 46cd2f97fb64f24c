"""Fine-tuning: labelled rows and a checkpoint → the best epoch, with its figures, as an artifact."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import NoneType
from typing import Any

import click

from export import checkpoint as checkpoints
from export.data import Columns, LabelledRows, Rows, bind, encode_labels, hold_out, prepare, sample, write_evaluation
from export.model_card import model_card
from export.sources import checkpoint_files, checkpoint_folder, load_rows
from serving.artifact import inputs_record, is_current, publish, read_manifest, versions, write_manifest
from serving.errors import ArtifactError, DataError
from serving.runtime.tasks import task_class
from serving.runtime.tasks.base import Task

HELD_OUT = 0.1
"""Share of the training rows held out for validation where no validation rows are given."""


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What shapes the training itself.

    Args:
        epochs: at most; fewer where ``early_stopping`` sets in.
        batch_size: rows a step, on one device.
        learning_rate: the highest, reached after ``warmup_ratio`` of all steps, falling to 0 at the end.
        weight_decay: of AdamW.
        early_stopping: epochs without a better main metric after which training stops; 0: never.
        seed: of the new head, dropout, row order and every random choice of rows.
    """

    epochs: int = 3
    batch_size: int = 32
    learning_rate: float = 5e-5
    warmup_ratio: float = 0.1
    weight_decay: float = 0.01
    early_stopping: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class FinetuneOptions:
    """Options of the stage.

    Args:
        name: of the artifact.
        task: as in ``serving.runtime.tasks.names()``.
        checkpoint, train, validation, test: locations as ``export.sources`` reads them. Without ``validation`` a tenth of the
            training rows is held out.
        setting: the task's settings chosen, by name, over those that the checkpoint says.
        max_train_rows: draw that many of the training rows; None: all.
        max_length: tokens kept of a row; None: as many as the task has it, or what the model takes if that is less.
        device: ``auto``, ``cpu`` or ``gpu``.
        force: train even where the artifact is up to date.
    """

    name: str
    task: str
    checkpoint: str
    train: str
    validation: str | None = None
    test: str | None = None
    columns: Columns = field(default_factory=Columns)
    setting: Mapping[str, Any] = field(default_factory=dict)
    max_train_rows: int | None = None
    max_length: int | None = None
    training: Hyperparameters = field(default_factory=Hyperparameters)
    device: str = "auto"
    artifacts: Path = Path("artifacts")
    force: bool = False

    @property
    def target(self) -> Path:
        """The artifact's folder."""
        return self.artifacts / self.name / "checkpoint"


@dataclass(frozen=True, kw_only=True)
class _Data:
    """Encoded rows by split, and the task bound to their labels."""

    task: Task
    splits: dict[str, LabelledRows]
    inputs: dict[str, Any]


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Train, keep the best epoch, write the artifact; resumes after an interruption from the last whole epoch.

    Returns:
        The artifact's manifest; that of the last run where nothing has changed since.

    Raises:
        ArtifactError: the checkpoint cannot be used.
        DataError: rows, columns or labels are not as they must be.
        SetupError: the quickstart could not be fetched, or there is no such device.
    """
    cache = options.artifacts / "quickstart"
    _require_trainable(task_class(options.task))
    data = _load(options, cache)
    base = checkpoint_folder(options.checkpoint, cache)
    data = replace(data, task=_configured(data.task, options, base))
    inputs = _inputs(options, base, data)
    if not options.force and is_current(options.target, "checkpoint", inputs):
        click.echo(f"{options.target} is up to date", err=True)
        return read_manifest(options.target, "checkpoint")
    sizes = ", ".join(f"{len(rows)} {name}" for name, rows in data.splits.items())
    click.echo(f"fine-tuning {options.checkpoint} on {sizes} rows{_said_labels(data.task)}", err=True)
    return _train_and_write(options, base, data, inputs)


def _require_trainable(task: type[Task]) -> None:
    if task.trained_as:
        raise DataError(
            f"checkpoints of {task.name} are fine-tuned as {task.trained_as}",
            hint=f"give --task {task.trained_as}, then export",
        )


def _load(options: FinetuneOptions, cache: Path) -> _Data:
    task_type = task_class(options.task)
    found: dict[str, Rows] = {}
    for split, location in (("train", options.train), ("validation", options.validation), ("test", options.test)):
        if location is not None:
            found[split] = load_rows(location, options.columns, task_type, split=split, cache=cache)
            _require_same_kind(found["train"], found[split])
    task = bind(task_type, found["train"], pair=len(found["train"].texts) == 2)
    seed = options.training.seed
    if "validation" not in found:
        found["train"], found["validation"] = hold_out(found["train"], HELD_OUT, seed, key=task_type.kept_together)
        click.echo(f"no --validation: {len(found['validation'])} of the training rows are held out for it", err=True)
    found["train"] = found["train"].take(sample(len(found["train"]), options.max_train_rows, seed))
    return _Data(
        task=task,
        splits={split: encode_labels(rows, task) for split, rows in found.items()},
        inputs={split: {"rows": len(rows), "sha256": rows.digest()} for split, rows in found.items()},
    )


def _configured(task: Task, options: FinetuneOptions, base: Path) -> Task:
    """The task with what the checkpoint says of it, and what was chosen.

    Raises:
        ArtifactError: the checkpoint cannot be used for it.
    """
    try:
        return replace(task, **checkpoints.settings(base, type(task), options.setting))
    except ValueError as error:
        raise ArtifactError(f"{options.checkpoint} cannot be used for {task.name}: {error}", hint="see --setting") from None


def _said_labels(task: Task) -> str:
    labels = task.settings().get("labels", ())
    return f", labels {', '.join(labels)}" if labels else ""


def _require_same_kind(train: Rows, other: Rows) -> None:
    """Refuse rows whose labels would only seem to be those of the training rows: positions where those have names."""
    ours, theirs = _kind(train), _kind(other)
    if theirs not in (ours, "lists of nothing") and (ours, theirs) != ("numbers", "whole numbers"):  # none of these has a fraction
        raise DataError(
            f"{train.location} has labels such as {train.labels[0]!r}, {other.location} such as {other.labels[0]!r}: "
            f"one has {ours}, the other {theirs}"
        )


def _kind(rows: Rows) -> str:
    kinds = {str: "names", int: "whole numbers", float: "numbers", NoneType: "nothing"}
    found = type(rows.labels[0])
    if found is not list:
        return kinds.get(found, found.__name__)
    first = type(next((one for label in rows.labels for one in label), None))
    return f"lists of {kinds.get(first, first.__name__)}"


def _inputs(options: FinetuneOptions, base: Path, data: _Data) -> dict[str, Any]:
    record = {
        "task": options.task,
        "settings": data.task.settings(),
        "max_length": options.max_length,
        "device": options.device,
        "training": asdict(options.training),
        "rows": data.inputs,
    }
    return inputs_record(record, checkpoint_files(base))


def _train_and_write(options: FinetuneOptions, base: Path, data: _Data, inputs: dict[str, Any]) -> dict[str, Any]:
    from safetensors import SafetensorError

    from export import training

    tokenizer = checkpoints.load_tokenizer(base)
    config = checkpoints.read_config(base)
    max_length = checkpoints.chosen_max_length(options.max_length, tokenizer, config, default=data.task.default_max_length)
    data = _with_tokenizer(data, tokenizer, max_length, options)
    scratch = options.target.parent.absolute() / ".training"
    _prepare_scratch(scratch, {"inputs": inputs, "versions": versions(), "folder": str(scratch)})
    started = time.monotonic()
    trained = training.train(
        training.Job(
            base=base,
            task=data.task,
            tokenizer=tokenizer,
            splits=data.splits,
            max_length=max_length,
            options=options.training,
            device=options.device,
            scratch=scratch,
        )
    )
    rows = {split: len(rows) for split, rows in data.splits.items()}
    figures = trained.figures | {"rows": rows, "seconds": round(time.monotonic() - started, 1)}
    fields = _fields(options, data.task) | {"max_length": max_length, "figures": figures}
    with publish(options.target) as staging:
        try:
            trained.model.save_pretrained(staging, safe_serialization=True)
        except SafetensorError as error:  # a full disk among others
            raise ArtifactError(f"cannot write the weights into {options.target}: {error}", hint="is the disk full?") from error
        checkpoints.save_tokenizer(tokenizer, staging, max_length)
        checkpoints.write_files(data.task.files_written(max_length), staging)
        write_evaluation(data.splits[fields["evaluation_split"]], staging)
        (staging / "README.md").write_text(model_card(fields), encoding="utf-8")
        manifest = write_manifest(staging, "checkpoint", inputs, **fields)
    shutil.rmtree(scratch)
    return manifest


def _with_tokenizer(data: _Data, tokenizer: Any, max_length: int, options: FinetuneOptions) -> _Data:
    """The task bound to the checkpoint's tokenizer as well, and the rows as the two make them."""
    from serving.runtime.tokenization import TextEncoder

    task = checkpoints.bind_tokenizer(data.task, tokenizer, options.checkpoint)
    encoder = TextEncoder(tokenizer.backend_tokenizer, max_length=max_length, names=(), padding={})
    splits = {
        split: prepare(rows, task, encoder, location=f"the {split} rows", training=split == "train")
        for split, rows in data.splits.items()
    }
    return replace(data, task=task, splits=splits)


def _fields(options: FinetuneOptions, task: Task) -> dict[str, Any]:
    columns = options.columns.resolved(type(task))
    return {
        "name": options.name,
        "task": options.task,
        "labels": list(task.settings().get("labels", ())),
        "settings": task.settings(),
        "chosen_settings": dict(options.setting),
        "pair": task.pair,
        "main_metric": task.main_metric,
        "evaluation_split": "test" if options.test else "validation",
        "base_checkpoint": options.checkpoint,
        "data": {
            "train": options.train,
            "validation": options.validation or f"{HELD_OUT:.0%} of the training rows, held out",
            "test": options.test,
            "text_columns": [*columns.texts, *columns.choices],
            "label_column": columns.label,
        },
        "training": asdict(options.training),
    }


def _prepare_scratch(scratch: Path, made_from: Mapping[str, Any]) -> None:
    """Keep an interrupted run's epochs only if they were made from the very same things, by this folder's path too (the trainer
    records absolute paths)."""
    record = scratch / "inputs.json"
    wanted = json.dumps(made_from, indent=2, sort_keys=True)
    if record.is_file() and record.read_text(encoding="utf-8") == wanted:
        return
    if scratch.exists():
        shutil.rmtree(scratch)
    scratch.mkdir(parents=True)
    record.write_text(wanted, encoding="utf-8")
