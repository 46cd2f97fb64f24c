"""Arguments of ``transformers.Trainer`` for a job. Imports torch."""

from __future__ import annotations

import os
from typing import Any

import torch
from transformers import Seq2SeqTrainingArguments

from export.tasks.trained import OwnLossTask
from export.training.distributed import world_size
from export.training.job import TrainingJob
from serving.errors import SetupError

LAUNCHED_PRECISION = os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
"""Value of ``accelerate launch --mixed_precision``."""


def training_arguments(job: TrainingJob) -> Seq2SeqTrainingArguments:
    """Make the trainer's arguments.

    Args:
        job: The training job.

    Returns:
        The arguments.

    Raises:
        DataError: The rows of a step cannot be divided over the processes.
        SetupError: The device does not support the requested precision.
    """
    options = job.options
    on_gpu = job.device != "cpu" and torch.cuda.is_available()
    per_device = options.per_device_batch_size(world_size())
    os.environ["ACCELERATE_MIXED_PRECISION"] = "no"  # otherwise the value of an earlier run in this process remains
    arguments = Seq2SeqTrainingArguments(
        predict_with_generate=job.task.generates,
        output_dir=str(job.scratch),
        num_train_epochs=options.epochs,
        per_device_train_batch_size=per_device,
        per_device_eval_batch_size=2 * per_device,
        gradient_accumulation_steps=options.gradient_accumulation,
        gradient_checkpointing=options.gradient_checkpointing,
        gradient_checkpointing_kwargs={"use_reentrant": False},  # reentrant needs gradients at the embeddings
        learning_rate=options.learning_rate,
        warmup_ratio=options.warmup_ratio,
        weight_decay=options.weight_decay,
        **_mixed_precision(options.mixed_precision, on_gpu=on_gpu),
        torch_compile=options.compiled,
        group_by_length=not isinstance(job.task, OwnLossTask),  # an in-batch loss needs random batches
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=1,
        load_best_model_at_end=True,
        metric_for_best_model=f"eval_{job.task.main_metric}",
        greater_is_better=True,
        **_logging(job),
        seed=options.seed,
        use_cpu=not on_gpu,
        dataloader_pin_memory=on_gpu,
        restore_callback_states_from_checkpoint=True,
    )
    # with several GPUs the trainer would wrap the model in nn.DataParallel and multiply the rows of a step
    arguments._n_gpu = min(arguments.n_gpu, 1)
    return arguments


def _logging(job: TrainingJob) -> dict[str, Any]:
    """Return the trainer's arguments for its log and the trackers."""
    return {
        "logging_strategy": "steps" if job.report_to else "epoch",
        "logging_steps": 0.01,
        "logging_nan_inf_filter": False,  # the filter hides NaN and infinite losses
        "report_to": list(job.report_to) or "none",
        "run_name": job.checkpoint_name,
        "logging_dir": str(job.scratch.parent / "runs"),
        "disable_tqdm": True,  # export.training.progress reports instead
    }


def _mixed_precision(chosen: str, *, on_gpu: bool) -> dict[str, bool]:
    """Return the trainer's arguments for a precision.

    Raises:
        SetupError: The device does not support it.
    """
    if chosen == "auto" and LAUNCHED_PRECISION != "no":
        chosen = LAUNCHED_PRECISION
    if chosen not in ("auto", "no", "bf16", "fp16"):
        raise SetupError(f"training in {chosen} is not supported", hint="launch with --mixed_precision bf16")
    if chosen == "auto":
        return {"bf16": on_gpu and torch.cuda.is_bf16_supported(including_emulation=False)}
    if chosen == "fp16" and not on_gpu:
        raise SetupError("fp16 training requires a GPU", hint="give --mixed-precision bf16")
    return {} if chosen == "no" else {chosen: True}
