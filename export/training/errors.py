"""Translation of library errors during training into errors with a hint for the user. Imports torch."""

from __future__ import annotations

import torch
from safetensors import SafetensorError

from export.training.distributed import world_size
from export.training.job import TrainingJob
from serving.errors import ArtifactError, first_line


def translate_error(error: Exception, job: TrainingJob) -> ArtifactError | None:
    """Translate a library's error into one that tells the user what to do.

    Neither safetensors nor PyTorch raises an OSError when the disk is full.

    Args:
        error: What the library raised.
        job: The job that failed.

    Returns:
        The error to raise instead; None if the cause is unknown.
    """
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error):
        return ArtifactError(f"cannot write an epoch into {job.scratch}: {error}", hint="is the disk full?")
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return ArtifactError(f"out of memory: {first_line(error)}", hint=_memory_hint(job))
    return None


def _memory_hint(job: TrainingJob) -> str:
    """Name the options that reduce memory, those without an effect on the result first."""
    options, per_device = job.options, job.options.per_device_batch_size(world_size())
    hints = []
    if per_device > 1:
        divisor = next(divisor for divisor in range(2, per_device + 1) if per_device % divisor == 0)
        accumulation = divisor * options.gradient_accumulation
        rows = options.batch_size // accumulation // world_size()
        hints.append(f"--gradient-accumulation {accumulation} (the same training, {rows} rows at a time)")
    if not options.gradient_checkpointing:
        hints.append("--gradient-checkpointing")
    if job.adapter is None:
        hints.append("--adapter lora")
    return f"give {', or '.join([*hints, f'a --max-length under {job.max_length}'])}"
