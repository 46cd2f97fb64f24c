"""The training loop: ``transformers.Trainer`` around a task. Imports torch."""

from __future__ import annotations

import json
import math
import resource
import shutil
import sys
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import transformers
from safetensors import SafetensorError
from transformers import EarlyStoppingCallback

from export import checkpoint as checkpoints
from export.metric import bootstrapped, compute
from export.training import adapters
from export.training.batches import Collator
from export.training.distributed import is_main_process, main_first, say, world_size
from export.training.encoding import EncodedSplit, encode_split
from export.training.errors import translate_error
from export.training.hyperparameters import default_learning_rate
from export.training.job import TrainingJob, TrainingResult
from export.training.losses import loss_function
from export.training.progress import PlainProgress
from export.training.quantization_aware import fake_quantized
from export.training.trainer import TaskTrainer, outputs_by_name
from export.training.trainer_arguments import training_arguments
from serving.errors import ArtifactError, DataError, DivergedError, SetupError
from serving.runtime.tasks.base import Task
from serving.runtime.tokenization import FIELDS

MERGE_ROWS = 8
"""Rows that a merged model is held against its adapter on."""


def train(job: TrainingJob, callbacks: Sequence[Any] = ()) -> TrainingResult:
    """Train, evaluate each epoch on the validation rows, measure the best epoch on the test rows.

    Args:
        callbacks: of ``transformers.Trainer``, beside its own.

    Raises:
        ArtifactError: the checkpoint cannot be loaded for the task, an epoch cannot be written, or memory ran out.
        DataError: a step's rows cannot be shared out over the processes, or there is no such adapter.
        DivergedError: a loss is no number.
        SetupError: the device is ``gpu`` and there is none.
    """
    import datasets

    _check(job)
    datasets.disable_progress_bars()
    transformers.set_seed(job.options.seed)
    model, new = _model(job)
    parameters = model.num_parameters()
    job = with_learning_rate(job, parameters)
    if job.adapter is not None:
        model = adapters.add_adapter(model, job.adapter, new=new, keeps_head=job.task.causal or job.task.generates)
    rows = _rows(job)
    trainer = _trainer(model, rows, job)
    for callback in callbacks:
        trainer.add_callback(callback)
    figures: dict[str, Any] = {
        "parameters": parameters,
        "trained_parameters": sum(one.numel() for one in model.parameters() if one.requires_grad),
    }
    with fake_quantized(model, enabled=job.options.quantization_aware):
        _run(trainer, job)
    evaluations = [entry for entry in trainer.state.log_history if "eval_loss" in entry]
    best = next(entry for entry in evaluations if entry["step"] == trainer.state.best_global_step)
    _require_finite_loss(best["eval_loss"])
    figures |= {"best_epoch": round(best["epoch"]), "epochs": len(evaluations), "steps": trainer.state.global_step, **_memory()}
    figures["validation"] = _figures(best if not job.options.quantization_aware else trainer.evaluate(), "eval_")
    folder = None
    if job.adapter is not None:
        folder = job.scratch / "adapter"
        model, figures["merged_difference"] = _merged(trainer, folder, job)
        trainer.model = trainer.model_wrapped = model
    trainer.compute_metrics = None  # from here on it is asked for predictions, of other rows too
    settings = _fitted(trainer, rows["validation"], job, figures["validation"])
    figures |= _last_figures(trainer, rows, replace(job.task, **settings), job.tokenizer)
    return TrainingResult(model=trainer.model.cpu(), adapter=folder, settings=settings, options=job.options, figures=figures)


def _rows(job: TrainingJob) -> dict[str, EncodedSplit]:
    with main_first(job.device):
        try:
            return {split: encode_split(rows, job, split) for split, rows in job.splits.items()}
        except RuntimeError as error:  # of the teacher
            raise translate_error(error, job) or error from error


def _check(job: TrainingJob) -> None:
    """Refuse what cannot be trained, before anything is loaded."""
    if job.device == "gpu" and not torch.cuda.is_available():
        raise SetupError("torch sees no GPU", hint="give --device cpu, or see: tritonize doctor")
    if job.adapter is not None:
        adapters.check_adapter(job.adapter)
    if job.adapter is not None and job.options.quantization_aware:
        raise DataError("an adapter's weights are not those that are rounded", hint="leave out --adapter or --quantization-aware")
    if job.options.quantization_aware and not job.task.exported:
        raise DataError(f"checkpoints of {job.task.name} are not exported to int8", hint="leave out --quantization-aware")
    job.options.per_device_batch_size(world_size())


def _last_figures(trainer: Any, rows: Mapping[str, EncodedSplit], task: Task, tokenizer: Any) -> dict[str, Any]:
    """Figures of the test rows, if there are any, and the interval of the main metric on them, else on the validation rows."""
    judged = rows.get("test", rows["validation"])
    found = trainer.predict(judged.dataset)
    figures, predictions = _judged(found.predictions, judged, task, tokenizer)
    _, *interval = bootstrapped(task.metric, task.main_metric, predictions, judged.references)
    test = {"test": {"loss": found.metrics["test_loss"], **figures}} if "test" in rows else {}
    return test | {"interval": interval}


def _fitted(trainer: Any, rows: EncodedSplit, job: TrainingJob, figures: dict[str, float]) -> dict[str, Any]:
    """The task's settings that were left open, as they do best on the validation rows; ``figures`` become those found with them."""
    found: dict[str, Any] = {}
    for name, values in job.task.candidates().items():
        if name in job.chosen_settings:
            continue
        outputs = trainer.predict(rows.dataset).predictions
        tasks = {value: replace(job.task, **found, **{name: value}) for value in values}
        tried = {value: _judged(outputs, rows, task, job.tokenizer)[0] for value, task in tasks.items()}
        found[name] = max(tried, key=lambda value: tried[value][job.task.main_metric])  # the first of equals
        figures |= tried[found[name]]
        say(f"{name} {found[name]:g} does best on the validation rows: {job.task.main_metric} {figures[job.task.main_metric]:.4f}")
    return found


def with_learning_rate(job: TrainingJob, parameters: int | None = None) -> TrainingJob:
    """The job with a learning rate: where none was given, one that goes with the model's ``parameters`` (None: not yet counted)."""
    if job.options.learning_rate is not None:
        return job
    counted = parameters or _loaded(job)[0].num_parameters()
    usual = default_learning_rate(counted, adapter=job.adapter is not None)
    return replace(job, options=replace(job.options, learning_rate=usual))


def _merged(trainer: Any, folder: Path, job: TrainingJob) -> tuple[Any, float]:
    """The best epoch with its adapter merged, which is left alone in ``folder``, and by how much that moved its outputs."""
    assert job.adapter is not None
    with main_first(job.device):
        if is_main_process():
            adapters.save_adapter(trainer.model, folder, base=job.checkpoint_name)
    # not as accelerate has wrapped it, which may compute in half precision
    model = trainer.accelerator.unwrap_model(trainer.model, keep_fp32_wrapper=False, keep_torch_compile=False)
    base = _loaded(job)[0] if job.adapter.load_in else None
    rows = trainer.eval_dataset
    batch = trainer.data_collator([rows[row] for row in range(min(MERGE_ROWS, len(rows)))])
    read = {*FIELDS, "labels"} if job.task.generates else FIELDS.keys()  # what is written follows from what was to be
    taken = read & set(trainer._signature_columns)  # a tokenizer may make more than the model takes
    return adapters.merge_adapter(model, base, folder, {name: values for name, values in batch.items() if name in taken})


def _memory() -> dict[str, int]:
    """The most memory that this process took until now, MiB."""
    found = {"peak_rss_mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024}  # Linux says KiB
    if torch.cuda.is_available() and torch.cuda.max_memory_allocated():
        found["peak_gpu_mib"] = torch.cuda.max_memory_allocated() // 2**20
    return found


def _run(trainer: Any, job: TrainingJob) -> None:
    with main_first(job.device):  # it clears up what was not written to its end
        last = _last_whole_epoch(job.scratch)
    if last is not None:
        say(f"resuming after {last.name}")
    with warnings.catch_warnings():
        # of epochs that take less than a second; the trainer then goes by their numbers, which are right
        warnings.filterwarnings("ignore", message="mtime may not be reliable")
        try:
            trainer.train(resume_from_checkpoint=str(last) if last else None)
        except (SafetensorError, RuntimeError) as error:
            known = translate_error(error, job)
            if known is None:
                raise
            raise known from error


def _require_finite_loss(loss: float) -> None:
    if not math.isfinite(loss):
        raise DivergedError(f"training diverged: the best epoch's validation loss is {loss}", hint="give a smaller --learning-rate")


def _model(job: TrainingJob) -> tuple[Any, set[str]]:
    """The model to train, with the task's head, and the names of the parameters that the checkpoint lacks."""
    return _loaded(job, **adapters.loading_options(job.adapter))


def _loaded(job: TrainingJob, **options: Any) -> tuple[Any, set[str]]:
    head = job.task.head()
    model, new = checkpoints.load_for_training(job.base, type(job.task), **head, ignore_mismatched_sizes=True, **options)
    _require_weights(model, new, job)
    for name, value in head.items():  # not what a former head was for
        setattr(model.config, name, value)
    if job.task.generates:
        model.generation_config.update(**job.task.generation())
    if job.task.generates or job.task.causal:
        _require_saveable(model.generation_config, job.checkpoint_name)
    return model, new


def _require_weights(model: Any, new: set[str], job: TrainingJob) -> None:
    """Only a head may be new, and what pools for it, which models that fill masks have not."""
    whole = job.task.causal or job.task.generates
    lost = sorted(name for name in new if whole or (name.startswith(f"{model.base_model_prefix}.") and "pooler" not in name))
    if lost:
        raise ArtifactError(
            f"{job.checkpoint_name} lacks {len(lost)} of the model's weights, or has them in another shape: "
            f"{', '.join(lost[:3])} …",
            hint="is its config.json that of its weights?",
        )


def _require_saveable(generation: Any, checkpoint: str) -> None:
    """What the library loads of a generation config, it need not write."""
    try:
        generation.validate(strict=True)
    except ValueError as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"{checkpoint}: {reason}", hint="mend its generation_config.json") from error


def _judged(collected: Any, rows: EncodedSplit, task: Task, tokenizer: Any) -> tuple[dict[str, float], list[Any]]:
    """What the trainer collected of the model's outputs for the rows, in their order → figures, and a prediction for each."""
    outputs = outputs_by_name(collected, task, rows.origins)
    predictions = task.judged(outputs, rows.origins, tokenizer.backend_tokenizer)
    figures = compute(task.metric, predictions, rows.references)
    return figures | task.figures(outputs, outputs, rows.origins, rows.references), predictions


def _trainer(model: Any, rows: Mapping[str, EncodedSplit], job: TrainingJob) -> Any:
    patience = job.options.early_stopping
    weighed = job.options.class_weights or job.options.label_smoothing  # else they need not be read, all of them at once
    arguments = training_arguments(job)
    if job.task.own_loss:  # the model's forward does not name them
        arguments.label_names = rows["train"].targets
    trainer = TaskTrainer(
        job.task,
        job.tokenizer,
        loss=loss_function(
            job.task,
            job.options,
            rows["train"].labels if weighed else (),
            unlabelled=bool(job.teacher and job.teacher.options.parts),
        ),
        teacher=job.teacher,
        layer_decay=job.options.layer_decay,
        model=model,
        args=arguments,
        train_dataset=rows["train"].dataset,
        eval_dataset=rows["validation"].dataset,
        compute_metrics=lambda evaluated: _judged(evaluated.predictions, rows["validation"], job.task, job.tokenizer)[0],
        preprocess_logits_for_metrics=job.task.kept,
        data_collator=Collator(job.tokenizer, job.task),
        callbacks=[EarlyStoppingCallback(patience)] if patience else [],
    )
    if not sys.stderr.isatty():
        trainer.remove_callback(transformers.PrinterCallback)
        trainer.add_callback(PlainProgress(job.task.main_metric))
    return trainer


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
