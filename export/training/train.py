"""Training: runs ``transformers.Trainer`` for a job and collects the figures of the best epoch. Imports torch."""

from __future__ import annotations

import json
import math
import resource
import shutil
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import datasets
import torch
import transformers
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback, TrainerCallback

from export import checkpoint as checkpoints
from export.metric import bootstrapped, compute, finite_or_none
from export.model_inputs import bind_padding
from export.tasks._encoder import ExportedEncoderTask
from export.tasks.trained import OwnLossTask, TrainedTask
from export.training import adapters
from export.training.batches import Collator
from export.training.distributed import main_first, world_size
from export.training.encoding import EncodedSplit, encode_split
from export.training.errors import translate_error
from export.training.hyperparameters import default_learning_rate
from export.training.job import TrainingJob, TrainingResult
from export.training.losses import loss_function
from export.training.progress import TrainingProgress
from export.training.quantization_aware import fake_quantized
from export.training.trainer import TaskTrainer, outputs_by_name
from export.training.trainer_arguments import training_arguments
from serving.errors import ArtifactError, DataError, DivergedError, SetupError
from serving.reporting import is_main_process, logger
from serving.runtime.tokenization import FIELDS

MERGE_ROWS = 8
"""Number of rows on which the outputs of a merged model are compared with those of its adapter."""


def train(job: TrainingJob, callbacks: Sequence[TrainerCallback] = ()) -> TrainingResult:
    """Train, evaluate each epoch on the validation rows, and measure the best epoch on the test rows.

    Args:
        job: The training job.
        callbacks: Further callbacks of ``transformers.Trainer``.

    Returns:
        The best epoch's model and its figures.

    Raises:
        ArtifactError: The checkpoint cannot be loaded for the task, an epoch cannot be written, or memory ran out.
        DataError: The rows of a step cannot be divided over the processes, or the adapter does not exist.
        DivergedError: A loss or the main metric is NaN or infinite.
        SetupError: The device is ``gpu`` and torch sees none.
    """
    _check(job)
    datasets.disable_progress_bars()
    transformers.set_seed(job.options.seed)
    model, new = _load_model(job, **adapters.loading_options(job.adapter))
    figures: dict[str, Any] = {"parameters": model.num_parameters()}
    job = with_learning_rate(job, figures["parameters"])
    if not callbacks:  # a trial of a search describes itself
        logger.info(_choices(job))
    if job.adapter is not None:
        model = adapters.add_adapter(model, job.adapter, new=new, keeps_head=job.task.causal or job.task.generates)
    figures["trained_parameters"] = sum(one.numel() for one in model.parameters() if one.requires_grad)
    rows = _encode_splits(job)
    adapter = job.scratch / "adapter" if job.adapter is not None else None
    with TrainingProgress(job.task.main_metric) as progress:
        trainer = _trainer(model, rows, job, [progress, *callbacks])
        with fake_quantized(model, enabled=job.options.quantization_aware):
            _run_trainer(trainer, job)
        figures |= _training_figures(trainer, job)
        if adapter is not None:
            figures["merged_difference"] = _merge_adapter(trainer, adapter, job)
        trainer.compute_metrics = None  # the trainer only predicts from here on, on other rows too
        settings = _fit_settings(trainer, rows["validation"], job, figures["validation"])
        figures |= _final_figures(trainer, rows, job.task.with_settings(settings), job.tokenizer)
    splits = [split for split in ("validation", "test") if split in figures]
    figures |= {split: _recorded(figures[split], split, job.task.main_metric) for split in splits}
    return TrainingResult(model=trainer.model.cpu(), adapter=adapter, settings=settings, options=job.options, figures=figures)


def _choices(job: TrainingJob) -> str:
    """Describe how a model is trained, whether the user chose it or not."""
    options = job.options
    return (
        f"learning rate {options.learning_rate:g}, batch size {options.batch_size}, epochs {options.epochs:g}, "
        f"at most {job.max_length} tokens; {job.task.main_metric} chooses the best epoch"
    )


def with_learning_rate(job: TrainingJob, parameters: int | None = None) -> TrainingJob:
    """Fill in the learning rate if the job has none.

    Args:
        job: The training job.
        parameters: Number of parameters of the model; None: load the model and count.

    Returns:
        The job with a learning rate that suits the size of the model.
    """
    if job.options.learning_rate is not None:
        return job
    counted = parameters or _load_model(job)[0].num_parameters()
    rate = default_learning_rate(counted, adapter=job.adapter is not None)
    return replace(job, options=replace(job.options, learning_rate=rate))


def _check(job: TrainingJob) -> None:
    """Refuse what cannot be trained before anything is loaded."""
    if job.device == "gpu" and not torch.cuda.is_available():
        raise SetupError("torch sees no GPU", hint="give --device cpu, or see: tritonize doctor")
    if job.adapter is not None:
        adapters.check_adapter(job.adapter)
    if job.adapter is not None and job.options.quantization_aware:
        raise DataError("quantization-aware training cannot train an adapter", hint="leave out --adapter or --quantization-aware")
    if job.options.quantization_aware and not isinstance(job.task, ExportedEncoderTask):
        raise DataError(f"checkpoints of {job.task.name} are not exported to int8", hint="leave out --quantization-aware")
    job.options.per_device_batch_size(world_size())


def _encode_splits(job: TrainingJob) -> dict[str, EncodedSplit]:
    with main_first(job.device):
        try:
            return {split: encode_split(rows, job, split) for split, rows in job.splits.items()}
        except RuntimeError as error:  # raised by the teacher's model
            raise translate_error(error, job) or error from error


def _load_model(job: TrainingJob, **options: Any) -> tuple[Any, set[str]]:
    """Load the model with the task's head; return it and the names of the parameters that the checkpoint lacks."""
    head = job.task.head()
    model, new = checkpoints.load_for_training(
        job.base,
        type(job.task),
        job.tokenizer,
        new_head=not (job.task.causal or job.task.generates),
        **head,
        **options,
    )
    bind_padding(job.tokenizer, model, job.checkpoint_name)
    for name, value in head.items():  # overwrite the settings of the checkpoint's former head
        setattr(model.config, name, value)
    if job.task.generates:
        model.generation_config.update(**job.task.generation_settings())
    if job.task.generates or job.task.causal:
        _require_saveable(model.generation_config, job.checkpoint_name)
    return model, new


def _require_saveable(generation: Any, checkpoint: str) -> None:
    """Refuse a generation config that ``transformers`` loads but refuses to save."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{checkpoint}: {reason}", hint="correct its generation_config.json") from error


def _trainer(model: Any, rows: Mapping[str, EncodedSplit], job: TrainingJob, callbacks: Sequence[TrainerCallback]) -> TaskTrainer:
    patience = job.options.early_stopping
    weighted = job.options.class_weights or job.options.label_smoothing  # otherwise the labels need not be read into memory
    arguments = training_arguments(job)
    if isinstance(job.task, OwnLossTask):  # the model's forward does not name them
        arguments.label_names = rows["train"].targets
    trainer = TaskTrainer(
        job.task,
        job.tokenizer,
        loss=loss_function(
            job.task,
            job.options,
            rows["train"].labels if weighted else (),
            unlabelled=bool(job.teacher and job.teacher.options.parts),
        ),
        teacher=job.teacher,
        layer_decay=job.options.layer_decay,
        model=model,
        args=arguments,
        train_dataset=rows["train"].dataset,
        eval_dataset=rows["validation"].dataset,
        compute_metrics=lambda evaluated: _evaluate(evaluated.predictions, rows["validation"], job.task, job.tokenizer)[0],
        preprocess_logits_for_metrics=job.task.preprocess_logits_for_metrics,
        data_collator=Collator(bind_padding(job.tokenizer, model, job.checkpoint_name), job.task),
        callbacks=[*([EarlyStoppingCallback(patience)] if patience else []), *callbacks],
    )
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def _run_trainer(trainer: TaskTrainer, job: TrainingJob) -> None:
    with main_first(job.device):  # the main process removes incomplete checkpoints
        last = _last_complete_checkpoint(job.scratch)
    if last is not None:
        logger.info(f"resuming after {last.name}")
    with warnings.catch_warnings():
        # raised for epochs that take less than a second; the trainer then orders checkpoints by step, which is right
        warnings.filterwarnings("ignore", message="mtime may not be reliable")
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (SafetensorError, RuntimeError) as error:
            known = translate_error(error, job)
            if known is None:
                raise
            raise known from error


def _last_complete_checkpoint(scratch: Path) -> Path | None:
    """Return the newest complete checkpoint of the trainer, if any, and remove incomplete ones."""
    complete = []
    for folder in scratch.glob("checkpoint-*"):
        try:  # the state file is written last
            complete.append((json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["global_step"], folder))
        except (OSError, ValueError):
            shutil.rmtree(folder)
    return max(complete)[1] if complete else None


def _training_figures(trainer: TaskTrainer, job: TrainingJob) -> dict[str, Any]:
    """Return the figures of the run and the best epoch's metrics on the validation rows."""
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    # the trainer names no best epoch if the main metric is NaN in all
    best = next((entry for entry in evaluations if entry["step"] == trainer.state.best_global_step), evaluations[0])
    if not math.isfinite(best["eval_loss"]):
        message = f"training diverged: the best epoch's validation loss is {best['eval_loss']}"
        raise DivergedError(message, hint="give a smaller --learning-rate")
    counts = {"best_epoch": round(best["epoch"]), "epochs": len(evaluations), "steps": trainer.state.global_step}
    # without fake quantization the metrics are others
    metrics = trainer.evaluate() if job.options.quantization_aware else best
    return counts | _peak_memory() | {"validation": _without_timing(metrics, "eval_")}


def _recorded(figures: Mapping[str, float], split: str, main_metric: str) -> dict[str, float | None]:
    """Return the figures of a split as manifests record them, after checking the main metric."""
    if not math.isfinite(main := figures[main_metric]):
        message = f"training diverged: {main_metric} on the {split} rows is {main}"
        raise DivergedError(message, hint="give a smaller --learning-rate")
    return finite_or_none(figures)


def _without_timing(logged: Mapping[str, float], prefix: str) -> dict[str, float]:
    timing = ("runtime", "samples_per_second", "steps_per_second")
    plain = {key.removeprefix(prefix): value for key, value in logged.items() if key.startswith(prefix)}
    return {key: value for key, value in plain.items() if key not in timing}


def _peak_memory() -> dict[str, int]:
    """Return the peak memory of this process so far, MiB."""
    found = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # Linux counts in KiB
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _merge_adapter(trainer: TaskTrainer, folder: Path, job: TrainingJob) -> float:
    """Save the best epoch's adapter in ``folder``, merge it into the trainer's model, and return the largest output difference."""
    assert job.adapter is not None
    with main_first(job.device):
        if is_main_process():
            adapters.save_adapter(trainer.model, folder, base=job.checkpoint_name)
    # accelerate's wrapper may compute in half precision
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    base = _load_model(job)[0] if job.adapter.load_in else None
    rows = trainer.eval_dataset
    batch = trainer.data_collator([rows[row] for row in range(min(MERGE_ROWS, len(rows)))])
    inputs = {*FIELDS, "labels"} if job.task.generates else FIELDS.keys()  # decoder inputs are made from the labels
    taken = inputs & set(trainer._signature_columns)  # a tokenizer may make more inputs than the model takes
    batch = {name: values for name, values in batch.items() if name in taken}
    merged, difference = adapters.merge_adapter(model, base, folder, batch)
    trainer.model = trainer.model_wrapped = merged
    return difference


def _fit_settings(trainer: TaskTrainer, rows: EncodedSplit, job: TrainingJob, figures: dict[str, float]) -> dict[str, Any]:
    """Choose the task settings that the user left open by the main metric on the validation rows; updates ``figures``."""
    fitted: dict[str, Any] = {}
    for name, values in job.task.fitted_settings().items():
        if name in job.chosen_settings:
            continue
        outputs = trainer.predict(rows.dataset).predictions
        tasks = {value: job.task.with_settings({**fitted, name: value}) for value in values}
        metrics = {value: _evaluate(outputs, rows, task, job.tokenizer)[0] for value, task in tasks.items()}
        fitted[name] = max(metrics, key=lambda value: metrics[value][job.task.main_metric])  # the first of equals
        figures |= metrics[fitted[name]]
        best = f"{job.task.main_metric} {figures[job.task.main_metric]:.4f}"
        logger.info(f"{name} {fitted[name]:g} does best on the validation rows: {best}")
    return fitted


def _final_figures(trainer: TaskTrainer, rows: Mapping[str, EncodedSplit], task: TrainedTask, tokenizer: Any) -> dict[str, Any]:
    """Return the metrics on the test rows, if any, and the interval of the main metric on them or else the validation rows."""
    split = rows.get("test", rows["validation"])
    found = trainer.predict(split.dataset)
    figures, predictions = _evaluate(found.predictions, split, task, tokenizer)
    _, *interval = bootstrapped(task.metric, task.main_metric, predictions, split.references)
    test = {"test": {"loss": found.metrics["test_loss"], **figures}} if "test" in rows else {}
    return test | {"interval": interval}


def _evaluate(collected: Any, rows: EncodedSplit, task: TrainedTask, tokenizer: Any) -> tuple[dict[str, float], list[Any]]:
    """Compute the metrics and one prediction per row from the outputs that the trainer collected, in the order of the rows."""
    outputs = outputs_by_name(collected, task, rows.origins)
    predictions = task.evaluate(outputs, rows.origins, tokenizer.backend_tokenizer)
    figures = compute(task.metric, predictions, rows.references)
    return figures | task.extra_figures(outputs, outputs, rows.origins, rows.references), predictions
