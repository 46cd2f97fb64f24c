"""The training loop: ``transformers.Trainer`` around a task. Imports torch."""

from __future__ import annotations

import json
import math
import shutil
import sys
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import transformers
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from export import checkpoint as checkpoints
from export.data import LabelledRows
from export.metric import load_metric
from serving.errors import ArtifactError, SetupError
from serving.runtime.tasks.base import Task

if TYPE_CHECKING:
    from export.finetune import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to train.

    Args:
        base: checkpoint folder to start from.
        tokenizer: its tokenizer.
        splits: rows by ``train``, ``validation`` and perhaps ``test``; their labels are positions among ``names``.
        max_length: tokens kept of a row.
        device: ``auto``, ``cpu`` or ``gpu``.
        scratch: folder for the trainer's own checkpoints; a whole epoch found there is resumed from.
    """

    base: Path
    task: type[Task]
    tokenizer: Any
    splits: Mapping[str, LabelledRows]
    names: tuple[str, ...]
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
    encoded = {split: _encoded(rows, job) for split, rows in job.splits.items()}
    trainer = _trainer(_model(job), encoded, job)
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
        figures["test"] = _figures(trainer.evaluate(encoded["test"], metric_key_prefix="test"), "test_")
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
    label2id = {name: index for index, name in enumerate(job.names)}
    model = checkpoints.load_model(
        job.base,
        job.task,
        num_labels=len(job.names),
        id2label=dict(enumerate(job.names)),
        label2id=label2id,
        ignore_mismatched_sizes=True,
    )
    model.config.problem_type = "single_label_classification"  # not what a former head was for
    return model


def _encoded(rows: LabelledRows, job: Job) -> Any:
    from datasets import Dataset

    encodings = job.tokenizer(*map(list, rows.texts), truncation=True, max_length=job.max_length, padding=False)
    return Dataset.from_dict({**encodings, "labels": list(rows.labels)})


def _trainer(model: Any, encoded: Mapping[str, Any], job: Job) -> Any:
    metric = load_metric(job.task.metric)

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        figures: dict[str, float] = metric.compute(predictions=evaluated.predictions.argmax(-1), references=evaluated.label_ids)
        return figures

    patience = job.options.early_stopping
    trainer = Trainer(
        model=model,
        args=_arguments(job),
        train_dataset=encoded["train"],
        eval_dataset=encoded["validation"],
        compute_metrics=compute_metrics,
        data_collator=transformers.DataCollatorWithPadding(job.tokenizer),
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
        group_by_length=True,
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
