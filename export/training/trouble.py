"""Errors of libraries while a model is trained → what they mean, and what to do. Imports torch."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError

from export import checkpoint as checkpoints
from export.training.distributed import processes
from serving.errors import ArtifactError

if TYPE_CHECKING:
    from export.training.train import Job


def explained(error: Exception, job: Job) -> ArtifactError | None:
    """What a library's error means for the user, where that is known; neither library raises an OSError for a full disk."""
    if isinstance(error, SafetensorError) or "PytorchStreamWriter" in str(error):
        return ArtifactError(f"cannot write an epoch into {job.scratch}: {error}", hint="is the disk full?")
    if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
        return ArtifactError(f"out of memory: {checkpoints.first_line(error)}", hint=_less_memory(job))
    return None


def _less_memory(job: Job) -> str:
    """What to lower, the least harmful first."""
    options, at_once = job.options, job.options.rows_at_once(processes())
    ways = []
    if at_once > 1:
        parts = next(parts for parts in range(2, at_once + 1) if at_once % parts == 0) * options.gradient_accumulation
        ways.append(
            f"--gradient-accumulation {parts} (the same training, {options.batch_size // parts // processes()} rows at a time)"
        )
    if not options.gradient_checkpointing:
        ways.append("--gradient-checkpointing")
    if job.adapter is None:
        ways.append("--adapter lora")
    return f"give {', or '.join([*ways, f'a --max-length under {job.max_length}'])}"
