"""The training loop: ``transformers.Trainer`` around a task. Imports torch."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import transformers
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerCallback, TrainingArguments

from export import checkpoint as checkpoints
from export.batches import Collator, training_columns
from export.data import LabelledRows, model_rows
from export.metric import compute
from export.trainer import TaskTrainer, predicted
from serving.errors import ArtifactError, SetupError
from serving.runtime.tasks.base import Features, Task
from serving.runtime.tokenization import FIELDS, TextEncoder

if TYPE_CHECKING:
    from export.finetune import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train.

    Args:
        base: checkpoint folder to start from.
        tokenizer: its tokenizer.
        task: bound to the labels of the training rows.
        splits: rows by ``train``, ``validation`` and perhaps ``test``.
        max_length: tokens kept of a row.
        device: ``auto``, ``cpu`` or ``gpu``.
        scratch: folder for the trainer's own checkpoints; a whole epoch found there is resumed from.
    """

    base: Path
    task: Task
    tokenizer: Any
    splits: Mapping[str, LabelledRows]
    max_length: int
    options: Hyperparameters
    device: str
    scratch: Path


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The best epoch's model, on the CPU, and the figures: metrics by split, ``best_epoch``, ``epochs``."""

    model: Any
    figures: dict[str, Any]


def train(job: Job) -> Trained:
    """Train, evaluate each epoch on the validation rows, measure the best epoch on the test rows.

    Raises:
        ArtifactError: the checkpoint cannot be loaded for the task, an epoch cannot be written, or training diverged.
        SetupError: the device is ``gpu`` and there is none.
    """
    import datasets

    if job.device == "gpu" and not torch.cuda.is_available():
        raise SetupError("torch sees no GPU", hint="give --device cpu, or see: tritonize doctor")
    datasets.disable_progress_bars()
    transformers.set_seed(job.options.seed)
    model = _model(job)
    encoded = {split: _encoded(rows, job) for split, rows in job.splits.items()}
    trainer = _trainer(model, encoded, job)
    last = _last_whole_epoch(job.scratch)
    if last is not None:
        click.echo(f"resuming after {last.name}", err=True)
    with warnings.catch_warnings():
        # of epochs that take less than a second; the trainer then goes by their numbers, which are right
        warnings.filterwarnings("ignore", message="mtime may not be reliable")
        _run(trainer, last)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = next(entry for entry in evaluations if entry["step"] == trainer.state.best_global_step)
    _require_finite_loss(best["eval_loss"])
    figures: dict[str, Any] = {"validation": _figures(best, "eval_")}
    if "test" in encoded:
        trainer.compute_metrics = _judge(encoded["test"], job.task)
        figures["test"] = _figures(trainer.evaluate(encoded["test"].dataset, metric_key_prefix="test"), "test_")
    figures |= {"best_epoch": round(best["epoch"]), "epochs": len(evaluations)}
    return Trained(model=trainer.model.cpu(), figures=figures)


def _run(trainer: Any, last: Path | None) -> None:
    try:
        trainer.train(resume_from_checkpoint=str(last) if last else None)
    except (SafetensorError, RuntimeError) as error:  # a full disk among others: neither library raises an OSError then
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise ArtifactError(f"cannot write an epoch into {trainer.args.output_dir}: {error}", hint="is the disk full?") from error


def _require_finite_loss(loss: float) -> None:
    if not math.isfinite(loss):
        raise ArtifactError(f"training diverged: the best epoch's validation loss is {loss}", hint="give a smaller --learning-rate")


def _model(job: Job) -> Any:
    head = job.task.head()
    model = checkpoints.load_model(job.base, type(job.task), **head, ignore_mismatched_sizes=True)
    for name, value in head.items():  # not what a former head was for
        setattr(model.config, name, value)
    return model


@dataclass(frozen=True, kw_only=True)
class _Encoded:
    """Rows as the model takes them, and what to hold its answers against."""

    dataset: Any
    targets: tuple[str, ...]
    features: Features
    references: Sequence[Any]


def _encoded(rows: LabelledRows, job: Job) -> _Encoded:
    """Tokens exactly as the served ensemble makes them, and the targets."""
    from datasets import Dataset

    names = [name for name in job.tokenizer.model_input_names if name in FIELDS]
    encoder = TextEncoder(job.tokenizer.backend_tokenizer, max_length=job.max_length, names=names, padding={})
    features = model_rows(rows, job.task, encoder, training=True)
    targets = job.task.targets(features, rows.labels)
    columns = training_columns(features, names, targets, job.task)
    return _Encoded(dataset=Dataset.from_dict(columns), targets=tuple(targets), features=features, references=rows.labels)


def _judge(encoded: _Encoded, task: Task) -> Callable[[Any], dict[str, float]]:
    """What the trainer calls with the model's outputs for the rows, in their order."""

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        origins = encoded.features.origins
        outputs = predicted(evaluated.predictions, task, origins)
        answers = task.answers(outputs, origins, task.request_options(task.judged_options))
        figures = compute(task.metric, task.predictions(answers), encoded.references)
        return figures | task.figures(outputs, outputs, origins, encoded.references)

    return compute_metrics


def _trainer(model: Any, encoded: Mapping[str, _Encoded], job: Job) -> Any:
    patience = job.options.early_stopping
    arguments = _arguments(job)
    if job.task.own_loss:  # the model's forward does not name them
        arguments.label_names = list(encoded["train"].targets)
    trainer = TaskTrainer(
        job.task,
        model=model,
        args=arguments,
        train_dataset=encoded["train"].dataset,
        eval_dataset=encoded["validation"].dataset,
        compute_metrics=_judge(encoded["validation"], job.task),
        data_collator=Collator(job.tokenizer, job.task),
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
    )
    if not sys.stderr.isatty():
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(PlainProgress(job.task.main_metric))
    return trainer


def _arguments(job: Job) -> TrainingArguments:
    options = job.options
    on_gpu = job.device != "cpu" and torch.cuda.is_available()
    arguments = TrainingArguments(
        output_dir=str(job.scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size,
        learning_rate=options.learning_rate,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        group_by_length=not job.task.own_loss,  # which compares the rows of a batch with each other: chance brings them together
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{job.task.main_metric}",
        greater_is_better=True,
        logging_strategy="epoch",
        report_to="none",
        seed=options.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        disable_tqdm=not sys.stderr.isatty(),
        restore_callback_states_from_checkpoint=True,
    )
    # with several GPUs the trainer would wrap the model in nn.DataParallel unasked, and a step would take that many times the rows
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _figures(logged: Mapping[str, float], prefix: str) -> dict[str, float]:
    timing = ("runtime", "samples_per_second", "steps_per_second")
    plain = {key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)}
    return {key: value for key, value in plain.items() if key not in timing}


def _last_whole_epoch(scratch: Path) -> Path | None:
    """The newest of the trainer's checkpoints that was written to its end, if any. One that was not is removed."""
    whole = []
    for folder in scratch.glob("checkpoint-*"):
        try:  # the state file is written last
            whole.append((json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"], folder))
        except (OSError, ValueError):
            shutil.rmtree(folder)
    return max(whole)[1] if whole else None


class PlainProgress(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """One line a tenth of the way and one for every evaluation, for logs."""

    def __init__(self, main_metric: str) -> None:
        self._main_metric = main_metric

    def on_step_end(self, _args: Any, state: Any, _control: Any, **_: Any) -> None:
        """Say how far training is."""
        if state.global_step * 10 // state.max_steps > (state.global_step - 1) * 10 // state.max_steps:
            click.echo(f"step {state.global_step} of {state.max_steps}, epoch {state.epoch:.2f}", err=True)

    def on_evaluate(self, _args: Any, state: Any, _control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Say how good the model is."""
        metric = metrics.get(f"eval_{self._main_metric}")
        if metric is not None:
            loss = metrics["eval_loss"]
            click.echo(f"epoch {state.epoch:.0f}: validation {self._main_metric} {metric:.4f}, loss {loss:.4f}", err=True)
