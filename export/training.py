"""The training loop: ``transformers.Trainer`` around a task. Imports torch."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import torch
import transformers
from transformers import EarlyStoppingCallback, Trainer, TrainerCallback, TrainingArguments

from export import checkpoint as checkpoints
from export.data import LabelledRows
from export.metric import load_metric
from serving.errors import SetupError
from serving.runtime.tasks.base import Task

if TYPE_CHECKING:
    from export.finetune import Hyperparameters


@dataclass(frozen=True, kw_only=True)
class Trained:
    """The best epoch's model, on the CPU, and the figures: metric by split, ``best_epoch``, ``epochs``."""

    model: Any
    figures: dict[str, Any]


def train(base: Path, task: type[Task], tokenizer: Any, splits: Mapping[str, LabelledRows], *, names: Sequence[str], max_length: int,
          options: Hyperparameters, device: str, scratch: Path) -> Trained:
    """Train on ``splits["train"]``, evaluate each epoch on ``splits["validation"]``, measure the best on all other splits.

    Args:
        scratch: folder for the trainer's own checkpoints; a whole epoch found there is resumed from.

    Raises:
        ArtifactError: the checkpoint cannot be loaded for the task.
        SetupError: ``device`` is ``gpu`` and there is none.
    """
    import datasets  # noqa: PLC0415

    if device == "gpu" and not torch.cuda.is_available():
        raise SetupError("torch sees no GPU", hint="give --device cpu, or see: tritonize doctor")
    transformers.set_seed(options.seed)
    labels = {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}
    model = checkpoints.load_model(base, task, num_labels=len(names), ignore_mismatched_sizes=True, **labels)
    model.config.problem_type = "single_label_classification"  # not what a former head was for
    datasets.disable_progress_bars()
    encoded = {split: _encoded(rows, tokenizer, max_length) for split, rows in splits.items()}
    trainer = _trainer(model, task, tokenizer, encoded, options, device, scratch)
    last = last_whole_epoch(scratch)
    if last is not None:
        click.echo(f"resuming after {last.name}", err=True)
    trainer.train(resume_from_checkpoint=str(last) if last else None)
    best = next(entry for entry in trainer.state.log_history if "eval_loss" in entry and entry["step"] == trainer.state.best_global_step)
    figures: dict[str, Any] = {"validation": _figures(best, "eval_")}
    if "test" in encoded:
        figures["test"] = _figures(trainer.evaluate(encoded["test"], metric_key_prefix="test"), "test_")
    figures |= {"best_epoch": round(best["epoch"]), "epochs": round(trainer.state.epoch)}
    return Trained(model=trainer.model.cpu(), figures=figures)


def _encoded(rows: LabelledRows, tokenizer: Any, max_length: int) -> Any:
    from datasets import Dataset  # noqa: PLC0415

    encodings = tokenizer(*map(list, rows.texts), truncation=True, max_length=max_length, padding=False)
    return Dataset.from_dict({**encodings, "labels": list(rows.labels)})


def _trainer(model: Any, task: type[Task], tokenizer: Any, encoded: Mapping[str, Any], options: Hyperparameters, device: str,
             scratch: Path) -> Any:
    metric = load_metric(task.metric)

    def compute_metrics(evaluated: Any) -> dict[str, float]:
        figures: dict[str, float] = metric.compute(predictions=evaluated.predictions.argmax(-1), references=evaluated.label_ids)
        return figures

    interactive = sys.stderr.isatty()
    arguments = TrainingArguments(
        output_dir=str(scratch), num_train_epochs=options.epochs, per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=2 * options.batch_size, learning_rate=options.learning_rate, warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay, group_by_length=True, eval_strategy="epoch", save_strategy="epoch", save_total_limit=1,
        load_best_model_at_end=True, metric_for_best_model=f"eval_{task.main_metric}", greater_is_better=True,
        logging_strategy="epoch", report_to="none", seed=options.seed, use_cpu=device == "cpu", disable_tqdm=not interactive,
        dataloader_pin_memory=torch.cuda.is_available() and device != "cpu", restore_callback_states_from_checkpoint=True,
    )
    trainer = Trainer(
        model=model, args=arguments, train_dataset=encoded["train"], eval_dataset=encoded["validation"], compute_metrics=compute_metrics,
        data_collator=transformers.DataCollatorWithPadding(tokenizer),
        callbacks=[EarlyStoppingCallback(options.early_stopping)] if options.early_stopping else [],
    )
    if not interactive:
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(PlainProgress(task.main_metric))
    return trainer


def _figures(logged: Mapping[str, float], prefix: str) -> dict[str, float]:
    timing = ("runtime", "samples_per_second", "steps_per_second")
    plain = {key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)}
    return {key: value for key, value in plain.items() if key not in timing}


def last_whole_epoch(scratch: Path) -> Path | None:
    """The newest of the trainer's checkpoints that was written to its end, if any: its state file comes last."""
    whole = []
    for folder in scratch.glob("checkpoint-*"):
        with contextlib.suppress(OSError, ValueError):
            whole.append((json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"], folder))
    return max(whole)[1] if whole else None


class PlainProgress(TrainerCallback):  # type: ignore[misc]  # the library is untyped
    """One line a tenth of the way and one for every evaluation, for logs."""

    def __init__(self, main_metric: str) -> None:
        self._main_metric = main_metric

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
        """Say how far training is."""
        if state.global_step * 10 // state.max_steps > (state.global_step - 1) * 10 // state.max_steps:
            click.echo(f"step {state.global_step} of {state.max_steps}, epoch {state.epoch:.2f}", err=True)

    def on_evaluate(self, args: Any, state: Any, control: Any, metrics: dict[str, float], **_: Any) -> None:
        """Say how good the model is."""
        key = f"eval_{self._main_metric}"
        if key in metrics:
            click.echo(f"epoch {state.epoch:.0f}: validation {self._main_metric} {metrics[key]:.4f}, loss {metrics['eval_loss']:.4f}", err=True)
